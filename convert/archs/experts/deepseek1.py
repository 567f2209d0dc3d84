"""DeepSeek 1: Llama with experts, of which some are shared, behind a dense layer."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import experts, gated_mlp, shared_experts
from llmconv.convert.tables.architecture import HfName, keys
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader

DEEPSEEK = LLAMA.variant(
    "deepseek",
    HfName("DeepseekForCausalLM", "deepseek"),
    drop=NOT_DENSE,
    keys=keys("""
        expert_count                      u32   n_routed_experts
        expert_used_count                 u32   num_experts_per_tok
        expert_feed_forward_length        u32   moe_intermediate_size
        expert_shared_count               u32   n_shared_experts
        leading_dense_block_count         u32   first_k_dense_replace
        expert_weights_scale              f32   -                         1
    """),
    rows=(*gated_mlp(when="i < n_dense"), *experts(), *shared_experts()),
    constants={"rope.scaling.type": "none"},
    decoder={"gating": "softmax", "normalize_experts": False},
    fixed={"moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": False},
    loader=Loader(refused=(*MLP_BIASES, *OUT_BIAS)),
)

ARCHITECTURES = (DEEPSEEK,)
