"""InternViT, the tower of InternVL 1.5 to 3.5 and Intern-S1: layers whose results are scaled, four patches a vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Key, keys, row
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import act_keys, linear, norm, split_qkv, vision

_AT = "v.blk.{i}."
_TILES = {"preproc_min_tiles": "min_dynamic_patch", "preproc_max_tiles": "max_dynamic_patch"}


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    act_keys(own, config, "gelu")
    outer = config["outer"]
    own["projector.scale_factor"] = np.uint32(int(1.0 / outer.get("downsample_ratio", 0.5)))
    own |= {key: np.uint32(outer[name]) for key, name in _TILES.items() if outer.get(name)}


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(hidden_act="silu" if own.get("/clip.use_silu") else "gelu")
    config["outer"] = {"downsample_ratio": 1.0 / int(own.get("projector.scale_factor", 2))}
    config["outer"] |= {name: int(own[key]) for key, name in _TILES.items() if key in own}


def _side_of(size: Any) -> Any:
    """The first of two sides, which are the same."""
    return size[0] if isinstance(size, list) and size else size


class _Edge(Key):
    """A length that some configurations state for both sides."""

    def typed(self, value: Any, item: str) -> Any:
        return super().typed(_side_of(value), item)


_KEYS = (
    _Edge("image_size", ("image_size",), "u32", 448),
    _Edge("patch_size", ("patch_size",), "u32", 14),
    *keys("""
        projection_dim                  u32   text.hidden_size
        embedding_length                u32   hidden_size           1024
        feed_forward_length             u32   intermediate_size     4096
        block_count                     u32   num_hidden_layers     24
        attention.head_count            u32   num_attention_heads   16
    """),
)
_ENDS = (
    *norm("mm.model.mlp.0", "mlp1.0", "n_four"),
    *linear("mm.model.mlp.1", "mlp1.1", "n_mid", "n_four"),
    *linear("mm.model.mlp.3", "mlp1.3", "n_proj", "n_mid"),
)
_MEASURED = {"n_four": ("mm.model.mlp.1.weight", 1), "n_mid": ("mm.model.mlp.1.weight", 0)}
_PLACES = "1, (image // patch) * (image // patch) + 1, n_embd"
_SEEN = "vision_model.embeddings."


def _norm(gguf: str, hf: str) -> tuple[Any, ...]:
    """A LayerNorm, or the larger model's RMSNorm."""
    return (row(f"{gguf}.weight", f"{hf}.weight", "n_embd"), row(f"{gguf}.bias", f"{hf}.bias", "n_embd", optional=True))


def _layer(at: str, names: Mapping[str, str]) -> tuple[Any, ...]:
    """Rows of a layer but those of queries, keys and values; names: what stands at `at` for each."""
    return (
        *_norm(_AT + "ln1", at + names["ln1"]),
        row(_AT + "attn_q_norm.weight", at + names["q_norm"], "n_embd", optional=True),
        row(_AT + "attn_k_norm.weight", at + names["k_norm"], "n_embd", optional=True),
        *linear(_AT + "attn_out", at + names["out"], "n_embd", "n_embd"),
        row(_AT + "ls1.weight", at + names["ls1"], "n_embd"),
        *_norm(_AT + "ln2", at + names["ln2"]),
        *linear(_AT + "ffn_up", at + "mlp.fc1", "n_ff", "n_embd"),
        *linear(_AT + "ffn_down", at + "mlp.fc2", "n_embd", "n_ff"),
        row(_AT + "ls2.weight", at + names["ls2"], "n_embd"),
    )


_OWN = {
    "ln1": "norm1", "ln2": "norm2", "q_norm": "attn.q_norm.weight", "k_norm": "attn.k_norm.weight",
    "out": "attn.proj", "ls1": "ls1", "ls2": "ls2",
}  # fmt: skip
_HF = {
    "ln1": "layernorm_before", "ln2": "layernorm_after", "q_norm": "attention.q_norm.weight",
    "k_norm": "attention.k_norm.weight", "out": "attention.projection_layer", "ls1": "lambda_1", "ls2": "lambda_2",
}  # fmt: skip


def _table(*rows: Any) -> Any:
    return vision(
        (*rows, *_ENDS),
        keys=_KEYS,
        constants={"/clip.projector_type": "internvl"},
        finish=_finish,
        rebuild=_rebuild,
    )


_LAYER = "vision_model.encoder.layers.{i}."
_LAYER_HF = "vision_tower.encoder.layer.{i}."

INTERNVL = Tower(
    "internvl",
    ("InternVLChatModel", "InternVisionModel"),
    "internvl_chat",
    (
        Side(
            _table(
                row("v.class_embd", _SEEN + "class_embedding", "1, 1, n_embd"),
                row("v.patch_embd.weight", _SEEN + "patch_embedding.weight", "n_embd, 3, patch, patch"),
                row("v.patch_embd.bias", _SEEN + "patch_embedding.bias", "n_embd"),
                row("v.position_embd.weight", _SEEN + "position_embedding", _PLACES),
                *split_qkv(_AT, _LAYER + "attn.qkv", bias="?"),
                *_layer(_LAYER, _OWN),
            ),
            "vision_config",
            _MEASURED,
        ),
    ),
    starts=("vision_model.", "mlp1."),
)

_PATCHES = "vision_tower.embeddings."
INTERNVL_HF = Tower(
    "internvl",
    ("InternVLForConditionalGeneration", "InternS1ForConditionalGeneration"),
    "internvl",
    (
        Side(
            _table(
                row("v.class_embd", _PATCHES + "cls_token", "1, 1, n_embd"),
                row("v.patch_embd.weight", _PATCHES + "patch_embeddings.projection.weight", "n_embd, 3, patch, patch"),
                row("v.patch_embd.bias", _PATCHES + "patch_embeddings.projection.bias", "n_embd"),
                row("v.position_embd.weight", _PATCHES + "position_embeddings", _PLACES),
                *linear(_AT + "attn_q", _LAYER_HF + "attention.q_proj", "n_embd", "n_embd", bias="?"),
                *linear(_AT + "attn_k", _LAYER_HF + "attention.k_proj", "n_embd", "n_embd", bias="?"),
                *linear(_AT + "attn_v", _LAYER_HF + "attention.v_proj", "n_embd", "n_embd", bias="?"),
                *_layer(_LAYER_HF, _HF),
            ),
            "vision_config",
            _MEASURED,
        ),
    ),
    starts=("vision_tower.", "mlp1."),
    spellings=(
        (r"^(?:model\.)?multi_modal_projector\.layer_norm\.", "mlp1.0."),
        (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "mlp1.1."),
        (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "mlp1.3."),
        (r"^model\.vision_tower\.", "vision_tower."),
    ),
    text=(("model.", "model.language_model."),),
    written=(
        ("vision_tower.", "model.vision_tower."),
        ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
        ("mlp1.1.", "model.multi_modal_projector.linear_1."),
        ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ),
)

TOWERS = (INTERNVL_HF, INTERNVL)
