"""Compiled inner loops, one module a family.  Only these modules import numba, and only to compile.

`@inner` marks a function that kernels call; `@kernel(...)` marks an entry point, compiled when first called, for
the arguments' declared types, and kept in the user's cache folder (see `cache`).  Kernels release the GIL.

    from llmconv.quant.kernels import q32
    q32.encode_q8_0(...)

calls the code that is kept there: `q32` is a `Family`, and its module is imported when something must be compiled.
"""

from typing import Any

from llmconv.quant.kernels.compiling.cache import Family, cache_folder, flat

__all__ = ["FAMILIES", "Family", "cache_folder", "flat"]

FAMILIES = {
    "codes",
    "descent",
    "entry_search",
    "integer_products",
    "iq1_encode",
    "iq4",
    "iq_decode",
    "iq_encode",
    "iq_neighbours",
    "kquants",
    "lattice",
    "low",
    "microscaling",
    "one_token",
    "q3",
    "q32",
    "rounding",
    "search",
    "ternary",
}
"""The modules with entry points."""


def __getattr__(name: str) -> Any:
    if name in FAMILIES:
        found = globals()[name] = Family(name)  # until its module is imported
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
