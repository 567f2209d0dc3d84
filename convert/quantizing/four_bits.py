"""`-t W4A16`, `-t W4A16_ASYM`, `-t MLX` and MLX2 … MLX8, MLX_MXFP4: folders as vLLM, transformers or MLX load them.

The integers of a GGUF's blocks, and of a folder in GPTQ, AWQ or another scheme, become such layers as they are; what is
in floats is rounded.  Groups are as they were, or of 64 or 128 columns where all scales agree; floats are rounded in
groups of 32, or as asked.

| | W4A16 (compressed-tensors' pack-quantized) | W4A16_ASYM | MLX (affine) |
|---|---|---|---|
| Q4_0, symmetric layers of 4 bits | 4 bits | 4 bits, zero points 8 | 4 bits, bias = -8 scales |
| Q5_0 | 8 bits | | 5 bits, bias = -16 scales |
| Q8_0, 8 bits | 8 bits | | 8 bits, bias = -128 scales |
| TQ1_0, TQ2_0, ternary layers | 4 bits | 4 bits, zero points 8 | 2 bits, bias = -1 scale |
| layers with zero points (AWQ) | | 4 bits, zero points | where float16 says zero * scale |
| Q4_1, Q5_1, MLX | | 4 bits, where all sums are whole scales | in their own bits |
| MXFP4; NVFP4 without a factor over it | | | modes mxfp4, nvfp4 |

MLX loads embeddings and heads so too, the others linear layers alone.  Other blocks are decoded, as where a folder is
written without integers.  Sources: the compressed-tensors package (`compressors/pack_quantized`), MLX's `mx.quantize`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs
from llmconv.convert.dialects.scales import scales_of
from llmconv.convert.quantizing import mlx_experts
from llmconv.convert.quantizing.folder_layers import (
    BLOCKS,
    FLOATS,
    TERNARY,
    Layer,
    Rows,
    SmallFloats,
    moved,
    of_blocks,
    of_coded,
    of_ternary,
    rounded,
    small_floats,
)
from llmconv.convert.quantizing.joined import ignored, uncut, unequal, unequal_experts
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.compressed_tensors import is_linear
from llmconv.convert.scaled.exact import are_said, carried
from llmconv.convert.scaled.four_bit_floats import E2M1
from llmconv.convert.scaled.kept import with_codes_remembered
from llmconv.convert.scaled.unpack import READ_AS_FLOATS, unpack
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import TEXT_MODELS, read_config
from llmconv.errors import Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import block, plain
from llmconv.quant.block import Bytes
from llmconv.quant.filetypes import MLX, MLX_MXFP4
from llmconv.quant.kernels import codes as kernels

__all__ = ["Written", "configured", "settings", "written"]

_GROUPS = (128, 64, 32)


@dataclass
class Written:
    """A folder to be written.   wants: what its exact layers must read as.   stored: the source's layers of codes.
    bits: of the exact layers' numbers.   reasons: why layers are not."""

    model: Checkpoint
    wants: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, Coded] = field(default_factory=dict)
    bits: tuple[int, ...] = ()
    reasons: Counter[str] = field(default_factory=Counter)


