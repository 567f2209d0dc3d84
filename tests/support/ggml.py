"""ggml's own quantizers through ctypes: the reference that bytes and speed are compared with.

The library comes with an installed llama-cpp-python, or is named by LLMCONV_GGML (path of libggml-base).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = "no reference library: install llama-cpp-python, or set LLMCONV_GGML to a libggml-base"
_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


class _Traits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


def find() -> Path | None:
    """The reference library, or None."""
    named = os.environ.get("LLMCONV_GGML")
    if named:
        return Path(named) if Path(named).is_file() else None
    spec = importlib.util.find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in _NAMES:
            path = Path(folder) / "lib" / name
            if path.is_file():
                return path
    return None


@functools.cache
def library() -> Any:
    """The loaded library; `RuntimeError(MISSING)` without one."""
    path = find()
    if path is None:
        raise RuntimeError(MISSING)
    lib = ctypes.CDLL(str(path))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return lib


def traits(ggml_id: int) -> _Traits:
    found: _Traits = library().ggml_get_type_traits(ggml_id).contents
    return found


def encode(ggml_id: int, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """(n, k) float32 -> (n, bytes) uint8, one thread."""
    rows = np.ascontiguousarray(rows, np.float32)
    n, k = rows.shape
    kind = traits(ggml_id)
    out = np.zeros((n, k // kind.blck_size * kind.type_size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32).ctypes.data
    library().ggml_quantize_chunk(ggml_id, rows.ctypes.data, out.ctypes.data, 0, n, k, weights)
    return out


def decode(ggml_id: int, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, bytes) uint8 -> (n, k) float32, one thread."""
    blocks = np.ascontiguousarray(blocks)
    kind = traits(ggml_id)
    out = np.empty((blocks.shape[0], blocks.shape[1] // kind.type_size * kind.blck_size), np.float32)
    kind.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out
