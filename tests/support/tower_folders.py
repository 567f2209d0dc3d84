"""Small multimodal folders made of the tables' own rows, without torch: random tensors of every name and shape."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llmconv.convert import archs
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.rows import slots
from llmconv.convert.tables.tower import Tower
from llmconv.convert.towers import translate
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16}  # fmt: skip
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14, "hidden_size": 32, "intermediate_size": 48,
        "fullatt_block_indexes": [0, 1, 2], "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2],
        "spatial_merge_size": 2}  # fmt: skip
HEARS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16}
PREPARED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_seq_length": 4}
MEASURED = 25
"""The size that stands for every dimension which only a tensor says."""
PIXELS = {"min_pixels": 3136, "max_pixels": 11289600}
HEARD = HEARS | {"encoder_layers": 4, "d_model": 32}
OCR: dict[str, Any] = {
    "image_size": 64,
    "width": {
        "clip-l-14-224": {"heads": 4, "image_size": 28, "layers": 4, "patch_size": 14, "width": 32},
        "sam_vit_b": {"heads": 2, "layers": 3, "width": 16},
    },
}
KIMI = SEES | {"num_hidden_layers": 3, "init_pos_emb_height": 5, "init_pos_emb_width": 5}
MORE: dict[str, dict[str, Any]] = {
    "InternVLChatModel": {
        "vision_config": SEES
        | {
            "num_hidden_layers": 4,
            "architectures": ["InternVisionModel"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "downsample_ratio": 0.5,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
    },
    "InternVisionModel": {
        "vision_config": SEES
        | {"num_hidden_layers": 4, "image_size": [28, 28], "patch_size": [14, 14], "layer_norm_eps": 1e-6}
        | {"architectures": ["InternVisionModel"], "hidden_act": "gelu"},
        "downsample_ratio": 0.5,
    },
    "KimiVLForConditionalGeneration": {"vision_config": KIMI | {"init_pos_emb_height": 64}},
    "KimiK25ForConditionalGeneration": {"vision_config": KIMI | {"init_pos_emb_height": 25, "init_pos_emb_width": 25}},
    "DotsOCRForCausalLM": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}, "hidden_size": 64},
    "PaddleOCRVLForConditionalGeneration": {
        "vision_config": KIMI | {"architectures": ["PaddleOCRVisionModel"], "rms_norm_eps": 1e-5}
    },
    "HunYuanVLForConditionalGeneration": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}},
    "CogVLMForCausalLM": {"vision_config": SEES | {"num_heads": 4, "layer_norm_eps": 1e-6}},
    "Sarashina2VisionForCausalLM": {
        "vision_config": {"depth": 3, "num_heads": 4, "patch_size": 14, "embed_dim": 32, "hidden_size": 64},
        "model_type": "sarashina2_vision",
    },
    "Qwen4ExpForConditionalGeneration": {"vision_config": QWEN},
    "Qwen2_5OmniModel": {"thinker_config": {"vision_config": QWEN, "audio_config": HEARD, "text_config": TEXT}},
    "Qwen3OmniMoeForConditionalGeneration": {
        "thinker_config": {"vision_config": QWEN, "audio_config": HEARD, "text_config": TEXT | {"rms_norm_eps": 1e-5}}
    },
    "Qwen3ASRForConditionalGeneration": {"thinker_config": {"audio_config": HEARD, "text_config": TEXT}},
    "Exaone4_5_ForConditionalGeneration": {
        "vision_config": QWEN | {"num_key_value_heads": 2, "window_size": 112, "rms_norm_eps": 1e-6}
    },
    "Glm5NextForConditionalGeneration": {
        "vision_config": QWEN | {"hidden_act": "silu", "image_size": 336, "swiglu_limit": 7.5}
    },
    "BailingMoeV3VLForConditionalGeneration": {
        "vision_config": QWEN | {"disable_merger_proj": True, "out_hidden_size": 64}
    },
    "DeepseekOCRForCausalLM": {"vision_config": OCR, "hidden_size": 64},
    "UnlimitedOCRForCausalLM": {"vision_config": OCR, "hidden_size": 64},
    "DeepseekOCR2ForCausalLM": {
        "vision_config": {
            "image_size": 64,
            "layers": 4,
            "width": {"sam_vit_b": OCR["width"]["sam_vit_b"], "qwen2-0-5b": {"dim": 56}},
        },
        "hidden_size": 64,
    },
    "MiniCPMV4_6ForConditionalGeneration": {
        "vision_config": KIMI | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        "insert_layer_id": 1,
    },
    "YoutuVLForConditionalGeneration": {
        "vision_config": KIMI | {"spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [1, 2]}
    },
    "Phi4ForCausalLMV": {"vision_config": KIMI, "hidden_size": 64},
    "StepVLForConditionalGeneration": {
        "vision_config": {"width": 32, "layers": 3, "heads": 4, "image_size": 28, "patch_size": 14, "mlp_ratio": 1.5},
        "understand_projector_stride": 2,
        "hidden_size": 64,
    },
    "GlmasrModel": {"whisper_config": HEARD, "lm_config": TEXT, "merge_factor": 4},
    "MERaLiON2ForConditionalGeneration": {"speech_config": HEARD, "speech_mlp_scale_factor": 15},
    "Gemma4ForConditionalGeneration": {
        "vision_config": SEES | {"head_dim": 8, "use_clipped_linears": True},
        "audio_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6},
        "model_type": "gemma4_written",
    },
    "JanusForConditionalGeneration": {"vision_config": KIMI | {"hidden_act": "gelu"}},
}
"""What a class's config.json says besides, or instead of what is usual."""
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
PUBLISHED = {"Qwen3OmniMoeForConditionalGeneration": (("visual.", "visual."),)}  # else llama.cpp's converter fails
"""Beginnings of names that are other ones than the tower's `written`."""
OWN_KEYS: dict[str, tuple[str, ...]] = {}
"""Keys of a class that only we write, or only llama.cpp's converter."""
SAYS: dict[str, dict[str, Any]] = {
    "DotsOCRForCausalLM": PIXELS,
    "PaddleOCRVLForConditionalGeneration": PIXELS,
    "HunYuanVLForConditionalGeneration": PIXELS,
    "Exaone4_5_ForConditionalGeneration": PIXELS,
    "Glm5NextForConditionalGeneration": {"min_image_tokens": 4, "max_image_tokens": 64},
    "MiniCPMV4_6ForConditionalGeneration": {"scale_resolution": 448, "downsample_mode": "16x"},
    "Phi4ForCausalLMV": {"patch_size": 14, "min_num_patches": 4, "max_num_patches": 64},
}
"""The same of preprocessor_config.json."""