def written(
    checkpoint: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint], group: int | None = None
) -> Written:
    """A model in GGUF's dialect or a folder's as a folder of that kind, lazily; its scales are read.

    to_hf: translates a checkpoint.   group: columns that share a scale; by default as many as do, 32 for floats.
    Raises `Unsupported` where there is no config.json to say so, or nothing to be written so.
    """
    stored: dict[str, Coded] = {}

    def look(coded: Coded) -> Tensor:
        stored[coded.weight] = coded = with_codes_remembered(coded)
        return coded.floats()

    floats = unpack(checkpoint, look)
    floats = floats.but(notes=[note for note in floats.notes if not note.endswith(READ_AS_FLOATS)])  # see `reasons`
    model, config = configured(floats, kind, to_hf)
    layers: dict[str, Layer] = {}
    reasons: Counter[str] = Counter()
    for name, found in _layers(checkpoint, model, kind, to_hf, stored, group or 32):
        fits = found if isinstance(found, str) else _fitting(found, kind)
        if isinstance(fits, str):
            reasons[fits] += 1
        else:
            layers[name] = fits
    small = _small_floats(checkpoint, model, kind, to_hf, stored) if kind.startswith("MLX") else {}
    layers = {name: layer for name, layer in layers.items() if name not in small}
    if not layers and not small:
        kinds = sorted({t.type.name for t in checkpoint.tensors.values() if len(t.shape) > 1})
        why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
        raise Unsupported(
            f"{checkpoint.where}: has no layer that {kind} says exactly or that is in floats, but {', '.join(kinds)}"
            f"{why}; give the original model"
        )
    size = _group(layers, group, kind) if layers else 0
    halves = {name for name, layer in layers.items() if _all(layer, np.dtype(np.float16))}
    half = len(halves) == len(layers)
    shorter = halves if half else {name for name, layer in layers.items() if _all(layer, plain.BF16.layout)}
    if len(shorter) < len(layers):
        odd = next(
            (name for name in layers if name not in halves | shorter), next(n for n in layers if n not in shorter)
        )
        raise Unsupported(
            f"{checkpoint.where}: scales of {cut(odd)} are not in the one type that {kind} has for all, float16 or "
            "bfloat16; give the original model, or make a GGUF of it (REPACK)"
        )
    scales: BlockClass = plain.F16 if half else plain.BF16
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        made = [tensor]
        if name in small:
            made = _mlx_floats(name, small[name].blocks)
        elif name in layers:
            mlx = kind.startswith("MLX")
            made = _mlx(layers[name], size, scales) if mlx else _packed(layers[name], size, scales, kind)
        tensors |= {t.name: t for t in made}
    if layers:
        _say_dtype(config, "float16" if half else "bfloat16")  # in which the scales are
    if kind.startswith("MLX"):
        tensors = mlx_experts.stacked(tensors, config, checkpoint.where)
        said_of = {mlx_experts.named(name, config): said for name, said in _mlx_settings(layers, size, small).items()}
        config["quantization"] = config["quantization_config"] = said_of
    else:
        config["quantization_config"] = _packed_settings(layers, size, model, kind)
    files: dict[str, Path | bytes] = dict(model.files)
    files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    every: list[Layer | SmallFloats] = [*layers.values(), *small.values()]
    said = ", ".join(f"{n} {name}" for name, n in Counter(layer.kind for layer in every).items())
    notes = [f"layers written as {kind} in groups of {size or 'their own'}: {said}"]
    notes += [f"{n} layers are in floats instead: {why}" for why, n in reasons.items()]
    if not kind.startswith("MLX"):
        schemes = {name: (0, 0) for name, tensor in model.tensors.items() if is_linear(tensor)}
        schemes |= {name: (layer.bits, size or layer.group) for name, layer in layers.items()}
        what = "bits or groups, or some are in floats: transformers loads them, vLLM doesn't"
        notes += unequal(schemes, what) + unequal_experts(schemes, what)
        notes += uncut({name: (layer.shape[-1], size or layer.group) for name, layer in layers.items()})
    else:
        notes += mlx_experts.unread((*layers, *small), config)
    written: dict[str, Layer | SmallFloats] = {**layers, **small}
    wants = {name: layer.want for name, layer in written.items() if layer.want is not None}
    bits = tuple(layers[name].bits if name in layers else 4 for name in wants)
    if kind.startswith("MLX"):
        wants = mlx_experts.stacked(wants, config, checkpoint.where)
        wants = {name: want for name, want in wants.items() if want.n_rows == tensors[name].n_rows}
    return Written(model.but(*notes, tensors=tensors, files=files), wants, stored, bits, reasons)


def _say_dtype(config: dict[str, Any], dtype: str) -> None:
    """Put it wherever config.json says in which type the model is: transformers' older and newer word for it."""
    nested = {name: dict(config[name]) for name in TEXT_MODELS if isinstance(config.get(name), dict)}
    config |= nested
    if "dtype" not in config:
        config["torch_dtype"] = dtype
    for part in (config, *nested.values()):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}


def configured(
    checkpoint: Checkpoint, kind: str, to_hf: Callable[[Checkpoint], Checkpoint]
) -> tuple[Checkpoint, dict[str, Any]]:
    """The model as a folder of floats, and its config.json, which there must be."""
    model = to_hf(checkpoint)
    config = dict(read_config(model))
    if not config:
        raise Unsupported(f"{checkpoint.where}: {kind} needs a config.json to say so; give a model folder or a GGUF")
    arch = archs.by_hf(config)
    if arch is not None and arch.decoder.get("conv1d"):
        raise Unsupported(
            f"{checkpoint.where}: GPT-2's layers are Conv1D, whose columns are no groups; use a GGUF type"
        )
    return model, config


