"""Dream and RND1: Qwen 2 and Qwen 3 with experts that see all tokens at once, and fill masks in."""

from __future__ import annotations

from llmconv.convert.archs.llama.qwen import QWEN2, QWEN3_MOE
from llmconv.convert.tables.architecture import HfName

_ALL_TOKENS = {"attention.causal": False}

DREAM = QWEN2.variant(
    "dream",
    HfName("DreamModel", "Dream"),
    constants=_ALL_TOKENS,
    decoder={"causal": False},
    inert="mask_token_id",
)

RND1 = QWEN3_MOE.variant(
    "rnd1",
    HfName("RND1", "rnd1"),
    constants=_ALL_TOKENS,
    decoder={"causal": False},
    inert="mask_token_id num_diffusion_steps",
)

ARCHITECTURES = (DREAM, RND1)
