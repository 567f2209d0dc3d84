"""Qwen3's rerankers: language models whose next word, yes or no, is the score of a text for a query.

Nothing in their configuration says so; as by llama.cpp's converter, they are told by the name of the folder or by the
title of its card.  A GGUF then has the two rows of the head as `cls.output`, of which llama.cpp takes the softmax, and
a template for the pair.  The rows are copies, so they are left out where the folder is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.cards.general import folder_name
from llmconv.convert.tables import own_keys, scores
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.keys import LABELS
from llmconv.convert.vocab.model import TEMPLATE, TEMPLATE_NAMES
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.moving.rows import join, take

__all__ = ["added", "without"]

_WORDS = ("yes", "no")
_CALLED = ("qwen3-reranker", "qwen3-vl-reranker")
_PAIR = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""How these models were trained to be asked, by their card."""


def added(arch: Architecture, out: Checkpoint, folder: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Put into a GGUF what makes a reranker of it, where the folder is one's; notes."""
    if arch.gguf not in scores.IN_LLAMA_CPP or scores.NAME in out.tensors or not _is_one(folder, config):
        return []
    head = out.tensors.get("output.weight") or out.tensors.get("token_embd.weight")
    tokens = out.metadata.get("tokenizer.ggml.tokens")
    found = {word: n for n, word in enumerate(tokens if tokens is not None else ()) if word in _WORDS}
    if head is None or len(found) < len(_WORDS) or max(found.values()) >= head.n_rows:
        return ["it is called a reranker, but has no words yes and no: converted as any other model"]
    rows = [take(head, found[word], 1, (1, head.row_len)) for word in _WORDS]
    out.add(join(rows, (len(rows), head.row_len)).renamed(scores.NAME))
    out.metadata |= {
        f"{arch.gguf}.{scores.POOLING}": scores.RANK,
        f"{arch.gguf}.{LABELS}": list(_WORDS),
        TEMPLATE_NAMES: [*out.metadata.get(TEMPLATE_NAMES, ()), "rerank"],
        f"{TEMPLATE}.rerank": _PAIR,
        own_keys.RERANKER: True,
    }
    return ["a reranker, by its name: what it says of yes and no is its score, for llama-server --rerank"]


def _is_one(folder: Checkpoint, config: Mapping[str, Any]) -> bool:
    card = (folder.file("README.md") or b"").decode("utf-8", "replace").lower()
    names = (folder_name(folder), config.get("_name_or_path"))
    called = any(name in str(said or "").lower() for name in _CALLED for said in names)
    return called or any(f"# {name}" in card for name in _CALLED)


def without(checkpoint: Checkpoint) -> Checkpoint:
    """A GGUF without what `added` put into it."""
    if own_keys.RERANKER not in checkpoint.metadata:
        return checkpoint
    ours = (f".{scores.POOLING}", f".{LABELS}", f"{TEMPLATE}.rerank", own_keys.RERANKER)
    metadata = {key: value for key, value in checkpoint.metadata.items() if not key.endswith(ours)}
    others = [name for name in metadata.pop(TEMPLATE_NAMES, ()) if name != "rerank"]
    metadata |= {TEMPLATE_NAMES: others} if others else {}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != scores.NAME}
    return checkpoint.but(metadata=metadata, tensors=tensors)
