"""Nothing that a GGUF or a model folder states gets lost in the other ecosystem, which may have no place for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import CONFIG, tensors, write_gguf, write_hf
from hf_models import GEMMA3, GPT_OSS, LLAMA, QWEN3_MOE, model

import llmconv
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.unread import unread
from llmconv.convert.dialects import hf
from llmconv.convert.dialects.hugging_face import beyond, foreign_keys
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.config import text_config
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

KEYS: dict[str, Any] = {
    "general.name": "Tiny",
    "general.author": "somebody",
    "general.license": "mit",
    "general.tags": ["a", "b"],
    "tokenizer.ggml.eot_token_id": np.uint32(257),
    "tokenizer.ggml.add_bos_token": False,
    "llama.nobody.knows": np.uint16(7),
    "mine.numbers": np.array([1, 2, 3], np.int8),
    "mine.number": np.float64(0.1),
}


def somebodys(checkpoint: Checkpoint) -> None:
    """Make it a GGUF that this program did not write."""
    for key in [k for k in checkpoint.metadata if k.startswith("llmconv.")]:
        del checkpoint.metadata[key]
    checkpoint.metadata |= KEYS


def lost(a: Path, b: Path) -> list[str]:
    return [d.name for d in llmconv.diff(a, b) if d.a is not None]


@pytest.mark.parametrize("through", ["folder", "lone.safetensors", "m.json", "m.msgpack"])
def test_keys_of_a_gguf_come_back(tmp_path: Path, through: str) -> None:
    source = write_gguf(tmp_path / "a.gguf", somebodys)
    llmconv.convert_file(source, tmp_path / through)
    llmconv.convert_file(tmp_path / through, tmp_path / "b.gguf")
    assert lost(source, tmp_path / "b.gguf") == []
    assert llmconv.open(tmp_path / "b.gguf").metadata["mine.numbers"].dtype == np.int8


@pytest.mark.parametrize("gone", ["tokenizer.ggml.tokens", "tokenizer."])
def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path, gone: str) -> None:
    source = write_gguf(tmp_path / "a.gguf", somebodys)
    whole = llmconv.convert_file(source, tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.json").is_file() and not [n for n in whole.notes if "no tokenizer" in n]
    checkpoint = llmconv.open(source)
    bare = {key: value for key, value in checkpoint.metadata.items() if not key.startswith(gone)}
    made = llmconv.save(checkpoint.but(metadata=bare), tmp_path / "folder")
    assert not [p.name for p in (tmp_path / "folder").iterdir() if "token" in p.name]
    assert [n for n in made.notes if n == "no tokenizer files are written: the GGUF holds no tokens"]


def test_a_gguf_is_described_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read through for two kinds of notes; the other reading is of what its folder says."""
    seen: list[Checkpoint] = []

    def counted(checkpoint: Checkpoint, pieces: Any = None) -> Any:
        seen.extend([checkpoint] if pieces is None else [])
        return describe(checkpoint, pieces)

    source = llmconv.open(write_gguf(tmp_path / "a.gguf", somebodys))
    monkeypatch.setattr(beyond, "describe", counted)
    hf.from_gguf(source)
    assert ["llama.nobody.knows" in checkpoint.metadata for checkpoint in seen] == [True, False]


