"""`-t NVFP4A16`, `-t MXFP4A16`, `-t FP8_DYNAMIC`, `-t FP8_BLOCK`: compressed-tensors' folders of small floats.

| | a layer's tensors | what becomes so |
|---|---|---|
| NVFP4A16 | `weight_packed` U8 (n, k / 2), `weight_scale` E4M3 (n, k / 16), `weight_global_scale`, which divides | NVFP4 of a GGUF or a folder, number for number; floats, scaled so that the largest scale is 448 |
| MXFP4A16 | `weight_packed` U8 (n, k / 2), `weight_scale` U8 (n, k / 32) | MXFP4, number for number; floats, as MXFP4 rounds them |
| FP8_DYNAMIC | `weight` E4M3 (n, k), `weight_scale` F32 (n, 1); inputs are rounded by token as they come | floats: the largest of a row becomes 448 |
| FP8_BLOCK | the same, `weight_scale` for blocks of 128 x 128 | floats |

A factor over NVFP4 (ModelOpt's, a GGUF's `.scale`) becomes the global scale, its inverse, which rounds once, in float32.
Source: the compressed-tensors package (`quant_scheme`, `compressors`).
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llmconv.convert.dialects.scales import scales_of
from llmconv.convert.quantizing.folder_layers import moved, small_floats
from llmconv.convert.quantizing.four_bits import Written, configured, settings
from llmconv.convert.quantizing.joined import beside, ragged, uncut, unequal, unequal_experts
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.compressed_tensors import is_linear
from llmconv.convert.scaled.exact import carried
from llmconv.convert.scaled.kept import with_codes_remembered
from llmconv.convert.scaled.unpack import unpack
from llmconv.convert.tables import own_keys
from llmconv.errors import BadWeight, Unsupported, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = ["KINDS", "written"]

_E4M3 = ml_dtypes.float8_e4m3fn
_LARGEST = np.float32(448)
"""Of E4M3."""
_SIDE = 128
_SLAB = 1 << 20
_FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False}
_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "NVFP4A16": ("nvfp4-pack-quantized", _FLOAT4 | {"strategy": "tensor_group", "group_size": 16}, None),
    "MXFP4A16": (
        "mxfp4-pack-quantized",
        _FLOAT4 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
        None,
    ),
    "FP8_DYNAMIC": (
        "float-quantized",
        _FLOAT8 | {"strategy": "channel", "dynamic": False},
        _FLOAT8 | {"strategy": "token", "dynamic": True},
    ),
    "FP8_BLOCK": (
        "float-quantized",
        _FLOAT8 | {"strategy": "block", "block_structure": [_SIDE, _SIDE], "dynamic": False},
        _FLOAT8 | {"strategy": "group", "group_size": _SIDE, "dynamic": True},
    ),
}
"""compressed-tensors' format, its word on weights and on inputs."""
_COLUMNS = {"NVFP4A16": 64, "MXFP4A16": 32, "FP8_DYNAMIC": 1, "FP8_BLOCK": _SIDE}
"""Of what a row must be a multiple (by blocks, inputs are rounded 128 at a time)."""


