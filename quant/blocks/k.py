"""K block types: super-blocks of 256 weights with integer scales for sub-blocks of 16 or 32.

Source of the layouts: ggml's `ggml-common.h`; of the search for scales: its `ggml-quants.c`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmconv.quant.block import Bytes
from llmconv.quant.kernels import kquants, q3
from llmconv.quant.kernels.terms.fields import BY_BOTH, BY_IMPORTANCE, BY_RMS, BY_SIZE, BY_SQUARE
from llmconv.quant.slabs import Abreast, Slab, Trials, Weighing

_F2 = "<f2"
_WEIGHTED_TRIALS = Trials(-0.9, 0.05, 36)


class _K(Abreast):
    block_size = 256
    finite_by_scales = True
    uses_importance = True
    kernels = kquants


class Q2_K(_K):
    """Sub-blocks of 16: a 4-bit scale and a 4-bit minimum, 2-bit integers."""

    name, ggml_id = "Q2_K", 10
    layout = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", _F2), ("dmin", _F2)])

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        if weighted := slab.importance.size > 0:
            found = slab.affine(16, 3, Weighing(BY_BOTH, 1, 256), _WEIGHTED_TRIALS)
        else:
            found = slab.affine(16, 3, Weighing(BY_SIZE), Trials(-0.5, 0.1, 15, absolute=True))
        kquants.pack_q2_k(slab.x, k=slab.k, n_rows=slab.count, found=found, weighted=weighted, out=out)


class Q3_K(_K):
    """Sub-blocks of 16: a 6-bit scale, 3-bit integers whose high bits are kept apart."""

    name, ggml_id = "Q3_K", 11
    layout = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", _F2)])

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        if slab.importance.size:
            found = slab.symmetric(16, 4, Weighing(BY_BOTH, 2, 256))
            q3.pack_q3_k(slab.x, k=slab.k, n_rows=slab.count, found=found, out=out)
        else:
            q3.encode_q3_k(slab.x, slab.count, out)


class _Q45(_K):
    """Sub-blocks of 32: a 6-bit scale and a 6-bit minimum."""

    width: ClassVar[int]
    trials: ClassVar[Trials]
    """Without importance."""

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        if weighted := slab.importance.size > 0:
            found = slab.affine(32, 2**cls.width - 1, Weighing(BY_BOTH, 2, 256), _WEIGHTED_TRIALS)
        else:
            found = slab.affine(32, 2**cls.width - 1, Weighing(BY_RMS), cls.trials)
        how = {"k": slab.k, "n_rows": slab.count, "weighted": weighted, "width": cls.width}
        kquants.pack_q45_k(slab.x, found=found, out=out, **how)

    @classmethod
    def _decode(cls, blocks: Bytes, out: NDArray[np.float32]) -> None:
        kquants.decode_q45_k(blocks.reshape(-1), cls.width, out.reshape(-1))


class Q4_K(_Q45):
    name, ggml_id, width, trials = "Q4_K", 12, 4, Trials(-1.0, 0.1, 20)
    layout = np.dtype([("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qs", "u1", 128)])


class Q5_K(_Q45):
    name, ggml_id, width, trials = "Q5_K", 13, 5, Trials(-0.5, 0.1, 15)
    layout = np.dtype([("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])


class Q6_K(_K):
    """Sub-blocks of 16: a signed 8-bit scale, 6-bit integers."""

    name, ggml_id = "Q6_K", 14
    layout = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", _F2)])

    @classmethod
    def _encode_slab(cls, slab: Slab, out: Bytes) -> None:
        found = slab.symmetric(16, 32, Weighing(BY_IMPORTANCE if slab.importance.size else BY_SQUARE))
        kquants.pack_q6_k(slab.x, k=slab.k, n_rows=slab.count, found=found, out=out)
