"""MiMo V2.5's towers: a ViT with windows and sinks; what hears is another model's encoder, in a folder within this
one's, and behind it a small transformer over its codes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv import formats
from llmconv.convert.tables.architecture import Key, Row, keys, row
from llmconv.convert.tables.ops import Dims, Stack
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import CONV3D, as_they_are, audio, linear, norm, vision
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

_LAYER = "visual.blocks.{i}."
_AT = "v.blk.{i}."


def _seen_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("image_size", None)
    config.update(
        qk_channels=dims["n_queries"] // max(1, dims["n_head"]),
        fullatt_block_indexes=[i for i, mode in enumerate(own.get("wa_pattern_mode", ())) if mode < 0],
        use_sink=dims["n_sinks"] > 0,
    )


_SEEN = vision(
    (
        CONV3D,
        *norm(_AT + "ln1", _LAYER + "norm1", bias=False),
        *linear(_AT + "attn_qkv", _LAYER + "attn.qkv", "n_qkv", "n_embd", bias="?"),
        *linear(_AT + "attn_out", _LAYER + "attn.proj", "n_embd", "n_queries", bias="?"),
        row(_AT + "attn_sinks", _LAYER + "attn.sinks", "n_head", optional=True),
        *norm(_AT + "ln2", _LAYER + "norm2", bias=False),
        *linear(_AT + "ffn_gate", _LAYER + "mlp.gate_proj", "n_ff", "n_embd", bias="?"),
        *linear(_AT + "ffn_up", _LAYER + "mlp.up_proj", "n_ff", "n_embd", bias="?"),
        *linear(_AT + "ffn_down", _LAYER + "mlp.down_proj", "n_embd", "n_ff", bias="?"),
        row("v.post_ln.weight", "visual.merger.ln_q.weight", "n_embd"),
        row("v.post_ln.bias", "visual.merger.ln_q.bias", "n_embd", optional=True),
        *linear("mm.0", "visual.merger.mlp.0", "n_mid", "n_merged", bias="?"),
        *linear("mm.2", "visual.merger.mlp.2", "n_proj", "n_mid", bias="?"),
    ),
    keys=keys("""
        image_size                      u32   image_size                  560
        embedding_length                u32   hidden_size
        feed_forward_length             u32   intermediate_size
        block_count                     u32   depth                       28
        attention.head_count            u32   num_heads                   32
        attention.head_count_kv         u32   num_key_value_heads         8
        attention.layer_norm_epsilon    f32   rms_norm_eps                1e-6
        spatial_merge_size              u32   spatial_merge_size          2
        window_size                     u32   visual_token_window_size
        wa_pattern_mode                 i32s  vit_window_attn_types
        image_min_pixels                u32   processor.min_pixels
        image_max_pixels                u32   processor.max_pixels
    """),
    constants={"projector_type": "mimovl", "/clip.use_silu": True},
    rebuild=_seen_back,
)

_CODEC = "audio_tokenizer"
_BOOK = re.compile(r"encoder\.quantizer\.vq\.layers\.(\d+)\._codebook\.embed")
_NAMES = (
    (r"encoder\.conv(\d)\.", r"a.conv1d.\1."),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"a.blk.\1.attn_\2."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"a.blk.\1.attn_out."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"a.blk.\1.ln1."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"a.blk.\1.ln2."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"a.blk.\1.ffn_up."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"a.blk.\1.ffn_down."),
    (r"encoder\.layer_norm\.", "a.post_ln."),
    (r"encoder\.down_sample_layer\.0\.", "a.downsample.conv."),
    (r"encoder\.down_sample_norm\.", "a.downsample.norm."),
)
"""The encoder's names in its folder, and in the GGUF; its decoder and what only training needs have none."""


def _books(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of the codebooks, in order."""
    found = {int(m[1]): name for name in shapes if (m := _BOOK.fullmatch(name))}
    return [found[n] for n in sorted(found)]


def _encoder(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """The encoder's tensors, out of the folder within."""
    if folder.source is None:
        return
    inner = formats.open(folder.source / _CODEC)
    for name, tensor in inner.tensors.items():
        for pattern, new in _NAMES:
            if found := re.match(pattern, name):
                made = tensor.renamed(found.expand(new) + name[found.end() :])
                columns = made.name.startswith("a.conv1d.") and made.name.endswith(".bias")
                yield made.reshaped((*made.shape, 1)) if columns else made
    books = [inner.tensors[name] for name in _books({name: t.shape for name, t in inner.tensors.items()})]
    if books:
        yield _padded("a.rvq.codebook.weight", books)


def _padded(name: str, books: list[Tensor]) -> Tensor:
    """Codebooks one behind the other, each with as many rows as the largest; the further ones are zeros."""
    most, width = max(book.shape[0] for book in books), books[0].shape[1]

    def read(start: int, stop: int) -> Bytes:
        values = np.zeros((stop - start, width), np.float32)
        for at, book in enumerate(books):
            lo, hi = max(start, at * most), min(stop, at * most + book.shape[0])
            if lo < hi:
                values[lo - start : hi - start] = book.rows(lo - at * most, hi - at * most)
        return values.view(np.uint8)

    return Tensor(name, (len(books), most, width), plain.F32, read)


_LOCAL = "audio_encoder.input_local_transformer."
_MATRICES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_out.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ln1.weight": "input_layernorm.weight",
    "ln2.weight": "post_attention_layernorm.weight",
}


