"""Configurations of families (or of a class of one) that transformers lacks: their models are made from the tables.

That the tables have the right shapes and names is what the peer tests prove, against the reference's converter.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_ALONE = _LLAMA | {"num_key_value_heads": 4}
_EXPERTS = _LLAMA | {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
_SPARSE = {k: v for k, v in _EXPERTS.items() if k != "first_k_dense_replace"}
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}


def _of(cls: str, model_type: str, base: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"architectures": [cls], "model_type": model_type, **base} | more


def _inside(cls: str, model_type: str, base: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A multimodal model's, of which only the text model is there."""
    return {"architectures": [cls], "model_type": model_type, "text_config": base, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "exaone": _of(
        "ExaoneForCausalLM",
        "exaone",
        {k: v for k, v in _LLAMA.items() if k != "rms_norm_eps"},
        layer_norm_epsilon=1e-5,
        activation_function="silu",
    ),
    "orion": _of("OrionForCausalLM", "orion", _LLAMA),
    "xverse": _of("XverseForCausalLM", "xverse", _ALONE),
    "pangu": _of("PanguEmbeddedForCausalLM", "PanguEmbedded", _LLAMA, bias=True),
    "minicpm": _of("MiniCPMForCausalLM", "minicpm", _LLAMA, scale_emb=12, scale_depth=1.4, dim_model_base=32),
    "maincoder": _of("MaincoderForCausalLM", "maincoder", _LLAMA, head_dim=16),
    "dream": _of("DreamModel", "Dream", _LLAMA, mask_token_id=5),
    "rnd1": _of(
        "RND1",
        "rnd1",
        _LLAMA,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    ),
    "deepseek1": _of(
        "DeepseekForCausalLM",
        "deepseek",
        _EXPERTS | {"norm_topk_prob": False},
        n_routed_experts=4,
        n_shared_experts=2,
    ),
    "bailing": _of(
        "BailingMoeForCausalLM",
        "bailing_moe",
        _EXPERTS | {"first_k_dense_replace": 0},
        num_experts=4,
        num_shared_experts=2,
    ),
    "bailing2": _of(
        "BailingMoeV2ForCausalLM",
        "bailing_moe_v2",
        _EXPERTS,
        num_experts=4,
        num_shared_experts=1,
        head_dim=16,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.5,
        partial_rotary_factor=0.5,
        score_function="sigmoid",
    ),
    "kormo": _of("KORMoForCausalLM", "kormo", _LLAMA),
    "qwen2-vl": _inside("Qwen2VLForConditionalGeneration", "qwen2_vl", _LLAMA | _MROPE),
    "qwen2.5-vl": _inside("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", _LLAMA | _MROPE),
    "qwen3-vl": _inside(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        _LLAMA | _MROPE | {"head_dim": 16},
        vision_config={"deepstack_visual_indexes": [0, 1]},
    ),
    "qwen3-vl-moe": _inside(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        _SPARSE | _MROPE | {"head_dim": 16, "num_experts": 4},
        vision_config={"deepstack_visual_indexes": [0, 1]},
    ),
    "qwen3-omni": {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "thinker_config": {"text_config": _SPARSE | _MROPE | {"head_dim": 16, "num_experts": 4}},
    },
    "paddleocr": _of("PaddleOCRVLForConditionalGeneration", "paddleocr_vl", _LLAMA | _MROPE, head_dim=16),
    "llava": _inside("LlavaForConditionalGeneration", "llava", _LLAMA),
    "iquestcoder": _of("IQuestCoderForCausalLM", "iquestcoder", _LLAMA, head_dim=16),
    "sarashina2": _inside("Sarashina2VisionForCausalLM", "sarashina2_vision", _LLAMA),
}

_LATENT = _EXPERTS | {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
}
CONFIGS |= {
    "voxtral": _inside("VoxtralForConditionalGeneration", "voxtral", _LLAMA | {"head_dim": 16}),
    "janus": _inside("JanusForConditionalGeneration", "janus", _LLAMA),
    "smolvlm": _inside("SmolVLMForConditionalGeneration", "smolvlm", _LLAMA | {"model_type": "llama"}),
    "qwen2-audio": _inside("Qwen2AudioForConditionalGeneration", "qwen2_audio", _LLAMA),
    "audio-flamingo-3": _inside("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", _LLAMA),
    "dots-ocr": _of("DotsOCRForCausalLM", "dots_ocr", _LLAMA),
    "kimi-vl": _inside("KimiVLForConditionalGeneration", "kimi_vl", _LATENT),
    "kimi-k2.5": _inside("KimiK25ForConditionalGeneration", "kimi_k25", _LATENT),
    "youtu": _of(
        "YoutuForCausalLM",
        "youtu",
        {k: v for k, v in _LATENT.items() if k.startswith(("q_", "kv_", "qk_", "v_")) or k in _LLAMA},
    ),
    "phi4-vision": _of("Phi4ForCausalLMV", "phi4-siglip", _ALONE, original_max_position_embeddings=128),
    "sarvam": _of(
        "SarvamMoEForCausalLM",
        "sarvam_moe",
        _EXPERTS,
        num_experts=4,
        num_shared_experts=1,
        head_dim=16,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.5,
        score_function="sigmoid",
    ),
}

