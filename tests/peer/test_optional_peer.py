"""Tensors that llama.cpp's loader of a family accepts but does not need: carried there and back, or refused by name."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
from hf_models import BAICHUAN, INTERNLM2, model
from llama_cpp_loader import evaluated, known, optional
from tiny_models import INSIDE, MODELS

from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.rows import at_layer
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

SOURCES = os.environ.get("LLMCONV_LLAMA_CPP")
pytestmark = [pytest.mark.peer, pytest.mark.skipif(not SOURCES, reason="LLMCONV_LLAMA_CPP names no checkout")]

FUSED = {
    "attn_qkv.weight": (("attn_q.weight", "attn_k.weight", "attn_v.weight"), 0),
    "attn_qkv.bias": (("attn_q.bias", "attn_k.bias", "attn_v.bias"), 0),
    "ffn_gate_up_exps.weight": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), 1),
}
PAIRED = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Of which one alone means nothing."""
FAMILIES = [arch.gguf for arch in archs.all() if arch.loader.exists and arch.hf]


@functools.cache
def configurations() -> dict[str, tuple[str, dict[str, Any]]]:
    """The first configuration of each architecture that makes a model from its table alone."""
    transformers = pytest.importorskip("transformers")
    auto = transformers.models.auto.modeling_auto
    mappings = {"Model": "", "Seq2SeqLM": "FOR_SEQ_TO_SEQ_CAUSAL_LM_", "TextEncoding": "FOR_TEXT_ENCODING_"}
    mappings |= {"CausalLM": "FOR_CAUSAL_LM_", "MaskedLM": "FOR_MASKED_LM_"}
    mappings |= {"SequenceClassification": "FOR_SEQUENCE_CLASSIFICATION_"}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, tiny in MODELS.items():
        if "text_config" in tiny.config:  # inside another: by hand
            continue
        config = transformers.AutoConfig.for_model(tiny.model_type, **tiny.config).to_dict()
        names = getattr(auto, f"MODEL_{mappings[tiny.task]}MAPPING_NAMES")
        inside = INSIDE.get(tiny.model_type)
        config["architectures"] = [inside[1] if inside else names[tiny.model_type]]
        found.setdefault(tiny.gguf, (name, config))
    for name, config in (by_hand.CONFIGS | {"baichuan": BAICHUAN, "internlm2": INTERNLM2}).items():
        arch = archs.by_hf(config)
        assert arch is not None
        found.setdefault(arch.gguf, (name, config))
    return found


