"""Qwen3-TTS: what hears a speaker, what tells the finer codes of a sound, and what makes the sound of them.

The last is the decoder of another model, whose folder `speech_tokenizer` lies within this one's: its tensors are read
from there, and are not written back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv import formats
from llmconv.convert.tables.architecture import Key, Row, keys, row
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import as_they_are, audio, gen_audio, norm
from llmconv.errors import BadFile, MissingTensor
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

_EAR = "speaker_encoder."
_STAGES = (1, 2, 3)


def _heard(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the speaker's encoder (ECAPA-TDNN): convolutions, of which no key says a size."""
    pairs = {
        "a.conv1d.0": "blocks.0.conv",
        "a.conv_out": "mfa.conv",
        "a.asp_attn": "asp.conv",
        "a.asp_tdnn": "asp.tdnn.conv",
        "mm.a.fc": "fc",
    }
    for n in _STAGES:
        pairs |= {
            f"a.blk.{n}.conv_pw1": f"blocks.{n}.tdnn1.conv",
            f"a.blk.{n}.conv_pw2": f"blocks.{n}.tdnn2.conv",
            f"a.blk.{n}.se_conv1": f"blocks.{n}.se_block.conv1",
            f"a.blk.{n}.se_conv2": f"blocks.{n}.se_block.conv2",
        }
        for part in range(len(shapes)):
            gguf, hf = f"a.blk.{n}.res2.{part}", f"blocks.{n}.res2net_block.blocks.{part}.conv"
            if not {f"{gguf}.weight", f"{_EAR}{hf}.weight"} & shapes.keys():
                break
            pairs[gguf] = hf
    yield from as_they_are({g + end: _EAR + h + end for g, h in pairs.items() for end in (".weight", ".bias")}, shapes)


_CODES = "talker.code_predictor."
_LAYER = _CODES + "model.layers.{i}."
_AT = "a.gen.code.blk.{i}."
_MATRICES = {
    "attn_q": ("self_attn.q_proj", "n_queries, n_embd"),
    "attn_k": ("self_attn.k_proj", "n_keys, n_embd"),
    "attn_v": ("self_attn.v_proj", "n_keys, n_embd"),
    "attn_out": ("self_attn.o_proj", "n_embd, n_queries"),
    "ffn_gate": ("mlp.gate_proj", "n_ff, n_embd"),
    "ffn_up": ("mlp.up_proj", "n_ff, n_embd"),
    "ffn_down": ("mlp.down_proj", "n_embd, n_ff"),
}


