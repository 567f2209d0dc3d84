"""Arctic: a dense feed-forward and experts beside each other, which read different sums."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import EXPERTS
from llmconv.convert.tables.architecture import HfName, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader

_at = "{p}layers.{i}."

_mlp = _at + "residual_mlp."

ARCTIC = LLAMA.variant(
    "arctic",
    HfName("ArcticForCausalLM", "arctic"),
    drop=[name for name in NOT_DENSE if not name.startswith(("blk", "expert"))],
    keys=EXPERTS,
    rows=(
        row("blk.{i}.ffn_norm.weight", _at + "residual_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_norm_exps.weight", _at + "post_attention_layernorm.weight", "n_embd"),
        row("blk.{i}.ffn_gate.weight", _mlp + "w1.weight", "n_embd, n_embd"),
        row("blk.{i}.ffn_down.weight", _mlp + "w2.weight", "n_embd, n_embd"),
        row("blk.{i}.ffn_up.weight", _mlp + "w3.weight", "n_embd, n_embd"),
    ),
    decoder={"beside": 1.0},
    inert="moe_min_capacity moe_eval_capacity_factor moe_train_capacity_factor moe_token_dropping"
    " enable_expert_tensor_parallelism quantization",
    fixed={"use_residual": True, "parallel_attn_mlp_res": True, "moe_layer_frequency": 1},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (ARCTIC,)
