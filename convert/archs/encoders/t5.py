"""T5, mT5, UMT5: an encoder and a decoder, positions by a learned bias on the scores; and the encoder alone.

UMT5 has that bias in every layer, the others in the first.  An encoder that read images' captions (T5EncoderModel) is
an architecture of its own in GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.rows import Form, Row
from llmconv.errors import Unsupported

_GATE = "enc.blk.0.ffn_gate.weight"


def _gated(config: Mapping[str, Any]) -> bool:
    return str(config.get("feed_forward_proj", "relu")).startswith("gated")


def _umt5(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "umt5"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    layers = int(config.get("num_decoder_layers") or dims["n_layer"])
    if layers > dims["n_layer"]:
        raise Unsupported(
            f"config.json: num_decoder_layers is {layers}, more than the encoder's {dims['n_layer']}, which is not "
            "known here; --layout plain converts any tensors under their own names"
        )
    own["attention.layer_norm_rms_epsilon"] = np.float32(own["attention.layer_norm_epsilon"])
    # As transformers tells them; its mT5, whose head is its own whatever the configuration says, does not.
    divides = config.get("tie_word_embeddings") is not False and config.get("model_type") != "mt5"
    if "decoder_block_count" in own and divides:
        own["logit_scale"] = np.float32(dims["n_embd"] ** -0.5)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["feed_forward_proj"] = "relu" if dims.get("without_enc_blk_0_ffn_gate") else "gated-gelu"
    config["pad_token_id"] = 0


def _attention(gguf: str, hf: str, when: str = "") -> tuple[Row, ...]:
    """q, k, v, o of a layer's attention, to itself or from the decoder to the encoder."""
    shapes = {"q": "n_head * head_dim, n_embd", "k": "n_head * head_dim, n_embd", "v": "n_head * head_dim_v, n_embd"}
    return (
        *(row(f"{gguf}_{part}.weight", f"{hf}.{part}.weight", shape, when=when) for part, shape in shapes.items()),
        row(f"{gguf}_o.weight", f"{hf}.o.weight", "n_embd, n_head * head_dim_v", when=when),
    )


def _stack(gguf: str, hf: str, ffn: int, when: str) -> tuple[Row, ...]:
    """The rows of one side's layers; ffn: which of a layer's parts is its MLP."""
    at, of = gguf + ".blk.{i}.", "{p}" + hf + ".block.{i}.layer."
    mlp, bias = f"{of}{ffn}.DenseReluDense.", of + "0.SelfAttention.relative_attention_bias.weight"
    return (
        row(at + "attn_norm.weight", of + "0.layer_norm.weight", "n_embd", when=when),
        *_attention(at + "attn", of + "0.SelfAttention", when),
        row(at + "attn_rel_b.weight", bias, "n_buckets, n_head", when="i == 0"),
        row(at + "attn_rel_b.weight", bias, "n_buckets, n_head", when=f"i > 0 and {when}", optional=_umt5),
        row(at + "ffn_norm.weight", f"{of}{ffn}.layer_norm.weight", "n_embd", when=when),
        row(at + "ffn_gate.weight", mlp + "wi_0.weight", "n_ff, n_embd", when=when, optional=_gated),
        row(
            at + "ffn_up.weight",
            mlp + "wi_1.weight",
            "n_ff, n_embd",
            when=when,
            alt=(Form((mlp + "wi.weight",), without=_GATE),),
        ),
        row(at + "ffn_down.weight", mlp + "wo.weight", "n_embd, n_ff", when=when),
    )


_DECODES = "i < n_decoder"
_CROSS = "{p}decoder.block.{i}.layer.1."

T5 = Architecture(
    "t5",
    (
        HfName("T5ForConditionalGeneration", "t5"),
        HfName("UMT5ForConditionalGeneration", "umt5", "n_layer > 1 and not without_enc_blk_1_attn_rel_b"),
        HfName("MT5ForConditionalGeneration", "mt5"),
        HfName("T5WithLMHeadModel", "t5"),
        HfName("UMT5Model", "umt5"),
    ),
    keys=keys("""
        context_length                    u32   n_positions                     512
        embedding_length                  u32   d_model
        feed_forward_length               u32   d_ff
        block_count                       u32   num_layers
        decoder_block_count               u32   num_decoder_layers      = n_layer
        attention.head_count              u32   num_heads
        attention.key_length              u32   d_kv
        attention.value_length            u32   d_kv
        attention.layer_norm_epsilon      f32   layer_norm_epsilon              1e-6
        attention.relative_buckets_count  u32   relative_attention_num_buckets  32
        decoder_start_token_id            u32   decoder_start_token_id
    """),
    rows=(
        row(
            "token_embd.weight",
            "{p}shared.weight",
            "n_vocab, n_embd",
            alt=(Form(("{p}encoder.embed_tokens.weight",)), Form(("{p}decoder.embed_tokens.weight",))),
        ),
        row("enc.output_norm.weight", "{p}encoder.final_layer_norm.weight", "n_embd"),
        row("dec.output_norm.weight", "{p}decoder.final_layer_norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_vocab, n_embd", optional="!tie_word_embeddings"),
        *_stack("enc", "encoder", 1, "n_layer"),
        *_stack("dec", "decoder", 2, _DECODES),
        row(
            "dec.blk.{i}.cross_attn_norm.weight",
            "{p}decoder.block.{i}.layer.1.layer_norm.weight",
            "n_embd",
            when=_DECODES,
        ),
        *_attention("dec.blk.{i}.cross_attn", _CROSS + "EncDecAttention", _DECODES),
    ),
    prefixes=("", "transformer."),
    dropped=(r"(encoder|decoder)\.embed_tokens\.weight",),  # of one with `shared`, in files of before safetensors
    tied=True,
    finish=_finish,
    rebuild=_rebuild,
    decoder={
        "side": "enc",
        "causal": False,
        "positions": "none",
        "farthest": 128,
        "attention_scale": 1.0,
        "activation": "relu",
        "gated_activation": "gelu_tanh",
        "activation_key": "",
    },
    reads="feed_forward_proj",
    inert="dense_act_fn is_gated_act output_past task_specific_params scalable_attention classifier_dropout"
    " is_encoder_decoder tokenizer_class dropout_rate is_decoder scale_decoder_outputs",
    loader=Loader(undone={"logit_scale": "its logits are divided by the root of its width"}),
    fixed={
        "relative_attention_max_distance": 128,
        "feed_forward_proj": ("relu", "gated-gelu"),
    },
)

T5_ENCODER = T5.variant(
    "t5encoder",
    HfName("T5EncoderModel", "t5"),
    HfName("MT5EncoderModel", "mt5"),
    HfName("UMT5EncoderModel", "umt5"),
    drop=(
        "decoder_block_count",
        "decoder_start_token_id",
        "dec.output_norm.weight",
        "output.weight",
        *(r.gguf[0] for r in T5.rows if r.gguf[0].startswith("dec.")),
    ),
    inert="num_decoder_layers use_cache",
)

ARCHITECTURES = (T5, T5_ENCODER)
