"""Image models as ComfyUI-GGUF has them: which model the names are of, and how its tool lays tensors out in a GGUF.

Tensors keep their own names.  Vectors, small tensors and some by name are F32, of more than four dimensions too; such
have their shape in `comfy.gguf.orig_shape.NAME`, which its loader reads, and so have those that begin with a dimension
of one, which quantizers drop.  Source: city96/ComfyUI-GGUF, tools/convert.py, loader.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.errors import cut
from llmconv.formats.limits import GGUF_DIMS
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["Found", "find", "shape_keys", "stored_as"]

SHAPE = "comfy.gguf.orig_shape."
_PREFIXES = ("model.diffusion_model.", "model.", "net.")
_SMALL = 1024  # elements
_ROW = 256


@dataclass(frozen=True)
class _Family:
    """arch: its name in GGUF.   marks: names that are all there, in one of several ways.   precise: parts of the names
    of tensors that stay F32.   rearranged: tensors whose rows are no whole superblocks are stored in rows that are."""

    arch: str
    marks: tuple[tuple[str, ...], ...]
    precise: tuple[str, ...] = ()
    rearranged: bool = False


_FAMILIES = (
    _Family(
        "qwen_image",
        (
            (
                "time_text_embed.timestep_embedder.linear_2.weight",
                "transformer_blocks.0.attn.norm_added_q.weight",
                "transformer_blocks.0.img_mlp.net.0.proj.weight",
            ),
        ),
    ),
    _Family("flux", (("double_blocks.0.img_attn.proj.weight",),)),
    _Family("sd3", (("joint_blocks.0.x_block.attn.qkv.weight",),)),
    _Family("aura", (("double_layers.3.modX.1.weight",),)),
    _Family(
        "hidream",
        (("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"),),
        (".ff_i.gate.weight", "img_emb.emb_pos"),
    ),
    _Family(
        "cosmos",
        (("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"),),
        ("pos_embedder",),
    ),
    _Family(
        "ltxv",
        (
            (
                "adaln_single.emb.timestep_embedder.linear_2.weight",
                "transformer_blocks.27.scale_shift_table",
                "caption_projection.linear_2.weight",
            ),
        ),
        ("scale_shift_table",),
    ),
    _Family(
        "hyvid",
        (("double_blocks.0.img_attn_proj.weight", "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight"),),
    ),
    _Family(
        "wan", (("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"),), (".modulation",)
    ),
    _Family(
        "sdxl",
        (
            ("down_blocks.0.downsamplers.0.conv.weight", "add_embedding.linear_1.weight"),
            (
                *("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight"),
                *("output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight"),
            ),
            ("label_emb.0.0.weight",),
        ),
        rearranged=True,
    ),
    _Family(
        "sd1",
        (
            ("down_blocks.0.downsamplers.0.conv.weight",),
            (
                *("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight", "input_blocks.9.0.op.weight"),
                *("output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.weight"),
            ),
        ),
        rearranged=True,
    ),
    _Family("lumina2", (("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),)),
)

_OF_DIFFUSERS = {
    "transformer_blocks.0.attn.norm_added_k.weight": "Flux",
    "transformer_blocks.0.attn.add_q_proj.weight": "SD 3",
    "joint_transformer_blocks.3.ff_context.out_projection.weight": "AuraFlow",
    "condition_embedder.time_embedder.linear_1.weight": "Wan",
    "time_caption_embed.timestep_embedder.linear_1.weight": "Lumina 2",
}
"""Names by which the models are told that diffusers calls otherwise."""


@dataclass(frozen=True)
class Found:
    """family: None for a model under names that ComfyUI-GGUF does not take.   prefix: what stands before all names.
    notes: what somebody who converts it should know."""

    family: _Family | None
    prefix: str = ""
    notes: tuple[str, ...] = ()


def find(names: Collection[str]) -> Found | None:
    """The image model that tensors of these names are of; None for any other model."""
    for prefix in ("", *_PREFIXES):
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)} if prefix else set(names)
        family = next((f for f in _FAMILIES if any(all(m in inner for m in marks) for marks in f.marks)), None)
        if family is None:
            continue
        others = [name for name in names if not name.startswith(prefix)]
        laid_out = (
            f"a {family.arch} model, laid out as ComfyUI-GGUF reads it; it can be quantized and converted back, but "
            "not run here or in llama.cpp"
        )
        if others:
            return Found(family, "", (laid_out, _more(others[0], prefix)))
        return Found(family, prefix, (laid_out,))
    kind = next((kind for mark, kind in _OF_DIFFUSERS.items() if mark in names), None)
    if kind is None:
        return None
    note = (
        f"a {kind} model under diffusers' names, which ComfyUI-GGUF does not take; for it, convert the single file of "
        "the same model"
    )
    return Found(None, "", (note,))


def _more(name: str, prefix: str) -> str:
    return (
        f"beside the diffusion model there are other tensors ({cut(name)}): ComfyUI-GGUF reads {prefix}* alone; "
        "--exclude leaves the others out"
    )


def stored_as(family: _Family, name: str, tensor: Tensor) -> tuple[BlockClass, tuple[int, ...]]:
    """The type and shape in which a tensor is stored."""
    kind = tensor.type
    if kind in (plain.F32, plain.BF16):
        dims = len(tensor.shape)
        precise = any(part in name for part in family.precise)
        if dims == 1 or tensor.n_elements <= _SMALL or precise or dims > GGUF_DIMS:
            kind = plain.F32
    whole = tensor.n_elements >= 2 * _ROW and tensor.n_elements % _ROW == 0
    if family.rearranged and len(tensor.shape) > 1 and whole and tensor.row_len % _ROW:
        return kind, (tensor.n_elements // _ROW, _ROW)
    return kind, tensor.shape


def shape_keys(shapes: Mapping[str, Iterable[int]]) -> dict[str, Any]:
    """The keys by which ComfyUI-GGUF's loader knows shapes that the GGUF's tensors do not have."""
    return {SHAPE + name: np.array(list(shape), np.int32) for name, shape in shapes.items()}
