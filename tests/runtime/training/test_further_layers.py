"""A model with layers for further tokens, in memory or trained: they are not run, so not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from worded import WORDS, by_hand_gguf

pytest.importorskip("torch", reason="trains")

import llmconv
from llmconv.runtime.load import load
from llmconv.runtime.save import checkpoint_of


def test_what_is_made_of_a_model_in_memory_is_whole_without_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 2))
    source = by_hand_gguf("k-exaone-predicting", tmp_path)
    llmconv.save(checkpoint_of(load(source, "cpu")), tmp_path / "again.gguf")
    before, after = (llmconv.open(path).metadata for path in (source, tmp_path / "again.gguf"))
    assert int(before["exaone-moe.nextn_predict_layers"]) == 1
    assert "exaone-moe.nextn_predict_layers" not in after
    assert int(after["exaone-moe.block_count"]) == int(before["exaone-moe.block_count"]) - 1
    files = (source, tmp_path / "again.gguf")
    scores = [llmconv.perplexity(f, tmp_path / "text.txt", context=16, device="cpu").perplexity for f in files]
    assert scores[0] == scores[1]
