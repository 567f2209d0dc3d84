"""Rows: which tensors of a GGUF are which tensors of another ecosystem, and the one engine that reads them both ways.

Architectures, JSON layouts and llama2.c are tables of these.  `forward` makes a GGUF's tensors, `backward` gives the
others back, `check` asks a GGUF whether its tensors are those that its keys promise.

Patterns: `{i}` is the layer, `{m}` its number among those that predict further tokens, `{d}` among those whose results
a text model takes, `{w}` the layer with a table of n-grams, `{j}` a layer in its stack, which is `{s}` (L or H), `{p}`
what stands before the model's own names ("model."); those of `SERIES` stand for several names.  Shapes and conditions
are expressions over the dimensions (`keys.DIMS`), in which `i` is the layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmconv.convert.tables.ops import Dims, Op, Parts, evaluate
from llmconv.errors import BadFile, LlmconvError, MissingTensor, WrongShape
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.quant import plain

__all__ = [
    "Flag",
    "Form",
    "Moved",
    "Row",
    "Slot",
    "Told",
    "at_layer",
    "backward",
    "check",
    "find",
    "flag_of",
    "forward",
    "prefix_of",
    "row",
    "slots",
]

SERIES = {
    "{e}": "n_expert",
    "{g}": "n_group",
    "{q}": "n_head",
    "{k}": "n_head_kv",
    "{l}": "n_layer",
    "{a}": "n_more",
    "{z}": "n_parts",
}
"""Patterns that stand for several names (experts, heads, layers), and the dimension that says how many."""


def _counted(pattern: str, dims: Dims, prefix: str = "") -> list[str]:
    """The names that a pattern stands for, experts and heads counted out."""
    name = pattern.replace("{p}", prefix).replace("{i}", str(dims.get("i", 0)))
    if "{m}" in name:
        name = name.replace("{m}", str(dims["i"] - dims["n_layer"] + dims["n_nextn"]))
    if "{j}" in name:
        stack = max(dims["n_stack"], 1)
        name = name.replace("{j}", str(dims["i"] % stack)).replace("{s}", "LH"[dims["i"] // stack % 2])
    if "{w}" in name:
        name = name.replace("{w}", str(dims["ple_at"] - 1))
    if "{d}" in name:
        name = name.replace("{d}", str(dims.get("deep", 0) - 1))
    series = next((s for s in SERIES if s in name), None)
    return [name] if series is None else [name.replace(series, str(n)) for n in range(dims.get(SERIES[series], 0))]


@dataclass(frozen=True)
class Form:
    """One way in which models store a row outside of GGUF: the names and the ops to GGUF's."""

    patterns: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    beside: str = ""
    """A GGUF tensor that is there only in models of this form: how to tell it from a GGUF alone."""
    without: str = ""
    """A GGUF tensor that is there only in models of other forms."""
    where: str = ""
    """An expression over the dimensions that holds of GGUFs whose models have this form."""
    backward: bool = False
    """Only for the way back, of a GGUF that was not made by this program."""

    def names(self, dims: Dims, prefix: str = "") -> tuple[str, ...]:
        """The tensor names of one layer."""
        return tuple(name for pattern in self.patterns for name in _counted(pattern, dims, prefix))

    @property
    def stored_as(self) -> BlockClass | None:
        """The block type that the ops give, whatever they are given; None: they keep the type."""
        return next((op.stored_as for op in self.ops if op.stored_as is not None), None)

    @property
    def rounding(self) -> Op | None:
        """The op whose `undo` does not give all bits back; it stands first, where tensors have their own names."""
        return next((op for op in self.ops[:1] if not op.exact), None)

    def __post_init__(self) -> None:
        if not all(op.exact for op in self.ops[1:]):
            raise ValueError(f"{self.patterns[0]}: an op that rounds must be the first of its form")


Optional = bool | str | Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Row:
    """Tensors of a GGUF and the forms in which other ecosystems have them.

    gguf: names; with `{i}` there is one set per layer.
    shapes: one shape per name, "n_head * head_dim, n_embd".
    when: an expression; the row exists only where it holds.
    optional: False: must be there; True: may be missing; the name of a configuration flag (or "!flag"): may be missing,
        and counts as there when the flag is set.  "flag=true": set in a config that does not say.  A function of the
        configuration says it where no flag does.
    """

    gguf: tuple[str, ...]
    forms: tuple[Form, ...]
    shapes: tuple[str, ...]
    when: str = ""
    optional: Optional = False

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.gguf[0]

    def slot(self, dims: Dims) -> Slot:
        """The row at the layer `dims["i"]`."""
        gguf, shapes = [], []
        for pattern, shape in zip(self.gguf, self.shapes, strict=True):
            names = _counted(pattern, dims)
            gguf += names
            shapes += [tuple(evaluate(size, dims) for size in shape.split(","))] * len(names)
        return Slot(self, tuple(gguf), tuple(shapes), dims)


