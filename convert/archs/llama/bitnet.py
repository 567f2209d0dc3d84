"""BitNet b1.58: Llama with norms inside of attention and feed-forward; its weights may be packed ones, zeros and -1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM, attention
from llmconv.convert.tables.architecture import Form, HfName, row
from llmconv.convert.tables.loader import DIVISORS, HEAD, OUT_BIAS, QKV_BIASES, Loader
from llmconv.convert.tables.ops import Dims

_at = "{p}layers.{i}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if own.get("rope.scaling.type") is None:
        own["rope.scaling.type"], own["rope.scaling.factor"] = "linear", np.float32(1)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.setdefault("hidden_act", "silu")  # which is llama.cpp's, and not transformers'


BITNET = LLAMA.variant(
    "bitnet",
    HfName("BitNetForCausalLM", "bitnet"),
    HfName("BitnetForCausalLM", "bitnet"),  # the first releases, whose type is "llama"
    drop=(*NOT_DENSE, "vocab_size", "rope.dimension_count"),
    keys=HEAD_DIM,
    rows=(
        *attention(),
        row(
            "blk.{i}.attn_sub_norm.weight",
            _at + "self_attn.attn_sub_norm.weight",
            "n_embd",
            alt=(Form((_at + "self_attn.inner_attn_ln.weight",)),),
        ),
        row(
            "blk.{i}.ffn_sub_norm.weight",
            _at + "mlp.ffn_sub_norm.weight",
            "n_ff",
            alt=(Form((_at + "mlp.ffn_layernorm.weight",)),),
        ),
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"rope": "halves", "activation": "silu"},
    reads="quantization_config.quant_method",
    inert="weight_bits input_bits quantization_config.linear_class quantization_config.modules_to_not_convert"
    " quantization_config.use_rms_norm quantization_config.rms_norm_eps",
    fixed={"quantization_config.quantization_mode": "offline"},  # weights rounded whenever they are used are not known
    loader=Loader(refused=(*HEAD, *DIVISORS, *QKV_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (BITNET,)
