"""Every key of every family, edited in a GGUF made of a folder: the folder made of it says so, or somebody is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import hf_models
import numpy as np
import pytest
from tiny_models import MODELS

from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.tables.config import normalized, text_config
from llmconv.convert.vocab.model import same_value
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint

FAMILIES = {tiny.gguf: name for name, tiny in reversed(MODELS.items())}
"""The first model of each of GGUF's architectures."""
OTHER_TEXTS = {"rope.scaling.type": ["yarn", "linear", "none"], "hidden_activation": ["relu", "gelu"]}
USUAL = {"rope.scaling.factor": 1.0}
"""What a configuration of scaled positions says beside, and changes nothing."""


def made(name: str) -> Checkpoint:
    transformers = pytest.importorskip("transformers")
    tiny = MODELS[name]
    arch = archs.by_gguf(tiny.gguf)
    assert arch is not None
    config = json.loads(transformers.AutoConfig.for_model(tiny.model_type, **tiny.config).to_json_string(False))
    classes = [known.cls for known in arch.hf if known.model_type == tiny.model_type]
    config |= {"model_type": tiny.model_type, "architectures": [(classes or [arch.hf[0].cls])[0]]}
    return hf_models.model(config, kind="F32")


def others(key: str, value: Any) -> Iterator[Any]:
    """Other values of the kind."""
    if isinstance(value, bool | np.bool_):
        yield not value
    elif isinstance(value, np.floating):
        yield np.float32(value * 1.5 or 0.5)
    elif isinstance(value, np.integer):
        yield from (type(value)(n) for n in (int(value) * 2 or 2, int(value) - 1) if n > 0)
    elif isinstance(value, str):
        yield from (text for text in OTHER_TEXTS.get(key, ["other"]) if text != value)
    elif isinstance(value, np.ndarray) and value.size:
        yield np.array([*value[:-1], not value[-1] if value.dtype == bool else value[-1] * 2 or 2], value.dtype)
    elif isinstance(value, list) and value and isinstance(value[0], bool):
        yield from ([not value[0], *value[1:]], [True] * len(value), [False] * len(value))


def folder_of(gguf: Checkpoint) -> tuple[Checkpoint, Checkpoint] | None:
    """(the folder, the GGUF that its files alone make); None: refused."""
    try:
        back = hf.from_gguf(gguf)
    except LlmconvError:
        return None
    return back, hf.to_gguf(back.but(metadata={"format": "pt"}))


@pytest.mark.slow
@pytest.mark.parametrize("gguf", FAMILIES)
def test_an_edited_key_is_said_or_named(gguf: str) -> None:
    model = hf.to_gguf(made(FAMILIES[gguf]))
    start, tried, wrong = f"{gguf}.", 0, []
    for key in [key for key in model.metadata if key.startswith(start)]:
        for value in others(key.removeprefix(start), model.metadata[key]):
            changed = model.but(metadata={**model.metadata, key: value})
            found = folder_of(changed)
            if found is None:
                continue
            back, again = found
            differ = [
                k
                for k in {**changed.metadata, **again.metadata}
                if k.startswith(start) and not same_value(changed.metadata.get(k), again.metadata.get(k))
            ]
            tried += 1
            for k in differ:
                usual = k.removeprefix(start) in USUAL or k.endswith("original_context_length")
                if not any(k in note for note in back.notes) and not (usual and k not in changed.metadata):
                    wrong.append(f"{key} {value}: {k} is {again.metadata.get(k)}")
    assert tried
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("gguf", FAMILIES)
def test_a_dropped_tensor_is_said_or_named(gguf: str) -> None:
    """Refused, or one that any such model may lack, or config.json says that it is not there, or a note does."""
    model = hf.to_gguf(made(FAMILIES[gguf]))
    arch = archs.by_gguf(gguf)
    assert arch is not None
    optional = {name for row in arch.rows if row.optional is True for name in row.gguf}
    kinds: dict[str, list[str]] = {}
    for name in model.tensors:
        kinds.setdefault(re.sub(r"\bblk\.\d+\.", "blk.{i}.", name), []).append(name)
    for kind, names in kinds.items():
        for gone in (names[:1], names):
            changed = model.but()
            changed.tensors = {name: tensor for name, tensor in model.tensors.items() if name not in gone}
            found = folder_of(changed)
            if found is None or kind in optional:
                continue
            back, again = found
            assert set(again.tensors) in (
                set(changed.tensors),
                set(changed.tensors) | {n for n in gone if n.startswith("rope_")},
            )
            assert [note for note in back.notes if "taken out" in note or gone[0] in note], gone
            news = {note for note in again.notes if "no head" in note or "no such tensors" in note}
            assert not news - set(model.notes)


