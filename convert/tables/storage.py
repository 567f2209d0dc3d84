"""How the tensors of a GGUF are stored: which stay F32 whatever is asked for, and in which type the others come.

The rule is that of the reference's converter (`prepare_tensors` of convert_hf_to_gguf.py): vectors, norms, biases,
routers and tables of positions and token types are F32.
"""

from __future__ import annotations

from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["gguf_type", "stays_f32"]

_F32 = (
    ".bias",
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "shortconv.conv.weight",
    *("ssm_conv1d.weight", "ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
    "indexer.proj.weight",
    *("altup_correct_coef.weight", "altup_predict_coef.weight"),
    "ssm_a",
    "ssm_d",
)


def stays_f32(tensor: Tensor) -> bool:
    """Whether GGUFs keep this tensor in F32: one row, or a kind of weight that is never rounded."""
    return sum(n > 1 for n in tensor.shape) <= 1 or tensor.name.endswith(_F32)


def gguf_type(tensor: Tensor) -> BlockClass:
    """The type in which the ecosystem stores a tensor of a GGUF."""
    if not tensor.type.is_float or not tensor.type.is_plain() or tensor.type is plain.F64:
        return tensor.type
    if stays_f32(tensor):
        return plain.F32
    return plain.BF16 if tensor.type.ggml_id is None else tensor.type  # BF16: of the 8-bit floats, exactly
