"""Well-known model shapes by name: what `llmconv size` compares and `llmconv train` starts from.

A preset states hyper-parameters under GGUF's key names (without the architecture's prefix), so that the
architecture tables count and describe it like any checkpoint.  Published parameter counts are held by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmconv.convert.decoders.recurrent import ARCH
from llmconv.errors import UnknownName, UsageError

__all__ = ["ALIASES", "PRESETS", "Preset", "check_heads", "preset"]


@dataclass(frozen=True)
class Preset:
    """A model shape.

    arch: the architecture's GGUF name.
    keys: hyper-parameters by GGUF key, the architecture's prefix left out; `vocab_size` among them.
    tied: whether the head is the embedding.
    note: one line for people.
    flags: further ones that the architecture's table looks up in a config.json.
    tokenizer: the kind that a fresh vocabulary has, where it is not the architecture's.
    lr: the highest learning rate to train it with, by AdamW: GPT-3's paper has those of the GPT-2 and GPT-3 shapes
        (Brown et al. 2020, table 2.1), Llama's papers and TinyLlama's code those of theirs; the small ones come from
        short runs.
    """

    name: str
    arch: str
    keys: Mapping[str, Any]
    tied: bool
    note: str = ""
    lr: float = 1e-3
    flags: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """The hyper-parameters as a GGUF's metadata."""
        return {"general.architecture": self.arch} | {f"{self.arch}.{k}": v for k, v in self.keys.items()}

    @property
    def config(self) -> dict[str, Any]:
        """The flags that the architecture tables look up in a config.json."""
        # Of the legacy models, only those of several heads project what attention gives.
        heads = self.keys.get("attention.head_count", 1)
        return {"tie_word_embeddings": self.tied, "output_projection": heads > 1} | dict(self.flags)


def _keys(
    dim: int, layers: int, heads: int, ffn: int, *, ctx: int = 1024, vocab: int = 50257, kv: int = 0
) -> dict[str, Any]:
    """The sizes by GGUF's keys; kv: heads of keys and values, where they are fewer."""
    keys = {
        "vocab_size": vocab,
        "context_length": ctx,
        "embedding_length": dim,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
    }
    return keys | ({"attention.head_count_kv": kv} if kv else {})


def _gpt2(name: str, dim: int, layers: int, heads: int, *, lr: float = 1e-3, note: str = "", **sizes: int) -> Preset:
    keys = _keys(dim, layers, heads, 4 * dim, **sizes) | {"attention.layer_norm_epsilon": 1e-5}
    return Preset(name, "gpt2", keys, True, note, lr)


def _llama(name: str, keys: dict[str, Any], *, tied: bool = False, lr: float = 3e-4, note: str = "") -> Preset:
    heads = keys["attention.head_count"]
    usual = {
        "attention.head_count_kv": heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": keys["embedding_length"] // heads,
        "rope.freq_base": 10000.0,
    }
    return Preset(name, "llama", usual | keys, tied, note, lr)


def _simple(name: str, keys: dict[str, Any], *, lr: float, note: str) -> Preset:
    return Preset(name, "simple-llm", keys | {"attention.layer_norm_epsilon": 1e-8}, False, note, lr)


def _own(name: str, arch: str, keys: dict[str, Any], *, lr: float, note: str, **flags: Any) -> Preset:
    """A GPT that people write themselves: ReLU, a head of its own."""
    kind = "rms" if arch == "microgpt" else "norm"
    stated = {f"attention.layer_{'norm_rms' if kind == 'rms' else 'norm'}_epsilon": 1e-5, "hidden_activation": "relu"}
    return Preset(name, arch, keys | stated, False, note, lr, flags)


def _recurrent(name: str, cell: str, dim: int, layers: int, *, note: str, width: int = 0, **more: Any) -> Preset:
    """A recurrent character model.   width: of its embedding; 0 for one-hot inputs."""
    sizes = {"vocab_size": 256, "embedding_length": dim, "block_count": layers, "feed_forward_length": width or dim}
    keys = (
        sizes
        | {"recurrent.cell": cell, "recurrent.activation": "tanh"}
        | {f"recurrent.{k}": v for k, v in more.items()}
    )
    kind = "sentences" if width else "characters"
    return Preset(name, ARCH, keys, False, note, 1e-2, {} if width else {"one_hot": True}, kind)


_LLAMA2 = {"ctx": 4096, "vocab": 32000}
_LLAMA3 = {"ctx": 131072, "vocab": 128256, "kv": 8}

