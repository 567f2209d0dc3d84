"""How types become small integers for products: what `integer_products` and its callers agree on.  Needs no numba."""

from typing import NamedTuple

ROWS_ABREAST, OUTPUTS_ABREAST = 4, 16
"""Rows of inputs and of weights that are multiplied together."""

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 = range(13)
"""The types' numbers inside the kernels."""


class Form(NamedTuple):
    """A type's integers; see `strips`.

    kind: its number above.   run: words of levels under a scale.   offset: the one of all weights, 0 where the strips
    hold them.   digits: of a level.   affine: whether offsets have a scale of their own.
    """

    kind: int
    run: int
    offset: int = 0
    digits: int = 1
    affine: bool = False


FORMS = {
    "Q4_0": Form(Q4_0, 8, -8),
    "Q4_1": Form(Q4_1, 8, 1, affine=True),
    "Q5_0": Form(Q5_0, 4, -16),
    "Q5_1": Form(Q5_1, 4, 1, affine=True),
    "Q8_0": Form(Q8_0, 8, -128, digits=2),
    "Q2_K": Form(Q2_K, 4, affine=True),
    "Q3_K": Form(Q3_K, 4),
    "Q4_K": Form(Q4_K, 8, affine=True),
    "Q5_K": Form(Q5_K, 4, affine=True),
    "Q6_K": Form(Q6_K, 2),
    "IQ4_NL": Form(IQ4_NL, 8, -128, digits=2),
    "IQ4_XS": Form(IQ4_XS, 8, digits=2),
    "MXFP4": Form(MXFP4, 4, -12),
}
