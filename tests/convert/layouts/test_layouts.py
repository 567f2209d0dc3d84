"""Layout tables: every family both ways, its orientation, and documents that contradict themselves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simple_model import document, logits

import llmconv
from llmconv.convert import layouts
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, UsageError

V, D, FF, L, CTX = 7, 4, 8, 2, 5


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).round(3).tolist()


def linear(n_in: int, n_out: int, seed: int = 0) -> dict[str, Any]:
    return {"weights": numbers(n_in, n_out, seed=seed), "bias": numbers(n_out, seed=seed)}


def norm(seed: int) -> dict[str, Any]:
    return {"gamma": numbers(D, seed=seed), "beta": numbers(D, seed=seed + 50)}


def blocks() -> dict[str, Any]:
    def block(i: int) -> dict[str, Any]:
        return {
            "attention": {f"w{x}": linear(D, D, seed=10 * i + k) for k, x in enumerate("qkvo")},
            "feedforward": {"linear1": linear(D, FF), "linear2": linear(FF, D)},
            "norm1": norm(i),
            "norm2": norm(i + 7),
        }

    embedding = {"tokenWeights": numbers(V, D), "positionWeights": numbers(CTX, D)}
    weights = {"projection": linear(D, V), "blocks": [block(i) for i in range(L)], "embedding": embedding}
    return {"meta": {"epoch": 3, "loss": 0.5}, "weights": weights}


def dotted() -> dict[str, Any]:
    out: dict[str, Any] = {"config": {"d_model": D, "n_heads": 2, "d_ff": FF, "n_layers": L, "max_seq_len": CTX}}
    out |= {"vocab": list("abcdefg"), "wte": numbers(V, D), "wpe": numbers(CTX, D)}
    for i in range(L):
        at = f"block{i}."
        for k, x in enumerate("qkvo"):
            out |= {f"{at}{x}.W": numbers(D, D, seed=k + i), f"{at}{x}.b": numbers(D, seed=k + i)}
        out |= {f"{at}ffn.lin1.W": numbers(D, FF), f"{at}ffn.lin1.b": numbers(FF)}
        out |= {f"{at}ffn.lin2.W": numbers(FF, D), f"{at}ffn.lin2.b": numbers(D)}
        out |= {f"{at}ln{n}.{p}": numbers(D, seed=n) for n in (1, 2) for p in "gb"}
    return out | {"ln_f.g": numbers(D), "ln_f.b": numbers(D)}


def flat() -> dict[str, Any]:
    config = {"nLayer": 1, "nEmbd": D, "blockSize": CTX, "nHead": 2, "headDim": 2, "vocabSize": V}
    size = 2 * V * D + CTX * D + 4 * D * D + 2 * 4 * D * D
    return {"config": config, "weights": numbers(size)}


def named() -> dict[str, Any]:
    def entry(*shape: int) -> dict[str, Any]:
        return {"rows": shape[0], "cols": shape[1], "data": numbers(shape[0] * shape[1])}

    tokenizer = {"type": "word", "vocab": [f"w{i}" for i in range(V)]}
    return {"config": {"kind": "tiny"}, "tokenizer": tokenizer, "weights": {"emb": entry(V, D), "out": entry(D, V)}}


FAMILIES: dict[str, Any] = {
    "simple-llm": document,
    "simple-llm-multi-head": lambda: document(heads=2),
    "blocks": blocks,
    "dotted": dotted,
    "flat": flat,
    "named": named,
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, tree: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(tree, indent=1))
        return path

    (tmp_path / "config.json").write_text(json.dumps({"numHeads": 2, "vocabSize": V, "numLayers": L}))
    (tmp_path / "vocab.json").write_text(json.dumps({f"word{i}": i for i in range(V)}))
    return write


@pytest.mark.parametrize("middle", ["m.gguf", "m.safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_byte_for_byte(write: Any, tmp_path: Path, family: str, middle: str) -> None:
    source = write("model.json", FAMILIES[family]())
    llmconv.convert_file(source, tmp_path / middle, outtype="f64")
    llmconv.convert_file(tmp_path / middle, tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()
    model = translate(llmconv.open(source), "gguf")
    assert model.metadata["llmconv.json.layout"] == family


def test_every_table_has_a_family_here_or_a_real_file() -> None:
    real = {"microgpt", "desde-cero", "forge"}  # and in test_layouts_small:
    real |= {"nanogpt", "lecture", "ndarray", "playground", "gpt"}
    recurrent = {table.name for table in layouts.all() if table.arch == "char-rnn"}  # see tests/runtime
    assert set(layouts.names()) - {"plain"} == set(FAMILIES) | real | recurrent


def test_orientation_is_the_tables(write: Any) -> None:
    tree = document(heads=2)
    model = translate(llmconv.open(write("m.json", tree)), "gguf")
    layer = tree["weights"]["transformers"][1]
    assert np.array_equal(model.tensors["blk.1.ffn_up.weight"].numpy(), np.array(layer["w1"]).T)
    q = np.array(layer["multiHeadAttention"]["wq"])  # [head][in][out]
    assert np.array_equal(model.tensors["blk.1.attn_q.weight"].numpy(), np.concatenate([h.T for h in q]))
    model = translate(llmconv.open(write("m.json", dotted())), "gguf")
    fused = np.concatenate([np.array(dotted()[f"block0.{x}.W"]).T for x in "qkv"])
    assert model.metadata["general.architecture"] == "gpt2"
    assert np.array_equal(model.tensors["blk.0.attn_qkv.weight"].numpy(), fused)
    values, model = np.array(flat()["weights"]), translate(llmconv.open(write("m.json", flat())), "gguf")
    start = 2 * V * D + CTX * D
    assert np.array_equal(model.tensors["blk.0.attn_q.weight"].numpy().reshape(-1), values[start : start + D * D])


def as_typed_arrays(node: Any) -> Any:
    """The document as JavaScript serialises it when its rows are Float64Arrays."""
    if isinstance(node, list) and all(isinstance(x, float) for x in node):
        return {str(i): x for i, x in enumerate(node)}
    if isinstance(node, list):
        return [as_typed_arrays(x) for x in node]
    return {k: as_typed_arrays(v) for k, v in node.items()} if isinstance(node, dict) else node


def test_typed_arrays_are_the_same_model(write: Any, tmp_path: Path) -> None:
    plain, typed = document(heads=2), as_typed_arrays(document(heads=2))
    assert typed["weights"]["embedding"][0]["0"] == plain["weights"]["embedding"][0][0]
    source = write("typed.json", typed)
    llmconv.convert_file(source, tmp_path / "typed.gguf", outtype="f64")
    model, wanted = llmconv.open(tmp_path / "typed.gguf"), translate(llmconv.open(write("m.json", plain)), "gguf")
    assert all(np.array_equal(model.tensors[n].numpy(), t.numpy()) for n, t in wanted.tensors.items())
    llmconv.convert_file(tmp_path / "typed.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


def test_a_second_file_gives_what_the_first_lacks(write: Any, tmp_path: Path) -> None:
    source = write("model.json", blocks())
    model = translate(llmconv.open(source), "gguf")
    assert model.metadata["blocks.attention.head_count"] == 2
    assert list(model.metadata["tokenizer.ggml.tokens"]) == [f"word{i}" for i in range(V)]
    other = tmp_path / "elsewhere.json"
    other.write_text(json.dumps({"config": {"nHeads": 4}}))
    model = translate(llmconv.open(source), "gguf", config=other)
    assert model.metadata["blocks.attention.head_count"] == 4
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadFile, match="numHeads is missing; the layout blocks needs it"):
        translate(llmconv.open(source), "gguf")
    (tmp_path / "config.json").write_text('{"numHeads": 2, "vocabSize": 9}')
    with pytest.raises(BadFile, match=r"config.json: vocabSize says 9, but .*tokenWeights says 7"):
        translate(llmconv.open(source), "gguf")


def test_named_tensors_of_a_known_model_become_that_model(write: Any, shared: Path) -> None:
    source = llmconv.open(shared / "stories260K" / "hf")
    config = json.loads((shared / "stories260K" / "hf" / "config.json").read_text())
    maps = {n: {"shape": list(t.shape), "data": t.numpy().reshape(-1).tolist()} for n, t in source.tensors.items()}
    model = translate(llmconv.open(write("m.json", {"config": config, "tensors": maps})), "gguf")
    wanted = translate(source, "gguf")
    assert model.metadata["general.architecture"] == "llama"
    assert set(model.tensors) == set(wanted.tensors)
    assert all(np.array_equal(model.tensors[n].numpy(), t.numpy()) for n, t in wanted.tensors.items())


LISTED: list[Any] = [
    {"name": "w", "shape": [2, 3], "data": [0.5, 1, 1.5, 2, 2.5, 3]},
    {"name": "b", "data": [[0.1, 0.2]], "shape": [1, 2]},
]


@pytest.mark.parametrize("place", ["", "tensors", "weights"])
def test_a_list_of_named_tensors_is_a_map_of_them(write: Any, tmp_path: Path, place: str) -> None:
    source = write("m.json", {"kind": "mine", place: LISTED} if place else LISTED)
    llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64")
    shapes = {name: tensor.shape for name, tensor in llmconv.open(tmp_path / "m.gguf").tensors.items()}
    assert shapes == {"w": (2, 3), "b": (1, 2)}
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("second", [{"name": "w"}, {"name": ""}, {"name": 3}])
def test_a_list_whose_names_are_none_is_no_map(write: Any, tmp_path: Path, second: Any) -> None:
    source = write("m.json", [LISTED[0], LISTED[1] | second])
    with pytest.raises(BadFile, match="is no model of a known layout"):
        llmconv.convert_file(source, tmp_path / "m.gguf")
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain")
    assert set(llmconv.open(tmp_path / "m.gguf").tensors) == {"[0]", "[1]"}


# What JavaScript's libraries save of networks that are no language models -> the shapes of their arrays.
NETWORKS: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "brain.js": (
        {"type": "NeuralNetwork", "sizes": [2, 3], "layers": [{"weights": [], "biases": []},
         {"weights": [[0.1, 2], [3, 4], [5, 6]], "biases": [0.5, 1, 2]}]},
        {"layers[1].weights": (3, 2), "layers[1].biases": (3,)},
    ),
    "brain.js before 2": (
        {"sizes": [2, 1], "layers": [{"0": {}, "1": {}}, {"0": {"bias": -2.5, "weights": {"0": 0.2, "1": 0.3}}}]},
        {"layers[1].0.weights": (2,)},
    ),
    "ConvNetJS": (
        {"layers": [{"layer_type": "conv", "sx": 2, "filters": [{"sx": 2, "sy": 3, "depth": 2,
         "w": {str(i): i / 8 for i in range(12)}}], "biases": {"sx": 1, "sy": 1, "depth": 1, "w": {"0": 0.5}}}]},
        {"layers[0].filters[0]": (3, 2, 2), "layers[0].biases": (1, 1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", NETWORKS)
def test_networks_of_javascript_are_plain_with_their_shapes(write: Any, tmp_path: Path, program: str) -> None:
    tree, shapes = NETWORKS[program]
    source = write("m.json", tree)
    llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64", layout="plain")
    assert {name: tensor.shape for name, tensor in llmconv.open(tmp_path / "m.gguf").tensors.items()} == shapes
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("program", ["synaptic", "neataptic"])
def test_networks_of_single_numbers_hold_no_array(write: Any, tmp_path: Path, program: str) -> None:
    """Their weights are a number a connection: there is no tensor to convert."""
    units = "neurons" if program == "synaptic" else "nodes"
    links = [{"from": 0, "to": 1, "weight": 0.25, "gater": None}]
    source = write("m.json", {units: [{"bias": 0.1, "squash": "LOGISTIC"}] * 2, "connections": links})
    with pytest.raises(BadFile, match="holds no array of numbers"):
        llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain")


def test_a_model_made_elsewhere_is_written_in_its_familys_layout(write: Any, tmp_path: Path) -> None:
    for tree in (document(), document(heads=2)):
        source = llmconv.open(write("m.json", tree))
        model = translate(source, "gguf")
        model.metadata = {k: v for k, v in model.metadata.items() if not k.startswith("llmconv.")}
        llmconv.save(model, tmp_path / "new.json", force=True)
        assert json.loads((tmp_path / "new.json").read_text()) == tree
        assert np.array_equal(logits(llmconv.open(tmp_path / "new.json"), [3, 4, 1]), logits(source, [3, 4, 1]))


@pytest.mark.parametrize("layout", ["blocks", "dotted"])
def test_other_layouts_are_written_anew(write: Any, tmp_path: Path, layout: str) -> None:
    model = translate(llmconv.open(write("m.json", FAMILIES[layout]())), "gguf")
    model.metadata = {k: v for k, v in model.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(model, tmp_path / "new.json", layout=layout)
    (tmp_path / "config.json").unlink()
    again = translate(llmconv.open(tmp_path / "new.json"), "gguf")
    assert again.metadata["llmconv.json.layout"] == layout
    assert again.metadata["tokenizer.ggml.tokens"] == model.metadata["tokenizer.ggml.tokens"]
    assert all(np.array_equal(t.numpy(), again.tensors[n].numpy()) for n, t in model.tensors.items())


def test_any_gguf_becomes_named_tensors_and_comes_back(shared: Path, tmp_path: Path) -> None:
    source = shared / "stories260K" / "stories260K-f32.gguf"
    llmconv.convert_file(source, tmp_path / "s.json")
    llmconv.convert_file(tmp_path / "s.json", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == source.read_bytes()


def change(path: str, value: Any) -> Any:
    """A simple-llm document (several heads) with one thing wrong."""

    def changed() -> Any:
        tree = copy.deepcopy(document(heads=2))
        node: Any = tree
        *steps, last = path.split(".")
        for step in steps:
            node = node[int(step)] if step.isdigit() else node[step]
        if value is ...:
            del node[last]
        else:
            node[last] = value
        return tree

    return changed


WRONG = {
    "width": (change("config.embeddingDim", 5), "which 2 heads (config.numHeads) don't divide"),
    "heads": (
        change("config.numHeads", 4),
        "'weights.transformers[0].multiHeadAttention.wq' has shape [2, 4, 2], expected [4, 4",
    ),
    "layers": (change("config.numLayers", 3), "weights.transformers holds 2 layers, expected 3 by config.numLayers"),
    "huge": (change("config.numLayers", 2**31 - 1), "weights.transformers holds 2 layers, expected 2147483647"),
    "vocabulary": (change("config.vocab", ["a"]), "the vocabulary (config.vocab) has 1 words, expected 7"),
    "word": (change("config.vocab", [1.5, "b"]), "config.vocab[0] is '1.5', expected a text"),
    "size": (change("config.vocabSize", 8), "tensor 'weights.embedding' has shape [7, 4], expected [8, 4]"),
    "zero": (change("config.vocabSize", 0), "config.vocabSize is 0, expected a whole number of at least 1"),
    "kind": (change("config.vocabSize", "7"), "config.vocabSize is '7', expected a whole number of at least 1"),
    "flag": (change("config.vocabSize", True), "config.vocabSize is True, expected a whole number"),
    "missing": (change("weights.transformers.1.w2", ...), "tensor 'weights.transformers[1].w2' is missing"),
    "extra": (change("weights.transformers.1.w3", [1.0, 2.0]), "weights.transformers[1].w3 is none of the weights"),
    "type": (change("weights.transformers.1.type", "single-head"), "transformers[1].type is 'single-head'"),
    "orientation": (
        change("weights.output.weights", numbers(V, D)),
        "tensor 'weights.output.weights' has shape [7, 4], expected [4, 7]",
    ),
    "no list": (change("weights.transformers", {"0": 1}), "is no model of a known layout"),
}


@pytest.mark.parametrize("case", WRONG)
def test_documents_that_contradict_themselves(tmp_path: Path, case: str) -> None:
    make, message = WRONG[case]
    source = tmp_path / "m.json"
    source.write_text(json.dumps(make()))
    with pytest.raises(BadFile) as error:
        llmconv.convert_file(source, tmp_path / "m.gguf")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_an_unknown_document_is_refused_with_the_nearest_table(tmp_path: Path) -> None:
    tree = document()
    del tree["config"]["numLayers"]
    (tmp_path / "m.json").write_text(json.dumps(tree))
    with pytest.raises(BadFile, match=r"looks like the layout simple-llm, but lacks config.numLayers; layout=.plain."):
        llmconv.convert_file(tmp_path / "m.json", to="gguf")
    with pytest.raises(BadFile, match=r"is not of the layout flat: config.nLayer"):
        llmconv.convert_file(tmp_path / "m.json", to="gguf", layout="flat")
    with pytest.raises(UsageError, match="unknown layout 'x'; known: simple-llm"):
        llmconv.convert_file(tmp_path / "m.json", to="gguf", layout="x")


def test_plain_takes_any_document_of_rectangular_arrays(tmp_path: Path, shared: Path) -> None:
    source = shared / "simple-llm" / "not-a-model.json"
    with pytest.raises(BadFile, match="is no model of a known layout"):
        llmconv.convert_file(source, tmp_path / "n.gguf")
    llmconv.convert_file(source, tmp_path / "n.gguf", layout="plain", outtype="f64")
    llmconv.convert_file(tmp_path / "n.gguf", tmp_path / "n.safetensors")
    llmconv.convert_file(tmp_path / "n.safetensors", tmp_path / "n.json")
    assert (tmp_path / "n.json").read_bytes() == source.read_bytes()
    with pytest.raises(BadFile, match="holds no array of numbers"):
        (tmp_path / "e.json").write_text('{"a": "b"}')
        llmconv.convert_file(tmp_path / "e.json", to="gguf", layout="plain")


def test_history_beside_the_weights_is_kept_in_the_document(write: Any, tmp_path: Path) -> None:
    source = write("m.json", document() | {"metadata": {"losses": [3.5, 2, 1e-7], "name": "tiny"}})
    result = llmconv.convert_file(source, tmp_path / "m.gguf", outtype="f64")
    assert result.n_tensors == 21 and llmconv.open(tmp_path / "m.gguf").metadata["general.name"] == "tiny"
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == source.read_bytes()


BROKEN: dict[str, tuple[Any, str]] = {
    "inside a list": (lambda t: [t], "is inside a list of 1; take it out"),
    "inside an object": (lambda t: {"checkpoint": t}, "is inside 'checkpoint'; take it out"),
    "inside an object among others": (lambda t: {"model": t, "optimizer": {"lr": 1}}, "is inside 'model'; take it out"),
    "further in": (lambda t: {"data": [t, 1]}, "is inside a list of 2 in 'data'; take it out"),
    "two faults": (
        lambda t: [{**t, "config": json.dumps(t["config"])}],
        "is inside a list of 1; take it out, and its config is a text of JSON",
    ),
    "no config": (lambda t: {k: v for k, v in t.items() if k != "config"}, r"lacks config\.vocabSize"),
    "config a list": (lambda t: t | {"config": [t["config"]]}, "its config is a list, expected an object"),
    "config a text": (lambda t: t | {"config": json.dumps(t["config"])}, "its config is a text of JSON"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_documents_that_break_the_rules_of_a_layout_are_refused_by_its_name(tmp_path: Path, what: str) -> None:
    change, message = BROKEN[what]
    (tmp_path / "m.json").write_text(json.dumps(change(document())))
    with pytest.raises(BadFile, match=f"looks like the layout simple-llm, but {message}") as error:
        llmconv.convert_file(tmp_path / "m.json", to="gguf")
    assert 'layout="plain"' in str(error.value) and len(str(error.value)) < 330 + len(str(tmp_path))
    assert llmconv.convert_file(tmp_path / "m.json", to="gguf", layout="plain").n_tensors == 21


def test_named_tensors_with_a_config_that_is_none(tmp_path: Path) -> None:
    for config, kind in (("{}", "a text"), (["a"], "a list")):
        tree = {"config": config, "tensors": {"w": {"shape": [2], "data": [1.5, 2]}}}
        (tmp_path / "m.json").write_text(json.dumps(tree))
        with pytest.raises(BadFile, match=f"has a config that is {kind}, expected an object; layout=.plain."):
            llmconv.convert_file(tmp_path / "m.json", tmp_path / "n.gguf")
        assert llmconv.convert_file(tmp_path / "m.json", to="gguf", layout="plain", force=True).n_tensors >= 1


@pytest.mark.parametrize(
    ("key", "value"), [("simple-llm.attention.layer_norm_epsilon", 0.5), ("simple-llm.attention.causal", True)]
)
def test_what_was_edited_in_the_gguf_of_a_document_is_named(tmp_path: Path, key: str, value: Any) -> None:
    source = Path(__file__).parents[3] / "examples" / "simple-36k.json"
    llmconv.convert_file(source, tmp_path / "m.gguf")
    assert llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "same.json").notes == []
    assert (tmp_path / "same.json").read_bytes() == source.read_bytes()
    llmconv.edit(tmp_path / "m.gguf", set={key: value}, output=tmp_path / "e.gguf")
    notes = llmconv.convert_file(tmp_path / "e.gguf", tmp_path / "back.json").notes
    assert len(notes) == 1 and f"the document still says otherwise: '{key}'" in notes[0]


@pytest.mark.parametrize("kind", ["layout", "plain", "named"])
def test_what_was_added_to_the_gguf_of_a_document_is_named(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "m.json"
    named = {"w": {"shape": [2], "data": [1.5, 2]}}
    tree = {"layout": document(), "plain": {"w": [1.5, 2]}, "named": named}[kind]
    source.write_text(json.dumps(tree))
    llmconv.convert_file(source, tmp_path / "m.gguf", layout="plain" if kind == "plain" else None)
    assert llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "same.json").notes == []
    llmconv.edit(tmp_path / "m.gguf", set={"general.author": "me", "my.own": 5}, output=tmp_path / "e.gguf")
    notes = llmconv.convert_file(tmp_path / "e.gguf", tmp_path / "back.json").notes
    said = "the document has no place for 'general.author' (and 1 more) of the GGUF, which is lost; keep the GGUF"
    assert notes == [said]
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "same.json").read_bytes()
