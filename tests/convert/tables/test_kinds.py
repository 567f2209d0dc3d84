"""Settings and keys of another type than theirs are refused by name: a text of digits is no number, nor 1 a list."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from typing import Any

import by_hand
import numpy as np
import pytest
from hf_models import GEMMA3, LLAMA, QWEN3_MOE, model

from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.dialects import hf
from llmconv.convert.tables.kinds import KINDS
from llmconv.errors import BadFile, LlmconvError
from llmconv.formats.checkpoint import Checkpoint

_ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}, "sliding_attention": {"rope_theta": 700.0}}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
_GEMMA3 = LLAMA | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 8}
_NEMOTRON_H = {"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h"}
CONFIGS: list[tuple[dict[str, Any], str, Any]] = [
    (by_hand.CONFIGS["minicpm"], "scale_emb", "7"),
    (by_hand.CONFIGS["minicpm"], "scale_emb", True),
    (by_hand.CONFIGS["minicpm"], "scale_depth", [1.4]),
    (by_hand.CONFIGS["minicpm"], "dim_model_base", float("nan")),
    (by_hand.CONFIGS["step3.5"], "rope_theta", [[1.0], 2.0]),
    (LLAMA, "attention_bias", []),
    (LLAMA, "mlp_bias", "no"),
    (LLAMA, "rope_parameters", 0),
    (LLAMA | {"rope_parameters": _YARN}, "rope_parameters.beta_fast", "7"),
    (LLAMA | {"rope_parameters": _YARN}, "rope_parameters.truncate", "yes"),
    (LLAMA | {"rope_parameters": _YARN}, "rope_parameters.original_max_position_embeddings", [8]),
    (QWEN3_MOE, "mlp_only_layers", 1),
    (QWEN3_MOE, "decoder_sparse_step", "2"),
    (QWEN3_MOE, "norm_topk_prob", 3),
    (GEMMA3, "text_config.query_pre_attn_scalar", True),
    (_GEMMA3, "layer_types", 7),
    (_GEMMA3 | {"rope_parameters": _ROPE}, "rope_parameters.full_attention", 7),
    (_NEMOTRON_H, "layers_block_type", -1),
    (_NEMOTRON_H, "block_configs", [1, 2]),
]


@pytest.mark.parametrize("case", range(len(CONFIGS)))
def test_a_setting_of_another_kind(case: int) -> None:
    config, path, value = CONFIGS[case]
    folder = model(config) if "hidden_size" in str(config) else Checkpoint(dialect="hf")
    changed = copy.deepcopy(config)
    *outer, name = path.split(".")
    inner = changed
    for step in outer:
        inner = inner[step]
    inner[name] = value
    wrong = dataclasses.replace(folder, files={"config.json": json.dumps(changed).encode()})
    with pytest.raises(BadFile, match=name):
        hf.to_gguf(wrong)


def test_null_says_nothing_and_one_is_true() -> None:
    folder = model(LLAMA)
    for settings in ('{"attention_bias": null, "mlp_bias": 0}', '{"rope_parameters": null, "rope_scaling": {}}'):
        config = json.dumps(LLAMA | json.loads(settings)).encode()
        hf.to_gguf(dataclasses.replace(folder, files={"config.json": config}))


def gguf_of(config: dict[str, Any], **keys: Any) -> Checkpoint:
    """As somebody else would have made it."""
    whole = hf.to_gguf(model(config, "F32"))
    bare = {key: value for key, value in whole.metadata.items() if not key.startswith("llmconv.")}
    start = whole.metadata["general.architecture"] + "."
    return whole.but(metadata=bare | {start + key.replace("__", "."): value for key, value in keys.items()})


KEYS: list[tuple[str, Any]] = [
    ("use_parallel_residual", "x"),
    ("hidden_activation", np.uint32(7)),
    ("attention__causal", np.uint32(0)),
    ("attention__layer_norm_rms_epsilon", np.float32(-1)),
    ("attention__scale", np.float32(-1)),
    ("attention__scale", np.array([np.nan, np.nan], np.float32)),
    ("attention__sliding_window_pattern", "7"),
    ("activation_sparsity_scale", "7"),
    ("rope__freq_base", np.float32(0)),
    ("rope__scaling__type", np.uint32(1)),
    ("rope__dimension_sections", "7"),
    ("rope__layers", True),
    ("rope__interleaved", np.uint32(1)),
    ("context_length", np.array([1, 2], np.int32)),
    ("swiglu_clamp_shexp", ["a", "b"]),
    ("expert_weights_norm", np.uint32(1)),
]


@pytest.mark.parametrize("case", range(len(KEYS)))
def test_a_key_of_another_kind(case: int) -> None:
    key, value = KEYS[case]
    config = QWEN3_MOE if key.startswith(("expert", "swiglu", "rope__interleaved")) else LLAMA | {"sliding_window": 4}
    with pytest.raises(BadFile, match=key.replace("__", r"\.")):
        describe(gguf_of(config, attention__sliding_window=np.uint32(4), **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__layer_norm_rms_epsilon", "x"),
        ("rope__freq_base", np.float32("nan")),
        ("context_length", np.array([1, 2], np.int32)),
        ("attention__head_count", ["a", "b"]),
    ],
)
def test_no_folder_says_such_a_key(key: str, value: Any) -> None:
    with pytest.raises(BadFile, match=key.replace("__", r"\.")):
        hf.from_gguf(gguf_of(LLAMA, **{key: value}))


def test_a_key_that_hooks_read_is_finite() -> None:
    with pytest.raises(BadFile, match="scale_emb"):
        hf.from_gguf(gguf_of(by_hand.CONFIGS["minicpm"], embedding_scale=np.float32("nan")))


def test_a_folder_that_is_no_model_again_is_noted() -> None:
    glm = LLAMA | {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "partial_rotary_factor": 0.5}
    back = hf.from_gguf(gguf_of(glm, rope__dimension_count=np.uint32(0)))
    assert any("no GGUF can be made of this folder again" in note and "partial_rotary" in note for note in back.notes)


def test_sections_turn_no_llama_otherwise() -> None:
    """llama.cpp goes by the family: of Llama neighbours turn together, whatever its file says of pictures."""
    sections = np.array([1, 1, 0, 0], np.int32)
    folded = describe(gguf_of(LLAMA, rope__dimension_sections=sections)).layers[0].attention.rope
    assert folded is not None and folded.interleaved
    glm = LLAMA | {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "partial_rotary_factor": 1.0}
    folded = describe(gguf_of(glm, rope__dimension_sections=sections)).layers[0].attention.rope
    assert folded is not None and not folded.interleaved


def test_a_name_that_is_an_array() -> None:
    gguf = gguf_of(LLAMA)
    gguf.metadata["general.name"] = np.array([1, 2], np.int32)
    assert hf.from_gguf(gguf).tensors


@pytest.mark.parametrize(
    ("name", "wrong", "why"),
    [
        ("llada-moe", {"num_experts_per_tok": 0}, "'llada-moe.expert_used_count' is 0 for layer 0"),
        ("grok2", {"scaling_factor": -1}, "'grok.rope.scaling.factor' is -1"),
        ("qwen1", {"num_attention_heads": 0}, "layer 0 has 0 heads"),
        ("deepseek4", {"index_topk": 0}, "top_k' is 0"),
        ("llada-moe", {}, ""),
    ],
)
def test_what_cannot_be_run_is_noted(name: str, wrong: dict[str, Any], why: str) -> None:
    """That a file contradicts itself is seen when it is converted, not only by who loads it."""
    notes = [note for note in gguf_of(by_hand.CONFIGS[name] | wrong).notes if note.startswith("it can't be run: ")]
    assert [why in note for note in notes] == [True] * bool(why)


# ------------------------------------------------------------------------------------------------------ the walk


WRONG: list[Any] = ["7", [1, 2], {"a": 1}, [], -1, 0, 2**40, float("nan"), None, True]
WRONG_KEYS: list[Any] = ["7", ["a", "b"], np.array([1, 2], np.int32), np.array([], np.int32), np.int32(-1)]
WRONG_KEYS += [np.uint32(0), np.uint64(2**40), np.float32("nan"), np.float32(0.5), True]


def _refused(act: Any) -> bool:
    """Whether it is, in one sentence; anything else that is raised is a fault."""
    try:
        act()
    except LlmconvError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return True
    return False


def walked(name: str, rng: np.random.Generator, count: int) -> int:
    """Some settings and keys of a family with wrong values: refused in a sentence, or converted; how many are refused.

    One of a wrong kind is never converted.
    """
    config = by_hand.CONFIGS[name]
    folder, arch = model(config), archs.by_hf(config)
    assert arch is not None
    gguf = hf.to_gguf(folder)
    gguf = gguf.but(metadata={key: value for key, value in gguf.metadata.items() if not key.startswith("llmconv.")})
    refused, settings = 0, sorted(arch.computed_with & set(config))
    for _ in range(count):
        setting, value = str(rng.choice(settings)), WRONG[rng.integers(len(WRONG))]
        changed = json.dumps(config | {setting: value}).encode()
        wrong = dataclasses.replace(folder, files={"config.json": changed})
        done = _refused(lambda: hf.to_gguf(wrong))  # noqa: B023
        assert done or not (value == "7" and {"number", "whole"} & set(KINDS.get(setting, ())))
        start = f"{arch.gguf}."
        keys = sorted(key for key in gguf.metadata if key.startswith(start)) + [start + key.gguf for key in arch.keys]
        key, stated = str(rng.choice(keys)), WRONG_KEYS[rng.integers(len(WRONG_KEYS))]
        other = gguf.but(metadata=dict(gguf.metadata) | {key: stated})
        refused += done + _refused(lambda: describe(other)) + _refused(lambda: hf.from_gguf(other))  # noqa: B023
    return refused


RUNNING = [n for n, config in by_hand.CONFIGS.items() if n not in by_hand.NOT_RUN and "hidden_size" in config]

COUNT = int(os.environ.get("LLMCONV_WRONG_VALUES", "15"))
"""Settings and keys of each family; with 2,000 nearly all have had nearly all values."""


@pytest.mark.parametrize("seed", range(3))
def test_some_wrong_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert walked(str(rng.choice(RUNNING)), rng, 5) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_wrong_values(name: str) -> None:
    assert walked(name, np.random.default_rng(len(name)), COUNT) > 0
