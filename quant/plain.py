"""Plain types: one element, one value.  Floats of the safetensors and GGUF formats, integers, booleans."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import BlockType, Bytes, Floats


class Plain(BlockType):
    """Common base: the element's dtype is the layout."""

    @classmethod
    def _encode(cls, rows: Floats, importance: NDArray[np.float32] | None, out: Bytes) -> None:
        assert cls.dtype is not None
        with np.errstate(over="ignore"):  # the caller decides what an overflow means
            out.view(cls.dtype)[...] = rows


def _plain(dtype: Any) -> Any:
    return np.dtype(dtype).newbyteorder("<") if np.dtype(dtype).itemsize > 1 else np.dtype(dtype)


class F64(Plain):
    name, ggml_id = "F64", 28
    layout = dtype = _plain(np.float64)


class F32(Plain):
    name, ggml_id = "F32", 0
    layout = dtype = _plain(np.float32)


class F16(Plain):
    name, ggml_id = "F16", 1
    layout = dtype = _plain(np.float16)


class BF16(Plain):
    name, ggml_id = "BF16", 30
    layout = dtype = np.dtype(ml_dtypes.bfloat16)


class F8_E4M3(Plain):
    name = "F8_E4M3"
    layout = dtype = np.dtype(ml_dtypes.float8_e4m3fn)


class F8_E5M2(Plain):
    name = "F8_E5M2"
    layout = dtype = np.dtype(ml_dtypes.float8_e5m2)


class F8_E8M0(Plain):
    """Powers of two: the scales of the microscaling formats."""

    name = "F8_E8M0"
    layout = dtype = np.dtype(ml_dtypes.float8_e8m0fnu)


class F8_E4M3FNUZ(Plain):
    name = "F8_E4M3FNUZ"
    layout = dtype = np.dtype(ml_dtypes.float8_e4m3fnuz)


class F8_E5M2FNUZ(Plain):
    name = "F8_E5M2FNUZ"
    layout = dtype = np.dtype(ml_dtypes.float8_e5m2fnuz)


class Other(Plain):
    """Carried as they are, never quantized."""

    is_float = False


class I8(Other):
    name, ggml_id = "I8", 24
    layout = dtype = _plain(np.int8)


class I16(Other):
    name, ggml_id = "I16", 25
    layout = dtype = _plain(np.int16)


class I32(Other):
    name, ggml_id = "I32", 26
    layout = dtype = _plain(np.int32)


class I64(Other):
    name, ggml_id = "I64", 27
    layout = dtype = _plain(np.int64)


class U8(Other):
    name = "U8"
    layout = dtype = _plain(np.uint8)


class U16(Other):
    name = "U16"
    layout = dtype = _plain(np.uint16)


class U32(Other):
    name = "U32"
    layout = dtype = _plain(np.uint32)


class U64(Other):
    name = "U64"
    layout = dtype = _plain(np.uint64)


class BOOL(Other):
    name = "BOOL"
    layout = dtype = _plain(np.bool_)


class C64(Other):
    """Complex numbers of two float32."""

    name = "C64"
    layout = dtype = _plain(np.complex64)
