"""Recipes: which block type each tensor of a model gets under a file type.

`assign` is a pure function of names, shapes and a few hyper-parameters, so that a mix can be printed before anything
is written.  It makes the same choices as llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp), from the tables in
`mixes.py`.

The order of the tensors matters, as it does there: rules for "the first eighth of the layers" count the tensors met so
far, not the number in their names, unless the model has experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from llmconv.errors import Unsupported, UsageError, cut
from llmconv.quant import block, images
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import COPY, FileType
from llmconv.quant.mixes import (
    ATTN_V,
    EMBEDDING,
    FALLBACK,
    FFN,
    KEPT,
    KEPT_NAMES,
    KEPT_OF_ARCH,
    NEEDS_IMPORTANCE,
    OUTPUT,
    RULES,
    TINY,
    At,
    Model,
    role_of,
)

__all__ = ["Choice", "Model", "Options", "Weight", "assign", "check_patterns", "order", "tensor_type_rules"]


BlockClass: TypeAlias = type[BlockType]


class Weight(Protocol):
    """What a rule looks at of a tensor (`formats.Tensor` has it)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> BlockClass: ...


@dataclass(frozen=True, slots=True)
class Options:
    """The user's wishes, with the reference's meaning.

    pure: every tensor that may be quantized gets the default type (or a fallback), no rules.
    tensor_types: (compiled pattern, block type), searched in a name in this order; the first that matches wins.
    output_type, embedding_type: for `output.weight`, for `token_embd.weight`.
    leave_output: `output.weight` stays as it is.
    importance: there is an importance matrix (a few rules ask).
    """

    pure: bool = False
    tensor_types: Sequence[tuple[re.Pattern[str], BlockClass]] = ()
    output_type: BlockClass | None = None
    embedding_type: BlockClass | None = None
    leave_output: bool = False
    importance: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The block type chosen for a tensor.

    wanted: the type before a fallback, the same as `type` where there was none.
    quantizable: False for tensors that are left alone (norms, biases, ...).
    needs_importance: the reference refuses this choice without importance weights.
    """

    name: str
    type: BlockClass
    wanted: BlockClass
    quantizable: bool
    needs_importance: bool


def order(names: Iterable[str]) -> list[str]:
    """Tensor names as the reference writes them: by layer, those of no layer first, then by the names' bytes."""

    def key(name: str) -> tuple[int, bytes]:
        layer = _layer(name)
        return -1 if layer is None else layer, name.encode("utf-8", "surrogateescape")

    return sorted(names, key=key)


def _layer(name: str) -> int | None:
    found = re.match(r"blk\.\s*([+-]?\d{1,9})", name, re.ASCII)
    return int(found[1]) if found else None


def tensor_type_rules(texts: Iterable[str]) -> tuple[tuple[re.Pattern[str], BlockClass], ...]:
    """`REGEX=TYPE` texts as patterns and types; the pattern is lower-cased, as the reference does."""
    rules = []
    for text in texts:
        pattern, found, name = text.partition("=")
        if not found or not pattern or not name:
            raise UsageError(f"tensor type {text!r} is not REGEX=TYPE; write for example attn_v=Q8_0")
        try:
            compiled = re.compile(pattern.lower())
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(f"tensor type {text!r}: the pattern is no regular expression ({error})") from None
        rules.append((compiled, block.by_name(name)))
    return tuple(rules)


def _may_quantize(weight: Weight, model: Model, options: Options) -> bool:
    name = weight.name
    if model.arch in images.KEPT:
        return weight.type.is_float and not images.kept(model.arch, name, weight.shape)
    return (
        weight.type.is_float
        and any(n > 1 for n in weight.shape[:-1])  # at least a matrix; leading ones don't count
        and (name.endswith("weight") or model.plain)
        and name not in KEPT_NAMES
        and not (options.leave_output and name == "output.weight")
        and not any(part in name for part in KEPT)
        and not any(part in name for part in KEPT_OF_ARCH.get(model.arch, ()))
    )


@dataclass
class _Counts:
    """Tensors met so far by role, and how many there are."""

    met: dict[str, int] = field(default_factory=dict)
    attn_v: int = 0

    def next(self, role: str) -> int:
        i = self.met.get(role, 0)
        self.met[role] = i + 1
        return i


