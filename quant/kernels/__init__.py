"""Compiled inner loops, one module a family.  Only these modules import numba, and only when first used."""
