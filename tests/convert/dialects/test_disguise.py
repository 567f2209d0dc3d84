"""Names in disguise: wrappers, prefixes, one of a tied pair, layers for further tokens; all come back bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import DEEPSEEK, GPT2, LLAMA, QWEN3_MOE, assert_round_trip, model

import llmconv
from llmconv.convert.decoders.describe import describe
from llmconv.convert.dialects import hf
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

TIED = LLAMA | {"tie_word_embeddings": True}
MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": LLAMA | {"model_type": "mistral"},
}


def renamed(checkpoint: Checkpoint, change: Callable[[str], str]) -> Checkpoint:
    return dataclasses.replace(
        checkpoint, tensors={change(n): t.renamed(change(n)) for n, t in checkpoint.tensors.items()}
    )


DISGUISES: dict[str, Callable[[str], str]] = {
    "compiled": lambda n: f"_orig_mod.{n}",
    "data parallel": lambda n: f"module.{n}",
    "compiled, in parallel": lambda n: f"module._orig_mod.{n}",
    "layers compiled one by one": lambda n: n.replace("layers.0.", "layers.0._orig_mod.").replace(
        "layers.1.", "layers.1._orig_mod."
    ),
    "only some": lambda n: n.replace("layers.1.mlp.", "layers.1.mlp._checkpoint_wrapped_module."),
    "FSDP": lambda n: "_fsdp_wrapped_module." + n.replace(".mlp.", "._fsdp_wrapped_module.mlp."),
    "PEFT": lambda n: f"base_model.model.{n}",
    "PEFT, its layers inside": lambda n: "base_model.model." + n.replace(".mlp.", ".mlp.base_layer."),
    "PEFT, compiled": lambda n: f"_orig_mod.base_model.model.{n}",
    "a language model inside": lambda n: f"language_model.{n}",
    "a language model inside a model": lambda n: (
        "model.language_model." + n.removeprefix("model.") if "lm_head" not in n else n
    ),
    "head inside a model": lambda n: "model.language_model." + n.removeprefix("model."),
    "nobody's prefix": lambda n: f"thinker.{n}",
    "all at once": lambda n: f"module._orig_mod.language_model.{n}",
}


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("config", [LLAMA, TIED, QWEN3_MOE, MISTRAL3], ids=["llama", "tied", "qwen3-moe", "mistral3"])
def test_disguises_come_off_and_on(name: str, config: dict[str, Any]) -> None:
    plain = model(config, prefix="model.")
    gguf = assert_round_trip(renamed(plain, DISGUISES[name]))
    expected = hf.to_gguf(plain)
    assert list(gguf.tensors) == list(expected.tensors)
    for tensor in expected.tensors.values():
        assert gguf.tensors[tensor.name].blocks().tobytes() == tensor.blocks().tobytes()
    assert len(gguf.metadata.get(own_keys.NAMES, "")) < 3000


@pytest.mark.parametrize("name", ["compiled", "data parallel", "layers compiled one by one", "PEFT"])
def test_a_copy_says_what_it_keeps(name: str, tmp_path: Path) -> None:
    """transformers knows none of these names; the way that the note tells gives those that it knows."""
    plain = model(LLAMA, "F32", prefix="model.")
    llmconv.save(renamed(plain, DISGUISES[name]), tmp_path / "a")
    for outtype in ("auto", "bf16"):
        made = llmconv.convert_file(tmp_path / "a", tmp_path / outtype, outtype=outtype)
        assert any("of a wrapper, which transformers does not know" in note for note in made.notes)
        assert set(llmconv.open(tmp_path / outtype).tensors) == {DISGUISES[name](n) for n in plain.tensors}
    llmconv.convert_file(tmp_path / "a", tmp_path / "a.gguf", portable=True)
    made = llmconv.convert_file(tmp_path / "a.gguf", tmp_path / "b")
    assert set(llmconv.open(tmp_path / "b").tensors) == set(plain.tensors)
    assert not any("wrapper" in note for note in made.notes)


def test_gpt2_in_parallel() -> None:
    assert_round_trip(renamed(model(GPT2), lambda n: f"module.{n}"))


def test_plain_names_are_not_written_down() -> None:
    assert own_keys.NAMES not in hf.to_gguf(model(LLAMA)).metadata


def test_two_of_one_name_are_no_disguise() -> None:
    checkpoint = model(LLAMA)
    twice = checkpoint.tensors["model.norm.weight"].renamed("module.model.norm.weight")
    checkpoint.add(twice)
    with pytest.raises(BadFile, match=r"'module.model.norm.weight' is none that a llama model has"):
        hf.to_gguf(checkpoint)


def test_an_unknown_tensor_is_called_by_its_own_name() -> None:
    checkpoint = model(LLAMA)
    checkpoint.add(Tensor.from_array("model.layers.0.mlp.extra.weight", np.zeros(4, np.float32)))
    with pytest.raises(BadFile, match=r"'module.model.layers.0.mlp.extra.weight' is none that"):
        hf.to_gguf(renamed(checkpoint, lambda n: f"module.{n}"))


def test_kept_names_are_checked() -> None:
    gguf = hf.to_gguf(model(LLAMA))
    gguf.metadata[own_keys.NAMES] = '{"model.norm.weight": 5}'
    with pytest.raises(BadFile, match="is no map of names"):
        hf.from_gguf(gguf)


# ----------------------------------------------------------------------------------------------------- tied pairs


def test_a_tied_pair_under_the_head_s_name() -> None:
    checkpoint = renamed(model(TIED), lambda n: "lm_head.weight" if "embed_tokens" in n else n)
    gguf = assert_round_trip(checkpoint)
    assert "token_embd.weight" in gguf.tensors and "output.weight" not in gguf.tensors


def test_a_head_alone_is_no_embedding_where_nothing_says_tied() -> None:
    checkpoint = model(LLAMA | {"tie_word_embeddings": False})
    del checkpoint.tensors["model.embed_tokens.weight"]
    with pytest.raises(BadFile, match=r"embed_tokens.weight' is missing"):
        hf.to_gguf(checkpoint)


@pytest.mark.parametrize("equal", [True, False])
def test_both_of_a_tied_pair(equal: bool) -> None:
    """Both are kept; where they differ, the head is computed with, as transformers does."""
    checkpoint = model(TIED)
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    head = embedding.numpy() if equal else embedding.numpy() * np.float32(2)
    checkpoint.add(Tensor.from_array("lm_head.weight", head, embedding.type))
    assert not describe(assert_round_trip(checkpoint)).tied


# ------------------------------------------------------------------------------------------ layers for further tokens


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_a_layer_for_a_further_token(with_embeddings: bool) -> None:
    checkpoint = model(DEEPSEEK | {"num_nextn_predict_layers": 1}, all_rows=with_embeddings)
    assert any("layers.2.eh_proj" in name for name in checkpoint.tensors)
    gguf = assert_round_trip(checkpoint)
    assert gguf.metadata["deepseek2.block_count"] == 3 and gguf.metadata["deepseek2.nextn_predict_layers"] == 1
    names = {f"blk.2.nextn.{n}.weight" for n in ("eh_proj", "enorm", "hnorm")}
    assert names <= set(gguf.tensors) and ("blk.2.nextn.embed_tokens.weight" in gguf.tensors) == with_embeddings
    assert "blk.2.ffn_up_exps.weight" in gguf.tensors
    assert len(describe(gguf).layers) == 2
    keys = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    back = hf.from_gguf(dataclasses.replace(gguf, metadata=keys))
    config = json.loads(back.file("config.json") or b"")
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (2, 1)
    assert set(back.tensors) == set(checkpoint.tensors)


def test_a_layer_that_only_the_configuration_speaks_of() -> None:
    checkpoint = model(DEEPSEEK)
    checkpoint.files["config.json"] = json.dumps(DEEPSEEK | {"num_nextn_predict_layers": 1}).encode()
    gguf = assert_round_trip(checkpoint)
    assert gguf.metadata["deepseek2.block_count"] == 2 and "deepseek2.nextn_predict_layers" not in gguf.metadata


def test_half_a_layer_is_refused() -> None:
    checkpoint = model(DEEPSEEK | {"num_nextn_predict_layers": 1})
    del checkpoint.tensors["model.layers.2.eh_proj.weight"]
    with pytest.raises(BadFile, match=r"model.layers.2.eh_proj.weight' is missing"):
        hf.to_gguf(checkpoint)
