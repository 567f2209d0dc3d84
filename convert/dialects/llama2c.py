"""llama2.c's dialect: run.c's tensors, stacked over the layers, -> GGUF's Llama.

Both keep the rotary pairs of a head side by side, so that every weight is a slice of the file, unchanged.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from llmconv.convert import vocab
from llmconv.convert.tables.keys import dims_of
from llmconv.convert.tables.ops import Inverse, Stack
from llmconv.convert.tables.rows import Told, forward, row, slots
from llmconv.convert.vocab.model import SPM, TokenType, Vocab
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant.filetypes import FILE_TYPES, QUANTIZATION_VERSION

__all__ = ["from_gguf", "read_tokenizer", "to_gguf"]

_apart = Inverse(Stack())
_ROWS = (
    row("token_embd.weight", "token_embedding_table", "n_vocab, n_embd"),
    row("output_norm.weight", "rms_final_weight", "n_embd"),
    row("output.weight", "wcls", "n_vocab, n_embd", optional=True),
    row("blk.{l}.attn_norm.weight", "rms_att_weight", "n_embd", _apart),
    row("blk.{l}.attn_q.weight", "wq", "n_embd, n_embd", _apart),
    row("blk.{l}.attn_k.weight", "wk", "n_head_kv * head_dim, n_embd", _apart),
    row("blk.{l}.attn_v.weight", "wv", "n_head_kv * head_dim, n_embd", _apart),
    row("blk.{l}.attn_output.weight", "wo", "n_embd, n_embd", _apart),
    row("blk.{l}.ffn_norm.weight", "rms_ffn_weight", "n_embd", _apart),
    row("blk.{l}.ffn_gate.weight", "w1", "n_ff, n_embd", _apart),
    row("blk.{l}.ffn_down.weight", "w2", "n_embd, n_ff", _apart),
    row("blk.{l}.ffn_up.weight", "w3", "n_ff, n_embd", _apart),
)

# Key <- header field; what the format fixes without saying stands below.
_KEYS = {
    "block_count": "n_layers",
    "context_length": "seq_len",
    "embedding_length": "dim",
    "feed_forward_length": "hidden_dim",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "vocab_size": "vocab_size",
}


def to_gguf(checkpoint: Checkpoint, **_: Any) -> Checkpoint:
    """Slices of the file under GGUF's names; the vocabulary from the tokenizer.bin beside it."""
    sizes = checkpoint.metadata
    out = Checkpoint(dialect="gguf", source=checkpoint.source, format=checkpoint.format)
    out.metadata = {"general.architecture": "llama", "general.type": "model"}
    if checkpoint.source is not None:
        out.metadata["general.name"] = checkpoint.source.stem
    out.metadata["general.file_type"] = np.uint32(FILE_TYPES["F32"].number)
    out.metadata["general.quantization_version"] = np.uint32(QUANTIZATION_VERSION)
    out.metadata |= {f"llama.{key}": np.uint32(sizes[name]) for key, name in _KEYS.items()}
    out.metadata["llama.rope.dimension_count"] = np.uint32(sizes["dim"] // sizes["n_heads"])
    out.metadata["llama.rope.freq_base"] = np.float32(10000.0)  # run.c and model.py: theta = 10000, eps = 1e-5
    out.metadata["llama.attention.layer_norm_rms_epsilon"] = np.float32(1e-5)
    told = Told(checkpoint.where, "by its header", "every llama2.c model has it")
    moved = forward(slots(_ROWS, dims_of(out.metadata, "llama")), checkpoint.tensors, told)
    place = {name: i for i, name in enumerate(checkpoint.tensors)}  # GGUF's order is the file's
    for one in sorted(moved, key=lambda one: place[one.names[0]]):
        for tensor in one.parts:
            out.add(tensor)
    notes = (
        ["left out, computed from the configuration: freq_cis_real"] if "freq_cis_real" in checkpoint.tensors else []
    )
    data = checkpoint.file("tokenizer.bin")
    if data is None:
        notes.append("no tokenizer.bin beside the model: the GGUF has weights only")
    else:
        out.metadata |= vocab.to_gguf(read_tokenizer(data, sizes["vocab_size"], checkpoint.where))
    out.notes += notes
    return out


def from_gguf(checkpoint: Checkpoint, **_: Any) -> Checkpoint:
    raise Unsupported(f"{checkpoint.where}: llama2.c's format is only read; write GGUF or safetensors")


def read_tokenizer(data: bytes, n_vocab: int, where: str) -> Vocab:
    """tokenizer.bin: int32 of the longest piece, then (float32 score, int32 length, bytes) for each token.

    Written by llama2.c's tokenizer.py from sentencepiece: a space stands for "▁", and BOS and EOS have newlines around.
    """
    tokens: list[str] = []
    scores = np.zeros(n_vocab, np.float32)
    types = np.full(n_vocab, TokenType.NORMAL, np.int32)
    offset = 4
    for i in range(min(n_vocab, len(data) // 8)):
        if offset + 8 > len(data):
            break
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8
        if length < 0 or offset + length > len(data):
            raise BadFile(f"{where}: tokenizer.bin: token {i} has length {length}, more than the file holds")
        text = data[offset : offset + length].decode("utf-8", "replace")
        offset += length
        scores[i] = score
        if text in ("\n<s>\n", "\n</s>\n"):
            text, types[i] = text.strip("\n"), TokenType.CONTROL
        elif text == "<unk>":
            types[i] = TokenType.UNKNOWN
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[i] = TokenType.BYTE
        else:
            text = text.replace(" ", "▁")
        tokens.append(text)
    if len(tokens) != n_vocab or offset != len(data):
        raise BadFile(f"{where}: tokenizer.bin holds {len(tokens)} tokens in {len(data):,} bytes, expected {n_vocab}")
    special = {
        role: tokens.index(text) for role, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")) if text in tokens
    }
    flags = {"bos": True, "eos": False, "space_prefix": True}
    return Vocab(SPM, tokens, types, scores, special=special, flags=flags)
