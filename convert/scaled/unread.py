"""Schemes that are recognised but not read, so that nobody takes their codes for weights."""

from __future__ import annotations

from collections.abc import Mapping

from llmconv.convert.scaled.scheme import Scheme, Settings
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = ["UNREAD"]


def _scheme(
    called: str, methods: tuple[str, ...], mark: str, beside: str, types: tuple[BlockClass, ...], ending: str = ""
) -> Scheme:
    """A scheme known by a tensor that ends in `mark`, with one that ends in `beside`, which is of one of `types`.

    ending: what the weight's name has behind the stem.
    """

    class Unread(Scheme):
        name = called
        marks = (mark,)
        parts = (beside,)

        def weight(self, stem: str) -> str:
            return stem + ending

        def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
            return beside in parts and (not types or parts[beside].type in types)

    Unread.methods = methods
    return Unread()


class _Gptq(Scheme):
    """GPTQ packs eight rows in a word, AWQ eight columns."""

    marks = (".qweight",)
    parts = (".scales", ".qzeros", ".g_idx")

    def weight(self, stem: str) -> str:
        return f"{stem}.weight"

    def fits(self, parts: Mapping[str, Tensor], settings: Settings) -> bool:
        return self.name == _name_of_qweight(parts, settings)


class _Awq(_Gptq):
    name = "AWQ"
    methods = ("awq",)


class _GptqItself(_Gptq):
    name = "GPTQ"
    methods = ("gptq", "autoround", "auto-round")


def _name_of_qweight(parts: Mapping[str, Tensor], settings: Settings) -> str:
    """Whose `qweight` it is: by config.json, else by the side on which it is packed."""
    if settings.method in _Awq.methods:
        return "AWQ"
    if settings.method or ".g_idx" in parts or ".scales" not in parts:
        return "GPTQ"
    return "GPTQ" if parts[".qweight"].shape[-1:] == parts[".scales"].shape[-1:] else "AWQ"


UNREAD: tuple[Scheme, ...] = (
    _Awq(),
    _GptqItself(),
    _scheme("MLX", (), ".scales", ".weight", (plain.U32, plain.I32, plain.U8), ".weight"),
    _scheme("bitsandbytes (4 bits)", ("bitsandbytes",), ".absmax", "", (plain.U8, plain.I8, plain.BF16, plain.F32)),
    _scheme("bitsandbytes (LLM.int8)", ("bitsandbytes",), ".SCB", ".weight", (plain.I8,), ".weight"),
    _scheme("quanto", ("quanto",), "._data", "._scale", ()),
    _scheme("quanto", ("quanto",), "._data._packed", "._scale", ()),
    _scheme("HQQ", ("hqq",), ".W_q", ".W_q", (), ".weight"),
    _scheme("MXFP8", (), "_scale", "", (plain.F8_E4M3, plain.F8_E5M2)),  # its scales are exponents
    _scheme("EETQ", ("eetq",), ".weight_scales", ".weight", (plain.I8,), ".weight"),
    _scheme("AQLM", ("aqlm",), ".codebooks", ".codes", (), ".weight"),
    _scheme("torchao", ("torchao",), "_qdata", "_qdata", ()),
    _scheme("NVFP4", (), "_scale_2", "", (plain.U8,)),
    _scheme("NVFP4", (), "_global_scale", "_packed", (plain.U8,)),
    _scheme("MXFP4 as compressed-tensors packs it", (), "_packed", "_scale", (plain.U8, plain.F8_E8M0)),
)
