"""What was edited in a GGUF made of a folder is what the folder made of it says; what was not comes back as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import CONFIG, tokenizer, write_hf
from tokenizers_trained import trained

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.dialects.hugging_face import foreign_keys
from llmconv.convert.tables.config import normalized
from llmconv.formats.checkpoint import Checkpoint

SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "chat_template": "old", "x": 1}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
GENERATION = {"eos_token_id": [257, 256], "temperature": 0.5}


def folder(path: Path, **config: Any) -> Checkpoint:
    files = {"tokenizer_config__json": SETTINGS, "generation_config__json": GENERATION}
    return llmconv.open(write_hf(path, {**CONFIG, **config}, **files))


def edited(source: Checkpoint, **keys: Any) -> tuple[Checkpoint, Checkpoint]:
    """(the GGUF with other keys, the folder made of it)"""
    gguf = hf.to_gguf(source)
    gguf.metadata |= {name.replace("__", "."): value for name, value in keys.items()}
    return gguf, hf.from_gguf(gguf)


def document(checkpoint: Checkpoint, name: str) -> Any:
    return json.loads(checkpoint.file(name) or b"")


def agrees(gguf: Checkpoint, back: Checkpoint, *but: str) -> None:
    """The folder alone, without kept keys, gives a GGUF of the same keys."""
    again = hf.to_gguf(back.but(metadata={"format": "pt"})).metadata
    for key, value in gguf.metadata.items():
        if not key.startswith(("llmconv.", "general.")) and key not in but:
            assert np.array_equal(again[key], value), key


ROPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
    "keys",
    [
        {"llama__rope__freq_base": np.float32(5e5)},
        {"llama__context_length": np.uint32(4096)},
        {"llama__attention__layer_norm_rms_epsilon": np.float32(1e-6)},
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": np.float32(2)},
        {
            "llama__rope__scaling__type": "yarn",
            "llama__rope__scaling__factor": np.float32(8),
            "llama__rope__scaling__original_context_length": np.uint32(64),
            "llama__rope__freq_base": np.float32(2e4),
        },
    ],
)
def test_config_json_says_it(tmp_path: Path, rope: dict[str, Any], keys: dict[str, Any]) -> None:
    source = folder(tmp_path / "a", **rope)
    gguf, back = edited(source, **keys)
    agrees(gguf, back)
    said, was = normalized(document(back, "config.json")), normalized(document(source, "config.json"))
    assert back.metadata == {"format": "pt"}
    assert sum("edited" in note for note in back.notes) == 1
    if "llama__rope__freq_base" not in keys:
        assert said["rope_theta"] == was["rope_theta"]
    assert back.file("tokenizer.json") == source.file("tokenizer.json")


def test_a_number_of_another_type_is_the_same(tmp_path: Path) -> None:
    _, back = edited(folder(tmp_path / "a"), llama__rope__freq_base=np.uint32(500000))
    assert document(back, "config.json")["rope_theta"] == 500000
    assert not any("does not say" in note for note in back.notes)


def test_settings_within_a_text_config(tmp_path: Path) -> None:
    inner = {k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type")}
    outer = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "text_config": inner}
    source = llmconv.open(write_hf(tmp_path / "a", outer))
    gguf, back = edited(source, llama__context_length=np.uint32(999), tokenizer__ggml__eos_token_id=np.uint32(259))
    agrees(gguf, back)
    found = document(back, "config.json")
    assert found["text_config"]["max_position_embeddings"] == 999 and "max_position_embeddings" not in found
    assert found["text_config"]["eos_token_id"] == 259


def test_the_end_of_texts(tmp_path: Path) -> None:
    gguf, back = edited(folder(tmp_path / "a"), tokenizer__ggml__eos_token_id=np.uint32(259))
    agrees(gguf, back)
    assert document(back, "config.json")["eos_token_id"] == 259
    assert document(back, "generation_config.json") == {"eos_token_id": [259, 256], "temperature": 0.5}
    assert document(back, "tokenizer_config.json") == {**SETTINGS, "eos_token": "<pad>"}


@pytest.mark.parametrize("where", ["settings", "list", "file", "nowhere"])
def test_chat_template(tmp_path: Path, where: str) -> None:
    named = [{"name": "default", "template": "old"}, {"name": "rag", "template": "r"}]
    own = {**SETTINGS, "chat_template": named} if where == "list" else SETTINGS
    own = {k: v for k, v in own.items() if where in ("settings", "list") or k != "chat_template"}
    more = {"chat_template__jinja": b"old"} if where == "file" else {}
    source = llmconv.open(write_hf(tmp_path / "a", tokenizer_config__json=own, **more))
    gguf, back = edited(source, tokenizer__chat_template="new {{ messages }}")
    agrees(gguf, back)
    assert back.file("config.json") == source.file("config.json")
    if where == "file":
        assert back.file("tokenizer_config.json") == source.file("tokenizer_config.json")
        assert back.file("chat_template.jinja") == b"new {{ messages }}"
    if where == "list":
        assert document(back, "tokenizer_config.json")["chat_template"][1] == named[1]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "spm"])
def test_a_token_of_the_vocabulary(tmp_path: Path, kind: str) -> None:
    """Files that spell the vocabulary out are written anew, and the library reads the new token."""
    tokenizers = pytest.importorskip("tokenizers")
    words = trained(kind)
    size = words.get_vocab_size()
    shapes = dict(llmconv.open(write_hf(tmp_path / "x")).tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = llmconv.Tensor.from_array(name, np.zeros((size, 32), np.float32))
    config = {**CONFIG, "vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
    source = llmconv.open(write_hf(tmp_path / "a", config, words.to_str().encode(), shapes))
    gguf = hf.to_gguf(source)
    tokens = list(gguf.metadata["tokenizer.ggml.tokens"])
    old = words.token_to_id("<extra_0>")
    tokens[old] = "<tool>"
    gguf, back = edited(source, tokenizer__ggml__tokens=tokens)
    mere = ("pre", "scores", "add_space_prefix")
    agrees(gguf, back, "tokenizer.huggingface.json", *(f"tokenizer.ggml.{name}" for name in mere))
    read = tokenizers.Tokenizer.from_str((back.file("tokenizer.json") or b"").decode())
    assert read.token_to_id("<tool>") == old and read.token_to_id("<extra_0>") is None


@pytest.mark.parametrize("role", ["eot", "fim_pre"])
def test_what_no_tokenizer_file_says_is_named(tmp_path: Path, role: str) -> None:
    key = f"tokenizer.ggml.{role}_token_id"
    _, back = edited(folder(tmp_path / "a"), **{key: np.uint32(99)})
    note = f"the tokenizer files do not say what {key} of the GGUF says: kept in the weights' metadata"
    assert note in back.notes
    assert hf.to_gguf(back).metadata[key] == 99


def test_another_pre_tokenizer_is_named(tmp_path: Path) -> None:
    _, back = edited(folder(tmp_path / "a"), tokenizer__ggml__pre="qwen2")
    said = "tokenizer.json splits texts as 'gpt-2' does, not as tokenizer.ggml.pre 'qwen2' of the GGUF; it is kept"
    assert said in back.notes
    assert hf.to_gguf(back).metadata["tokenizer.ggml.pre"] == "qwen2"
    _, back = edited(folder(tmp_path / "b"), tokenizer__ggml__pre="nobody-s")
    assert any("tokenizer.ggml.pre 'nobody-s' of the GGUF is none known here" in note for note in back.notes)


def test_scores_of_a_unigram(tmp_path: Path) -> None:
    words = trained("unigram")
    size = words.get_vocab_size()
    shapes = dict(llmconv.open(write_hf(tmp_path / "x")).tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = llmconv.Tensor.from_array(name, np.zeros((size, 32), np.float32))
    config = {**CONFIG, "vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
    source = llmconv.open(write_hf(tmp_path / "a", config, words.to_str().encode(), shapes))
    scores = np.array(hf.to_gguf(source).metadata["tokenizer.ggml.scores"])
    scores[size // 2] -= 0.5
    _, back = edited(source, tokenizer__ggml__scores=scores)
    listed = dict(document(back, "tokenizer.json")["model"]["vocab"])
    assert np.float32(list(listed.values())[size // 2]) == scores[size // 2]


def test_a_switch(tmp_path: Path) -> None:
    gguf, back = edited(folder(tmp_path / "a"), tokenizer__ggml__add_bos_token=True)
    assert document(back, "tokenizer_config.json")["add_bos_token"] is True
    agrees(gguf, back)


def test_what_begins_a_text_by_the_post_processor(tmp_path: Path) -> None:
    """tokenizer.json's template puts a token before a text; switched off in the GGUF, it is off in the folder."""
    words = tokenizer()
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}
    words["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    source = llmconv.open(write_hf(tmp_path / "a", None, words, tokenizer_config__json=SETTINGS))
    gguf, back = edited(source, tokenizer__ggml__add_bos_token=False)
    agrees(gguf, back, "tokenizer.ggml.pre")
    tokenizers = pytest.importorskip("tokenizers")
    read = tokenizers.Tokenizer.from_str((back.file("tokenizer.json") or b"").decode())
    assert 256 not in read.encode("th").ids
    assert document(back, "tokenizer_config.json")["x"] == 1


@pytest.mark.parametrize("level", [None, LEVEL])
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True)])
def test_what_is_put_around_a_text_is_what_the_library_puts(
    tmp_path: Path, bos: bool, eos: bool, level: dict[str, Any] | None
) -> None:
    """transformers asks tokenizer.json's post-processor alone, whatever tokenizer_config.json says beside it."""
    words = tokenizer() | {"post_processor": level}
    source = llmconv.open(write_hf(tmp_path / "a", None, words, tokenizer_config__json=SETTINGS))
    _, back = edited(source, tokenizer__ggml__add_bos_token=bos, tokenizer__ggml__add_eos_token=eos)
    assert not any("has no key" in note for note in back.notes)
    tokenizers = pytest.importorskip("tokenizers")
    read = tokenizers.Tokenizer.from_str((back.file("tokenizer.json") or b"").decode())
    inner = read.encode("th", add_special_tokens=False).ids
    assert read.encode("th").ids == [256] * bos + inner + [257] * eos
    assert document(back, "tokenizer.json")["model"] == words["model"]


