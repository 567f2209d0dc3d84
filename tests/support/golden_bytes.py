"""Whether this Python on this processor gives the reference's bytes; run as a program, by others than the tests too.

    python golden_bytes.py ggml.npz [--rows N] [TYPE ...]

Prints a line a type: what was compared, what differs, the seconds; ends with 1 when something differs.  Needs nothing
but llmconv and numpy.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.quant import by_name


def compared(name: str, golden: Mapping[str, Any], rows: int) -> Iterator[tuple[str, bool]]:
    """What of a type was compared, and whether it is the reference's."""
    block, x, weights = by_name(name), golden["inputs"][:rows], golden["importance"]
    if name in golden and block.can_encode():
        yield "encode", np.array_equal(block.encode(x), golden[name][: len(x)])
        wide = x.astype(np.float16).astype(np.float32)
        if np.isfinite(wide).all():
            yield "float16", np.array_equal(block.encode(x.astype(np.float16)), block.encode(wide))
    if f"{name}.imatrix" in golden and block.can_encode():
        yield "importance", np.array_equal(block.encode(x, weights), golden[f"{name}.imatrix"][: len(x)])
    blocks = golden[name] if name in golden else golden[f"{name}.imatrix"]
    values = np.empty(golden["inputs"].shape, np.float32)
    block.decode(blocks, values)
    values[np.isnan(values)] = -np.nan  # an infinite scale makes NaN everywhere, but its sign is the processor's
    yield "decode", hashlib.sha256(values.tobytes()).digest() == golden[f"{name}.decoded"].tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description="The reference's bytes, here.")
    parser.add_argument("golden")
    parser.add_argument("types", nargs="*")
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_intermixed_args()
    golden, bad = dict(np.load(options.golden)), 0
    every = sorted(key.removesuffix(".decoded") for key in golden if key.endswith(".decoded"))
    for name in options.types or every:
        began = time.perf_counter()
        found = list(compared(name, golden, options.rows))
        wrong = [what for what, equal in found if not equal]
        bad += len(wrong)
        said = f"{', '.join(what for what, _ in found)}: {'DIFFERENT ' + ', '.join(wrong) if wrong else 'equal'}"
        print(f"{name}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
