"""Every setting of every family's configuration class: honoured, refused, or named in a note.

The quick half asks the tables whether they know each setting; the slow half gives each another valid value, builds a
tiny model, and compares what transformers computes with what the converted model does, and what it says.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import model
from settings_walk import NOT_VALUES, RUN, TYPES, attention_of, built, other_values, ours, reference, settings_of
from tiny_models import MODELS, Tiny, automatic

import llmconv
from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.dialects import hf
from llmconv.convert.tables.config import normalized
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


_SIZES = {
    *("embedding_length", "block_count", "feed_forward_length", "context_length", "vocab_size", "expert_count"),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count", "decoder_block_count"),
    *("leading_dense_block_count", "nextn_predict_layers", "ssm.inner_size", "ssm.state_size", "ssm.group_count"),
    *(
        "ssm.conv_kernel",
        "ssm.time_step_rank",
        "attention.head_count",
        "attention.head_count_kv",
        "rope.dimension_count",
    ),
    *(f"attention.{name}" for name in ("key_length", "value_length", "key_length_mla", "value_length_mla")),
    *(f"attention.{name}" for name in ("q_lora_rank", "kv_lora_rank", "indexer.head_count", "indexer.key_length")),
}
"""Which tensors say, or which change nothing: a file that leaves them out is refused, or right."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_not_stated_is_what_its_class_takes(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    tiny = MODELS[TYPES[model_type]]
    stated = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(tiny.config)).to_dict()
    arch = archs.by_gguf(tiny.gguf)
    assert arch is not None
    stated["architectures"] = [next((h.cls for h in arch.hf if h.model_type == model_type), arch.hf[0].cls)]
    whole = hf.to_gguf(model(stated, "F32"))
    bare = {key: value for key, value in whole.metadata.items() if not key.startswith("llmconv.")}

    def described(config: dict[str, Any]) -> Any:
        keys = arch.metadata(normalized(config))
        sizes = {f"{arch.gguf}.{name}" for name in _SIZES}
        others = {k: v for k, v in bare.items() if not k.startswith(f"{arch.gguf}.") or k in sizes}
        return describe(whole.but(metadata=others | {k: v for k, v in keys.items() if k not in sizes}))

    for name in sorted(set(stated) & arch.computed_with - INERT - {"max_position_embeddings"}):
        config = {key: value for key, value in stated.items() if key != name}
        settings = {key: value for key, value in config.items() if key not in NOT_VALUES}
        try:
            taken = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(settings)).to_dict()
        except Exception:  # it is needed
            continue
        with contextlib.suppress(LlmconvError):  # refused, as is what can't be run
            assert described(config) == described(taken | {"architectures": stated["architectures"]}), name


def _near(one: Any, other: Any) -> bool:
    width = min(one.shape[-1], other.shape[-1])
    return bool((one[..., :width] - other[..., :width]).abs().max() < 2e-4)


def _by_keys_alone(checkpoint: Checkpoint, tiny: Tiny, source: Checkpoint, model: Any, folder: Path) -> Any:
    """What transformers computes with a folder made of the GGUF as if somebody else had written it.

    None where that is the folder which the model was saved as, so that nothing need be computed.
    """
    keys = {k: v for k, v in checkpoint.metadata.items() if not k.startswith("llmconv.")}
    back = hf.from_gguf(dataclasses.replace(checkpoint, metadata=keys))
    if _same(back, source, model.config):
        return None
    llmconv.save(back, folder)
    return reference(automatic(tiny).from_pretrained(folder, attn_implementation=attention_of(tiny)).float().eval())


def _same(back: Checkpoint, source: Checkpoint, config: Any) -> bool:
    """Whether two folders have the same tensors, and settings that a class of transformers takes for the same."""
    made = json.loads(back.file("config.json") or b"{}")
    if made["model_type"] != config.model_type or set(back.tensors) != set(source.tensors):
        return False
    here, there = type(config).from_dict(made).to_dict(), config.to_dict()
    settings = (set(here) | set(there)) - (INERT - {"tie_word_embeddings", "vocab_size"})
    return all(here.get(name) == there.get(name) for name in settings) and all(
        np.array_equal(tensor.numpy(), source.tensors[name].numpy()) for name, tensor in back.tensors.items()
    )


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
        source = llmconv.open(folder / "hf")
        gguf = hf.to_gguf(source)
        want = reference(model)
        if name and any(name in note and ("no effect" in note or "ignores it" in note) for note in gguf.notes):
            return ""
        if not _near(want, ours(gguf, tiny)):
            return f"{json.dumps(changes)}: other logits here"
        found = _by_keys_alone(gguf, tiny, source, model, folder / "back")
        if found is not None and not _near(want, found):
            return f"{json.dumps(changes)}: other logits by the GGUF's keys alone"
    except LlmconvError as error:
        assert "\n" not in str(error)
    return ""
