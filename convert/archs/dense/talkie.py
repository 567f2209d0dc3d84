"""Talkie: norms without weights, learned gains behind every sublayer, and the embedding added to each layer again.

It turns its pairs the other way round; the second halves of queries and keys are negated, so that readers of GGUF need
not.
"""

from __future__ import annotations

import numpy as np

from llmconv.convert.archs.parts import COMMON, HEAD_DIM
from llmconv.convert.tables.architecture import Architecture, Form, HfName, row
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Backwards, Reshape
from llmconv.convert.tables.scalars import Scalar

_at = "{p}blocks.{i}."

_attn, _mlp = _at + "attn.", _at + "mlp."

TALKIE = Architecture(
    "talkie",
    (HfName("TalkieForCausalLM", "talkie"),),
    keys=(*(key for key in COMMON if not key.gguf.endswith(("epsilon", "count_kv"))), *HEAD_DIM),
    rows=(
        row("token_embd.weight", "{p}embed.weight", "n_vocab, n_embd"),
        row("output.weight", "lm_head", "n_vocab, n_embd", alt=(Form(("lm_head.weight",)),)),
        row("blk.{i}.attn_q.weight", _attn + "attn_query.weight", "n_head * head_dim, n_embd", Backwards("n_head")),
        row("blk.{i}.attn_k.weight", _attn + "attn_key.weight", "n_head * head_dim, n_embd", Backwards("n_head")),
        row("blk.{i}.attn_v.weight", _attn + "attn_value.weight", "n_head * head_dim, n_embd"),
        row("blk.{i}.attn_output.weight", _attn + "attn_resid.weight", "n_embd, n_head * head_dim"),
        row("blk.{i}.attn_output.scale", _at + "attn_gain.a_g", "1"),
        row(
            "blk.{i}.attn_q_norm.weight",
            _attn + "head_gain.head_g",
            "n_head, 1",
            Reshape(("n_head",), ("n_head", 1)),
        ),
        row("blk.{i}.ffn_gate.weight", _mlp + "mlp_gate.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_up.weight", _mlp + "mlp_linear.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _mlp + "mlp_resid.weight", "n_embd, n_ff"),
        row("blk.{i}.ffn_down.scale", _at + "mlp_gain.a_g", "1"),
        row("blk.{i}.layer_output_scale.weight", _at + "embed_skip.a_g", "1"),
    ),
    scalars=(Scalar("talkie.logit_scale", "lm_head_gain.w_g"),),
    constants={"attention.layer_norm_rms_epsilon": np.float32(np.finfo(np.float32).eps)},
    decoder={
        "weightless": ("token_embd_norm", "attn_norm", "ffn_norm", "output_norm", "attn_k_norm"),
        "qk_norm_after_rope": True,
        "skips_embedding": True,
    },
    fixed={"hidden_act": "silu"},
    loader=Loader(needed=("output.weight",)),
)

ARCHITECTURES = (TALKIE,)
