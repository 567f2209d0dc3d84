"""llama.cpp's own quantizer, `llama_model_quantize`, through llama-cpp-python's ctypes; with the arguments of ours.

The reference of whole files.  `quantize` sets the metadata that the llama-quantize command adds for an importance
matrix (tools/quantize/quantize.cpp), since the library leaves that to it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.convert.quantizing.importance import read_importance
from llmconv.quant import by_name
from llmconv.quant.filetypes import file_type

MISSING = "no reference: install llama-cpp-python to compare whole files with llama-quantize"


def available() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def _silent(level: int, text: bytes, data: Any) -> None:
    pass


_callback: Any = None


def library() -> Any:
    """The module llama_cpp, its log switched off."""
    global _callback
    import llama_cpp

    if _callback is None:
        _callback = llama_cpp.llama_log_callback(_silent)
        llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    return llama_cpp


def _ggml_number(name: str) -> int:
    number = by_name(name).ggml_id
    assert number is not None
    return number


def quantize(
    src: Path,
    dst: Path,
    type: str,
    *,
    jobs: int = 2,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    allow_requantize: bool = False,
    imatrix: Path | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    override_kv: Sequence[tuple[str, Any]] = (),
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
) -> bool:
    """Quantize as llama-quantize does; False when it refused."""
    lc = library()
    params = lc.llama_model_quantize_default_params()
    params.nthread = jobs
    kind = file_type(type)
    params.ftype = max(0, kind.number)
    params.only_copy = kind.name == "COPY"
    params.pure, params.keep_split, params.allow_requantize = pure, keep_split, allow_requantize
    params.quantize_output_tensor = not leave_output_tensor
    if output_tensor_type:
        params.output_tensor_type = _ggml_number(output_tensor_type)
    if token_embedding_type:
        params.token_embedding_type = _ggml_number(token_embedding_type)
    overrides = list(override_kv)
    if imatrix is not None:
        matrix = read_importance(imatrix).filtered(include_weights, exclude_weights)
        array = (lc.llama_model_imatrix_data * (len(matrix.entries) + 1))()
        for slot, (name, values) in zip(array, matrix.entries.items(), strict=False):
            slot.name, slot.size = name.encode(), len(values)
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if matrix.entries:
            params.imatrix = array
            overrides.append(("quantize.imatrix.file", str(imatrix)))
            if matrix.datasets:
                overrides.append(("quantize.imatrix.dataset", matrix.datasets[0]))
            overrides.append(("quantize.imatrix.entries_count", len(matrix.entries)))
            if matrix.chunks > 0:
                overrides.append(("quantize.imatrix.chunks_count", matrix.chunks))
    if overrides:
        params.kv_overrides = _overrides(lc, overrides)
    if tensor_types:
        params.tt_overrides = tensor_rules(tensor_types)
    if prune_layers:
        params.prune_layers = (ctypes.c_int32 * (len(prune_layers) + 1))(*sorted(prune_layers), -1)
    return int(lc.llama_model_quantize(str(src).encode(), str(dst).encode(), ctypes.byref(params))) == 0


def tensor_rules(texts: Sequence[str]) -> Any:
    """`REGEX=TYPE` rules as the reference's array, ended by an empty one."""
    rules = (library().llama_model_tensor_override * (len(texts) + 1))()
    for rule, text in zip(rules, texts, strict=False):
        pattern, name = text.split("=")
        rule.pattern, rule.type = pattern.lower().encode(), _ggml_number(name)
    return rules


def _overrides(lc: Any, pairs: Sequence[tuple[str, Any]]) -> Any:
    array = (lc.llama_model_kv_override * (len(pairs) + 1))()
    for slot, (key, value) in zip(array, pairs, strict=False):
        slot.key = key.encode()
        if isinstance(value, bool):
            slot.tag, slot.value.val_bool = lc.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, str):
            slot.tag, slot.value.val_str = lc.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
        elif isinstance(value, float | np.floating):
            slot.tag, slot.value.val_f64 = lc.LLAMA_KV_OVERRIDE_TYPE_FLOAT, float(value)
        else:
            slot.tag, slot.value.val_i64 = lc.LLAMA_KV_OVERRIDE_TYPE_INT, int(value)
    return array
