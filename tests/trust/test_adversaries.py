"""Inputs that are almost right: converted right, refused by name, or converted with a note; never in silence."""
# ruff: noqa: E501 (cases of one line)

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import CONFIG, tensors, tokenizer, write_gguf, write_hf

import llmconv
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

GOOD = json.dumps(CONFIG)
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}

# A value or bytes of config.json, and words of the refusal, or of a note; None: neither.
CONFIGS: dict[str, tuple[Any, str | None]] = {
    "NaN": (GOOD.replace("1e-05", "NaN").encode(), "rms_norm_eps is nan"),
    "Infinity": (GOOD.replace("10000.0", "Infinity").encode(), "rope_theta is inf"),
    "a comma too many": (GOOD[:-1].encode() + b",}", "config.json is not a JSON object"),
    "comments": (b"// mine\n" + GOOD.encode(), "config.json is not a JSON object"),
    "twice": (
        GOOD.replace('"hidden_size"', '"hidden_size": 64, "hidden_size"').encode(),
        "has the key 'hidden_size' twice",
    ),
    "BOM": (b"\xef\xbb\xbf" + GOOD.encode(), None),
    "UTF-16": (GOOD.encode("utf-16"), "config.json is not kept"),
    "a list of activations": (CONFIG | {"hidden_act": ["silu"]}, "hidden_act is ['silu']"),
    "a count as text": (CONFIG | {"num_attention_heads": "2"}, "num_attention_heads is '2'"),
    "a count as float": (CONFIG | {"num_attention_heads": 2.0}, None),
    "a count as truth": (CONFIG | {"num_hidden_layers": True}, "num_hidden_layers is True"),
    "a base as text": (CONFIG | {"rope_theta": "10000"}, "rope_theta is '10000'"),
    "a base of 0": (CONFIG | {"rope_theta": 0}, "rope_theta is 0"),
    "a base below 0": (CONFIG | {"rope_theta": -5.0}, "rope_theta is -5.0"),
    "a quoted flag": (CONFIG | {"tie_word_embeddings": "false"}, "tie_word_embeddings is the text 'false'"),
    "another quoted flag": (CONFIG | {"attention_bias": "False"}, "attention_bias is the text 'False'"),
    "a window below 0": (CONFIG | MISTRAL | {"sliding_window": -1}, "sliding_window is -1"),
    "no factor": (CONFIG | {"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
    "a factor as text": (
        CONFIG | {"rope_scaling": {"type": "linear", "factor": "4"}},
        "factor is '4', expected a number",
    ),
    "a method's name": (CONFIG | {"quantization_config": "fp8"}, "quantization_config is 'fp8'"),
    "an end beyond": (CONFIG | {"eos_token_id": 9999}, "eos_token_id is 9999, which is no token"),
    "a larger vocabulary": (CONFIG | {"vocab_size": 300}, "has shape [260, 32]"),
}


def about(made: Path, **options: Any) -> str:
    """The refusal's sentence or the notes of a conversion."""
    try:
        result = llmconv.convert_file(made, made.parent / ("back" if made.suffix == ".gguf" else "out.gguf"), **options)
    except llmconv.LlmconvError as error:
        assert len(str(error)) < 300 + len(str(made))
        return str(error)
    return "\n".join(result.notes)


def holds(said: str, wanted: str | None) -> None:
    assert said == "" if wanted is None else wanted in said


LONG = "x" * 100_000


@pytest.mark.parametrize("change", [{LONG: 5}, {"hidden_act": LONG}, {"quantization_config": {"quant_method": LONG}}])
def test_a_note_stays_short(tmp_path: Path, change: dict[str, Any]) -> None:
    assert 0 < len(about(write_hf(tmp_path / "m", CONFIG | change))) < 600


@pytest.mark.parametrize("name", ["m.npy", "m.safetensors"])
def test_tensors_without_numbers_are_no_model(tmp_path: Path, name: str) -> None:
    if name == "m.npy":
        np.save(tmp_path / name, np.zeros((0, 3), np.float32))
    else:
        safetensors_file.save(Checkpoint({"a": Tensor.from_array("a", np.zeros((0, 3), np.float32))}), tmp_path / name)
    assert "its tensors hold no numbers" in about(tmp_path / name)


@pytest.mark.parametrize("case", CONFIGS)
def test_config_json(tmp_path: Path, case: str) -> None:
    config, wanted = CONFIGS[case]
    holds(about(write_hf(tmp_path / "m", config)), wanted)


NAMES = dict.fromkeys(tensors(), "model-00001-of-00001.safetensors")
INDICES: dict[str, tuple[Any, str | None]] = {
    "good": ({"weight_map": NAMES}, None),
    "of another type": ({"metadata": {"dtype": "int8", "total_size": 1}, "weight_map": NAMES}, None),
    "outside": ({"weight_map": dict.fromkeys(NAMES, "../m")}, "names the file '../m'"),
    "a list": ([NAMES], "is a JSON list"),
    "a list of names": ({"weight_map": list(NAMES)}, "has no 'weight_map'"),
    "numbers": ({"weight_map": dict.fromkeys(NAMES, 5)}, "has no 'weight_map'"),
    "empty": ({"weight_map": {}}, "'weight_map' is empty"),
    "a file of a long name": ({"weight_map": dict.fromkeys(NAMES, "x" * 9999)}, "longer than a file's name can be"),
    "a ghost": ({"weight_map": {**NAMES, "ghost": "model-00001-of-00001.safetensors"}}, "'ghost' should be in"),
    "twice": (b'{"weight_map": {"a": "b", "a": "c"}}', "key 'a' is there twice"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index(tmp_path: Path, case: str) -> None:
    index, wanted = INDICES[case]
    model = write_hf(tmp_path / "m")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    data = index if isinstance(index, bytes) else json.dumps(index).encode()
    (model / "model.safetensors.index.json").write_bytes(data)
    holds(about(model), wanted)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("to", ["nothing", "itself", "elsewhere"])
def test_links(tmp_path: Path, name: str, to: str) -> None:
    file = write_hf(tmp_path / "m") / name
    file.rename(tmp_path / "elsewhere")
    os.symlink(file if to == "itself" else tmp_path / to, file)
    holds(about(tmp_path / "m"), None if to == "elsewhere" else f"{name}: is a link to a file that is not there")


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str | None]] = {
    "BOM": (lambda t: b"\xef\xbb\xbf" + json.dumps(t).encode(), None),
    "UTF-16": (lambda t: json.dumps(t).encode("utf-16"), "tokenizer.json: is not valid JSON"),
    "a comma too many": (lambda t: json.dumps(t).encode()[:-1] + b",}", "tokenizer.json: is not valid JSON"),
    "an id twice": (lambda t: t["model"]["vocab"].update(zz=5), "'zz' have the same id 5"),
    "an id below 0": (lambda t: t["model"]["vocab"].update(zz=-5), "'zz' has id -5"),
    "an id of 5.5": (lambda t: t["model"]["vocab"].update(zz=5.5), "'zz' has id 5.5"),
    "an id beyond": (lambda t: t["model"]["vocab"].update(zz=900), "expected at most 260"),
    "a page": (lambda t: b"<!DOCTYPE html><html>", "tokenizer.json: is a web page (HTML)"),
    "a merge of no token": (lambda t: t["model"]["merges"].append("zz h"), "model.merges[1], 'zz h', is of or to what"),
    "a merge to no token": (lambda t: t["model"]["merges"].append(["h", "t"]), "model.merges[1], ['h', 't'], is of or"),
    "a merge of one part": (lambda t: t["model"]["merges"].append("th"), "model.merges[1], 'th', is of or to what"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizer_json(tmp_path: Path, case: str) -> None:
    change, wanted = TOKENIZERS[case]
    words = tokenizer()
    changed = change(words)
    holds(about(write_hf(tmp_path / "m", None, words if changed is None else changed)), wanted)


GUESTS = {
    "page": (b"<html>x</html>", "is a web page"),
    "cloud": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "answer": (b'{"error":"Invalid credentials in Authorization header"}', "is the message of a server"),
    "words": (b"Entry not found", "is the message of a server"),
    "gzip": (gzip.compress(b"GGUF" * 30), "is compressed by gzip"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(60), "is a picture"),
    "elf": (b"\x7fELF\2\1\1" + bytes(60), "is a program or library"),
    "sqlite": (b"SQLite format 3\0" + bytes(60), "is a database"),
    "xz": (b"\xfd7zXZ\0" + bytes(60), "is compressed by xz"),
    "PDF": (b"%PDF-1.4 " + bytes(60), "is a PDF"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
@pytest.mark.parametrize("case", GUESTS)
def test_what_is_no_model(tmp_path: Path, case: str, name: str) -> None:
    data, wanted = GUESTS[case]
    model = write_hf(tmp_path / "m") / name
    model.write_bytes(data)
    assert wanted in about(model if name.endswith(".gguf") else model.parent)


@pytest.mark.parametrize("length", [0x8B1F, 0x0280, 0xFFD8FF])
def test_a_length_may_look_like_an_archive(tmp_path: Path, length: int) -> None:
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode().ljust(length)
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert list(llmconv.open(tmp_path / "m.safetensors").tensors) == ["w"]


DOCUMENTS: dict[str, tuple[str | bytes, str | None]] = {
    "lines": ('{"w":[1,2]}\n{"b":[3]}\n', "is not valid JSON: Extra data"),
    "a comma too many": ('{"w":[1,2,],}', "is not valid JSON"),
    "bare names": ("{w:[1,2]}", "is not valid JSON"),
    "comments": ('{"w":[1,2] /* x */}', "is not valid JSON"),
    "NaN": ('{"w":[1,NaN]}', "w[1] is NaN"),
    "Infinity": ('{"w":[1,-Infinity]}', "w[1] is -Infinity"),
    "undefined": ('{"w":[1,undefined]}', "is not valid JSON"),
    "hexadecimal": ('{"w":[0x10]}', "is not valid JSON"),
    "BOM": (b'\xef\xbb\xbf{"w":[1,2]}', None),
    "UTF-16": ('{"w":[1,2]}'.encode("utf-16"), "is text in UTF-16"),
    "UTF-16 without a mark": ('{"w":[1,2]}'.encode("utf-16-le"), "has a zero byte"),
    "a key twice": ('{"a":{"w":[1,2],"w":[3,4]}}', "a has the key 'w' twice"),
    "too large": ('{"w":[1e400,2]}', "is too large for a 64-bit float"),
    "wide numbers": ('{"w":[9007199254740993,2],"b":[1.5]}', "'w' has whole numbers that no 64-bit float holds"),
    "half a matrix": ('{"w":[[1,2],[3,"x"]],"b":[1]}', "'w[1]' is an array of numbers and other things"),
    "some as text": ('{"w":[1,"2",3],"b":[1]}', "'w' holds numbers as text"),
    "holes": ('{"w":{"0":1,"2":3},"b":[1]}', "'w' has numbers under 0, 1, … but not all"),
    "ragged": ('{"w":[[1,2],[3]],"b":[1]}', "w is ragged"),
    "another shape": ('{"w":{"shape":[2,3],"data":[1,2]}}', "w has 2 numbers in data, expected 2x3"),
    "a size below 0": ('{"w":{"shape":[-1,2],"data":[1,2]}}', "states the shape [-1, 2]"),
    "cut bytes": (json.dumps({"w": {"shape": [2, 3], "dtype": "float32", "data": base64.b64encode(b"1234567").decode()}}), "w has 7 bytes in data"),
    "a type of nobody": (json.dumps({"w": {"shape": [2], "dtype": "float99", "data": base64.b64encode(b"12345678").decode()}}), "holds no array of numbers"),
    "cut short": ('{"w":[1,2', "is cut short"),
    "more behind": ('{"w":[1]}xyz', "is not valid JSON: Extra data"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents(tmp_path: Path, case: str) -> None:
    text, wanted = DOCUMENTS[case]
    (tmp_path / "m.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    holds(about(tmp_path / "m.json", layout="plain"), wanted)


def tensor(name: str, values: Any) -> Callable[[Checkpoint], object]:
    return lambda checkpoint: checkpoint.add(Tensor.from_array(name, np.asarray(values)))


def keys(**values: Any) -> Callable[[Checkpoint], object]:
    return lambda checkpoint: checkpoint.metadata.update({k.replace("__", "."): v for k, v in values.items()})


GGUFS: dict[str, tuple[Callable[[Checkpoint], object], str]] = {
    "a scale": (tensor("blk.0.attn_q.scale", np.float32([2])), "multiplied into its weight: blk.0.attn_q.scale"),
    "a scale of NaN": (tensor("blk.0.attn_q.scale", np.float32([np.nan])), "'blk.0.attn_q.scale' is nan, expected a number that"),
    "a scale of 0": (tensor("blk.0.attn_q.scale", np.float32([0])), "'blk.0.attn_q.scale' is 0, expected a number that"),
    "two scales": (tensor("blk.0.attn_q.scale", np.float32([1, 2])), "'blk.0.attn_q.scale' has shape [2]"),
    "a scale of inputs": (tensor("blk.0.attn_q.input_scale", np.float32([2])), "nothing here computes with it: blk.0.attn_q.input_scale"),
    "a scale of nothing": (tensor("blk.0.x.scale", np.float32([2])), "nothing here computes with it: blk.0.x.scale"),
    "a layer beyond": (tensor("blk.7.attn_q.weight", np.zeros((32, 32), np.float32)), "'blk.7.attn_q.weight' is none"),
    "long factors alone": (tensor("rope_factors_long.weight", np.ones(8, np.float32)), "'rope_factors_long.weight' is none"),
    "divisors of another size": (tensor("rope_freqs.weight", np.ones(3, np.float32)), "'rope_freqs.weight' has shape [3]"),
    "divisors": (tensor("rope_freqs.weight", np.ones(8, np.float32)), "'rope_freqs.weight' has values that no config.json"),
    "capitals": (tensor("BLK.0.ATTN_Q.WEIGHT", np.zeros((2, 2), np.float32)), "nothing here computes with it: BLK.0.ATTN_Q.WEIGHT"),
    "a base of 0": (keys(llama__rope__freq_base=np.float32(0)), "llama.rope.freq_base' is 0.0, expected"),
    "a scaling of nobody": (keys(llama__rope__scaling__type="spiral"), "has no place for 'llama.rope.scaling.type'"),
    "an end beyond": (keys(tokenizer__ggml__eos_token_id=np.uint32(9999)), "do not say what tokenizer.ggml.eos_token_id"),
    "a list of templates": (keys(tokenizer__chat_template=["a"]), "do not say what tokenizer.chat_template"),
    "another case": (keys(general__architecture="LLaMA"), "'LLaMA' is no architecture known here"),
    "no architecture": (lambda checkpoint: checkpoint.metadata.pop("general.architecture"), "names no architecture"),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUFS)
def test_ggufs(tmp_path: Path, case: str) -> None:
    change, wanted = GGUFS[case]
    said = about(write_gguf(tmp_path / "m.gguf", change))
    assert wanted in said
    assert not ("multiplied into" in said and "nothing here computes" in said)
