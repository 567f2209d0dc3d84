"""Transformers made of Keras's layers: embeddings, blocks of attention and an MLP, a head over the vocabulary.

Known are `MultiHeadAttention`, `GroupQueryAttention`, `Attention` (one head, not scaled) and the same made by hand of
`Dense`, `Dot` and a softmax; keras_hub's (keras_nlp's) `TokenAndPositionEmbedding`, `PositionEmbedding`,
`SinePositionEncoding`, `ReversibleEmbedding`, `TransformerDecoder` and `TransformerEncoder`.  Norms stand before the
sublayers, behind their sums, or nowhere.  Sources: keras-team/keras src/layers/attention/, keras-team/keras-hub
src/layers/modeling/, tensorflow/tfjs tfjs-layers/src/layers/nlp/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.layouts.keras_graph import Graph, Node, weight
from llmconv.convert.layouts.moves import Model, Move, Odd
from llmconv.errors import cut, shown
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.foreign.keras.keras_layers import Layer

__all__ = ["ARCH", "described"]

ARCH = "keras-gpt"

_TABLES = {"Embedding": "input_dim", "ReversibleEmbedding": "input_dim", "TokenAndPositionEmbedding": "vocabulary_size"}
"""Layers that make vectors of tokens -> the setting that counts these."""
_REVERSED = ("ReversibleEmbedding", "ReverseEmbedding")
_HEADS = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
_BLOCKS = ("TransformerDecoder", "TransformerEncoder")
_ATTENTIONS = (*_HEADS, *_BLOCKS, "Attention", "AdditiveAttention", "Dot")
_NORMS = ("LayerNormalization", "RMSNormalization")
_SUMS = ("Add", "TFOpLambda:__operators__.add", "TFOpLambda:math.add")
_PRODUCTS = ("Multiply", "TFOpLambda:math.multiply", "TFOpLambda:__operators__.mul")
_SOFTMAX = ("Softmax", "Activation")
_RELU = {"ReLU": "relu", "Softmax": "softmax"}
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_approximate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "identity",
}
_KERAS = ("keras", "tf_keras", "tensorflow.python.keras", "builtins")
"""Modules whose classes are known by their names."""


def described(graph: Graph, checkpoint: Checkpoint) -> Model | None:
    """The model that a graph computes; None for one that is no language model."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    head = _behind(graph, graph.output)

    def rows(name: str) -> int:
        return shapes[name][0] if shapes.get(name) else 0

    tables = [k for k, node in enumerate(graph.nodes) if _is_table(graph, node)]
    vocab = _vocabulary(graph.nodes[head], graph)
    words = [k for k in tables if graph.nodes[k].layer.config.get(_TABLES[graph.nodes[k].kind]) == vocab]
    strangers = [node for node in graph.nodes if _is_foreign(node) and any(rows(n) == vocab for n in _own(node))]
    if vocab is None or not (words or strangers):
        return None
    try:
        if not words:
            raise Odd(_unknown(strangers[0]))
        reader = _Reader(graph, shapes, head, _words(graph, words))
        return reader.model()
    except Odd as error:
        foreign = next((node for node in graph.nodes if _is_foreign(node)), None)
        return Model(lacks=str(error) if foreign is None else _unknown(foreign))


def _own(node: Node) -> Iterable[str]:
    return node.layer.weights.values()


def _is_foreign(node: Node) -> bool:
    """Whether a layer is the program's own, which the file does not hold."""
    module = node.layer.module
    return node.kind == "Lambda" or bool(module and not module.startswith(_KERAS))


def _unknown(node: Node) -> str:
    return f"{node.layer.said} is the program's own, and the file does not hold what it computes"


def _is_table(graph: Graph, node: Node) -> bool:
    return node.kind in _TABLES and len(node.inputs) == 1 and graph.nodes[node.inputs[0]].kind == "InputLayer"


def _words(graph: Graph, tables: list[int]) -> int:
    """The table of tokens, among several the one that is not called a table of positions."""
    return next((k for k in tables if "pos" not in graph.nodes[k].layer.name.lower()), tables[0])


