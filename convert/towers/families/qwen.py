"""The towers of Qwen2-VL, 2.5-VL, 3-VL and 3.5: two pictures of a film at once, vectors of four patches each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, Key, keys, row
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import CONV3D, act_keys, linear, norm, split_qkv, vision
from llmconv.errors import Unsupported

BLOCK = "visual.blocks.{i}."
_AT = "v.blk.{i}."
SIZES = {"n_mid": ("v.blk.0.ffn_up.weight", 0), "n_four": ("mm.0.weight", 0)}
SEEN = ((r"^(?:model|thinker)\.visual\.", "visual."),)
_TEXT = (("model.language_model.", "model."),)
INSIDE = (("model.language_model.", "model.language_model."), ("model.", "model.language_model."))
WRITTEN = (("visual.", "model.visual."),)


def merger(first: str, second: str) -> tuple[Any, ...]:
    return (*linear("mm.0", first, "n_four", "n_four"), *linear("mm.2", second, "n_proj", "n_four"))


KEYS = keys("""
    image_size                      u32   image_size                560
    patch_size                      u32   patch_size                14
    embedding_length                u32   embed_dim|hidden_size
    feed_forward_length             u32   intermediate_size|hidden_size
    block_count                     u32   depth|num_hidden_layers
    attention.head_count            u32   num_heads|num_attention_heads
    attention.layer_norm_epsilon    f32   outer.rms_norm_eps        1e-6
""")

_QWEN2 = vision(
    (
        CONV3D,
        *norm(_AT + "ln1", BLOCK + "norm1"),
        *split_qkv(_AT, BLOCK + "attn.qkv"),
        *linear(_AT + "attn_out", BLOCK + "attn.proj", "n_embd", "n_embd"),
        *norm(_AT + "ln2", BLOCK + "norm2"),
        *linear(_AT + "ffn_up", BLOCK + "mlp.fc1", "n_mid", "n_embd"),
        *linear(_AT + "ffn_down", BLOCK + "mlp.fc2", "n_embd", "n_mid"),
        *norm("v.post_ln", "visual.merger.ln_q"),
        *merger("visual.merger.mlp.0", "visual.merger.mlp.2"),
    ),
    keys=KEYS,
    constants={"/clip.projector_type": "qwen2vl_merger"},
    rebuild=lambda config, own, dims: config.update(
        model_type="qwen2_vl", hidden_size=int(own["feed_forward_length"]), intermediate_size=None
    ),
)


def windows(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Every n-th layer sees the whole picture."""
    full = list(config["fullatt_block_indexes"])
    every = full[0] + 1
    if any(b - a != every for a, b in itertools.pairwise(full)):
        raise Unsupported(f"config.json: fullatt_block_indexes is {full!r:.60}, expected every n-th layer")
    own["n_wa_pattern"] = np.uint32(every)


def _windows_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    every = int(own.get("n_wa_pattern", 8))
    config.update(
        model_type="qwen2_5_vl",
        hidden_size=config.pop("embed_dim"),
        fullatt_block_indexes=list(range(every - 1, dims["n_layer"], every)),
        out_hidden_size=dims["n_proj"],
    )


def qwen25(projector: str) -> Architecture:
    return vision(
        (
            CONV3D,
            *norm(_AT + "ln1", BLOCK + "norm1", bias=False),
            *split_qkv(_AT, BLOCK + "attn.qkv"),
            *linear(_AT + "attn_out", BLOCK + "attn.proj", "n_embd", "n_embd"),
            *norm(_AT + "ln2", BLOCK + "norm2", bias=False),
            *linear(_AT + "ffn_gate", BLOCK + "mlp.gate_proj", "n_ff", "n_embd"),
            *linear(_AT + "ffn_up", BLOCK + "mlp.up_proj", "n_ff", "n_embd"),
            *linear(_AT + "ffn_down", BLOCK + "mlp.down_proj", "n_embd", "n_ff"),
            *norm("v.post_ln", "visual.merger.ln_q", bias=False),
            *merger("visual.merger.mlp.0", "visual.merger.mlp.2"),
        ),
        keys=KEYS,
        constants={"/clip.projector_type": projector, "/clip.use_silu": True},
        finish=windows,
        rebuild=_windows_back,
    )


