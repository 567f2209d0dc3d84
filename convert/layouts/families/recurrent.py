"""Recurrent character models in JSON: Karpathy's char-rnn and its ports, recurrentjs, brain.js.

Their programs keep each gate's matrix apart and disagree on which way matrices lie, so `unpack` makes GGUF's tensors
(`convert.decoders.recurrent`) whole, under `rnn.` and their own names, and `pack` cuts them again.  All compute
h = f(Wx x + Wh h + b); their sources say so: karpathy/char-rnn's min-char-rnn.py, karpathy/recurrentjs's
`forwardRNN` and `forwardLSTM` (ReLU in the RNN), BrainJS/brain.js src/recurrent/{rnn,gru,lstm}.ts (a GRU whose reset
gate is on the state).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.convert.decoders.recurrent import ARCH, GATES, SIZES
from llmconv.convert.layouts.base import Field, Layout, Words, row
from llmconv.convert.layouts.settings import recurrent_activation
from llmconv.convert.tables.keys import whole
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import at_layer
from llmconv.errors import BadFile, shown
from llmconv.formats.documents.cutting import shapes
from llmconv.formats.documents.document import Slot
from llmconv.formats.tensor import Tensor

_CANONICAL = "rnn."


@dataclass(frozen=True)
class _Family:
    """Where a program keeps its weights.

    one_hot: the first layer's products are looked up.
    x, h, bias: paths of each gate, in GGUF's order, `{i}` the layer.
    free: matrices lie either way: [in][out] where the first one has a row for each token.
    """

    cell: str
    embed: str
    x: tuple[str, ...]
    h: tuple[str, ...]
    bias: tuple[str, ...]
    output: str
    output_bias: str
    one_hot: bool = False
    free: bool = False

    @property
    def gates(self) -> int:
        return GATES[self.cell]


def _places(family: _Family, dims: Dims) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """(GGUF's name, the paths that make it up, the shape of each as [out][in])."""
    last, vocab, width = dims["n_embd"], dims["n_vocab"], dims["n_ff"]
    yield "token_embd.weight", [family.embed], (vocab, width)
    for i in range(dims["n_layer"]):
        here = at_layer(dims, i)
        dim, below = here["n_cell"], here["n_below"]
        parts = {name: [p.replace("{i}", str(i)) for p in getattr(family, name)] for name in ("x", "h", "bias")}
        if i or not family.one_hot:
            yield f"blk.{i}.rnn_x.weight", parts["x"], (dim, below if i else width)
        yield f"blk.{i}.rnn_h.weight", parts["h"], (dim, dim)
        yield f"blk.{i}.rnn_h.bias", parts["bias"], (dim,)
    yield "output.weight", [family.output], (vocab, last)
    yield "output.bias", [family.output_bias], (vocab,)


def _found(path: str, names: Mapping[str, Any]) -> str:
    """The tensor that a path means: Karpathy's names in any of their spellings, below any of the usual keys."""
    if path in names:
        return path
    if "." not in path and "[" not in path:
        for root in _ROOTS:
            for spelt in _spellings(path):
                if root + spelt in names:
                    return root + spelt
    raise BadFile(f"{path} is missing or no array of numbers; a recurrent model of this layout has it")


def _inside_out(family: _Family, sizes: Mapping[str, tuple[int, ...]], dims: Dims) -> bool:
    """Whether the matrices lie [in][out]."""
    if not family.free:
        return False
    first = _found(family.embed, sizes)
    shape, wanted = sizes[first], (dims["n_vocab"], dims["n_embd"])
    if wanted[0] == wanted[1]:
        return first.rpartition(".")[2].islower()  # css-llm writes wxh [in][out], Karpathy Wxh [out][in]
    if shape not in (wanted, wanted[::-1]):
        raise BadFile(f"{first} has shape {shown(shape)}, expected {shown(wanted)} or the other way round")
    return shape == wanted


def _turned(name: str, family: _Family, inside_out: bool) -> bool:
    """Whether a matrix lies otherwise than in GGUF: of one-hot inputs, GGUF has a row for each token."""
    if not family.free or name.endswith("bias"):
        return False
    return not inside_out if name == "token_embd.weight" else inside_out


def _unpacked(family: _Family) -> Any:
    def unpack(document: Any, tensors: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
        inside_out = _inside_out(family, {n: t.shape for n, t in tensors.items()}, dims)
        out, used = {}, set()
        for name, paths, shape in _places(family, dims):
            parts = []
            for path in paths:
                tensor = tensors[_found(path, tensors)]
                used.add(tensor.name)
                turned = _turned(name, family, inside_out)
                wanted = shape[::-1] if turned else shape
                column = (
                    tensor.shape in ((*wanted, 1), (1, *wanted)) and len(wanted) == 1
                )  # numpy's and matrices' biases
                if tensor.shape != wanted and not column:
                    raise BadFile(f"{tensor.name} has shape {shown(tensor.shape)}, expected {shown(wanted)}")
                values = tensor.numpy().reshape(wanted)
                parts.append(values.T if turned else values)
            out[_CANONICAL + name] = Tensor.from_array(_CANONICAL + name, np.concatenate(parts))
        _refuse_more(used, tensors)
        return {**{n: t for n, t in tensors.items() if n not in used}, **out}

    return unpack


_WEIGHT = re.compile(r"(.*?)([WwUb]_?[a-z]{1,3}_?\d*)")


def _refuse_more(used: set[str], tensors: Mapping[str, Tensor]) -> None:
    """`BadFile` for a weight beside the layout's, such as those of a second layer."""
    places = {found[1] for name in used if (found := _WEIGHT.fullmatch(name)) is not None}
    for name in tensors:
        found = _WEIGHT.fullmatch(name)
        if name not in used and found is not None and found[1] in places:
            raise BadFile(
                f"{name} is none of the weights that a recurrent model of this layout has; use --layout plain"
            )


def _packed(family: _Family) -> Any:
    def pack(document: Any, tensors: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
        there = shapes(document)
        inside_out = _inside_out(family, there, dims)
        out = {n: t for n, t in tensors.items() if not n.startswith(_CANONICAL)}
        for name, paths, _ in _places(family, dims):
            values = tensors[_CANONICAL + name].numpy()
            for path, part in zip(paths, np.split(values, len(paths)), strict=True):
                target = _found(path, there)
                own = part.T if _turned(name, family, inside_out) else part
                out[target] = Tensor.from_array(target, np.ascontiguousarray(own))
        return out

    return pack


def _rows(gates: int, one_hot: bool) -> Any:
    wide = f"{gates} * n_cell" if gates > 1 else "n_cell"
    first = () if one_hot else (_row("blk.{i}.rnn_x.weight", f"{wide}, n_ff", "i == 0"),)
    return (
        _row("token_embd.weight", "n_vocab, n_ff"),
        *first,
        _row("blk.{i}.rnn_x.weight", f"{wide}, n_below", "i > 0"),
        _row("blk.{i}.rnn_h.weight", f"{wide}, n_cell"),
        _row("blk.{i}.rnn_h.bias", wide),
        _row("output.weight", "n_vocab, n_embd"),
        _row("output.bias", "n_vocab"),
    )


def _row(name: str, shape: str, when: str = "") -> Any:
    return row(name, _CANONICAL + name, shape, when=when)


def _layout(name: str, title: str, family: _Family, **more: Any) -> Layout:
    own = {"recurrent.cell": family.cell, **more.pop("constants", {})}
    return Layout(
        name,
        title,
        ARCH,
        suits=_suits(family, own, more["words"]),
        build=_build(family, more.pop("whole"), more.pop("array"), more["words"]),
        rows=_rows(family.gates, family.one_hot),
        by_layer=_by_layer,
        finish=_finish,
        constants=own,
        roots=(_CANONICAL,),
        unpack=_unpacked(family),
        pack=_packed(family),
        **more,
    )


def _by_layer(metadata: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """n_cell, the size of each layer; n_below, of the one under it."""
    stated, dim = metadata.get(f"{ARCH}.{SIZES}"), dims["n_embd"]
    sizes = None if stated is None else [whole(size) for size in np.atleast_1d(stated).tolist()]
    if sizes is None or len(sizes) != dims["n_layer"]:
        return {"n_cell": dim, "n_below": dim}
    return {"n_cell": sizes, "n_below": [0, *sizes[:-1]]}


def _finish(own: dict[str, Any], dims: Dims) -> None:
    if len(set(own.get(SIZES, ()))) < 2:
        own.pop(SIZES, None)


_USUAL = {"recurrent.activation": "tanh", "recurrent.gates": "sigmoid", "recurrent.reset_after": True}


def _suits(family: _Family, own: Mapping[str, Any], words: Words) -> Any:
    """Why a recurrent model can't be a document of this family, or ""."""

    def suits(metadata: Mapping[str, Any], dims: Dims, tensors: Mapping[str, Tensor]) -> str:
        cell = metadata.get(f"{ARCH}.recurrent.cell")
        if cell != family.cell:
            return f"its layers are of the kind {cell}, there {family.cell}"
        for key, usual in _USUAL.items():
            stated, wanted = metadata.get(f"{ARCH}.{key}", usual), own.get(key, usual)
            if stated != wanted and not (key.endswith("reset_after") and cell != "gru"):
                return f"its {key.rpartition('.')[2]} is {stated}, there {wanted}"
        if ("blk.0.rnn_x.weight" not in tensors) != family.one_hot:
            return "its inputs are " + ("embeddings, there one-hot" if family.one_hot else "one-hot, there embeddings")
        if family.one_hot and dims["n_layer"] > 1:
            return f"it has {dims['n_layer']} layers, there one"
        for i in range(dims["n_layer"]):
            if tensors[f"blk.{i}.rnn_h.weight"].shape[-1] != at_layer(dims, i)["n_cell"]:
                return "its layers differ in size"
        tokens = list(metadata.get(_TOKENS, ()))
        if words.before and tokens and len(tokens[0]) < 2:
            return "there token 0 begins and ends a text (train with --tokenizer sentences)"
        if any(len(token) > 1 for token in tokens[len(words.before) :]):
            return "its vocabulary is of more than characters"
        return ""

    return suits


_TOKENS = "tokenizer.ggml.tokens"

Whole = Callable[[list[str] | None, Dims, dict[str, Any]], Any]
"""(characters or None, dims, arrays by path) -> a document."""


def _build(family: _Family, whole: Whole, array: Callable[[str, tuple[int, ...]], Any], words: Words) -> Any:
    """What makes a new document of a family.   array: how its program writes one, of (slot's name, shape)."""

    def build(metadata: Mapping[str, Any], dims: Dims, tensors: Mapping[str, Tensor]) -> Any:
        full = {**dims, "n_vocab": tensors["output.weight"].shape[0], "n_ff": tensors["token_embd.weight"].shape[1]}
        arrays = {}
        for name, paths, shape in _places(family, full):
            for path in paths:
                own = path.capitalize() if family.free and path[0] == "w" else path
                turned = family.free and name == "token_embd.weight"
                arrays[own] = array(own, shape[::-1] if turned else shape)
        tokens = metadata.get(_TOKENS)
        return whole(None if tokens is None else list(tokens)[len(words.before) :], full, arrays)

    return build


def _row_by_row(rows: str, columns: str, values: str) -> Callable[[str, tuple[int, ...]], Any]:
    """A matrix as an object: its sizes and its numbers."""

    def array(name: str, shape: tuple[int, ...]) -> Any:
        columns_of = shape[1] if len(shape) > 1 else 1
        return {rows: shape[0], columns: columns_of, values: Slot(name, (shape[0] * columns_of,))}

    return array


# Karpathy's char-rnn in JSON: Wxh, Whh, Why, bh, by, as lists, below any of the usual keys; one layer, tanh, one-hot.

_ROOTS = ("", "weights.", "params.", "parameters.", "model.", "state_dict.", "state.")


def _spellings(name: str) -> tuple[str, ...]:
    """wxh, Wxh, W_xh, w_xh."""
    return tuple(dict.fromkeys((name, name.capitalize(), f"{name[0].upper()}_{name[1:]}", f"{name[0]}_{name[1:]}")))


def _any(name: str, more: str = "") -> tuple[str, ...]:
    return tuple(f"{{p}}{spelt}{more}" for spelt in _spellings(name))


def _sized(name: str) -> tuple[str, ...]:
    return tuple(f"shape of {root}{spelt}@0" for root in _ROOTS for spelt in _spellings(name))


CHAR_RNN = _layout(
    "char-rnn",
    "Karpathy's char-rnn: wxh, whh, why, bh, by as lists",
    _Family("rnn", "wxh", ("wxh",), ("whh",), ("bh",), "why", "by", one_hot=True, free=True),
    whole=lambda characters, dims, arrays: {**({} if characters is None else {"chars": characters}), **arrays},
    array=Slot,
    constants={"block_count": np.uint32(1)},
    marks=(_any("wxh"), _any("whh"), _any("why"), _any("bh"), _any("by")),
    prefixes=_ROOTS,
    fields=(
        Field("vocab_size", _sized("by")),
        Field("embedding_length", _sized("bh")),
        Field("feed_forward_length", _sized("bh")),
        recurrent_activation(),
    ),
    words=Words(
        ("chars", "vocab", "vocabulary", "characters", "idx_to_char", "ix_to_char", "char_to_ix", "itos", "stoi"),
        unk=None,
        lowercase=False,
        separator="",
    ),
)

# recurrentjs: {n, d, w} under `model`, matrices times columns; token 0 begins and ends a text.

_RECURRENTJS_WORDS = Words(("vocab",), unk=None, lowercase=False, separator="", before=("[BOS]",))


def _sizes(dims: Dims) -> list[int]:
    return [at_layer(dims, i)["n_cell"] for i in range(dims["n_layer"])]


def _recurrentjs(characters: list[str] | None, dims: Dims, arrays: dict[str, Any]) -> Any:
    letters = dict(enumerate(characters or (), 1))
    return {
        "hidden_sizes": _sizes(dims),
        "letter_size": dims["n_ff"],
        "model": {path.removeprefix("model."): array for path, array in arrays.items()},
        "letterToIndex": {letter: i for i, letter in letters.items()},
        "indexToLetter": {str(i): letter for i, letter in letters.items()},
        "vocab": list(letters.values()),
    }


def _recurrentjs_fields(gate: str) -> tuple[Field, ...]:
    return (
        Field("vocab_size", ("shape of model.bd@0",)),
        Field("block_count", ("length of hidden_sizes",)),
        Field("embedding_length", ("shape of model.Whd@1",)),
        Field(SIZES, (f"shapes of model.W{gate}h{{}}@1",), "u32s"),
        Field("feed_forward_length", ("shape of model.Wil@1", "letter_size")),
    )


RECURRENTJS = _layout(
    "recurrentjs",
    "recurrentjs: an LSTM, {n, d, w} by name",
    _Family(
        "lstm",
        "model.Wil",
        tuple(f"model.W{g}x{{i}}" for g in "ifco"),
        tuple(f"model.W{g}h{{i}}" for g in "ifco"),
        tuple(f"model.b{g}{{i}}" for g in "ifco"),
        "model.Whd",
        "model.bd",
    ),
    marks=("model.Wil", "model.Whd", "model.bd", "hidden_sizes", *(f"model.W{g}h0" for g in "ifco")),
    fields=_recurrentjs_fields("i"),
    whole=_recurrentjs,
    array=_row_by_row("n", "d", "w"),
    words=_RECURRENTJS_WORDS,
)
RECURRENTJS_RNN = _layout(
    "recurrentjs-rnn",
    "recurrentjs: an RNN with ReLU, {n, d, w} by name",
    _Family("rnn", "model.Wil", ("model.Wxh{i}",), ("model.Whh{i}",), ("model.bhh{i}",), "model.Whd", "model.bd"),
    marks=("model.Wil", "model.Whd", "model.bd", "hidden_sizes", "model.Wxh0", "model.Whh0", "model.bhh0"),
    fields=_recurrentjs_fields("h"),
    whole=_recurrentjs,
    array=_row_by_row("n", "d", "w"),
    constants={"recurrent.activation": "relu"},
    words=_RECURRENTJS_WORDS,
)

# brain.js: {rows, columns, weights} in `hiddenLayers`; token 0 begins and ends a text.

_LAYER = "hiddenLayers[{i}]."
_BRAIN: dict[str, tuple[list[str], list[str], list[str], dict[str, Any]]] = {
    "lstm": (
        ["inputMatrix", "forgetMatrix", "cellActivationMatrix", "outputMatrix"],
        ["inputHidden", "forgetHidden", "cellActivationHidden", "outputHidden"],
        ["inputBias", "forgetBias", "cellActivationBias", "outputBias"],
        {},
    ),
    "gru": (
        ["resetGateInputMatrix", "updateGateInputMatrix", "cellWriteInputMatrix"],
        ["resetGateHiddenMatrix", "updateGateHiddenMatrix", "cellWriteHiddenMatrix"],
        ["resetGateBias", "updateGateBias", "cellWriteBias"],
        {"recurrent.reset_after": False},
    ),
    "rnn": (["weight"], ["transition"], ["bias"], {"recurrent.activation": "relu"}),
}


def _brain_whole(cell: str) -> Whole:
    def whole(characters: list[str] | None, dims: Dims, arrays: dict[str, Any]) -> Any:
        layers: list[dict[str, Any]] = [{} for _ in range(dims["n_layer"])]
        for path, array in arrays.items():
            if path.startswith("hiddenLayers["):
                number, _, name = path.removeprefix("hiddenLayers[").partition("].")
                layers[int(number)][name] = array
        letters = characters or []
        formatter = {
            "indexTable": {letter: i for i, letter in enumerate(letters)},
            "characterTable": {str(i): letter for i, letter in enumerate(letters)},
            "values": [],
            "characters": letters,
            "specialIndexes": [],
        }
        options: dict[str, Any] = {
            "inputSize": dims["n_ff"],
            "inputRange": dims["n_vocab"] - 1,
            "outputSize": dims["n_vocab"] - 1,
        }
        options |= {"hiddenLayers": _sizes(dims), "dataFormatter": formatter}
        outer = {name: arrays[name] for name in ("input", "outputConnector", "output")}
        return {"type": cell.upper(), "options": options, "hiddenLayers": layers, **outer}

    return whole


def _brain(cell: str) -> Layout:
    x, h, bias, constants = _BRAIN[cell]
    weights, states, biases = (tuple(_LAYER + name for name in names) for names in (x, h, bias))
    first = _LAYER.replace("{i}", "0")
    return _layout(
        f"brain-{cell}",
        f"brain.js: {cell.upper()}, {{rows, columns, weights}} by layer",
        _Family(cell, "input", weights, states, biases, "outputConnector", "output"),
        marks=("input", "outputConnector", "output", "hiddenLayers", first + h[0], first + bias[-1]),
        fields=(
            Field("vocab_size", ("shape of output@0",)),
            Field("block_count", ("length of hiddenLayers",)),
            Field("embedding_length", ("shape of outputConnector@1",)),
            Field(SIZES, (f"shapes of {_LAYER.replace('{i}', '{}')}{h[0]}@1",), "u32s"),
            Field("feed_forward_length", ("shape of input@1",)),
        ),
        constants=constants,
        whole=_brain_whole(cell),
        array=_row_by_row("rows", "columns", "weights"),
        words=Words(
            ("options.dataFormatter.characters", "dataFormatter.characters", "characters"),
            unk=None,
            lowercase=False,
            separator="",
            before=("[BOS]",),
        ),
    )


LAYOUTS = (CHAR_RNN, RECURRENTJS, RECURRENTJS_RNN, *(_brain(cell) for cell in _BRAIN))
