"""Models whose weights are stored with scales, read as the floats they stand for.

A value is the stored number, less its zero point, times its scale, computed in float32 as the models' own loaders do;
the tensors are F32 from then on.  Scales of activations and key/value caches (`input_scale`, `k_scale`, ...) have no
place in a float model and are left out.  What isn't read yet is called by its name and refused.
gpt-oss's MXFP4 is repacked without loss by `convert.tables.ops.PackMxfp4` instead.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import NoReturn

from llmconv.convert.scaled.arranged_by_mlx import as_transformers
from llmconv.convert.scaled.awq import Awq
from llmconv.convert.scaled.bitsandbytes import FourBits, LlmInt8
from llmconv.convert.scaled.by_torch import QuantoBits, TorchaoInt4
from llmconv.convert.scaled.coded import Coded
from llmconv.convert.scaled.compressed_tensors import Packed
from llmconv.convert.scaled.four_bit_floats import Mxfp4, Mxfp4Beside, Nvfp4, Nvfp4Beside
from llmconv.convert.scaled.gptq import Gptq
from llmconv.convert.scaled.mlx import Mlx
from llmconv.convert.scaled.planes import BitNet, Hqq
from llmconv.convert.scaled.scheme import SIDE_FILES, Layer, Scheme, Settings, without_settings
from llmconv.convert.scaled.stored import TYPES, Stored, StoredBeside, StoredByMistral, StoredByQuanto, StoredByTorchao
from llmconv.convert.scaled.unread import UNREAD
from llmconv.convert.tables.config import read_config
from llmconv.errors import BadFile, MissingTensor, UnknownTensor, Unsupported, WrongShape, cut, more
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["READ_AS_FLOATS", "SCHEMES", "refuse_parts", "unpack"]

SCHEMES: tuple[Scheme, ...] = (
    Nvfp4Beside(), Stored(), Mxfp4Beside(), StoredBeside(), StoredByMistral(), QuantoBits(), StoredByQuanto(),
    TorchaoInt4(), StoredByTorchao(), Packed(), Nvfp4(), Mxfp4(), Awq(), Gptq(), Mlx(), FourBits(), LlmInt8(), Hqq(),
    BitNet(), *UNREAD,
)  # fmt: skip
"""Every scheme, in the order of asking: the one place to add one."""

READ_AS_FLOATS = "were read as F32"
"""How a note ends that is not true of layers whose numbers are carried."""
_OF_ACTIVATIONS = re.compile(
    r".*[._](input|output|activation|[kqv]|kv|prob|softmax)(_global)?_(scale|zero_point)(_ub)?|.*\.(k|v)_cache\..*scale|.*\.qscale_act"
)
_NO_WEIGHT = re.compile(r".*(attn|attention)\.(bias|masked_bias)|.*position_ids|.*token_type_ids|.*num_batches_tracked")
_OWN_SCALE = re.compile(r".*\bhc_(attn|ffn|head)_scale")
"""Numbers of models with several streams of residuals, which are nobody's scales."""
_PART = re.compile(r"_(scales?\w*|zero\w*|bias\w*|g_idx|shape|absmax)$")
_CODES = (*TYPES, plain.U8, plain.U32, plain.I32)
"""What numbers with scales are stored in."""
_FLOATS = (plain.F64, plain.F32, plain.F16, plain.BF16)


