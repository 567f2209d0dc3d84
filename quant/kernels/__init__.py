"""Compiled inner loops, one module a family.  Only these modules import numba, and only when first used.

`@inner` marks a function that kernels call; `@kernel(...)` marks an entry point, compiled when first called, for
the arguments' declared types, and kept in the user's cache folder (see `cache_folder`).  Kernels release the GIL.
"""

from llmconv.quant.kernels.build import F32, I32, ROWS, U8, Kernel, cache_folder, flat, inner, kernel, out, warmup

__all__ = ["F32", "I32", "ROWS", "U8", "Kernel", "cache_folder", "flat", "inner", "kernel", "out", "warmup"]
