"""A tiny Llama whose linear layers are stored in any way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmconv import formats
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

Arrays = dict[str, Any]

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1, "rms_norm_eps": 1e-5}
CONFIG |= SIZES | {"vocab_size": 40, "max_position_embeddings": 64, "tie_word_embeddings": False}
LINEAR = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64)}
LINEAR |= {"self_attn.o_proj": (64, 64), "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64)}
LINEAR |= {"mlp.down_proj": (64, 128)}


def llama(stored: Callable[[str, tuple[int, int]], Arrays], dtype: Any = np.float16) -> Arrays:
    """The tensors; `stored` gives those of a linear layer of that name and shape."""
    rng = np.random.default_rng(1)
    made: Arrays = {"model.embed_tokens.weight": rng.standard_normal((40, 64)).astype(dtype)}
    made |= {"lm_head.weight": rng.standard_normal((40, 64)).astype(dtype), "model.norm.weight": np.ones(64, dtype)}
    for i in range(2):
        for name, shape in LINEAR.items():
            made |= stored(f"model.layers.{i}.{name}", shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{i}.{name}.weight"] = np.ones(64, dtype)
    return made


def folder(path: Path, arrays: Arrays, settings: Any = None, **more: Any) -> Path:
    """A model folder; settings: what stands under `quantization_config`."""
    path.mkdir()
    config = CONFIG | ({"quantization_config": settings} if settings is not None else {}) | more
    (path / "config.json").write_text(json.dumps(config))
    made = Checkpoint(dialect="plain")
    for name, array in arrays.items():
        made.add(Tensor.from_array(name, array))
    formats.by_name("safetensors").save(made, path / "model.safetensors")
    return path


def in_memory(arrays: Arrays, settings: Any = None, **more: Any) -> Checkpoint:
    """The same without files."""
    made = Checkpoint(dialect="hf")
    for name, array in arrays.items():
        made.add(Tensor.from_array(name, array))
    config = CONFIG | ({"quantization_config": settings} if settings is not None else {}) | more
    made.files["config.json"] = json.dumps(config).encode()
    return made