def _local(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the transformer over a few codes at a time, and of the codes' vectors, a matrix a channel."""
    names = {
        "mm.a.local_norm.weight": _LOCAL + "norm.weight",
        "mm.a.mlp.1.weight": "audio_encoder.projection.mlp.0.weight",
        "mm.a.mlp.2.weight": "audio_encoder.projection.mlp.2.weight",
    }
    for n in range(min(int(metadata.get("clip.audio.local_block_count", 0)), len(shapes))):
        names |= {f"mm.a.local_blk.{n}.{gguf}": f"{_LOCAL}layers.{n}.{hf}" for gguf, hf in _MATRICES.items()}
    yield from as_they_are(names, shapes)
    made = shapes.get("mm.a.code_embd.weight", (0, 0, 0))
    count = made[0] or sum(f"speech_embeddings.{n}.weight" in shapes for n in range(len(shapes)))
    rows, width = shapes.get("speech_embeddings.0.weight") or made[1:]
    those = tuple(f"speech_embeddings.{n}.weight" for n in range(count))
    yield row("mm.a.code_embd.weight", those, f"{count}, {rows}, {width}", Stack())


def _hears(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    said, n = config["beside"], dims["n_layer"]
    sizes = [said["shapes"][name][0] for name in _books(said["shapes"])]
    windows = said.get("encoder_attn_window_size")
    if not sizes or not isinstance(windows, list) or not windows:
        raise BadFile(f"{_CODEC}/: its config.json and codebooks are not as MiMo has them; fetch the folder again")
    every = int(said.get("swa_per_block", 1))
    mixed = bool(said.get("hybrid_attention")) and every > 1
    own["rvq.num_quantizers"] = np.uint32(len(sizes))
    own["rvq.codebook_size"] = np.array(sizes, np.int32)
    own["wa_pattern_mode"] = np.array([0 if mixed and i % every < every - 1 else -1 for i in range(n)], np.int32)
    own["window_size"] = np.uint32(int(windows[0]))


def _hears_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """What the encoder's settings are is for its own folder to say."""
    config.clear()
    said = {"input_local_layers": "local_block_count", "group_size": "local_group_size"}
    config["outer"] = {"audio_config": {name: int(own[key]) for name, key in said.items() if key in own}}
    config["outer"]["audio_config"]["audio_channels"] = dims["n_channels"]


_HEARD = audio(
    (),
    keys=(
        *keys("""
            embedding_length              u32   beside.d_model
            feed_forward_length           u32   beside.encoder_ffn_dim
            block_count                   u32   beside.encoder_layers
            attention.head_count          u32   beside.encoder_attention_heads
            num_mel_bins                  u32   beside.n_mels                    128
            attention.layer_norm_epsilon  f32   beside.layer_norm_eps            1e-5
        """),
        Key("local_block_count", ("outer.audio_config.input_local_layers",)),
        Key("local_group_size", ("outer.audio_config.group_size",)),
    ),
    constants={"projector_type": "mimo_audio"},
    finish=_hears,
    rebuild=_hears_back,
)

MIMO = Tower(
    "mimovl",
    ("MiMoV2ForCausalLM",),
    "mimo_v2",
    (
        Side(
            _SEEN,
            "vision_config",
            {
                "n_qkv": ("v.blk.0.attn_qkv.weight", 0),
                "n_queries": ("v.blk.0.attn_out.weight", 1),
                "n_sinks": ("v.blk.0.attn_sinks", 0),
                "n_merged": ("mm.0.weight", 1),
                "n_mid": ("mm.0.weight", 0),
            },
        ),
        Side(
            _HEARD,
            "",
            {"n_channels": ("mm.a.code_embd.weight", 0)},
            made=_encoder,
            optional=True,
            beside=_CODEC,
            more=_local,
        ),
    ),
    starts=("visual.", "audio_encoder.", "speech_embeddings."),
    kept=(r"audio_encoder\..*", r"speech_embeddings\..*"),
    text=(),
    flat=True,
    projectors=("mimo_audio",),
    made=("a.",),
    fits=lambda config: isinstance(config.get("vision_config"), Mapping),
)

TOWERS = (MIMO,)
