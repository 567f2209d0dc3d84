"""What the readers of binary containers accept at most.

Real models stay far below each number; a file that exceeds one is refused in a sentence, so that a small
hostile file never costs gigabytes or minutes.  All checks are made in Python integers, which can't wrap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from llmconv.errors import UsageError, cut, kind_of

MAX_DIMS = 32
"""Dimensions of a tensor.  (ggml itself reads 4; numpy 64.)"""
GGUF_DIMS = 4
"""Dimensions of a tensor in a GGUF (ggml's GGML_MAX_DIMS)."""
MAX_ELEMENTS = 1 << 60
"""Elements of one tensor."""
MAX_EMPTY_ROWS = 1 << 24
"""Product of the other dimensions of a tensor without elements, whose rows cost time though no bytes."""
MAX_TENSORS = 1 << 20
"""Tensors of one file."""
MAX_NAME_BYTES = 65_535
"""Bytes of a tensor's name or a metadata key (the GGUF specification's own limit for keys)."""
MAX_SHARDS = 65_535
"""Parts of a split model (GGUF counts them in 16 bits)."""

SAFETENSORS_HEADER_BYTES = 100_000_000
"""The JSON header of a safetensors file (the limit of the safetensors library)."""
INDEX_BYTES = 100_000_000
"""A `model.safetensors.index.json`."""
JSON_DEPTH = 64
"""Nesting of the JSON in a safetensors header or index."""
SIDE_FILE_BYTES = 128 << 20
"""A side file of a model folder (tokenizer.json, ...); bigger ones are left out of the checkpoint."""

GGUF_METADATA_BYTES = 256 << 20
"""Everything in a GGUF before the tensor data: keys, values and tensor descriptions."""
GGUF_KEYS = 1 << 16
"""Metadata keys."""
GGUF_STRINGS = 1 << 22
"""Strings in the string arrays of one file (the largest vocabularies have half a million with their merges)."""
GGUF_STRING_BYTES = 64 << 20
"""One string value."""
GGUF_ARRAY_DEPTH = 8
"""Arrays within arrays."""
GGUF_NESTED_ARRAYS = 1 << 20
"""Arrays inside arrays of one file, all together."""
GGUF_ALIGNMENT = 1 << 20
"""`general.alignment`, a power of two; padding is paid once a tensor."""

NPY_HEADER_BYTES = 65_536
"""The header of a numpy array; numpy itself reads 10,000."""
PICKLE_BYTES = 256 << 20
"""A pickle's program in a PyTorch file, whose tensors lie outside it."""
PICKLED_ARRAYS_BYTES = 1 << 32
"""A pickle that holds its arrays itself; it is read into memory whole."""
HDF5_OBJECTS = 1 << 18
"""Groups and datasets of an HDF5 file."""
ONNX_BYTES = 2 << 30
"""An ONNX file without its external data (the most that its encoding can have)."""
MANIFEST_BYTES = 64 << 20
"""A TensorFlow.js model.json or ml5 manifest.json."""

JSON_BYTES = 1 << 32
"""A JSON or MessagePack document; MessagePack is read into memory whole."""


def too_large(shape: Sequence[int]) -> bool:
    """Whether a tensor has more elements, or if empty more rows, than any file of use holds."""
    return math.prod(n or 1 for n in shape) > (MAX_EMPTY_ROWS if 0 in shape else MAX_ELEMENTS)


def in_bytes(size: int | str, what: str, least: int = 0) -> int:
    """A size that somebody gives, as a number of bytes or like "2G"; `UsageError` for what is none, or too small."""
    if isinstance(size, str):
        return parse_size(size)
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise UsageError(f"{what} is {cut(repr(size))} ({kind_of(size)}), expected bytes or a size like '2G'")
    return size


def parse_size(text: str) -> int:
    """`4G`, `500M`, `2GB`, `1GiB`, `123456` -> bytes (K, M, G, T are powers of 1000; KiB, … of 1024)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is no size; write it like 4G, 500M or 1GiB")
    unit = 1024 if match[3] else 1000
    number = float(match[1]) * unit ** " KMGT".index(match[2].upper() or " ")
    if not 1 <= number < 1 << 63:
        raise UsageError(f"{cut(text)} is no size between 1 byte and 2^63")
    return int(number)
