"""What a grid's scales may be, and what entries of its codebook share; for kernels and those who call them."""

F16, E8M0, E4M3 = 0, 1, 2
"""A scale: a float16, a power of two, an unsigned E4M3 halved (as ggml has NVFP4's)."""

SHIFTS, ANY_SIGNS, EVEN_SIGNS = 0, 1, 2
"""What entries share: a shift up or down; signs; signs of which an even number is negative."""
