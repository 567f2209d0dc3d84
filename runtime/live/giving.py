"""From any model file to torch: tensors under Hugging Face's names, or a transformers model of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch

from llmconv.convert.reading import Reading
from llmconv.convert.writing.adapters import check_model
from llmconv.errors import MissingExtra, Unsupported, UsageError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.runtime.load import DTYPES, pick_device
from llmconv.runtime.reading import read_tensor

__all__ = ["state_dict", "to_torch"]

_STORED = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def state_dict(
    path: str | os.PathLike[str] | Checkpoint, dtype: str | torch.dtype = "auto"
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a model of any format, under the names of its architecture in transformers, one at a time.

    dtype: of the floats: "f32", "bf16", "f16", "f64" or torch's own; "auto": as stored, quantized ones as float32.
    """
    kind = _dtype(dtype)
    checkpoint = _hugging_face(path)
    return ((name, _read(tensor, kind)) for name, tensor in checkpoint.tensors.items())


def to_torch(
    path: str | os.PathLike[str] | Checkpoint,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
) -> Any:
    """A transformers model of a file or folder of any format, in `eval()` mode; quantized weights are decoded.

    dtype: as in `state_dict`; "auto": the type that most of the weights have.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("a transformers model", "transformers", "transformers") from None
    kind, where = _dtype(dtype), pick_device(device)
    checkpoint = _hugging_face(path)
    config = json.loads(checkpoint.file("config.json") or b"{}")
    if config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise Unsupported(f"{checkpoint.where}: is of no architecture that transformers has; use llmconv.load")
    kind = kind or _main_dtype(checkpoint)
    values = {name: _read(tensor, kind) for name, tensor in checkpoint.tensors.items()}
    kinds = config.get("architectures") or []
    cls: Any = getattr(transformers, str(kinds[0]) if kinds else "", None) or transformers.AutoModelForCausalLM
    settings = transformers.AutoConfig.for_model(**config)
    settings.dtype = kind
    model, told = cls.from_pretrained(None, config=settings, state_dict=values, dtype=kind, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if left := sorted(map(str, told.get(what) or ())):
            raise Unsupported(f"{checkpoint.where}: transformers finds {what.replace('_', ' ')}: {cut(left[0])}")
    return model.to(where).eval()


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; give auto, {', '.join(DTYPES)}")
    return DTYPES.get(dtype)


def _hugging_face(path: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    reading = Reading()
    checkpoint = reading.floats(path)
    check_model(checkpoint)
    return reading.named(checkpoint, "hf")


def _main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    sizes: dict[torch.dtype, int] = {}
    for tensor in checkpoint.tensors.values():
        kind = _STORED.get(tensor.type.name, torch.float32)
        sizes[kind] = sizes.get(kind, 0) + (tensor.nbytes if kind.is_floating_point else 0)
    return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


def _read(tensor: Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    own = _STORED.get(tensor.type.name)
    kind = own or torch.float32
    if dtype is not None and (own is None or own.is_floating_point):
        kind = dtype
    return read_tensor(tensor, torch.Size(tensor.shape), kind, torch.device("cpu"))
