"""The towers of DeepSeek-OCR and what followed it: SAM's encoder before CLIP's, or before a Qwen2 that looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims, Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import linear, norm, vision

_SAM = "model.sam_model."
_SAM_LAYERS = 32
"""As many layers as the largest SAM has; DeepSeek's has 12."""
_WIDTH, _HEADS = "n_sam", "n_sam_head"


def _sam_layer(i: int) -> tuple[Any, ...]:
    """Rows of a layer, which are of no other tower's layer: some see windows, some all, by their own tables."""
    at, hf, there = f"v.sam.blk.{i}.", f"{_SAM}blocks.{i}.", f"n_sam_layer > {i}"
    each = f"{_WIDTH} // {_HEADS}"
    return (
        *norm(at + "pre_ln", hf + "norm1", _WIDTH, when=there),
        row(at + "attn.pos_h.weight", hf + "attn.rel_pos_h", f"n_high_{i}, {each}", when=there),
        row(at + "attn.pos_w.weight", hf + "attn.rel_pos_w", f"n_wide_{i}, {each}", when=there),
        *linear(at + "attn.qkv", hf + "attn.qkv", f"3 * {_WIDTH}", _WIDTH, when=there),
        *linear(at + "attn.out", hf + "attn.proj", _WIDTH, _WIDTH, when=there),
        *norm(at + "post_ln", hf + "norm2", _WIDTH, when=there),
        *linear(at + "mlp.lin1", hf + "mlp.lin1", "n_sam_ff", _WIDTH, when=there),
        *linear(at + "mlp.lin2", hf + "mlp.lin2", _WIDTH, "n_sam_ff", when=there),
    )


_SAM_ROWS = (
    row("v.sam.pos_embd.weight", _SAM + "pos_embed", f"1, n_sam_high, n_sam_wide, {_WIDTH}"),
    row("v.sam.patch_embd.weight", _SAM + "patch_embed.proj.weight", f"{_WIDTH}, 3, n_sam_patch, n_sam_patch"),
    row("v.sam.patch_embd.bias", _SAM + "patch_embed.proj.bias", _WIDTH),
    *(one for i in range(_SAM_LAYERS) for one in _sam_layer(i)),
    row("v.sam.neck.0.weight", _SAM + "neck.0.weight", f"n_neck, {_WIDTH}, 1, 1"),
    *norm("v.sam.neck.1", _SAM + "neck.1", "n_neck"),
    row("v.sam.neck.2.weight", _SAM + "neck.2.weight", "n_neck, n_neck, 3, 3"),
    *norm("v.sam.neck.3", _SAM + "neck.3", "n_neck"),
    row("v.sam.net_2.weight", _SAM + "net_2.weight", "n_net, n_neck, 3, 3"),
    row("v.sam.net_3.weight", _SAM + "net_3.weight", "n_net_3, n_net, 3, 3"),
)
_SIZES = {
    "n_sam_high": ("v.sam.pos_embd.weight", -3),
    "n_sam_wide": ("v.sam.pos_embd.weight", -2),
    "n_sam_patch": ("v.sam.patch_embd.weight", 2),
    "n_sam_ff": ("v.sam.blk.0.mlp.lin1.weight", 0),
    "n_neck": ("v.sam.neck.0.weight", 0),
    "n_net": ("v.sam.net_2.weight", 0),
    "n_net_3": ("v.sam.net_3.weight", 0),
    "n_flat": ("mm.model.fc.weight", 1),
    **{f"n_high_{i}": (f"v.sam.blk.{i}.attn.pos_h.weight", 0) for i in range(_SAM_LAYERS)},
    **{f"n_wide_{i}": (f"v.sam.blk.{i}.attn.pos_w.weight", 0) for i in range(_SAM_LAYERS)},
}
_ENDS = (
    *linear("mm.model.fc", "model.projector.layers", "n_proj", "n_flat", bias="?"),
    row("v.image_newline", "model.image_newline", "n_proj", optional=True),
    row("v.view_seperator", "model.view_seperator", "1, n_proj", Reshape(hf=("n_proj",), gguf=(1, "n_proj"))),
)
_SAM_KEYS = keys("""
    sam.block_count         u32   width.sam_vit_b.layers    12
    sam.embedding_length    u32   width.sam_vit_b.width     768
    sam.head_count          u32   width.sam_vit_b.heads     12
    window_size             u32   window_size               14
""")
_TILES = {"UnlimitedOCRForCausalLM": 32, "DeepseekOCR2ForCausalLM": 6}