def _behind(graph: Graph, place: int) -> int:
    """The layer over the vocabulary, behind which only a softmax stands."""
    node = graph.nodes[place]
    while node.kind in _SOFTMAX and node.layer.config.get("activation", "softmax") in ("softmax", "linear"):
        place = node.inputs[0]
        node = graph.nodes[place]
    return place


def _vocabulary(head: Node, graph: Graph) -> int | None:
    """How many tokens a head tells apart."""
    if head.kind == "Dense":
        return int(head.layer.config["units"])
    if head.kind in _REVERSED and not _is_table(graph, head):
        size = head.layer.config.get("input_dim")
        tables = [n.layer.config["input_dim"] for n in graph.nodes if n.kind in _TABLES]
        return int(size if size is not None else tables[0])
    return None


def _operation(node: Node) -> str:
    """The class of a layer; of an operation of Keras 2 also its name."""
    return f"{node.kind}:{node.layer.config.get('function')}" if node.kind == "TFOpLambda" else node.kind


@dataclass
class _Block:
    """What the blocks so far have: the norms' places of the last sublayer."""

    sublayers: list[str] = field(default_factory=list)
    before: bool = False
    after: bool = False

    @property
    def layer(self) -> int:
        return (len(self.sublayers) - 1) // 2


class _Reader:
    """Follows the stream through a graph, from the table of tokens to the head, and notes what it meets."""

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]], head: int, words: int):
        self.graph, self.shapes, self.head, self.words = graph, shapes, head, words
        self.out, self.block = Model(arch=ARCH), _Block()
        self.seen: set[int] = set()

    def model(self) -> Model:
        table = self.graph.nodes[self.words].layer
        self.vocab = int(table.config[_TABLES[table.kind]])
        self.dim = int(table.config.get("output_dim") or table.config.get("embedding_dim") or 0)
        self._state("vocab_size", np.uint32(self.vocab), table)
        self._state("embedding_length", np.uint32(self.dim), table)
        self._state("position_embedding", "none", table)
        place = self._embedding(self.words)
        while place != self.graph.nodes[self.head].inputs[0]:
            place = self._step(place)
        self._head()
        if not self.block.sublayers or len(self.block.sublayers) % 2:
            raise Odd("its blocks are not attention and an MLP by turns")
        self.out.keys["block_count"] = np.uint32(self.block.layer + 1)
        if table.config.get("mask_zero"):
            self.out.notes.append(
                "token 0 is padding there, which attention leaves out; here it is a token as any other"
            )
        return self.out

    # What is noted

    def _state(self, key: str, value: Any, layer: Layer) -> None:
        """A key; all that state it must agree."""
        if self.out.keys.setdefault(key, value) != value:
            raise Odd(f"{layer.said} has {key.rpartition('.')[2]} {value}, another layer {self.out.keys[key]}")

    def _take(self, layer: Layer, leaf: str, to: str, shape: tuple[int, ...], how: str = "", part: str = "") -> None:
        """A weight, in the shape that the file must have it in."""
        name = weight(layer, leaf, part)
        if self.shapes[name] != shape:
            raise Odd(f"{cut(name)} has shape {shown(self.shapes[name])}, expected {shown(shape)} by its layer")
        self.out.moves.append(Move(name, (to,), how))

    def _dense(self, layer: Layer, to: str, n_in: int, n_out: int, part: str = "") -> None:
        """A `Dense` layer, which lies [in][out]."""
        self._take(layer, "kernel", f"{to}.weight", (n_in, n_out), "t", part)
        if layer.config.get("use_bias", True):
            self._take(layer, "bias", f"{to}.bias", (n_out,), "", part)

    def _norm(self, layer: Layer, to: str, part: str = "") -> None:
        """A norm over the last dimension."""
        config = layer.config
        rms = layer.kind == "RMSNormalization"
        axis = config.get("axis", -1)
        if (axis if isinstance(axis, int) else axis[0] if len(axis) == 1 else 0) not in (-1, 2):
            raise Odd(f"{layer.said} norms along the axis {cut(axis)}, expected the last")
        if not part and (config.get("rms_scaling") or not (config.get("scale", True) and config.get("center", True))):
            raise Odd(f"{layer.said} is scaled otherwise than by gamma and beta")
        epsilon = config.get("layer_norm_epsilon" if part else "epsilon", 1e-6 if rms else 1e-3)
        kind = "attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon"
        if {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"} - {kind} & set(self.out.keys):
            raise Odd(f"{layer.said} is of another kind than the others")
        self._state(kind, np.float64(epsilon), layer)
        self._take(layer, "scale" if rms else "gamma", f"{to}.weight", (self.dim,), "", part)
        if not rms:
            self._take(layer, "beta", f"{to}.bias", (self.dim,), "", part)

    def _activation(self, layer: Layer, stated: Any) -> None:
        name = stated
        if isinstance(stated, dict):
            name = stated.get("config") if isinstance(stated.get("config"), str) else stated.get("class_name")
        if name not in _ACTIVATIONS:
            raise Odd(f"{layer.said} has the activation {cut(name)}, which is not computed here")
        self._state("hidden_activation", _ACTIVATIONS[name], layer)

    # The embedding

    def _embedding(self, place: int) -> int:
        """Tokens and positions; where the stream begins behind them."""
        layer = self.graph.nodes[place].layer
        if layer.kind == "TokenAndPositionEmbedding":
            self._take(layer, "embeddings", "token_embd.weight", (self.vocab, self.dim), "", "token_embedding")
            self._positions(layer, "position_embedding")
            return place
        self._take(layer, "embeddings", "token_embd.weight", (self.vocab, self.dim))
        if len(users := self.graph.users(place)) == 1 and (scale := self._scale(users[0])) is not None:
            self._state("embedding_scale", np.float64(scale), self.graph.nodes[users[0]].layer)
            place = users[0]
        users = [k for k in self.graph.users(place) if k != self.head]
        added = next((k for k in users if _operation(self.graph.nodes[k]) in _SUMS), None)
        if added is None:
            return place
        other = [k for k in self.graph.nodes[added].inputs if k != place]
        if len(other) != 1 or not self._is_positions(other[0], place):
            return place
        node = self.graph.nodes[other[0]]
        if node.kind == "SinePositionEncoding":
            if node.layer.config.get("max_wavelength", 10000) != 10000:
                raise Odd(f"{node.layer.said} has waves of another length than 10000")
            self.out.keys["position_embedding"] = "sinusoidal"
        else:
            self._positions(node.layer, "")
        return added

    def _is_positions(self, place: int, stream: int) -> bool:
        """Whether a node gives the positions of a stream: of its own kind, or a table of another input's numbers."""
        node = self.graph.nodes[place]
        if node.kind in ("PositionEmbedding", "SinePositionEncoding"):
            return node.inputs == (stream,)
        return _is_table(self.graph, node) and node.inputs != self.graph.nodes[self.words].inputs

    def _positions(self, layer: Layer, part: str) -> None:
        rows = layer.config.get("sequence_length", layer.config.get("input_dim"))
        leaf = "embeddings"
        if layer.weight(leaf, part) is None and not part:
            leaf = "kernel"
        self._take(layer, leaf, "position_embd.weight", (int(rows), self.dim), "", part)
        self.out.keys |= {"position_embedding": "learned", "context_length": np.uint32(int(rows))}

    def _scale(self, place: int) -> float | None:
        """What a node multiplies by; None for another."""
        node = self.graph.nodes[place]
        if node.kind == "Rescaling" and not node.layer.config.get("offset"):
            return float(node.layer.config["scale"])
        if _operation(node) in _PRODUCTS and len(node.inputs) == 1 == len(node.numbers):
            return node.numbers[0] if math.isfinite(node.numbers[0]) else None
        return None

    # Blocks

    def _step(self, place: int) -> int:
        """One step along the stream: a whole block, a sublayer and its sum, or a norm."""
        nodes, users = self.graph.nodes, self.graph.users(place)
        if len(users) == 1:
            node = nodes[users[0]]
            if node.kind in _BLOCKS:
                self._whole(node)
                return users[0]
            if node.kind in _NORMS:
                self._lone_norm(users[0])
                return users[0]
        sums = [k for k in users if _operation(nodes[k]) in _SUMS]
        if len(sums) != 1:
            raise Odd(self._lost(users))
        ends = [k for k in nodes[sums[0]].inputs if k != place]
        if len(ends) != 1 or nodes[sums[0]].numbers:
            raise Odd(f"{nodes[sums[0]].layer.said} adds something else than a sublayer to what goes into it")
        starts = [k for k in users if k != sums[0]]
        normed = len(starts) == 1 and nodes[starts[0]].kind in _NORMS
        begin = starts[0] if normed else place
        attends = self._attends(ends[0])
        self.block.sublayers.append("attention" if attends else "mlp")
        if self.block.sublayers[-1] != ("attention", "mlp")[(len(self.block.sublayers) - 1) % 2]:
            raise Odd("its blocks are not attention and an MLP by turns")
        self.block.before, self.block.after = normed, False
        if normed:
            self._norm(nodes[begin].layer, f"blk.{self.block.layer}.{'attn' if attends else 'ffn'}_norm")
        self._attention(ends[0], begin) if attends else self._mlp(ends[0], begin)
        return sums[0]

    def _lost(self, users: list[int]) -> str:
        if not users:
            return "what its embedding gives does not reach the head"
        return f"{self.graph.nodes[users[0]].layer.said} is not computed here at its place"

    def _lone_norm(self, place: int) -> None:
        """A norm of the stream itself: of the embedding, behind a sublayer's sum, or before the head."""
        layer, block = self.graph.nodes[place].layer, self.block
        if not block.sublayers:
            to = "token_embd_norm"
        elif self.graph.nodes[self.head].inputs[0] == place and (block.before or block.after):
            to = "output_norm"
        elif block.before or block.after:
            raise Odd(f"{layer.said} is a second norm of one sublayer")
        else:
            to = f"blk.{block.layer}.{'attn_output' if block.sublayers[-1] == 'attention' else 'layer_output'}_norm"
        block.after = True
        self._norm(layer, to)

    def _whole(self, node: Node) -> None:
        """A block of keras_hub's."""
        layer, config = node.layer, node.layer.config
        if len(node.inputs) != 1 or any("mask" in key and key != "use_causal_mask" for key in node.call):
            raise Odd(f"{layer.said} takes more than what the block before it gives")
        before = bool(config.get("normalize_first", False))
        self.block.sublayers += ["attention", "mlp"]
        self.block.before, self.block.after = before, not before
        at = f"blk.{self.block.layer}."
        heads = int(config["num_heads"])
        causal = bool(node.call.get("use_causal_mask", layer.kind == "TransformerDecoder"))
        self._heads(layer, self.block.layer, (heads, heads, self.dim // heads, self.dim // heads), causal,
                    r"_?self_attention(?:_layer)?/")  # fmt: skip
        self._norm(layer, at + ("attn_norm" if before else "attn_output_norm"), r"_?self_attention_layer_?norm")
        self._activation(layer, config.get("activation", "relu"))
        size = int(config["intermediate_dim"])
        self._dense(layer, at + "ffn_up", self.dim, size, "_?feedforward_intermediate_dense")
        self._dense(layer, at + "ffn_down", size, self.dim, "_?feedforward_output_dense")
        self._norm(layer, at + ("ffn_norm" if before else "layer_output_norm"), "_?feedforward_layer_?norm")
        self._state("feed_forward_length", np.uint32(size), layer)

    # Attention

    def _attends(self, place: int) -> bool:
        node = self.graph.nodes[place]
        if node.kind == "Dense" and len(node.inputs) == 1:
            node = self.graph.nodes[node.inputs[0]]
        return node.kind in _ATTENTIONS

    def _attention(self, place: int, begin: int) -> None:
        node = self.graph.nodes[place]
        if node.kind in _HEADS:
            if set(node.inputs) != {begin} or any("mask" in key and key != "use_causal_mask" for key in node.call):
                raise Odd(f"{node.layer.said} attends to something else than its own text")
            config = node.layer.config
            if config.get("use_gate") or config.get("sliding_window") or config.get("flash_attention_gate"):
                raise Odd(f"{node.layer.said} has a gate or a window")
            if node.kind == "MultiHeadAttention":
                heads, size = int(config["num_heads"]), int(config["key_dim"])
                sizes = (heads, heads, size, int(config.get("value_dim") or size))
            else:
                size = int(config["head_dim"])
                sizes = (int(config["num_query_heads"]), int(config["num_key_value_heads"]), size, size)
            self._heads(node.layer, self.block.layer, sizes, bool(node.call.get("use_causal_mask")), "")
            return
        out = None
        if node.kind == "Dense":
            out, node = node, self.graph.nodes[node.inputs[0]]
        self._by_hand(node, out, begin)

    def _heads(self, layer: Layer, i: int, sizes: tuple[int, int, int, int], causal: bool, inside: str) -> None:
        """Attention of several heads in one layer.   sizes: heads, heads of keys, their size, that of values."""
        n_head, n_kv, size, value = sizes
        at, bias = f"blk.{i}.attn_", layer.config.get("use_bias", True)
        for x, name, heads, own in (
            ("q", "query", n_head, size), ("k", "key", n_kv, size), ("v", "value", n_kv, value)
        ):  # fmt: skip
            part = f"{inside}_?{name}(?:_dense)?"
            self._take(layer, "kernel", f"{at}{x}.weight", (self.dim, heads, own), f"l{heads}t", part)
            if bias:
                self._take(layer, "bias", f"{at}{x}.bias", (heads, own), f"l{heads}", part)
        part = f"{inside}_?(?:attention_output|output_dense)"
        self._take(layer, "kernel", f"{at}output.weight", (n_head, value, self.dim), f"f{n_head}t", part)
        if bias:
            self._take(layer, "bias", f"{at}output.bias", (self.dim,), "", part)
        self._sizes(layer, sizes, causal, 1 / math.sqrt(size))

    def _sizes(self, layer: Layer, sizes: tuple[int, int, int, int], causal: bool, scale: float) -> None:
        names = ("head_count", "head_count_kv", "key_length", "value_length")
        if sizes[2] != sizes[3]:
            raise Odd(f"{layer.said} has values of {sizes[3]} numbers and keys of {sizes[2]}")
        for name, size in zip(names, sizes, strict=True):
            self._state(f"attention.{name}", np.uint32(size), layer)
        self._state("attention.causal", causal, layer)
        self._state("attention.scale", np.float64(scale), layer)

    def _by_hand(self, node: Node, out: Node | None, begin: int) -> None:
        """One head: queries, keys and values of `Dense` layers, in `Attention` or in two products."""
        causal, scale = False, 1.0
        if node.kind == "Attention":
            config = node.layer.config
            if config.get("use_scale") or config.get("score_mode", "dot") != "dot" or "mask" in node.call:
                raise Odd(f"{node.layer.said} has scores of its own")
            causal = bool(node.call.get("use_causal_mask", config.get("causal", False)))
            query, value, *key = node.inputs
            places = (query, key[0] if key else value, value)
        elif node.kind == "Dot":
            places, scale = self._dots(node)
        else:
            raise Odd(f"{node.layer.said} is not computed here")
        sizes = []
        for x, place in zip("qkv", places, strict=True):
            dense = self.graph.nodes[place]
            if dense.kind != "Dense" or dense.inputs != (begin,) or not self._is_linear(dense):
                raise Odd(f"{dense.layer.said} is no linear layer for attention")
            sizes.append(int(dense.layer.config["units"]))
            self._dense(dense.layer, f"blk.{self.block.layer}.attn_{x}", self.dim, sizes[-1])
        if sizes[0] != sizes[1]:
            raise Odd(f"{node.layer.said} has queries of {sizes[0]} numbers and keys of {sizes[1]}")
        if out is not None:
            if not self._is_linear(out):
                raise Odd(f"{out.layer.said} has an activation behind attention")
            self._dense(out.layer, f"blk.{self.block.layer}.attn_output", sizes[2], self.dim)
        elif sizes[2] != self.dim:
            raise Odd(f"{node.layer.said} gives {sizes[2]} numbers, expected {self.dim}")
        self._sizes(node.layer, (1, 1, sizes[0], sizes[2]), causal, scale)

    def _dots(self, node: Node) -> tuple[tuple[int, int, int], float]:
        """Softmax of q·k, times values, as two `Dot` layers: (queries, keys, values), what the scores are scaled by."""
        nodes = self.graph.nodes

        def axes(dot: Node) -> list[int]:
            stated = dot.layer.config.get("axes")
            both = list(stated) if isinstance(stated, list) else [stated, stated]
            return [int(n) % 3 for n in both]  # type: ignore[arg-type]

        weights, value = node.inputs
        soft = nodes[weights]
        if axes(node) != [2, 1] or soft.kind not in _SOFTMAX or node.layer.config.get("normalize"):
            raise Odd(f"{node.layer.said} is no product of chances and values")
        if soft.layer.config.get("activation", "softmax") != "softmax" or soft.layer.config.get("axis", -1) not in (
            -1,
            2,
        ):
            raise Odd(f"{soft.layer.said} is no softmax over the keys")
        place, scale = soft.inputs[0], self._scale(soft.inputs[0])
        if scale is not None:
            place = nodes[place].inputs[0]
        scores = nodes[place]
        if scores.kind != "Dot" or axes(scores) != [2, 2] or scores.layer.config.get("normalize"):
            raise Odd(f"{scores.layer.said} stands where queries and keys are multiplied")
        query, key = scores.inputs
        return (query, key, value), 1.0 if scale is None else scale

    # The MLP and the head

    def _is_linear(self, node: Node) -> bool:
        return node.layer.config.get("activation") in ("linear", None)

    def _mlp(self, place: int, begin: int) -> None:
        nodes, at = self.graph.nodes, f"blk.{self.block.layer}.ffn_"
        down = nodes[place]
        if down.kind != "Dense" or not self._is_linear(down):
            raise Odd(f"{down.layer.said} is not computed here as the end of an MLP")
        inner = down.inputs[0]
        if _operation(nodes[inner]) in _PRODUCTS and len(nodes[inner].inputs) == 2:
            ends = [self._activated(k) for k in nodes[inner].inputs]
            ends.sort(key=lambda end: end[1] == "linear")
            if ends[1][1] != "linear":
                raise Odd(f"{nodes[inner].layer.said} multiplies two activations")
            (gate, activation), (up, _) = ends
            parts = [("gate", gate), ("up", up)]
        else:
            up, activation = self._activated(inner)
            parts = [("up", up)]
        size = 0
        for name, dense in parts:
            if dense.kind != "Dense" or dense.inputs != (begin,):
                raise Odd(f"{dense.layer.said} is not computed here at its place in an MLP")
            size = int(dense.layer.config["units"])
            self._dense(dense.layer, at + name, self.dim, size)
        self._activation(parts[0][1].layer, activation)
        self._dense(down.layer, at + "down", size, self.dim)
        self._state("feed_forward_length", np.uint32(size), down.layer)

    def _activated(self, place: int) -> tuple[Node, Any]:
        """A `Dense` layer and its activation, which may be a layer of its own behind it."""
        node = self.graph.nodes[place]
        if node.kind == "Activation" or (node.kind in _RELU and not node.layer.config.get("max_value")):
            return self.graph.nodes[node.inputs[0]], node.layer.config.get("activation", _RELU.get(node.kind))
        return node, node.layer.config.get("activation") or "linear"

    def _head(self) -> None:
        layer = self.graph.nodes[self.head].layer
        if layer.kind == "Dense":
            if layer.config.get("activation") not in ("linear", "softmax", None):
                raise Odd(f"{layer.said} has the activation {cut(layer.config['activation'])}")
            self._dense(layer, "output", self.dim, self.vocab)
            return
        if layer.config.get("logit_soft_cap"):
            self._state("final_logit_softcapping", np.float64(layer.config["logit_soft_cap"]), layer)
        if layer is not self.graph.nodes[self.words].layer or not layer.config.get("tie_weights", True):
            raise Odd(f"{layer.said} has a head of its own, which is not computed here")
