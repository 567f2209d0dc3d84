"""Tiny random models of every family that transformers has, by its own classes: what the round trips are tested on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 256, "vocab_size": 96} | {
    k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")
}
_FALCON = SMALL | {"max_position_embeddings": 2048}


def _without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != name}


_NO_GROUPS = _without(SMALL, "num_key_value_heads")
_MOE = SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SIGMOID = SMALL | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = SMALL | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_SCAN = {k: v for k, v in SMALL.items() if k in ("vocab_size", "hidden_size", "num_hidden_layers") or "token" in k} | {
    "state_size": 8
}


_JAMBA = SMALL | {
    "num_hidden_layers": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 8,
}
_MAMBA2 = SMALL | {
    "num_hidden_layers": 3,
    "num_experts_per_tok": 2,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_FALCON_H1 = {k: v for k, v in _MAMBA2.items() if k not in ("layer_types", "num_experts_per_tok")} | {
    "mamba_d_ssm": 128,
    "mamba_norm_before_gate": False,
    "attention_in_multiplier": 1.25,
    "attention_out_multiplier": 0.9375,
    "key_multiplier": 0.390625,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.23570226039551587,
    "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.7],
    "mlp_multipliers": [0.8838834764831845, 0.5859375],
    "embedding_multiplier": 5.656854249492381,
    "lm_head_multiplier": 0.0390625,
}
_NEMOTRON = {k: v for k, v in SMALL.items() if k != "num_hidden_layers"} | {
    "head_dim": 24,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "num_experts_per_tok": 2,
}
_KIMI = SMALL | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_DELTA = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


_GEMMA4 = SMALL | {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
_PADDED = _NO_GROUPS | {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}
_DISTIL = {"vocab_size": 96, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128}
_T5 = {"vocab_size": 96, "d_model": 64, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_heads": 4,
       "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
_MODERN = _NO_GROUPS | {
    "num_hidden_layers": 4,
    "local_attention": 8,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "mask_token_id": 3,
}

_DEEPSEEK4 = _without(_without(SMALL, "intermediate_size"), "num_key_value_heads") | {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "partial_rotary_factor": 0.25,
    "q_lora_rank": 24,
    "sliding_window": 16,
    "o_groups": 2,
    "o_lora_rank": 24,
    "index_n_heads": 16,  # scores that are 0 alike, of which each program takes others, are rare with so many
    "index_head_dim": 16,
    "index_topk": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4],
    "hc_mult": 2,
    "hc_sinkhorn_iters": 3,
}
_GLM5_NEXT = _without(_LATENT, "first_k_dense_replace") | {
    "qk_rope_head_dim": 0,
    "v_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse"],
    "indexer_types": ["full", "full"],
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 32,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 3,
}
_GLM5_NEXT = {
    "text_config": _GLM5_NEXT,
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 32,
        "out_hidden_size": 64,
        "projection_intermediate_size": 32,
    },
}
_DOTS3 = _LATENT | {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 32,
    "sliding_window": 16,
    "moe_shared_expert_intermediate_size": 32,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 48,
    "swa_kv_lora_rank": 40,
    "swa_qk_nope_head_dim": 16,
    "swa_qk_rope_head_dim": 8,
    "swa_head_dim": 24,
    "swa_v_head_dim": 20,
}
_QWEN4 = (
    _without(_MOE, "intermediate_size")
    | _DELTA
    | {
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 48,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ngram_size": 3,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    }
)


@dataclass(frozen=True)
class Tiny:
    """A family's variant: transformers' model type, configuration, and the GGUF architecture it must become."""

    model_type: str
    gguf: str
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    task: str = "CausalLM"
    further: bool = False
    """Whether a layer for further tokens lies beside it, as Qwen's do; transformers leaves it out."""
    runs: bool = True
    """Whether the runtime knows its forward pass."""
    rounded: bool = False
    """Whether its GGUF holds rounded products, so that its logits are only near."""