def _layers(
    checkpoint: Checkpoint,
    model: Checkpoint,
    kind: str,
    to_hf: Callable[[Checkpoint], Checkpoint],
    stored: Mapping[str, Coded],
    group: int,
) -> Iterator[tuple[str, Layer | str]]:
    """The weights that could be written as integers, or why not."""
    bare = {key: value for key, value in checkpoint.metadata.items() if key != own_keys.DTYPES}
    blocks = moved(checkpoint, frozenset((*BLOCKS, *TERNARY)), bare, to_hf)
    mlx, bits = kind.startswith("MLX"), MLX.get(kind, 4)
    quantized = any(not tensor.type.is_plain() for tensor in checkpoint.tensors.values()) or stored
    for name, tensor in model.tensors.items():
        linear = is_linear(tensor)
        if name in stored:
            if (linear or mlx) and not (mlx and stored[name].table is E2M1):
                yield name, of_coded(stored[name], any_bits=mlx)
        elif name in blocks:
            if linear or (mlx and len(tensor.shape) == 2):
                yield name, (of_ternary if blocks[name].type.name in TERNARY else of_blocks)(blocks[name])
        elif linear and tensor.row_len % group == 0 and not quantized and kind != MLX_MXFP4:
            yield name, rounded(tensor, group, kind, bits)


def _small_floats(
    checkpoint: Checkpoint,
    model: Checkpoint,
    kind: str,
    to_hf: Callable[[Checkpoint], Checkpoint],
    stored: Mapping[str, Coded],
) -> dict[str, SmallFloats]:
    """The weights that MLX has as floats of four bits; a factor over all of one it has no place for."""
    bare = {key: value for key, value in checkpoint.metadata.items() if key != own_keys.DTYPES}
    types = FLOATS if not scales_of(checkpoint.tensors) else FLOATS[:1]
    blocks = moved(checkpoint, frozenset(types), bare, to_hf)
    quantized = any(not tensor.type.is_plain() for tensor in checkpoint.tensors.values()) or stored
    found: dict[str, SmallFloats] = {}
    for name, tensor in model.tensors.items():
        if name in stored and stored[name].table is E2M1:
            own = carried(stored[name])
            if not isinstance(own, str) and own.type.name in FLOATS and own.factor is None:
                found[name] = SmallFloats(own.tensor(), own.type.name, stored[name].floats())
        elif name in blocks and len(tensor.shape) == 2:
            found[name] = SmallFloats(blocks[name], blocks[name].type.name, blocks[name])
        elif kind == MLX_MXFP4 and is_linear(tensor) and tensor.row_len % 32 == 0 and not quantized:
            found[name] = SmallFloats(tensor.astype(block.by_name("MXFP4")), "rounded from floats", None)
    return found


def _fitting(layer: Layer, kind: str) -> Layer | str:
    """The layer as that kind can say it, or why it can't."""
    mlx = kind.startswith("MLX")
    if layer.shape[-1] % 32 or (layer.group % 32 and mlx):
        return f"rows of {layer.shape[-1]} in groups of {layer.group}"
    if mlx:
        return _with_bias(layer)
    if layer.bits < 4 and layer.zero == 1:
        return _widened(layer, 4)
    if layer.bias is not None:
        found = _with_zeros(layer)
        if isinstance(found, str):
            return found
        layer = found
    layer = _centred(layer)
    if layer.symmetric():
        return layer if layer.bits in (4, 8) else _widened(layer)
    if kind == "W4A16":
        return "zero points, which W4A16_ASYM has"
    return layer if layer.bits == 4 else "zero points beside codes of more than four bits"


def _centred(layer: Layer) -> Layer:
    """A layer of four bits that have room for it with the middle for its one zero point (GPTQ in 2 or 3 bits)."""
    zero, codes = layer.zero, layer.codes
    if isinstance(zero, int) or layer.bits != 4:
        return layer
    first = int(zero(0, 1)[0, 0])
    more = 8 - first
    if more < 1 or layer.top + more > 15 or not all((zero(*slab) == first).all() for slab in layer.slabs()):
        return layer
    return dataclasses.replace(layer, codes=lambda a, b: codes(a, b) + np.uint8(more), zero=8, words=None)


def _widened(layer: Layer, bits: int = 8) -> Layer:
    """A symmetric layer of other bits in eight, or in four."""
    assert isinstance(layer.zero, int)
    middle = 1 << (bits - 1)
    more, codes = np.uint8(middle - layer.zero), layer.codes
    return dataclasses.replace(layer, bits=bits, codes=lambda a, b: codes(a, b) + more, zero=middle, words=None)


