"""How the tensors of a GGUF are stored: which stay F32 whatever is asked for, and in which type the others come.

The rule is that of the reference's converter (`prepare_tensors` of convert_hf_to_gguf.py): vectors, norms, biases,
routers and tables of positions and token types are F32.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["gguf_type", "is_typical", "stays_f32", "stored_in"]

_F32 = (
    ".bias",
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "shortconv.conv.weight",
    *("ssm_conv1d.weight", "ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
    *("indexer.proj.weight", "indexer.q_proj.weight", "indexer.k_proj.weight"),
    *("altup_correct_coef.weight", "altup_predict_coef.weight"),
    "ssm_a",
    "ssm_d",
    *(f"time_mix_{name}.weight" for name in ("first", "w1", "w2", "decay_w1", "decay_w2", "lerp_fused")),
    *("attn_conv_base", "ffn_conv_base"),
    *("hc_attn_fn.weight", "hc_ffn_fn.weight", "output_hc_fn.weight"),
    *("indexer_compressor_gate.weight", "indexer_compressor_ape.weight"),
    *("attn_rel_pos_emb", "a.proj_query"),
)
_CONVOLUTIONS = (
    "v.patch_embd.weight",
    "v.sam.patch_embd.weight",
    "mm.patch_merger.weight",
    "a.conv1d.",
    "a.conv2d.",
    "mm.input_projection.weight",
)
"""How names of a tower's tensors begin that llama.cpp computes with in F16 or F32 alone."""
_PATCHES_F32 = ("gemma3", "idefics3")
"""Projectors whose patches are never rounded."""
_SAM = (
    *("v.patch_embd.weight", "v.sam.pos_embd.weight", "v.sam.neck.", "v.sam.net_"),
    *(".attn.pos_h.weight", ".attn.pos_w.weight"),
)
_CONFORMER = ("a.conv1d.", "a.input_projection.weight", ".conv_dw.weight")
_POINTS = ("a.conv1d.", ".conv_dw.weight", ".conv_pw1.", ".conv_pw2.")
_TOWER_F32 = {
    "deepseekocr": _SAM,
    "deepseekocr2": _SAM,
    "gemma4v": _CONFORMER,
    "gemma3nv": (*_CONFORMER, "v.conv_stem."),
    "granite_speech": _POINTS,
    "lfm2a": _POINTS,
    "nemotron_v2_vl": _POINTS,
    "mimovl": ("a.conv1d.", "a.downsample.conv.", "a.rvq.codebook.", "mm.a.code_embd."),
    "qwen3tts_spkenc": ("a.gen.code.blk.*.ffn_down.weight", "a.gen.wav.*.blk.*.conv.weight"),
    "dots3note_v": ("a.conv2d.", "a.conv_out.", ".ffn_gate_inp.", ".exp_probs_b."),
}
"""How names of a projector's further tensors begin that are never rounded; after a dot: what stands in them; with a
star: a pattern."""
_PROJECTED = ("gemma4v", "gemma4uv")
"""Projectors whose `mm.input_projection` is a matrix as any."""
_TOWER_CONVOLUTIONS = {
    "hunyuanvl": ("mm.0.weight", "mm.2.weight"),
    "step3vl": ("mm.0.weight", "mm.1.weight"),
    "gemma3nv": ("mm.a.input_projection.weight", "a.pre_encode.out.weight"),
    "qwen3tts_spkenc": (
        *("a.gen.wav.pre_conv.", "a.gen.wav.dac.entry.", "a.gen.wav.dac.post_conv."),
        *("a.gen.wav.up.blk.*.dwconv.weight", "a.gen.wav.dac.blk.*.conv?.weight"),
    ),
    "pockettts_spkenc": (".seanet.", "a.downsample.conv.weight", "a.gen.wav.upsample.weight"),
}
"""A projector's further convolutions: as `_CONVOLUTIONS`."""


def stays_f32(tensor: Tensor, projector: str = "") -> bool:
    """Whether GGUFs keep this tensor in F32: one row, or a kind of weight that is never rounded.

    projector: of a tower.
    """
    return (
        sum(n > 1 for n in tensor.shape) <= 1
        or tensor.name.endswith(_F32)
        or (bool(projector) and not tensor.name.endswith(".weight") and not tensor.name.startswith(_CONVOLUTIONS))
        or (projector in _PATCHES_F32 and tensor.name.startswith(_CONVOLUTIONS[0]))
        or _matches(tensor.name, _TOWER_F32.get(projector, ()))
    )


def _matches(name: str, pieces: tuple[str, ...]) -> bool:
    """Whether a name begins with one of these; after a dot: holds it; with a star: is like it."""
    return any(
        fnmatchcase(name, piece) if "*" in piece else piece in name if piece[0] == "." else name.startswith(piece)
        for piece in pieces
    )


def _is_convolution(tensor: Tensor, projector: str) -> bool:
    if projector in _PROJECTED and tensor.name == "mm.input_projection.weight":
        return False
    return _matches(tensor.name, (*_CONVOLUTIONS, *_TOWER_CONVOLUTIONS.get(projector, ())))


def is_typical(tensor: Tensor, projector: str = "") -> bool:
    """Whether a tensor's type says in which the model is stored."""
    return not stays_f32(tensor, projector) and not _is_convolution(tensor, projector)


def stored_in(tensor: Tensor, wanted: BlockClass, projector: str = "") -> BlockClass:
    """The type in which GGUFs keep a tensor where 16 bits are `wanted`."""
    if wanted not in (plain.F16, plain.BF16):
        return wanted
    if stays_f32(tensor, projector) or (wanted is plain.BF16 and _is_convolution(tensor, projector)):
        return plain.F32
    return wanted


def gguf_type(tensor: Tensor, projector: str = "") -> BlockClass:
    """The type in which the ecosystem stores a tensor of a GGUF."""
    if not tensor.type.is_float or not tensor.type.is_plain() or tensor.type is plain.F64:
        return tensor.type
    if stays_f32(tensor, projector):
        return plain.F32
    # BF16 says what the 8-bit floats do
    return stored_in(tensor, plain.BF16 if tensor.type.ggml_id is None else tensor.type, projector)