CONFIGS |= {
    "plm": _of(
        "PLMForCausalLM",
        "plm",
        _ALONE,
        kv_lora_rank=32,
        q_lora_rank=None,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        tie_word_embeddings=True,
        hidden_act="relu2",
    ),
    "smallthinker": _of(
        "SmallThinkerForCausalLM",
        "smallthinker",
        {k: v for k, v in _LLAMA.items() if k != "intermediate_size"},
        head_dim=16,
        moe_ffn_hidden_size=32,
        moe_num_primary_experts=4,
        moe_num_active_primary_experts=2,
        moe_primary_router_apply_softmax=False,
        sliding_window_size=4096,
        sliding_window_layout=[0, 1],
        rope_layout=[0, 1],
    ),
    "grovemoe": _of("GroveMoeForCausalLM", "grove_moe", _SPARSE, head_dim=16, num_experts=4),
    "arctic": _of("ArcticForCausalLM", "arctic", _LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "openelm": _of(
        "OpenELMForCausalLM",
        "openelm",
        {"vocab_size": 96, "max_context_length": 128, "rope_freq_constant": 10000},
        num_transformer_layers=2,
        model_dim=64,
        head_dim=16,
        num_query_heads=[4, 6],
        num_kv_heads=[2, 3],
        ffn_multipliers=[0.5, 2.0],
        ffn_dim_divisor=32,
        activation_fn_name="swish",
    ),
    "refact": _of(
        "GPTRefactForCausalLM",
        "gpt_refact",
        {"vocab_size": 96, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
    ),
    "codeshell": _of(
        "CodeShellForCausalLM",
        "codeshell",
        {"vocab_size": 96, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
        num_query_groups=2,
    ),
    "llada": _of(
        "LLaDAModelLM",
        "llada",
        {"vocab_size": 96, "embedding_size": 96, "max_sequence_length": 128, "d_model": 64, "n_layers": 2},
        n_heads=4,
        n_kv_heads=4,
        mlp_hidden_size=96,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
    ),
    "llada-moe": _of(
        "LLaDAMoEModelLM", "llada_moe", _ALONE, num_experts=4, num_experts_per_tok=2, expert_intermediate_size=32
    ),
}

_GLM_V = _LLAMA | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
CONFIGS |= {
    "glm4v": _inside("Glm4vForConditionalGeneration", "glm4v", _GLM_V),
    "glm-ocr": _inside("GlmOcrForConditionalGeneration", "glm_ocr", _GLM_V, num_nextn_predict_layers=1),
    "glm4v-moe": _inside(
        "Glm4vMoeForConditionalGeneration",
        "glm4v_moe",
        _GLM_V
        | {k: v for k, v in _LATENT.items() if k not in _LLAMA and not k.startswith(("q_", "kv_", "qk_", "v_"))}
        | {"use_qk_norm": False},
    ),
    "granite-speech": _inside(
        "GraniteSpeechForConditionalGeneration",
        "granite_speech",
        _LLAMA
        | {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_multiplier": 0.25}
        | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "mistral4": _inside(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        _LATENT
        | {
            "model_type": "mistral4",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "original_max_position_embeddings": 8,
            },
        },
    ),
}
CONFIGS["mistral4-inside"] = CONFIGS.pop("mistral4")
del CONFIGS["mistral4-inside"]["text_config"]["scoring_func"]

CONFIGS |= {
    "deepseek-ocr": _of(
        "DeepseekOCRForCausalLM",
        "DeepseekOCR",
        {},
        language_config=_EXPERTS
        | {
            "num_key_value_heads": 4,
            "norm_topk_prob": False,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "use_mla": False,
            "kv_lora_rank": None,
            "qk_rope_head_dim": 0,
        },
    ),
    "hunyuan-vl": _of(
        "HunYuanVLForConditionalGeneration",
        "hunyuan_vl",
        _LLAMA,
        head_dim=16,
        tie_word_embeddings=True,
        rope_scaling={"type": "xdrope", "alpha": 1000.0, "factor": 1.0, "xdrope_section": [2, 2, 2, 2]},
    ),
    "lfm2-bidirectional": _of(
        "Lfm2BidirectionalModel",
        "lfm2",
        {k: v for k, v in _LLAMA.items() if k not in ("rms_norm_eps", "rope_theta")},
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        conv_L_cache=3,
        norm_eps=1e-5,
        rope_theta=1000000.0,
    ),
    "plamo2": _of(
        "Plamo2ForCausalLM",
        "plamo2",
        {k: v for k, v in _LLAMA.items() if k != "rope_theta"} | {"num_hidden_layers": 3},
        hidden_size_per_head=16,
        mamba_step=2,
        mamba_num_heads=4,
        mamba_d_state=16,
        mamba_d_conv=4,
        tie_word_embeddings=False,
    ),
    "mimo2-published": _of(
        "MiMoV2ForCausalLM",
        "mimo_v2",
        {k: v for k, v in _SPARSE.items() if k != "rms_norm_eps"} | {"num_hidden_layers": 3},
        layernorm_epsilon=1e-5,
        head_dim=24,
        v_head_dim=16,
        swa_head_dim=24,
        swa_v_head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=1,
        swa_rope_theta=20000.0,
        partial_rotary_factor=0.334,
        sliding_window=9,
        hybrid_layer_pattern=[0, 1, 0],
        moe_layer_freq=[0, 1, 1],
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        attention_value_scale=0.707,
        mtp_num_hidden_layers=3,
    ),
    "bitnet-1": _of("BitnetForCausalLM", "llama", _LLAMA, tie_word_embeddings=True, hidden_act="silu"),
    "llama-embed": _of("LlamaBidirectionalModel", "llama_bidirec", _LLAMA, head_dim=16),
    "spark": _of(
        "Spark2_5ForCausalLM",
        "spark2_5",
        {k: v for k, v in _LLAMA.items() if k != "rope_theta"},
        head_dim=16,
        hidden_act="gelu",
        gate_attn_act_mode="sigmoid",
        headwise_attn_output_gate=True,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "maple": _of(
        "MapleForCausalLM",
        "maple",
        _SPARSE,
        num_experts=4,
        head_dim=16,
        hidden_act="silu",
        nope_on_global_attention=True,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "plamo3": _of(
        "Plamo3ForCausalLM",
        "plamo3",
        _LLAMA,
        head_dim=16,
        window_size=16,
        sliding_window_pattern=2,
    ),
    "nanbeige": _of("NanbeigeForCausalLM", "nanbeige", _LLAMA, num_loops=1),
    "nanbeige-looped": _of("NanbeigeForCausalLM", "nanbeige", _LLAMA, num_loops=2),
    "deci": _of(
        "DeciLMForCausalLM",
        "nemotron-nas",
        {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "intermediate_size")}
        | {"num_hidden_layers": 4},
        block_configs=[
            {"attention": {"n_heads_in_group": heads, "replace_with_linear": linear}, "ffn": {"ffn_mult": mult}}
            for heads, linear, mult in ((2, False, 2.0), (1, False, 6.5), (None, True, 2.0), (None, False, 2.0))
        ],
    ),
    "deci-7b": _of("DeciLMForCausalLM", "deci", _LLAMA, num_key_value_heads_per_layer=[2, 4]),
}

_STEP = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "rope_theta", "num_hidden_layers")} | {
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "num_attention_groups": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "partial_rotary_factors": [0.5, 1.0, 0.5, 1.0],
    "rope_theta": [500000.0, 10000.0, 500000.0, 10000.0],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
        "original_max_position_embeddings": 64,
    },
    "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 3, "head_dim": 16},
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_intermediate_size": 32,
    "share_expert_dim": 48,
    "moe_layers_enum": "1,2",
    "moe_every_n_layer": 1,
    "moe_router_scaling_factor": 3.0,
    "moe_router_activation": "sigmoid",
    "norm_expert_weight": True,
    "swiglu_limits": [0.0, 1.5, 0.0, 0.0],
    "swiglu_limits_shared": [0.0, 0.0, 1.5, 0.0],
    "use_head_wise_attn_gate": True,
    "zero_centered": True,
}
CONFIGS |= {
    "step3.5": _of("Step3p5ForCausalLM", "step3p5", _STEP),
    "step3.7": _inside("Step3p7ForConditionalGeneration", "step3p7", _STEP),
}

_GROK = _LLAMA | {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "embedding_multiplier_scale": 78.38367176906169,
    "output_multiplier_scale": 0.5773502691896257,
}
CONFIGS |= {
    "grok1": _of("Grok1ForCausalLM", "grok-1", _GROK, tie_word_embeddings=True),
    "grok2": _of(
        "GrokForCausalLM",
        "grok",
        _GROK,
        head_dim=16,
        moe_intermediate_size=32,
        attn_temperature_len=1024,
        final_logit_softcapping=50.0,
        rope_type="original",
        scaling_factor=16.0,
        original_max_position_embeddings=8,
        extrapolation_factor=1.0,
        attn_factor=1.0,
        beta_fast=8,
        beta_slow=1,
    ),
}
CONFIGS["cogvlm"] = _of("CogVLMForCausalLM", "cogvlm", {k: v for k, v in _ALONE.items() if k != "rope_theta"})

QWEN1 = _of(
    "QWenLMHeadModel",
    "qwen",
    _ALONE | {"intermediate_size": 192},
    rotary_emb_base=10000,
    layer_norm_epsilon=1e-6,
    seq_length=128,
)
CONFIGS["qwen1"] = {k: v for k, v in QWEN1.items() if k not in ("rms_norm_eps", "rope_theta", "num_key_value_heads")}

_QWEN3 = _LLAMA | {"head_dim": 16}
CONFIGS |= {
    "eagle3": _of(
        "LlamaForCausalLMEagle3",
        "llama",
        _LLAMA | {"num_hidden_layers": 1},
        draft_vocab_size=48,
        eagle_aux_hidden_state_layer_ids=[1, 3, 5],
        target_hidden_size=80,
        norm_before_fc=True,
    ),
    "eagle3-speculator": {
        "architectures": ["Eagle3Speculator"],
        "vocab_size": 96,
        "num_hidden_layers": 1,
        "draft_vocab_size": 48,
        "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
        "target_hidden_size": 64,
        "norm_before_residual": True,
        "transformer_layer_config": _LLAMA | {"num_hidden_layers": 1, "model_type": "llama"},
    },
    "dflash": _of(
        "DFlashDraftModel",
        "qwen3",
        _QWEN3,
        block_size=8,
        dflash_config={"mask_token_id": 5, "target_layer_ids": [0, 2, 4]},
        use_sliding_window=True,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "dflash2": _of(
        "DFlash2DraftModel",
        "qwen3",
        _QWEN3,
        dflash_config={
            "mask_token_id": 5,
            "target_layer_ids": [0, 2],
            "block_size": 8,
            "conv_kernel_size": 3,
            "conv_group_size": 16,
            "selector_rank": 8,
            "selector_top_k": 4,
            "causal": False,
        },
    ),
    "dspark": _of(
        "Qwen3DSparkModel",
        "qwen3",
        _QWEN3,
        block_size=8,
        mask_token_id=5,
        target_layer_ids=[0, 2, 4],
        markov_rank=8,
        draft_vocab_size=48,
        enable_confidence_head=True,
    ),
    "muse-glimmer-assistant": _of(
        "MuseGlimmerAssistantModel",
        "muse_glimmer_assistant",
        _QWEN3,
        block_size=8,
        mask_token_id=5,
        target_layer_ids=[1, 3],
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma4-assistant": {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": 80,
        "text_config": {k: v for k, v in _LLAMA.items() if k != "rope_theta"}
        | {
            "model_type": "gemma4_text",
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 0,
            "moe_intermediate_size": None,
            "final_logit_softcapping": 30.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    },
    "jais": _of(
        "JAISLMHeadModel",
        "jais",
        {"vocab_size": 96, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
        n_inner=96,
        activation_function="swiglu",
        position_embedding_type="alibi",
        mup_embeddings_scale=9.1705785388,
        mup_output_alpha=1.0953,
        mup_width_scale=0.1252,
        mup_scale_qk_dot_by_d=True,
    ),
    "rugpt3xl": _of(
        "RuGPT3XLForCausalLM",
        "rugpt3xl",
        {"vocab_size": 96, "max_position_embeddings": 128, "hidden_size": 64, "intermediate_size": 256},
        num_hidden_layers=2,
        num_attention_heads=4,
        layer_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "plamo": _of(
        "PlamoForCausalLM",
        "plamo",
        {k: v for k, v in _ALONE.items() if k not in ("rope_theta", "max_position_embeddings")},
        n_shared_head=2,
    ),
    "talkie": _of(
        "TalkieForCausalLM",
        "talkie",
        {k: v for k, v in _ALONE.items() if k not in ("num_key_value_heads", "rms_norm_eps")},
        head_dim=16,
    ),
    "chameleon": _of("ChameleonForConditionalGeneration", "chameleon", _ALONE, vocab_size=8200),
    "chameleon-swin": _of("ChameleonForConditionalGeneration", "chameleon", _ALONE, vocab_size=8200, swin_norm=True),
    "granite-switch": _of(
        "GraniteSwitchForCausalLM",
        "granite_switch",
        _LLAMA | {"num_hidden_layers": 3},
        num_adapters=2,
        max_lora_rank=8,
        adapter_token_ids=[33, 21],
        adapter_substitute_token_ids=[1, 2],
        shared_intermediate_size=80,
        num_local_experts=0,
        num_experts_per_tok=0,
        attention_multiplier=0.25,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    ),
    "muse-glimmer": _inside(
        "MuseGlimmerForConditionalGeneration",
        "muse_glimmer",
        _QWEN3
        | {
            "num_hidden_layers": 4,
            "hidden_activation": "silu",
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0],
            "final_logit_softcapping": 20.0,
            "qk_scale_factor": 3.87,
            "output_multiplier": 0.19611613513818404,
            "post_norm_eps": 1e-8,
        },
    ),
    "k-exaone-predicting": _of(
        "ExaoneMoEForCausalLM",
        "exaone_moe",
        _QWEN3,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        num_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        scoring_func="sigmoid",
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        num_nextn_predict_layers=1,
    ),
    "exaone4.5-predicting": _inside(
        "Exaone4_5_ForConditionalGeneration",
        "exaone4_5",
        _QWEN3
        | {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_nextn_predict_layers": 1,
        },
    ),
}

_NEMOTRON = {k: v for k, v in _LLAMA.items() if k not in ("rms_norm_eps", "rope_theta", "intermediate_size")} | {
    "head_dim": 24,
    "norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "num_hidden_layers": 3,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "moe_latent_size": 32,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS |= {
    "nemotron-h-predicting": _of(
        "NemotronHForCausalLM",
        "nemotron_h",
        _NEMOTRON,
        hybrid_override_pattern="ME*",
        num_nextn_predict_layers=1,
    ),
    "nemotron-h-puzzle": _of(
        "NemotronHPuzzleForCausalLM",
        "nemotron_h_puzzle",
        {k: v for k, v in _NEMOTRON.items() if k not in ("moe_intermediate_size", "num_experts_per_tok")},
        block_configs=[
            {"block_type": "mamba"},
            {"block_type": "moe", "moe_intermediate_size": 32, "num_experts_per_tok": 2},
            {"block_type": "attention"},
            {"block_type": "moe", "moe_intermediate_size": 48, "num_experts_per_tok": 1},
        ],
    ),
}

CONFIGS |= {
    "minimax-m3": _inside(
        "MiniMaxM3SparseForConditionalGeneration",
        "minimax_m3_vl",
        _LLAMA
        | {
            "head_dim": 16,
            "rotary_dim": 8,
            "intermediate_size": 32,
            "dense_intermediate_size": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.0,
            "scoring_func": "sigmoid",
            "moe_layer_freq": [0, 1],
            "sparse_attention_config": {
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 8,
                "sparse_topk_blocks": 4,
                "sparse_block_size": 16,
                "sparse_local_block": 1,
            },
        },
    ),
    "minimax-01": _of(
        "MiniMaxText01ForCausalLM",
        "minimax_text_01",
        _LLAMA,
        head_dim=16,
        rotary_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        attn_type_list=[0, 1],
        postnorm=True,
        **{
            f"layernorm_{part}_{greek}": number
            for part in ("full_attention", "linear_attention", "mlp")
            for greek, number in (("alpha", 3.5565588200778455), ("beta", 1.0))
        },
    ),
}

_LING3 = _LATENT | {
    "head_dim": 16,
    "q_lora_rank": None,
    "num_experts": 4,
    "num_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 48,
    "score_function": "sigmoid",
    "n_group": 2,
    "layer_group_size": 2,
    "short_conv_kernel_size": 4,
    "no_kda_lora": True,
    "kda_safe_gate": True,
    "kda_lower_bound": -5.0,
    "gated_attention_proj_granularity_type": "head_wise",
}
_LING3 = {k: v for k, v in _LING3.items() if k not in ("n_routed_experts", "n_shared_experts", "scoring_func")}
CONFIGS |= {
    "ling3": _of("BailingMoeV3ForCausalLM", "bailing_hybrid", _LING3),
    "ling3-vl": _inside(
        "BailingMoeV3VLForConditionalGeneration",
        "bailing_moe_v3_vl",
        _LING3 | {"q_lora_rank": 24, "num_nextn_predict_layers": 1, "mrope_section": [2, 3, 3]},
    ),
}

_RWKV = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
_RWKV6 = _RWKV | {"hidden_size": 128, "intermediate_size": 512}
CONFIGS |= {
    "rwkv6": _of("Rwkv6ForCausalLM", "rwkv6", _RWKV6, head_size=16, layer_norm_epsilon=1e-5, rescale_every=1),
    "rwkv6-qwen2": _of(
        "RWKV6Qwen2ForCausalLM",
        "rwkv6qwen2",
        _LLAMA,
        attention_bias=True,
        lora_rank_tokenshift=8,
        lora_rank_decay=8,
    ),
    "rwkv7": _of(
        "RWKV7ForCausalLM",
        "rwkv7",
        _RWKV | {"hidden_size": 128},
        head_dim=64,  # of which llama.cpp's kernels take no fewer
        norm_eps=1e-5,
        decay_low_rank_dim=8,
        a_low_rank_dim=8,
        v_low_rank_dim=4,
        gate_low_rank_dim=12,
    ),
    "arwkv7": _of(
        "RwkvHybridForCausalLM",
        "rwkv_hybrid",
        _LLAMA | {"hidden_size": 128},
        head_size=64,
        wkv_version=7,
        wkv_has_gate=True,
    ),
}

_ENCODER = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "max_position_embeddings": 128,
}
_JINA_2 = _ENCODER | {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
CONFIGS |= {
    "neobert": _of(
        "NeoBERTLMHead",
        "neobert",
        {k: v for k, v in _ENCODER.items() if k in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=4,
        intermediate_size=144,
        norm_eps=1e-5,
        max_length=128,
        dim_head=16,
        pad_token_id=0,
    ),
    "neobert-classifier": _of(
        "NeoBERTForSequenceClassification",
        "neobert",
        {k: v for k, v in _ENCODER.items() if k in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=4,
        intermediate_size=144,
        norm_eps=1e-5,
        max_length=128,
        dim_head=16,
        pad_token_id=0,
        id2label={"0": "a", "1": "b", "2": "c"},
    ),
    "jina2": _of("JinaBertForMaskedLM", "bert", _JINA_2),
    "jina2-code": _of("JinaBertForMaskedLM", "bert", _JINA_2, up_gated_layer=True),
    "jina3": _of(
        "XLMRobertaModel",
        "xlm-roberta",
        _ENCODER,
        type_vocab_size=1,
        max_position_embeddings=130,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        rotary_emb_base=20000.0,
        pad_token_id=1,
        lora_adaptations=["retrieval.query", "text-matching"],
        lora_alpha=2,
        lora_rank=4,
        task_instructions={"retrieval.query": "what is ", "text-matching": ""},
    ),
    "nomic-moe": _of(
        "NomicBertModel",
        "nomic_bert",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 2048},
        max_trained_positions=2048,
        layer_norm_epsilon=1e-5,
        rotary_emb_base=10000,
        type_vocab_size=1,
        activation_function="gelu",
        causal=False,
        qkv_proj_bias=True,
        mlp_fc1_bias=True,
        mlp_fc2_bias=True,
        prenorm=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        num_experts=4,
        moe_top_k=2,
        moe_every_n_layers=2,
        moe_normalize_expert_weights=False,
        num_shared_experts=0,
        pad_token_id=1,
    ),
}

_STREAMS = {"hc_mult": 2, "hc_sinkhorn_iters": 3, "hc_eps": 1e-6}
_DEEPSEEK4 = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 24,
    "vocab_size": 96,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "sliding_window": 16,
    "o_groups": 2,
    "o_lora_rank": 24,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "num_nextn_predict_layers": 0,
    **_STREAMS,
}
CONFIGS |= {
    "deepseek4": _of("DeepseekV4ForCausalLM", "deepseek_v4", _DEEPSEEK4),
    "deepseek4-predicting": _of("DeepseekV4ForCausalLM", "deepseek_v4", _DEEPSEEK4, num_nextn_predict_layers=1),
}

_KIMI_K3 = {
    **{k: v for k, v in _LATENT.items() if k not in ("n_routed_experts", "n_shared_experts", "num_experts_per_tok")},
    "qk_rope_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "mla_use_nope": True,
    "routed_expert_hidden_size": 32,
    "hidden_act": "situ",
    "activation_situ_beta": 4.0,
    "activation_situ_linear_beta": 25.0,
    "attn_res_block_size": 2,
    "linear_attn_config": {
        "full_attn_layers": [2],
        "kda_layers": [1],
        "short_conv_kernel_size": 4,
        "head_dim": 16,
        "num_heads": 4,
        "gate_lower_bound": -5.0,
    },
}
_KIMI_K3 = {k: v for k, v in _KIMI_K3.items() if k not in ("n_group", "topk_group", "norm_topk_prob", "scoring_func")}
CONFIGS |= {"kimi-k3": _inside("KimiK3ForConditionalGeneration", "kimi_k3", _KIMI_K3)}

_INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 32}
_GLM5_NEXT = {
    **_LATENT,
    **_STREAMS,
    **_INDEXER,
    "qk_rope_head_dim": 0,
    "layer_types": ["linear_attention", "full_attention"],
    "indexer_types": ["full", "full"],
    "index_kpool": 16,
    "mla_use_nope": True,
    "swiglu_limit": 10.0,
    "linear_attn_config": {
        "short_conv_kernel_size": 4,
        "head_dim": 16,
        "num_heads": 4,
        "gate_lower_bound": -5.0,
    },
}
_GLM5_NEXT = {k: v for k, v in _GLM5_NEXT.items() if k != "rope_theta"}
CONFIGS |= {
    "glm5-next": _inside("Glm5NextForConditionalGeneration", "glm5_next", _GLM5_NEXT),
    "glm5-next-predicting": _inside(
        "Glm5NextForConditionalGeneration", "glm5_next", _GLM5_NEXT | {"num_nextn_predict_layers": 1}
    ),
}

_QWEN4 = {
    **{k: v for k, v in _SPARSE.items() if k != "intermediate_size"},
    "head_dim": 16,
    "num_experts": 4,
    "shared_expert_intermediate_size": 48,
    "rope_scaling": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "hc_count": 2,
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "ple_embed_dim": 64,
    "ple_conv_kernel_size": 4,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 5,
    "eos_token_id": 2,
}
CONFIGS |= {
    "qwen4exp": _inside("Qwen4ExpForConditionalGeneration", "qwen4_exp", _QWEN4, image_token_id=7),
    "qwen4exp-text": _of(
        "Qwen4ExpForCausalLM", "qwen4_exp_text", _QWEN4 | {"ple_layer_ids": [], "tie_word_embeddings": True}
    ),
}

_HY4 = {
    **{k: v for k, v in _LATENT.items() if k != "scoring_func"},
    **_INDEXER,
    "num_hidden_layers": 3,
    "indexer_types": ["full", "shared", "full"],
    "hc_mult": 2,
    "hc_eps": 1e-6,
    "hc_magnitude": 2.0,
    "swiglu_limit": 10.0,
}
_DOTS3 = {
    **_LATENT,
    **_INDEXER,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "use_dsa": True,
    "sliding_window_size": 16,
    "swa_rope_theta": 50000.0,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 40,
    "swa_qk_nope_head_dim": 24,
    "swa_qk_rope_head_dim": 16,
    "swa_head_dim": 40,
    "swa_v_head_dim": 20,
}
CONFIGS |= {
    "hy-v4": _of("HYV4ForCausalLM", "hy_v4", _HY4),
    "dots3": _of("Dots3NoteForCausalLM", "dots3_note", _DOTS3, apply_mla_qkv_lora_rescale=False),
    "dots3-rescaled": _of("Dots3NoteForCausalLM", "dots3_note", _DOTS3, apply_mla_qkv_lora_rescale=True),
    "dots3-predicting": _of(
        "Dots3NoteForCausalLM", "dots3_note", _DOTS3, num_nextn_predict_layers=1, apply_mla_qkv_lora_rescale=False
    ),
}

CONFIGS |= {
    "deepseek4-dspark": _of(
        "DeepseekV4DSparkModel",
        "deepseek_v4",
        _DEEPSEEK4 | {"num_hidden_layers": 3},
        dspark_block_size=8,
        dspark_target_layer_ids=[0, 2],
        dspark_noise_token_id=5,
        dspark_markov_rank=8,
    ),
    "gemma4-dspark": _of(
        "Gemma4DSparkModel",
        "gemma4_text",
        {k: v for k, v in _LLAMA.items() if k != "rope_theta"},
        layer_types=["full_attention", "full_attention"],
        attention_k_eq_v=True,
        global_head_dim=32,
        num_global_key_value_heads=2,
        hidden_activation="gelu_pytorch_tanh",
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
        },
        block_size=8,
        mask_token_id=5,
        target_layer_ids=[0, 2],
        markov_rank=8,
        enable_confidence_head=True,
        tie_word_embeddings=True,
    ),
}

PACKED = ("deepseek4", "deepseek4-predicting", "deepseek4-dspark")
"""Whose published experts are packed in MXFP4; the reference takes no others."""


def finished(name: str, model: Checkpoint, packed: bool = False) -> Checkpoint:
    """The model with what no table has a row for.  packed: its experts as they are published."""
    rng = np.random.default_rng(3)
    if name == "deepseek4-predicting":
        for part, shape in (("fn", (2, 128)), ("base", (2,)), ("scale", (1,))):
            model.add(Tensor.from_array(f"mtp.0.hc_head_{part}", rng.normal(0, 1, shape).astype(np.float32)))
    for key in [key for key in model.tensors if ".experts." in key and packed and name in PACKED]:
        *lead, k = model.tensors.pop(key).shape
        codes = rng.integers(-128, 128, (*lead, k // 2)).astype(np.int8)
        scales = rng.integers(118, 132, (*lead, k // 32)).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
        model.add(Tensor.from_array(key, codes))
        model.add(Tensor.from_array(key.removesuffix("weight") + "scale", scales))
    return model


_GEMMA4 = {k: v for k, v in _LLAMA.items() if k != "rope_theta"} | {
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "num_kv_shared_layers": 0,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
CONFIGS |= {
    "gemma4-inside": _inside("Gemma4ForConditionalGeneration", "gemma4", {"model_type": "gemma4_text", **_GEMMA4}),
    "gemma4-unified": _inside(
        "Gemma4UnifiedForConditionalGeneration", "gemma4_unified", {"model_type": "gemma4_text", **_GEMMA4}
    ),
}
CONFIGS["lfm2.5-audio-tokenizer"] = _of(
    "Lfm25AudioTokenizer",
    "lfm2",
    {k: v for k, v in _LLAMA.items() if k not in ("rms_norm_eps", "intermediate_size")},
    norm_eps=1e-5,
    block_ff_dim=96,
    block_auto_adjust_ff_dim=False,
    block_ffn_dim_multiplier=1.0,
    block_multiple_of=32,
    conv_L_cache=3,
    layer_types=["conv", "full_attention"],
    sliding_window=16,
    output_size=40,
)

_TALKER = {
    **_QWEN3,
    "vocab_size": 24,
    "text_vocab_size": 96,
    "text_hidden_size": 48,
    "hidden_act": "silu",
    "codec_eos_token_id": 20,
    "codec_language_id": {"english": 21, "german": 22},
    "codec_bos_id": 19,
    "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3], "interleaved": True},
}
CONFIGS |= {
    "qwen3-tts": {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "talker_config": {"model_type": "qwen3_tts_talker", **_TALKER},
    },
    "wavtokenizer": {
        "architectures": ["WavTokenizerDec"],
        **{"hidden_size": 34, "n_embd_features": 24, "n_ff": 48, "vocab_size": 96, "n_head": 1, "n_layer": 6},
        **{"layer_norm_epsilon": 1e-6, "group_norm_epsilon": 1e-6, "group_norm_groups": 32},
        "max_position_embeddings": 8192,
        "posnet": {"n_embd": 32, "n_layer": 6},
        "convnext": {"n_embd": 32, "n_layer": 2},
    },
    "jina5-nano": _of("JinaEmbeddingsV5Model", "eurobert", _LLAMA, classifier_pooling="mean"),
    "jina5-small": _of("JinaEmbeddingsV5Model", "jina_embeddings_v5", _QWEN3, use_sliding_window=False),
}

NOT_RUN = (
    *("qwen3-tts", "wavtokenizer"),
    "lfm2.5-audio-tokenizer",
    *("deepseek4-dspark", "gemma4-dspark"),
    *("ling3", "ling3-vl"),
    *("minimax-m3", "minimax-01"),
    *("rwkv6", "rwkv6-qwen2", "rwkv7", "arwkv7"),
    "nanbeige-looped",
    *("gemma4-assistant", "eagle3", "eagle3-speculator", "dflash", "dflash2", "dspark", "muse-glimmer-assistant"),
)
"""What is not run here, or compared elsewhere."""

BITS_ALONE = {"smolvlm", "youtu", "sarvam", "plamo", "jina2-code", "neobert-classifier"}
"""What is compared with nothing of the reference's."""

FORMS = {"kormo": 1, "rugpt3xl": 1, "muse-glimmer-assistant": 1, "bitnet-1": 1, "qwen3-vl-moe": 1, "grok1": 1} | {
    "deepseek4-dspark": 2,
    "jina2-code": 1,
}
"""In which form a model is written, where not the first."""

PREFIXES = {
    "lfm2-bidirectional": "",
    "lfm2.5-audio-tokenizer": "lfm.",
    "rugpt3xl": "model.",
    **dict.fromkeys(("gemma4-inside", "gemma4-unified"), "model.language_model."),
}
"""What stands before a model's names, where not the usual."""
