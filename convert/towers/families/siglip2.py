"""Towers made of SigLIP 2 and of what is like it: MiniCPM-V 4.6, Youtu-VL, Phi-4 Vision; Step 3's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import keys, row
from llmconv.convert.tables.ops import Dims, Reshape, SwapColumns
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import act_keys, block, linear, norm, vision
from llmconv.errors import Unsupported

_AT = "v.blk.{i}."
_MERGES = "model.vision_tower.vit_merger."
_VIT = "model.vision_tower."


def _sliced(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """A slice's size, how many patches a side are one vector, and behind which layer four become one."""
    said = config["processor"]
    mode = said.get("downsample_mode", "16x")
    if mode not in ("4x", "16x"):
        raise Unsupported(f"preprocessor_config.json: downsample_mode is {mode!r:.40}, expected '4x' or '16x'")
    if said.get("scale_resolution") is not None:
        own["image_size"] = np.uint32(int(said["scale_resolution"]))
    own["projector.scale_factor"] = np.uint32(2 if mode == "4x" else 4)
    at = config["outer"].get("insert_layer_id", config.get("insert_layer_id", 6))
    own["wa_layer_indexes"] = np.array([int(at)], np.int32)


def _sliced_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    places = math.isqrt(dims["n_places"]) * max(1, dims["patch"])
    said = config.setdefault("processor", {})
    said["scale_resolution"] = int(own.get("image_size", 448))
    said["downsample_mode"] = "4x" if own.get("projector.scale_factor") == 2 else "16x"
    config["outer"] = {"insert_layer_id": int(next(iter(own.get("wa_layer_indexes", ())), 6))}
    config.update(image_size=places, model_type="minicpmv4_6_vision")


_MID = "scale == 4"
MINICPM_V = Tower(
    "minicpmv4_6",
    ("MiniCPMV4_6ForConditionalGeneration",),
    "minicpmv4_6",
    (
        Side(
            vision(
                (
                    row("v.patch_embd.weight", _VIT + "embeddings.patch_embedding.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", _VIT + "embeddings.patch_embedding.bias", "n_embd"),
                    row("v.position_embd.weight", _VIT + "embeddings.position_embedding.weight", "n_places, n_embd"),
                    *block(_VIT + "encoder.layers.{i}."),
                    *norm("v.vit_merger.ln1", _MERGES + "layer_norm1", when=_MID),
                    *linear("v.vit_merger.attn_q", _MERGES + "self_attn.q_proj", "n_embd", "n_embd", when=_MID),
                    *linear("v.vit_merger.attn_k", _MERGES + "self_attn.k_proj", "n_embd", "n_embd", when=_MID),
                    *linear("v.vit_merger.attn_v", _MERGES + "self_attn.v_proj", "n_embd", "n_embd", when=_MID),
                    *linear("v.vit_merger.attn_out", _MERGES + "self_attn.out_proj", "n_embd", "n_embd", when=_MID),
                    *norm("v.vit_merger.ds_ln", _MERGES + "pre_norm", "4 * n_embd", when=_MID),
                    *linear("v.vit_merger.ds_ffn_up", _MERGES + "linear_1", "n_window", "4 * n_embd", when=_MID),
                    *linear("v.vit_merger.ds_ffn_down", _MERGES + "linear_2", "n_embd", "n_window", when=_MID),
                    *norm("v.post_ln", _VIT + "post_layernorm"),
                    *norm("mm.input_norm", "model.merger.mlp.0.pre_norm", "n_four"),
                    *linear("mm.up", "model.merger.mlp.0.linear_1", "n_mid", "n_four"),
                    *linear("mm.down", "model.merger.mlp.0.linear_2", "n_proj", "n_mid"),
                ),
                constants={"/clip.projector_type": "minicpmv4_6", "/clip.use_gelu": True},
                finish=_sliced,
                rebuild=_sliced_back,
            ),
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 0),
                "n_window": ("v.vit_merger.ds_ffn_up.weight", 0),
                "n_four": ("mm.up.weight", 1),
                "n_mid": ("mm.up.weight", 0),
            },
        ),
    ),
    starts=(_VIT, "model.merger."),
    kept=(_MERGES.replace(".", r"\.") + r".*",),
    text=(("model.", "model.language_model."),),
)

_SIGLIP2 = "siglip2.vision_model."


