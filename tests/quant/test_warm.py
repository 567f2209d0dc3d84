"""What a piece of work will have to compile is known before it is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmconv.quant import by_name, names, warm
from llmconv.quant.blocks import iq_tables
from llmconv.quant.kernels.compiling import cache

Called = set[tuple[cache.Entry, np.dtype[Any]]]


@pytest.fixture
def as_on_the_first_day(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget the code of some kernels; compiling gives it again at once."""
    codes: dict[Any, Any] = {}

    def forget(called: Called) -> list[cache.Entry]:
        compiled: list[cache.Entry] = []
        codes.update({(entry, dtype): entry.load(dtype) for entry, dtype in called})
        for entry, _ in called:
            monkeypatch.setattr(entry, "_codes", {})
        monkeypatch.setattr(cache.Entry, "_kept", lambda self, dtype: None)
        monkeypatch.setattr(cache.Entry, "_new", lambda self, dtype: compiled.append(self) or codes[self, dtype])
        return compiled

    return forget


def called_by(uses: list[warm.Use], monkeypatch: pytest.MonkeyPatch) -> Called:
    found: Called = set()
    run = cache.Entry.__call__

    def spy(self: cache.Entry, *args: Any, **named: Any) -> None:
        found.add((self, args[0].dtype))
        run(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(cache.Entry, "__call__", spy)
        for use in uses:
            use()
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [name for name in names() if not by_name(name).is_plain()])
def test_each_type_s_kernels(
    name: str, weighted: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch, as_on_the_first_day: Any
) -> None:
    kind = by_name(name)
    uses = [warm.decoding(kind)]
    if kind.can_encode():
        uses.append(warm.encoding(kind, np.dtype(dtype), weighted))
    for use in uses:
        use()  # tables are made and kept
    expected = called_by(uses, monkeypatch)
    compiled = as_on_the_first_day(expected)
    found = cache.missing(lambda: [use() for use in uses])
    assert set(found) == expected and len(found) == len(expected) > 0 and compiled == []
    warm.prepare(uses)
    assert compiled == [entry for entry, _ in found]
    assert called_by(uses, monkeypatch) == expected and len(compiled) == len(expected)
    assert cache.missing(lambda: [use() for use in uses]) == []


def test_a_table_is_never_made_of_nothing(as_on_the_first_day: Any) -> None:
    """The codebooks' tables are kept for the process, so their kernel is compiled even while others are only listed."""
    expected = iq_tables.search("IQ3_XXS")
    neighbours = iq_tables.iq_neighbours.neighbours
    compiled = as_on_the_first_day({(neighbours, np.dtype(np.uint8))})
    made: list[iq_tables.Search] = []
    assert cache.missing(lambda: made.append(iq_tables._search.__wrapped__("IQ3_XXS"))) == []
    assert compiled == [neighbours]
    assert all(np.array_equal(a, b) for a, b in zip(made[0], expected, strict=True))