def _deep(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The picture's size, and which layers' results the text model takes besides the last one's."""
    if own.get("image_size") is None:
        places = int(config.get("num_position_embeddings", 2304))
        own["image_size"] = np.uint32(int(math.sqrt(places) * dims["patch"]))
    merge = config.get("spatial_merge_size")
    if merge is not None:
        own["spatial_merge_size"] = np.uint32(merge)
    deep = list(config.get("deepstack_visual_indexes") or [])
    own["is_deepstack_layers"] = np.array([i in deep for i in range(dims["n_layer"])], np.bool_)


def _deep_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    side = int(own.get("image_size", 768)) // max(1, dims["patch"])
    config.update(
        model_type="qwen3_vl",
        hidden_size=config.pop("embed_dim"),
        num_position_embeddings=side * side,
        spatial_merge_size=int(own.get("spatial_merge_size", 2)),
        out_hidden_size=dims["n_proj"],
        deepstack_visual_indexes=[i for i, deep in enumerate(own.get("is_deepstack_layers", ())) if deep],
    )


QWEN3 = vision(
    (
        CONV3D,
        row("v.patch_embd.bias", "visual.patch_embed.proj.bias", "n_embd"),
        row("v.position_embd.weight", "visual.pos_embed.weight", "n_places, n_embd"),
        *norm(_AT + "ln1", BLOCK + "norm1"),
        *linear(_AT + "attn_qkv", BLOCK + "attn.qkv", "3 * n_embd", "n_embd"),
        *linear(_AT + "attn_out", BLOCK + "attn.proj", "n_embd", "n_embd"),
        *norm(_AT + "ln2", BLOCK + "norm2"),
        *linear(_AT + "ffn_up", BLOCK + "mlp.linear_fc1", "n_ff", "n_embd"),
        *linear(_AT + "ffn_down", BLOCK + "mlp.linear_fc2", "n_embd", "n_ff"),
        *norm("v.post_ln", "visual.merger.norm"),
        *merger("visual.merger.linear_fc1", "visual.merger.linear_fc2"),
        *norm("v.deepstack.{i}.norm", "visual.deepstack_merger_list.{d}.norm", "n_four", when="deep"),
        *linear("v.deepstack.{i}.fc1", "visual.deepstack_merger_list.{d}.linear_fc1", "n_four", "n_four", when="deep"),
        *linear("v.deepstack.{i}.fc2", "visual.deepstack_merger_list.{d}.linear_fc2", "n_proj", "n_four", when="deep"),
    ),
    keys=(
        *(key for key in KEYS if key.gguf not in ("image_size", "attention.layer_norm_epsilon")),
        *keys("image_size  u32  image_size"),
        Key(
            "attention.layer_norm_epsilon",
            ("outer.text_config.rms_norm_eps", "outer.thinker_config.text_config.rms_norm_eps"),
            "f32",
            1e-6,
        ),
    ),
    constants={"/clip.projector_type": "qwen3vl_merger", "/clip.use_gelu": True},
    finish=_deep,
    rebuild=_deep_back,
)


def _acts(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    act_keys(own, config, "silu")


def _glm_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(
        model_type="glm4v_vision",
        hidden_size=config.pop("embed_dim"),
        hidden_act="silu",
        out_hidden_size=dims["n_proj"],
    )


GLM = vision(
    (
        CONV3D,
        row("v.patch_embd.bias", "visual.patch_embed.proj.bias", "n_embd"),
        row("v.position_embd.weight", "visual.embeddings.position_embedding.weight", "n_places, n_embd", optional=True),
        *norm("v.norm_embd", "visual.post_conv_layernorm", bias=False, optional=True),
        *norm(_AT + "ln1", BLOCK + "norm1", bias=False),
        *linear(_AT + "attn_qkv", BLOCK + "attn.qkv", "3 * n_embd", "n_embd", bias="?"),
        *norm(_AT + "attn_q_norm", BLOCK + "attn.q_norm", "n_embd // n_head", bias=False, optional=True),
        *norm(_AT + "attn_k_norm", BLOCK + "attn.k_norm", "n_embd // n_head", bias=False, optional=True),
        *linear(_AT + "attn_out", BLOCK + "attn.proj", "n_embd", "n_embd", bias="?"),
        *norm(_AT + "ln2", BLOCK + "norm2", bias=False),
        *linear(_AT + "ffn_gate", BLOCK + "mlp.gate_proj", "n_mid", "n_embd", bias="?"),
        *linear(_AT + "ffn_up", BLOCK + "mlp.up_proj", "n_mid", "n_embd", bias="?"),
        *linear(_AT + "ffn_down", BLOCK + "mlp.down_proj", "n_embd", "n_mid", bias="?"),
        *norm("v.post_ln", "visual.post_layernorm", bias=False),
        row("mm.patch_merger.weight", "visual.downsample.weight", "n_proj, n_embd, n_side, n_side"),
        row("mm.patch_merger.bias", "visual.downsample.bias", "n_proj"),
        row("mm.model.fc.weight", "visual.merger.proj.weight", "n_proj, n_proj"),
        *norm("mm.post_norm", "visual.merger.post_projection_norm", "n_proj"),
        *linear("mm.gate", "visual.merger.gate_proj", "n_wide", "n_proj", bias=False),
        *linear("mm.up", "visual.merger.up_proj", "n_wide", "n_proj", bias=False),
        *linear("mm.down", "visual.merger.down_proj", "n_proj", "n_wide", bias=False),
    ),
    keys=(
        *(key for key in KEYS if key.gguf not in ("image_size", "attention.layer_norm_epsilon")),
        *keys("""
            image_size                      u32   image_size     336
            attention.layer_norm_epsilon    f32   rms_norm_eps   1e-5
        """),
    ),
    constants={"/clip.projector_type": "glm4v"},
    finish=_acts,
    rebuild=_glm_back,
)
GLM_SIZES = {
    "n_mid": ("v.blk.0.ffn_up.weight", 0),
    "n_places": ("v.position_embd.weight", 0),
    "n_side": ("mm.patch_merger.weight", 2),
    "n_wide": ("mm.up.weight", 0),
}

QWEN2_VL = Tower(
    "qwen2vl_merger",
    ("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Sarashina2VisionForCausalLM"),
    "qwen2_vl",
    (Side(_QWEN2, "vision_config", SIZES),),
    starts=("visual.",),
    spellings=SEEN,
    text=_TEXT,
    flat=True,
)
QWEN25_VL = Tower(
    "qwen2.5vl_merger",
    ("Qwen2_5_VLForConditionalGeneration",),
    "qwen2_5_vl",
    (Side(qwen25("qwen2.5vl_merger"), "vision_config", SIZES),),
    starts=("visual.",),
    spellings=SEEN,
    text=_TEXT,
    flat=True,
)
QWEN3_VL = Tower(
    "qwen3vl_merger",
    (
        *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
        *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
        "Qwen4ExpForConditionalGeneration",
    ),
    "qwen3_vl",
    (Side(QWEN3, "vision_config", SIZES | {"n_places": ("v.position_embd.weight", 0)}),),
    starts=("visual.",),
    spellings=SEEN,
    text=INSIDE,
    written=WRITTEN,
    told="!mm.a.mlp.1.weight",
)
GLM4V = Tower(
    "glm4v",
    ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "GlmOcrForConditionalGeneration"),
    "glm4v",
    (Side(GLM, "vision_config", GLM_SIZES),),
    starts=("visual.",),
    spellings=SEEN,
    text=INSIDE,
    written=WRITTEN,
)

TOWERS = (QWEN2_VL, QWEN25_VL, QWEN3_VL, GLM4V)