def _with_zeros(layer: Layer) -> Layer | str:
    """The layer with zero points in the place of sums that are whole scales."""
    scale, bias, top = layer.scale, layer.bias, (1 << layer.bits) - 1
    assert bias is not None

    def zeros(start: int, stop: int) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            found: NDArray[np.float32] = np.nan_to_num(np.rint(-bias(start, stop) / scale(start, stop)))
        return found

    for slab in layer.slabs():
        z = zeros(*slab)
        if z.min(initial=0) < 0 or z.max(initial=0) > top or (z * scale(*slab) != -bias(*slab)).any():
            return "sums that are no zero points"
    return dataclasses.replace(layer, zero=zeros, bias=None)


def _with_bias(layer: Layer) -> Layer | str:
    """The layer with biases in the place of zero points, where float16 (bfloat16) says them."""
    if layer.bias is not None:
        return layer
    scale, zero = layer.scale, layer.zero

    def bias(start: int, stop: int) -> NDArray[np.float32]:
        z = np.float32(zero) if isinstance(zero, int) else zero(start, stop)
        product: NDArray[np.float32] = -z * scale(start, stop)
        return product

    made = dataclasses.replace(layer, bias=bias, zero=0)
    if not any(_all(made, dtype) for dtype in (np.dtype(np.float16), plain.BF16.layout)):
        return "zero points times scales that float16 can't say"
    return made


def _all(layer: Layer, dtype: np.dtype[Any]) -> bool:
    """Whether all scales and biases are numbers of that type."""
    for slab in layer.slabs():
        for rows in (layer.scale, layer.bias):
            if rows is not None and not are_said(rows(*slab), dtype):
                return False
    return True


def _group(layers: Mapping[str, Layer], asked: int | None, kind: str) -> int:
    """Columns of a group, for all layers; 0 where each has its own, which compressed-tensors' folders can say."""
    if asked:
        for name, layer in layers.items():
            if not _divides(asked, layer):
                raise Unsupported(
                    f"tensor {cut(name)} has groups of {layer.group} whose scales differ within {asked} columns; "
                    "leave the group size out"
                )
        return asked
    own = {layer.group for layer in layers.values()}
    least = min(own)
    for g in _GROUPS:
        if (g >= least or least % _GROUPS[0] == 0) and all(_divides(g, layer) for layer in layers.values()):
            return g
    if not kind.startswith("MLX"):
        return least if len(own) == 1 else 0
    return 32


def _divides(group: int, layer: Layer) -> bool:
    """Whether a layer's numbers can be said in groups of that size."""
    return layer.agrees(group) or layer.group % group == 0


# What the programs load.


