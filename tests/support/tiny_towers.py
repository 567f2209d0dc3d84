"""Tiny random multimodal models, by transformers' own classes, under the names that published files have."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 16,
}
SEES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,  # the reference knows mm.2 of a tower with as many layers alone
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
HEARS = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 50,
}
PREPARED = {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.125]}


@dataclass(frozen=True)
class Tiny:
    """A multimodal class, its configuration, and what differs in published files.

    spelled: (regular expression, replacement): names as transformers writes them -> as published files have them.
    keys: those that only we write, or only llama.cpp's converter.   ours_alone: what it can't convert.
    says: what config.json says besides.   prepared: preprocessor_config.json.   files: further ones.
    """

    cls: str
    config: dict[str, Any]
    spelled: tuple[tuple[str, str], ...] = ()
    says: dict[str, Any] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=lambda: dict(PREPARED))
    files: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    keys: tuple[str, ...] = ()
    ours_alone: bool = False


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return TEXT | {"model_type": kind} | more


_PIXTRAL = SEES | {"model_type": "pixtral", "head_dim": 8}
_BREAKS = {"tokenizer_config.json": {"added_tokens_decoder": {"11": {"content": "[IMG_BREAK]"}}}}
_THREE = {"type": "mrope", "mrope_section": [2, 3, 3]}
_QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14}
_QWEN3 = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 16,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 2],
}
_HEARS_TOO = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_mel_bins": 16,
    "max_source_positions": 50,
}
_QFORMER = {
    **{"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 8},
    **{"max_position_embeddings": 8, "cross_attention_frequency": 1, "use_qformer_text_input": False},
}
_SPEECH: dict[str, Any] = {
    "text_config": _text("granite"),
    "encoder_config": {
        **{"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "input_dim": 16, "output_dim": 24},
        **{"context_size": 20, "max_pos_emb": 24, "conv_kernel_size": 5},
    },
    "projector_config": _QFORMER
    | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "encoder_hidden_size": 32},
    "has_lora_adapter": False,
}

MODELS: dict[str, Tiny] = {
    "gemma3": Tiny(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": TEXT | {"sliding_window": 32, "query_pre_attn_scalar": 16},
            "vision_config": SEES | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
        ((r"^vision_tower\.", "vision_tower.vision_model."),),
        prepared=PREPARED | {"image_seq_length": 4},
    ),
    "gemma3-bf16": Tiny(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": TEXT | {"sliding_window": 32, "query_pre_attn_scalar": 16},
            "vision_config": SEES | {"model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
        },
        dtype="bfloat16",
        ours_alone=True,  # it knows the names of published files alone
    ),
    "smolvlm": Tiny(
        "SmolVLMForConditionalGeneration",
        {"text_config": _text("llama"), "vision_config": SEES, "scale_factor": 2},
        prepared=PREPARED | {"size": {"longest_edge": 56}},
    ),
    "idefics3": Tiny(
        "Idefics3ForConditionalGeneration",
        {"text_config": _text("llama"), "vision_config": SEES, "scale_factor": 2},
        dtype="float16",
    ),
    "pixtral": Tiny(
        "LlavaForConditionalGeneration",
        {"text_config": _text("mistral"), "vision_config": _PIXTRAL, "image_token_index": 9},
        files=_BREAKS,
    ),
    "mistral3": Tiny(
        "Mistral3ForConditionalGeneration",
        {"text_config": _text("mistral"), "vision_config": _PIXTRAL, "image_token_index": 9, "spatial_merge_size": 2},
        files=_BREAKS,
        dtype="float16",
    ),
    "lighton-ocr": Tiny(
        "LightOnOcrForConditionalGeneration",
        {"text_config": _text("qwen3"), "vision_config": _PIXTRAL, "image_token_id": 9, "spatial_merge_size": 2},
        says={"architectures": ["LightOnOCRForConditionalGeneration"]},
    ),
    "qwen2-vl": Tiny(
        "Qwen2VLForConditionalGeneration",
        {"text_config": TEXT | {"rope_scaling": _THREE}, "vision_config": _QWEN | {"embed_dim": 32, "hidden_size": 64}},
    ),
    "qwen2.5-vl": Tiny(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": TEXT | {"rope_scaling": _THREE},
            "vision_config": _QWEN
            | {
                "depth": 4,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [1, 3],
            },
        },
        dtype="bfloat16",
    ),
    "qwen3-vl": Tiny(
        "Qwen3VLForConditionalGeneration",
        {"text_config": TEXT, "vision_config": _QWEN3},
    ),
    "glm4v": Tiny(
        "Glm4vForConditionalGeneration",
        {
            "text_config": TEXT | {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
            "vision_config": _QWEN
            | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "image_size": 56},
        },
        dtype="bfloat16",
    ),
    "llama4": Tiny(
        "Llama4ForConditionalGeneration",
        {
            "text_config": TEXT | {"intermediate_size_mlp": 96, "num_local_experts": 2},
            "vision_config": SEES
            | {
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "intermediate_size": 128,
            },
        },
    ),
    "lfm2-vl": Tiny(
        "Lfm2VlForConditionalGeneration",
        {
            "text_config": TEXT | {"layer_types": ["conv", "full_attention"]},
            "vision_config": SEES
            | {"model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 16, "vision_use_head": False},
        },
        ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),
        dtype="bfloat16",
    ),
    "gemma4": Tiny(
        "Gemma4ForConditionalGeneration",
        {
            "text_config": TEXT | {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
            "vision_config": {
                **{k: v for k, v in SEES.items() if k not in ("image_size", "patch_size")},
                **{"num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 8, "patch_size": 4},
            },
            "audio_config": {
                **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "output_proj_dims": 24},
                **{"subsampling_conv_channels": [8, 4]},
            },
        },
    ),
    "internvl-hf": Tiny(
        "InternVLForConditionalGeneration",
        {
            "text_config": _text("qwen2"),
            "vision_config": SEES | {"image_size": [28, 28], "patch_size": [14, 14]},
            "downsample_ratio": 0.5,
        },
        dtype="bfloat16",
        ours_alone=True,  # it knows the names of InternVL's own code alone
    ),
    "janus": Tiny(
        "JanusForConditionalGeneration",
        {
            "text_config": _text("llama"),
            "vision_config": SEES | {"projection_dim": 64, "depth": 2, "mlp_ratio": 1.5},
            "vq_config": {
                **{"embed_dim": 4, "num_embeddings": 8, "latent_channels": 4, "base_channels": 32, "num_patches": 4},
                **{"channel_multiplier": [1], "num_res_blocks": 1, "hidden_size": 32, "projection_dim": 32},
                **{"image_token_embed_dim": 32, "num_hidden_layers": 2},
            },
        },
        ours_alone=True,  # it leaves out what draws
    ),
    "minicpm-v": Tiny(
        "MiniCPMV4_6ForConditionalGeneration",
        {"text_config": _text("qwen3_5_text"), "vision_config": SEES, "insert_layer_id": 1},
        dtype="float16",
        ours_alone=True,
    ),
    "qwen2-audio": Tiny(
        "Qwen2AudioForConditionalGeneration",
        {"text_config": _text("qwen2"), "audio_config": HEARS | {"model_type": "qwen2_audio_encoder"}},
        prepared={},
    ),
    "voxtral": Tiny(
        "VoxtralForConditionalGeneration",
        {"text_config": _text("llama"), "audio_config": _HEARS_TOO | {"intermediate_size": 128}},
        prepared={},
        dtype="float16",
    ),
    "gemma4-unified": Tiny(
        "Gemma4UnifiedForConditionalGeneration",
        {
            "text_config": TEXT | {"global_head_dim": 16},
            "vision_config": {
                **{"patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 10},
                "output_proj_dims": 32,
            },
            "audio_config": {"audio_embed_dim": 24},
        },
        dtype="bfloat16",
    ),
    "granite4-vision": Tiny(
        "Granite4VisionForConditionalGeneration",
        {
            "text_config": _text("granite4_vision_text", num_hidden_layers=6),
            "vision_config": SEES
            | {"model_type": "siglip_vision_model", "hidden_size": 64, "vision_use_head": False}
            | {"num_hidden_layers": 6},
            "qformer_config": _QFORMER,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-3, 5], [-1, 0]],
            "spatial_target_layers": [1, 2, 3, 4],
        },
        ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),
    ),
    "granite-speech": Tiny(
        "GraniteSpeechForConditionalGeneration",
        _SPEECH,
        prepared={},
    ),
    "granite-speech-plus": Tiny(
        "GraniteSpeechPlusForConditionalGeneration",
        _SPEECH
        | {
            "encoder_config": _SPEECH["encoder_config"] | {"cat_hidden_layers": [1]},
            "projector_config": _SPEECH["projector_config"] | {"encoder_hidden_size": 64},
        },
        prepared={},
        dtype="bfloat16",
    ),
    "minimax-m3": Tiny(
        "MiniMaxM3SparseForConditionalGeneration",
        {
            "text_config": TEXT
            | {
                **{"intermediate_size": 32, "dense_intermediate_size": 96, "shared_intermediate_size": 32},
                **{"num_local_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
                "layer_types": ["full_attention", "minimax_m3_sparse"],
                **{"rotary_dim": 8, "index_n_heads": 2, "index_head_dim": 16},
            },
            "vision_config": SEES | {"hidden_size": 160, "num_attention_heads": 2},
            "projector_hidden_size": 48,
        },
    ),
    "muse-glimmer": Tiny(
        "MuseGlimmerForConditionalGeneration",
        {
            "text_config": TEXT,
            "vision_config": {k: v for k, v in SEES.items() if k != "image_size"}
            | {"pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16},
            "projector_hidden_size": 48,
            "out_hidden_size": 128,
        },
        dtype="float16",
    ),
    "audio-flamingo3": Tiny(
        "AudioFlamingo3ForConditionalGeneration",
        {"text_config": _text("qwen2"), "audio_config": _HEARS_TOO},
        prepared={},
        dtype="bfloat16",
    ),
}


def build(name: str, folder: Path, seed: int = 0) -> Any:
    """Make the model with every parameter random, save it to `folder`, and give it back."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    tiny = MODELS[name]
    torch.manual_seed(seed)
    kind = getattr(transformers, tiny.cls)
    model = kind(kind.config_class(**tiny.config))
    if tiny.dtype != "float32":  # Llama 4 has complex numbers, which no float holds
        model = model.to(getattr(torch, tiny.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + (0.5 if parameter.ndim == 1 else 0.0))
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape) + 0.25)
    model.eval()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for pattern, new in tiny.spelled:
        tensors = {re.sub(pattern, new, key): tensor for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file, more in {"config.json": tiny.says, "preprocessor_config.json": tiny.prepared, **tiny.files}.items():
        path = folder / file
        said = json.loads(path.read_text()) if path.exists() else {}
        if said or more:
            path.write_text(json.dumps(said | more, indent=2) + "\n")
    return model