def test_a_folder_of_ours_carries_nothing_more(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf")
    llmconv.convert_file(hf, tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    assert llmconv.open(tmp_path / "back").metadata == {"format": "pt"}


def test_what_the_folder_says_wins_over_kept_keys(tmp_path: Path) -> None:
    """A configuration that was edited meanwhile is what counts, and nobody's metadata passes for ours."""

    def changed(checkpoint: Checkpoint) -> None:
        somebodys(checkpoint)
        checkpoint.metadata["llama.rope.freq_base"] = np.float32(500000)

    llmconv.convert_file(write_gguf(tmp_path / "a.gguf", changed), tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace("500000.0", "700000.0"))
    evil = foreign_keys.keep({"general.architecture": "gpt2", "mine.a": 1}, {}, "llama")[0][own_keys.GGUF_METADATA]
    evil = json.dumps(json.loads(evil) | {"llmconv.layout": ["str", "plain"], "general.architecture": ["str", "gpt2"]})
    model = llmconv.open(tmp_path / "hf")
    weights = Checkpoint(model.tensors, model.metadata | {own_keys.GGUF_METADATA: evil}, "hf", model.files)
    llmconv.save(weights, tmp_path / "b.gguf")
    found = llmconv.open(tmp_path / "b.gguf").metadata
    assert found["llama.rope.freq_base"] == 700000 and found["mine.a"] == 1
    assert found["general.architecture"] == "llama" and "llmconv.layout" not in found


def test_a_kept_configuration_that_is_out_of_date_is_set_right(tmp_path: Path) -> None:
    llmconv.convert_file(write_hf(tmp_path / "hf"), tmp_path / "m.gguf")
    llmconv.edit(tmp_path / "m.gguf", set={"llama.context_length": np.uint32(32)})
    result = llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    assert [n for n in result.notes if "max_position_embeddings 32" in n]


@pytest.mark.parametrize("through", ["m.gguf", "m.json", "m.safetensors"])
def test_metadata_of_the_weights_comes_back(tmp_path: Path, through: str) -> None:
    said = {"format": "pt", "trained_by": "somebody"}
    made = Checkpoint(tensors(), said, "hf", {"config.json": json.dumps(CONFIG).encode()})
    safetensors_file.save(made, tmp_path / "hf")
    llmconv.convert_file(tmp_path / "hf", tmp_path / through)
    llmconv.convert_file(tmp_path / through, tmp_path / "back")
    assert llmconv.open(tmp_path / "back").metadata == said


@pytest.mark.parametrize("how", ["unknown pre-tokenizer", "no merges", "unknown kind"])
def test_a_vocabulary_that_no_tokenizer_file_can_say(tmp_path: Path, how: str) -> None:
    """The model converts all the same, says so, and the vocabulary is there when it comes back."""

    def changed(checkpoint: Checkpoint) -> None:
        somebodys(checkpoint)
        match how:
            case "unknown pre-tokenizer":
                checkpoint.metadata["tokenizer.ggml.pre"] = "nonesuch"
            case "no merges":
                del checkpoint.metadata["tokenizer.ggml.merges"]
            case _:
                checkpoint.metadata["tokenizer.ggml.model"] = "rwkv"

    source = write_gguf(tmp_path / "a.gguf", changed)
    result = llmconv.convert_file(source, tmp_path / "hf")
    assert how == "unknown kind" or any("no tokenizer files are written" in n for n in result.notes)
    back = llmconv.convert_file(tmp_path / "hf", tmp_path / "b.gguf")
    assert lost(source, tmp_path / "b.gguf") == [] and not any("weights only" in n for n in back.notes)


def test_a_token_with_two_ids_is_named(tmp_path: Path) -> None:
    def changed(checkpoint: Checkpoint) -> None:
        somebodys(checkpoint)
        words = list(checkpoint.metadata["tokenizer.ggml.tokens"])
        checkpoint.metadata["tokenizer.ggml.tokens"] = [*words[:9], words[5], *words[10:]]

    result = llmconv.convert_file(write_gguf(tmp_path / "a.gguf", changed), tmp_path / "hf")
    assert [n for n in result.notes if "has two ids, 5 and 9" in n]


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    weights = tensors()
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = Tensor.from_array(name, weights[name].numpy().astype(np.int8))
    hf = write_hf(tmp_path / "hf", weights=weights)
    with pytest.raises(llmconv.BadFile, match=r"q_proj.weight' is I8, expected floats"):
        llmconv.convert_file(hf, tmp_path / "m.gguf")


def test_editing_weights_leaves_their_folder_out(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf")
    llmconv.edit(hf / "model.safetensors", set={"trained_by": "somebody"})
    assert safetensors_file.open_alone(hf / "model.safetensors").metadata == {"trained_by": "somebody"}
    assert [d.name for d in llmconv.diff(write_hf(tmp_path / "same"), hf)] == ["trained_by"]
    with pytest.raises(llmconv.Unsupported, match="is a folder; name the file"):
        llmconv.edit(hf, set={"a": "b"})


def test_the_key_of_kept_metadata_is_checked(tmp_path: Path) -> None:
    llmconv.convert_file(write_hf(tmp_path / "hf"), tmp_path / "m.gguf")
    llmconv.edit(tmp_path / "m.gguf", set={own_keys.WEIGHTS_METADATA: '{"a": 1}'})
    with pytest.raises(llmconv.BadFile, match="is no map of texts"):
        llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")


def test_keys_that_nothing_here_computes_with_are_named(tmp_path: Path) -> None:
    """When a model is run: those that somebody else wrote into its file."""
    gguf = llmconv.open(write_gguf(tmp_path / "a.gguf", somebodys))
    assert unread(describe(gguf), gguf.metadata) == [
        "no effect here has 'llama.nobody.knows'; if it changes what the model computes, results differ"
    ]
    del gguf.metadata["llama.nobody.knows"]
    assert unread(describe(gguf), gguf.metadata) == []


LLAMA_CPP: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "windows": (LLAMA, {"attention.sliding_window": np.uint32(4)}, "attention over a window of 4 tokens"),
    "activation": (LLAMA, {"hidden_activation": "gelu"}, "the activation 'gelu'"),
    "betas": (
        LLAMA,
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": np.float32(4),
            "rope.scaling.original_context_length": np.uint32(16),
            "rope.scaling.yarn_beta_fast": np.float32(8),
        },
        "YaRN's beta_fast 8",
    ),
    "both sides": (GPT_OSS, {"attention.causal": False}, "its windows reach to both sides"),
    "weights": (QWEN3_MOE | {"norm_topk_prob": True}, {"expert_weights_norm": False}, "to sum to 1: False"),
}


@pytest.mark.parametrize("case", LLAMA_CPP)
def test_a_folder_of_what_llama_cpp_does_otherwise_says_so(case: str) -> None:
    """Of a GGUF that somebody else made: for llama.cpp it was another model."""
    config, keys, words = LLAMA_CPP[case]
    gguf = hf.to_gguf(model(config))
    arch = gguf.metadata["general.architecture"]
    bare = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    assert not [n for n in hf.from_gguf(gguf.but(metadata=bare)).notes if "llama.cpp" in n]
    bare |= {f"{arch}.{key}": value for key, value in keys.items()}
    assert [n for n in hf.from_gguf(gguf.but(metadata=bare)).notes if words in n and "which llama.cpp will not do" in n]


OF_OTHER_FAMILIES = {"attention.shared_kv_layers": np.uint32(1), "swin_norm": True, "rope.scaling.alpha": np.float32(9)}


@pytest.mark.parametrize("key", OF_OTHER_FAMILIES)
def test_what_only_another_family_says_changes_nothing_and_is_named(key: str) -> None:
    gguf = hf.to_gguf(model(QWEN3_MOE))
    plain = describe(gguf)
    gguf.metadata[f"qwen3moe.{key}"] = OF_OTHER_FAMILIES[key]
    assert describe(gguf) == plain
    assert unread(plain, gguf.metadata)[0].startswith(f"no effect here has 'qwen3moe.{key}'")


def test_a_window_that_no_layer_has_is_none_of_the_folder() -> None:
    """Of Qwen, where only a pattern says which layers have one; llama.cpp has none."""
    qwen = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 4}
    gguf = hf.to_gguf(model(qwen))
    bare = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    found = hf.from_gguf(gguf.but(metadata=bare | {"qwen3.attention.sliding_window": np.uint32(4)}))
    assert not json.loads(found.file("config.json") or b"").get("use_sliding_window")
    assert [note for note in found.notes if "no place for 'qwen3.attention.sliding_window'" in note]


def test_a_family_of_windows_without_one_has_none_in_the_folder() -> None:
    gguf = hf.to_gguf(model(GEMMA3))
    bare = {k: v for k, v in gguf.metadata.items() if not k.startswith((own_keys.OWN, "gemma3.attention.sliding"))}
    config = json.loads(hf.from_gguf(gguf.but(metadata=bare)).file("config.json") or b"")
    assert text_config(config)["layer_types"] == ["full_attention"] * 2
    assert all(layer.attention.window is None for layer in describe(gguf.but(metadata=bare)).layers)
