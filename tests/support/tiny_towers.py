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
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
HEARS = {
    "d_model": 32,
    "encoder_layers": 2,
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
}


def build(name: str, folder: Path, seed: int = 0) -> Any:
    """Make the model with every parameter random, save it to `folder`, and give it back."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    tiny = MODELS[name]
    torch.manual_seed(seed)
    kind = getattr(transformers, tiny.cls)
    model = kind(kind.config_class(**tiny.config)).to(getattr(torch, tiny.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + (0.5 if parameter.ndim == 1 else 0.0))
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