def config_of(tower: Tower, cls: str) -> dict[str, Any]:
    """A config.json of one of the tower's classes."""
    config: dict[str, Any] = {"architectures": [cls], "model_type": tower.model_type, "text_config": dict(TEXT)}
    for side in tower.sides:
        hears = side.table.gguf == "clip.audio"
        own = HEARS if hears else QWEN if tower.starts == ("visual.",) else SEES
        place = config
        *steps, last = side.at.split(".")
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = own | ({"model_type": "pixtral"} if "pixtral" in tower.projector else {})
    return config | {"spatial_merge_size": 2} | MORE.get(cls, MORE.get(tower.classes[0], {}))


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator, kind: str) -> Tensor:
    values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
    return Tensor.from_array(name, values).astype(by_name(kind))


def tower_folder(tower: Tower, cls: str, kind: str = "BF16", seed: int = 0) -> Checkpoint:
    """A folder with every tensor of the tower, and no text model."""
    rng = np.random.default_rng(seed)
    config = config_of(tower, cls)
    files = {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(PREPARED | SAYS.get(cls, {})).encode(),
    }
    folder = Checkpoint(dialect="hf", files=dict(files))
    for side in tower.sides:
        metadata = side.table.metadata(side.settings(config, folder))
        dims = side.dims(metadata, {}) | dict.fromkeys(side.measured, MEASURED)
        for slot in slots(side.table.rows, dims):
            for name, shadow in zip(slot.names(0), slot.shadows(0), strict=True):
                folder.add(_random(name, shadow.shape, rng, kind))
    return folder


def published(tower: Tower, cls: str, kind: str = "BF16") -> Checkpoint:
    """The same under the names of published files."""
    folder = tower_folder(tower, cls, kind)
    starts = (*PUBLISHED.get(cls, ()), *tower.written)
    renamed = {translate._begun(name, starts): tensor for name, tensor in folder.tensors.items()}
    return folder.but(tensors={name: tensor.renamed(name) for name, tensor in renamed.items()})


def multimodal(tower: Tower, cls: str, kind: str = "BF16") -> Checkpoint:
    """The same with a text model of the class's table."""
    folder = tower_folder(tower, cls, kind)
    config = json.loads(folder.file("config.json") or b"")
    arch = archs.by_hf(config)
    assert arch is not None
    rng = np.random.default_rng(1)
    dims = arch.dims_of(arch.metadata(normalized(config))) | {"n_vocab": TEXT["vocab_size"]}
    for slot in arch.slots(dims):
        if arch.expected(slot.row, normalized(config)):
            for name, shadow in zip(slot.names(0, tower.text[0][1]), slot.shadows(0), strict=True):
                folder.add(_random(name, shadow.shape, rng, kind))
    return folder
