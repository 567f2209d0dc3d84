"""The readers under mutated files: a seeded run without any tool, and a short one of atheris where it is installed."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import run as runner
import targets


@pytest.fixture(autouse=True)
def _no_files_left() -> Iterator[None]:
    yield
    targets.clean()


def mutated(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """One to four changes of the kinds that find faults: bits, numbers of 1 to 8 bytes, cuts, splices, repeats."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[i % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64))) % 256**width
                data[i : i + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 2:
                del data[i : i + rng.randint(1, 16)]
            case 3:
                data[i:i] = other[rng.randrange(len(other) + 1) :][: rng.randint(1, 40)]
            case 4:
                data[i:i] = bytes(data[i : i + 8]) * rng.randint(1, 50)
            case _:
                del data[i:]
    return bytes(data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    """Only `LlmconvError`s come out of the target; no input takes long or much."""
    seeds = [p.read_bytes() for p in sorted((targets.CORPUS / name).iterdir())]
    rng = random.Random(8)
    slowest, start = 0.0, time.process_time()
    tracemalloc.start()
    try:
        for _ in range(1500):
            data = mutated(rng, rng.choice(seeds), rng.choice(seeds))
            before = time.process_time()
            targets.TARGETS[name](data)
            slowest = max(slowest, time.process_time() - before)
            if time.process_time() - start > 8:
                break
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert slowest < 5 and peak < 500 << 20


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_what_was_found_before(name: str) -> None:
    files = sorted((targets.CORPUS / name).iterdir())
    assert len(files) > 10
    for path in files:
        targets.TARGETS[name](path.read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install 'llmconv[fuzz]'")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_short_run_of_atheris(name: str) -> None:
    done = runner.fuzz(name, 15)
    assert done.returncode == 0, done.stderr[-3000:]
