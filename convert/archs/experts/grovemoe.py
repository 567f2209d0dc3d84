"""GroveMoE: Qwen 3's experts, and small ones that neighbouring experts share and that go where one of these goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.qwen import QWEN3_MOE
from llmconv.convert.archs.parts import gated_mlp
from llmconv.convert.tables.architecture import HfName, keys, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, Stack

_GROUP = 2  # experts that share a small one: in the model's own code

_small = "{p}layers.{i}.mlp.chunk_experts.{g}."


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["expert_chunk_feed_forward_length"] = np.uint32(config.get("head_dim") or 128)


GROVEMOE = QWEN3_MOE.variant(
    "grovemoe",
    HfName("GroveMoeForCausalLM", "grove_moe"),
    HfName("modeling_grove_moe.GroveMoeForCausalLM", "grove_moe"),
    keys=keys("attention.key_length  u32  head_dim\nattention.value_length  u32  head_dim"),
    rows=(
        row("blk.{i}.ffn_gate_chexps.weight", _small + "gate_proj.weight", "n_group, n_ff_small, n_embd", Stack()),
        row("blk.{i}.ffn_down_chexps.weight", _small + "down_proj.weight", "n_group, n_embd, n_ff_small", Stack()),
        row("blk.{i}.ffn_up_chexps.weight", _small + "up_proj.weight", "n_group, n_ff_small, n_embd", Stack()),
    ),
    drop=[name for r in gated_mlp() for name in r.gguf],
    dropped=(r".*\.expert_bias", r".*\.rotary_emb\.inv_freq"),
    constants={"experts_per_group": np.uint32(_GROUP), "expert_group_scale": np.float32(0.05)},
    dims={"n_group": f"n_expert // {_GROUP}"},
    finish=_finish,
    rebuild=lambda config, own, dims: None,
    decoder={"normalize_experts": True},
    loader=Loader(pieces={"chained_experts": True}),
)

ARCHITECTURES = (GROVEMOE,)
