"""Dots 3 Note's towers: a pyramid of experts that sees, a Whisper with SwiGLU that hears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import Dims, Split, Stack
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, linear, norm, vision
from llmconv.errors import Unsupported

_EYE = "vision_encoder."
_LAYER = _EYE + "blocks.{i}."
_AT = "v.blk.{i}."

_ONLY: dict[str, tuple[Any, ...]] = {
    "adapter_type": ("patch_merger",),
    "pre_pixel_shuffle": (True,),
    "router_scoring_func": ("sigmoid", None),
    "router_scale": (1, None),
    "temporal_patch_size": (1, None),
    "use_bias": (False, None),
    "use_qk_norm": (True,),
}
"""What llama.cpp computes, of settings of what sees; None: where there is no such setting."""
_ONLY_HEARD: dict[str, tuple[Any, ...]] = {
    "use_conv2d_stem": (True,),
    "use_rope": (True,),
    "use_rms_norm": (True,),
    "use_causal": (False, None),
    "merge_factor": (1, None),
    "chunk_seconds": (60,),
}


def _check(config: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], at: str) -> None:
    for name, known in only.items():
        if config.get(name) not in known:
            raise Unsupported(
                f"config.json: {at}.{name} is {config.get(name)!r:.40}, llama.cpp computes with {known[0]!r} alone"
            )


def _routed(metadata: Mapping[str, Any]) -> list[int]:
    """How many experts a layer has; 0 for one without."""
    return [int(n) for n in np.ravel(metadata.get("clip.vision.expert_count_per_layer", ()))]


def _experts(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Row]:
    """Rows of the layers with experts, of which each has its own number, and of the others."""
    for i, n in enumerate(_routed(metadata)):
        at, hf = f"v.blk.{i}.", f"{_EYE}blocks.{i}.mlp."
        wide = "n_ff"
        if n > 0:
            found = shapes.get(f"{hf}experts.0.fc1.weight") or shapes.get(f"{at}ffn_gate_exps.weight", (0, 0))[1:]
            wide = str(found[0])
            yield row(at + "ffn_gate_inp.weight", hf + "gate_weight", f"{n}, n_embd")
            yield row(at + "exp_probs_b.weight", hf + "router_bias", str(n))
        for gguf, name, shape in (
            ("ffn_gate", "fc1", f"{wide}, n_embd"),
            ("ffn_up", "fc3", f"{wide}, n_embd"),
            ("ffn_down", "fc2", f"n_embd, {wide}"),
        ):
            if n > 0:
                those = tuple(f"{hf}experts.{e}.{name}.weight" for e in range(n))
                yield row(f"{at}{gguf}_exps.weight", those, f"{n}, {shape}", Stack())
            else:
                yield row(f"{at}{gguf}.weight", f"{hf}{name}.weight", shape)


def _sees(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    _check(config, _ONLY, "vision_config")
    counts = config.get("pyramid_num_routed")
    if not isinstance(counts, list) or len(counts) != dims["n_layer"]:
        raise Unsupported("config.json: vision_config.pyramid_num_routed does not say how many experts each layer has")
    own["expert_count_per_layer"] = np.array([max(0, int(n)) for n in counts], np.int32)


def _sees_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("image_size", None)
    config.update({name: known[0] for name, known in _ONLY.items()})
    config.update(
        model_type="dots3_note_vision_encoder",
        hidden_size=dims["n_proj"],
        pyramid_num_routed=[int(n) or -1 for n in own.get("expert_count_per_layer", ())],
        adapter_in_dim=dims["n_embd"],
        adapter_out_dim=dims["n_proj"],
        adapter_merge_size=dims["merge"],
    )


_SEEN = vision(
    (
        row("v.patch_embd.weight", _EYE + "patch_embed.proj.weight", "n_embd, 3, patch, patch"),
        row("v.patch_embd.bias", _EYE + "patch_embed.proj.bias", "n_embd", optional=True),
        *norm("v.pre_ln", _EYE + "patch_embed.norm", bias=False),
        *norm(_AT + "ln1", _LAYER + "norm_1", bias=False),
        *linear(_AT + "attn_qkv", _LAYER + "attn.qkv", "3 * n_embd", "n_embd", bias=False),
        *norm(_AT + "attn_q_norm", _LAYER + "attn.q_norm", "n_embd // n_head", bias=False),
        *norm(_AT + "attn_k_norm", _LAYER + "attn.k_norm", "n_embd // n_head", bias=False),
        *linear(_AT + "attn_out", _LAYER + "attn.proj", "n_embd", "n_embd", bias=False),
        *norm(_AT + "ln2", _LAYER + "norm_2", bias=False),
        *norm("mm.post_norm", _EYE + "post_trunk_norm", bias=False),
        *norm("mm.input_norm", _EYE + "adapter.ln_q", "n_merged"),
        *linear("mm.0", _EYE + "adapter.mlp.0", "n_mid", "n_merged"),
        *linear("mm.2", _EYE + "adapter.mlp.2", "n_proj", "n_mid"),
    ),
    keys=keys("""
        image_size                      u32   -                         0
        patch_size                      u32   patch_size                14
        embedding_length                u32   embed_dim                 1536
        feed_forward_length             u32   intermediate_size         4224
        block_count                     u32   num_hidden_layers         42
        attention.head_count            u32   num_heads|num_attention_heads   24
        attention.layer_norm_epsilon    f32   rms_norm_eps              1e-5
        spatial_merge_size              u32   spatial_merge_size        2
        image_mean                      f32s  processor.vision_config.image_mean|processor.image_mean
        image_std                       f32s  processor.vision_config.image_std|processor.image_std
        image_min_pixels                u32   processor.vision_config.min_pixels|processor.min_pixels
        image_max_pixels                u32   processor.vision_config.max_pixels|processor.max_pixels
        expert_used_count               u32   capacity_factor           2
    """),
    constants={"projector_type": "dots3note_v", "/clip.use_silu": True},
    finish=_sees,
    rebuild=_sees_back,
)

_EAR = "audio_encoder.dots_encoder.speech_encoder."
_PART = _EAR + "layers.{i}."
_IN = "a.blk.{i}."


def _conv(n: int, n_in: str) -> tuple[Row, ...]:
    """A convolution over time and pitch."""
    return (
        row(f"a.conv2d.{n}.weight", f"{_EAR}conv2d{n}.weight", f"n_conv, {n_in}, 3, 3"),
        row(f"a.conv2d.{n}.bias", f"{_EAR}conv2d{n}.bias", "n_conv"),
    )


def _hears(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    around = config["outer"].get("audio_config") or {}
    _check(around, _ONLY_HEARD, "audio_config")
    _check(config, {"activation_function": ("swiglu",)}, "audio_config.whisper_config")
    rope = around.get("rope_parameters") or {}
    _check(rope, {"partial_rotary_factor": (0.5,), "rope_theta": (10000,)}, "audio_config.rope_parameters")


def _hears_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("layer_norm_eps", None)
    config.update(activation_function="swiglu")
    config["outer"] = {
        "audio_config": {name: known[0] for name, known in _ONLY_HEARD.items()}
        | {
            "model_type": "dots3_note_audio_encoder",
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
            "downsample_hidden_size": dims["n_conv"],
            "whisper_adapter_in_dim": dims["n_embd"],
            "whisper_adapter_out_dim": dims["n_proj"],
        }
    }


_HEARD = audio(
    (
        *_conv(1, "1"),
        *_conv(2, "n_conv"),
        *_conv(3, "n_conv"),
        *linear("a.conv_out", _EAR + "conv_out", "n_embd", "n_flat", bias="?"),
        *norm(_IN + "ln1", _PART + "self_attn_layer_norm", bias=False),
        *linear(_IN + "attn_q", _PART + "self_attn.q_proj", "n_embd", "n_embd", bias="?"),
        *linear(_IN + "attn_k", _PART + "self_attn.k_proj", "n_embd", "n_embd", bias="?"),
        *linear(_IN + "attn_v", _PART + "self_attn.v_proj", "n_embd", "n_embd", bias="?"),
        *linear(_IN + "attn_out", _PART + "self_attn.out_proj", "n_embd", "n_embd", bias="?"),
        *norm(_IN + "ln2", _PART + "final_layer_norm", bias=False),
        row(
            (_IN + "ffn_gate.weight", _IN + "ffn_up.weight"),
            _PART + "fc1.weight",
            ("n_ff, n_embd", "n_ff, n_embd"),
            Split(("n_ff", "n_ff")),
        ),
        row(
            (_IN + "ffn_gate.bias", _IN + "ffn_up.bias"),
            _PART + "fc1.bias",
            ("n_ff", "n_ff"),
            Split(("n_ff", "n_ff")),
            optional=True,
        ),
        *linear(_IN + "ffn_down", _PART + "fc2", "n_embd", "n_ff", bias="?"),
        *norm("a.post_ln", _EAR + "layer_norm", bias=False),
        *norm("mm.a.norm_pre", "audio_encoder.audio_adapter.proj.0"),
        *linear("mm.a.mlp.1", "audio_encoder.audio_adapter.proj.1", "n_mid", "n_embd"),
        *linear("mm.a.mlp.3", "audio_encoder.audio_adapter.proj.3", "n_proj", "n_mid"),
    ),
    keys=keys("""
        embedding_length                u32   d_model                   1280
        feed_forward_length             u32   encoder_ffn_dim           5120
        block_count                     u32   encoder_layers            32
        attention.head_count            u32   encoder_attention_heads   20
        num_mel_bins                    u32   num_mel_bins              128
        attention.layer_norm_epsilon    f32   -                         1e-6
    """),
    constants={"projector_type": "dots3note_a"},
    finish=_hears,
    rebuild=_hears_back,
)

DOTS3 = Tower(
    "dots3note_v",
    ("Dots3NoteForConditionalGeneration", "Dots3NoteForCausalLM"),
    "dots3_note",
    (
        Side(
            _SEEN,
            "vision_config",
            {"n_merged": ("mm.0.weight", 1), "n_mid": ("mm.0.weight", 0)},
            more=_experts,
        ),
        Side(
            _HEARD,
            "audio_config.whisper_config",
            {
                "n_conv": ("a.conv2d.1.weight", 0),
                "n_flat": ("a.conv_out.weight", 1),
                "n_mid": ("mm.a.mlp.1.weight", 0),
            },
        ),
    ),
    starts=("vision_encoder.", "audio_encoder."),
    spellings=((r"^model\.(?=vision_encoder\.|audio_encoder\.)", ""),),
    text=(),
    projectors=("dots3note_a",),
)

TOWERS = (DOTS3,)
