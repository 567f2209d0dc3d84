"""Chat templates in files of their own: which one counts, and all of them through GGUF and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic
from tokenizers_trained import ours, trained

import llmconv
from llmconv.convert import vocab

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
TOKENIZER = trained("bpe").to_str().encode()
JINJA, NAMED = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
LIST = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]


def files(**texts: Any) -> dict[str, Path | bytes]:
    return {"tokenizer.json": TOKENIZER, **{k: v.encode() for k, v in texts.items()}}


def config(template: Any) -> str:
    return json.dumps({"chat_template": template})


@pytest.mark.parametrize(
    ("texts", "default", "named"),
    [
        ({"tokenizer_config.json": config("OLD")}, "OLD", {}),
        ({"tokenizer_config.json": config("OLD"), JINJA: "NEW"}, "NEW", {}),
        ({"tokenizer_config.json": config("OLD"), JINJA: "NEW", NAMED: "TOOL"}, "NEW", {"tool_use": "TOOL"}),
        ({JINJA: "NEW", "chat_template.json": config("PROCESSOR")}, "NEW", {}),
        ({"chat_template.json": config("PROCESSOR")}, "PROCESSOR", {}),
        ({NAMED: "TOOL"}, None, {"tool_use": "TOOL"}),
        ({"tokenizer_config.json": config(LIST)}, "D", {"rag": "R"}),
        ({"tokenizer_config.json": config({"default": "D", "rag": "R"})}, "D", {"rag": "R"}),
    ],
)  # fmt: skip
def test_which_template_counts(
    texts: dict[str, str], default: str | None, named: dict[str, str], tmp_path: Path
) -> None:
    made = files(**texts)
    found = vocab.from_files(made, {})
    assert found is not None and found.chat_template == default
    keys = vocab.to_gguf(found)
    start = "tokenizer.chat_template."
    assert {k.removeprefix(start): v for k, v in keys.items() if k.startswith(start)} == named
    assert list(keys.get("tokenizer.chat_templates", [])) == list(named)
    again = vocab.from_gguf(keys)
    assert again is not None and vocab.to_files(again) == made
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    reread = vocab.from_files(dict(vocab.to_files(foreign)), {})
    assert reread is not None and reread.chat_template == default
    assert ours(vocab.to_gguf(reread)).get("tokenizer.chat_template.tool_use") == named.get("tool_use")


TWICE = [*LIST, {"name": "default", "template": "E"}]


@pytest.mark.parametrize(
    ("texts", "default", "notes"),
    [
        ({"tokenizer_config.json": config(TWICE)}, "E", ["two chat templates 'default' that differ; the last"]),
        ({"tokenizer_config.json": config([*LIST, LIST[0]])}, "D", []),
        ({"tokenizer_config.json": config("OLD"), JINJA: "NEW"}, "NEW", ["not tokenizer_config.json, whose template"]),
        ({"tokenizer_config.json": config("NEW"), JINJA: "NEW"}, "NEW", []),
        ({JINJA: "NEW", "chat_template.json": config("P")}, "NEW", ["not chat_template.json, whose template"]),
        ({"tokenizer_config.json": config([{"name": "default"}])}, None, ["holds None under the name 'default'"]),
        ({"tokenizer_config.json": config(["D"])}, None, ["holds 'D' under the name None"]),
        ({"tokenizer_config.json": config(5)}, None, ["holds 5 under the name None"]),
    ],
)  # fmt: skip
def test_templates_that_contradict_each_other_are_named(texts: Any, default: str | None, notes: list[str]) -> None:
    found = vocab.from_files(files(**texts), {})
    assert found is not None and found.chat_template == default
    assert len(found.notes) == len(notes) and all(w in n for w, n in zip(notes, found.notes, strict=True))


def test_the_one_that_transformers_takes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "OLD"}
    made = files(**{"tokenizer_config.json": json.dumps(settings), JINJA: "NEW", NAMED: "TOOL"})
    (tmp_path / NAMED).parent.mkdir()
    for name, data in made.items():
        assert isinstance(data, bytes)
        (tmp_path / name).write_bytes(data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
    found = vocab.load(tmp_path)
    assert theirs == {"default": found.chat_template, "tool_use": found.extra["tokenizer.chat_template.tool_use"]}


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "x\n"])
def test_a_template_leads_out_of_no_folder(name: str) -> None:
    keys = vocab.to_gguf(vocab.Vocab("words", ["a"], extra={f"tokenizer.chat_template.{name}": "T"}))
    found = vocab.from_gguf(keys)
    assert found is not None
    assert not any("additional" in file for file in vocab.to_files(found))
    assert keys[f"tokenizer.chat_template.{name}"] == "T"  # kept as a key all the same


def test_through_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    weights = llmconv.open(synthetic.write(tmp_path / "weights.gguf"))
    del weights.metadata["tokenizer.ggml.tokens"]
    llmconv.save(weights, source)
    (source / NAMED).parent.mkdir()
    (source / JINJA).write_text("NEW {{ messages[0].content }}")
    (source / NAMED).write_text("TOOL {{ messages[0].content }}")
    (source / "additional_chat_templates/notes.txt").write_text("no template")
    (source / "tokenizer.json").write_text(
        '{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]},"pre_tokenizer":{"type":"ByteLevel"}}'
    )
    llmconv.convert_file(source, tmp_path / "model.gguf")
    llmconv.convert_file(tmp_path / "model.gguf", tmp_path / "back")
    llmconv.convert_file(source, tmp_path / "copy")
    llmconv.convert_file(source, tmp_path / "lone.safetensors")
    llmconv.convert_file(tmp_path / "lone.safetensors", tmp_path / "unpacked")
    for folder in ("back", "copy", "unpacked"):
        for name in (JINJA, NAMED):
            assert (tmp_path / folder / name).read_bytes() == (source / name).read_bytes(), (folder, name)
