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


NAMES = {
    wordpiece: {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                "mask_token": "[MASK]"},
    unigram: {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
              "unk_token": "<unk>", "mask_token": "<mask>"},
}  # fmt: skip


def folder_of(path: Path, name: str, tokenizer: Any, **changes: Any) -> tuple[Any, Any]:
    """A folder with a tiny model and a vocabulary; (the model in float32, its tokenizer)."""
    import torch

    made = tokenizer()
    built = tiny_models.build(name, path, vocab_size=made.get_vocab_size(), **changes)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(NAMES[tokenizer]))
    return type(built).from_pretrained(path, dtype=torch.float32).eval(), made
