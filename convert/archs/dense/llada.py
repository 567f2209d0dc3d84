"""LLaDA: a Llama that sees all tokens at once, and LLaDA-MoE: OLMoE's block that does, with norms of each head."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, EXPERTS, NORMS, QK_NORMS, attention, experts
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, OUT_BIAS, Loader
from llmconv.convert.tables.ops import rope_halves

_block = "{p}blocks.{i}."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"

_SIGHTED = {"attention.causal": False, "/diffusion.shift_logits": False}

LLADA = Architecture(
    "llada",
    (HfName("LLaDAModelLM", "llada"),),
    keys=keys("""
        block_count                       u32   n_layers
        context_length                    u32   max_sequence_length     4096
        embedding_length                  u32   d_model
        feed_forward_length               u32   mlp_hidden_size
        attention.head_count              u32   n_heads
        attention.head_count_kv           u32   n_kv_heads              = n_head
        attention.layer_norm_rms_epsilon  f32   rms_norm_eps            1e-5
        rope.freq_base                    f32   rope_theta              10000
        vocab_size                        u32   embedding_size|vocab_size
        rope.dimension_count              u32   -                       = n_embd // n_head
    """),
    rows=(
        row("token_embd.weight", "{p}wte.weight", "n_vocab, n_embd"),
        row("output_norm.weight", "{p}ln_f.weight", "n_embd"),
        row("output.weight", "{p}ff_out.weight", "n_vocab, n_embd", optional="!weight_tying"),
        row("blk.{i}.attn_norm.weight", _block + "attn_norm.weight", "n_embd"),
        row("blk.{i}.attn_q.weight", _block + "q_proj.weight", f"{_q}, n_embd", rope_halves("n_head")),
        row("blk.{i}.attn_k.weight", _block + "k_proj.weight", f"{_kv}, n_embd", rope_halves("n_head_kv")),
        row("blk.{i}.attn_v.weight", _block + "v_proj.weight", f"{_kv}, n_embd"),
        row("blk.{i}.attn_output.weight", _block + "attn_out.weight", f"n_embd, {_q}"),
        row("blk.{i}.ffn_norm.weight", _block + "ff_norm.weight", "n_embd"),
        row("blk.{i}.ffn_gate.weight", _block + "ff_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_up.weight", _block + "up_proj.weight", "n_ff, n_embd"),
        row("blk.{i}.ffn_down.weight", _block + "ff_out.weight", "n_embd, n_ff"),
    ),
    prefixes=("model.transformer.", "transformer.", ""),
    constants=_SIGHTED,
    decoder={"rope": "pairs", "causal": False, "activation_key": ""},
    reads="weight_tying",
    inert="mask_token_id mlp_ratio max_position_embeddings init_fn init_cutoff_factor flash_attention precision"
    " layer_norm_type layer_norm_with_affine attention_layer_norm_with_affine bias_for_layer_norm",
    fixed={
        "activation_type": "silu",
        "block_type": "llama",
        "alibi": False,
        "rope": True,
        "rope_full_precision": (True, False),
        "attention_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "block_group_size": 1,
        "multi_query_attention": (None, False),
    },
)

LLADA_MOE = Architecture(
    "llada-moe",
    (HfName("LLaDAMoEModelLM", "llada_moe"), HfName("LLaDAMoEModel", "llada_moe")),
    keys=(*COMMON, *EXPERTS, *keys("expert_feed_forward_length  u32  expert_intermediate_size")),
    rows=(*EMBEDDINGS, *NORMS, *attention(), *QK_NORMS, *experts(where="1")),
    constants=_SIGHTED,
    decoder={"causal": False},
    inert="dense_intermediate_size moe_layer_freq shared_expert_intermediate_size mask_token_id partial_rotary_factor",
    fixed={"qk_layernorm": True, "norm_topk_prob": False, "moe_router_enable_expert_bias": False, "rope_scaling": None},
    loader=Loader(refused=OUT_BIAS, needed=HEAD),
)

ARCHITECTURES = (LLADA, LLADA_MOE)
