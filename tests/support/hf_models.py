"""Configurations of Hugging Face models, tiny ones of them made from our tables, and the way to a GGUF and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.rows import Form
from llmconv.convert.tables.scalars import WholeNumbers
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

# ---------------------------------------------------------------------------------------------------- the tables

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
INTERNLM2 = LLAMA | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}
BAICHUAN = LLAMA | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_key_value_heads": 4}
GPT_OSS = LLAMA | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 32,
    "head_dim": 16,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "attention_bias": True,
    "rope_theta": 150000.0,  # where nothing is stated, its class takes YaRN
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}
DEEPSEEK = LLAMA | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 6,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
QWEN3_MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 4,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {k: v for k, v in LLAMA.items() if k not in ("architectures", "model_type")} | {"head_dim": 8},
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_ctx": 32,
    "n_positions": 32,
    "vocab_size": 20,
}

EXAONE = LLAMA | {
    "architectures": ["ExaoneForCausalLM"],
    "model_type": "exaone",
    "num_layers": 2,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "silu",
}
CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "multi_query_attention": True,
    "add_qkv_bias": True,
    "kv_channels": 4,
    "padded_vocab_size": 20,
    "seq_length": 32,
    "rope_ratio": 50,
    "layernorm_epsilon": 1.5625e-07,
}
ERNIE = LLAMA | {"architectures": ["Ernie4_5_ForCausalLM"], "model_type": "ernie4_5", "head_dim": 4}


def model(config: dict[str, Any], kind: str = "BF16", form: int = 0, **changes: Any) -> Checkpoint:
    """A model of this configuration, every tensor that it must have; `form` is the way of writing."""
    arch = archs.by_hf(config)
    assert arch is not None
    flat = normalized(config)
    dims = arch.dims_of(arch.metadata(flat))
    dims["n_vocab"] = dims["n_vocab"] or flat["vocab_size"]
    prefix = changes.get("prefix", arch.prefixes[0])
    rng = np.random.default_rng(7)
    out = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    for scalar in arch.scalars:
        for name in scalar.names(dims, prefix):
            if isinstance(scalar, WholeNumbers):
                out.add(Tensor.from_array(name, _whole_numbers(name, flat, scalar.count(dims))))
                continue
            out.add(Tensor.from_array(name, np.full(scalar.shape, 0.5, np.float32)))
    for slot in arch.slots(dims):
        # llama.cpp needs some families' choice bias
        chosen = bool(arch.loader.needed) and any("exp_probs_b" in name for name in slot.gguf)
        if not (arch.expected(slot.row, config) or chosen or changes.get("all_rows")):
            continue
        if changes.get("without", "?") in slot.gguf[0] and len(slot.gguf) > 1:
            continue
        number = _number_of(slot.row.forms, form, config)
        whole = slot.row.forms[number].stored_as
        parts = tuple(
            Tensor(n, shape, whole or by_name(kind), lambda a, b: np.empty((b - a, 0), np.uint8))
            for n, shape in zip(slot.gguf, slot.shapes, strict=True)
        )
        for op in reversed(slot.row.forms[number].ops):
            parts = op.undo(parts, slot.dims)
        for name, part in zip(slot.names(number, prefix), parts, strict=True):
            dtype = part.type.dtype if whole else by_name(kind).dtype
            assert dtype is not None
            size = int(np.prod(part.shape))
            values = rng.integers(0, 256, size) if whole else rng.normal(0, 1, size)
            if "tid2eid" in name:
                values %= dims["n_expert"]
            if whole is by_name("I64"):  # words of a draft, all different
                values = np.sort(rng.integers(0, dims["n_vocab"] - size + 1, size))
            out.add(Tensor.from_array(name, values.astype(dtype).reshape(part.shape)))
    return out


def _number_of(forms: Sequence[Form], form: int, config: Mapping[str, Any]) -> int:
    """The last of the row's forms up to this one; DeepSeek's names for its drafts' stages are its own."""
    own = [i for i, f in enumerate(forms) if not f.patterns[0].startswith("mtp.")]
    if not own or "DeepseekV4DSparkModel" in config["architectures"]:
        own = list(range(len(forms)))
    return own[min(form, len(own) - 1)]


def _whole_numbers(name: str, config: Mapping[str, Any], count: int) -> Any:
    """Large numbers, or (Qwen 4) the sizes of the heads of a table, primes, and where their rows begin."""
    if "ngram_heads" not in name:
        return np.arange(count) * 2**40 + 1
    sizes = [n for n in range(config["ngram_vocab_size_base"], 1 << 12) if all(n % d for d in range(2, n))][:count]
    return np.array(sizes) if name.endswith("sizes") else np.cumsum(sizes) - sizes


def assert_round_trip(checkpoint: Checkpoint) -> Checkpoint:
    gguf = hf.to_gguf(checkpoint)
    back = hf.from_gguf(gguf)
    assert sorted(back.tensors) == sorted(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        other = back.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert tensor.blocks().tobytes() == other.blocks().tobytes(), name
    assert back.file("config.json") == checkpoint.file("config.json")
    return gguf
