"""What the tensors of a folder without config.json say in its place.

Pocket TTS's has none.  A tensor that no other model has tells it; the rest are its shapes, and what its own code and
llama.cpp's converter take for given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["settings"]

_POCKET = ("flow_lm.bos_emb", "flow_lm.speaker_proj_weight")
"""One for each half of it."""
_HEAD = 64
"""Numbers of a head, which no tensor says."""


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A config.json of a whole folder, or of half of one; {} for any other model."""
    if not any(name in shapes for name in _POCKET):
        return {}
    linear = _shape(shapes, "flow_lm.input_linear.weight")
    words, dim = _shape(shapes, "flow_lm.conditioner.embed.weight", (0, linear[0]))
    voice = "flow_lm.bos_before_voice" in shapes
    own = _sizes(shapes, "flow_lm.transformer.", "")
    return {
        "architectures": ["PocketTTSModel"],
        "model_type": "pockettts",
        "hidden_size": dim,
        "num_attention_heads": dim // _HEAD,
        "max_position_embeddings": 4096,  # it has no limit
        "vocab_size": words + 1 + voice,
        "insert_bos_before_voice": voice,
        "latent_size": linear[1],
        "rope_theta": 10000.0,
        "layer_norm_eps": 1e-5,
        **own,
        "audio_config": _sizes(shapes, "mimi.encoder_transformer.transformer.", "hidden_size"),
    }


def _sizes(shapes: Mapping[str, tuple[int, ...]], start: str, width: str) -> dict[str, int]:
    layers = sum(re.fullmatch(re.escape(start) + r"layers\.\d+\.norm1\.weight", name) is not None for name in shapes)
    found = {
        "num_hidden_layers": layers,
        "intermediate_size": _shape(shapes, f"{start}layers.0.linear1.weight")[0],
    }
    if width:
        dim = _shape(shapes, f"{start}layers.0.norm1.weight", (0,))[0]
        found |= {width: dim, "num_attention_heads": dim // _HEAD}
    return found


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, default: tuple[int, ...] = (0, 0)) -> tuple[int, ...]:
    found = shapes.get(name, default)
    return found if len(found) == len(default) else default
