"""The talker of Qwen3-TTS: a Qwen 3 that reads words and codes of sound, and says codes.

Words have vectors of their own width, which an MLP makes the model's; a GGUF has what comes out.  Codes stand behind
the words, in the table as in the vocabulary; the head says codes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN3
from llmconv.convert.archs.rope import rope_sections, sections_back
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.ops import Dims, ThroughMlp
from llmconv.convert.vocab.model import TokenType, Vocab
from llmconv.errors import BadFile

_mlp = "talker.text_projection.linear_fc"

_EMBEDDED = (
    "talker.model.text_embedding.weight",
    *(f"{_mlp}{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
    "{p}codec_embedding.weight",
)


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    assert QWEN3.finish is not None
    QWEN3.finish(own, config, dims)
    rope_sections(own, config, dims)
    own["vocab_size"] = np.uint32(int(config["vocab_size"]) + int(config["codec_vocab_size"]))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert QWEN3.rebuild is not None
    QWEN3.rebuild(config, own, dims)
    sections_back(config, own)
    outer = {name: config.pop(name) for name in ("architectures", "model_type")}
    config["text_vocab_size"], config["vocab_size"] = dims["n_vocab"] - dims["n_code"], dims["n_code"]
    config["text_hidden_size"] = dims["d_word"]
    config.pop("codec_vocab_size", None)
    inner = {**config, "model_type": "qwen3_tts_talker"}
    config.clear()
    config.update(outer, talker_config=inner)


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """What files of others leave to their tensors; their words come back as wide as `ThroughMlp` wants them."""
    head = tensors.get("output.weight")
    return {
        "codec_vocab_size": np.uint32(head.shape[0] if head is not None and head.shape else 0),
        "word_embedding_length": np.uint32(2 * dims["n_embd"]),
    }


def _named(config: Mapping[str, Any], vocab: Vocab) -> Vocab:
    """The vocabulary with the codes behind its words, named by the settings that speak of them."""
    count, first = int(config["codec_vocab_size"]), len(vocab)
    names = [f"<|codec_{n}|>" for n in range(count)]
    for key, value in config["talker_config"].items():
        name = key.removesuffix("_id")
        if key.endswith("_id") and isinstance(value, Mapping):
            for end, number in value.items():
                _put(names, f"{name}_{end}", number)
        elif key.endswith("_id") and isinstance(value, int):
            _put(names, name, value)
    types = np.full(first, TokenType.NORMAL, np.int32) if vocab.types is None else vocab.types
    scores = None if vocab.scores is None else np.append(vocab.scores, np.zeros(count, np.float32))
    end = first + int(config["codec_eos_token_id"])
    silent = [n for n in range(first + count - 1024, first + count) if n != end and n >= 0]
    return dataclasses.replace(
        vocab,
        tokens=[*vocab.tokens, *names],
        types=np.append(types, np.full(count, TokenType.CONTROL, np.int32)),
        scores=scores,
        special=vocab.special | {"eos": end},
        flags=vocab.flags | {"eos": False},
        chat_template=None,
        extra=vocab.extra | {"tokenizer.ggml.suppress_tokens": np.asarray(silent, np.int32)},
    )


def _put(names: list[str], name: str, number: Any) -> None:
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise BadFile(f"config.json: talker_config: {name} is code {number!r:.40}, of {len(names)} that there are")
    names[number] = f"<|{name}|>"


_TABLE = QWEN3.variant(
    "qwen3tts",
    HfName("Qwen3TTSForConditionalGeneration", "qwen3_tts"),
    keys=keys("""
        vocab_size               u32   vocab_size
        codec_vocab_size         u32   codec_vocab_size
        word_embedding_length    u32   text_hidden_size
    """),
    rows=(
        row("token_embd.weight", _EMBEDDED, "n_vocab, n_embd", ThroughMlp("n_code", "d_word")),
        row("output.weight", "talker.codec_head.weight", "n_code, n_embd"),
    ),
    prefixes=("talker.model.",),
    finish=_finish,
    rebuild=_rebuild,
    told=_told,
    named=_named,
    decoder={"not_run": "it says codes of sound, which another model makes sound of"},
    fixed={"hidden_act": "silu"},
    inert="text_vocab_size",
)

QWEN3_TTS = dataclasses.replace(_TABLE, made=())

ARCHITECTURES = (QWEN3_TTS,)
