"""WavTokenizer's decoder, which makes sound of codes: convolutions, one layer of attention among them.

Its folder is what llama.cpp's own script makes of the published checkpoint.  It is not run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture, HfName, Row, keys, row
from llmconv.convert.tables.ops import Dims

_post, _next = "backbone.posnet.{i}.", "backbone.convnext.{i}."

_resnet = "i < n_post and (i == 0 or i == 1 or i == 3 or i == 4)"

_attention = "i < n_post and i == 2"

_normed = "i < n_post and (i == 2 or i == 5)"


def _both(gguf: str, theirs: str, weight: str, bias: str, when: str = "") -> tuple[Row, Row]:
    return (
        row(f"{gguf}.weight", f"{theirs}.weight", weight, when=when),
        row(f"{gguf}.bias", f"{theirs}.bias", bias, when=when),
    )


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["attention.causal"] = False


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("model_type", None)  # it has none


WAVTOKENIZER = Architecture(
    "wavtokenizer-dec",
    (HfName("WavTokenizerDec", "wavtokenizer_dec"),),
    keys=keys("""
        block_count                     u32   n_layer
        context_length                  u32   max_position_embeddings
        embedding_length                u32   hidden_size
        attention.head_count            u32   n_head
        attention.layer_norm_epsilon    f32   layer_norm_epsilon
        vocab_size                      u32   vocab_size
        features_length                 u32   n_embd_features
        feed_forward_length             u32   n_ff
        attention.group_norm_epsilon    f32   group_norm_epsilon
        attention.group_norm_groups     u32   group_norm_groups
        posnet.embedding_length         u32   posnet.n_embd
        posnet.block_count              u32   posnet.n_layer
        convnext.embedding_length       u32   convnext.n_embd
        convnext.block_count            u32   convnext.n_layer
    """),
    rows=(
        row("token_embd.weight", "backbone.embedding.weight", "n_vocab, n_features"),
        *_both("conv1d", "backbone.embed", "d_post, n_features, 7", "d_post, 1"),
        *_both("token_embd_norm", "backbone.norm", "d_post", "d_post"),
        *_both("output_norm", "backbone.final_layer_norm", "d_next", "d_next"),
        *_both("output", "head.out", "n_embd, d_next", "n_embd"),
        *_both("posnet.{i}.norm1", _post + "norm1", "d_post, 1", "d_post, 1", _resnet),
        *_both("posnet.{i}.conv1", _post + "conv1", "d_post, d_post, 3", "d_post, 1", _resnet),
        *_both("posnet.{i}.norm2", _post + "norm2", "d_post, 1", "d_post, 1", _resnet),
        *_both("posnet.{i}.conv2", _post + "conv2", "d_post, d_post, 3", "d_post, 1", _resnet),
        *_both("posnet.{i}.attn_norm", _post + "norm", "d_post, 1", "d_post, 1", _normed),
        *(
            each
            for gguf, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "proj_out"))
            for each in _both(f"posnet.{{i}}.attn_{gguf}", _post + theirs, "d_post, d_post, 1", "d_post, 1", _attention)
        ),
        *_both("convnext.{i}.dw", _next + "dwconv", "d_next, 1, 7", "d_next, 1", "i < n_next"),
        *_both("convnext.{i}.norm", _next + "norm", "d_next", "d_next", "i < n_next"),
        *_both("convnext.{i}.pw1", _next + "pwconv1", "n_ff, d_next", "n_ff", "i < n_next"),
        *_both("convnext.{i}.pw2", _next + "pwconv2", "d_next, n_ff", "d_next", "i < n_next"),
        row("convnext.{i}.gamma.weight", _next + "gamma.weight", "d_next", when="i < n_next"),
    ),
    prefixes=("",),
    kept=(r"feature_extractor\..*",),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"not_run": "it makes sound of codes, and says no words"},
)

ARCHITECTURES = (WAVTOKENIZER,)
