"""What a grid's scales may be, and what entries of its codebook share."""

import numpy as np

F16, E8M0, E4M3, FIXED = 0, 1, 2, 3
"""A scale: a float16, a power of two, an unsigned E4M3 halved (as ggml has NVFP4's); one that is not searched."""

SHIFTS, ANY_SIGNS, EVEN_SIGNS = 0, 1, 2
"""What entries share: a shift up or down; signs; signs of which an even number is negative."""

FULL_SIGNS = np.array([i | (i.bit_count() % 2) << 7 for i in range(128)], np.uint8)
"""Seven stored signs to eight: an even number of weights is negative."""
