"""Pack the reference's bytes (one file a type, as `shared/data/ggml-goldens` has them) into `ggml.npz`.

python tests/golden/make.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    arrays = {"inputs": np.load(folder / "inputs.npy"), "importance": np.load(folder / "importance.npy")}
    n = len(arrays["inputs"])
    for name in json.loads((folder / "manifest.json").read_text())["types"]:
        for suffix in ("", ".imatrix"):
            path = folder / f"{name}{suffix}.bin"
            if path.is_file():
                arrays[name + suffix] = np.fromfile(path, np.uint8).reshape(n, -1)
        decoded = np.load(folder / f"{name}.decoded.npy").astype("<f4")
        arrays[name + ".decoded"] = np.frombuffer(hashlib.sha256(decoded.tobytes()).digest(), np.uint8)
    np.savez_compressed(Path(__file__).with_name("ggml.npz"), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
