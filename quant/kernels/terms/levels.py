"""The numbers that 4-bit codes stand for, and where the C library's logarithm rounds up.  Needs no numba."""

import numpy as np

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Of MXFP4 and NVFP4, doubled; the scales' decoded values are halved in return, as in ggml."""

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""Of IQ4_NL and IQ4_XS: ggml's `kvalues_iq4nl`."""


def _log2_rounds_up() -> np.ndarray:
    """See LOG2_ROUNDS_UP: log2(1 - n 2^-24) is tiny beside a large exponent, and float32 drops it."""
    steps = np.arange(1, 129)
    table = np.full(278, 0x800000, np.int32)  # the last one is for infinity and NaN
    for exponent in range(-149, 128):
        logs = (np.log2(1 - steps * 2.0**-24) + (exponent + 1)).astype(np.float32)
        table[exponent + 149] = 0x800000 - np.count_nonzero(logs >= exponent + 1)
    return table


LOG2_ROUNDS_UP = _log2_rounds_up()
"""At exponent + 149, the mantissa from which the reference's floor(log2f(x)) is one more than the exponent of x."""