LLAMA = hf_models.LLAMA | {"attention_bias": True, "tie_word_embeddings": False}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("pattern", "setting", "value"),
    [("^output.weight", "tie_word_embeddings", True), (r"\.bias$", "attention_bias", False)],
)
def test_tensors_taken_out(pattern: str, setting: str, value: bool, inside: bool) -> None:
    outer = ("architectures", "model_type")
    config = LLAMA
    if inside:
        config = {k: LLAMA[k] for k in outer} | {"text_config": {k: v for k, v in LLAMA.items() if k not in outer}}
    model = hf.to_gguf(hf_models.model(LLAMA, kind="F32").but(files={"config.json": json.dumps(config).encode()}))
    model.tensors = {name: tensor for name, tensor in model.tensors.items() if not re.search(pattern, name)}
    back = hf.from_gguf(model)
    assert text_config(json.loads(back.file("config.json") or b""))[setting] is value
    assert [note for note in back.notes if f"taken out of the GGUF: {setting} {value}" in note]


@pytest.mark.parametrize("layers", ["[01]", "0"])
@pytest.mark.parametrize("kept", [True, False])
def test_tensors_put_in_against_a_flag(layers: str, kept: bool) -> None:
    """transformers makes the biases of a Llama where attention_bias is true, and reads none where it is not."""
    model = hf.to_gguf(hf_models.model(LLAMA, kind="F32"))
    plain = hf.to_gguf(hf_models.model(LLAMA | {"attention_bias": False}, kind="F32"))
    biases = {n: t for n, t in model.tensors.items() if re.fullmatch(rf"blk\.{layers}\.attn_\w+\.bias", n)}
    plain.tensors |= biases
    if not kept:
        plain.metadata = {k: v for k, v in plain.metadata.items() if not k.startswith("llmconv.")}
    back = hf.from_gguf(plain)
    assert json.loads(back.file("config.json") or b"")["attention_bias"] is True
    assert len([n for n in back.tensors if n.endswith(".bias")]) == len(biases) > 3
    assert [note for note in back.notes if "put into the GGUF: attention_bias True" in note] or not kept


def test_a_folder_with_tensors_that_its_flag_denies_says_so_and_comes_back() -> None:
    source = hf_models.model(LLAMA, kind="F32")
    denied = json.dumps(LLAMA | {"attention_bias": False}).encode()
    source = source.but(files={**source.files, "config.json": denied})
    model = hf.to_gguf(source)
    assert [n for n in model.notes if "attention_bias is false, but the file has blk.0.attn_q.bias" in n]
    assert hf.from_gguf(model).file("config.json") == denied


@pytest.mark.parametrize("lacking", ["lm_head.weight", ".bias"])
def test_a_folder_that_lacks_them_comes_back_as_it_was(lacking: str) -> None:
    source = hf_models.model(LLAMA, kind="F32")
    source.tensors = {name: tensor for name, tensor in source.tensors.items() if not name.endswith(lacking)}
    model = hf.to_gguf(source)
    back = hf.from_gguf(model)
    assert [note for note in model.notes if "has no head" in note or "no such tensors" in note]
    assert back.file("config.json") == source.file("config.json")
    assert not [note for note in back.notes if "taken out" in note]


def test_a_tensor_of_one_layer_taken_out_is_named() -> None:
    model = hf.to_gguf(hf_models.model(LLAMA, kind="F32"))
    del model.tensors["blk.1.attn_q.bias"]
    assert "the GGUF has no 'blk.1.attn_q.bias', which config.json says there is" in hf.from_gguf(model).notes


def test_as_many_tokens_as_the_embedding_has_rows() -> None:
    model = hf.to_gguf(hf_models.model(hf_models.LLAMA, kind="F32"))
    model.metadata["llama.vocab_size"] = np.uint32(33)
    back = hf.from_gguf(model)
    assert normalized(json.loads(back.file("config.json") or b""))["vocab_size"] == 20
    assert [n for n in back.notes if n.startswith("llama.vocab_size is 33, but token_embd.weight has 20 rows")]


@pytest.mark.parametrize("key", ["block_count", "decoder_block_count"])
def test_layers_that_a_count_leaves_out_are_refused(key: str) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 24,
              "num_layers": 2, "num_heads": 4, "vocab_size": 20}  # fmt: skip
    model = hf.to_gguf(hf_models.model(config | {"num_decoder_layers": 2, "decoder_start_token_id": 0}, kind="F32"))
    assert hf.from_gguf(model)
    model.metadata[f"t5.{key}"] = np.uint32(1)
    with pytest.raises(LlmconvError, match=r"c\.blk\.1\."):
        hf.from_gguf(model)
