"""Pocket TTS: what hears a voice (Mimi's encoder), what makes latents of what the backbone gives (a flow), and what
makes sound of latents (Mimi's decoder).  Layers are counted by the tensors at hand, which keep their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import as_they_are, audio, gen_audio, split_qkv

_FLOW = "flow_lm.flow_net."
_STAGES = 3
_LAYER = {
    "ln1.weight": "norm1.weight",
    "ln1.bias": "norm1.bias",
    "ln2.weight": "norm2.weight",
    "ln2.bias": "norm2.bias",
    "attn_out.weight": "self_attn.out_proj.weight",
    "ffn_up.weight": "linear1.weight",
    "ffn_down.weight": "linear2.weight",
    "ls1.weight": "layer_scale_1.scale",
    "ls2.weight": "layer_scale_2.scale",
}
Shapes = Mapping[str, tuple[int, ...]]


def _mimi(gguf: str, seanet: str, hf: str, first: int, scale: int, shapes: Shapes) -> Iterable[Row]:
    """Rows of Mimi's encoder or decoder.  first, scale: where a stage's residual unit and its scaling stand in it."""
    pairs = {"conv_in": "model.0.conv", "conv_out": f"model.{3 * _STAGES + 2}.conv"}
    for n in range(_STAGES):
        unit = f"model.{first + 3 * n}.block"
        pairs |= {f"blk.{n}.res_conv1": f"{unit}.1.conv", f"blk.{n}.res_conv2": f"{unit}.3.conv"}
        pairs[f"blk.{n}.scale_conv"] = f"model.{scale + 3 * n}.{'conv' if first < scale else 'convtr'}"
    ends = (".weight", ".bias")
    yield from _there({f"{seanet}{g}{end}": f"mimi.{hf}.{h}{end}" for g, h in pairs.items() for end in ends}, shapes)
    layer = f"mimi.{hf}_transformer.transformer.layers."
    for n in range(len(shapes)):
        names = {f"{gguf}{n}.{g}": f"{layer}{n}.{h}" for g, h in _LAYER.items()}
        if not {*names, *names.values()} & shapes.keys():
            break
        yield from _there(names, shapes)
        yield from split_qkv(f"{gguf}{n}.", f"{layer}{n}.self_attn.in_proj", bias=False)


def _there(names: Mapping[str, str], shapes: Shapes) -> Iterable[Row]:
    """Rows of those that are there, a folder's or a GGUF's."""
    return as_they_are({g: h for g, h in names.items() if g in shapes or h in shapes}, shapes)


def _heard(metadata: Mapping[str, Any], shapes: Shapes) -> Iterable[Row]:
    yield from _mimi("a.blk.", "a.seanet.", "encoder", 1, 3, shapes)
    yield from as_they_are(
        {
            "a.downsample.conv.weight": "mimi.downsample.conv.conv.weight",
            "a.speaker_proj.weight": "flow_lm.speaker_proj_weight",
        },
        shapes,
    )


def _made(metadata: Mapping[str, Any], shapes: Shapes) -> Iterable[Row]:
    yield from _mimi("a.gen.wav.tfm.blk.", "a.gen.wav.seanet.", "decoder", 3, 2, shapes)
    names = {
        "a.gen.input_linear.weight": "flow_lm.input_linear.weight",
        "a.gen.emb_mean": "flow_lm.emb_mean",
        "a.gen.emb_std": "flow_lm.emb_std",
        "a.gen.wav.upsample.weight": "mimi.upsample.convtr.convtr.weight",
    }
    both = {
        "out_eos": "flow_lm.out_eos",
        "flow.input_proj": _FLOW + "input_proj",
        "flow.cond_embd": _FLOW + "cond_embed",
        "flow.final.proj": _FLOW + "final_layer.linear",
        "flow.final.ada": _FLOW + "final_layer.adaLN_modulation.1",
    }
    parts = {"norm": "in_ln", "up": "mlp.0", "down": "mlp.2", "ada": "adaLN_modulation.1"}
    for n in range(sum(".in_ln.weight" in name or ".ada.weight" in name for name in shapes)):
        both |= {f"flow.blk.{n}.{g}": f"{_FLOW}res_blocks.{n}.{h}" for g, h in parts.items()}
    for n in range(sum(name.endswith(".freqs") for name in shapes)):
        both |= {f"flow.time.{n}.{g}": f"{_FLOW}time_embed.{n}.mlp.{h}" for g, h in (("up", 0), ("down", 2))}
        names |= {f"a.gen.flow.time.{n}.freqs": f"{_FLOW}time_embed.{n}.freqs"}
        names |= {f"a.gen.flow.time.{n}.norm": f"{_FLOW}time_embed.{n}.mlp.3.alpha"}
    names |= {f"a.gen.{g}{end}": h + end for g, h in both.items() for end in (".weight", ".bias")}
    yield from _there(names, shapes)
    hf, gguf = "mimi.quantizer.output_proj.weight", "a.gen.wav.quant_out.weight"
    rows, columns = (*(shapes.get(hf) or shapes.get(gguf) or ()), 0, 0)[:2]
    yield row(gguf, hf, f"{rows}, {columns}", Reshape((rows, columns, 1), (rows, columns)))


_SIZES = keys("""
    projection_dim                  u32   text.hidden_size
    embedding_length                u32   hidden_size
    feed_forward_length             u32   intermediate_size
    block_count                     u32   num_hidden_layers
    attention.head_count            u32   num_attention_heads
    attention.layer_norm_epsilon    f32   -                      1e-5
""")

POCKET_TTS = Tower(
    "pockettts_spkenc",
    ("PocketTTSModel",),
    "pockettts",
    (
        Side(
            audio(
                (), keys=(*_SIZES, *keys("num_mel_bins  u32  -  1")), constants={"projector_type": "pockettts_spkenc"}
            ),
            "audio_config",
            more=_heard,
        ),
        Side(
            gen_audio(
                (), keys=(*_SIZES, *keys("model_variant  str  folder")), constants={"projector_type": "pockettts_gen"}
            ),
            "audio_config",
            more=_made,
        ),
    ),
    starts=(
        "mimi.",
        _FLOW,
        *(f"flow_lm.{name}" for name in ("speaker_proj_weight", "input_linear.", "emb_", "out_eos.")),
    ),
    text=(),
    projectors=("pockettts_gen",),
    shared=("flow_lm.input_linear.weight",),
    unsaid=True,
)

TOWERS = (POCKET_TTS,)