def _packed_words(layer: Layer, bits: int) -> Rows:
    """Codes in words of 32 bits, one stream of bits a row, lowest first."""

    def words(start: int, stop: int) -> Bytes:
        if layer.words is not None:
            return np.ascontiguousarray(layer.words(start, stop)).view(np.uint8)
        codes = np.ascontiguousarray(layer.codes(start, stop))
        if bits == 8:
            return codes
        if bits == 4:
            out = np.empty(codes.size // 2, np.uint8)
            kernels.pack_along(codes.reshape(-1), out)
            return out.reshape(len(codes), -1)
        streams = np.unpackbits(codes[:, :, None], axis=-1, bitorder="little")[:, :, :bits]
        return np.packbits(streams.reshape(len(codes), -1), axis=-1, bitorder="little")

    return words


def _floats(rows: Rows, kind: BlockClass) -> Callable[[int, int], Bytes]:
    assert kind.dtype is not None
    dtype = kind.dtype
    return lambda start, stop: np.ascontiguousarray(rows(start, stop)).astype(dtype).view(np.uint8)


def _packed(layer: Layer, group: int, scales: BlockClass, kind: str) -> list[Tensor]:
    """compressed-tensors' tensors."""
    (n, k), bits, group = layer.shape, layer.bits, group or layer.group
    module = layer.weight.removesuffix(".weight")
    across = k // group
    made = [
        Tensor(f"{module}.weight_packed", (n, k * bits // 32), plain.I32, _packed_words(layer, bits)),
        Tensor(f"{module}.weight_scale", (n, across), scales, _floats(layer.in_groups(layer.scale, group), scales)),
        Tensor.from_array(f"{module}.weight_shape", np.array([n, k], np.int64)),
    ]
    if not _is_symmetric(layer, kind):
        zero = layer.zero
        rows: Rows = (lambda a, b: np.full((b - a, k // layer.group), zero)) if isinstance(zero, int) else zero
        rows = layer.in_groups(rows, group)

        each = 32 // bits  # rows of zero points in a row of words

        def zeros(start: int, stop: int) -> Bytes:
            numbers = rows(each * start, min(n, each * stop)).astype(np.uint8)
            numbers = np.pad(numbers, ((0, each * (stop - start) - len(numbers)), (0, 0))).reshape(-1, each, across)
            if bits == 4:
                numbers = numbers[:, 0::2] | numbers[:, 1::2] << np.uint8(4)
            return np.ascontiguousarray(numbers.transpose(0, 2, 1)).reshape(stop - start, across * 4)

        made.append(Tensor(f"{module}.weight_zero_point", (-(-n // each), across), plain.I32, zeros))
    return made


def _is_symmetric(layer: Layer, kind: str) -> bool:
    """Whether it is written without zero points: no server's kernels take them beside codes of eight bits."""
    return kind != "W4A16_ASYM" or layer.bits == 8


def _mlx(layer: Layer, group: int, scales: BlockClass) -> list[Tensor]:
    """MLX's tensors."""
    (n, k), bits = layer.shape, layer.bits
    module = layer.weight.removesuffix(".weight")
    assert layer.bias is not None
    return [
        Tensor(layer.weight, (n, k * bits // 32), plain.U32, _packed_words(layer, bits)),
        Tensor(f"{module}.scales", (n, k // group), scales, _floats(layer.in_groups(layer.scale, group), scales)),
        Tensor(f"{module}.biases", (n, k // group), scales, _floats(layer.in_groups(layer.bias, group), scales)),
    ]


def _mlx_floats(name: str, blocks: Tensor) -> list[Tensor]:
    """MLX's tensors of floats of four bits."""
    (n, k), (packed, scales) = blocks.shape, small_floats(blocks)
    each = 16 if blocks.type.name == "NVFP4" else 32
    return [
        Tensor(name, (n, k // 8), plain.U32, packed),
        Tensor(f"{name.removesuffix('.weight')}.scales", (n, k // each), plain.U8, scales),
    ]


def _mlx_settings(layers: Mapping[str, Layer], group: int, floats: Mapping[str, SmallFloats]) -> dict[str, Any]:
    """What MLX's config.json says: what most layers have for all, others under their modules' names."""
    said = {name: (group, layer.bits, "affine") for name, layer in layers.items()}
    said |= {name: (each.group, 4, each.blocks.type.name.lower()) for name, each in floats.items()}
    usual = Counter(said.values()).most_common(1)[0][0]
    names = ("group_size", "bits", "mode")
    others = {name.removesuffix(".weight"): own for name, own in said.items() if own != usual}
    return dict(zip(names, usual, strict=True)) | {m: dict(zip(names, own, strict=True)) for m, own in others.items()}


def _packed_settings(layers: Mapping[str, Layer], group: int, model: Checkpoint, kind: str) -> dict[str, Any]:
    """What compressed-tensors' config.json says."""
    alike: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers.items():
        alike.setdefault((layer.bits, group or layer.group), []).append(name.removesuffix(".weight"))
    groups = {}
    for i, ((bits, size), modules) in enumerate(alike.items()):
        symmetric = _is_symmetric(layers[f"{modules[0]}.weight"], kind)
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group"}
        weights |= {"group_size": size, "dynamic": False, "actorder": None}
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(alike) == 1 else modules,
            "weights": weights | {"block_structure": None, "observer": "minmax"},
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return settings("pack-quantized", groups, layers, model)


def settings(form: str, groups: Mapping[str, Any], layers: Mapping[str, Any], model: Checkpoint) -> dict[str, Any]:
    """compressed-tensors' `quantization_config`."""
    left = [
        t.name.removesuffix(".weight")
        for t in model.tensors.values()
        if len(t.shape) == 2 and t.name.endswith(".weight") and t.name not in layers and "embed" not in t.name
    ]
    stacks = [name for name, tensor in model.tensors.items() if len(tensor.shape) == 3 and name not in layers]
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({*left, "lm_head"} - {n.removesuffix(".weight") for n in layers}) + ignored(stacks, layers),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