class Flag(NamedTuple):
    """What `Row.optional` says.   setting: of a configuration.   there: its value where the tensors are.   usual: the
    value where a configuration states none."""

    setting: str
    there: bool
    usual: bool


def flag_of(text: str) -> Flag:
    """Of "attention_bias", "!no_bias" or "qkv_bias=true"."""
    setting, _, usual = text.lstrip("!").partition("=")
    return Flag(setting, not text.startswith("!"), usual == "true")


def row(
    gguf: str | tuple[str, ...],
    theirs: str | tuple[str, ...],
    shape: str | tuple[str, ...],
    *ops: Op,
    when: str = "",
    optional: Optional = False,
    alt: tuple[Form, ...] = (),
) -> Row:
    """A row of a table; see `Row`.  theirs: names outside of GGUF.  alt: further forms, tried in order."""
    return Row(_several(gguf), (Form(_several(theirs), ops), *alt), _several(shape), when, optional)


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class Slot:
    """A row at one layer: names filled in, shapes evaluated."""

    row: Row
    gguf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dims: Dims

    def names(self, form: int = 0, prefix: str = "") -> tuple[str, ...]:
        return self.row.forms[form].names(self.dims, prefix)

    def shadows(self, form: int) -> Parts:
        """What the tensors of a form are like, without bytes: the ops undone on the GGUF's shapes."""
        chosen = self.row.forms[form]
        kind = chosen.stored_as or plain.F32
        parts = tuple(Tensor.shadow(name, shape, kind) for name, shape in zip(self.gguf, self.shapes, strict=True))
        for op in reversed(chosen.ops):
            parts = op.undo(parts, self.dims)
        return parts


def at_layer(dims: Mapping[str, Any], i: int) -> dict[str, int]:
    """The dimensions at layer `i`: per-layer arrays give their i-th value."""
    out = {k: (v[i] if i < len(v) else 0) if isinstance(v, list) else v for k, v in dims.items()}
    out["i"] = i
    return out


def slots(rows: Iterable[Row], dims: Mapping[str, Any]) -> Iterator[Slot]:
    """Every row at every layer where it exists, in GGUF's customary order."""
    rows = tuple(rows)
    layers = ((True, i) for i in range(dims["n_layer"]))  # a damaged file may claim any number
    for per_layer, i in itertools.chain([(False, 0)], layers):
        here = at_layer(dims, i)
        for item in rows:
            if item.per_layer is per_layer and (not item.when or evaluate(item.when, here)):
                yield item.slot(here)


def find(slot: Slot, prefix: str, tensors: Mapping[str, Any]) -> tuple[int, tuple[str, ...]] | None:
    """The first form of the row whose tensors are all there, and their names; of forms that are called alike, the first
    that has their shapes."""
    found: list[tuple[int, tuple[str, ...]]] = []
    for number, form in enumerate(slot.row.forms):
        if form.backward or _too_many(slot, form, len(tensors)):
            continue  # a count that the file can't have
        names = form.names(slot.dims, prefix)
        if names and all(name in tensors for name in names) and (not found or names == found[0][1]):
            found.append((number, names))
    fitting = (one for one in found if len(found) > 1 and _fits(slot, *one, tensors))
    return next(fitting, found[0] if found else None)


def _fits(slot: Slot, number: int, names: tuple[str, ...], tensors: Mapping[str, Any]) -> bool:
    """Whether tensors have the shapes that a form gives them."""
    try:
        return all(tensors[name].shape == part.shape for name, part in zip(names, slot.shadows(number), strict=True))
    except LlmconvError:
        return False


def _too_many(slot: Slot, form: Form, count: int) -> bool:
    return any(series in name and slot.dims.get(n, 0) > count for name in form.patterns for series, n in SERIES.items())


def _first_missing(slot: Slot, prefix: str, tensors: Mapping[str, Any]) -> str:
    """The tensor to name where no form of a row is there whole."""
    first = slot.row.forms[0]
    if _too_many(slot, first, len(tensors)):
        return first.patterns[0].replace("{p}", prefix).replace("{i}", str(slot.dims["i"]))
    return next((name for name in first.names(slot.dims, prefix) if name not in tensors), slot.gguf[0])


