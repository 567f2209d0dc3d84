"""A model card's head, generation_config.json and a folder's name as GGUF's general keys, and back.

The oracle: the gguf package's `Metadata`, which is what llama.cpp's converter derives its keys with.
"""

# ruff: noqa: E501 (heads as they are)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from good_models import CONFIG, write_gguf, write_hf

import llmconv
from llmconv.convert.cards import files_of, keys_of
from llmconv.convert.cards.head import read_head, written
from llmconv.formats.checkpoint import Checkpoint

metadata = pytest.importorskip("gguf.metadata")

HEADS = [
    "license: mit",
    "license: [mit, 'apache-2.0']\nlanguage: en\npipeline_tag: text-generation",
    "license: other\nlicense_name: llama3\nlicense_link: LICENSE\ntags:\n- a\n- b c\n-   \"no\"\n- no\nlanguage:\n  - en\n  - no\n",
    "base_model: meta-llama/Llama-3.2-1B-Instruct\ndatasets:\n- org/data-v2\n- https://huggingface.co/datasets/x\n",
    "base_model:\n- mistralai/Mistral-7B-v0.1\n- https://huggingface.co/a/b-7b1-chat\n- ssh://elsewhere/x\n- Just A Name\n",
    "base_models:\n- name: X\n  organization: Y\n  repo_url: https://z\n- plain/one-3B\n",
    "base_model:\ndatasets: []\ntags: []\n",
    "# comment\nname: Some Thing  # said\nauthor: 'It''s me'\nversion: v1.2\ndescription: >-\n  two\n  lines\n\n  and more\n",
    "description: |\n  kept\n    as is\nurl: https://x.y/z#a\nrepo_url: \"a\\tb\\u00e9\"\nfinetune: chat",
    "description: |+\n  kept\n\n\nlicense: mit\n...\n",
    "base_model: [[a/b, c/d], e/f]\ndatasets:\n- [x]\nlicense: mit",
    "model_name: M\nmodel_creator: C\nmodel_type: llama\nquantized_by: Q\nprompt_template: '{a}\n\n  {b}\n\n  '\n",
    "model-index:\n- name: m\n  results:\n  - task:\n      type: text-generation\n      name: T\n    dataset:\n      name: d\n"
    "      args:\n        num_few_shot: 25\n    metrics:\n    - type: acc\n      value: 0.5\nlicense: mit\n",
    "extra_gated_fields:\n  Name: text\n  Date of birth: date_picker\n  ? x\n".replace("  ? x\n", "") + "widget:\n  - text: \"a: b\"\n"
    "    example_title: {x: 1, y: [2, 3]}\n  - text: c\nlibrary_name: transformers\ninference: false\nmetrics: {a: 1, b: \"c\"}\n",
    "tags:\n  - >-\n    folded\n  - 12\n  - 1.5\nlanguage: [en, de,\n  fr]\nthumbnail: null\nmultiline: one\n  two\n",
    "tags: &t\n- a\n- &x b c\nlanguage: *x\ndatasets: [*x, &d org/d, *d]\nbase_model: &b\n  name: B\n  url: u\nmore:\n- <<: *b\n"
    "  name: C\n- {<<: *b, doi: d}\n- *b\nagain: *t\nfolded: &f >-\n  two\n  lines\nonce: *f\nlicense: &l mit  # said\nname: *l\n",
    "tags:\t\n- a\ncolon: a:b\nempty: \"\"\nlist:\n- - x\n  - y\n- [z]\n-\n  k: v\n",
]  # fmt: skip
NAMES = [
    *("TinyLlama-1.1B-Chat-v1.0", "Mistral-7B-v0.1", "Mixtral-8x7B-Instruct-v0.1", "bloom-7b1", "phi-3-mini-128k"),
    *("Qwen2.5-7B-Instruct", "Meta-Llama-3-8B-Instruct", "gpt2", "gpt2-xl", "deepseek-v2-lite", "model", "a--b-", "x"),
    *("Nous-Hermes-2-Mixtral-8x7B-DPO", "Qwen1.5-MoE-A2.7B-Chat", "Some Model of Mine", "phi-2-q4_0", "llama-lora-3B"),
    *("v2", "7B", "opt-125m-fp16", "OLMo-1B-iter1000", "5f4a9e0c", "x-1.5_B-large"),
]


class Writer(dict[str, Any]):
    """What the reference's writer would be asked to add."""

    def __getattr__(self, name: str) -> Any:
        def add(*args: Any) -> None:
            self[".".join([name.removeprefix("add_"), *map(str, args[:-1])])] = args[-1]

        return add


def theirs(folder: Path, total: int) -> dict[str, Any]:
    from gguf.gguf_writer import GGUFWriter

    writer = GGUFWriter(None, "llama", dry_run=True)
    metadata.Metadata.load(None, folder, None, total).set_gguf_meta_model(writer)
    found = {k: v.value for part in writer.kv_data for k, v in part.items()}
    del found["general.architecture"]
    return {k: np.float32(v) if isinstance(v, float) else v for k, v in found.items()}


def ours(folder: Path, total: int, config: dict[str, Any]) -> dict[str, Any]:
    files = {p.name: p for p in folder.iterdir()}
    found, notes = keys_of(Checkpoint(files=files, source=folder), config, folder.name, total)
    assert not notes
    return found


@pytest.mark.parametrize(
    "text", ["", "# no head\n", "--- \na: b\n", "---\n---\n", "---\njust text\n---\n", "\ufeff---\na: b\n---\n"]
)
def test_cards_without_a_head(text: str) -> None:
    assert read_head(text) == {}


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(30)) + "tags: *a30"


