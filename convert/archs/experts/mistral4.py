"""Mistral 4: DeepSeek V3's latent attention and experts, softmax scores, queries that grow with their position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.experts.deepseek import DEEPSEEK2
from llmconv.convert.archs.parts import NEXTN
from llmconv.convert.tables.architecture import HfName, row
from llmconv.convert.tables.ops import Dims

_mlp = "{p}layers.{i}.mlp.experts."

_when = "n_expert and i >= n_dense"


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    assert DEEPSEEK2.finish is not None
    DEEPSEEK2.finish(own, {"norm_topk_prob": True, **config, "model_type": "deepseek_v3"}, dims)
    if not config.get("scoring_func"):
        del own["expert_gating_func"]  # which is V3's; softmax is what its absence means
    rope = config.get("rope") or {}
    if rope.get("llama_4_scaling_beta"):
        own["attention.temperature_scale"] = np.float32(rope["llama_4_scaling_beta"])
        own["attention.temperature_length"] = np.uint32(rope["original_max_position_embeddings"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    assert DEEPSEEK2.rebuild is not None
    DEEPSEEK2.rebuild(config, own, dims)
    del config["topk_method"]
    scaling = config.setdefault("rope_scaling", {"rope_type": "default"})
    scaling["rope_theta"] = float(own["rope.freq_base"])
    scaling["partial_rotary_factor"] = dims["n_rot"] / dims["nope"]  # of the part that turns, its whole
    if scale := own.get("attention.temperature_scale"):
        scaling["llama_4_scaling_beta"] = float(scale)
        scaling.setdefault("original_max_position_embeddings", int(own["attention.temperature_length"]))


MISTRAL4 = DEEPSEEK2.variant(
    "mistral4",
    HfName("Mistral4ForCausalLM", "mistral4"),
    HfName("Mistral3ForConditionalGeneration", "mistral4", around=True),
    rows=(
        row(
            "blk.{i}.ffn_gate_up_exps.weight",
            _mlp + "gate_up_proj",
            "n_expert, 2 * n_ff_exp, n_embd",
            when=_when,
        ),
        row("blk.{i}.ffn_down_exps.weight", _mlp + "down_proj", "n_expert, n_embd, n_ff_exp", when=_when),
    ),
    drop=(
        "blk.{i}.ffn_gate_exps.weight",
        *(r.gguf[0] for r in NEXTN),
        "nextn_predict_layers",
        "blk.{i}.exp_probs_b.bias",
    ),
    finish=_finish,
    rebuild=_rebuild,
    decoder={"group_by": 2, "yarn_magnitudes_cancel": False},
    reads="llama_4_scaling_beta",
    inert="max_position_embeddings partial_rotary_factor",
)

ARCHITECTURES = (MISTRAL4,)
