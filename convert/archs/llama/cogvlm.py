"""The text model of CogVLM: a Llama whose layers have a second set of matrices for the tokens of an image."""

from __future__ import annotations

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import attention, gated_mlp
from llmconv.convert.tables.architecture import HfName, Row, row

_at = "{p}layers.{i}."

_qkv, _out = "3 * n_head * head_dim, n_embd", "n_embd, n_head * head_dim"


def _set(gguf: str, attn: str, mlp: str) -> tuple[Row, ...]:
    """One of the two sets; gguf: what stands before its names there."""
    start, inner = f"{_at}self_attn.{attn}_expert_", f"{_at}mlp.{mlp}."
    ffn = gguf or "ffn_"
    return (
        row(f"blk.{{i}}.{gguf}attn_qkv.weight", start + "query_key_value.weight", _qkv),
        row(f"blk.{{i}}.{gguf}attn_output.weight", start + "dense.weight", _out),
        row(f"blk.{{i}}.{ffn}gate.weight", inner + "gate_proj.weight", "n_ff, n_embd"),
        row(f"blk.{{i}}.{ffn}up.weight", inner + "up_proj.weight", "n_ff, n_embd"),
        row(f"blk.{{i}}.{ffn}down.weight", inner + "down_proj.weight", "n_embd, n_ff"),
    )


COGVLM = LLAMA.variant(
    "cogvlm",
    HfName("CogVLMForCausalLM", "cogvlm"),
    drop=(*NOT_DENSE, *(r.gguf[0] for r in (*attention(), *gated_mlp()))),
    keys=(),
    rows=(*_set("", "language", "language_mlp"), *_set("vis_", "vision", "vision_mlp")),
    decoder={"rope": "halves"},
    inert="template_version cross_hidden_size cross_compute_hidden_size cross_image_size",
)

ARCHITECTURES = (COGVLM,)