@pytest.mark.parametrize("change", [lambda c: None, lambda c: c.metadata.update({"general.author": "me"})])
def test_unedited_files_come_back_byte_for_byte(tmp_path: Path, change: Callable[[Checkpoint], object]) -> None:
    source = folder(tmp_path / "a", rope_scaling={"type": "linear", "factor": 3})
    gguf = hf.to_gguf(source, pre="llama-bpe")
    change(gguf)
    back = hf.from_gguf(gguf)
    assert {n: back.file(n) for n in back.files} == {n: source.file(n) for n in source.files}
    assert not [note for note in back.notes if "edited" in note]


@pytest.mark.parametrize("value", [np.array([1, 2]), [[1], [2, 3]], [["a"]], "x", True, np.float32("nan")])
@pytest.mark.parametrize("key", ["llama__pooling_type", "llama__nobody__knows", "tokenizer__ggml__add_space_prefix"])
def test_values_of_another_kind_change_no_file(tmp_path: Path, key: str, value: Any) -> None:
    source = folder(tmp_path / "a")
    _, back = edited(source, **{key: value})
    assert {n: back.file(n) for n in back.files} == {n: source.file(n) for n in source.files}


@pytest.mark.parametrize("place", ["settings", "list", "file"])
def test_a_chat_template_that_was_taken_out(tmp_path: Path, place: str) -> None:
    texts: dict[str, Any] = {"tokenizer_config__json": SETTINGS}
    if place == "list":
        texts["tokenizer_config__json"] = {
            **SETTINGS, "chat_template": [{"name": n, "template": n} for n in ("default", "tool_use")]
        }  # fmt: skip
    elif place == "file":
        texts["chat_template__jinja"] = b"newer"
    gguf = hf.to_gguf(llmconv.open(write_hf(tmp_path / "a", **texts)))
    del gguf.metadata["tokenizer.chat_template"]
    back = hf.from_gguf(gguf)
    left = [{"name": "tool_use", "template": "tool_use"}] if place == "list" else None
    assert document(back, "tokenizer_config.json").get("chat_template") == left
    assert "chat_template.jinja" not in back.files
    assert any("changed, as tokenizer.chat_template was edited" in note for note in back.notes)
    agrees(gguf, back)