def check_patterns(option: str, wanted: Sequence[tuple[re.Pattern[str], BlockClass]], names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    for pattern, kind in wanted:
        if not any(pattern.search(name) for name in names):
            raise UsageError(
                f"{option} {cut(f'{pattern.pattern}={kind.name}')} matches no tensor; llmconv inspect --tensors lists "
                "their names in the file, GGUF's are like blk.0.attn_v.weight"
            )


def assign(weights: Sequence[Weight], model: Model, file: FileType, options: Options | None = None) -> list[Choice]:
    """The block type of each tensor, in the order given (`order` gives the reference's).

    Raises `Unsupported` when no type fits a tensor's row length, or a layer number is outside the model.
    """
    options = options or Options()
    check_patterns("--tensor-type", options.tensor_types, [weight.name for weight in weights])
    counts = _Counts(attn_v=sum(role_of(w.name) == ATTN_V for w in weights))
    tied = all(role_of(w.name) != OUTPUT for w in weights)
    return [_choose(weight, model, file, options, counts, tied) for weight in weights]


def _choose(weight: Weight, model: Model, file: FileType, options: Options, counts: _Counts, tied: bool) -> Choice:
    name, role = weight.name, role_of(weight.name)
    if file is COPY or not _may_quantize(weight, model, options):
        return Choice(name, weight.type, weight.type, False, False)
    default = block.by_name(file.default)
    manual = next((kind for pattern, kind in options.tensor_types if pattern.search(name)), None)
    forced = options.output_type if role == OUTPUT else None
    if role == EMBEDDING and not (name.startswith("per_layer") and manual is not None):
        forced = options.embedding_type
    wanted = forced or default
    if forced is None and not default.is_plain():
        if manual is not None:
            wanted = manual
        elif not options.pure and model.arch in images.KEPT:
            wanted = _of_image(name, file, default, counts)
        elif not options.pure:
            wanted = _by_rule(weight, role, model, file, default, options, counts, tied)
    row = weight.shape[-1]
    if model.arch in images.KEPT and images.fallback(row, wanted.block_size):
        return Choice(name, block.by_name("F16"), wanted, True, False)
    kind = wanted if row % wanted.block_size == 0 else _fallback(name, row, wanted)
    needs = role not in (OUTPUT, EMBEDDING) and (
        kind.name in NEEDS_IMPORTANCE or (kind.name == "Q2_K" and file.name == "Q2_K_S")
    )
    return Choice(name, kind, wanted, True, needs)


def _of_image(name: str, file: FileType, default: BlockClass, counts: _Counts) -> BlockClass:
    role = images.role_of(name)
    chosen = images.preferred(role, file.name, counts.next(f"image {role}")) if role else None
    return block.by_name(chosen) if chosen else default


def _fallback(name: str, row: int, wanted: BlockClass) -> BlockClass:
    if wanted.block_size > 32 and wanted.name not in FALLBACK:
        raise Unsupported(
            f"tensor {name!r} has rows of {row}, not a multiple of {wanted.name}'s block of {wanted.block_size}, and "
            "no smaller type stands in for it; choose another type for it (--tensor-type)"
        )
    instead = block.by_name(FALLBACK.get(wanted.name, wanted.name))
    return instead if row % instead.block_size == 0 else block.by_name("F16")


def _by_rule(
    weight: Weight,
    role: str,
    model: Model,
    file: FileType,
    default: BlockClass,
    options: Options,
    counts: _Counts,
    tied: bool,
) -> BlockClass:
    name, shape = weight.name, weight.shape
    if model.arch == "glm5-next" and any(part in name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
        return block.by_name("Q8_0")
    if tied and role == EMBEDDING:
        role = OUTPUT
    if role == OUTPUT and options.output_type is not None:
        return options.output_type
    i = n = 0
    if role == ATTN_V:
        i, n = counts.next(role), counts.attn_v
    elif role in FFN:
        i, n = counts.next(role), model.n_layer
        if model.n_expert > 1 and file.name not in TINY and file.name != "MXFP4_MOE":
            i = _layer_of(name, n)  # several matrices a layer, in no certain order: counting says nothing
    at = At(
        model,
        name,
        shape[-3] if len(shape) > 2 else 1,
        shape[-1] % default.block_size == 0,
        i,
        n,
        options.importance,
    )
    chosen = default
    for rule_role, types, type_name, condition in RULES:
        if rule_role in (role, "") and (not types or file.name in types) and condition(at):
            chosen = block.by_name(type_name) if type_name else default
            break
    if role == ATTN_V and model.is_70b and file.name not in TINY and chosen.name in ("Q3_K", "Q4_K"):
        chosen = block.by_name("Q5_K")  # an eighth of attn_q's size: better bits cost little
    return chosen


def _layer_of(name: str, n_layer: int) -> int:
    layer = _layer(name)
    if layer is None or not 0 <= layer < n_layer:
        raise Unsupported(f"tensor {name!r}: its layer is not one of the model's {n_layer}; rename it")
    return layer
