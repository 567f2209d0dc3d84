"""Every key of a family's GGUF, changed or taken out: what llama.cpp then computes is computed here and by the folder
made of it, or one of them refuses it, or a note names the key.

The keys are those of a GGUF that is converted from a tiny model, without what only we read, and those that llama.cpp's
loader or the runtime asks for besides.  llama.cpp's sources come from the folder that LLMCONV_LLAMA_CPP names.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import settings_walk as walk
from llama_cpp_loader import keys_of
from llama_cpp_logits import logits
from tiny_models import MODELS, Tiny, automatic

import llmconv
from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.dialects import hf
from llmconv.convert.tables.loader import unread_of
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
SOURCES = os.environ.get("LLMCONV_LLAMA_CPP")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not SOURCES, reason="LLMCONV_LLAMA_CPP names no checkout"),
]

IDS = [(i * 37 + 11) % 90 + 3 for i in range(40)]
OTHERS = [(i * 29 + 5) % 90 + 3 for i in range(40)]
"""Other words, for what is off with the first: where experts all but tie, one token is chosen others, and those behind
it see that."""
SAME = 4e-3  # of the largest logit, at nine of ten positions: experts that all but tie may be chosen otherwise

ABSENT: dict[str, list[Any]] = {
    "attention.causal": [False],
    "attention.clamp_kqv": [0.1],
    "attention.max_alibi_bias": [4.0],
    "attention.output_scale": [0.3],
    "attention.scale": [0.3],
    "attention.shared_kv_layers": [1],
    "attention.sliding_window": [8],
    "attention.sliding_window_pattern": [2],
    "attention.temperature_length": [8],
    "attention.temperature_scale": [0.5],
    "attention.value_scale": [0.5],
    "attn_logit_softcapping": [1.0],
    "embedding_scale": [2.0],
    "expert_gating_func": [1, 2],
    "expert_weights_norm": [True, False],
    "expert_weights_scale": [2.0],
    "final_logit_softcapping": [2.0],
    "full_attention_interval": [2],
    "hidden_activation": ["relu"],
    "interleave_moe_layer_step": [2],
    "leading_dense_block_count": [1],
    "logit_scale": [0.5],
    "num_loops": [2],
    "position_embedding": ["none"],
    "residual_scale": [0.5],
    "rope.dimension_count": [8],
    "rope.dimension_sections": [np.array([2, 3, 3, 0], np.int32)],
    "rope.dimension_count_swa": [8],
    "rope.freq_base": [500.0],
    "rope.freq_base_swa": [900.0],
    "rope.scale_linear": [3.0],
    "rope.scaling.alpha": [10.0],
    "rope.scaling.attn_factor": [0.5],
    "rope.scaling.factor": [3.0],
    "router_logit_softcapping": [1.0],
    "swiglu_clamp_exp": [0.1],
    "swiglu_clamp_shexp": [0.1],
    "swin_norm": [True],
    "use_parallel_residual": [True, False],
}
"""Values of keys that a file may have and the tiny one has not."""
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
TOGETHER: list[dict[str, Any]] = [
    {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0},
    {"rope.scaling.type": "none", "rope.scaling.factor": 3.0},
    _YARN,
    _YARN | {"rope.scaling.attn_factor": 0.5},
    _YARN | {"rope.scaling.yarn_log_multiplier": 0.2},
    _YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
    {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2},
]
"""Keys that mean something only together."""
SIZES = {"block_count", "embedding_length", "embedding_length_out", "feed_forward_length", "vocab_size"}
"""Which are the tensors' own; with others, no file is whole."""


def typed(value: Any) -> Any:
    """A value as GGUF types it."""
    if isinstance(value, bool | str | np.ndarray | np.generic):
        return value
    return np.float32(value) if isinstance(value, float) else np.uint32(value)


