"""Are these two files the same model?  Tensors, hyper-parameters and vocabularies, compared in canonical form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert import archs, vocab as vocabulary
from llmconv.convert.dialects.ones import in_shapes, with_ones
from llmconv.convert.towers import translate as towers, which
from llmconv.convert.translate import translate
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.sharing.team import current
from llmconv.formats.tensor import SLAB_BYTES, Tensor
from llmconv.progress import Meter
from llmconv.quant import plain
from llmconv.quant.block import BlockType
from llmconv.show import Shown

__all__ = ["comparable", "TensorVerdict", "Verdict", "compare_tensors", "verify_checkpoints"]

SAMPLE = (
    "Once upon a time, in 1984, naïve Zoë paid €3.50; then she said: “Hello, world!”\n\tdef f(x): return x**2  # 你好"
)
"""Text on which two vocabularies must give the same ids."""

# Facts about a file, not about the model in it.
_FILE_PREFIXES = ("split.", "llmconv.", "quantize.", "tokenizer.", "general.")


@dataclass(frozen=True)
class TensorVerdict(Shown):
    """How tensor `name` of B stands to A's.

    status: "identical" (same type, same bytes), "equal" (every value equal, stored differently), "rounded" (what
    rounding A to B's type gives, or B to A's, byte for byte), "close" (relative error within the tolerance),
    "different", "shape" (shapes differ), "missing" (only in A) or "extra" (only in B).
    max_error: largest |a - b|; rms_error: root mean square of a - b; relative: rms_error / root mean square of a;
    cosine: of the angle between a and b as vectors.  NaN where not measured.
    """

    name: str
    status: str
    type_a: str = ""
    type_b: str = ""
    detail: str = ""
    max_error: float = math.nan
    rms_error: float = math.nan
    relative: float = math.nan
    cosine: float = math.nan

    @property
    def ok(self) -> bool:
        return self.status in ("identical", "equal", "rounded", "close")


@dataclass(frozen=True)
class Verdict(Shown):
    """What `verify` found.  `same` is true when every tensor is ok and neither `hparams` nor `vocab` has a line.

    hparams: key -> (value in A, value in B), None where absent; vocab: differences, a sentence each.
    run: the runtime's comparison over a text, when it was asked for.
    """

    tensors: list[TensorVerdict]
    hparams: dict[str, tuple[Any, Any]]
    vocab: list[str]
    tolerance: float = 0.0
    run: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return all(t.ok for t in self.tensors) and not self.hparams and not self.vocab

    def __repr__(self) -> str:
        return f"Verdict(same={self.same}, tensors={self.counts()}, hparams={self.hparams}, vocab={self.vocab})"

    def counts(self) -> dict[str, int]:
        """status -> number of tensors."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.status] = found.get(tensor.status, 0) + 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the answer and the counts."""
        return {"same": self.same, "counts": self.counts(), **super().as_dict()}


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _rounds_to(a: Tensor, b: Tensor) -> bool:
    """Whether rounding A's values to B's type gives B's bytes."""
    if not b.type.can_encode() or b.type.needs_importance or not (a.type.is_float and b.type.is_float):
        return False
    for start, stop in a.slabs(SLAB_BYTES // 4):
        values = a.rows(start, stop)
        if values.dtype.itemsize == 1:
            values = values.astype(np.float32)
        if not np.array_equal(b.type.encode(values), b.blocks(start, stop)):
            return False
    return True


def _rounds_through(a: Tensor, b: Tensor, kind: type[BlockType]) -> bool:
    """Whether B holds A's values rounded to `kind` and widened again: the vectors of a 16-bit GGUF, numbers in JSON."""
    if not (a.type.is_plain() and b.type.is_plain() and a.type.is_float and b.type.is_float):
        return False
    for start, stop in a.slabs(SLAB_BYTES // 4):
        with np.errstate(over="ignore"):
            rounded = kind.decode(kind.encode(a.rows(start, stop)))
        if not np.array_equal(rounded, b.rows(start, stop), equal_nan=True):
            return False
    return True


def _are_equal(a: Tensor, b: Tensor, slabs: Sequence[tuple[int, int]]) -> bool:
    """Whether all values are equal numbers, which takes a tenth of measuring how far off they are."""
    for slab in slabs:
        x, y = a.rows(*slab), b.rows(*slab)
        if x.dtype != y.dtype:
            x, y = _wide(x), _wide(y)
        if not np.array_equal(x, y):
            return False
    return True


def compare_tensors(
    a: Tensor, b: Tensor, tolerance: float = 0.0, meter: Callable[[int], None] | None = None
) -> TensorVerdict:
    """Compare two tensors slab by slab; `meter` is called with the bytes of A that each slab held."""
    types: dict[str, Any] = {"type_a": a.type.name, "type_b": b.type.name}
    if a.shape != b.shape:
        return TensorVerdict(a.name, "shape", **types, detail=f"{list(a.shape)} against {list(b.shape)}")
    step = max(1, (1 << 20) // max(1, a.row_len))
    slabs = [(start, min(a.n_rows, start + step)) for start in range(0, a.n_rows, step)]
    if a.type is b.type and all(np.array_equal(a.blocks(*slab), b.blocks(*slab)) for slab in slabs):
        if meter:
            meter(a.nbytes)
        return TensorVerdict(a.name, "identical", **types)
    if _are_equal(a, b, slabs):
        if meter:
            meter(a.nbytes)
        return TensorVerdict(a.name, "equal", **types, max_error=0.0, rms_error=0.0, relative=0.0, cosine=1.0)
    equal, top, square, norm_a, norm_b, dot = True, 0.0, 0.0, 0.0, 0.0, 0.0
    for slab in slabs:
        x, y = _wide(a.rows(*slab)), _wide(b.rows(*slab))
        equal = equal and np.array_equal(x, y, equal_nan=True)
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(x - y)
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
            top = max(top, float(gap.max(initial=0.0)))
            square += float(np.square(gap).sum())
            norm_a += float(np.square(np.abs(x)).sum())
            norm_b += float(np.square(np.abs(y)).sum())
            dot += float((x * y.conj()).real.sum())
        if meter:
            meter((slab[1] - slab[0]) * a.row_bytes)
    if equal:
        return TensorVerdict(a.name, "equal", **types, max_error=0.0, rms_error=0.0, relative=0.0, cosine=1.0)
    rms = math.sqrt(square / a.n_elements)
    errors: dict[str, Any] = {
        "max_error": top,
        "rms_error": rms,
        "relative": math.sqrt(square / norm_a) if norm_a else math.inf,
        "cosine": dot / math.sqrt(norm_a * norm_b) if norm_a and norm_b else math.nan,
    }
    if _rounds_to(a, b):
        return TensorVerdict(a.name, "rounded", **types, detail=f"to {b.type.name}", **errors)
    if _rounds_to(b, a):
        return TensorVerdict(a.name, "rounded", **types, detail=f"from {a.type.name}", **errors)
    for kind in (plain.F32, plain.F16, plain.BF16):
        if _rounds_through(a, b, kind):
            return TensorVerdict(a.name, "rounded", **types, detail=f"to {kind.name}, widened", **errors)
        if _rounds_through(b, a, kind):
            return TensorVerdict(a.name, "rounded", **types, detail=f"from {kind.name}, widened", **errors)
    status = "close" if errors["relative"] <= tolerance else "different"
    return TensorVerdict(a.name, status, **types, **errors)


def _plain(value: Any) -> Any:
    """A metadata value as JSON would hold it, so that equal ones compare equal whatever their type."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _close(x: Any, y: Any) -> bool:
    """Equal as float32, in which GGUF holds its floats."""
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(_close(p, q) for p, q in zip(x, y, strict=True))
    if isinstance(x, float) or isinstance(y, float):
        numbers = isinstance(x, int | float) and isinstance(y, int | float)
        return numbers and bool(np.float32(x) == np.float32(y))
    return bool(x == y)


def _hparams(metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata says of the model, completed by what its architecture's table makes of keys left out."""
    table = archs.by_gguf(str(metadata.get("general.architecture", "")))
    try:
        implied = table.metadata(table.config(metadata)) if table else {}
    except LlmconvError:  # too little is there to describe it
        implied = {}
    return {
        key: _plain(value)
        for key, value in {**implied, **metadata}.items()
        if not key.startswith(_FILE_PREFIXES) or key == "general.architecture"
    }


def _vocab_differences(a: Checkpoint, b: Checkpoint) -> Iterable[str]:
    va, vb = vocabulary.of(a), vocabulary.of(b)
    if va is None or vb is None:
        if (va is None) != (vb is None):
            yield f"only {'B' if va is None else 'A'} has a vocabulary"
        return
    ta, tb = list(va.tokens), list(vb.tokens)
    if ta != tb:
        first = next((i for i, (p, q) in enumerate(zip(ta, tb, strict=False)) if p != q), min(len(ta), len(tb)))
        pair = [repr(tokens[first]) if first < len(tokens) else "nothing" for tokens in (ta, tb)]
        yield f"{len(ta)} tokens against {len(tb)}; the first difference is at id {first}: {pair[0]} against {pair[1]}"
    for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        x, y = getattr(va, name, None), getattr(vb, name, None)
        if x != y:
            yield f"special token {name}: id {x} against {y}"
    try:
        ia, ib = (vocabulary.tokenizer(v).encode(SAMPLE) for v in (va, vb))
    except (LlmconvError, ImportError):
        return  # no tokenizer library, or a vocabulary that can't run: the lists above are all there is to compare
    if ia != ib:
        yield f"the sample text gives {len(ia)} ids against {len(ib)}, and not the same ones"


def comparable(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both in GGUF's names: with their towers where both have one, and a folder's tower where the other is one."""
    (text_a, tower_a), (text_b, tower_b) = towers.halves(a), towers.halves(b)
    if tower_a is not None and which.is_tower(b):
        return tower_a, _alike(b, tower_a)
    if tower_b is not None and which.is_tower(a):
        return _alike(a, tower_b), tower_b
    if which.is_tower(a) and which.is_tower(b):
        return _alike(a, b), _alike(b, a)
    a, b = (with_ones(translate(text, "gguf")) for text in (text_a, text_b))
    if tower_a is None or tower_b is None:
        return a, b
    return tuple(  # type: ignore[return-value]
        text.but(tensors={**text.tensors, **tower.tensors}) for text, tower in ((a, tower_a), (b, tower_b))
    )


def _alike(tower: Checkpoint, other: Checkpoint) -> Checkpoint:
    """An mmproj file with the leading ones that who quantized it dropped."""
    return in_shapes(tower, {name: tensor.shape for name, tensor in other.tensors.items()})


def verify_checkpoints(
    a: Checkpoint,
    b: Checkpoint,
    *,
    tolerance: float = 0.0,
    meter: Meter | None = None,
) -> Verdict:
    """Compare two checkpoints of any format or dialect.

    tolerance: the relative error (rms of the difference / rms of A) up to which a tensor counts as close.
    meter: called with (bytes of A just done, tensor name).  Memory is a few slabs, whatever the models' size.
    """
    a, b = comparable(a, b)

    def verdict(i: int) -> TensorVerdict:
        name, tensor = names[i], a.tensors[names[i]]
        other = b.tensors.get(name)
        if other is None:
            return TensorVerdict(name, "missing", type_a=tensor.type.name)
        return compare_tensors(tensor, other, tolerance, functools.partial(meter, item=name) if meter else None)

    names, team = list(a.tensors), current()
    rows = [verdict(i) for i in range(len(names))] if team is None else team.pieces(len(names), verdict)
    rows += [
        TensorVerdict(name, "extra", type_b=tensor.type.name)
        for name, tensor in b.tensors.items()
        if name not in a.tensors
    ]
    ha, hb = _hparams(a.metadata), _hparams(b.metadata)
    differ = {
        key: (ha.get(key), hb.get(key))
        for key in {**ha, **hb}
        if key not in ha or key not in hb or not _close(ha[key], hb[key])
    }
    return Verdict(rows, differ, list(_vocab_differences(a, b)), tolerance)
