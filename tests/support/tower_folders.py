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
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14, "hidden_size": 32, "intermediate_size": 48,
        "fullatt_block_indexes": [0, 1, 2], "num_position_embeddings": 24, "deepstack_visual_indexes": [0, 2],
        "spatial_merge_size": 2}  # fmt: skip
HEARS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16}
PREPARED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_seq_length": 4}
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16}  # fmt: skip
MEASURED = 24
"""The size that stands for every dimension which only a tensor says."""
PIXELS = {"min_pixels": 3136, "max_pixels": 11289600}
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
    "KimiK25ForConditionalGeneration": {"vision_config": KIMI | {"init_pos_emb_height": 24, "init_pos_emb_width": 24}},
    "DotsOCRForCausalLM": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}, "hidden_size": 64},
    "PaddleOCRVLForConditionalGeneration": {
        "vision_config": KIMI | {"architectures": ["PaddleOCRVisionModel"], "rms_norm_eps": 1e-5}
    },
    "HunYuanVLForConditionalGeneration": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}},
    "CogVLMForCausalLM": {"vision_config": SEES | {"num_heads": 4, "layer_norm_eps": 1e-6}},
    "JanusForConditionalGeneration": {"vision_config": KIMI | {"hidden_act": "gelu"}},
}
"""What a class's config.json says besides, or instead of what is usual."""
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
OWN_KEYS: dict[str, tuple[str, ...]] = {}
"""Keys of a class that only we write, or only llama.cpp's converter."""
SAYS: dict[str, dict[str, Any]] = dict.fromkeys(
    ("DotsOCRForCausalLM", "PaddleOCRVLForConditionalGeneration", "HunYuanVLForConditionalGeneration"), PIXELS
)
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
    renamed = {translate._begun(name, tower.written): tensor for name, tensor in folder.tensors.items()}
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
