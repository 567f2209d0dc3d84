"""What the searches and their callers agree on: the fields of what is found, and how a weight counts."""

import numpy as np

FIELDS = 5
"""Vectors that `found` holds for each sub-block: the scale, the minimum as stored (positive), the reciprocal scale
and the (negative) minimum that gave the best integers, and the sum of the weights."""
SCALE, MINIMUM, INVERSE, OFFSET, WEIGHT = (np.int64(16 * i) for i in range(FIELDS))
SUB = np.int64(16 * FIELDS)
"""Floats in `found` for each sub-block."""

BY_RMS, BY_SIZE, BY_SQUARE, BY_IMPORTANCE, BY_BOTH = range(5)
"""How a weight counts in the error: root mean square of the sub-block + |x|; |x|; x²; its importance; or its
importance times sqrt(mean square + x²)."""
