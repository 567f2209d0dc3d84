"""ERNIE 4.5: Llama with neighbouring rotary pairs; its first releases fuse q, k, v and up, gate."""

from __future__ import annotations

from llmconv.convert.archs.parts import COMMON, EMBEDDINGS, HEAD_DIM, NORMS, attention, gated_mlp
from llmconv.convert.archs.rope import rope_sections
from llmconv.convert.tables.architecture import Architecture, Form, HfName, keys, row
from llmconv.convert.tables.loader import MLP_BIASES, OUT_BIAS, Loader
from llmconv.convert.tables.ops import Split

_at = "{p}layers.{i}."

_attn = _at + "self_attn."

_q, _kv = "n_head * head_dim", "n_head_kv * head_dim"

_biases = tuple(r for r in attention(bias="use_bias") if r.gguf[0].endswith(".bias"))

ERNIE = Architecture(
    "ernie4_5",
    (HfName("Ernie4_5ForCausalLM", "ernie4_5"), HfName("Ernie4_5_ForCausalLM", "ernie4_5")),
    keys=(
        *(k for k in COMMON if k.gguf != "rope.freq_base"),
        *keys("rope.freq_base  f32  rope_theta  500000"),
        *HEAD_DIM,
    ),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        row(
            tuple(f"blk.{{i}}.attn_{n}.weight" for n in "qkv"),
            tuple(_attn + f"{n}_proj.weight" for n in "qkv"),
            (f"{_q}, n_embd", f"{_kv}, n_embd", f"{_kv}, n_embd"),
            alt=(Form((_attn + "qkv_proj.weight",), (Split((_q, _kv, _kv)),)),),
        ),
        row("blk.{i}.attn_output.weight", _attn + "o_proj.weight", f"n_embd, {_q}"),
        *_biases,
        row(
            ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
            (_at + "mlp.gate_proj.weight", _at + "mlp.up_proj.weight"),
            ("n_ff, n_embd", "n_ff, n_embd"),
            alt=(Form((_at + "mlp.up_gate_proj.weight",), (Split(("n_ff", "n_ff")),)),),
        ),
        row("blk.{i}.ffn_down.weight", _at + "mlp.down_proj.weight", "n_embd, n_ff"),
        *(r for r in gated_mlp() if r.gguf[0].endswith(".bias")),
    ),
    prefixes=("model.", "ernie.", "", "language_model.model.", "model.language_model."),
    tied=True,
    decoder={"rope": "pairs"},
    loader=Loader(refused=MLP_BIASES, ignored=OUT_BIAS),
)

PADDLE_OCR = ERNIE.variant(
    "paddleocr",
    HfName("PaddleOCRVLForConditionalGeneration", "paddleocr_vl"),
    finish=rope_sections,
    decoder={"rope": "halves"},
    reads="mrope_section",
    loader=Loader(without=OUT_BIAS),
)
"""The text model inside PaddleOCR-VL."""

ARCHITECTURES = (ERNIE, PADDLE_OCR)
