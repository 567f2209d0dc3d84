"""Importance matrices as files, in both forms."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def dat(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        raw = name.encode()
        out += struct.pack("<i", len(raw)) + raw + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return out + tail


def write_gguf(path: Path, sums: dict[str, Any], counts: dict[str, Any], keys: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    if keys:
        writer.add_array("imatrix.datasets", ["wiki.txt"])
        writer.add_uint32("imatrix.chunk_count", 7)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(values, np.float32))
    for name, values in counts.items():
        writer.add_tensor(f"{name}.counts", np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