def unpack(checkpoint: Checkpoint, made_of: Callable[[Coded], Tensor] = Coded.floats) -> Checkpoint:
    """The checkpoint with each layer of stored weights and scales as one lazy F32 tensor; itself when there is none.

    made_of: makes another tensor of a layer than that (`convert.quantizing.repack`).

    config.json loses its `quantization_config` then, and a note says so; so it does where the weights are plain floats
    in spite of it.  Raises `Unsupported` for schemes that aren't read, `MissingTensor` for a scale that isn't there,
    `BadFile` when scales and weights don't fit each other.
    """
    if checkpoint.dialect not in ("hf", "plain"):
        return checkpoint
    checkpoint = as_transformers(checkpoint)
    settings = Settings.of(checkpoint)
    settings.block()  # what it says must make sense, needed or not
    _refuse_rotations(settings)
    _refuse_sparse(settings)
    layers, used = _layers(checkpoint.tensors, settings)
    if not layers:
        return _without_layers(checkpoint, settings)
    _refuse_unknown(settings)
    coded = {layer.weight: _coded(scheme, layer) for scheme, layer in layers.values()}
    made = {weight: made_of(each) for weight, each in coded.items()}
    places = {next(iter(layer.parts.values())).name: weight for weight, (_, layer) in layers.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name in places:  # where its first part stood
            tensors[places[name]] = made[places[name]]
        elif name not in used:
            tensors[name] = tensor
    _require_scales(tensors, settings, checkpoint.tensors, {weight.rpartition(".")[2] for weight in made})
    _require_codes(tensors, settings, used)
    _require_biases(made, tensors, settings)
    notes = [f"{len(made)} weights stored with scales ({settings.method or 'by their names'}) {READ_AS_FLOATS}"]
    if n := sum(bool(_OF_ACTIVATIONS.fullmatch(name)) for name in checkpoint.tensors):
        notes.append(f"{n} scales of activations or caches, for which a float model has no use, are dropped")
    said = Counter(each.note for each in coded.values() if each.note)
    notes += [f"of the weights stored with scales, {n} of them {text}" for text, n in said.items()]
    return _as_floats(checkpoint, tensors, *notes)


def _coded(scheme: Scheme, layer: Layer) -> Coded:
    found = scheme.coded(layer)
    if 0 in found.shape:
        name = next(iter(layer.parts.values())).name
        raise BadFile(f"{layer.settings.where}: tensor {cut(name)} holds no weights; the model is damaged")
    return found


def _refuse_unknown(settings: Settings) -> None:
    """`Unsupported` for a method that nobody here knows: the names of its tensors may be those of one that is known."""
    known = {method for scheme in SCHEMES for method in scheme.methods}
    if settings.method and not any(settings.method.lower().startswith(method) for method in known):
        raise Unsupported(
            f"{settings.where}: is quantized with {cut(settings.method)}, which can't be read; give the original model"
        )


def _refuse_rotations(settings: Settings) -> None:
    """`Unsupported` where activations are rotated while the model runs, as its weights are: no float model does that.

    Weights alone that are transformed (locations that begin with "weight_") are as they should be.
    """
    for key, value in settings.values.items():
        if not value or not any(word in key.lower() for word in ("transform", "hadamard", "rotat")):
            continue
        text = json.dumps(value, default=str)
        places = re.findall(r'"location": "(\w+)"', text)
        if not places or not all(place.startswith("weight_") for place in places):
            raise Unsupported(
                f"{settings.where}: config.json's {cut(key)} transforms activations while the model runs, which is not "
                "done here; give a model without it"
            )


def _refuse_sparse(settings: Settings) -> None:
    """`Unsupported` for weights that are stored without their zeros."""
    groups = settings.values.get("config_groups")
    said = [("format", settings.values), ("sparsity_config", settings.values.get("sparsity_config"))]
    said += [("config_groups", group) for group in (groups.values() if isinstance(groups, Mapping) else ())]
    for where, part in said:
        form = part.get("format") if isinstance(part, Mapping) else None
        if isinstance(form, str) and ("sparse" in form or form.endswith("24")):
            raise Unsupported(
                f"{settings.where}: config.json's {where} says {cut(form)}, weights stored without their zeros, which "
                "can't be read; give the original model"
            )


def _layers(tensors: Mapping[str, Tensor], settings: Settings) -> tuple[dict[str, tuple[Scheme, Layer]], set[str]]:
    """The layers by the weight they stand for, and the names of all their tensors."""
    found: dict[str, tuple[Scheme, Layer]] = {}
    used: set[str] = set()
    ends = tuple({mark for scheme in SCHEMES for mark in scheme.marks})
    for name in tensors:
        if not name.endswith(ends) or _OF_ACTIVATIONS.fullmatch(name):
            continue
        for scheme in SCHEMES:
            mark = next((mark for mark in scheme.marks if name.endswith(mark)), None)
            if mark is None:
                continue
            stem = name.removesuffix(mark)
            parts = {end: tensors[stem + end] for end in (*scheme.parts, mark) if stem + end in tensors}
            weight = scheme.weight(stem)
            if scheme.fits(parts, settings) and not _is_known(found.get(weight), parts):
                _refuse_twice(tensors, weight, parts, found.get(weight), scheme, settings)
                found[weight] = scheme, Layer(weight, parts, settings.for_layer(weight))
                used |= {part.name for part in parts.values()}
                break
    return found, used


def _is_known(found: tuple[Scheme, Layer] | None, parts: Mapping[str, Tensor]) -> bool:
    """Whether a layer was found by another of its tensors' endings."""
    own = {part.name for part in found[1].parts.values()} if found else set()
    return bool(own & {part.name for part in parts.values()})


def _refuse_twice(
    tensors: Mapping[str, Tensor],
    weight: str,
    parts: Mapping[str, Tensor],
    found: tuple[Scheme, Layer] | None,
    scheme: Scheme,
    settings: Settings,
) -> None:
    """`BadFile` where a weight is there in two ways: nobody can say which of them is meant."""
    names = [part.name for part in parts.values()]
    other = next(iter(found[1].parts.values())).name if found else weight if weight in tensors else None
    if other is not None and other not in names:
        called = found[0].name if found else "plain numbers"
        raise BadFile(
            f"{settings.where}: {cut(weight)} is stored twice, as {called} (tensor {cut(other)}) and as {scheme.name} "
            f"({cut(names[0])}); the model is damaged, fetch it again"
        )


def _require_scales(
    tensors: Mapping[str, Tensor], settings: Settings, given: Mapping[str, Tensor], called: Set[str]
) -> None:
    """Among weights with scales, one without is as wrong as a scale without a weight.

    called: the last parts of the names of those that have one ("weight").
    """
    for tensor in tensors.values():
        stacked = tensor.type in TYPES and (len(tensor.shape) > 2 or tensor.type.is_float)  # whatever they are called
        wanted = stacked or (tensor.type in _CODES and tensor.name.rpartition(".")[2] in called)
        if wanted and len(tensor.shape) > 1 and not _NO_WEIGHT.fullmatch(tensor.name):
            _missing_scale(tensor, settings, given)
        stem = re.sub(r"_(scale(_inv)?|zero_point)$", "", tensor.name)
        alone = _OF_ACTIVATIONS.fullmatch(tensor.name) or _OWN_SCALE.fullmatch(tensor.name)
        if stem != tensor.name and stem not in given and not alone:
            raise MissingTensor(settings.where, stem, f"its scale {cut(tensor.name)} is there; fetch the model again")


def _require_codes(tensors: Mapping[str, Tensor], settings: Settings, used: Set[str]) -> None:
    """A part that no layer took is one of a layer whose codes are missing.   used: names of parts that were."""
    ends = {name.rpartition(".")[2] for name in used} & {"qzeros", "g_idx", "scales", "biases", "SCB", "absmax"}
    codes = next((end for end in ("qweight", "weight") if any(name.endswith(f".{end}") for name in used)), "weight")
    for name in tensors:
        stem, dot, end = name.rpartition(".")
        if dot and end in ends | {"qzeros", "g_idx"}:
            raise MissingTensor(settings.where, f"{stem}.{codes}", f"{cut(name)} is there; fetch the model again")


def _require_biases(made: Mapping[str, Tensor], tensors: Mapping[str, Tensor], settings: Settings) -> None:
    """A bias has a number for each row of its weight."""
    for weight, tensor in made.items():
        bias = tensors.get(f"{weight.removesuffix('.weight')}.bias")
        if bias is not None and len(tensor.shape) == 2 and bias.shape != tensor.shape[:1]:
            raise WrongShape(settings.where, bias.name, bias.shape, tensor.shape[:1], f"by {cut(weight)}")


def _missing_scale(tensor: Tensor, settings: Settings, given: Mapping[str, Tensor]) -> NoReturn:
    end = "_scale_inv" if any(name.endswith("_scale_inv") for name in given) else "_scale"
    raise MissingTensor(
        settings.where,
        tensor.name + end,
        f"{cut(tensor.name)} is {tensor.type.name}, of which others have a scale; fetch the model again",
    )


def _without_layers(checkpoint: Checkpoint, settings: Settings) -> Checkpoint:
    """A model without a layer of any scheme: as it is, or, where config.json says otherwise, in spite of that."""
    if not settings.values:
        return _codes_alone(checkpoint)
    tensors = {n: t for n, t in checkpoint.tensors.items() if not _OF_ACTIVATIONS.fullmatch(n)}
    odd = [
        t for t in tensors.values() if len(t.shape) > 1 and t.type not in _FLOATS and not _NO_WEIGHT.fullmatch(t.name)
    ]
    if not odd:
        called = settings.method or "other storing"
        note = (
            f"config.json says {cut(called)} in its quantization settings, but the weights are plain floats: left out"
        )
        return _as_floats(checkpoint, tensors, note)
    if settings.method == "mxfp4":
        return checkpoint
    if odd[0].type in TYPES and settings.method in Stored.methods:
        raise MissingTensor(settings.where, f"{odd[0].name}_scale", f"it is quantized ({settings.method})")
    read = {method for scheme in SCHEMES if scheme not in UNREAD for method in scheme.methods}
    if settings.method in read or (not settings.method and odd[0].type is plain.U32 and "bits" in settings.values):
        raise BadFile(
            f"{settings.where}: tensor {cut(odd[0].name)} is {odd[0].type.name}, a part of a quantized layer "
            f"({settings.method or 'MLX'}) whose scales are missing; fetch the model again"
        )
    if not settings.method:
        return checkpoint
    raise Unsupported(
        f"{settings.where}: is quantized with {cut(settings.method)}, which can't be read; give the original model"
    )


def _codes_alone(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, with a note on numbers of eight bits that nothing says scales of."""
    codes = [t for t in checkpoint.tensors.values() if t.type in TYPES and t.type.is_float and len(t.shape) > 1]
    if not codes:
        return checkpoint
    names = [t.name for t in codes]
    return checkpoint.but(
        f"{cut(names[0])}{more(names)}: {codes[0].type.name} without scales, taken as they are; if the model had "
        "scales, the result is wrong"
    )


def _as_floats(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *notes: str) -> Checkpoint:
    """The checkpoint with these tensors, and a config.json that says nothing of how they were stored."""
    kept = {name: tensor for name, tensor in tensors.items() if not _OF_ACTIVATIONS.fullmatch(name)}
    config = without_settings(read_config(checkpoint))
    files: dict[str, Path | bytes] = {n: f for n, f in checkpoint.files.items() if n not in SIDE_FILES}
    if config and "config.json" in files:
        files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return checkpoint.but(*notes, tensors=kept, files=files)


def refuse_parts(where: str, extra: Iterable[str], kept: Iterable[str], head: bool = False) -> None:
    """`UnknownTensor` for a tensor that nobody knows but that is a part of one that is kept, or the model's head.

    Without a scale, a zero point or a bias of its own, a weight would be another; who leaves unknown tensors out
    (`--no-strict`) does not mean that.   head: whether a model of this kind has one.
    """
    kept = dict.fromkeys(kept)
    modules = {re.sub(r"\.(weight|bias)$", "", name): name for name in kept}
    for name in extra:
        if _OF_ACTIVATIONS.fullmatch(name):
            continue
        stems = [name[: dot.start()] for dot in re.finditer(r"\.", name)] + [_PART.sub("", name)]
        whole = next((stem for stem in stems if stem != name and (stem in modules or stem in kept)), None)
        if whole is not None:
            why = f"belongs to {cut(modules.get(whole, whole))}, another weight without it; give the original model"
            raise UnknownTensor(where, [name], why)
        if head and re.search(r"(^|\W)(lm_head|embed_out)(\W|$)", name):
            raise UnknownTensor(where, [name], "is a head in a place where none is looked for; give the original model")