def _books(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the codebooks' vectors and of what tells the next code, one matrix for a book in the folder."""
    for gguf, hf in (("a.gen.code.embd", "model.codec_embedding"), ("a.gen.code.head", "lm_head")):
        first = shapes.get(f"{_CODES}{hf}.0.weight") or shapes.get(f"{gguf}.weight", (1, 1, 1))[1:]
        count = sum(f"{_CODES}{hf}.{n}.weight" in shapes for n in range(len(shapes)))
        count = count or shapes.get(f"{gguf}.weight", (1,))[0]
        names = tuple(f"{_CODES}{hf}.{n}.weight" for n in range(count))
        yield row(f"{gguf}.weight", names, f"{count}, {first[0]}, {first[1]}", Stack())


_CODEC = "speech_tokenizer"


def _codec(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """The tensors of what makes sounds of codes, out of the folder within."""
    if folder.source is None or "beside" not in settings:
        return
    inner = formats.open(folder.source / _CODEC)
    try:
        said = settings["beside"]["decoder_config"]
        sizes = (int(said["num_hidden_layers"]), len(said["upsampling_ratios"]), len(said["upsample_rates"]))
    except (ValueError, LookupError, TypeError):
        raise BadFile(f"{inner.where}: config.json has no decoder_config as Qwen3-TTS has it; fetch it again") from None

    def get(name: str) -> Tensor:
        if name not in inner.tensors:
            raise MissingTensor(inner.where, name, "the decoder of Qwen3-TTS's sounds needs it")
        return inner.tensors[name]

    for gguf, hf in _renamed(*sizes):
        yield get(hf).renamed(gguf)
    for gguf, hf in _quantizer():
        tensor = get(hf)
        yield tensor.reshaped(tensor.shape[:-1]).renamed(gguf)  # a convolution of one place, as a matrix
    for gguf, hf in _snakes(sizes[2]):
        alpha, beta = get(hf + ".alpha"), get(hf + ".beta")
        yield alpha.map(lambda x: np.exp(x.astype(np.float64)).astype(np.float32), plain.F32).renamed(gguf + ".alpha")
        yield beta.map(_reciprocal, plain.F32).renamed(gguf + ".beta")
    for kind in ("first", "rest"):
        start = f"decoder.quantizer.rvq_{kind}.vq.layers."
        count = sum(f"{start}{n}._codebook.embedding_sum" in inner.tensors for n in range(len(inner.tensors)))
        books = [
            (get(f"{start}{n}._codebook.embedding_sum"), get(f"{start}{n}._codebook.cluster_usage"))
            for n in range(max(1, count))
        ]
        yield _book(f"a.gen.wav.quant.{kind}.codebook.weight", books)


def _reciprocal(beta: NDArray[Any]) -> NDArray[np.float32]:
    height: NDArray[np.float32] = np.exp(beta.astype(np.float64)).astype(np.float32) + np.float32(1e-9)
    return np.float32(1) / height


def _book(name: str, books: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The vectors of one codebook, or of several: sums of what fell to each, by how much that was."""
    n, width = books[0][0].shape
    shape = (len(books), n, width) if len(books) > 1 else (n, width)

    def read(start: int, stop: int) -> Bytes:
        parts = []
        for at, (total, usage) in enumerate(books):
            lo, hi = max(0, start - at * n), min(n, stop - at * n)
            if lo < hi:
                often = np.maximum(usage.numpy().astype(np.float32)[lo:hi], np.float32(1e-5))
                parts.append(total.rows(lo, hi).astype(np.float32) / often[:, None])
        values = np.concatenate(parts) if parts else np.empty((0, width), np.float32)
        return np.ascontiguousarray(values, np.float32).view(np.uint8)

    return Tensor(name, shape, plain.F32, read)


def _quantizer() -> Iterator[tuple[str, str]]:
    for kind in ("first", "rest"):
        for gguf, hf in (("in_proj", "input_proj"), ("out_proj", "output_proj")):
            yield f"a.gen.wav.quant.{kind}.{gguf}.weight", f"decoder.quantizer.rvq_{kind}.{hf}.weight"


def _snakes(n_blocks: int) -> Iterator[tuple[str, str]]:
    """The activations: frequencies and heights, which the folder has as logarithms."""
    for n in range(n_blocks):
        hf = f"decoder.decoder.{n + 1}.block."
        yield f"a.gen.wav.dac.blk.{n}.snake", hf + "0"
        for part in range(3):
            for act in ("act1", "act2"):
                yield f"a.gen.wav.dac.blk.{n}.res.{part}.{act}", f"{hf}{part + 2}.{act}"
    yield "a.gen.wav.dac.post_snake", f"decoder.decoder.{n_blocks + 1}"


_BLOCK = {
    "ln1.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_out.weight": "self_attn.o_proj.weight",
    "ls1.weight": "self_attn_layer_scale.scale",
    "ln2.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ls2.weight": "mlp_layer_scale.scale",
}
_UP = {"conv": "0.conv", "dwconv": "1.dwconv.conv", "norm": "1.norm", "pw1": "1.pwconv1", "pw2": "1.pwconv2"}


def _renamed(n_layers: int, n_ups: int, n_blocks: int) -> Iterator[tuple[str, str]]:
    """(name in the GGUF, in the folder within) of the tensors that stay as they are."""
    tfm, last = "decoder.pre_transformer.", f"decoder.decoder.{n_blocks + 2}.conv"
    pairs = {
        "pre_conv": "decoder.pre_conv.conv",
        "tfm.in_proj": tfm + "input_proj",
        "tfm.out_proj": tfm + "output_proj",
        "dac.entry": "decoder.decoder.0.conv",
        "dac.post_conv": last,
    }
    pairs |= {f"up.blk.{n}.{gguf}": f"decoder.upsample.{n}.{hf}" for n in range(n_ups) for gguf, hf in _UP.items()}
    for n in range(n_blocks):
        hf = f"decoder.decoder.{n + 1}.block."
        pairs[f"dac.blk.{n}.conv"] = hf + "1.conv"
        for part in range(3):
            for conv in ("conv1", "conv2"):
                pairs[f"dac.blk.{n}.res.{part}.{conv}"] = f"{hf}{part + 2}.{conv}.conv"
    for gguf, hf in pairs.items():
        for end in (".weight", ".bias"):
            yield f"a.gen.wav.{gguf}{end}", hf + end
    yield "a.gen.wav.tfm.output_norm.weight", tfm + "norm.weight"
    for n in range(n_layers):
        for gguf, hf in _BLOCK.items():
            yield f"a.gen.wav.tfm.blk.{n}.{gguf}", f"{tfm}layers.{n}.{hf}"
    for n in range(n_ups):
        yield f"a.gen.wav.up.blk.{n}.gamma", f"decoder.upsample.{n}.1.gamma"


def _heard_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.clear()
    config.update(model_type="qwen3_tts_speaker_encoder")


def _coded_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    heads = max(1, dims["n_head"])
    config.update(model_type="qwen3_tts_talker_code_predictor", head_dim=dims["n_queries"] // heads)


_TALKER = Key("projection_dim", ("outer.talker_config.hidden_size", "text.hidden_size"))

QWEN3_TTS = Tower(
    "qwen3tts_spkenc",
    ("Qwen3TTSForConditionalGeneration",),
    "qwen3_tts",
    (
        Side(
            audio(
                (),
                keys=(
                    _TALKER,
                    *keys("""
                        embedding_length        u32   -     1536
                        feed_forward_length     u32   -     1536
                        block_count             u32   -     3
                        attention.head_count    u32   -     1
                        num_mel_bins            u32   -     128
                        attention.layer_norm_epsilon  f32  -  1e-5
                    """),
                ),
                constants={"projector_type": "qwen3tts_spkenc"},
                rebuild=_heard_back,
            ),
            "speaker_encoder_config",
            more=_heard,
        ),
        Side(
            gen_audio(
                (
                    row("a.gen.code.out_embd.weight", "talker.model.codec_embedding.weight", "n_words, n_proj"),
                    *norm("a.gen.code.output_norm", _CODES + "model.norm", bias=False),
                    row(
                        "a.gen.code.proj_in.weight",
                        _CODES + "small_to_mtp_projection.weight",
                        "n_embd, n_proj",
                        optional=True,
                    ),
                    row("a.gen.code.proj_in.bias", _CODES + "small_to_mtp_projection.bias", "n_embd", optional=True),
                    *norm(_AT + "ln1", _LAYER + "input_layernorm", bias=False),
                    *norm(_AT + "attn_q_norm", _LAYER + "self_attn.q_norm", "n_queries // n_head", bias=False),
                    *norm(_AT + "attn_k_norm", _LAYER + "self_attn.k_norm", "n_queries // n_head", bias=False),
                    *norm(_AT + "ln2", _LAYER + "post_attention_layernorm", bias=False),
                    *(
                        row(f"{_AT}{gguf}.weight", f"{_LAYER}{hf}.weight", shape)
                        for gguf, (hf, shape) in _MATRICES.items()
                    ),
                ),
                keys=(
                    _TALKER,
                    *keys("""
                        embedding_length                u32   hidden_size
                        feed_forward_length             u32   intermediate_size
                        block_count                     u32   num_hidden_layers
                        attention.head_count            u32   num_attention_heads
                        attention.head_count_kv         u32   num_key_value_heads
                        attention.layer_norm_epsilon    f32   rms_norm_eps           1e-6
                    """),
                ),
                constants={"projector_type": "qwen3tts_gen"},
                rebuild=_coded_back,
            ),
            "talker_config.code_predictor_config",
            {
                "n_words": ("a.gen.code.out_embd.weight", 0),
                "n_queries": ("a.gen.code.blk.0.attn_q.weight", 0),
                "n_keys": ("a.gen.code.blk.0.attn_k.weight", 0),
            },
            made=_codec,
            more=_books,
            beside=_CODEC,
        ),
    ),
    starts=(_EAR, _CODES, "talker.model.codec_embedding."),
    text=(),
    projectors=("qwen3tts_gen",),
    made=("a.gen.wav.",),
    shared=("talker.model.codec_embedding.weight",),
    inner="talker_config",
)

TOWERS = (QWEN3_TTS,)
