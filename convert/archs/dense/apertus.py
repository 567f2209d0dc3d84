"""Apertus: Llama with norms of queries and keys, and xIELU, whose numbers each layer learns (arXiv:2411.13010)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM, QK_NORMS, attention, gated_mlp
from llmconv.convert.tables.architecture import HfName, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, Loader
from llmconv.convert.tables.ops import Dims
from llmconv.convert.tables.scalars import Scalar

_at = "{p}layers.{i}."


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    """A configuration that states no kind of rotary positions means those of Llama 3."""
    config.setdefault("rope_scaling", {"rope_type": "default", "rope_theta": config["rope_theta"]})


APERTUS = LLAMA.variant(
    "apertus",
    HfName("ApertusForCausalLM", "apertus"),
    drop=(*NOT_DENSE, *(r.gguf[0] for r in gated_mlp() if "gate" in r.gguf[0])),
    keys=HEAD_DIM,
    rows=(
        *attention(),
        *QK_NORMS,
        row("blk.{i}.attn_norm.weight", _at + "attention_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm.weight", _at + "feedforward_layernorm.weight", "n_embd"),
    ),
    scalars=(
        Scalar("xielu.alpha_n", _at + "mlp.act_fn.alpha_n"),
        Scalar("xielu.alpha_p", _at + "mlp.act_fn.alpha_p"),
        Scalar("xielu.beta", _at + "mlp.act_fn.beta", ()),
        Scalar("xielu.eps", _at + "mlp.act_fn.eps", ()),
    ),
    rebuild=_rebuild,
    decoder={"rope": "halves", "activation": "xielu"},
    inert="qk_norm post_norm mlp_bias",
    loader=Loader(refused=MLP_BIASES, needed=HEAD),
)

ARCHITECTURES = (APERTUS,)