def others(key: str, value: Any) -> Iterator[Any]:
    """Other valid values of a key that is there."""
    if isinstance(value, bool | np.bool_):
        yield not value
    elif isinstance(value, str):
        yield from (word for word in ("none", "linear", "yarn") if "rope.scaling" in key and word != value)
    elif isinstance(value, list | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind in "bif" and array.size:
            flip = ~array if array.dtype.kind == "b" else array * 2
            yield flip.astype(array.dtype)
    elif isinstance(value, np.floating):
        yield np.float32(1e-2 if "epsilon" in key else value * 1.5 or 0.5)
    else:
        yield type(value)(int(value) * 2 or 2)
        if int(value) > 1:
            yield type(value)(int(value) // 2)


@dataclass
class Family:
    """A tiny model of a family, its GGUF as others would have made it, and what both compute."""

    tiny: Tiny
    gguf: Checkpoint
    folder: Path
    ids: list[int] = field(default_factory=lambda: IDS)
    computed: dict[str, Any] = field(default_factory=dict)
    """What transformers computes, by the folder's configuration; None where it does not load it."""
    ours: tuple[Any, Any] | None = None
    """The first decoder that was described, and what the runtime computes with it."""

    @property
    def start(self) -> str:
        return f"{self.tiny.gguf}."

    def but(self, changes: Mapping[str, Any]) -> Checkpoint:
        """The GGUF with other values of keys, taken out where None."""
        new = {self.start + key: value for key, value in changes.items()}
        keys = {**self.gguf.metadata, **{key: typed(value) for key, value in new.items() if value is not None}}
        return self.gguf.but(metadata={key: v for key, v in keys.items() if new.get(key, v) is not None})

    def changes(self, sources: Path) -> Iterator[dict[str, Any]]:
        there = {k.removeprefix(self.start): v for k, v in self.gguf.metadata.items() if k.startswith(self.start)}
        for key, value in there.items():
            if key not in SIZES:
                yield from ({key: other} for other in (*others(key, value), None))
        read = keys_of(sources, self.tiny.gguf)
        for key in sorted((read | asked(self.gguf)) & set(ABSENT) - set(there)):
            yield from ({key: value} for value in ABSENT[key])
        if "rope.freq_base" in there or "rope.dimension_count" in there:
            yield from TOGETHER

    def by_us(self, gguf: Checkpoint) -> Any:
        decoder = describe(gguf)
        if not self.ours or decoder != self.ours[0]:
            model = llmconv.load(gguf, dtype="f32", device="cpu")
            found = decoder, computed(model, self.ids)
            self.ours = self.ours or found
            return found[1]
        return self.ours[1]

    def by_transformers(self, back: Checkpoint) -> Any:
        config = (back.file("config.json") or b"").decode()
        if config not in self.computed:
            place = self.folder / str(len(self.computed))
            llmconv.save(back, place, force=True)
            try:
                model = automatic(self.tiny).from_pretrained(place, attn_implementation=walk.attention_of(self.tiny))
                self.computed[config] = computed(model.float().eval(), self.ids)
            except Exception:
                self.computed[config] = None
        return self.computed[config]


def asked(gguf: Checkpoint) -> set[str]:
    """The keys that the runtime asks for."""
    return set(describe(gguf).asked)


def made(name: str, folder: Path) -> Family:
    tiny = MODELS[name]
    assert walk.built(tiny, {}, folder / "hf") is not None
    whole = hf.to_gguf(llmconv.open(folder / "hf"))
    bare = {key: value for key, value in whole.metadata.items() if not key.startswith("llmconv.")}
    return Family(tiny, whole.but(metadata=bare), folder)


def near(one: Any, other: Any) -> bool:
    width = min(one.shape[1], other.shape[1])
    off = np.abs(one[:, :width] - other[:, :width]).max(axis=1) / np.abs(other).max()
    return bool(np.quantile(off, 0.9) <= SAME)


SAID = ("llama.cpp", "config.json does not say", "config.json has no place for", "transformers ignores it")


def named(changes: Mapping[str, Any], notes: list[str], start: str) -> bool:
    """Whether notes speak of a key, or say what a folder does not or llama.cpp will not."""
    return any(any(said in note for said in (*SAID, *(start + key for key in changes))) for note in notes)


def wrong(family: Family, changes: Mapping[str, Any]) -> Iterator[str]:
    """What goes wrong with the GGUF of these changes."""
    gguf = family.but(changes)
    (family.folder / "model.gguf").unlink(missing_ok=True)
    theirs = logits(gguf, family.ids, family.folder / "model.gguf")
    if theirs is None:
        return
    try:
        if not near(family.by_us(gguf), theirs):
            model = llmconv.load(gguf, dtype="f32", device="cpu")
            if not named(changes, model.notes, family.start):
                yield "the runtime's"
    except LlmconvError:
        pass
    try:
        back = hf.from_gguf(gguf)
    except LlmconvError:
        return
    if named(changes, back.notes, family.start):
        return
    found = family.by_transformers(back)
    if found is not None and not near(found, theirs):  # where it does not load it, nobody is deceived
        yield "the folder's"


def computed(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        found = model(torch.tensor([ids]))
    return getattr(found, "logits", found)[0].numpy()


FAMILIES = {
    MODELS[name].gguf: name
    for kind, name in walk.TYPES.items()
    if MODELS[name].runs
    and MODELS[name].task == "CausalLM"
    and (arch := archs.by_gguf(MODELS[name].gguf))
    and arch.loader.exists
}

FAMILIES["deepseek2"] = "deepseek-v3"  # of V2's, llama.cpp loads those of 26 layers
_NOT_LOADED = {"qwen4exp", "dots3note", "deepseek4"}
"""Whose tiny models llama.cpp does not load."""
_BY_LLAMA_CPP_ALONE = {
    "laguna": {"attention.sliding_window_pattern"},  # a first layer with a window: its rotary count is taken for all
    "granite_swa": {"rope.dimension_count_swa"},  # the same
    "gemma2": {"rope.dimension_count_swa"},  # the same
    "lfm2": {"attention.sliding_window_pattern"},  # not read: all layers have the window
    "gpt-oss": {"rope.scaling.type"},  # "none" beside a factor: windows are scaled all the same
    "afmoe": {"rope.scaling.type"},
    "deepseek2": {"expert_gating_func", "rope.scaling.attn_factor"},  # softmax without the key; a factor without YaRN
    "deepseek32": {"rope.scaling.yarn_log_multiplier", "rope.scaling.attn_factor"},
    "stablelm": {"use_parallel_residual"},  # told by tensors
}
"""Keys with which llama.cpp computes something of its own, of files that nobody writes."""


def test_which_keys_llama_cpp_reads_is_what_its_sources_say() -> None:
    names = {arch.gguf for arch in archs.all() if arch.loader.exists}
    read = {name: keys_of(Path(str(SOURCES)), name) for name in names}
    unread = {name: unread_of(name) for name in names}
    listed = set().union(*unread.values()) - {"rope.freq_base_swa", "rope.dimension_count_swa"}  # some read in vain
    wrong = [(name, key) for name in names for key in listed if (key in read[name]) is (key in unread[name])]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("gguf", FAMILIES)
def test_every_key_is_computed_refused_or_named(gguf: str, tmp_path: Path) -> None:
    family = made(FAMILIES[gguf], tmp_path)
    tried = [{}, *family.changes(Path(str(SOURCES)))]
    assert len(tried) > 5
    loaded = logits(family.gguf, family.ids, tmp_path / "model.gguf") is not None
    assert loaded is (gguf not in _NOT_LOADED)
    tried = [changes for changes in tried if not set(changes) & _BY_LLAMA_CPP_ALONE.get(gguf, set())]
    doubtful = [changes for changes in tried if list(wrong(family, changes))]
    again = dataclasses.replace(family, ids=OTHERS, computed={}, ours=None)
    assert [(changes, what) for changes in doubtful for what in wrong(again, changes)] == []
