"""Pocket TTS, whose folder has no config.json: its two halves, and the folder that they make again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pocket_tts import pocket_folder

import llmconv
from llmconv import formats
from llmconv.convert.translate import translate
from llmconv.formats.checkpoint import Checkpoint


def same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        there = other.tensors[name]
        assert (tensor.type, tensor.shape) == (there.type, there.shape), name
        assert np.array_equal(tensor.blocks(), there.blocks()), name


@pytest.mark.parametrize(("kind", "voice"), [("F32", True), ("BF16", False), ("F16", True)])
def test_both_halves_make_the_folder_again(kind: str, voice: bool, tmp_path: Path) -> None:
    folder = pocket_folder(kind, voice)
    llmconv.save(folder, tmp_path / "tts")
    assert sorted(p.name for p in (tmp_path / "tts").iterdir()) == ["model.safetensors", "tokenizer.model"]
    llmconv.convert_file(tmp_path / "tts", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["model.safetensors", "tokenizer.model"]
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == folder.files["tokenizer.model"]
    same(folder, formats.open(tmp_path / "again"))


@pytest.mark.parametrize("voice", [True, False])
def test_what_begins_a_sound_stands_behind_the_words(voice: bool) -> None:
    folder = pocket_folder("F32", voice)
    made = translate(folder, "gguf")
    words, get = made.tensors["token_embd.weight"].numpy(), lambda name: folder.tensors[f"flow_lm.{name}"].numpy()
    beginning = get("input_linear.weight").astype(np.float64) @ get("bos_emb")
    rows = [get("conditioner.embed.weight"), *([get("bos_before_voice")[0]] if voice else []), beginning[None]]
    assert np.allclose(words, np.concatenate(rows), rtol=1e-6, atol=1e-9)
    names = ["<|pad|>", *(["<|bos_before_voice|>"] if voice else []), "<|audio_bos|>"]
    assert list(made.metadata["tokenizer.ggml.tokens"])[-len(names) :] == names
    assert len(made.metadata["tokenizer.ggml.tokens"]) == len(words)


def test_a_gguf_of_others_does_not_say_what_the_latent_was(tmp_path: Path) -> None:
    made = translate(pocket_folder(), "gguf")
    kept = {key: value for key, value in made.metadata.items() if not key.startswith("llmconv.")}
    back = translate(made.but(metadata=kept), "hf")
    with pytest.raises(llmconv.Unsupported, match=r"the vector that begins a sound .*; convert the original"):
        llmconv.save(back, tmp_path / "again")


def test_it_is_said_that_it_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="what would run it")
    llmconv.save(translate(pocket_folder(), "gguf"), tmp_path / "m.gguf")
    with pytest.raises(llmconv.Unsupported, match=r"can't be run here .it says no words"):
        llmconv.load(tmp_path / "m.gguf")
