"""Every setting of every family's configuration class: honoured, refused, or named in a note.

The quick half asks the tables whether they know each setting; the slow half gives each another valid value, builds a
tiny model, and compares what transformers computes with what the converted model does, and what it says.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from settings_walk import RUN, TYPES, attention_of, built, other_values, ours, reference, settings_of
from tiny_models import MODELS, Tiny, automatic

import llmconv
from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.settings import INERT
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.mark.parametrize("model_type", TYPES)
def test_every_setting_has_its_place(model_type: str) -> None:
    arch = archs.by_gguf(MODELS[TYPES[model_type]].gguf)
    assert arch is not None
    rotary = {"rope_parameters"} if "rope_theta" in arch.settings else set()
    tops = {name.split(".")[0] for name in (*arch.settings, *arch.fixed)}
    assert set(settings_of(model_type)) - tops - INERT - rotary == set()


def _near(one: Any, other: Any) -> bool:
    width = min(one.shape[-1], other.shape[-1])
    return bool((one[..., :width] - other[..., :width]).abs().max() < 2e-4)


def _by_keys_alone(checkpoint: Checkpoint, tiny: Tiny, folder: Path) -> Any:
    """What transformers computes with a folder made of the GGUF as if somebody else had written it."""
    keys = {k: v for k, v in checkpoint.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(hf.from_gguf(dataclasses.replace(checkpoint, metadata=keys)), folder)
    return reference(automatic(tiny).from_pretrained(folder, attn_implementation=attention_of(tiny)).float().eval())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUN)
def test_every_setting_is_honoured_refused_or_named(model_type: str, tmp_path: Path) -> None:
    tiny = MODELS[TYPES[model_type]]
    tried = [
        (name, changes)
        for name, value in settings_of(model_type).items()
        if name not in INERT
        for changes in other_values(name, value)
    ]
    found = [_wrong(tiny, name, changes, tmp_path / f"{n}") for n, (name, changes) in enumerate(tried)]
    assert found.count("") > 5
    assert [text for text in found if text] == []


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUN)
def test_settings_without_effect_have_none(model_type: str, tmp_path: Path) -> None:
    """All at once: what is in the list of those that change nothing changes nothing."""
    changes: dict[str, Any] = {}
    for name, value in settings_of(model_type).items():
        if name in INERT - {"tie_word_embeddings", "vocab_size", "pruned_heads", "problem_type"} and (
            values := other_values(name, value)
        ):
            changes |= values[0] if value is not None else {}
    changes |= {name: 5 for name in changes if name.endswith("_token_id")}
    assert not _wrong(MODELS[TYPES[model_type]], "", changes, tmp_path)


def _wrong(tiny: Tiny, name: str, changes: dict[str, Any], folder: Path) -> str:
    """What goes wrong with a model of these changes; "" where nothing does, or where it is refused or noted."""
    model = built(tiny, changes, folder / "hf")
    if model is None:
        return ""
    try:
        gguf = hf.to_gguf(llmconv.open(folder / "hf"))
        want = reference(model)
        if name and any(name in note and ("no effect" in note or "ignores it" in note) for note in gguf.notes):
            return ""
        if not _near(want, ours(gguf, tiny)):
            return f"{json.dumps(changes)}: other logits here"
        if not _near(want, _by_keys_alone(gguf, tiny, folder / "back")):
            return f"{json.dumps(changes)}: other logits by the GGUF's keys alone"
    except LlmconvError as error:
        assert "\n" not in str(error)
    return ""