@pytest.mark.parametrize(
    "head",
    [
        "a: *x",
        "a: !!str b",
        "a: &x b: c",
        "a: &x [b]\nc: *x d",
        "<<: b",
        "a: &x [*x]",
        _LAUGHS,
        "a: 'b' c",
        "a: [b",
        'a: "b',
        "a: {b}",
        "- x\nb: c",
        "a: [" * 40,
        "a: '\\",
        "\x00: [",
    ],
)
def test_what_is_no_head_gives_a_note(head: str) -> None:
    folder = Checkpoint(files={"README.md": f"---\n{head}\n---\n".encode()})
    found, notes = keys_of(folder, {}, "m", 0)
    assert found == {"general.name": "M"} and (not notes or "README.md" in notes[0])


@pytest.mark.parametrize("total", [0, 1_100_000_000, 7_000_000_000, -3_000_000])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_parted_as_the_reference_does(tmp_path: Path, name: str, total: int) -> None:
    (tmp_path / name).mkdir()
    assert ours(tmp_path / name, total, {}) == theirs(tmp_path / name, total)


@pytest.mark.parametrize("head", HEADS)
def test_keys_are_the_references(tmp_path: Path, head: str) -> None:
    folder = tmp_path / "Tiny-1B-Chat"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{head}\n---\n\ntext")
    config = {"_name_or_path": "some-org/Other-Name-3B-v2"}
    sampling = {"top_k": 50, "top_p": 0.9, "temperature": 0.6, "penalty_repeat": 1.1, "do_sample": True, "min_p": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    found = ours(folder, 1_000_000_000, config)
    wanted = theirs(folder, 1_000_000_000)
    assert list(found) == [k for k in wanted if k != "general.quantized_by"]
    for key, value in found.items():
        if "tags" in key:
            wanted[key] = list(map(str, wanted[key]))
        assert value == wanted[key], key


CARD = """---
license: other
license_name: mine
license_link: https://x/LICENSE
language:
- en
- "no"
base_model: some/Base-1B
datasets: [a/b]
tags: [x, "y: z"]
author: Someone
---

# Text
"""


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "Tiny-1B-Chat-v2")
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text('{"temperature": 0.7,"top_k": 40}')
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    keys = llmconv.open(tmp_path / "m.gguf").metadata
    assert keys["general.license"] == "other" and keys["general.base_model.0.name"] == "Base 1B"
    assert keys["general.sampling.temp"] == np.float32(0.7) and keys["general.name"] == "Tiny 1B Chat v2"
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    for name in ("README.md", "generation_config.json", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert llmconv.open(tmp_path / "back").metadata == {"format": "pt"}
    llmconv.edit(tmp_path / "m.gguf", set={"general.license": "mit"})
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "edited")
    llmconv.convert_file(tmp_path / "edited", tmp_path / "again.gguf")
    assert llmconv.open(tmp_path / "again.gguf").metadata["general.license"] == "mit"


def test_somebodys_gguf_makes_a_card(tmp_path: Path) -> None:
    """All that it says of itself, so that a folder made of it, and a GGUF made of that, say the same."""
    folder = write_hf(tmp_path / "Tiny-1B-Chat-v2")
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text('{"temperature": 0.7,"top_k": 40}')
    llmconv.convert_file(folder, tmp_path / "m.gguf", portable=True)
    before = llmconv.open(tmp_path / "m.gguf").metadata
    assert not any(key.startswith("llmconv.") for key in before)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    head = yaml.safe_load((tmp_path / "back" / "README.md").read_text().split("---\n")[1])
    assert head["license"] == "other" and head["base_model"] == ["some/Base-1B"] and head["tags"] == ["x", "y: z"]
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {"temperature": 0.7, "top_k": 40}
    llmconv.convert_file(tmp_path / "back", tmp_path / "again.gguf", portable=True)
    after = llmconv.open(tmp_path / "again.gguf").metadata
    assert {k: str(v) for k, v in before.items() if k.startswith("general.")} == {
        k: str(v) for k, v in after.items() if k.startswith("general.")
    }


def test_a_gguf_that_says_nothing_makes_no_card(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", lambda c: c.metadata.pop("llmconv.hf.config", None))
    llmconv.convert_file(path, tmp_path / "back")
    assert not (tmp_path / "back" / "README.md").exists()


@pytest.mark.parametrize(
    "text", ["a", "no", "a: b", "-x", "#", "a\nb", '"', "\\", "é", "12", "a #b", " a ", "1.0", "\x85", "---", ""]
)
def test_written_heads_read_back(text: str) -> None:
    head = written("license", text) + written("tags", [text, "b"]) + written("base_model", [{"name": text, "url": "c"}])
    found = {"license": text, "tags": [text, "b"], "base_model": [{"name": text, "url": "c"}]}
    assert yaml.safe_load(head) == read_head(f"---\n{head}---\n") == found


def test_hostile_keys_make_no_wrong_card() -> None:
    keys = {
        "general.license": "x\n---\nlicense: mit", "general.tags": ["a", "b\n- c"], "general.sampling.top_k": "many",
        "general.base_model.count": np.uint64(2**63), "general.author": 7, "general.name": "a\n# b",
    }  # fmt: skip
    files = files_of(keys, {})
    assert read_head(files["README.md"].decode()) == {
        "name": "a\n# b", "license": "x\n---\nlicense: mit", "tags": ["a", "b\n- c"]
    }  # fmt: skip
    assert list(files) == ["README.md"] and CONFIG
