"""A corpus of bad inputs for every format.

The containers' own one-fault tables (`faulty_*`) are gathered here, and joined by models that are whole as containers
and wrong in meaning.
"""
# ruff: noqa: E501 (tables of one line a fault)

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faulty_documents
import faulty_gguf
import faulty_safetensors
import faulty_torch
import numpy as np
from good_models import CONFIG, changed, tensors, tokenizer, tokenizer_with, write_gguf, write_hf
from imatrix_files import dat
from simple_model import document

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign import llama2c_file
from llmconv.formats.tensor import Tensor


def llama2c() -> bytes:
    sizes = dict(zip(llama2c_file._FIELDS, (8, 12, 2, 2, 1, 5, 4), strict=True))
    n = sum(int(np.prod(s)) for _, s in llama2c_file._tensors(0, sizes, True))
    return struct.pack("<7i", *sizes.values()) + np.full(n, 0.1, "<f4").tobytes()


@dataclass(frozen=True)
class Case:
    """A bad input.  make: writes it into a folder and gives its path.

    readable: the container itself is whole, so that commands which need no more than that may succeed.
    says: what the sentence must hold; "" for anything.
    """

    kind: str
    name: str
    make: Callable[[Path], Path]
    readable: bool = False
    says: str = ""


def _file(name: str, raw: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder / name

    return make


def _weights(**changes: tuple[int, ...] | None) -> dict[str, Tensor]:
    """The good tensors with some reshaped or left out; `__` in a name stands for a dot."""
    found = tensors()
    for name, shape in changes.items():
        name = name.replace("__", ".")
        if shape is None:
            del found[name]
        else:
            found[name] = Tensor.from_array(name, np.full(shape, 0.1, np.float32))
    return found


LAYER = "model__layers__0__"
# fault -> arguments of write_hf
CONFIGS: dict[str, dict[str, Any]] = {
    "not JSON": {"config": b"{oops"},
    "empty": {"config": b""},
    "a list": {"config": b"[]"},
    "null": {"config": b"null"},
    "not UTF-8": {"config": b'{"model_type":"\xff"}'},
    "key twice": {"config": b'{"model_type":"llama",' + json.dumps(CONFIG).encode()[1:]},
    "nested": {"config": b"[" * 100_000},
    "NaN": {"config": json.dumps(changed(CONFIG, rms_norm_eps=float("nan"))).encode()},
    "number of 1e999": {"config": json.dumps(CONFIG).replace("1e-05", "1e999").encode()},
    "endless number": {"config": json.dumps(CONFIG).replace("10000.0", "9" * 5000).encode()},
    "no architecture": {"config": changed(CONFIG, "architectures", "model_type")},
    "architecture unknown": {"config": changed(CONFIG, architectures=["EvilForCausalLM"], model_type="evil")},
    "architecture a number": {"config": changed(CONFIG, architectures=5, model_type=7)},
    "architecture with control characters": {"config": changed(CONFIG, architectures=["\x1b[31mX\n"], model_type="\x1b[2J\r")},
    "no hidden_size": {"config": changed(CONFIG, "hidden_size")},
    "no layers": {"config": changed(CONFIG, "num_hidden_layers")},
    "layers 0": {"config": changed(CONFIG, num_hidden_layers=0)},
    "layers -1": {"config": changed(CONFIG, num_hidden_layers=-1)},
    "layers 2 of 1": {"config": changed(CONFIG, num_hidden_layers=2)},
    "layers 1e12": {"config": changed(CONFIG, num_hidden_layers=10**12)},
    "layers 2^70": {"config": changed(CONFIG, num_hidden_layers=2**70)},
    "layers as text": {"config": changed(CONFIG, num_hidden_layers="1")},
    "layers 1.5": {"config": changed(CONFIG, num_hidden_layers=1.5)},
    "layers true": {"config": changed(CONFIG, num_hidden_layers=True)},
    "heads 0": {"config": changed(CONFIG, num_attention_heads=0)},
    "heads -2": {"config": changed(CONFIG, num_attention_heads=-2)},
    "heads 3": {"config": changed(CONFIG, num_attention_heads=3)},
    "heads null": {"config": changed(CONFIG, num_attention_heads=None)},
    "heads a list": {"config": changed(CONFIG, num_attention_heads=[2])},
    "kv heads 0": {"config": changed(CONFIG, num_key_value_heads=0)},
    "kv heads 3": {"config": changed(CONFIG, num_key_value_heads=3)},
    "kv heads -1": {"config": changed(CONFIG, num_key_value_heads=-1)},
    "head_dim 0": {"config": changed(CONFIG, head_dim=0)},
    "head_dim 7": {"config": changed(CONFIG, head_dim=7)},
    "hidden_size 0": {"config": changed(CONFIG, hidden_size=0)},
    "hidden_size 64": {"config": changed(CONFIG, hidden_size=64)},
    "hidden_size a map": {"config": changed(CONFIG, hidden_size={})},
    "intermediate_size 63": {"config": changed(CONFIG, intermediate_size=63)},
    "vocab_size 100": {"config": changed(CONFIG, vocab_size=100)},
    "vocab_size 10^9": {"config": changed(CONFIG, vocab_size=10**9)},
    "vocab_size -1": {"config": changed(CONFIG, vocab_size=-1)},
    "eps negative": {"config": changed(CONFIG, rms_norm_eps=-1e-5)},
    "eps as text": {"config": changed(CONFIG, rms_norm_eps="small")},
    "rope_theta 0": {"config": changed(CONFIG, rope_theta=0)},
    "rope_theta as text": {"config": changed(CONFIG, rope_theta="x")},
    "rope_scaling unknown": {"config": changed(CONFIG, rope_scaling={"type": "evil", "factor": 2.0})},
    "rope_scaling a number": {"config": changed(CONFIG, rope_scaling=4)},
    "rope_scaling factor 0": {"config": changed(CONFIG, rope_scaling={"type": "linear", "factor": 0})},
    "rope_scaling factor a list": {"config": changed(CONFIG, rope_scaling={"type": "linear", "factor": [1]})},
    "context -1": {"config": changed(CONFIG, max_position_embeddings=-1)},
    "context 2^40": {"config": changed(CONFIG, max_position_embeddings=2**40)},
    "bos beyond": {"config": changed(CONFIG, bos_token_id=10**6)},
    "quantization_config a list": {"config": changed(CONFIG, quantization_config=[1])},
    "tensor missing": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": None})},
    "norm missing": {"weights": _weights(model__norm__weight=None)},
    "embedding missing": {"weights": _weights(model__embed_tokens__weight=None)},
    "a tensor more": {"weights": _weights(model__extra__weight=(4, 4))},
    "a layer more": {"weights": _weights(model__layers__7__input_layernorm__weight=(32,))},
    "layer number beyond 64 bits": {"weights": _weights(**{f"model__layers__{'9' * 30}__input_layernorm__weight": (32,)})},
    "q too short": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": (16, 32)})},
    "q turned": {"weights": _weights(**{f"{LAYER}mlp__up_proj__weight": (32, 64)})},
    "q a vector": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": (1024,)})},
    "q a scalar": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": ()})},
    "q empty": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": (0, 32)})},
    "q of 3 dimensions": {"weights": _weights(**{f"{LAYER}self_attn__q_proj__weight": (2, 16, 32)})},
    "norm a matrix": {"weights": _weights(model__norm__weight=(32, 1))},
    "norm too long": {"weights": _weights(model__norm__weight=(33,))},
    "embedding of other rows": {"weights": _weights(model__embed_tokens__weight=(259, 32))},
    "head of other rows": {"weights": _weights(lm_head__weight=(100, 32))},
    "no tensors": {"weights": {}},
    "generation_config not JSON": {"generation_config__json": b"{"},
}  # fmt: skip
# Faults that conversion may pass over (what they spoil is only kept, or is legal).
PASSED = {
    "context 2^40", "bos beyond", "generation_config not JSON", "rope_theta 0", "no architecture",
    "architecture unknown", "architecture a number", "architecture with control characters",
}  # fmt: skip


_V = tokenizer()["model"]["vocab"]
TOKENIZERS: dict[str, Any] = {
    "not JSON": b"{oops",
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"model":"\xff"}',
    "nested": b'{"a":' * 50_000,
    "nested pre_tokenizer": changed(tokenizer(), pre_tokenizer=json.loads('{"type":"Sequence","pretokenizers":[' * 90 + "null" + "]}" * 90)),
    "no model": changed(tokenizer(), "model"),
    "model a list": changed(tokenizer(), model=[]),
    "model type unknown": tokenizer_with(type="Evil"),
    "model type a number": tokenizer_with(type=3),
    "no vocab": tokenizer_with("vocab"),
    "vocab a list of numbers": tokenizer_with(vocab=[1, 2]),
    "vocab empty": changed(tokenizer_with(vocab={}, merges=[]), added_tokens=[]),
    "ids twice": tokenizer_with(vocab=changed(_V, th=3)),
    "id negative": tokenizer_with(vocab=changed(_V, th=-1)),
    "id huge": tokenizer_with(vocab=changed(_V, th=2**40)),
    "id as text": tokenizer_with(vocab=changed(_V, th="3")),
    "id true": tokenizer_with(vocab=changed(_V, th=True)),
    "more tokens than the model": tokenizer_with(vocab=changed(_V, **{f"x{i}": 260 + i for i in range(50)})),
    "merges a map": tokenizer_with(merges={}),
    "merge of three": tokenizer_with(merges=["t h e"]),
    "merge of one": tokenizer_with(merges=["th"]),
    "merge of a number": tokenizer_with(merges=[5]),
    "merge of unknown tokens": tokenizer_with(merges=["q q"]),
    "merges without their prefix": tokenizer_with(continuing_subword_prefix="####"),
    "added tokens a map": changed(tokenizer(), added_tokens={}),
    "added token id negative": changed(tokenizer(), added_tokens=[{"id": -1, "content": "x", "special": True}]),
    "added token id huge": changed(tokenizer(), added_tokens=[{"id": 2**60, "content": "x", "special": True}]),
    "added token without text": changed(tokenizer(), added_tokens=[{"id": 3, "special": True}]),
    "added token over another": changed(tokenizer(), added_tokens=[{"id": 3, "content": "zzz", "special": True}]),
    "pre_tokenizer unknown": changed(tokenizer(), pre_tokenizer={"type": "Evil"}),
    "pre_tokenizer a list": changed(tokenizer(), pre_tokenizer=[1]),
    "pattern that never ends": changed(tokenizer(), pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
    "half a character": json.dumps(tokenizer_with(vocab=changed(_V, **{"\ud800": 258}))).encode(),
}  # fmt: skip
TOKENIZERS_PASSED = {
    "merges without their prefix",
    "added tokens a map", "merge of unknown tokens", "pattern that never ends", "nested pre_tokenizer", "vocab empty",
    "added token over another", "pre_tokenizer unknown", "pre_tokenizer a list", "merge of three", "merge of one",
}  # fmt: skip


def _set(**changes: Any) -> Callable[[Checkpoint], object]:
    return lambda c: c.metadata.update({k.replace("__", "."): v for k, v in changes.items()})


def _drop(*names: str) -> Callable[[Checkpoint], object]:
    return lambda c: [c.metadata.pop(n, None) or c.tensors.pop(n, None) for n in names]


def _tensor(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Callable[[Checkpoint], object]:
    return lambda c: c.tensors.update({name: Tensor.from_array(name, np.full(shape, 1, dtype))})


# fault -> change of a good GGUF
GGUF_MEANING: dict[str, Callable[[Checkpoint], object]] = {
    "no architecture": _drop("general.architecture"),
    "architecture unknown": _set(general__architecture="evil"),
    "architecture a number": _set(general__architecture=np.uint32(1)),
    "architecture with control characters": _set(general__architecture="\x1b[31mevil\n\r"),
    "no block_count": _drop("llama.block_count"),
    "block_count 0": _set(llama__block_count=np.uint32(0)),
    "block_count 2": _set(llama__block_count=np.uint32(2)),
    "block_count 2^32-1": _set(llama__block_count=np.uint32(2**32 - 1)),
    "block_count as text": _set(llama__block_count="1"),
    "block_count negative": _set(llama__block_count=np.int32(-1)),
    "block_count an array": _set(llama__block_count=np.ones(3, np.uint32)),
    "no embedding_length": _drop("llama.embedding_length"),
    "embedding_length 0": _set(llama__embedding_length=np.uint32(0)),
    "embedding_length 64": _set(llama__embedding_length=np.uint32(64)),
    "no heads": _drop("llama.attention.head_count"),
    "heads 0": _set(llama__attention__head_count=np.uint32(0)),
    "heads 3": _set(llama__attention__head_count=np.uint32(3)),
    "heads 1.5": _set(llama__attention__head_count=np.float32(1.5)),
    "kv heads 0": _set(llama__attention__head_count_kv=np.uint32(0)),
    "kv heads 3": _set(llama__attention__head_count_kv=np.uint32(3)),
    "kv heads an empty array": _set(llama__attention__head_count_kv=np.zeros(0, np.uint32)),
    "feed_forward 0": _set(llama__feed_forward_length=np.uint32(0)),
    "feed_forward 63": _set(llama__feed_forward_length=np.uint32(63)),
    "eps as text": _set(llama__attention__layer_norm_rms_epsilon="x"),
    "eps NaN": _set(llama__attention__layer_norm_rms_epsilon=np.float32("nan")),
    "rope dimensions 0": _set(llama__rope__dimension_count=np.uint32(0)),
    "rope dimensions 2^31": _set(llama__rope__dimension_count=np.uint32(2**31)),
    "tensor missing": _drop("blk.0.attn_q.weight"),
    "norm missing": _drop("output_norm.weight"),
    "embedding missing": _drop("token_embd.weight"),
    "a tensor more": _tensor("blk.0.evil.weight", (32, 32)),
    "a layer more": _tensor("blk.5.attn_norm.weight", (32,)),
    "q too short": _tensor("blk.0.attn_q.weight", (16, 32)),
    "q a scalar": _tensor("blk.0.attn_q.weight", ()),
    "q a vector": _tensor("blk.0.attn_q.weight", (1024,)),
    "q empty": _tensor("blk.0.attn_q.weight", (0, 32)),
    "q of integers": _tensor("blk.0.attn_q.weight", (32, 32), np.int32),
    "q of 4 dimensions": _tensor("blk.0.attn_q.weight", (1, 1, 32, 32)),
    "norm a matrix": _tensor("output_norm.weight", (32, 2)),
    "embedding of other rows": _tensor("token_embd.weight", (259, 32)),
    "tokens missing": _drop("tokenizer.ggml.tokens"),
    "tokens are numbers": _set(tokenizer__ggml__tokens=np.arange(260, dtype=np.int32)),
    "tokens too few": _set(tokenizer__ggml__tokens=["a", "b"]),
    "tokens too many": _set(tokenizer__ggml__tokens=[f"t{i}" for i in range(300)]),
    "token twice": _set(tokenizer__ggml__tokens=["a"] * 260),
    "token types too few": _set(tokenizer__ggml__token_type=np.ones(3, np.int32)),
    "token types unknown": _set(tokenizer__ggml__token_type=np.full(260, 99, np.int32)),
    "token types as text": _set(tokenizer__ggml__token_type=["x"] * 260),
    "scores too few": _set(tokenizer__ggml__scores=np.ones(3, np.float32)),
    "merges are numbers": _set(tokenizer__ggml__merges=np.ones(3, np.int32)),
    "merges of nothing": _set(tokenizer__ggml__merges=["", " ", "x"]),
    "tokenizer unknown": _set(tokenizer__ggml__model="evil"),
    "tokenizer a number": _set(tokenizer__ggml__model=np.uint32(1)),
    "pre-tokenizer unknown": _set(tokenizer__ggml__pre="evil\x1b[0m"),
    "bos beyond": _set(tokenizer__ggml__bos_token_id=np.uint32(10**6)),
    "bos as text": _set(tokenizer__ggml__bos_token_id="x"),
    "kept configuration is no JSON": _set(llmconv__hf__config="{oops"),
    "kept configuration of another model": _set(llmconv__hf__config='{"model_type":"gpt2"}'),
}
# What a llama.cpp-style reader leaves alone: these convert, and say what they could not use.
GGUF_PASSED = {
    "bos beyond", "bos as text", "no architecture", "architecture unknown", "architecture with control characters",
    "rope dimensions 0", "rope dimensions 2^31", "a tensor more", "a layer more", "q of integers", "tokens missing",
    "token twice", "merges of nothing", "tokenizer unknown", "pre-tokenizer unknown", "kept configuration is no JSON",
    "kept configuration of another model",
}  # fmt: skip


def _json(text: str) -> bytes:
    return text.encode()


def _spoiled(change: Callable[[dict[str, Any]], object], heads: int = 2) -> bytes:
    made = document(heads=heads)
    change(made)
    return json.dumps(made).encode()


JSON_MEANING: dict[str, bytes] = {
    "vocabSize 8 of 7": _spoiled(lambda d: d["config"].update(vocabSize=8)),
    "vocabSize -1": _spoiled(lambda d: d["config"].update(vocabSize=-1)),
    "vocabSize as text": _spoiled(lambda d: d["config"].update(vocabSize="7")),
    "vocabSize 1e300": _spoiled(lambda d: d["config"].update(vocabSize=1e300)),
    "embeddingDim 0": _spoiled(lambda d: d["config"].update(embeddingDim=0)),
    "embeddingDim 5": _spoiled(lambda d: d["config"].update(embeddingDim=5)),
    "numHeads 0": _spoiled(lambda d: d["config"].update(numHeads=0)),
    "numHeads 3": _spoiled(lambda d: d["config"].update(numHeads=3)),
    "numHeads null": _spoiled(lambda d: d["config"].update(numHeads=None)),
    "numLayers 3": _spoiled(lambda d: d["config"].update(numLayers=3)),
    "numLayers 1e18": _spoiled(lambda d: d["config"].update(numLayers=10**18)),
    "config a list": _spoiled(lambda d: d.update(config=[])),
    "config null": _spoiled(lambda d: d.update(config=None)),
    "no config": _spoiled(lambda d: d.pop("config")),
    "weights null": _spoiled(lambda d: d.update(weights=None)),
    "weights a list": _spoiled(lambda d: d.update(weights=[1, 2])),
    "no embedding": _spoiled(lambda d: d["weights"].pop("embedding")),
    "no output": _spoiled(lambda d: d["weights"].pop("output")),
    "embedding a vector": _spoiled(lambda d: d["weights"].update(embedding=[1, 2])),
    "embedding a text": _spoiled(lambda d: d["weights"].update(embedding="x")),
    "transformers a number": _spoiled(lambda d: d["weights"].update(transformers=5)),
    "transformers empty": _spoiled(lambda d: d["weights"].update(transformers=[])),
    "layer null": _spoiled(lambda d: d["weights"]["transformers"].__setitem__(0, None)),
    "w1 missing": _spoiled(lambda d: d["weights"]["transformers"][0].pop("w1")),
    "w1 of another size": _spoiled(lambda d: d["weights"]["transformers"][0].update(w1=[[1.0, 2.0]])),
    "gamma too short": _spoiled(lambda d: d["weights"]["transformers"][0]["layerNorm1"].update(gamma=[1.0])),
    "vocab too short": _spoiled(lambda d: d["config"].update(vocab=["a"])),
    "vocab of numbers": _spoiled(lambda d: d["config"].update(vocab=[1] * 7)),
    "vocab twice the same": _spoiled(lambda d: d["config"].update(vocab=["a"] * 7)),
    "bias too long": _spoiled(lambda d: d["weights"]["output"].update(bias=[1.0] * 9)),
    "unknown layout": b'{"hello":[[1,2],[3,4]]}',
}

LLAMA2C: dict[str, bytes] = {
    "cut": llama2c()[:-4],
    "longer": llama2c() + b"\0" * 4,
    "header alone": llama2c()[:28],
    "magic of version 9": struct.pack("<Ii7i", 0x616B3432, 9, 8, 12, 2, 2, 1, 5, 4) + bytes(300),
    "magic, cut": struct.pack("<Ii7i", 0x616B3432, 1, 8, 12, 2, 2, 1, 5, 4) + bytes(300),
    "magic and heads 0": struct.pack("<Ii7i", 0x616B3432, 1, 8, 12, 2, 0, 1, 5, 4) + bytes(300),
    "sizes that overflow": struct.pack("<7i", *([2**24 - 1] * 2), 2**12, 1, 1, 2**24 - 1, 1) + bytes(100),
}
IMATRICES: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(100),
    "text": b"hello world, this is no matrix",
    "count beyond": struct.pack("<i", 1 << 30) + bytes(64),
    "values beyond": struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 29),
    "NaN": dat({"blk.0.attn_q.weight": (1, [float("nan")] * 32)}),
    "other size": dat({"blk.0.attn_q.weight": (1, [1.0] * 5)}),
    "not UTF-8": struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0),
    "a GGUF that is none": faulty_gguf.GOOD["plain"],
    "a damaged GGUF": faulty_gguf.BAD["tensors share bytes"][0],
}


