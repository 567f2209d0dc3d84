"""Pocket TTS's two GGUFs against those that llama.cpp's converter makes of the same folder: tensors and keys.

llama.cpp's Python files come from the folder that LLMCONV_LLAMA_CPP names, as in test_archs_peer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pocket_tts import pocket_folder

import llmconv
from llmconv import formats

pytest.importorskip("torch")
pytestmark = pytest.mark.peer

ROUNDED = (".seanet.", "a.downsample.conv.", "a.gen.wav.upsample.")
"""Convolutions, which the reference rounds to F16."""
ONE_ROW = ("a.gen.out_eos.weight",)
"""What we keep in F32, as all single rows."""


@pytest.mark.parametrize("voice", [True, False])
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_both_halves_are_the_references(kind: str, voice: bool, tmp_path: Path) -> None:
    source = os.environ.get("LLMCONV_LLAMA_CPP")
    if not source:
        pytest.skip("LLMCONV_LLAMA_CPP names no checkout of llama.cpp")
    llmconv.save(pocket_folder(kind, voice), tmp_path / "tts")
    llmconv.convert_file(tmp_path / "tts", tmp_path / "m.gguf")
    for half, flags in (("m.gguf", []), ("mmproj-m.gguf", ["--mmproj"])):
        out = tmp_path / f"their-{half}"
        command = [sys.executable, f"{source}/convert_hf_to_gguf.py", str(tmp_path / "tts"), "--outfile", str(out)]
        subprocess.run([*command, "--outtype", kind.lower(), *flags], check=True, capture_output=True)
        ours, theirs = formats.open(tmp_path / half), formats.open(out)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in theirs.tensors.items():
            own = ours.tensors[name]
            assert own.shape == tensor.shape, name
            if any(part in name for part in ROUNDED):
                assert np.array_equal(own.numpy().astype(np.float16), tensor.numpy().astype(np.float16)), name
            elif name == "token_embd.weight" and kind == "F32":  # the last row is a sum, there in single precision
                assert np.array_equal(own.blocks(0, own.n_rows - 1), tensor.blocks(0, own.n_rows - 1))
                assert np.allclose(own.numpy(), tensor.numpy(), rtol=1e-5, atol=1e-7)
            else:
                assert name in ONE_ROW or own.type is tensor.type, name
                assert np.array_equal(own.numpy(), tensor.numpy()), name
        for key, value in theirs.metadata.items():
            if not key.startswith("general."):
                assert np.array_equal(np.asarray(ours.metadata[key]), np.asarray(value)), key
