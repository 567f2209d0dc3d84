"""A mix of types for a size: what each tensor loses under each type is weighed against its bytes.

The losses are a calibration's; without one, what an importance matrix or the weights alone say, each tensor's as a
share of its own squares, which knows nothing of how much a tensor matters.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmconv.convert.quantizing.plan import Plan, Recipe, make_plan
from llmconv.errors import Unsupported, UsageError, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import BlockClass, Tensor
from llmconv.progress import Meter, Progress
from llmconv.quant import by_name
from llmconv.quant.filetypes import FILE_TYPES, FileType, file_type
from llmconv.quant.imatrix import Importance
from llmconv.quant.recipe import check_patterns
from llmconv.quant.rounding.knapsack import Offer, choose, smallest

__all__ = ["TYPES", "Wish", "mixed", "recipe_text"]

TYPES = (
    *("Q2_K", "Q3_K", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"),
    "F16",
)
"""What a mix is made of where nothing else is said."""
_ALIGNMENT = 32


class Loser(Protocol):
    """Knows what types cost (a calibration)."""

    @property
    def in_nats(self) -> bool: ...
    def losses(
        self, checkpoint: Checkpoint, kinds: Mapping[str, Sequence[BlockClass]], jobs: int | None, progress: Any
    ) -> Mapping[str, Sequence[float]]: ...


@dataclass(frozen=True)
class Wish:
    """What is wanted of a mix, one of the first three.

    size: the file's bytes, at most.   bpw: bits a weight of the tensors' data, at most.   kld: nats of KL divergence,
    at most, predicted of plain rounding.   types: what may be used.   least: (pattern, type): what matches gets no
    fewer bits than the type has.
    """

    size: int | None = None
    bpw: float | None = None
    kld: float | None = None
    types: Sequence[str] = TYPES
    least: Sequence[tuple[re.Pattern[str], BlockClass]] = ()

    def __post_init__(self) -> None:
        given = [name for name in ("size", "bpw", "kld") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError("a mix is made for a size, for bits a weight or for a KL divergence; give one of them")
        if not getattr(self, given[0]) > 0:
            raise UsageError(f"a mix for {given[0]} {getattr(self, given[0])} is not possible; give more than 0")


@dataclass
class _Search:
    """One mix being found.   base: a plan of the same header.   free: names -> the types that each may get."""

    checkpoint: Checkpoint
    recipe: Recipe
    path: Path
    base: Plan
    free: dict[str, list[BlockClass]]
    losses: dict[str, list[float]] = field(default_factory=dict)

    @property
    def fixed_bytes(self) -> int:
        """Of the header and of the tensors that have no choice."""
        own = sum(_padded(t.nbytes) for t in self.base.tensors if t.source.name in self.free)
        return self.base.size - own

    def sizes(self, name: str) -> list[int]:
        """What a free tensor takes in each of its types."""
        return [_padded(_nbytes(self.checkpoint.tensors[name], kind)) for kind in self.free[name]]

    def offers(self) -> list[Offer]:
        return [Offer(self.sizes(name), self.losses[name]) for name in self.free]

    def plan(self, types: Mapping[str, BlockClass]) -> Plan:
        """The plan with these types of the free tensors."""
        rules = [(re.compile(f"^{re.escape(name)}$"), kind) for name, kind in types.items()]
        blocks = Counter(kind.name for kind in types.values() if not kind.is_plain()).most_common(1)
        default = blocks[0][0] if blocks else "F16"
        number = file_type(default, pure=True).number
        recipe = dataclasses.replace(self.recipe, tensor_types=[*self.recipe.tensor_types, *rules])
        return make_plan(self.checkpoint, FileType("MIX", number, default), self.path, recipe)


def mixed(
    checkpoint: Checkpoint, path: Path, recipe: Recipe, wish: Wish, loser: Loser | None, progress: Progress | None
) -> tuple[Plan, float, str]:
    """The plan of the mix, its predicted loss, and a sentence on what the prediction rests on.

    checkpoint: a float model in GGUF's dialect.   Never larger than asked; `UsageError` where that can't be.
    """
    base = make_plan(checkpoint, FileType("MIX", 7, "Q8_0"), path, dataclasses.replace(recipe, pure=True))
    kinds = [by_name(name) for name in dict.fromkeys(wish.types)]
    check_patterns("--min-type", wish.least, [t.source.name for t in base.tensors])
    free = {
        t.source.name: offered
        for t in base.tensors
        if t.choice.quantizable and not _pinned(t.name, recipe)
        if (offered := _offered(checkpoint.tensors[t.source.name], kinds, wish))
    }
    if not free:
        raise UsageError("no tensor is left to choose a type for; leave some of --tensor-type or --min-type out")
    if wish.kld is not None and loser is not None and not loser.in_nats:
        raise UsageError("--target-kld needs to know what errors cost, which --effort fast does not find; use standard")
    if wish.kld is not None and loser is None:
        raise UsageError("--target-kld needs to know what errors cost; give a text (--calibrate) or --calibration")
    search = _Search(checkpoint, recipe, path, base, free)
    room = _room(search, wish)  # first: a calibration takes minutes
    basis = _predict(search, loser, progress)
    picked = _best(search, _for_loss(search, wish.kld) if wish.kld is not None else room)
    loss = sum(search.losses[name][free[name].index(kind)] for name, kind in picked.items())
    return search.plan(picked), loss, basis


def _predict(search: _Search, loser: Loser | None, progress: Progress | None) -> str:
    """Fill in what each type of each free tensor would lose; what that rests on."""
    tensors, free, matrix = search.checkpoint.tensors, search.free, search.recipe.matrix
    known = dict(loser.losses(search.checkpoint, free, None, progress)) if loser is not None else {}
    meter = Meter(progress, "look at types", sum(tensors[n].n_elements for n in free if n not in known), "weights")
    for name, offered in free.items():
        if name in known:
            search.losses[name] = list(known[name])
        elif known:  # nothing is known of it: the best there is
            search.losses[name] = [0.0 if kind is offered[-1] else 1e9 for kind in offered]
        else:
            search.losses[name] = _relative(tensors[name], offered, matrix)
            meter(tensors[name].n_elements, name)
    return "a calibration" if known else "the importance matrix" if matrix else "the weights alone"


def _room(search: _Search, wish: Wish) -> int:
    """Bytes that the free tensors may take, padded, for a size or for bits a weight; 0 for a KL divergence."""
    if wish.kld is not None:
        return 0
    if wish.size is not None:
        budget = wish.size - search.fixed_bytes
    else:
        assert wish.bpw is not None
        weights = sum(t.source.n_elements for t in search.base.tensors)
        kept = sum(t.nbytes for t in search.base.tensors if t.source.name not in search.free)
        budget = int(wish.bpw * weights / 8) - kept
    least = sum(min(search.sizes(name)) for name in search.free)
    if budget < least:
        total = search.fixed_bytes + least
        raise UsageError(f"the smallest file of these types has {total:,} bytes; give a larger size, or other --types")
    return budget


def _for_loss(search: _Search, most: float) -> int:
    """The smallest budget whose best mix is predicted to lose at most so much."""
    offers = search.offers()
    low, high = smallest(offers), sum(max(offer.sizes) for offer in offers)
    if _loss(offers, choose(offers, high)) > most:
        raise UsageError(f"no mix of these types is predicted to lose at most {most:g}; give more, or other --types")
    while high - low > max(64, low // 1000):
        middle = (low + high) // 2
        if _loss(offers, choose(offers, middle)) <= most:
            high = middle
        else:
            low = middle
    return high


def _loss(offers: Sequence[Offer], chosen: Sequence[int] | None) -> float:
    return float("inf") if chosen is None else sum(o.losses[i] for o, i in zip(offers, chosen, strict=True))


def _best(search: _Search, budget: int) -> dict[str, BlockClass]:
    """The mix found, or the file type of at most its size that is predicted to lose less."""
    offers = search.offers()
    chosen = choose(offers, budget)
    assert chosen is not None
    candidates = [(_loss(offers, chosen), {n: k[i] for (n, k), i in zip(search.free.items(), chosen, strict=True)})]
    for kind in FILE_TYPES.values():
        try:
            plan = make_plan(search.checkpoint, kind, search.path, dataclasses.replace(search.recipe, pure=False))
        except (UsageError, Unsupported):  # no rows of its blocks, or it needs a matrix
            continue
        types = {t.source.name: t.choice.type for t in plan.tensors if t.source.name in search.free}
        if all(kind in search.free[name] for name, kind in types.items()):
            picks = [search.free[name].index(types[name]) for name in search.free]
            if sum(offer.sizes[i] for offer, i in zip(offers, picks, strict=True)) <= budget:
                candidates.append((_loss(offers, picks), types))
    return min(candidates, key=lambda found: found[0])[1]


def _pinned(name: str, recipe: Recipe) -> bool:
    """Whether the user says what it becomes."""
    if name == "output.weight" and (recipe.output_type is not None or recipe.leave_output):
        return True
    if name == "token_embd.weight" and recipe.embedding_type is not None:
        return True
    return any(pattern.search(name) for pattern, _ in recipe.tensor_types)


def _offered(tensor: Tensor, kinds: Sequence[BlockClass], wish: Wish) -> list[BlockClass]:
    """The types whose blocks its rows are, with no fewer bits than asked for, the smallest first."""
    fitting = [kind for kind in kinds if tensor.row_len % kind.block_size == 0 and kind.can_encode()]
    for pattern, least in wish.least:
        if pattern.search(tensor.name):
            enough = [kind for kind in fitting if _bits(kind) >= _bits(least)]
            if fitting and not enough:
                raise UsageError(
                    f"--min-type {cut(f'{pattern.pattern}={least.name}')}: no type that a mix may use has as many bits "
                    f"for {tensor.name!r}; give a smaller one, or more --types"
                )
            fitting = enough
    return sorted(fitting, key=_bits)


def _bits(kind: BlockClass) -> float:
    return 8 * kind.layout.itemsize / kind.block_size


def _nbytes(tensor: Tensor, kind: BlockClass) -> int:
    return tensor.n_rows * kind.row_bytes(tensor.row_len)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _relative(tensor: Tensor, kinds: Sequence[BlockClass], matrix: Importance | None) -> list[float]:
    """Errors' squares as shares of the weights', each column counted by its importance."""
    found = None if matrix is None else matrix.entries.get(tensor.name)
    matrices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
    each = None if found is None or len(found) != matrices * tensor.row_len else found.reshape(matrices, -1)
    errors, total, height = np.zeros(len(kinds)), 0.0, tensor.n_rows // matrices
    step = max(1, (1 << 22) // tensor.row_len)
    for first in range(0, tensor.n_rows, height):
        counts = None if each is None else np.ascontiguousarray(each[first // height])
        counts = counts if counts is not None and counts.any() else None
        weigh = np.ones(tensor.row_len) if counts is None else counts.astype(np.float64)
        for start in range(first, first + height, step):
            rows = np.asarray(tensor.rows(start, min(start + step, first + height)), np.float32)
            total += float((np.square(rows, dtype=np.float64) * weigh).sum())
            for i, kind in enumerate(kinds):
                made = kind.decode(kind.encode(rows, counts if kind.uses_importance else None))
                errors[i] += float((np.square(made.astype(np.float32) - rows, dtype=np.float64) * weigh).sum())
    return [float(error / total) if total > 0 else 0.0 for error in errors]


def recipe_text(plan: Plan) -> str:
    """The plan's types as lines of REGEX=TYPE, for our and llama-quantize's --tensor-type-file."""
    lines = [f"^{re.escape(t.name)}$={t.choice.type.name.lower()}" for t in plan.tensors if t.choice.quantizable]
    return "\n".join(lines) + "\n"