def prefix_of(prefixes: Iterable[str], rows: Iterable[Row], dims: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """The prefix under which most of the first layer's tensors are; the first of equals."""
    first = list(slots(rows, {**dims, "n_layer": min(1, dims["n_layer"])}))
    return max(prefixes, key=lambda prefix: sum(find(slot, prefix, tensors) is not None for slot in first))


@dataclass(frozen=True)
class Told:
    """How messages put it.  where: the file.   by: what gives shapes ("by config.json").   why: a tensor must be."""

    where: str
    by: str
    why: str


@dataclass(frozen=True)
class Moved:
    """A row's tensors on their way: taken under `names`, made as `parts`.  lost: what `Op.lost` says, by name."""

    slot: Slot
    form: int
    names: tuple[str, ...]
    parts: Parts
    lost: Mapping[str, Any] = field(default_factory=dict)


def forward(places: Iterable[Slot], tensors: Mapping[str, Tensor], told: Told, prefix: str = "") -> Iterator[Moved]:
    """Every row that is there, made into the GGUF's tensors.

    `MissingTensor` for one that must be there, `WrongShape`, and `BadFile` for whole numbers that nothing scales.
    """
    for slot in places:
        found = find(slot, prefix, tensors)
        if found is None:
            if slot.row.optional is False:
                raise MissingTensor(told.where, _first_missing(slot, prefix, tensors), told.why)
            continue
        number, names = found
        form, parts = slot.row.forms[number], tuple(tensors[name] for name in names)
        _check_theirs(slot, number, parts, told)
        lost = {}
        if form.rounding is not None:
            records = zip(names, form.rounding.all_lost(parts, slot.dims), strict=True)
            lost = {name: record for name, record in records if record is not None}
        for op in form.ops:
            parts = op.apply(parts, slot.dims)
        made = tuple(part.renamed(name) for part, name in zip(parts, slot.gguf, strict=True))
        yield Moved(slot, number, names, made, lost)


def _check_theirs(slot: Slot, form: int, parts: Parts, told: Told) -> None:
    """Whether the tensors have the shapes that undoing the ops gives, and are floats where nothing packs them."""
    try:
        expected = slot.shadows(form)
    except LlmconvError as error:
        source = told.by.removeprefix("by ")
        raise BadFile(f"{told.where}: {source} contradicts itself about {parts[0].name!r}: {error}") from None
    for part, want in zip(parts, expected, strict=True):
        if part.shape != want.shape:
            raise WrongShape(told.where, part.name, part.shape, want.shape, told.by)
        if slot.row.forms[form].stored_as is None and part.type.is_plain() and not part.type.is_float:
            raise BadFile(
                f"{told.where}: tensor {part.name!r} is {part.type.name}, expected floats: nothing says what its "
                "numbers stand for; give the original model"
            )


def check(slot: Slot, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """The row's tensors that a GGUF lacks; `WrongShape` for one that is not what the keys say."""
    for name, shape in zip(slot.gguf, slot.shapes, strict=True):
        if name in tensors and tensors[name].shape != shape:
            raise WrongShape(where, name, tensors[name].shape, shape, "by its keys")
    return [name for name in slot.gguf if name not in tensors]


def backward(
    places: Iterable[Slot],
    tensors: Mapping[str, Tensor],
    told: Told,
    prefix: str = "",
    form_of: Callable[[Slot], int] = lambda slot: 0,
    type_of: Callable[[str], BlockClass | None] = lambda name: None,
    lost: Mapping[str, Any] | None = None,
) -> Iterator[Moved]:
    """Every row that a GGUF has, given back in its form; quantized values decoded, unless the form holds them as such.

    type_of: the float type that a tensor had, where known.   lost: the records of `Moved.lost`, by name.
    """
    for slot in places:
        missing = check(slot, tensors, told.where)
        if missing:
            if slot.row.optional is False or len(missing) < len(slot.gguf):
                raise MissingTensor(told.where, missing[0], told.why)
            continue
        number = form_of(slot)
        form, parts = slot.row.forms[number], tuple(tensors[name] for name in slot.gguf)
        if form.stored_as is None:
            parts = tuple(p if p.type.is_plain() else p.astype(plain.F32) for p in parts)
            if len({p.type for p in parts}) > 1 and any(not tensors[name].type.is_plain() for name in slot.gguf):
                parts = tuple(p.astype(plain.F32) for p in parts)  # rows of some were too short for the others' type
        before = parts
        for op in reversed(form.ops):
            before, parts = parts, op.undo(parts, slot.dims)
        names = form.names(slot.dims, prefix)
        parts = tuple(_typed(part, type_of(name)) for name, part in zip(names, parts, strict=True))
        if form.rounding is not None and lost:
            parts = form.rounding.all_restored(parts, before, tuple(map(lost.get, names)), slot.dims)
        out = tuple(part.renamed(name) for name, part in zip(names, parts, strict=True))
        yield Moved(slot, number, slot.gguf, out)


def _typed(tensor: Tensor, wanted: BlockClass | None) -> Tensor:
    """A tensor in the float type that it had, where that is known."""
    if wanted is None or not wanted.is_float or not tensor.type.is_float or not wanted.can_encode():
        return tensor
    return tensor.astype(wanted)
