"""Granite's towers: SigLIP and a conformer, each before small transformers of queries (Q-Formers)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import BatchNorm, Dims, Reshape, Split
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.families.siglip import GELU, siglip
from llmconv.convert.towers.parts import audio, linear, norm, vision
from llmconv.errors import Unsupported


def _qformer(gguf: str, hf: str, sizes: tuple[str, str, str]) -> tuple[Row, ...]:
    """Rows of a Q-Former's layer; sizes: of its vectors, of those it looks at, of its matrices' middle."""
    own, seen, mid = sizes
    rows: list[Row] = []
    for kind, part, other in (("self", "attention", own), ("cross", "crossattention", seen)):
        at, there = f"{gguf}.{kind}_attn_", f"{hf}.{part}."
        rows += linear(at + "q", there + "attention.query", own, own)
        rows += linear(at + "k", there + "attention.key", own, other)
        rows += linear(at + "v", there + "attention.value", own, other)
        rows += linear(at + "out", there + "output.dense", own, own)
        rows += norm(at + "norm", there + "output.LayerNorm", own)
    return (
        *rows,
        *linear(f"{gguf}.ffn_up", f"{hf}.intermediate_query.dense", mid, own),
        *linear(f"{gguf}.ffn_down", f"{hf}.output_query.dense", own, mid),
        *norm(f"{gguf}.ffn_norm", f"{hf}.output_query.LayerNorm", own),
    )


_TOWER = "model.vision_tower.vision_model."


def _counted(layer: int, count: int) -> int:
    """A layer that may be counted from behind."""
    return layer + count if layer < 0 else layer


def _projectors(outer: Mapping[str, Any], n_seen: int, n_text: int) -> list[tuple[int, int, int]]:
    """(layer that is looked at, the text model's that takes it, which corner of four or -1) in the text's order."""
    deep = [tuple(map(int, pair)) for pair in outer.get("deepstack_layer_map") or ()]
    found = [(_counted(seen, n_seen), _counted(text, n_text), -1) for seen, text in deep]
    if deep != sorted(deep) or [one[0] for one in found] != sorted(one[0] for one in found):
        raise Unsupported("config.json: deepstack_layer_map does not name its layers in order, as llama.cpp needs it")
    seen = _counted(int(outer.get("spatial_vision_layer", -1)), n_seen)
    found += [(seen, int(text), corner) for corner, text in enumerate(outer.get("spatial_target_layers") or ())]
    return sorted(found, key=lambda one: one[1])


def _sees(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    outer, text = config["outer"], config["text"]
    try:
        query, window = (int(part) for part in str(outer.get("downsample_rate")).split("/"))
    except ValueError:
        raise Unsupported(
            f"config.json: downsample_rate is {outer.get('downsample_rate')!r:.40}, expected a fraction as '4/8'"
        ) from None
    found = _projectors(outer, dims["n_layer"], int(text.get("num_hidden_layers", 0)))
    own["preproc_image_size"] = np.uint32(dims["image"])
    own["projector.query_side"], own["projector.window_side"] = np.uint32(query), np.uint32(window)
    own["feature_layer"] = np.array([seen for seen, _, _ in found], np.int32)
    own["projector.spatial_offsets"] = np.array([corner for _, _, corner in found], np.int32)
    if points := outer.get("image_grid_pinpoints"):
        own["image_grid_pinpoints"] = np.array([n for high, wide in points for n in (wide, high)], np.int32)


def _sees_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """Which of the text model's layers take what is not said here: these are the projectors' numbers, see `_agree`."""
    layers = [int(n) for n in own.get("feature_layer", ())]
    corners = [int(n) for n in own.get("projector.spatial_offsets", ())]
    points = [int(n) for n in own.get("image_grid_pinpoints", ())]
    spatial = sorted((corner, at) for at, corner in enumerate(corners) if corner >= 0)
    config["outer"] = {
        "downsample_rate": f"{own.get('projector.query_side')}/{own.get('projector.window_side')}",
        "deepstack_layer_map": sorted(
            [seen, at] for at, (seen, c) in enumerate(zip(layers, corners, strict=False)) if c < 0
        ),
        "spatial_target_layers": [at for _, at in spatial],
        "image_grid_pinpoints": [[high, wide] for wide, high in zip(points[::2], points[1::2], strict=False)],
        "qformer_config": {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": dims["n_mid"]}
        | {"cross_attention_frequency": 1, "use_qformer_text_input": False},
    }
    if spatial:
        config["outer"]["spatial_vision_layer"] = layers[spatial[0][1]]
    config.update(model_type="siglip_vision_model", vision_use_head=False)


def _agree(outer: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """The text model's layers in place of the projectors' numbers; the first projector's is the first layer."""
    taken = text.pop("deepstack_mapping", ())
    layers = {number: layer for layer, number in enumerate(taken) if number > 0} | {0: 0}
    if taken:
        outer["deepstack_layer_map"] = [[seen, layers.get(at, at)] for seen, at in outer["deepstack_layer_map"]]
        outer["spatial_target_layers"] = [layers.get(at, at) for at in outer["spatial_target_layers"]]
    return outer


def _numbered(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the projectors: in the GGUF as the text model takes them, in the folder by kind and layer."""
    corners = [int(n) for n in np.ravel(metadata.get("clip.vision.projector.spatial_offsets", ()))]
    layers = [int(n) for n in np.ravel(metadata.get("clip.vision.feature_layer", ()))]
    deep = sorted((seen, at) for at, (seen, c) in enumerate(zip(layers, corners, strict=False)) if c < 0)
    places = [at for _, at in deep]
    for at, corner in enumerate(corners[: len(layers)]):
        kind, number = ("spatial", corner) if corner >= 0 else ("layerwise", places.index(at))
        gguf, hf = f"v.proj_blk.{at}", f"model.{kind}_projectors.{number}."
        yield row(f"{gguf}.img_pos", hf + "image_positions", "1, n_window, n_embd")
        yield row(f"{gguf}.query", hf + "query", "1, n_queries, n_embd")
        yield from norm(f"{gguf}.norm", hf + "norm")
        yield from norm(f"{gguf}.post_norm", hf + "qformer.layernorm")
        yield from _qformer(gguf, hf + "qformer.encoder.layer.0", ("n_embd", "n_embd", "n_mid"))
        yield from linear(f"{gguf}.linear", hf + "out_linear", "n_proj", "n_embd")


GRANITE_VISION = Tower(
    "granite4_vision",
    ("Granite4VisionForConditionalGeneration",),
    "granite4_vision",
    (
        Side(
            vision(
                (*siglip(_TOWER), row("v.image_newline", "model.image_newline", "n_proj")),
                keys=keys("image_size  u32  image_size  384"),
                constants=GELU | {"/clip.projector_type": "granite4_vision"},
                finish=_sees,
                rebuild=_sees_back,
            ),
            "vision_config",
            {
                "n_mid": ("v.proj_blk.0.ffn_up.weight", 0),
                "n_queries": ("v.proj_blk.0.query", -2),
                "n_window": ("v.proj_blk.0.img_pos", -2),
            },
            more=_numbered,
        ),
    ),
    starts=("model.vision_tower.", "model.layerwise_projectors.", "model.spatial_projectors.", "model.image_newline"),
    spellings=((r"^model\.vision_tower\.(?!vision_model\.)", _TOWER),),
    kept=(r"model\.vision_tower\.vision_model\.head\..*",),
    text=(("model.", "model.language_model."),),
    agree=_agree,
)

_IN = "a.blk.{i}."
_PART = "encoder.layers.{i}."
_PROJECTOR = "projector.qformer.encoder.layer."
_MOST = 8
"""As many layers as the largest Q-Former has; Granite's has 2."""
_THERE = {f"n_there_{n}": (f"a.proj_blk.{n}.ffn_down.bias", 0) for n in range(_MOST)}
"""Dimensions that are 0 for layers that a Q-Former does not have."""


def _hears(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["feed_forward_length"] = np.uint32(dims["n_embd"] * int(config.get("feedforward_mult", 4)))
    if layers := config.get("cat_hidden_layers"):
        own["feature_layer"] = np.array([int(n) for n in layers], np.int32)


def _hears_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    for name in ("intermediate_size", "layer_norm_eps"):
        config.pop(name, None)
    heads = max(1, dims["n_head"])
    config.update(
        model_type="granite_speech_encoder",
        feedforward_mult=dims["n_ff"] // max(1, dims["n_embd"]),
        conv_expansion_factor=dims["n_inner"] // max(1, dims["n_embd"]),
        dim_head=dims["n_attn"] // heads,
        output_dim=dims["n_words"],
    )
    if "feature_layer" in own:
        outer = {"architectures": list(GRANITE_SPEECH_PLUS.classes), "model_type": GRANITE_SPEECH_PLUS.model_type}
        config.setdefault("outer", {}).update(outer)
        config["cat_hidden_layers"] = [int(n) for n in own["feature_layer"]]
    said = config.setdefault("outer", {}).setdefault("projector_config", {})
    said |= {
        "model_type": "blip_2_qformer",
        "num_hidden_layers": sum(dims[name] > 0 for name in _THERE),
        "hidden_size": dims["n_query"],
        "encoder_hidden_size": dims["n_looked"],
        "intermediate_size": dims["n_mid"],
        "cross_attention_frequency": 1,
        "use_qformer_text_input": False,
    }
    config["outer"]["has_lora_adapter"] = False


def _half(gguf: str, hf: str) -> tuple[Row, ...]:
    """Half a step of a conformer's layer."""
    return (
        *norm(f"{_IN}ffn_norm{gguf}", f"{_PART}{hf}.pre_norm"),
        *linear(f"{_IN}ffn_up{gguf}", f"{_PART}{hf}.up_proj", "n_ff", "n_embd"),
        *linear(f"{_IN}ffn_down{gguf}", f"{_PART}{hf}.down_proj", "n_embd", "n_ff"),
    )


def _queries(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the Q-Former, of as many layers as there are: no key counts them."""
    for n in range(_MOST):
        if {f"{_PROJECTOR}{n}.output_query.dense.bias", f"a.proj_blk.{n}.ffn_down.bias"} & shapes.keys():
            yield from _qformer(f"a.proj_blk.{n}", f"{_PROJECTOR}{n}", ("n_query", "n_looked", "n_mid"))


_SPEECH = Side(
    audio(
        (
            *linear("a.input_projection", "encoder.input_linear", "n_embd", "n_mel"),
            *linear("a.enc_ctc_out", "encoder.out", "n_words", "n_embd"),
            *linear("a.enc_ctc_out_mid", "encoder.out_mid", "n_embd", "n_words"),
            *_half("", "ff1"),
            *norm(_IN + "ln1", _PART + "attn.pre_norm"),
            *linear(_IN + "attn_q", _PART + "attn.to_q", "n_attn", "n_embd", bias=False),
            row(
                (_IN + "attn_k.weight", _IN + "attn_v.weight"),
                _PART + "attn.to_kv.weight",
                ("n_attn, n_embd", "n_attn, n_embd"),
                Split(("n_attn", "n_attn")),
            ),
            *linear(_IN + "attn_out", _PART + "attn.to_out", "n_embd", "n_attn"),
            row(_IN + "attn_rel_pos_emb", _PART + "attn.rel_pos_emb.weight", "n_reach, n_attn // n_head"),
            *norm(_IN + "norm_conv", _PART + "conv.norm"),
            row(
                _IN + "conv_pw1.weight",
                _PART + "conv.up_conv.weight",
                "2 * n_inner, n_embd",
                Reshape(hf=("2 * n_inner", "n_embd", 1), gguf=("2 * n_inner", "n_embd")),
            ),
            row(_IN + "conv_pw1.bias", _PART + "conv.up_conv.bias", "2 * n_inner"),
            row(
                _IN + "conv_dw.weight",
                _PART + "conv.depth_conv.conv.weight",
                "n_inner, conv_kernel",
                Reshape(hf=("n_inner", 1, "conv_kernel"), gguf=("n_inner", "conv_kernel")),
            ),
            row(
                (_IN + "conv_norm.weight", _IN + "conv_norm.bias"),
                tuple(_PART + "conv.batch_norm." + name for name in ("weight", "bias", "running_mean", "running_var")),
                ("n_inner", "n_inner"),
                BatchNorm(),
            ),
            row(
                _IN + "conv_pw2.weight",
                _PART + "conv.down_conv.weight",
                "n_embd, n_inner",
                Reshape(hf=("n_embd", "n_inner", 1), gguf=("n_embd", "n_inner")),
            ),
            row(_IN + "conv_pw2.bias", _PART + "conv.down_conv.bias", "n_embd"),
            *_half("_1", "ff2"),
            *norm(_IN + "ln2", _PART + "post_norm"),
            row("a.proj_query", "projector.query", "1, n_queries, n_query"),
            *norm("a.proj_norm", "projector.qformer.layernorm", "n_query"),
            *linear("a.proj_linear", "projector.linear", "n_proj", "n_query"),
        ),
        keys=keys("""
            embedding_length            u32   hidden_dim              1024
            feed_forward_length         u32   -
            block_count                 u32   num_layers              10
            attention.head_count        u32   num_heads               8
            num_mel_bins                u32   input_dim               160
            chunk_size                  u32   context_size            200
            conv_kernel_size            u32   conv_kernel_size        15
            max_pos_emb                 u32   max_pos_emb             512
            projector.window_size       u32   outer.window_size       15
            projector.downsample_rate   u32   outer.downsample_rate   5
            projector.head_count        u32   outer.projector_config.num_attention_heads   12
        """),
        constants={"/clip.projector_type": "granite_speech"},
        finish=_hears,
        rebuild=_hears_back,
    ),
    "encoder_config",
    {
        "n_attn": ("a.blk.0.attn_q.weight", 0),
        "n_inner": ("a.blk.0.conv_pw2.weight", 1),
        "n_words": ("a.enc_ctc_out.weight", 0),
        "n_reach": ("a.blk.0.attn_rel_pos_emb", 0),
        "n_queries": ("a.proj_query", -2),
        "n_query": ("a.proj_query", -1),
        "n_looked": ("a.proj_blk.0.cross_attn_k.weight", 1),
        "n_mid": ("a.proj_blk.0.ffn_up.weight", 0),
        **_THERE,
    },
    more=_queries,
)
GRANITE_SPEECH = Tower(
    "granite_speech",
    ("GraniteSpeechForConditionalGeneration",),
    "granite_speech",
    (_SPEECH,),
    starts=("encoder.", "projector."),
    spellings=((r"^model\.(?=encoder\.|projector\.)", ""),),
    kept=(r"encoder\.layers\.\d+\.conv\.batch_norm\.num_batches_tracked",),
    dropped=(r"encoder\.(?:.*\.)?attention_dists",),
)
GRANITE_SPEECH_PLUS = Tower(
    "granite_speech",
    ("GraniteSpeechPlusForConditionalGeneration",),
    "granite_speech_plus",
    (_SPEECH,),
    starts=GRANITE_SPEECH.starts,
    spellings=GRANITE_SPEECH.spellings,
    kept=GRANITE_SPEECH.kept,
    dropped=GRANITE_SPEECH.dropped,
)

TOWERS = (GRANITE_VISION, GRANITE_SPEECH, GRANITE_SPEECH_PLUS)