def _tiled(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Into how many tiles a picture may be cut, and the averaging that small test models have."""
    classes = config["outer"].get("architectures") or [""]
    own["preproc_min_tiles"] = np.uint32(2)
    own["preproc_max_tiles"] = np.uint32(_TILES.get(classes[0], 9))
    tokens = config["processor"].get("image_seq_length", 256)
    factor = (dims["image"] // max(1, dims["patch"])) // max(1, int(tokens**0.5))
    if factor > 0 and factor != 4:
        own["projector.scale_factor"] = np.uint32(factor)


def _tiled_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    factor = int(own.get("projector.scale_factor", 4))
    side = max(1, dims["image"] // max(1, dims["patch"]) // max(1, factor))
    config.setdefault("processor", {})["image_seq_length"] = side * side
    config.update(model_type="vision")


_CLIP = "width.clip-l-14-224."
_EYE = "model.vision_model."
_LAYER = _EYE + "transformer.layers.{i}."
_AT = "v.blk.{i}."

_OCR_SIDE = Side(
    vision(
        (
            row("v.class_embd", _EYE + "embeddings.class_embedding", "n_embd"),
            row("v.patch_embd.weight", _EYE + "embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
            row("v.position_embd.weight", _EYE + "embeddings.position_embedding.weight", "n_places, n_embd"),
            *norm("v.pre_ln", _EYE + "pre_layrnorm"),
            *norm(_AT + "ln1", _LAYER + "layer_norm1"),
            *linear(_AT + "attn_qkv", _LAYER + "self_attn.qkv_proj", "3 * n_embd", "n_embd"),
            *linear(_AT + "attn_out", _LAYER + "self_attn.out_proj", "n_embd", "n_embd"),
            *norm(_AT + "ln2", _LAYER + "layer_norm2"),
            *linear(_AT + "ffn_up", _LAYER + "mlp.fc1", "n_mid", "n_embd"),
            *linear(_AT + "ffn_down", _LAYER + "mlp.fc2", "n_embd", "n_mid"),
            *_SAM_ROWS,
            *_ENDS,
        ),
        keys=(
            *keys(f"""
                image_size                      u32   {_CLIP}image_size|image_size    224
                patch_size                      u32   {_CLIP}patch_size|patch_size    14
                embedding_length                u32   {_CLIP}width                    1024
                feed_forward_length             u32   -
                block_count                     u32   {_CLIP}layers                   24
                attention.head_count            u32   {_CLIP}heads                    16
                projection_dim                  u32   text.hidden_size
            """),
            *_SAM_KEYS,
        ),
        constants={"/clip.projector_type": "deepseekocr", "/clip.use_gelu": True},
        finish=lambda own, config, dims: _clip(own, config, dims),
        rebuild=_tiled_back,
    ),
    "vision_config",
    _SIZES | {"n_mid": ("v.blk.0.ffn_up.weight", 0), "n_places": ("v.position_embd.weight", 0)},
)


def _clip(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["feed_forward_length"] = np.uint32(4 * dims["n_head"])  # what llama.cpp's converter writes; nobody reads it
    _tiled(own, config, dims)


DEEPSEEK_OCR = Tower(
    "deepseekocr",
    ("DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM"),
    "deepseek_vl_v2",
    (_OCR_SIDE,),
    starts=(_SAM, _EYE, "model.projector.", "model.image_newline", "model.view_seperator"),
    text=(),
    flat=True,
)

_QWEN = "model.qwen2_model.model.model.layers.{i}."
_KV = "n_head_kv * (n_embd // n_head)"
DEEPSEEK_OCR2 = dataclasses.replace(
    DEEPSEEK_OCR,
    projector="deepseekocr2",
    classes=("DeepseekOCR2ForCausalLM",),
    sides=(
        Side(
            vision(
                (
                    *norm(_AT + "ln1", _QWEN + "input_layernorm", bias=False),
                    *linear(_AT + "attn_q", _QWEN + "self_attn.q_proj", "n_embd", "n_embd"),
                    *linear(_AT + "attn_k", _QWEN + "self_attn.k_proj", _KV, "n_embd"),
                    *linear(_AT + "attn_v", _QWEN + "self_attn.v_proj", _KV, "n_embd"),
                    *linear(_AT + "attn_out", _QWEN + "self_attn.o_proj", "n_embd", "n_embd", bias=False),
                    *norm(_AT + "ln2", _QWEN + "post_attention_layernorm", bias=False),
                    *linear(_AT + "ffn_gate", _QWEN + "mlp.gate_proj", "n_mid", "n_embd", bias=False),
                    *linear(_AT + "ffn_up", _QWEN + "mlp.up_proj", "n_mid", "n_embd", bias=False),
                    *linear(_AT + "ffn_down", _QWEN + "mlp.down_proj", "n_embd", "n_mid", bias=False),
                    *norm("v.post_ln", "model.qwen2_model.model.model.norm", bias=False),
                    row("v.resample_query_768.weight", "model.qwen2_model.query_768.weight", "n_few, n_embd"),
                    row("v.resample_query_1024.weight", "model.qwen2_model.query_1024.weight", "n_many, n_embd"),
                    *_SAM_ROWS,
                    *_ENDS,
                ),
                keys=(
                    *keys("""
                        image_size                      u32   image_size                1024
                        patch_size                      u32   patch_size                16
                        embedding_length                u32   width.qwen2-0-5b.dim      896
                        feed_forward_length             u32   intermediate_size         4864
                        block_count                     u32   layers                    24
                        attention.head_count            u32   num_attention_heads       14
                        attention.head_count_kv         u32   -                         2
                        projection_dim                  u32   text.hidden_size
                    """),
                    *_SAM_KEYS,
                ),
                constants={"/clip.projector_type": "deepseekocr2", "/clip.use_gelu": True},
                finish=_tiled,
                rebuild=_tiled_back,
            ),
            "vision_config",
            _SIZES
            | {
                "n_mid": ("v.blk.0.ffn_up.weight", 0),
                "n_few": ("v.resample_query_768.weight", 0),
                "n_many": ("v.resample_query_1024.weight", 0),
            },
        ),
    ),
    starts=(*DEEPSEEK_OCR.starts, "model.qwen2_model."),
)

TOWERS = (DEEPSEEK_OCR, DEEPSEEK_OCR2)