def test_a_token_that_no_longer_ends_texts(tmp_path: Path) -> None:
    gguf = hf.to_gguf(folder(tmp_path / "a", eos_token_id=257))
    del gguf.metadata["tokenizer.ggml.eos_token_id"]
    back = hf.from_gguf(gguf)
    assert "eos_token" not in document(back, "tokenizer_config.json")
    assert document(back, "config.json")["eos_token_id"] is None
    assert document(back, "generation_config.json")["eos_token_id"] == [256]
    assert "tokenizer.ggml.eos_token_id" not in hf.to_gguf(back.but(metadata={"format": "pt"})).metadata


def test_a_name_that_was_given_comes_along(tmp_path: Path) -> None:
    gguf, back = edited(folder(tmp_path / "a"), general__name="Mine")
    assert gguf.metadata["general.name"] == "Mine" and hf.to_gguf(back).metadata["general.name"] == "Mine"


CARD = b"""---
license: mit
# a comment
author:
  somebody
tags: [a, b]
---
# Its text

author: not this
"""


def test_the_card_says_what_was_edited(tmp_path: Path) -> None:
    source = llmconv.open(write_hf(tmp_path / "a", README__md=CARD))
    _, back = edited(source, general__license="apache-2.0")
    line = b"tags: [a, b]\n"
    assert back.file("README.md") == CARD.replace(b"license: mit\n", b"").replace(line, line + b"license: apache-2.0\n")
    assert "README.md: changed, as general.license was edited in the GGUF" in back.notes
    _, back = edited(source, general__author="me: too", general__name="A name")
    again = hf.to_gguf(back.but(metadata={"format": "pt"})).metadata
    assert [again[f"general.{key}"] for key in ("author", "name", "license")] == ["me: too", "A name", "mit"]
    assert (back.file("README.md") or b"").endswith(b"---\n# Its text\n\nauthor: not this\n")


