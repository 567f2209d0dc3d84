"""`-t W4A16` and `-t MLX`: model folders of small integers with scales, as vLLM and transformers, or MLX, load them.

A GGUF's blocks of integers become such layers as they are, number for number; what is in floats is rounded as the block
types round it (Q4_0, Q4_1).  Groups are of 32 columns, of 64 or 128 where all scales agree.

| block type | W4A16 (compressed-tensors' pack-quantized) | MLX (affine) |
|---|---|---|
| Q4_0 | 4 bits, symmetric | 4 bits, bias = -8 scales |
| Q5_0 | 8 bits, symmetric | 5 bits, bias = -16 scales |
| Q8_0 | 8 bits, symmetric | 8 bits, bias = -128 scales |
| Q4_1, Q5_1 | decoded | 4, 5 bits |

Other blocks are decoded, as where a folder is written without integers.  Sources: the compressed-tensors package
(`compressors/pack_quantized`), MLX's `mx.quantize`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs
from llmconv.convert.scaled.compressed_tensors import is_linear
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import read_config
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes

__all__ = ["written"]

_KINDS = {"Q4_0": (4, 8, False), "Q5_0": (5, 16, False), "Q8_0": (8, 0, False), "Q4_1": (4, 0, True),
          "Q5_1": (5, 0, True)}  # fmt: skip
"""Bits, what is added to an integer to be a stored code, and whether there are sums beside the scales."""
_NUMBERS = list(_KINDS)
_SLAB = 1 << 20


@dataclass(frozen=True)
class _Layer:
    """A weight under its name in a folder: its block type, and the floats that its fields are, one for each weight."""

    weight: str
    shape: tuple[int, ...]
    kind: str
    codes: Tensor
    scale: Tensor
    bias: Tensor

    def shared(self, which: Tensor, group: int) -> Callable[[int, int], NDArray[np.float16]]:
        return lambda start, stop: np.ascontiguousarray(which.rows(start, stop)[:, ::group]).astype(np.float16)

    def agrees(self, group: int) -> bool:
        """Whether all numbers of each group of so many columns are one."""
        if self.shape[-1] % group:
            return False
        for which in (self.scale, self.bias):
            step = max(1, _SLAB // self.shape[-1])
            for start in range(0, which.n_rows, step):
                rows = which.rows(start, min(which.n_rows, start + step))[:, ::32]
                own = rows.reshape(len(rows), -1, group // 32)
                if (own != own[:, :, :1]).any():
                    return False
        return True


def written(checkpoint: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
    """A model in GGUF's dialect or a folder's as a folder of that kind, lazily; its scales are read.

    to_hf: translates a checkpoint.  Raises `Unsupported` where there is no config.json to say so.
    """
    model = to_hf(checkpoint)
    config = read_config(model)
    if not config:
        raise Unsupported(f"{checkpoint.where}: {kind} needs a config.json to say so; give a model folder or a GGUF")
    arch = archs.by_hf(config)
    if arch is not None and arch.decoder.get("conv1d"):
        raise Unsupported(
            f"{checkpoint.where}: GPT-2's layers are Conv1D, whose columns are no groups; use a GGUF type"
        )
    layers = {layer.weight: layer for layer in _layers(checkpoint, model, kind, to_hf)}
    if not layers:
        kinds = sorted({t.type.name for t in checkpoint.tensors.values() if len(t.shape) > 1})
        raise Unsupported(
            f"{checkpoint.where}: has no layer that {kind} says exactly or that is in floats, but {', '.join(kinds)}; "
            "give the original model"
        )
    group = next(g for g in (128, 64, 32) if g == 32 or all(layer.agrees(g) for layer in layers.values()))
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        if name in layers:
            made = _mlx(layers[name], group) if kind == "MLX" else _packed(layers[name], group)
            tensors |= {t.name: t for t in made}
        else:
            tensors[name] = tensor
    config["torch_dtype"] = "float16"  # in which the scales are
    if kind == "MLX":
        config["quantization"] = config["quantization_config"] = _mlx_settings(layers, group)
    else:
        config["quantization_config"] = _packed_settings(layers, group, model)
    files: dict[str, Path | bytes] = dict(model.files)
    files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    exact = Counter(layer.kind for layer in layers.values())
    said = ", ".join(f"{n} {name}" for name, n in exact.items())
    return model.but(f"layers written as {kind} in groups of {group}: {said}", tensors=tensors, files=files)


def _layers(
    checkpoint: Checkpoint, model: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint]
) -> Iterator[_Layer]:
    """The weights that are written as integers."""
    fields = _fields(checkpoint, kind, to_hf)
    default = block.by_name("Q4_1" if kind == "MLX" else "Q4_0")
    for name, tensor in model.tensors.items():
        number = int(fields["kind"][name].rows(0, 1)[0, 0]) if name in fields["kind"] and len(tensor.shape) == 2 else 0
        if number:
            parts = {which: found[name] for which, found in fields.items() if which != "kind"}
            yield _Layer(name, tensor.shape, _NUMBERS[number - 1], **parts)
        elif is_linear(tensor) and tensor.row_len % 32 == 0 and not _was_quantized(checkpoint):
            yield _Layer(name, tensor.shape, default.name, **_opened(tensor.astype(default)))


def _was_quantized(checkpoint: Checkpoint) -> bool:
    return any(not tensor.type.is_plain() for tensor in checkpoint.tensors.values())


def _fields(
    checkpoint: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint]
) -> dict[str, Mapping[str, Tensor]]:
    """The fields of all blocks as floats, one for each weight, under the folder's names: rows move as weights' do."""
    usable = [n for n in _KINDS if kind == "MLX" or not _KINDS[n][2]]
    found = {t.name: t.type.name for t in checkpoint.tensors.values() if t.type.name in usable}
    if not found:
        return {"kind": {}}
    bare = {key: value for key, value in checkpoint.metadata.items() if key != own_keys.DTYPES}
    made: dict[str, Mapping[str, Tensor]] = {}
    for which in ("kind", "codes", "scale", "bias"):
        tensors = dict(checkpoint.tensors)
        for name, tensor in tensors.items():
            if which == "kind":
                number = _NUMBERS.index(found[name]) + 1 if name in found else 0
                tensors[name] = _all_of(tensor, number)
            elif name in found:
                tensors[name] = _opened(tensor)[which]
        made[which] = to_hf(checkpoint.but(tensors=tensors, metadata=bare)).tensors
    return made


def _all_of(tensor: Tensor, number: int) -> Tensor:
    k = tensor.row_len
    return Tensor(
        tensor.name, tensor.shape, plain.F32, lambda a, b: np.full((b - a, k), number, np.float32).view(np.uint8)
    )


def _opened(tensor: Tensor) -> dict[str, Tensor]:
    """The codes, scales and sums of a tensor of blocks, as floats, one for each weight."""
    kind, (bits, offset, affine) = tensor.type, _KINDS[tensor.type.name]

    def blocks(start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(tensor.blocks(start, stop)).view(kind.layout)

    def codes(start: int, stop: int) -> Bytes:
        found = blocks(start, stop)
        if bits == 8:
            numbers = found["qs"].astype(np.float32)
        else:
            halves = np.concatenate([found["qs"] & 15, found["qs"] >> 4], axis=-1)
            if bits == 5:
                raw = np.ascontiguousarray(found["qh"]).view(np.uint8).reshape(*found.shape, 4)
                halves |= np.unpackbits(raw, axis=-1, bitorder="little") << 4
            numbers = halves.astype(np.float32) - np.float32(offset)
        return numbers.reshape(stop - start, tensor.row_len).view(np.uint8)

    def repeated(field: str) -> Callable[[int, int], Bytes]:
        def read(start: int, stop: int) -> Bytes:
            return np.repeat(blocks(start, stop)[field].astype(np.float32), 32, axis=1).view(np.uint8)

        return read

    zero = _all_of(tensor, 0)
    bias = Tensor(tensor.name, tensor.shape, plain.F32, repeated("m")) if affine else zero
    return {
        "codes": Tensor(tensor.name, tensor.shape, plain.F32, codes),
        "scale": Tensor(tensor.name, tensor.shape, plain.F32, repeated("d")),
        "bias": bias,
    }


def _words(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """(n, k) -> (n, k * bits / 32): one stream of bits a row, lowest first; k a multiple of 32."""
    if bits == 8:
        return numbers.view("<u4")
    if bits == 4:
        return np.ascontiguousarray(numbers[:, 0::2] | numbers[:, 1::2] << np.uint8(4)).view("<u4")
    streams = np.unpackbits(numbers[:, :, None], axis=-1, bitorder="little")[:, :, :bits]
    return np.packbits(streams.reshape(len(numbers), -1), axis=-1, bitorder="little").view("<u4")


def _packed(layer: _Layer, group: int) -> list[Tensor]:
    """compressed-tensors' tensors."""
    (n, k), bits = layer.shape, 4 if layer.kind == "Q4_0" else 8
    module = layer.weight.removesuffix(".weight")

    def words(start: int, stop: int) -> Bytes:
        numbers = layer.codes.rows(start, stop) + np.float32(1 << (bits - 1))
        return _words(numbers.astype(np.uint8), bits).view(np.uint8)

    scales = layer.shared(layer.scale, group)
    return [
        Tensor(f"{module}.weight_packed", (n, k * bits // 32), plain.I32, words),
        Tensor(f"{module}.weight_scale", (n, k // group), plain.F16, lambda a, b: scales(a, b).view(np.uint8)),
        Tensor.from_array(f"{module}.weight_shape", np.array([n, k], np.int64)),
    ]


def _mlx(layer: _Layer, group: int) -> list[Tensor]:
    """MLX's tensors."""
    (n, k), (bits, offset, affine) = layer.shape, _KINDS[layer.kind]
    half = 128 if bits == 8 else offset
    module = layer.weight.removesuffix(".weight")

    def words(start: int, stop: int) -> Bytes:
        numbers = layer.codes.rows(start, stop) + np.float32(half)
        return _words(numbers.astype(np.uint8), bits).view(np.uint8)

    def biases(start: int, stop: int) -> Bytes:
        if affine:
            return layer.shared(layer.bias, group)(start, stop).view(np.uint8)
        found = layer.scale.rows(start, stop)[:, ::group] * np.float32(-half)
        with np.errstate(over="ignore"):
            rounded: NDArray[np.float16] = found.astype(np.float16)
        if (rounded.astype(np.float32) != found).any():
            raise Unsupported(
                f"tensor {layer.weight!r} has scales so large that float16 can't say {half} of them; use W4A16 instead"
            )
        return rounded.view(np.uint8)

    scales = layer.shared(layer.scale, group)
    return [
        Tensor(layer.weight, (n, k * bits // 32), plain.U32, words),
        Tensor(f"{module}.scales", (n, k // group), plain.F16, lambda a, b: scales(a, b).view(np.uint8)),
        Tensor(f"{module}.biases", (n, k // group), plain.F16, biases),
    ]


def _mlx_settings(layers: Mapping[str, _Layer], group: int) -> dict[str, Any]:
    """What MLX's config.json says: the most frequent bits for all, others under their modules' names."""
    bits = {name.removesuffix(".weight"): _KINDS[layer.kind][0] for name, layer in layers.items()}
    usual = Counter(bits.values()).most_common(1)[0][0] if bits else 4
    settings: dict[str, Any] = {"group_size": group, "bits": usual, "mode": "affine"}
    return settings | {m: {"group_size": group, "bits": n} for m, n in bits.items() if n != usual}


def _packed_settings(layers: Mapping[str, _Layer], group: int, model: Checkpoint) -> dict[str, Any]:
    """What compressed-tensors' config.json says: a group of layers for each number of bits."""
    by_bits: dict[int, list[str]] = {}
    for name, layer in layers.items():
        by_bits.setdefault(4 if layer.kind == "Q4_0" else 8, []).append(name.removesuffix(".weight"))
    groups = {}
    for i, (bits, modules) in enumerate(by_bits.items()):
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(by_bits) == 1 else modules,
            "weights": weights | {"dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax"},
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    left = [
        t.name.removesuffix(".weight")
        for t in model.tensors.values()
        if len(t.shape) == 2 and t.name.endswith(".weight") and t.name not in layers and "embed" not in t.name
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({*left, "lm_head"} - {n.removesuffix(".weight") for n in layers}),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