def cases() -> list[Case]:
    found = [Case("gguf", n, _file("bad.gguf", raw)) for n, (raw, _) in faulty_gguf.BAD.items()]
    found += [Case("safetensors", n, _file("bad.safetensors", raw)) for n, (raw, _) in faulty_safetensors.BAD.items()]
    found += [
        Case("json", n, _file("bad.json", raw.encode() if isinstance(raw, str) else raw))
        for n, (raw, _) in faulty_documents.JSON.items()
    ]
    found += [Case("msgpack", n, _file("bad.msgpack", raw)) for n, (raw, _) in faulty_documents.MSGPACK.items()]
    found += [Case("llama2c", n, _file("bad.bin", raw)) for n, raw in LLAMA2C.items()]
    found += [Case("torch", n, _file("bad.pt", raw)) for n, raw in faulty_torch.TORCH.items()]
    found += [
        Case(
            "config", n, lambda f, a=a: write_hf(f / "bad", **a), readable=True, says="may pass" if n in PASSED else ""
        )
        for n, a in CONFIGS.items()
    ]  # type: ignore[misc]
    found += [
        Case(
            "tokenizer",
            n,
            lambda f, w=w: write_hf(f / "bad", words=w),
            readable=True,
            says="may pass" if n in TOKENIZERS_PASSED else "",
        )
        for n, w in TOKENIZERS.items()
    ]  # type: ignore[misc]
    found += [
        Case(
            "meaning",
            n,
            lambda f, c=c: write_gguf(f / "bad.gguf", c),
            readable=True,
            says="may pass" if n in GGUF_PASSED else "",
        )
        for n, c in GGUF_MEANING.items()
    ]  # type: ignore[misc]
    found += [
        Case("document", n, _file("bad.json", raw), readable=True, says="may pass" if n == "vocab of numbers" else "")
        for n, raw in JSON_MEANING.items()
    ]
    return found
