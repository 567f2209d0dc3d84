"""Baichuan 1 and 2: Llama with q, k and v fused; ALiBi in the 13B."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, NORMS, gated_mlp
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.loader import HEAD, MLP_BIASES, Loader
from llmconv.convert.tables.ops import Only, Split, rope_halves

_at = "{p}layers.{i}."

_kv = "n_head_kv * head_dim"

_q_shape, _kv_shape = "n_head * head_dim, n_embd", f"{_kv}, n_embd"

_permuted = (Only(0, rope_halves("n_head")), Only(1, rope_halves("n_head_kv")))

_qkv = ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v")

BAICHUAN = Architecture(
    "baichuan",
    (HfName("BaichuanForCausalLM", "baichuan"), HfName("BaiChuanForCausalLM", "baichuan")),
    keys=(
        *(key for key in COMMON if key.gguf != "context_length"),
        *keys("""
            context_length          u32   max_position_embeddings|model_max_length   # 13B has the second alone
            rope.dimension_count    u32   head_dim    = n_embd // n_head
        """),
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row(
            tuple(f"{n}.weight" for n in _qkv),
            _at + "self_attn.W_pack.weight",
            (_q_shape, _kv_shape, _kv_shape),
            Split(("n_head * head_dim", _kv, _kv)),
            *_permuted,
        ),
        row("blk.{i}.attn_output.weight", _at + "self_attn.o_proj.weight", "n_embd, n_head * head_dim"),
        *gated_mlp(),
    ),
    constants={"tensor_data_layout": "Meta AI original pth"},
    decoder={"rope": "pairs", "alibi_at": 40, "head_norm_vocab": 125_696},
    reads="z_loss_weight model_max_length",
    loader=Loader(refused=MLP_BIASES, needed=HEAD),
)

ARCHITECTURES = (BAICHUAN,)