def written(checkpoint: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint]) -> Written:
    """A model in GGUF's dialect or a folder's as a folder of that kind, lazily.

    Raises `Unsupported` where there is no config.json to say so, or no layer to be written so.
    """
    stored: dict[str, Coded] = {}

    def look(coded: Coded) -> Tensor:
        stored[coded.weight] = coded = with_codes_remembered(coded)
        return coded.floats()

    floats = unpack(checkpoint, look)
    model, config = configured(floats, kind, to_hf)
    layers = dict(_layers(checkpoint, model, kind, to_hf, stored))
    if not layers:
        whole = f" of {_COLUMNS[kind]} columns or a multiple" if _COLUMNS[kind] > 1 and not stored else ""
        raise Unsupported(
            f"{checkpoint.where}: has no layer in floats{whole}, and none that {kind} says exactly; give the original "
            "model, or choose another type"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        tensors |= {t.name: t for t in (layers[name][0] if name in layers else [tensor])}
    form, weights, inputs = KINDS[kind]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    config["quantization_config"] = settings(form, {"group_0": group | {"format": form}}, layers, model)
    files: dict[str, Path | bytes] = dict(model.files)
    files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    wants = {name: want for name, (_, want) in layers.items() if want is not None}
    notes = [
        f"layers written as {kind}: {len(wants)} number for number, {len(layers) - len(wants)} rounded from floats"
    ]
    others = (tensor for name, tensor in model.tensors.items() if name not in layers and is_linear(tensor))
    if narrow := [tensor.name for tensor in others if tensor.row_len % _COLUMNS[kind]]:
        notes.append(f"in floats, its columns no multiple of {_COLUMNS[kind]}: {narrow[0]}{more(narrow)}")
    schemes = _schemes(layers, model)
    notes += unequal(schemes, "their global scales or types: it computes less exactly, or refuses them")
    notes += unequal_experts({name: bool(scale) for name, scale in schemes.items()}, "types: it refuses them")
    shapes = {name: model.tensors[name].shape for name in layers}
    notes += uncut({name: (k, _COLUMNS[kind] if kind.startswith("FP8") else weights["group_size"])
                    for name, (_, k) in shapes.items()})  # fmt: skip
    if kind == "FP8_BLOCK":
        notes += ragged({name: n for name, (n, _) in shapes.items()}, _SIDE)
    return Written(model.but(*notes, tensors=tensors, files=files), wants, stored, (4,))


def _layers(
    checkpoint: Checkpoint,
    model: Checkpoint,
    kind: str,
    to_hf: Callable[[Checkpoint], Checkpoint],
    stored: dict[str, Coded],
) -> Iterator[tuple[str, tuple[list[Tensor], Tensor | None]]]:
    """The tensors of each layer, and what they must read as where they were not rounded.

    stored: those with a factor become the same under its inverse.
    """
    bare = {key: value for key, value in checkpoint.metadata.items() if key != own_keys.DTYPES}
    name_of = kind.removesuffix("A16")
    scales, own = scales_of(checkpoint.tensors), [n for n, t in checkpoint.tensors.items() if t.type.name == name_of]
    alone = checkpoint.but(tensors={n: t for n, t in checkpoint.tensors.items() if n not in scales})
    blocks = moved(alone, frozenset({name_of}), bare, to_hf)
    factors = _factors(checkpoint, own, bare, to_hf) if own else {}
    quantized = stored or any(not tensor.type.is_plain() for tensor in checkpoint.tensors.values())
    sizes: dict[str, float] = {}
    for name, tensor in model.tensors.items():
        if not is_linear(tensor):
            continue
        module = name.removesuffix(".weight")
        if name in stored:
            coded = stored[name]
            found = carried(coded)
            if isinstance(found, str) or found.type.name != name_of:
                continue
            if found.factor is not None:
                inverse = np.float32(1) / found.factor if coded.divisor is None else coded.divisor
                coded = stored[name] = dataclasses.replace(coded, factor=None, divisor=np.asarray(inverse, np.float32))
            yield name, (_four(module, found.tensor(), coded.divisor), coded.floats())
        elif name in blocks:
            factor = np.float32(factors[name].rows(0, 1)[0, 0])
            yield name, (_four(module, blocks[name], np.float32(1) / factor), blocks[name] if factor == 1 else None)
        elif quantized or tensor.row_len % _COLUMNS[kind]:
            continue
        elif kind.startswith("FP8"):
            yield name, (_eight(module, tensor, kind == "FP8_BLOCK"), None)
        elif name_of == "NVFP4":
            for each in beside(name):  # which a server joins, under one global scale
                if each not in sizes and each in model.tensors:
                    sizes[each] = _largest(model.tensors[each])
            largest = max(sizes.get(each, 0.0) for each in beside(name))
            over = np.float32(6 * 448 / largest) if largest else np.float32(1)
            yield name, (_four(module, _times(tensor, over).astype(block.by_name("NVFP4")), over), None)
        else:
            yield name, (_four(module, tensor.astype(block.by_name("MXFP4"))), None)


def _schemes(layers: Mapping[str, tuple[list[Tensor], Tensor | None]], model: Checkpoint) -> dict[str, float]:
    """The global scale of each linear layer, 0 where it is in floats."""
    found = {name: 0.0 for name, tensor in model.tensors.items() if is_linear(tensor)}
    for name, (made, _) in layers.items():
        whole = next((t for t in made if t.name.endswith("_global_scale")), None)
        found[name] = 1.0 if whole is None else float(whole.numpy().reshape(-1)[0])
    return found


def _largest(tensor: Tensor) -> float:
    return max(float(np.abs(tensor.rows(*slab).astype(np.float32)).max(initial=0)) for slab in tensor.slabs())


def _times(tensor: Tensor, factor: np.float32) -> Tensor:
    return tensor.map(lambda x: x.astype(np.float32) * factor, plain.F32)


def _factors(
    checkpoint: Checkpoint, names: Iterable[str], bare: Mapping[str, Any], to_hf: Callable[[Checkpoint], Checkpoint]
) -> Mapping[str, Tensor]:
    """A folder's tensors, those of these weights being the factors that a GGUF has beside them, or 1: sent the way that
    the weights go."""
    scales = {weight: checkpoint.tensors[scale] for scale, weight in scales_of(checkpoint.tensors).items()}
    tensors = {n: t for n, t in checkpoint.tensors.items() if n not in scales_of(checkpoint.tensors)}
    for name in names:
        shape = tensors[name].shape
        each = scales[name].numpy().reshape(-1).astype(np.float32) if name in scales else np.ones(1, np.float32)
        rows = max(1, tensors[name].n_rows // each.size)

        def read(start: int, stop: int, each: Any = each, rows: int = rows, k: int = shape[-1]) -> Bytes:
            return np.repeat(each[np.arange(start, stop) // rows][:, None], k, axis=1).view(np.uint8)

        tensors[name] = Tensor(name, shape, plain.F32, read)
    return to_hf(checkpoint.but(tensors=tensors, metadata=bare)).tensors


def _four(module: str, tensor: Tensor, divisor: Any = None) -> list[Tensor]:
    """The tensors of a layer of NVFP4 or MXFP4 blocks.   divisor: of NVFP4, of all of it; None is 1."""
    n, k = tensor.shape
    small = tensor.type.name == "NVFP4"
    packed, scales = small_floats(tensor)
    scale: BlockClass = plain.F8_E4M3 if small else plain.U8
    made = [
        Tensor(f"{module}.weight_packed", (n, k // 2), plain.U8, packed),
        Tensor(f"{module}.weight_scale", (n, k // (16 if small else 32)), scale, scales),
    ]
    if small:
        whole = np.array([1 if divisor is None else divisor], np.float32)
        made.append(Tensor.from_array(f"{module}.weight_global_scale", whole))
    return made


def _eight(module: str, tensor: Tensor, by_block: bool) -> list[Tensor]:
    """The tensors of a layer of E4M3, scaled by row, or by blocks."""
    n, k = tensor.shape
    tall, across = (_SIDE, -(-k // _SIDE)) if by_block else (1, 1)

    def by_rows(start: int, stop: int) -> NDArray[np.float32]:
        """Scales of rows of blocks start..stop: (rows, across)."""
        out = np.empty((stop - start, across), np.float32)
        step = 1 if by_block else max(1, _SLAB // k)
        for low in range(start, stop, step):
            high = min(stop, low + step)
            x = np.abs(tensor.rows(low * tall, min(n, high * tall)).astype(np.float32))
            if not np.isfinite(x).all():
                raise BadWeight(
                    f"tensor {cut(tensor.name)}: a weight of row {low * tall} or after is not finite; repair the model",
                    tensor=tensor.name,
                )
            if by_block:
                x = np.pad(x, ((0, 0), (0, across * _SIDE - k))).reshape(len(x), across, _SIDE)
                out[low - start] = x.max(axis=(0, 2))
            else:
                out[low - start : high - start] = x.max(axis=1, keepdims=True)
        scale: NDArray[np.float32] = np.where(out > 0, out / _LARGEST, np.float32(1))
        return scale

    def numbers(start: int, stop: int) -> Bytes:
        first, last = start // tall, -(-stop // tall)
        scale = np.repeat(by_rows(first, last), tall, axis=0)[start - first * tall : stop - first * tall]
        scale = np.repeat(scale, _SIDE, axis=1)[:, :k] if by_block else scale
        x = tensor.rows(start, stop).astype(np.float32) / scale
        found: Bytes = np.clip(x, -_LARGEST, _LARGEST).astype(_E4M3).view(np.uint8)
        return found

    shape = (-(-n // tall), across)
    return [
        Tensor(f"{module}.weight", (n, k), plain.F8_E4M3, numbers),
        Tensor(f"{module}.weight_scale", shape, plain.F32, lambda a, b: by_rows(a, b).view(np.uint8)),
    ]