def _windows(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """Which layers see the whole picture, and the others' windows."""
    act_keys(own, {"hidden_act": str(config.get("hidden_act", "gelu_pytorch_tanh")).lower()}, "gelu")
    if config.get("fullatt_block_indexes") is None:
        raise Unsupported("config.json: vision_config has no fullatt_block_indexes, which Youtu-VL's tower needs")
    own["wa_layer_indexes"] = np.array([int(i) for i in config["fullatt_block_indexes"]], np.int32)


def _windows_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(
        model_type="siglip2_vision_model",
        hidden_act="silu" if own.get("/clip.use_silu") else "gelu_pytorch_tanh",
        fullatt_block_indexes=[int(i) for i in own.get("wa_layer_indexes", ())],
    )


YOUTU_VL = Tower(
    "youtuvl",
    ("YoutuVLForConditionalGeneration",),
    "youtu_vl",
    (
        Side(
            vision(
                (
                    row(
                        "v.patch_embd.weight",
                        _SIGLIP2 + "embeddings.patch_embedding.weight",
                        "n_embd, 3 * patch * patch",
                    ),
                    row("v.patch_embd.bias", _SIGLIP2 + "embeddings.patch_embedding.bias", "n_embd"),
                    *block(_SIGLIP2 + "encoder.layers.{i}."),
                    *norm("v.post_ln", _SIGLIP2 + "post_layernorm"),
                    *norm("mm.input_norm", "merger.ln_q", bias=False),
                    *linear("mm.0", "merger.mlp.0", "n_four", "n_four"),
                    *linear("mm.2", "merger.mlp.2", "n_proj", "n_four"),
                ),
                keys=keys("""
                    image_size             u32   image_size            560
                    spatial_merge_size     u32   spatial_merge_size    2
                    window_size            u32   window_size
                """),
                constants={"/clip.projector_type": "youtuvl"},
                finish=_windows,
                rebuild=_windows_back,
            ),
            "vision_config",
            {"n_four": ("mm.0.weight", 0)},
        ),
    ),
    starts=("siglip2.", "merger."),
    text=(),
    flat=True,
)

_TOWER = "vision_tower.vision_model."


def _phi(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    """The last layer but one is what the text model sees; a picture's size is that of the table of positions."""
    said, outer = config["processor"], config["outer"]
    if not isinstance(said.get("patch_size"), int):
        raise Unsupported("preprocessor_config.json has no patch_size, which Phi-4's tower needs")
    own["patch_size"] = np.uint32(said["patch_size"])
    own["block_count"] = np.uint32(max(1, int(own["block_count"]) - 1))
    table = next((s for n, s in config["shapes"].items() if n.endswith("embeddings.position_embedding.weight")), (0,))
    own["image_size"] = np.uint32(math.isqrt(table[0]) * said["patch_size"])
    for key, name in (("image_min_pixels", "min_num_patches"), ("image_max_pixels", "max_num_patches")):
        patches = said.get(name, outer.get(name))
        if patches is None:
            raise Unsupported(f"preprocessor_config.json has no {name}, which Phi-4's tower needs")
        own[key] = np.uint32(int(patches) * said["patch_size"] ** 2)


def _phi_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    area = max(1, dims["patch"] * dims["patch"])
    said = config.setdefault("processor", {})
    said |= {
        "patch_size": dims["patch"],
        "min_num_patches": int(own.get("image_min_pixels", 0)) // area,
        "max_num_patches": int(own.get("image_max_pixels", 0)) // area,
    }
    config.update(model_type="siglip2_vision_model", num_hidden_layers=dims["n_layer"] + 1)


PHI4 = Tower(
    "phi4",
    ("Phi4ForCausalLMV",),
    "phi4-siglip",
    (
        Side(
            vision(
                (
                    row(
                        "v.patch_embd.weight",
                        _TOWER + "embeddings.patch_embedding.weight",
                        "n_embd, 3, patch, patch",
                        SwapColumns("patch * patch", 3, 1),
                        Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
                    ),
                    row("v.patch_embd.bias", _TOWER + "embeddings.patch_embedding.bias", "n_embd"),
                    row("v.position_embd.weight", _TOWER + "embeddings.position_embedding.weight", "n_places, n_embd"),
                    *block(_TOWER + "encoder.layers.{i}."),
                    *linear("mm.0", "mm_projector.0", "n_mid", "n_embd"),
                    *linear("mm.2", "mm_projector.2", "n_proj", "n_mid"),
                ),
                keys=keys("""
                    image_size          u32   -
                    patch_size          u32   -
                    embedding_length    u32   hidden_size         1152
                    feed_forward_length u32   intermediate_size   4304
                    block_count         u32   num_hidden_layers   27
                    attention.head_count u32  num_attention_heads 16
                """),
                constants={"/clip.projector_type": "phi4", "/clip.use_gelu": True},
                finish=_phi,
                rebuild=_phi_back,
            ),
            "vision_config",
            {"n_places": ("v.position_embd.weight", 0), "n_mid": ("mm.0.weight", 0)},
        ),
    ),
    starts=("vision_tower.", "mm_projector."),
    spellings=(
        (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
        (r"^model\.mm_projector\.", "mm_projector."),
    ),
    kept=(r"vision_tower\.vision_model\.(?:head|post_layernorm|encoder\.layers\.\d+)\..*",),
    text=(),
    written=(("vision_tower.", "model.vision_tower.vision_tower."), ("mm_projector.", "model.mm_projector.")),
    flat=True,
)

_LAYER = "vision_model.transformer.resblocks.{i}."


def _step(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if own.get("feed_forward_length") is None:
        own["feed_forward_length"] = np.uint32(round(dims["n_embd"] * float(config.get("mlp_ratio", 8960 / 1536))))
    stride = int(config["outer"].get("understand_projector_stride", 2))
    own["projector.scale_factor"] = np.uint32(stride * stride)
    for name, usual in (("image_mean", _MEAN), ("image_std", _STD)):
        if name not in own:
            own[name] = np.array(usual, np.float32)


def _step_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.update(mlp_ratio=dims["n_ff"] / max(1, dims["n_embd"]))
    config["outer"] = {"understand_projector_stride": math.isqrt(int(own.get("projector.scale_factor", 4)))}


_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which a folder without preprocessor_config.json means."""

STEP3 = Tower(
    "step3vl",
    ("StepVLForConditionalGeneration", "Step3p7ForConditionalGeneration"),
    "step_robotics",
    (
        Side(
            vision(
                (
                    row("v.patch_embd.weight", "vision_model.conv1.weight", "n_embd, 3, patch, patch"),
                    row("v.patch_embd.bias", "vision_model.conv1.bias", "n_embd", optional=True),
                    row("v.position_embd.weight", "vision_model.positional_embedding", "n_places, n_embd"),
                    *norm("v.pre_ln", "vision_model.ln_pre"),
                    *norm(_AT + "ln1", _LAYER + "ln_1"),
                    row(_AT + "attn_qkv.weight", _LAYER + "attn.in_proj_weight", "3 * n_embd, n_embd"),
                    row(_AT + "attn_qkv.bias", _LAYER + "attn.in_proj_bias", "3 * n_embd"),
                    *linear(_AT + "attn_out", _LAYER + "attn.out_proj", "n_embd", "n_embd"),
                    row(_AT + "ls1.weight", _LAYER + "ls_1.gamma", "n_embd"),
                    *norm(_AT + "ln2", _LAYER + "ln_2"),
                    *linear(_AT + "ffn_up", _LAYER + "mlp.c_fc", "n_ff", "n_embd"),
                    *linear(_AT + "ffn_down", _LAYER + "mlp.c_proj", "n_embd", "n_ff"),
                    row(_AT + "ls2.weight", _LAYER + "ls_2.gamma", "n_embd"),
                    *linear("mm.0", "vision_model.vit_downsampler1", "n_mid", "n_embd, 3, 3"),
                    *linear("mm.1", "vision_model.vit_downsampler2", "n_wide", "n_mid, 3, 3"),
                    row("mm.model.fc.weight", "vit_large_projector.weight", "n_proj, n_wide"),
                ),
                keys=keys("""
                    image_size                      u32   image_size            728
                    patch_size                      u32   patch_size            14
                    embedding_length                u32   hidden_size|width     1536
                    feed_forward_length             u32   intermediate_size
                    block_count                     u32   num_hidden_layers|layers      47
                    attention.head_count            u32   num_attention_heads|heads     16
                    attention.layer_norm_epsilon    f32   layer_norm_eps        1e-5
                    preproc_image_size              u32   -                     3024
                """),
                constants={"/clip.projector_type": "step3vl"},
                finish=_step,
                rebuild=_step_back,
            ),
            "vision_config",
            {
                "n_places": ("v.position_embd.weight", 0),
                "n_mid": ("mm.0.weight", 0),
                "n_wide": ("mm.1.weight", 0),
            },
        ),
    ),
    starts=("vision_model.", "vit_large_projector."),
    text=(),
    flat=True,
)

TOWERS = (MINICPM_V, YOUTU_VL, PHI4, STEP3)