@pytest.mark.parametrize("tags", [["c"], None])
def test_what_the_card_says_otherwise_is_named(tmp_path: Path, tags: Any) -> None:
    gguf = hf.to_gguf(llmconv.open(write_hf(tmp_path / "a", README__md=CARD)))
    gguf.metadata["general.tags"] = tags
    if tags is None:
        del gguf.metadata["general.tags"]
    back = hf.from_gguf(gguf)
    assert back.file("README.md") == CARD
    assert "the folder's files do not say what general.tags of the GGUF says; edit those by hand" in back.notes


@pytest.mark.parametrize("before", [GENERATION, {}])
def test_how_to_sample_is_said(tmp_path: Path, before: dict[str, Any]) -> None:
    source = llmconv.open(write_hf(tmp_path / "a", **({"generation_config__json": before} if before else {})))
    gguf = hf.to_gguf(source)
    gguf.metadata |= {"general.sampling.temp": np.float32(0.7), "general.sampling.top_k": np.int32(5)}
    assert document(hf.from_gguf(gguf), "generation_config.json") == before | {"temperature": 0.7, "top_k": 5}


def test_files_edited_since_win_over_kept_keys(tmp_path: Path) -> None:
    """A GGUF says of its tokenizer what the folder's files say otherwise; who edits those files is believed."""
    gguf = hf.to_gguf(folder(tmp_path / "a"))
    again = {"tokenizer.ggml.eos_token_id": np.uint32(256)}
    kept, _ = foreign_keys.keep({"tokenizer.ggml.eos_token_id": np.uint32(257)}, again, "llama")
    for files_say, wanted in ((256, 257), (258, 258)):
        metadata = {**gguf.metadata, "tokenizer.ggml.eos_token_id": np.uint32(files_say)}
        foreign_keys.put_back(metadata, kept, "here")
        assert metadata["tokenizer.ggml.eos_token_id"] == wanted


@pytest.mark.slow
def test_edited_by_the_reference_s_own_programs(tmp_path: Path) -> None:
    pytest.importorskip("gguf.scripts.gguf_new_metadata")
    folder(tmp_path / "a")
    llmconv.convert_file(tmp_path / "a", tmp_path / "a.gguf")
    new = ["--chat-template", "new", "--general-name", "Mine", "--special-token", "eos", "<pad>"]
    for program, *rest in (
        ["gguf_new_metadata", "a.gguf", "b.gguf", *new],
        ["gguf_set_metadata", "b.gguf", "llama.rope.freq_base", "5000"],
        ["gguf_set_metadata", "b.gguf", "llama.context_length", "77"],
    ):
        command = [sys.executable, "-m", f"gguf.scripts.{program}", *rest, "--force"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    back = hf.from_gguf(llmconv.open(tmp_path / "b.gguf"))
    said = document(back, "config.json")
    assert (said["rope_theta"], said["max_position_embeddings"], said["eos_token_id"]) == (5000, 77, 259)
    assert document(back, "tokenizer_config.json") == {**SETTINGS, "chat_template": "new", "eos_token": "<pad>"}
    assert hf.to_gguf(back).metadata["general.name"] == "Mine"


@pytest.mark.parametrize("key", ["llama.rope.freq_base", "llama.context_length"])
def test_a_key_that_was_taken_out_is_named(tmp_path: Path, key: str) -> None:
    gguf = hf.to_gguf(folder(tmp_path))
    del gguf.metadata[key]
    assert any(f"the GGUF has no key '{key}'" in note for note in hf.from_gguf(gguf).notes)
