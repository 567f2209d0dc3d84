"""Weights stored as integers or small floats with scales beside them: a scheme a file, its reading and writing there.

`unpack` recognises the schemes and reads them; `scheme` says what one is.
"""
