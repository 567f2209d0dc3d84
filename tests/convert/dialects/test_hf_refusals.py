"""Bad configurations, tensors and keys, from Hugging Face's side and from a GGUF's: one sentence each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hf_models import BAICHUAN, GEMMA3, GPT2, GPT_OSS, LLAMA, QWEN3_MOE, model

from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.dialects import hf
from llmconv.convert.dialects.gguf import check_gguf
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor


def without(name: str) -> Callable[[Checkpoint], None]:
    return lambda c: c.tensors.pop(name) and None


def config_with(**changes: Any) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint.files["config.json"] = json.dumps(LLAMA | changes).encode()

    return change


def with_extra(checkpoint: Checkpoint) -> None:
    checkpoint.add(Tensor.from_array("model.layers.0.extra.weight", np.zeros((2, 2), np.float32)))


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"rope_scaling": _LLAMA3 | {"low_freq_factor": 0}}, "rope.low_freq_factor is 0"),
        (LLAMA | {"rope_scaling": _LLAMA3 | {"factor": "x"}}, "rope_scaling.factor is 'x'"),
        (LLAMA | {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": None}}, "embeddings is None"),
        (LLAMA | {"rope_parameters": {"full_attention": {}, "sliding_attention": 5}}, "sliding_attention is 5"),
        (GPT2 | {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "attn_config": 5}, "attn_config is 5"),
        (GPT2 | {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "expansion_ratio": []}, "_ratio is []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_of_no_use_is_named(config: dict[str, Any], named: str) -> None:
    arch = archs.by_hf(config)
    assert arch is not None
    checkpoint = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    with pytest.raises(BadFile, match=re.escape(named)):
        hf.to_gguf(checkpoint)


ODD: tuple[Any, ...] = (None, "x", -1, 0, 1.5, 2**40, [], [1], ["a"], {"a": 1}, True, float("nan"))
MUTATED = {"llama": LLAMA | {"rope_scaling": _LLAMA3}, "gpt-oss": GPT_OSS, "qwen3-moe": QWEN3_MOE, "gpt2": GPT2}
MUTATED |= {"baichuan": BAICHUAN, "gemma3": GEMMA3}


LATER = [name if name in ("llama", "gemma3") else pytest.param(name, marks=pytest.mark.slow) for name in MUTATED]
_INSIDE = {"prefix": "language_model.model."}


@pytest.mark.parametrize("name", LATER)
def test_no_setting_breaks_the_reader(name: str) -> None:
    """Every value of a config.json replaced by odd ones: a sentence, or a conversion."""
    good = model(MUTATED[name], **(_INSIDE if name == "gemma3" else {}))

    def attempt(config: dict[str, Any]) -> None:
        try:
            hf.to_gguf(dataclasses.replace(good, files={"config.json": json.dumps(config).encode()}))
        except LlmconvError as error:
            assert "\n" not in str(error)

    for key, value in MUTATED[name].items():
        for odd in ODD:
            attempt(MUTATED[name] | {key: odd})
            for inner in value if isinstance(value, dict) else ():
                attempt(MUTATED[name] | {key: value | {inner: odd}})


@pytest.mark.parametrize("name", LATER)
def test_no_key_breaks_the_reader(name: str) -> None:
    """The same with the keys of a GGUF, ours among them, for everything that reads them."""
    good = hf.to_gguf(
        model(MUTATED[name], prefix="language_model.model.") if name == "gemma3" else model(MUTATED[name])
    )
    bare = {k: v for k, v in good.metadata.items() if not k.startswith("llmconv.")}
    arrays = (np.array([1, 2], np.int32), np.array([], np.float32), np.float32("nan"), "{}", "[]")
    for metadata in (good.metadata, bare):
        for key in metadata:
            for odd in (*ODD, *arrays):
                changed = metadata | {key: odd}
                if odd is None:
                    del changed[key]
                for read in (check_gguf, hf.from_gguf, describe):
                    try:
                        read(dataclasses.replace(good, metadata=changed, tensors=dict(good.tensors)))
                    except LlmconvError as error:
                        assert "\n" not in str(error)


BAD: dict[str, tuple[Callable[[Checkpoint], None], str]] = {
    "missing tensor": (
        without("model.layers.1.mlp.up_proj.weight"),
        "model: tensor 'model.layers.1.mlp.up_proj.weight' is missing; a llama model of this config.json needs it; "
        'layout="plain" converts any tensors under their own names',
    ),
    "half of the layers": (
        config_with(num_hidden_layers=4),
        "model: tensor 'model.layers.2.input_layernorm.weight' is missing; a llama model of this config.json needs it; "
        'layout="plain" converts any tensors under their own names',
    ),
    "billions of layers": (
        config_with(num_hidden_layers=4_000_000_000),
        "model: tensor 'model.layers.2.input_layernorm.weight' is missing",
    ),
    "billions of experts": (
        config_with(num_local_experts=4_000_000_000, num_experts_per_tok=2),
        "model: tensor 'model.layers.0.block_sparse_moe.gate.weight' is missing",
    ),
    "contradicting shape": (
        config_with(intermediate_size=32),
        "model: tensor 'model.layers.0.mlp.gate_proj.weight' has shape [24, 16], expected [32, 16] by config.json",
    ),
    "other heads": (
        config_with(num_key_value_heads=1),
        "model: tensor 'model.layers.0.self_attn.k_proj.weight' has shape [8, 16], expected [4, 16] by config.json",
    ),
    "no heads": (
        config_with(num_attention_heads=0),
        "expected [0, 16] by config.json",
    ),
    "vocabulary of another size": (
        config_with(vocab_size=21),
        "model: tensor 'model.embed_tokens.weight' has shape [20, 16], expected [21, 16] by config.json",
    ),
    "extra tensor": (
        with_extra,
        "'model.layers.0.extra.weight' is none that a llama model has; strict=False leaves such tensors out",
    ),
    "negative number": (
        config_with(num_hidden_layers=-1),
        "model: config.json: num_hidden_layers is -1, expected a whole number from 0 to 4294967295",
    ),
    "text for a number": (
        config_with(rms_norm_eps="small"),
        "model: config.json: rms_norm_eps is 'small', expected a number",
    ),
    "rope without a factor": (
        config_with(rope_scaling={"type": "linear"}),
        "model: config.json: rope type 'linear' lacks 'factor'",
    ),
    "broken config": (
        lambda c: c.files.update({"config.json": b"[1, 2"}),
        "model: config.json is not a JSON object; repair or replace it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_in_one_sentence(name: str) -> None:
    spoil, message = BAD[name]
    checkpoint = model(LLAMA)
    spoil(checkpoint)
    with pytest.raises(BadFile) as error:
        hf.to_gguf(checkpoint)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_rope_type() -> None:
    checkpoint = model(LLAMA)
    config_with(rope_scaling={"type": "spiral", "factor": 2})(checkpoint)
    with pytest.raises(
        Unsupported, match="unknown rope type 'spiral'; known: default, linear, dynamic, yarn, llama3, longrope"
    ):
        hf.to_gguf(checkpoint)


def test_unknown_architectures_keep_their_names() -> None:
    checkpoint = Checkpoint(dialect="hf", files={"config.json": b'{"architectures": ["MysteryForCausalLM"]}'})
    checkpoint.add(Tensor.from_array("a.b", np.arange(12, dtype=np.float16).reshape(3, 4)))
    gguf = hf.to_gguf(checkpoint)
    assert list(gguf.tensors) == ["a.b"] and gguf.metadata["llmconv.layout"] == "plain"
    assert any("MysteryForCausalLM is no architecture known here" in note for note in gguf.notes)
    back = hf.from_gguf(gguf)
    assert back.tensors["a.b"].blocks().tobytes() == checkpoint.tensors["a.b"].blocks().tobytes()


def test_not_strict_leaves_extra_tensors_out() -> None:
    checkpoint = model(LLAMA)
    with_extra(checkpoint)
    gguf = hf.to_gguf(checkpoint, strict=False)
    assert "left out, unknown to llama: model.layers.0.extra.weight" in gguf.notes
    gguf.add(Tensor.from_array("blk.0.strange.weight", np.zeros((2, 2), np.float32)))
    with pytest.raises(BadFile, match=r"'blk.0.strange.weight' is none that a llama model has"):
        hf.from_gguf(gguf)
    assert "left out, unknown to llama: blk.0.strange.weight" in hf.from_gguf(gguf, strict=False).notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g.tensors.pop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' is missing; a llama model"),
        (
            lambda g: g.metadata.update({"llama.feed_forward_length": np.uint32(25)}),
            r"'blk.0.ffn_gate.weight' has shape \[24, 16\], expected \[25, 16\]",
        ),
        (lambda g: g.metadata.update({own_keys.PREFIX: "../"}), "llmconv.hf.prefix is '../', expected one of 'model.'"),
        (lambda g: g.metadata.update({own_keys.FORMS: '{"blk.{i}.attn_q.weight":9}'}), "llmconv.hf.forms says 9"),
        (lambda g: g.metadata.update({"llama.block_count": np.uint32(2**31)}), "'blk.2.attn_norm.weight' is missing"),
    ],
)
def test_bad_ggufs_are_refused_in_one_sentence(spoil: Callable[[Checkpoint], Any], message: str) -> None:
    gguf = hf.to_gguf(model(LLAMA))
    spoil(gguf)
    with pytest.raises(BadFile, match=message):
        hf.from_gguf(gguf)


def test_side_files_come_back_but_never_leave_the_folder() -> None:
    checkpoint = model(LLAMA)
    checkpoint.files |= {
        "generation_config.json": b'{"top_p": 0.9}',
        "README.md": b"# hi\n",
        "weights.dat": b"\xff\xfe",
    }
    gguf = hf.to_gguf(checkpoint)
    assert any("weights.dat is not kept" in note for note in gguf.notes)
    gguf.metadata[own_keys.FILE + "../evil"] = "x"
    gguf.metadata[own_keys.FILE + "/etc/evil"] = "x"
    files = hf.from_gguf(gguf).files
    assert files["generation_config.json"] == b'{"top_p": 0.9}' and files["README.md"] == b"# hi\n"
    assert set(files) == {"config.json", "generation_config.json", "README.md"}
