"""SmolLM3: Llama without rotary in every fourth layer."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA
from llmconv.convert.archs.parts import HEAD_DIM
from llmconv.convert.tables.architecture import HfName, keys

_of_experts = ["expert_count", "expert_used_count", "attention.sliding_window"]

_head_dim = [k.gguf for k in HEAD_DIM]

_expert_rows = [r.gguf[0] for r in LLAMA.rows if "exps" in r.gguf[0] or "gate_inp" in r.gguf[0]]

SMOLLM3 = LLAMA.variant(
    "smollm3",
    HfName("SmolLM3ForCausalLM", "smollm3"),
    drop=[*_of_experts, *_head_dim, *_expert_rows],
    keys=keys("rope.freq_base  f32  rope_theta  2000000"),
    tied=True,
    decoder={"no_rope_every": 4},
)

ARCHITECTURES = (SMOLLM3,)