def somebodys(gguf: str) -> Checkpoint:
    name, config = configurations()[gguf]
    made = hf.to_gguf(by_hand.finished(name, model(config, kind="F32", form=by_hand.FORMS.get(name, 0))))
    return made.but(metadata={k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")})


def fits(name: str, base: Checkpoint) -> bool:
    """Whether the loader looks for such a tensor in this layer: experts where there is a router, scales of weights."""
    stem, _, part = name.rpartition(".")
    if part in ("scale", "input_scale"):
        return f"{stem}.weight" in base.tensors
    layer = ".".join(name.split(".")[:2])
    routed = f"{layer}.ffn_gate_inp.weight" in base.tensors
    of_experts = any(word in name for word in ("exp_probs", "_exps.", "_shexp.", "gate_inp."))
    about_mlp = "exp_probs" in name or (name.startswith("blk.") and "ffn_" in name and part == "weight")
    return not about_mlp or of_experts == routed


def with_tensor(base: Checkpoint, pattern: str, shape: str, dims: Mapping[str, Any]) -> Checkpoint | None:
    """The model with this tensor in every layer that has a place for it; None where none has."""
    out = base.but(tensors=dict(base.tensors), metadata=dict(base.metadata))
    part = pattern.removeprefix("blk.{i}.")
    layers = range(dims["n_layer"]) if "{i}" in pattern else range(1)
    if part in FUSED and f"blk.0.{part}" not in base.tensors:
        for whole in (part, "attn_qkv.weight") if part == "attn_qkv.bias" else (part,):
            names, axis = FUSED[whole]
            for i in layers:
                pieces = [f"blk.{i}.{name}" for name in names]
                if all(piece in out.tensors for piece in pieces):
                    values = np.concatenate([out.tensors.pop(piece).numpy() for piece in pieces], axis)
                    out.add(Tensor.from_array(f"blk.{i}.{whole}", values))
    if part == "attn_kv_b.weight":
        return None  # of older files, whose keys are others: tests/convert/dialects/test_fused.py
    for i in layers:
        name, size = pattern.replace("{i}", str(i)), evaluated(shape, at_layer(dims, i))
        if size and name not in out.tensors and fits(name, base) and part not in FUSED:
            values = np.random.default_rng(1).random(size).astype(np.float32) + np.float32(0.5)
            out.add(Tensor.from_array(name, values))
    return out if out.tensors.keys() != base.tensors.keys() else None


def changed(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Tensors and keys that are not what they were."""
    names = before.tensors.keys() | after.tensors.keys()
    out = [name for name in names if name not in before.tensors or name not in after.tensors]
    for name in names - set(out):
        one, other = before.tensors[name], after.tensors[name]
        if one.type is not other.type:  # packed numbers that were multiplied by their scales
            continue
        if one.shape != other.shape or not np.allclose(one.numpy(), other.numpy(), rtol=1e-6, equal_nan=True):
            out.append(name)
    for key in before.metadata.keys() | after.metadata.keys():
        value = before.metadata.get(key)
        if not key.startswith(("llmconv.", "general.")) and not np.array_equal(value, after.metadata.get(key)):
            out.append(key)
    return sorted(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gguf", FAMILIES)
def test_optional_tensors_travel_or_are_refused(gguf: str) -> None:
    assert SOURCES is not None
    if known(Path(SOURCES), gguf) is None:
        pytest.skip("llama.cpp has no such architecture")
    base = somebodys(gguf)
    arch = archs.by_gguf(gguf)
    assert arch is not None
    dims = arch.dims_of(base.metadata)
    if "token_embd.weight" in base.tensors:  # drafts have that of their model
        dims["n_vocab"] = base.tensors["token_embd.weight"].shape[0]
    assert changed(base, hf.to_gguf(hf.from_gguf(base))) == []
    wrong = []
    for pattern, shape in optional(Path(SOURCES), gguf):
        made = None if pattern in PAIRED else with_tensor(base, pattern, shape, dims)
        if made is None:
            continue
        try:
            again = hf.to_gguf(hf.from_gguf(made))
        except LlmconvError as error:
            together = {pattern, *(n for row in arch.rows for n in row.gguf if pattern in row.gguf)}  # or not at all
            if not any(name.replace("{i}.", "").removeprefix("blk.") in str(error) for name in together):
                wrong.append(f"{pattern}: {error}")
            continue
        if found := changed(made, again):
            wrong.append(f"{pattern}: {', '.join(found[:3])}")
    assert wrong == []


ELSEWHERE = (
    "ffn_gate.",
    "ffn_up.",
    "ffn_down.",
    "nextn.",
    "layer_output_norm.",
    "exp_probs_b",
    ".scale",
    "d2t",
    "enc.output_norm.",
    "token_embd.w",
    "ssm_conv1d_",
)
"""Of layers that are of one kind or another: what is said of them is found by other tests."""


def plain_names(names: tuple[str, ...], conditional: bool = True) -> set[str]:
    return {name.partition(" if ")[0] for name in names if conditional or " if " not in name}


@pytest.mark.parametrize("gguf", FAMILIES)
def test_what_is_said_of_the_loader(gguf: str) -> None:
    """A tensor of our table that the loader lacks is `refused`; one that it needs, and ours may lack, is `needed`."""
    assert SOURCES is not None
    arch, found = archs.by_gguf(gguf), known(Path(SOURCES), gguf)
    assert arch is not None
    if found is None:
        pytest.skip("llama.cpp has no such architecture")
    asked, optional_there = found
    refused, needed = plain_names(arch.loader.refused), plain_names(arch.loader.needed)
    whole = ((name.replace("blk.0.", "blk.{i}."), row) for row in arch.rows for name in row.gguf)
    rows = [(name, row) for name, row in whole if not any(word in name for word in ELSEWHERE)]
    assert [name for name, _ in rows if name not in asked and name not in refused] == []
    lacking = [name for name, row in rows if row.optional is not False and name in asked - optional_there]
    assert [name for name in lacking if name not in needed] == []
    assert sorted(asked & plain_names(arch.loader.refused, conditional=False)) == []
    assert sorted(needed - asked) == []
