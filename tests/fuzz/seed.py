"""Make the seed corpora: the good and bad files of the tests' own tables, a few kilobytes in all."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

import faulty_documents
import faulty_gguf
import faulty_safetensors
import msgpack

MOST = 1500
"""Bytes of a seed."""


def main() -> None:
    documents = [{"a": [1.0, 2.5], "b": [[1, 2], [3, 4]], "c": None}, {"shape": [2, 1], "data": [0.5, 1.5]}, {"0": 1.0}]
    sets = {
        "gguf": [*faulty_gguf.GOOD.values(), *(raw for raw, _ in faulty_gguf.BAD.values())],
        "safetensors": [
            *faulty_safetensors.GOOD.values(), *(raw for raw, _ in faulty_safetensors.BAD.values())
        ],
        "json": [
            *(r.encode() if isinstance(r, str) else r for r, _ in faulty_documents.JSON.values()),
            b'\xef\xbb\xbf{"a": [1, 2.5e-7], "b": {"0": 1, "1": 2}, "c": "\\u00e9\\n", "d": [[1, 2], [3, 4]]}',
        ],
        "msgpack": [*(r for r, _ in faulty_documents.MSGPACK.values()), *map(msgpack.packb, documents)],
    }  # fmt: skip
    for name, files in sets.items():
        folder = HERE / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, raw in enumerate(r for r in files if len(r) <= MOST):
            (folder / f"seed-{i:03d}").write_bytes(raw)


if __name__ == "__main__":
    main()
