"""A Llama of one layer, small enough to be made anew for each test: as a Hugging Face folder and as a GGUF."""
# ruff: noqa: E501 (lines of one thing each)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.translate import translate
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor

# Good models, small enough to be made anew for each test.

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 260, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": 257, "torch_dtype": "float32",
}  # fmt: skip


def byte_letters() -> list[str]:
    """The letters that GPT-2 writes for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(rest)) for b in range(256)]


def tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer.json with one merge and two special tokens."""
    words = [*byte_letters(), "<s>", "</s>", "th", "<pad>"]
    special = [
        {"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in (256, 257, 259)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": ["t h"], "dropout": None,
                  "unk_token": None, "byte_fallback": False},
    }  # fmt: skip


def changed(base: dict[str, Any], *drop: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (base | changes).items() if k not in drop}


def tokenizer_with(*drop: str, **changes: Any) -> dict[str, Any]:
    made = tokenizer()
    made["model"] = changed(made["model"], *drop, **changes)
    return made


SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (260, 32),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.self_attn.k_proj.weight": (16, 32),
    "model.layers.0.self_attn.v_proj.weight": (16, 32),
    "model.layers.0.self_attn.o_proj.weight": (32, 32),
    "model.layers.0.post_attention_layernorm.weight": (32,),
    "model.layers.0.mlp.gate_proj.weight": (64, 32),
    "model.layers.0.mlp.up_proj.weight": (64, 32),
    "model.layers.0.mlp.down_proj.weight": (32, 64),
    "model.norm.weight": (32,),
    "lm_head.weight": (260, 32),
}


def tensors() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    return {n: Tensor.from_array(n, rng.standard_normal(s).astype(np.float32) * 0.1) for n, s in SHAPES.items()}


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def write_hf(folder: Path, config: Any = None, words: Any = None, weights: Any = None, **files: Any) -> Path:
    """A Hugging Face folder; config and words (tokenizer.json) as values or raw bytes."""
    made = Checkpoint(tensors() if weights is None else weights, dialect="hf")
    made.files["config.json"] = encoded(CONFIG if config is None else config)
    made.files["tokenizer.json"] = encoded(tokenizer() if words is None else words)
    made.files |= {name.replace("__", "."): encoded(value) for name, value in files.items()}
    safetensors_file.save(made, folder)
    return folder


def write_gguf(path: Path, change: Callable[[Checkpoint], object] = lambda c: None) -> Path:
    """The same model as GGUF, changed after it was made."""
    folder = write_hf(path.with_name(path.name + ".source"))
    made = translate(safetensors_file.open(folder), "gguf")
    made = Checkpoint({n: Tensor.from_array(n, t.numpy()) for n, t in made.tensors.items()}, dict(made.metadata))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    change(made)
    gguf_file.save(made, path)
    return path
