"""Which block type a tensor of an image model gets: ComfyUI-GGUF's rules, where llama.cpp has no such models.

They are those of its patch of llama-quantize (city96/ComfyUI-GGUF, tools/lcpp.patch): matrices alone, none of those at
a model's ends, more bits for values, for queries, keys and values in one, and for what goes down; float16 where a row
is not whole blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KEPT", "fallback", "kept", "preferred", "role_of"]

_FLUX = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
_UNET = (
    *("class_embedding.", "time_embedding.", "add_embedding.", "time_embed.", "label_emb.", "conv_in.", "conv_out."),
    *("=input_blocks.0.0.weight", "=out.2.weight"),
)
KEPT: Mapping[str, tuple[str, ...]] = {
    "flux": _FLUX,
    "hyvid": _FLUX,
    "sd1": _UNET,
    "sdxl": _UNET,
    "sd3": (
        *("final_layer.", "time_text_embed.", "context_embedder.", "t_embedder.", "y_embedder.", "x_embedder."),
        *("=proj_out.weight", "=pos_embed"),
    ),
    "aura": (
        *("t_embedder.", "init_x_linear.", "=modF.1.weight", "=cond_seq_linear.weight", "=final_linear.weight"),
        *("=positional_encoding", "=register_tokens"),
    ),
    "ltxv": ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.", "scale_shift_table"),
    "wan": (
        *("modulation.", "patch_embedding.", "text_embedding.", "time_projection.", "time_embedding.", "img_emb."),
        "head.",
    ),
    "hidream": (
        "p_embedder.",
        "t_embedder.",
        "x_embedder.",
        "final_layer.",
        ".ff_i.gate.weight",
        "caption_projection.",
    ),
    "cosmos": ("p_embedder.", "t_embedder.", "t_embedding_norm.", "x_embedder.", "pos_embedder.", "final_layer."),
    "lumina2": ("t_embedder.", "x_embedder.", "final_layer.", "cap_embedder.", "context_refiner.", "noise_refiner."),
    "qwen_image": ("txt_in.", "img_in.", "time_text_embed.", "proj_out.", "norm_out."),
}
"""Architecture -> parts of the names of tensors that are never quantized; behind "=" a whole name.

Qwen-Image has none in that patch; its ends are kept as the others' are.
"""

_VALUES = ("attn_v.weight", ".to_v.weight", ".v.weight", ".attn.w1v.weight", ".attn.w2v.weight", "_attn.v_proj.weight")
_FUSED = ("attn_qkv.weight", "attn.qkv.weight", "attention.qkv.weight")
_DOWN = (
    *("ffn_down", ".ffn.2.weight", ".ff.net.2.weight", ".mlp.layer2.weight", ".adaln_modulation_mlp.2.weight"),
    ".feed_forward.w2.weight",
)

_TYPES: Mapping[tuple[str, str], str] = {
    ("values", "Q2_K"): "Q3_K",
    ("values", "Q3_K_M"): "Q4_K",
    ("values", "Q3_K_L"): "Q5_K",
    ("values", "Q4_K_M"): "Q6_K",
    ("values", "Q5_K_M"): "Q6_K",
    ("fused", "Q3_K_M"): "Q4_K",
    ("fused", "Q3_K_L"): "Q4_K",
    ("fused", "Q4_K_M"): "Q5_K",
    ("fused", "Q5_K_M"): "Q6_K",
    ("down", "Q3_K_M"): "Q4_K",
    ("down", "Q3_K_L"): "Q5_K",
    ("down", "Q4_K_S"): "Q5_K",
    ("down", "Q4_K_M"): "Q6_K",
    ("down", "Q5_K_M"): "Q6_K",
    ("down", "Q4_0"): "Q4_1",
    ("down", "Q5_0"): "Q5_1",
}
_FIRST: Mapping[tuple[str, str], tuple[int, str]] = {
    ("values", "Q3_K_M"): (2, "Q5_K"),
    ("values", "Q4_K_S"): (4, "Q5_K"),
}
"""So many tensors of a role, in the order of writing, get another type."""


def kept(arch: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of an image model stays as it is."""
    parts = KEPT[arch]
    return (
        len(shape) != 2
        or not name.endswith("weight")
        or any(name == part[1:] if part.startswith("=") else part in name for part in parts)
    )


def role_of(name: str) -> str:
    """What a matrix is for: "values", "fused", "down", or "" for any other."""
    if any(part in name for part in _VALUES):
        return "values"
    if any(part in name for part in _FUSED):
        return "fused"
    experts = "experts." in name and ".w2.weight" in name
    return "down" if experts or any(part in name for part in _DOWN) else ""


def preferred(role: str, file: str, met: int) -> str | None:
    """The block type, by name, for a role under a file type; None: the usual.   met: how many of it were before."""
    count, first = _FIRST.get((role, file), (0, ""))
    return first if met < count else _TYPES.get((role, file))


def fallback(row: int, block: int) -> bool:
    """Whether a row of so many numbers is written as float16: it is not whole superblocks."""
    return block > 32 and row % block != 0