_llama3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS: dict[str, Tiny] = {
    "llama": Tiny("llama", "llama", SMALL | {"num_key_value_heads": 4}),
    "llama-gqa-tied-bf16": Tiny("llama", "llama", SMALL | {"tie_word_embeddings": True}, "bfloat16"),
    "llama-bias-f16": Tiny("llama", "llama", SMALL | {"attention_bias": True, "mlp_bias": True}, "float16"),
    "llama-3.1": Tiny("llama", "llama", SMALL | {"rope_parameters": _llama3}, "bfloat16"),
    "llama-linear-head-dim": Tiny(
        "llama",
        "llama",
        SMALL | {"head_dim": 24, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "llama-dynamic": Tiny(
        "llama",
        "llama",
        SMALL | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral": Tiny("mistral", "llama", SMALL | {"sliding_window": 32}, "bfloat16"),
    "mixtral": Tiny("mixtral", "llama", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Tiny("qwen2", "qwen2", SMALL, "bfloat16"),
    "qwen2-tied-yarn": Tiny(
        "qwen2",
        "qwen2",
        SMALL
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 1000000.0,
            },
        },
    ),
    "qwen3": Tiny("qwen3", "qwen3", SMALL | {"head_dim": 32}, "bfloat16"),
    "qwen2-moe": Tiny("qwen2_moe", "qwen2moe", _MOE | {"shared_expert_intermediate_size": 48}),
    "qwen3-moe": Tiny("qwen3_moe", "qwen3moe", _MOE | {"head_dim": 16, "norm_topk_prob": True}, "bfloat16"),
    "gemma": Tiny("gemma", "gemma", SMALL | {"head_dim": 16, "num_key_value_heads": 1}, "bfloat16"),
    "gemma-f32": Tiny("gemma", "gemma", SMALL | {"head_dim": 16}),
    "gemma2": Tiny(
        "gemma2", "gemma2", SMALL | {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32}, "bfloat16"
    ),
    "gemma3": Tiny(
        "gemma3_text", "gemma3", SMALL | {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32}, "float16"
    ),
    "gemma4": Tiny(
        "gemma4_text",
        "gemma4",
        _GEMMA4
        | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
            "hidden_size_per_layer_input": 0,
        },
        "bfloat16",
    ),
    "gemma4-effective": Tiny(
        "gemma4_text", "gemma4", _GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    ),
    "gemma3n": Tiny(
        "gemma3n_text",
        "gemma3n",
        _without(_GEMMA4, "global_head_dim")
        | {
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0, 0.0, 0.0],
            "altup_active_idx": 1,
        },
        "bfloat16",
    ),
    "gemma3n-padded": Tiny(
        "gemma3n_text",
        "gemma3n",
        _without(_GEMMA4, "global_head_dim") | {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 80},
    ),
    "gpt2": Tiny("gpt2", "gpt2", _GPT),
    "gpt2-untied-bf16": Tiny("gpt2", "gpt2", _GPT | {"tie_word_embeddings": False}, "bfloat16"),
    "starcoder": Tiny("gpt_bigcode", "starcoder", _GPT),
    "starcoder-heads-apart": Tiny("gpt_bigcode", "starcoder", _GPT | {"multi_query": False}),
    "gptj": Tiny("gptj", "gptj", _GPT | {"rotary_dim": 8}),
    "opt": Tiny("opt", "opt", SMALL | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt-projected": Tiny(
        "opt", "opt", SMALL | {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, "float16"
    ),
    "gpt-neox": Tiny("gpt_neox", "gptneox", SMALL | {"rotary_pct": 0.25}),
    "gpt-neox-serial-f16": Tiny(
        "gpt_neox", "gptneox", SMALL | {"rotary_pct": 1.0, "use_parallel_residual": False}, "float16"
    ),
    "bloom": Tiny("bloom", "bloom", {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": Tiny(
        "mpt",
        "mpt",
        {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "no_bias": True},
    ),
    "falcon-7b": Tiny("falcon", "falcon", _FALCON | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon-40b": Tiny("falcon", "falcon", _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}, "bfloat16"),
    "falcon-rw": Tiny(
        "falcon",
        "falcon",
        _FALCON
        | {
            "multi_query": False,
            "new_decoder_architecture": False,
            "alibi": True,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "phi2": Tiny(
        "phi", "phi2", SMALL | {"num_key_value_heads": 4, "intermediate_size": 256, "partial_rotary_factor": 0.5}
    ),
    "phi3": Tiny("phi3", "phi3", SMALL, "bfloat16"),
    "phi3-long": Tiny(
        "phi3",
        "phi3",
        SMALL
        | {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [1.5 + i for i in range(8)],
                "short_factor": [1.0 + i / 8 for i in range(8)],
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "stablelm": Tiny("stablelm", "stablelm", SMALL | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm-12b": Tiny(
        "stablelm",
        "stablelm",
        SMALL | {"partial_rotary_factor": 0.5, "qk_layernorm": True, "use_parallel_residual": True},
        "bfloat16",
    ),
    "starcoder2": Tiny("starcoder2", "starcoder2", SMALL | {"sliding_window": 32}, "bfloat16"),
    "olmo": Tiny("olmo", "olmo", SMALL | {"clip_qkv": 8.0}),
    "olmo2": Tiny("olmo2", "olmo2", SMALL, "bfloat16"),
    "olmo3": Tiny("olmo3", "olmo2", SMALL | {"sliding_window": 32}),
    "olmoe": Tiny("olmoe", "olmoe", SMALL | {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}),
    "nemotron": Tiny("nemotron", "nemotron", SMALL | {"head_dim": 16}, "bfloat16"),
    "smollm3": Tiny("smollm3", "smollm3", SMALL, "bfloat16"),
    "granite": Tiny(
        "granite", "granite", SMALL | {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}
    ),
    "granite-moe": Tiny("granitemoe", "granitemoe", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite-moe-shared": Tiny(
        "granitemoeshared",
        "granitemoe",
        SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48},
        "bfloat16",
    ),
    "command-r": Tiny("cohere", "command-r", SMALL),
    "command-r-plus": Tiny("cohere", "command-r", SMALL | {"use_qk_norm": True}, "float16"),
    "cohere2": Tiny("cohere2", "cohere2", SMALL | {"sliding_window": 32}, "bfloat16"),
    "deepseek-v2": Tiny("deepseek_v2", "deepseek2", _LATENT | {"q_lora_rank": None}),
    "deepseek-v2-latent-query": Tiny("deepseek_v2", "deepseek2", _LATENT),
    "deepseek-v3": Tiny("deepseek_v3", "deepseek2", _LATENT | {"n_group": 2}),
    "deepseek-v3-bf16": Tiny("deepseek_v3", "deepseek2", _LATENT, "bfloat16"),
    "deepseek-v3.2": Tiny(
        "deepseek_v32",
        "deepseek32",
        _LATENT | {"index_n_heads": 4, "index_head_dim": 128, "index_topk": 64, "n_group": 2},
        "bfloat16",
    ),
    "glm-5": Tiny(
        "glm_moe_dsa",
        "glm-dsa",
        _LATENT | {"index_n_heads": 4, "index_head_dim": 128, "index_topk": 64, "indexer_types": ["full", "shared"]},
        "bfloat16",
    ),
    "deepseek-v4": Tiny("deepseek_v4", "deepseek4", _DEEPSEEK4, "bfloat16"),
    "glm-5-next": Tiny("glm5_next", "glm5-next", _GLM5_NEXT, "bfloat16", "ImageTextToText"),
    "hy-v4-transformers": Tiny(
        "hy_v4",
        "hy_v4",
        _without(_LATENT, "first_k_dense_replace")
        | {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 32, "hc_mult": 2},
        "bfloat16",
    ),
    "dots3-transformers": Tiny("dots3_note_text", "dots3note", _DOTS3, "bfloat16"),
    "qwen4-exp": Tiny("qwen4_exp_text", "qwen4exp", _QWEN4, "bfloat16"),
    "llama4": Tiny(
        "llama4_text",
        "llama4",
        SMALL
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size_mlp": 80,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 4,
            "attention_chunk_size": 16,
            "floor_scale": 8,
            "rope_parameters": _llama3,
        },
        "bfloat16",
    ),
    "gpt-oss": Tiny(
        "gpt_oss",
        "gpt-oss",
        SMALL | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
        "bfloat16",
    ),
    "arcee": Tiny("arcee", "arcee", SMALL, "bfloat16"),
    "seed-oss": Tiny("seed_oss", "seed_oss", SMALL | {"head_dim": 24}, "bfloat16"),
    "ernie4.5": Tiny("ernie4_5", "ernie4_5", SMALL | {"head_dim": 24}, "bfloat16"),
    "hunyuan": Tiny(
        "hunyuan_v1_dense",
        "hunyuan-dense",
        SMALL
        | {
            "head_dim": 16,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 10000.0},
        },
    ),
    "exaone4": Tiny(
        "exaone4",
        "exaone4",
        SMALL | {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
        "bfloat16",
    ),
    "exaone4-without-windows": Tiny(
        "exaone4", "exaone4", SMALL | {"head_dim": 16, "sliding_window": None, "layer_types": ["full_attention"] * 2}
    ),
    "glm4": Tiny("glm4", "glm4", SMALL | {"head_dim": 16}, "bfloat16"),
    "glm": Tiny("glm", "chatglm", SMALL | {"head_dim": 16}, "bfloat16"),
    "ministral3": Tiny(
        "ministral3",
        "mistral3",
        SMALL
        | {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.1,
                "rope_theta": 1000000.0,
            },
        },
        "bfloat16",
    ),
    "glm4-moe": Tiny(
        "glm4_moe", "glm4moe", _SIGMOID | {"head_dim": 24, "num_mtp_layers": 0, "use_qk_norm": True, "n_group": 2}
    ),
    "solar-open": Tiny("solar_open", "glm4moe", _without(_SIGMOID, "first_k_dense_replace") | {"head_dim": 16}),
    "dots1": Tiny(
        "dots1", "dots1", _SIGMOID | {"head_dim": 16, "num_key_value_heads": 4, "norm_topk_prob": True}, "bfloat16"
    ),
    "ernie4.5-moe": Tiny(
        "ernie4_5_moe",
        "ernie4_5-moe",
        SMALL | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 2},
        "bfloat16",
    ),
    "minimax-m2": Tiny(
        "minimax_m2",
        "minimax-m2",
        SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8},
        "bfloat16",
    ),
    "minimax-01-transformers": Tiny(
        "minimax",
        "minimax-01",
        SMALL
        | {
            "num_local_experts": 4,
            "head_dim": 16,
            "block_size": 16,
            **dict.fromkeys(("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor"), 2.5),
        },
    ),
    "ling3-transformers": Tiny(
        "bailing_hybrid",
        "bailingmoe3",
        _without(SMALL, "num_key_value_heads")
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "num_expert_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "layer_group_size": 2,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "num_nextn_predict_layers": 0,
        },
    ),
    "hunyuan-moe": Tiny(
        "hunyuan_v1_moe", "hunyuan-moe", SMALL | {"num_experts": 4, "moe_topk": 2, "head_dim": 16}, "bfloat16"
    ),
    "hy3": Tiny("hy_v3", "hy_v3", _MOE | {"head_dim": 24}, "bfloat16"),
    "exaone-moe": Tiny(
        "exaone_moe",
        "exaone-moe",
        _MOE | {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
        "bfloat16",
    ),
    "afmoe": Tiny(
        "afmoe",
        "afmoe",
        _MOE
        | {
            "head_dim": 24,
            "num_dense_layers": 1,
            "mup_enabled": True,
            "sliding_window": 32,
            "num_hidden_layers": 4,
        },
        "bfloat16",
    ),
    "jais2": Tiny("jais2", "jais2", SMALL, "bfloat16"),
    "internlm3": Tiny("internlm3", "llama", SMALL | {"head_dim": 16, "qkv_bias": True, "bias": True}, "bfloat16"),
    "glm4-moe-lite": Tiny(
        "glm4_moe_lite", "deepseek2", _without(_LATENT, "first_k_dense_replace") | {"norm_topk_prob": True}, "bfloat16"
    ),
    "phimoe": Tiny(
        "phimoe",
        "phimoe",
        SMALL | {"lm_head_bias": True, "attention_bias": True, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "cohere2-moe": Tiny(
        "cohere2_moe",
        "cohere2moe",
        SMALL
        | {
            "head_dim": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "prefix_dense_intermediate_size": 80,
        },
        "bfloat16",
    ),
    "mistral4": Tiny(
        "mistral4",
        "mistral4",
        _without(_LATENT, "first_k_dense_replace")
        | {
            "n_group": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.1,
                "rope_theta": 10000.0,
            },
        },
        "bfloat16",
    ),
    "dbrx": Tiny(
        "dbrx",
        "dbrx",
        {
            "vocab_size": 96,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "bfloat16",
    ),
    "granite-swa": Tiny(
        "granite_swa",
        "granite_swa",
        SMALL | {"num_hidden_layers": 4, "sliding_window": 16, "layer_rope_theta": [10000.0, 0, 10000.0, 10000.0]},
        "bfloat16",
    ),
    "granite-moe-swa": Tiny(
        "granitemoe_swa",
        "granite_swa",
        SMALL | {"num_local_experts": 4, "shared_intermediate_size": 48, "sliding_window": 16},
        "bfloat16",
    ),
    "mellum": Tiny(
        "mellum",
        "mellum",
        _MOE
        | {
            "head_dim": 24,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 500000.0}
                for kind in ("full_attention", "sliding_attention")
            },
        },
        "bfloat16",
    ),
    "laguna": Tiny(
        "laguna",
        "laguna",
        _MOE
        | {
            "head_dim": 16,
            "shared_expert_intermediate_size": 48,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention"],
            "num_attention_heads_per_layer": [4, 6],
        },
        "bfloat16",
    ),
    "minicpm3": Tiny(
        "minicpm3",
        "minicpm3",
        {k: v for k, v in _LATENT.items() if k in SMALL or k.startswith(("q_", "kv_", "qk_", "v_"))},
        "bfloat16",
    ),
    "apertus": Tiny("apertus", "apertus", SMALL | {"rope_parameters": _llama3}, "bfloat16"),
    "hrm-text": Tiny(
        "hrm_text",
        "hrm_text",
        _NO_GROUPS | {"head_dim": 16, "H_cycles": 2, "L_cycles": 2, "prefix_lm": False, "embedding_scale": 12.0},
        "bfloat16",
    ),
    "lfm2": Tiny(
        "lfm2", "lfm2", SMALL | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32}, "bfloat16"
    ),
    "lfm2-moe": Tiny(
        "lfm2_moe",
        "lfm2moe",
        _MOE | {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1},
    ),
    "mimo2": Tiny(
        "mimo_v2_flash",
        "mimo2",
        _without(_without(_SIGMOID, "first_k_dense_replace"), "n_shared_experts")
        | {
            "head_dim": 24,
            "v_head_dim": 16,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "bfloat16",
    ),
    "bitnet": Tiny("bitnet", "bitnet", SMALL | {"hidden_act": "silu", "tie_word_embeddings": True}, "bfloat16"),
    "bitnet-relu2": Tiny("bitnet", "bitnet", SMALL),
    "bamba": Tiny(
        "bamba",
        "granitehybrid",
        _without(_without(_MAMBA2, "layer_types"), "num_experts_per_tok") | {"attn_layer_indices": [1]},
        "bfloat16",
    ),
    "jamba": Tiny("jamba", "jamba", _JAMBA, "bfloat16"),
    "granite-hybrid": Tiny(
        "granitemoehybrid", "granitehybrid", _MAMBA2 | {"num_local_experts": 4, "shared_intermediate_size": 48}
    ),
    "granite-hybrid-dense": Tiny(
        "granitemoehybrid",
        "granitehybrid",
        _MAMBA2
        | {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
        },
        "bfloat16",
    ),
    "falcon-h1": Tiny("falcon_h1", "falcon-h1", _FALCON_H1),
    "falcon-h1-bf16": Tiny("falcon_h1", "falcon-h1", _FALCON_H1, "bfloat16", rounded=True),
    "falcon-h1-normed-tied": Tiny(
        "falcon_h1",
        "falcon-h1",
        _FALCON_H1
        | dict.fromkeys(("tie_word_embeddings", "mamba_rms_norm", "mamba_norm_before_gate", "attention_bias"), True),
    ),
    "nemotron-h": Tiny(
        "nemotron_h", "nemotron_h", _NEMOTRON | {"layers_block_type": ["linear_attention", "full_attention", "mlp"]}
    ),
    "nemotron-h-moe": Tiny(
        "nemotron_h",
        "nemotron_h_moe",
        _NEMOTRON | {"layers_block_type": ["linear_attention", "moe", "full_attention"], "moe_latent_size": 32},
        "bfloat16",
    ),
    "kimi-linear": Tiny("kimi_linear", "kimi-linear", _KIMI | {"mlp_layer_types": ["sparse"] * 3}),
    "kimi-linear-dense": Tiny("kimi_linear", "kimi-linear", _KIMI, "bfloat16"),
    "mamba": Tiny("mamba", "mamba", _SCAN),
    "mamba-bf16-untied": Tiny("mamba", "mamba", _SCAN | {"tie_word_embeddings": False}, "bfloat16"),
    "falcon-mamba": Tiny("falcon_mamba", "mamba", _SCAN | {"layer_norm_epsilon": 1e-5}, "bfloat16"),
    "mamba2": Tiny("mamba2", "mamba2", _SCAN | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16}),
    "qwen3-next": Tiny("qwen3_next", "qwen3next", _MOE | _DELTA | {"shared_expert_intermediate_size": 48}),
    "qwen3.5": Tiny("qwen3_5_text", "qwen35", SMALL | _DELTA, "bfloat16"),
    "qwen3.5-moe": Tiny("qwen3_5_moe_text", "qwen35moe", _MOE | _DELTA | {"shared_expert_intermediate_size": 48}),
    "qwen3.5-predicting": Tiny("qwen3_5_text", "qwen35", SMALL | _DELTA | {"tie_word_embeddings": True}, further=True),
    "qwen3-next-predicting": Tiny(
        "qwen3_next", "qwen3next", _MOE | _DELTA | {"shared_expert_intermediate_size": 48}, further=True
    ),
    "bert": Tiny("bert", "bert", _NO_GROUPS | {"type_vocab_size": 2}, task="Model"),
    "bert-mlm": Tiny("bert", "bert", _NO_GROUPS | {"type_vocab_size": 2}, task="MaskedLM"),
    "bert-classifier": Tiny("bert", "bert", _NO_GROUPS | {"num_labels": 3}, "float16", "SequenceClassification"),
    "roberta": Tiny("roberta", "bert", _PADDED, task="Model"),
    "xlm-roberta": Tiny("xlm-roberta", "bert", _PADDED, task="Model"),
    "xlm-roberta-reranker": Tiny("xlm-roberta", "bert", _PADDED | {"num_labels": 1}, task="SequenceClassification"),
    "camembert": Tiny("camembert", "bert", _PADDED, "bfloat16", "Model"),
    "distilbert": Tiny("distilbert", "bert", _DISTIL, task="Model"),
    "distilbert-classifier": Tiny("distilbert", "bert", _DISTIL | {"num_labels": 3}, task="SequenceClassification"),
    "modernbert": Tiny("modernbert", "modern-bert", _MODERN, task="Model"),
    "modernbert-reranker": Tiny(
        "modernbert",
        "modern-bert",
        _MODERN | {"num_labels": 1, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
        task="SequenceClassification",
    ),
    "eurobert": Tiny("eurobert", "eurobert", SMALL | {"mask_token_id": 3}, "bfloat16", "Model"),
    "nomic-bert": Tiny("nomic_bert", "nomic-bert", _NO_GROUPS | {"max_position_embeddings": 2048}, task="Model"),
    "t5": Tiny("t5", "t5", _T5, task="Seq2SeqLM"),
    "t5-gated-untied": Tiny(
        "mt5", "t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "bfloat16", "Seq2SeqLM"
    ),
    "umt5": Tiny("umt5", "t5", _T5 | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 1}, task="Seq2SeqLM"),
    "t5-encoder": Tiny("t5", "t5encoder", _T5 | {"feed_forward_proj": "gated-gelu"}, task="TextEncoding"),
    "embeddinggemma": Tiny(
        "gemma3_text",
        "gemma-embedding",
        SMALL | {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "use_bidirectional_attention": True},
        "bfloat16",
        "Model",
    ),
}


def automatic(tiny: Tiny) -> Any:
    """transformers' Auto class of the task, which is told of the text models inside multimodal ones."""
    import transformers

    if tiny.task == "Model":
        return transformers.AutoModel
    auto = getattr(transformers, f"AutoModelFor{tiny.task}")
    if tiny.model_type in INSIDE:
        auto.register(*(getattr(transformers, name) for name in INSIDE[tiny.model_type]), exist_ok=True)
    return auto


INSIDE = {"mistral4": ("Mistral4Config", "Mistral4ForCausalLM")}
"""Text models that transformers has and its Auto classes do not know: the classes of configuration and model."""


def variants_later(names: Iterable[str]) -> list[Any]:
    """For parametrizing: the first of each GGUF architecture by default; its variants are slower tests."""
    names = list(names)
    firsts = {MODELS[name].gguf: name for name in reversed(names)}.values()
    return [name if name in firsts else pytest.param(name, marks=pytest.mark.slow) for name in names]


def build(name: str, folder: Path, seed: int = 0, task: str = "", **changes: Any) -> Any:
    """Make the model with every parameter random (norms and biases too), save it to `folder`, and give it back.

    task: another than the model's usual one.   changes: to its configuration.
    """
    import torch
    import transformers

    tiny = replace(MODELS[name], task=task or MODELS[name].task)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(tiny.model_type, **(tiny.config | changes))
    model = automatic(tiny).from_config(config).to(getattr(torch, tiny.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + (0.5 if parameter.ndim == 1 else 0.0))
        for _name, buffer in (pair for pair in model.named_buffers() if pair[0].endswith("layer_scalar")):
            buffer.fill_(0.9)
    model.eval()
    model.save_pretrained(folder)
    if tiny.further:
        _predict(folder, len(model.model.layers) - 1)
    return model


def _predict(folder: Path, layer: int) -> None:
    """Add a layer for further tokens, the copy of a layer with attention, and say so where config.json does."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    start = f"model.layers.{layer}."
    for name in [name for name in tensors if name.startswith(start)]:
        tensors[f"mtp.layers.0.{name.removeprefix(start)}"] = tensors[name] * 2
    dim, dtype = tensors["model.norm.weight"].shape[0], tensors["model.norm.weight"].dtype
    tensors["mtp.fc.weight"] = torch.randn(dim, 2 * dim).to(dtype)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = torch.randn(dim).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "qwen3_next":
        (folder / "config.json").write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}, indent=2) + "\n")