_ALL = (
    _simple(
        "simple-36k",
        _keys(32, 2, 1, 32, ctx=512, vocab=400),
        lr=1e-2,
        note="the legacy model: 400 words, no output projection",
    ),
    _simple("simple-1m", _keys(128, 4, 4, 128, ctx=512, vocab=3000), lr=1e-3, note="the legacy shape with four heads"),
    _simple("simple-3m", _keys(256, 3, 4, 256, ctx=512, vocab=4000), lr=5e-4, note="the legacy shape with four heads"),
    _simple(
        "mid-50m", _keys(512, 8, 8, 2048, ctx=512, vocab=30000), lr=3e-4, note="the legacy block at a size worth a GPU"
    ),
    _gpt2("simple-36k-causal", 32, 2, 1, ctx=64, vocab=400, lr=1e-2, note="simple-36k as a causal, pre-norm GPT-2"),
    _gpt2("simple-1m-causal", 128, 4, 4, ctx=256, vocab=3000, lr=1e-3, note="simple-1m as a causal, pre-norm GPT-2"),
    _gpt2("simple-3m-causal", 256, 3, 4, ctx=256, vocab=4000, lr=1e-3, note="simple-3m as a causal, pre-norm GPT-2"),
    _own("microgpt", "microgpt", _keys(16, 1, 4, 64, ctx=16, vocab=256), lr=1e-2, note="Karpathy's microgpt, as it is"),
    _own(
        "microgpt-100k",
        "microgpt",
        _keys(64, 2, 4, 256, ctx=64, vocab=256),
        lr=3e-3,
        note="a microgpt that a web page still runs",
    ),
    _own(
        "lecture",
        "small-gpt",
        _keys(384, 6, 6, 1536, ctx=256, vocab=256),
        lr=3e-4,
        note="the GPT of Karpathy's lecture",
        bias=True,
        head_bias=True,
    ),
    _own(
        "desde-cero",
        "transformer-desde-cero",
        _keys(64, 1, 4, 256, ctx=64, vocab=1000),
        lr=3e-3,
        note="the MiniGPT of transformer_desde_cero: one block",
        bias=True,
        head_bias=True,
    ),
    _own(
        "forge",
        "forge",
        _keys(32, 1, 1, 64, ctx=64, vocab=256),
        lr=3e-3,
        note="Forge's character transformer: one head, no norms",
        bias=True,
        attention_bias=True,
        head_bias=True,
    ),
    _own(
        "blocks",
        "blocks",
        _keys(64, 2, 4, 256, ctx=64, vocab=1000),
        lr=3e-3,
        note="a JavaScript GPT of {projection, blocks, embedding}",
        bias=True,
        attention_bias=True,
        head_bias=True,
    ),
    _recurrent("char-rnn", "rnn", 100, 1, note="Karpathy's min-char-rnn: one layer, one-hot inputs"),
    _recurrent("char-lstm", "lstm", 20, 2, width=5, note="recurrentjs's demonstration; also brain.js's LSTM"),
    _recurrent("char-gru", "gru", 20, 1, width=20, reset_after=False, note="brain.js's GRU"),
    _recurrent("char-relu-rnn", "rnn", 20, 1, width=20, activation="relu", note="recurrentjs's and brain.js's RNN"),
    _gpt2("small-10m", 384, 6, 6, ctx=256, vocab=256, note="nanoGPT's character-level size"),
    _gpt2("mid-50m-causal", 512, 8, 8, ctx=512, vocab=30000, lr=6e-4, note="mid-50m as a causal, pre-norm GPT-2"),
    _gpt2("gpt2-small", 768, 12, 12, lr=6e-4, note="124M; the paper's 117M is the same model, counted wrongly"),
    _gpt2("gpt2-medium", 1024, 24, 16, lr=3e-4, note="355M"),
    _gpt2("gpt2-large", 1280, 36, 20, lr=2.5e-4, note="774M"),
    _gpt2("gpt2-xl", 1600, 48, 25, lr=2e-4, note="1.5B"),
    _gpt2("gpt3-small", 768, 12, 12, ctx=2048, lr=6e-4, note="GPT-3 Small, 125M"),
    _gpt2("gpt3-175b", 12288, 96, 96, ctx=2048, lr=6e-5, note="GPT-3; GPT-3.5, never published, is taken as this"),
    _llama("llama-15m", _keys(288, 6, 6, 768, ctx=256, vocab=32000), tied=True, lr=5e-4, note="TinyStories 15M"),
    _llama("llama-110m", _keys(768, 12, 12, 2048, ctx=1024, vocab=32000), tied=True, lr=5e-4, note="TinyStories 110M"),
    _llama("llama-1b", _keys(2048, 22, 32, 5632, kv=4, ctx=2048, vocab=32000), lr=4e-4, note="TinyLlama's shape, 1.1B"),
    _llama("llama2-7b", _keys(4096, 32, 32, 11008, **_LLAMA2), lr=3e-4, note="Llama 2 7B"),
    _llama("llama2-13b", _keys(5120, 40, 40, 13824, **_LLAMA2), lr=3e-4, note="Llama 2 13B"),
    _llama("llama3.1-8b", _keys(4096, 32, 32, 14336, **_LLAMA3) | {"rope.freq_base": 5e5}, note="Llama 3.1 8B"),
    _llama("llama3.1-70b", _keys(8192, 80, 64, 28672, **_LLAMA3) | {"rope.freq_base": 5e5}, lr=1.5e-4, note="70B"),
)

PRESETS: dict[str, Preset] = {p.name: p for p in _ALL}
ALIASES = {"simple-llm": "simple-36k", "gpt2": "gpt2-small", "gpt3": "gpt3-175b", "gpt-3.5": "gpt3-175b"}
"""Other names people use for a preset."""


def check_heads(dim: int, heads: int, kv_heads: int) -> None:
    """`UsageError` unless a width can be cut into that many heads, and those shared by that many of keys and values."""
    if dim % heads:
        raise UsageError(f"width {dim} is no multiple of {heads} heads; change --dim or --heads")
    if heads % kv_heads:
        raise UsageError(f"{heads} heads are no multiple of {kv_heads} key/value heads; change one of them")


def preset(name: str) -> Preset:
    """The preset of that name, whatever its case; `UsageError` names the nearest ones otherwise."""
    key = name.lower()
    found = PRESETS.get(ALIASES.get(key, key))
    if found is None:
        raise UnknownName("preset", name, [*PRESETS, *ALIASES])
    return found
