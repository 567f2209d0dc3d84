"""GPTs that people wrote themselves: recognised in any spelling, back byte for byte, written anew for their pages."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as small

import llmconv
from llmconv.convert import layouts
from llmconv.convert.layouts.spelling import spell
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, LlmconvError, Unsupported

DOCUMENTS: dict[str, tuple[str, Any]] = {
    **{f"microgpt-{p}": ("microgpt", small.microgpt(p)) for p in ("config", "metadata", "top", "camel", "nested")},
    "modern": ("microgpt", small.modern()),
    "lecture": ("lecture", small.lecture()),
    "lecture-inside": ("lecture", {"config": small.SIZES, "chars": small.CHARACTERS, "model": small.lecture()}),
    "playground": ("playground", small.playground()),
    "ndarray": ("ndarray", small.ndarray()),
    "ndarray-serde": (
        "ndarray",
        small.ndarray(lambda x: {"v": 1, "dim": list(np.shape(x)), "data": np.ravel(x).tolist()}),
    ),
    "flat": ("flat", small.flat()),
}  # fmt: skip


def write(tmp_path: Path, document: Any, name: str = "m.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(document, indent=None if len(name) > 6 else 1))
    return path


@pytest.mark.parametrize("middle", ["m.gguf", "m.safetensors", "folder"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_spelling_comes_back_byte_for_byte(tmp_path: Path, name: str, middle: str) -> None:
    layout, document = DOCUMENTS[name]
    source = write(tmp_path, document)
    llmconv.convert_file(source, tmp_path / middle, outtype="f64")
    model = translate(llmconv.open(tmp_path / middle), "gguf")
    assert model.metadata["llmconv.json.layout"] == layout
    llmconv.convert_file(tmp_path / middle, tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


HOBBY = {
    "mg-mars.json": "microgpt",
    "mg-state.json": "microgpt",
    "lecture.json": "lecture",
    "playground.json": "playground",
    "ndarray.json": "ndarray",
}


@pytest.mark.parametrize("name", HOBBY)
def test_files_of_other_people_come_back(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "hobby" / name
    llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64")
    assert llmconv.open(tmp_path / "m.gguf").metadata["llmconv.json.layout"] == HOBBY[name]
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


def test_orientation_is_shown_by_the_shapes(tmp_path: Path) -> None:
    """[in][out] and [out][in] are the same model, square matrices too."""
    turned = small.playground()
    upright = copy.deepcopy(turned)
    for name, values in upright["params"].items():
        if np.ndim(values) == 2 and name not in ("wte", "wpe"):
            upright["params"][name] = np.array(values).T.tolist()
    one, two = (translate(llmconv.open(write(tmp_path, d)), "gguf") for d in (turned, upright))
    assert set(one.tensors) == set(two.tensors)
    assert all(np.array_equal(t.numpy(), two.tensors[n].numpy()) for n, t in one.tensors.items())


def test_heads_apart_become_one_matrix(tmp_path: Path) -> None:
    document = small.lecture()
    model = translate(llmconv.open(write(tmp_path, document)), "gguf")
    wanted = [document[f"blocks.1.sa.heads.{h}.{x}.weight"] for x in ("query", "key", "value") for h in range(small.H)]
    assert np.array_equal(model.tensors["blk.1.attn_qkv.weight"].numpy(), np.concatenate(wanted))
    assert model.metadata["small-gpt.attention.head_count"] == small.H
    assert "tril" not in "".join(model.tensors)  # the masks are said, not kept
    assert model.metadata["llmconv.json.document"].count("triangle") == small.L * small.H


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ('weights["layer3.attn_wq"]', "blk.3.attn_q.weight"),
        ("params.b0_wqkv", "blk.0.attn_qkv.weight"),
        ("transformer.h.11.attn.c_attn.bias", "blk.11.attn_qkv.bias"),
        ("_orig_mod.transformer.h.1.mlp.c_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers[2].selfAttention.keyProj.weight", "blk.2.attn_k.weight"),
        ("blocks.0.attn.heads.3.value.weight", "blk.0.attn_v.3.weight"),
        ("blocks[1].feedForward.linear1.bias", "blk.1.ffn_up.bias"),
        ("blocks[1].ln2.gamma", "blk.1.ffn_norm.weight"),
        ("layers.0.rms_2", "blk.0.ffn_norm.weight"),
        ("b4_b1", "blk.4.ffn_up.bias"),
        ("module.ln_f.bias", "output_norm.bias"),
        ("tokenEmbedding", "token_embd.weight"),
        ("state_dict.position_embedding_table.weight", "position_embd.weight"),
        ("lnb", "output_norm.bias"),
        ("head_b", "output.bias"),
        ("model.blocks[0].mlp.b1", "blk.0.ffn_up.bias"),
        ("Gpt.blocks[1].attn.bq", "blk.1.attn_q.bias"),
    ],
)
def test_parts_are_known_by_many_names(path: str, part: str) -> None:
    assert spell({path: (4, 4) if part.endswith("weight") and "norm" not in part else (4,)}).parts == {part}


@pytest.mark.parametrize("path", ["losses", "optimizer.m", "blocks.0.attn.scale_thing", "history[0].loss", "b1", "w2"])
def test_what_is_no_part_is_none(path: str) -> None:
    assert not spell({path: (4,)}).parts


WRONG: dict[str, tuple[Any, str]] = {
    "no heads": ({k: v for k, v in small.microgpt("top").items() if k != "n_head"}, "n_head is missing"),
    "config a text": ({**small.microgpt(), "config": json.dumps(small.SIZES)}, "n_head is missing (config is a text"),
    "config a list": ({**small.microgpt(), "config": [small.SIZES]}, "n_head is missing (config is a list, expected"),
    "too many layers": (small.microgpt("top") | {"n_layer": 3}, "n_layer says 3, but the weights' names"),
    "another width": (small.microgpt("top") | {"n_embd": 9}, "n_embd says 9, but"),
    "vocabulary": (small.microgpt("top") | {"chars": ["a"]}, "has 1 words, expected 11"),
    "a stray weight": (
        small.microgpt("top") | {"state_dict": {**small.microgpt_weights(), "layer0.gate_thing": [[1.0]]}},
        "layer0.gate_thing",
    ),
    "a lost weight": (
        small.microgpt("top")
        | {"state_dict": {k: v for k, v in small.microgpt_weights().items() if k != "layer1.mlp_fc1"}},
        "is missing",
    ),
    "an activation": ({**small.playground(), "activation": "softplus"}, "activation is 'softplus', expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_documents_that_break_their_layouts_rules(tmp_path: Path, case: str) -> None:
    document, message = WRONG[case]
    source = write(tmp_path, document)
    with pytest.raises(BadFile) as error:
        llmconv.convert_file(source, tmp_path / "m.gguf")
    assert message in str(error.value) and "\n" not in str(error.value)
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain", outtype="f64")  # always a way
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


def test_no_kinship_is_claimed_where_there_is_none(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a short name in the message, however deep the folder lies: nothing is left out
    digits = {"w1": small.numbers(4, 6, seed=0), "b1": small.numbers(6, seed=1), "w2": small.numbers(6, 10, seed=2)}
    with pytest.raises(BadFile) as error:
        llmconv.convert_file(write(tmp_path, digits), to="gguf")
    assert "nearest" not in str(error.value) and "plain" in str(error.value)
    encoder = json.loads((shared / "json" / "transformer_desde_cero-gpt_weights.json").read_text())
    encoder["model_type"] = "encoder"
    encoder["weights"] |= {"Wcls": encoder["weights"].pop("Wlm"), "bcls": encoder["weights"].pop("blm")}
    with pytest.raises(
        BadFile, match=r"nearest is 'desde-cero', which has weights\.E, .* lacks weights.Wlm, weights.blm"
    ):
        llmconv.convert_file(write(Path(), encoder), to="gguf")


@pytest.mark.parametrize("name", ["microgpt-top", "lecture-inside", "playground", "ndarray", "flat"])
def test_quantized_models_go_back_to_their_pages(tmp_path: Path, name: str) -> None:
    layout, document = DOCUMENTS[name]
    llmconv.quantize(write(tmp_path, document), tmp_path / "q.gguf", "Q8_0")
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "back.json")
    back = translate(llmconv.open(tmp_path / "back.json"), "gguf")
    wanted = translate(llmconv.open(tmp_path / "q.gguf"), "gguf")
    assert back.metadata["llmconv.json.layout"] == layout
    for tensor, stored in wanted.tensors.items():
        values = stored.numpy() if stored.type.is_plain() else stored.rows(0, stored.n_rows).reshape(stored.shape)
        np.testing.assert_allclose(back.tensors[tensor].numpy(), values, rtol=1e-6)


WRITTEN = [
    *(("microgpt-config", "microgpt"), ("microgpt-config", "flat"), ("modern", "microgpt")),
    *(("lecture-inside", "lecture"), ("lecture-inside", "playground"), ("ndarray", "ndarray")),
    ("playground", "playground"),
]


@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_a_model_from_elsewhere_is_written_for_a_page(tmp_path: Path, name: str, layout: str) -> None:
    """Without what a document left behind: the same model, in the layout that its page reads."""
    model = translate(llmconv.open(write(tmp_path, DOCUMENTS[name][1])), "gguf")
    model.metadata = {k: v for k, v in model.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(model, tmp_path / "new.json", layout=layout)
    again = translate(llmconv.open(tmp_path / "new.json"), "gguf")
    assert again.metadata["llmconv.json.layout"] == layout
    keys = {k: v for k, v in model.metadata.items() if k.startswith(f"{model.metadata['general.architecture']}.")}
    assert {k: again.metadata[k] for k in keys} == keys
    assert again.metadata.get("tokenizer.ggml.tokens") == model.metadata.get("tokenizer.ggml.tokens")
    assert all(np.array_equal(t.numpy(), again.tensors[n].numpy()) for n, t in model.tensors.items())


@pytest.mark.parametrize("layout", ["desde-cero", "forge"])
def test_one_block_programs_files_are_written_anew(shared: Path, tmp_path: Path, layout: str) -> None:
    name = {"desde-cero": "transformer_desde_cero-gpt_weights", "forge": "forge-transformer_weights"}[layout]
    document = json.loads((shared / "json" / f"{name}.json").read_text())
    model = translate(llmconv.open(shared / "json" / f"{name}.json"), "gguf")
    model.metadata = {k: v for k, v in model.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(model, tmp_path / "new.json", outtype="f64")  # its family's, unasked
    made = json.loads((tmp_path / "new.json").read_text())
    document.pop("i2w", None)
    assert made == document


def test_what_a_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    model = translate(llmconv.open(write(tmp_path, small.modern())), "gguf")
    with pytest.raises(Unsupported, match="can't be written in the layout flat"):
        llmconv.save(model, tmp_path / "new.json", layout="flat")
    with pytest.raises(LlmconvError, match="a microgpt model can't be written in the layout lecture"):
        llmconv.save(model, tmp_path / "new.json", layout="lecture")
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_every_layout_of_a_language_model_can_be_written() -> None:
    assert {t.name for t in layouts.all() if t.build is None and t.arch != "char-rnn"} == {"gpt"}


def test_guesses_are_said(tmp_path: Path) -> None:
    notes = llmconv.convert_file(write(tmp_path, small.playground()), tmp_path / "m.gguf").notes
    assert any("it is taken that its MLP has gelu_tanh" in note for note in notes)
    stated = small.playground()
    stated["cfg"]["activation"] = "relu"
    result = llmconv.convert_file(write(tmp_path, stated), tmp_path / "m.gguf", force=True)
    assert not result.notes and llmconv.open(tmp_path / "m.gguf").metadata["small-gpt.hidden_activation"] == "relu"


def _weights() -> dict[str, Any]:
    return small.microgpt_weights()


_CAMEL = {"nEmbd": small.D, "nHead": small.H, "nLayer": small.L, "blockSize": small.T}
_PLACES: dict[str, Any] = {
    "keys in capitals": lambda: {"Config": {"N_EMBD": small.D, "N_HEAD": small.H}, "weights": _weights()},
    "numbers as texts": lambda: {**{k: str(v) for k, v in small.SIZES.items()}, "weights": _weights()},
    "lightning": lambda: {"hyper_parameters": small.SIZES, "state_dict": _weights()},
    "camel parts": lambda: {
        "config": _CAMEL,
        "weights": {k.replace("attn_w", "attnW"): v for k, v in _weights().items()},
    },
    "pairs": lambda: {**small.SIZES, "vocab": [[c, i] for i, c in enumerate(small.CHARACTERS)], "weights": _weights()},
    "objects": lambda: {
        **small.SIZES,
        "vocab": [{"id": i, "token": c} for i, c in enumerate(small.CHARACTERS)],
        "weights": _weights(),
    },
}


@pytest.mark.parametrize("place", _PLACES)
def test_settings_and_words_in_other_forms(tmp_path: Path, place: str) -> None:
    source = write(tmp_path, _PLACES[place]())
    llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64")
    made, usual = (
        llmconv.open(tmp_path / "m.gguf"),
        translate(llmconv.open(write(tmp_path, small.microgpt(), "u.json")), "gguf"),
    )
    assert all(np.array_equal(t.numpy(), made.tensors[n].numpy()) for n, t in usual.tensors.items())
    assert made.metadata["microgpt.attention.head_count"] == small.H
    if place in ("pairs", "objects"):
        assert list(made.metadata["tokenizer.ggml.tokens"]) == small.CHARACTERS
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


def test_a_part_of_nothing_but_null_is_refused(tmp_path: Path) -> None:
    document = small.microgpt()
    document["weights"]["lm_head"] = [[None] * small.D] * small.V
    with pytest.raises(BadFile, match=r"'weights\.lm_head' holds only null, where JavaScript had NaN"):
        llmconv.convert_file(write(tmp_path, document), tmp_path / "m.gguf")


def test_numbers_as_texts_are_named(tmp_path: Path) -> None:
    weights = {name: [[str(x) for x in row] for row in w] for name, w in _weights().items()}
    with pytest.raises(BadFile, match="has its numbers as texts, expected numbers; write them without quotes"):
        llmconv.convert_file(write(tmp_path, {**small.SIZES, "weights": weights}), tmp_path / "m.gguf")
