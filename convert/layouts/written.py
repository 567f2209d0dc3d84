"""Documents of GPTs written anew: for a model that was trained here, or came from elsewhere, and should go to a page.

A `Style` says what its program calls each part and its settings; `writer` makes the document with the tensors' places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmconv.convert.layouts.spelling import TURNED
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Row, Slot, slots
from llmconv.errors import Unsupported
from llmconv.formats.documents.document import Slot as Place
from llmconv.formats.tensor import Tensor

__all__ = ["LECTURE", "MICROGPT_NAMES", "NANOGPT", "NDARRAY", "PLAYGROUND", "Style", "by_path", "writer"]

_BLOCK = "blk.{i}."


@dataclass(frozen=True)
class Style:
    """How a program writes its model.

    paths: row's name (see `spelling`) -> path below the weights, "/" between objects, a number for a place in a list.
    settings: its name of a setting -> the dimension.
    whole: (settings, characters or None, weights) -> the document.
    activation: the one that its readers take where nothing is stated.
    ends: whether its characters leave out the last token, which begins and ends texts.
    kind: of its vocabulary, "characters" or "words".   single: whether it has one block.
    states: whether its readers ask for settings beyond the sizes.
    array: how it writes an array, of (slot's name, shape).
    """

    name: str
    paths: Mapping[str, str]
    settings: Mapping[str, str]
    whole: Callable[[dict[str, Any], list[str] | None, Any], Any]
    activation: str = ""
    ends: bool = False
    kind: str = "characters"
    single: bool = False
    states: bool = True
    array: Callable[[str, tuple[int, ...]], Any] = Place


def writer(style: Style, rows: Sequence[Row]) -> Callable[[Mapping[str, Any], Dims, Mapping[str, Tensor]], Any]:
    """What makes a document of the style for a GGUF."""

    def document(metadata: Mapping[str, Any], dims: Dims, tensors: Mapping[str, Tensor]) -> Any:
        weights: Any = {}
        full = {**dims, "n_vocab": dims["n_vocab"] or tensors["token_embd.weight"].shape[0]}
        if style.single and full["n_layer"] != 1:
            raise Unsupported(
                f"the layout {style.name} has one block, this model {full['n_layer']}; use --layout named"
            )
        for slot in slots(rows, full):
            if any(name in tensors for name in slot.gguf):
                for name, path, shape in _places(slot, style):
                    _put(weights, path.split("/"), style.array(name, shape))
        settings = {theirs: full[dim] for theirs, dim in style.settings.items() if full.get(dim)}
        settings |= _stated(metadata, style) if style.states else {}
        return style.whole(settings, _listed(metadata, style), weights)

    return document


def _places(slot: Slot, style: Style) -> list[tuple[str, str, tuple[int, ...]]]:
    """(slot's name, path, shape) of the first form of a row that the style has names for."""
    for number, form in enumerate(slot.row.forms):
        if all(pattern in style.paths for pattern in form.patterns):
            names = slot.names(number)
            paths = type(form)(tuple(style.paths[p] for p in form.patterns)).names(slot.dims)
            shapes = [tensor.shape for tensor in slot.shadows(number)]
            return list(zip(names, paths, shapes, strict=True))
    raise Unsupported(f"a model with {slot.gguf[0]} can't be written in the layout {style.name}; use --layout named")


def _put(tree: Any, path: list[str], value: Any) -> None:
    """Put a value at a path of objects and lists; lists are filled in order."""
    for k, step in enumerate(path):
        last = k == len(path) - 1
        new = value if last else ([] if path[k + 1].isdigit() else {})
        if isinstance(tree, list):
            if int(step) == len(tree):
                tree.append(new)
            tree = tree[int(step)]
        else:
            if last or step not in tree:
                tree[step] = new
            tree = tree[step]


def _stated(metadata: Mapping[str, Any], style: Style) -> dict[str, Any]:
    """The settings that its readers would take otherwise."""
    arch = metadata["general.architecture"]
    activation = metadata.get(f"{arch}.hidden_activation", "gelu_tanh" if arch == "gpt2" else "relu")
    out: dict[str, Any] = {}
    if activation not in (style.activation, "silu"):
        out["activation"] = activation
    for key, name in (("layer_norm_epsilon", "layer_norm_eps"), ("layer_norm_rms_epsilon", "rms_norm_eps")):
        value = metadata.get(f"{arch}.attention.{key}")
        if value is not None and not math.isclose(float(value), 1e-5, rel_tol=1e-6):
            out[name] = float(str(value))
    positions = metadata.get(f"{arch}.position_embedding", "learned")
    if positions == "rope":
        out["rope_theta"] = float(metadata.get(f"{arch}.rope.freq_base", 10000.0))
        out["rope_interleaved"] = bool(metadata.get(f"{arch}.rope.interleaved", False))
    elif positions != "learned":
        out["position_embedding"] = "sinusoidal" if positions.startswith("sinusoidal") else positions
    return out


def _listed(metadata: Mapping[str, Any], style: Style) -> list[str] | None:
    """The vocabulary as the style lists it."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    if metadata.get("tokenizer.ggml.model") != style.kind:
        own = style.kind.removesuffix("s") if style.kind == "words" else style.kind
        raise Unsupported(
            f"the layout {style.name} lists {style.kind}, and this model's vocabulary is of another kind; use --layout "
            f"named, or train with --tokenizer {own}"
        )
    listed = list(tokens)
    return listed[:-1] if style.ends and len(listed[-1]) > 1 else listed


def by_path(rows: Sequence[Row]) -> dict[str, str]:
    """The paths of a table whose rows have a document's own."""
    patterns = [pattern for row in rows for form in row.forms[:1] for pattern in form.patterns]
    return {pattern: pattern.replace(".", "/").replace("[{i}]", "/{i}") for pattern in patterns}


def _without(characters: list[str] | None, key: str) -> dict[str, Any]:
    return {} if characters is None else {key: characters}


_SIZES = {
    "vocab_size": "n_vocab",
    "n_embd": "n_embd",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "head_dim": "head_dim",
    "block_size": "n_ctx",
}

MICROGPT_NAMES = Style(
    "microgpt",
    {
        "token_embd.weight": "wte",
        "position_embd.weight": "wpe",
        "output.weight": "lm_head",
        "output_norm.weight": "rms_final",
        _BLOCK + "attn_norm.weight": "layer{i}.rms_1",
        **{f"{_BLOCK}attn_{x}.weight": f"layer{{i}}.attn_w{x}" for x in "qkv"},
        _BLOCK + "attn_output.weight": "layer{i}.attn_wo",
        _BLOCK + "ffn_norm.weight": "layer{i}.rms_2",
        _BLOCK + "ffn_gate.weight": "layer{i}.mlp_gate",
        _BLOCK + "ffn_up.weight": "layer{i}.mlp_fc1",
        _BLOCK + "ffn_down.weight": "layer{i}.mlp_fc2",
    },
    _SIZES,
    lambda settings, characters, weights: {
        "metadata": {
            **_without(characters, "uchars"),
            **settings,
            **({"BOS": len(characters)} if characters is not None and len(characters) < settings["vocab_size"] else {}),
        },
        "weights": weights,
    },
    activation="relu",
    ends=True,
)

_TORCH = {
    "output_norm.weight": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}
NANOGPT = Style(
    "nanogpt",
    {
        "token_embd.weight": "transformer.wte.weight",
        "position_embd.weight": "transformer.wpe.weight",
        **{name: path if path.startswith("lm_head") else "transformer." + path for name, path in _TORCH.items()},
        **{
            f"{_BLOCK}{ours}.{part}": f"transformer.h.{{i}}.{theirs}.{part}"
            for part in ("weight", "bias")
            for ours, theirs in (
                ("attn_norm", "ln_1"),
                ("attn_qkv", "attn.c_attn"),
                ("attn_output", "attn.c_proj"),
                ("ffn_norm", "ln_2"),
                ("ffn_up", "mlp.c_fc"),
                ("ffn_down", "mlp.c_proj"),
            )
        },
    },
    {name: dim for name, dim in _SIZES.items() if name != "head_dim"},
    lambda settings, characters, weights: {
        "model_args": settings,
        **_without(characters, "chars"),
        "state_dict": weights,
    },
)
LECTURE = Style(
    "lecture",
    {
        "token_embd.weight": "token_embedding_table.weight",
        "position_embd.weight": "position_embedding_table.weight",
        **_TORCH,
        **{
            f"{_BLOCK}attn_{x[0]}.{{q}}.weight": f"blocks.{{i}}.sa.heads.{{q}}.{x}.weight"
            for x in ("query", "key", "value")
        },
        **{
            f"{_BLOCK}{ours}.{part}": f"blocks.{{i}}.{theirs}.{part}"
            for part in ("weight", "bias")
            for ours, theirs in (
                ("attn_norm", "ln1"),
                ("attn_output", "sa.proj"),
                ("ffn_norm", "ln2"),
                ("ffn_up", "ffwd.net.0"),
                ("ffn_down", "ffwd.net.2"),
            )
        },
    },
    {name: dim for name, dim in _SIZES.items() if name != "head_dim"},
    lambda settings, characters, weights: {"config": settings, **_without(characters, "chars"), "state_dict": weights},
    activation="relu",
)


def _ndarray(name: str, shape: tuple[int, ...]) -> Any:
    """An array as Rust's ndarray serialises itself."""
    return {"v": 1, "dim": list(shape), "data": Place(name, (math.prod(shape),))}


NDARRAY = Style(
    "ndarray",
    {
        "token_embd.weight": "tok_emb",
        "position_embd.weight": "pos_emb",
        _BLOCK + "attn_norm.weight": "blocks/{i}/ln1_g",
        _BLOCK + "attn_norm.bias": "blocks/{i}/ln1_b",
        _BLOCK + "attn_qkv.weight" + TURNED: "blocks/{i}/w_qkv",
        _BLOCK + "attn_qkv.bias": "blocks/{i}/b_qkv",
        _BLOCK + "attn_output.weight" + TURNED: "blocks/{i}/w_o",
        _BLOCK + "attn_output.bias": "blocks/{i}/b_o",
        _BLOCK + "ffn_norm.weight": "blocks/{i}/ln2_g",
        _BLOCK + "ffn_norm.bias": "blocks/{i}/ln2_b",
        _BLOCK + "ffn_up.weight" + TURNED: "blocks/{i}/w_1",
        _BLOCK + "ffn_up.bias": "blocks/{i}/b_1",
        _BLOCK + "ffn_down.weight" + TURNED: "blocks/{i}/w_2",
        _BLOCK + "ffn_down.bias": "blocks/{i}/b_2",
        "output_norm.weight": "lnf_g",
        "output_norm.bias": "lnf_b",
        "output.weight" + TURNED: "head",
        "output.bias": "head_b",
    },
    {"vocab": "n_vocab", "context": "n_ctx", "dim": "n_embd", "heads": "n_head", "layers": "n_layer"},
    lambda settings, characters, weights: {
        **({} if characters is None else {"tokenizer": {"chars": characters}}),
        "model": {"config": settings, **weights},
    },
    activation="relu",
    array=_ndarray,
)
PLAYGROUND = Style(
    "playground",
    {
        "token_embd.weight": "wte",
        "position_embd.weight": "wpe",
        **{f"{_BLOCK}attn_{x}.weight{TURNED}": f"b{{i}}_w{x}" for x in "qkv"},
        **{f"{_BLOCK}attn_{x}.bias": f"b{{i}}_b{x}" for x in "qkv"},
        _BLOCK + "attn_output.weight" + TURNED: "b{i}_wo",
        _BLOCK + "attn_output.bias": "b{i}_bo",
        _BLOCK + "attn_norm.weight": "b{i}_ln1g",
        _BLOCK + "attn_norm.bias": "b{i}_ln1b",
        _BLOCK + "ffn_up.weight" + TURNED: "b{i}_w1",
        _BLOCK + "ffn_up.bias": "b{i}_b1",
        _BLOCK + "ffn_down.weight" + TURNED: "b{i}_w2",
        _BLOCK + "ffn_down.bias": "b{i}_b2",
        _BLOCK + "ffn_norm.weight": "b{i}_ln2g",
        _BLOCK + "ffn_norm.bias": "b{i}_ln2b",
        "output_norm.weight": "lng",
        "output_norm.bias": "lnb",
        "output.weight" + TURNED: "wh",
        "output.bias": "bh",
    },
    {"V": "n_vocab", "T": "n_ctx", "L": "n_layer", "H": "n_head", "E": "n_embd"},
    lambda settings, characters, weights: {"cfg": settings, **_without(characters, "chars"), "params": weights},
)
