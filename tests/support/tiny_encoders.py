"""Tiny encoders with vocabularies: what vectors and scores are compared on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models

TEXTS = ["the llama is an animal", "a file format", "the format of a file is the format", "animal"]
QUERY = "what is the llama"
WORDS = [*TEXTS, QUERY, "some more words that a vocabulary may be made of, and letters: abcdefghijklmnopqrstuvwxyz"]


def wordpiece() -> Any:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = (
        tokenizers.normalizers.BertNormalizer(),
        tokenizers.pre_tokenizers.BertPreTokenizer(),
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(WORDS, tokenizers.trainers.WordPieceTrainer(vocab_size=96, special_tokens=special))
    made.decoder = tokenizers.decoders.WordPiece()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def unigram() -> Any:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=96, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(WORDS, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def bytelevel(ends: bool = False) -> Any:
    """A language model's: pieces of bytes, a token before each text; ends: one behind it too."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = level, tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=level.alphabet(), show_progress=False
    )
    made.train_from_iterator(WORDS, trainer)
    last, again = (" </s>", " </s>:1") if ends else ("", "")
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"<s> $A{last}",
        pair=f"<s> $A{last} <s>:1 $B:1{again}",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return made


def ended() -> Any:
    return bytelevel(True)


def yes_or_no() -> Any:
    made = bytelevel()
    made.add_tokens(["yes", "no"])
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    return made


NAMES = {
    **{
        made: {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} for made in (bytelevel, ended, yes_or_no)
    },
    wordpiece: {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                "mask_token": "[MASK]"},
    unigram: {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
              "unk_token": "<unk>", "mask_token": "<mask>"},
}  # fmt: skip


def folder_of(path: Path, name: str, tokenizer: Any, **changes: Any) -> tuple[Any, Any]:
    """A folder with a tiny model and a vocabulary; (the model in float32, its tokenizer).

    changes: to its configuration; `task`: another than the usual.
    """
    import torch

    made = tokenizer()
    built = tiny_models.build(name, path, vocab_size=made.get_vocab_size(), **changes)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(NAMES[tokenizer]))
    return type(built).from_pretrained(path, dtype=torch.float32).eval(), made


def folder_by_hand(path: Path, name: str, tokenizer: Any, **changes: Any) -> Any:
    """A folder of a model that transformers lacks, in float32, with a vocabulary; its tokenizer."""
    import by_hand
    import hf_models
    import numpy as np

    from llmconv.formats import safetensors_file
    from llmconv.formats.tensor import Tensor

    made = tokenizer()
    config = by_hand.CONFIGS[name] | {"vocab_size": made.get_vocab_size()} | changes
    prefix = {"prefix": by_hand.PREFIXES[name]} if name in by_hand.PREFIXES else {}
    folder = hf_models.model(config, kind="F32", form=by_hand.FORMS.get(name, 0), **prefix)
    for tensor in folder.tensors.values():
        values = tensor.numpy() * 0.15 + (0.5 if len(tensor.shape) == 1 else 0.0)
        folder.add(Tensor.from_array(tensor.name, values.astype(np.float32)))
    folder.metadata["format"] = "pt"
    rng, rank = np.random.default_rng(11), config.get("lora_rank", 0)
    for base in [n for n in folder.tensors if n.endswith(".parametrizations.weight.original")] if rank else ():
        rows, columns = folder.tensors[base].shape
        shapes = ((rank, columns), (rows, rank)) if "embeddings" not in base else ((rows, rank), (rank, columns))
        for letter, shape in zip("AB", shapes, strict=True):
            beside = base.removesuffix("original") + f"0.lora_{letter}"
            folder.add(Tensor.from_array(beside, (rng.normal(0, 0.3, (2, *shape))).astype(np.float32)))
    if name == "nomic-moe":
        folder.add(Tensor.from_array("encoder.layers.1.mlp.experts.bias", rng.normal(0, 0.5, 64).astype(np.float32)))
    said = {
        key: value for key, value in config.items() if key != "up_gated_layer"
    }  # which published files leave unsaid
    folder.files["config.json"] = json.dumps(said).encode()
    folder.files["tokenizer_config.json"] = json.dumps(NAMES[tokenizer]).encode()
    safetensors_file.save(folder, path)
    made.save(str(path / "tokenizer.json"))
    return made
