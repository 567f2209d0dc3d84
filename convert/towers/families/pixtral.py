"""Pixtral's tower: Pixtral 12B, Mistral 3.1 and later, LightOnOCR; rotary positions in two dimensions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, keys, row
from llmconv.convert.tables.ops import Dims, rope_halves
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import act_keys, linear, norm, vision
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.moving.rows import take
from llmconv.formats.tensor import Tensor

_BLOCK = "vision_tower.transformer.layers.{i}."
_AT = "v.blk.{i}."
_TURNED = rope_halves("n_head", "n_embd // n_head")
_PROJECTOR = "multi_modal_projector."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    act_keys(own, config, "silu")
    if config["outer"].get("spatial_merge_size") is not None:
        own["spatial_merge_size"] = np.uint32(config["outer"]["spatial_merge_size"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(model_type="pixtral", hidden_act="silu")
    if "spatial_merge_size" in own:
        config["outer"] = {"spatial_merge_size": int(own["spatial_merge_size"])}


def _table(projector: str, *rows: Any) -> Architecture:
    return vision(
        (
            row("v.patch_embd.weight", "vision_tower.patch_conv.weight", "n_embd, 3, patch, patch"),
            row("v.pre_ln.weight", "vision_tower.ln_pre.weight", "n_embd"),
            *norm(_AT + "ln1", _BLOCK + "attention_norm", bias=False),
            row(_AT + "attn_q.weight", _BLOCK + "attention.q_proj.weight", "n_embd, n_embd", _TURNED),
            row(_AT + "attn_k.weight", _BLOCK + "attention.k_proj.weight", "n_embd, n_embd", _TURNED),
            *linear(_AT + "attn_v", _BLOCK + "attention.v_proj", "n_embd", "n_embd", bias=False),
            *linear(_AT + "attn_out", _BLOCK + "attention.o_proj", "n_embd", "n_embd", bias=False),
            *norm(_AT + "ln2", _BLOCK + "ffn_norm", bias=False),
            *linear(_AT + "ffn_gate", _BLOCK + "feed_forward.gate_proj", "n_ff", "n_embd", bias=False),
            *linear(_AT + "ffn_up", _BLOCK + "feed_forward.up_proj", "n_ff", "n_embd", bias=False),
            *linear(_AT + "ffn_down", _BLOCK + "feed_forward.down_proj", "n_embd", "n_ff", bias=False),
            *linear("mm.1", _PROJECTOR + "linear_1", "n_proj", "n_embd", bias="?"),
            *linear("mm.2", _PROJECTOR + "linear_2", "n_proj", "n_proj", bias="?"),
            *rows,
        ),
        keys=keys("""
            image_size                      u32   image_size            1024
            embedding_length                u32   hidden_size           1024
            feed_forward_length             u32   intermediate_size     4096
            block_count                     u32   num_hidden_layers     24
            attention.head_count            u32   num_attention_heads   16
            attention.layer_norm_epsilon    f32   layer_norm_eps        1e-5
        """),
        constants={"/clip.projector_type": projector},
        finish=_finish,
        rebuild=_rebuild,
    )


def _break(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """The vector of the token that ends a row of patches, which the text model's table has."""
    token = _token(folder, "[IMG_BREAK]")
    table = next((t for name, t in folder.tensors.items() if name.endswith("embed_tokens.weight")), None)
    if token is None or table is None or not 0 < token < table.shape[0]:
        return ()
    return (take(table, token, 1, (table.shape[1],)).renamed("v.token_embd.img_break"),)


def _token(folder: Checkpoint, text: str) -> int | None:
    """The number of an added token, by tokenizer_config.json or tokenizer.json."""
    said: list[tuple[Any, Any]] = []
    for name in ("tokenizer_config.json", "tokenizer.json"):
        try:
            found = json.loads(folder.file(name) or b"{}")
        except (ValueError, RecursionError):
            continue
        decoder = found.get("added_tokens_decoder") if isinstance(found, dict) else None
        added = found.get("added_tokens") if isinstance(found, dict) else None
        said += [(i, t) for i, t in decoder.items()] if isinstance(decoder, dict) else []
        said += [(t.get("id"), t) for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    those = (i for i, token in said if isinstance(token, dict) and token.get("content") == text)
    return next((int(i) for i in those if str(i).isdecimal()), None)


_MERGED = (
    *norm("mm.input_norm", _PROJECTOR + "norm", bias=False),
    row(
        "mm.patch_merger.weight",
        _PROJECTOR + "patch_merger.merging_layer.weight",
        "n_embd, n_embd * merge * merge",
    ),
)
_STARTS = ("vision_tower.", "multi_modal_projector.")
_INSIDE = ((r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),)


def _is_pixtral(config: Mapping[str, Any]) -> bool:
    seen = config.get("vision_config")
    return isinstance(seen, Mapping) and seen.get("model_type") == "pixtral"


MISTRAL3 = Tower(
    "pixtral",
    ("Mistral3ForConditionalGeneration",),
    "mistral3",
    (Side(_table("pixtral", *_MERGED), "vision_config", made=_break),),
    starts=_STARTS,
    spellings=_INSIDE,
    told="mm.patch_merger.weight",
    fits=_is_pixtral,
)
PIXTRAL = dataclasses.replace(
    MISTRAL3,
    classes=("LlavaForConditionalGeneration",),
    model_type="llava",
    sides=(Side(_table("pixtral"), "vision_config", made=_break),),
    told="!mm.patch_merger.weight",
)
LIGHTON = Tower(
    "lightonocr",
    ("LightOnOCRForConditionalGeneration", "LightOnOcrForConditionalGeneration"),
    "lighton_ocr",
    (Side(_table("lightonocr", *_MERGED), "vision_config"),),
    starts=_STARTS,
    spellings=((r"^model\.vision_encoder\.", "vision_tower."), (r"^model\.vision_projection\.", _PROJECTOR)),
    text=(("model.", "model.language_model."),),
    written=(("vision_tower.", "model.vision_encoder."), (_PROJECTOR, "model.vision_projection.")),
)

TOWERS = (MISTRAL3, PIXTRAL, LIGHTON)
