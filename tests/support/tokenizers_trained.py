"""Tokenizers to test with: small ones of every kind, trained here, and the real ones of the shared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmconv.convert import vocab
from llmconv.convert.vocab.read import recognise
from llmconv.convert.vocab.wordpiece import plain

CORPUS = [
    "It is a truth universally acknowledged, that a single man in possession of 1234 pounds must be in want of a wife.",
    "However little known the feelings or views of such a man may be, he's WE'LL known on 12.5.1813!",
    "def main(args):\n\treturn [x ** 2 for x in range(1000) if x % 3 == 0]\n\n\n    # done",
    "Größe, naïve café — 你好，世界。 Привет мир! こんにちは 안녕하세요 🚀🙂",
] * 8
PROBE = "\n".join(CORPUS[:4]) + recognise.PROBE + " <s> [SEP] <|im_start|>user <extra_0>  unseen: ☃ ß \x01 "


def trained(kind: str, pre_tokenizer: Any = None, special: tuple[str, ...] = ("<s>", "<|im_start|>")) -> Any:
    """A small tokenizer of the library, trained on the corpus."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    unk = "[UNK]" if kind in ("wordpiece", "wordlevel") else "<unk>"
    common = {"vocab_size": 600, "show_progress": False}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps: tuple[Any, ...]
    match kind:
        case "bpe":
            trainer = trainers.BpeTrainer(initial_alphabet=level.alphabet(), special_tokens=list(special), **common)
            steps = (models.BPE(), trainer, None, pre_tokenizer or level, decoders.ByteLevel())
        case "wordpiece":
            names = ["[PAD]", unk, "[CLS]", "[SEP]", "[MASK]"]
            trainer = trainers.WordPieceTrainer(special_tokens=names, **common)
            normalizer = normalizers.BertNormalizer(lowercase=True)
            steps = (models.WordPiece(unk_token=unk), trainer, normalizer, pre_tokenizers.BertPreTokenizer(), None)
        case "unigram":
            trainer = trainers.UnigramTrainer(
                special_tokens=[unk, "<s>", "</s>"], unk_token=unk, vocab_size=200, show_progress=False
            )
            steps = (models.Unigram(), trainer, None, pre_tokenizers.Metaspace(), decoders.Metaspace())
        case "wordlevel":
            trainer = trainers.WordLevelTrainer(special_tokens=[unk], **common)
            steps = (models.WordLevel(unk_token=unk), trainer, None, pre_tokenizers.Whitespace(), None)
        case _:
            trainer = trainers.BpeTrainer(
                special_tokens=[unk, "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))], **common
            )
            trainer.vocab_size = 900
            normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            model = models.BPE(unk_token=unk, byte_fallback=True, fuse_unk=True)
            steps = (model, trainer, normalizer, None, decoders.Replace("▁", " "))
    made = Tokenizer(steps[0])
    for name, value in zip(("normalizer", "pre_tokenizer", "decoder"), steps[2:], strict=True):
        if value is not None:
            setattr(made, name, value)
    made.train_from_iterator(CORPUS, steps[1])
    made.add_tokens([AddedToken("<extra_0>", normalized=False)])
    document = json.loads(made.to_str())
    document["added_tokens"] = [a for a in document["added_tokens"] if not a["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(document))
    if kind == "wordpiece":
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    elif kind not in ("wordlevel",):
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return made


def ours(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys without those that only llmconv writes: what another converter's file would have."""
    return {k: v for k, v in keys.items() if not k.startswith("llmconv")}


KINDS = {"bpe": "gpt2", "wordpiece": "bert", "unigram": "t5", "wordlevel": "words", "spm": "llama"}


def gpt2(shared: Path) -> dict[str, Path | bytes]:
    return {name: shared / "tokenizers" / "gpt2" / name for name in ("vocab.json", "merges.txt")}


def llama2(shared: Path) -> dict[str, Path | bytes]:
    return {"tokenizer.model": shared / "tokenizers" / "llama2-tokenizer.model"}


def bert(shared: Path) -> dict[str, Path | bytes]:
    tokens = plain(vocab.load(shared / "vocabs" / "ggml-vocab-bert-bge.gguf"))
    return {"vocab.txt": ("\n".join(tokens) + "\n").encode()}
