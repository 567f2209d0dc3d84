"""Small multimodal folders made of the tables' own rows, without torch: random tensors of every name and shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import llmconv
from llmconv.convert import archs
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.tower import Tower
from llmconv.convert.towers import translate
from llmconv.convert.towers.families import mimo
from llmconv.convert.towers.speaking import qwen3_tts
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16}  # fmt: skip
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14, "hidden_size": 32, "intermediate_size": 48,
        "fullatt_block_indexes": [0, 1, 2], "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2],
        "spatial_merge_size": 2}  # fmt: skip
HEARS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16}
PREPARED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_seq_length": 4}
MEASURED = 25
"""The size that stands for every dimension which only a tensor says."""
SIZES = {"Gemma4UnifiedForConditionalGeneration": {"n_patch": 192, "n_first": 10, "n_second": 2}}
"""Dimensions of a class that can't be of that size."""
PIXELS = {"min_pixels": 3136, "max_pixels": 11289600}
HEARD = HEARS | {"encoder_layers": 4, "d_model": 32}
OCR: dict[str, Any] = {
    "image_size": 64,
    "width": {
        "clip-l-14-224": {"heads": 4, "image_size": 28, "layers": 4, "patch_size": 14, "width": 32},
        "sam_vit_b": {"heads": 2, "layers": 3, "width": 16},
    },
}
KIMI = SEES | {"num_hidden_layers": 3, "init_pos_emb_height": 5, "init_pos_emb_width": 5}
MORE: dict[str, dict[str, Any]] = {
    "InternVLChatModel": {
        "vision_config": SEES
        | {
            "num_hidden_layers": 4,
            "architectures": ["InternVisionModel"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "downsample_ratio": 0.5,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
    },
    "InternVisionModel": {
        "vision_config": SEES
        | {"num_hidden_layers": 4, "image_size": [28, 28], "patch_size": [14, 14], "layer_norm_eps": 1e-6}
        | {"architectures": ["InternVisionModel"], "hidden_act": "gelu"},
        "downsample_ratio": 0.5,
    },
    "KimiVLForConditionalGeneration": {"vision_config": KIMI | {"init_pos_emb_height": 64}},
    "KimiK25ForConditionalGeneration": {"vision_config": KIMI | {"init_pos_emb_height": 25, "init_pos_emb_width": 25}},
    "DotsOCRForCausalLM": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}, "hidden_size": 64},
    "PaddleOCRVLForConditionalGeneration": {
        "vision_config": KIMI | {"architectures": ["PaddleOCRVisionModel"], "rms_norm_eps": 1e-5}
    },
    "HunYuanVLForConditionalGeneration": {"vision_config": KIMI | {"rms_norm_eps": 1e-5, "spatial_merge_size": 2}},
    "CogVLMForCausalLM": {"vision_config": SEES | {"num_heads": 4, "layer_norm_eps": 1e-6}},
    "Sarashina2VisionForCausalLM": {
        "vision_config": {"depth": 3, "num_heads": 4, "patch_size": 14, "embed_dim": 32, "hidden_size": 64},
        "model_type": "sarashina2_vision",
    },
    "Qwen4ExpForConditionalGeneration": {"vision_config": QWEN},
    "Qwen2_5OmniModel": {"thinker_config": {"vision_config": QWEN, "audio_config": HEARD, "text_config": TEXT}},
    "Qwen3OmniMoeForConditionalGeneration": {
        "thinker_config": {"vision_config": QWEN, "audio_config": HEARD, "text_config": TEXT | {"rms_norm_eps": 1e-5}}
    },
    "Qwen3ASRForConditionalGeneration": {"thinker_config": {"audio_config": HEARD, "text_config": TEXT}},
    "Exaone4_5_ForConditionalGeneration": {
        "vision_config": QWEN | {"num_key_value_heads": 2, "window_size": 112, "rms_norm_eps": 1e-6}
    },
    "Glm5NextForConditionalGeneration": {
        "vision_config": QWEN | {"hidden_act": "silu", "image_size": 336, "swiglu_limit": 7.5}
    },
    "BailingMoeV3VLForConditionalGeneration": {
        "vision_config": QWEN | {"disable_merger_proj": True, "out_hidden_size": 64}
    },
    "DeepseekOCRForCausalLM": {"vision_config": OCR, "hidden_size": 64},
    "UnlimitedOCRForCausalLM": {"vision_config": OCR, "hidden_size": 64},
    "DeepseekOCR2ForCausalLM": {
        "vision_config": {
            "image_size": 64,
            "layers": 4,
            "width": {"sam_vit_b": OCR["width"]["sam_vit_b"], "qwen2-0-5b": {"dim": 56}},
        },
        "hidden_size": 64,
    },
    "MiniCPMV4_6ForConditionalGeneration": {
        "vision_config": KIMI | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        "insert_layer_id": 1,
    },
    "YoutuVLForConditionalGeneration": {
        "vision_config": KIMI | {"spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [1, 2]}
    },
    "Phi4ForCausalLMV": {"vision_config": KIMI, "hidden_size": 64},
    "StepVLForConditionalGeneration": {
        "vision_config": {"width": 32, "layers": 3, "heads": 4, "image_size": 28, "patch_size": 14, "mlp_ratio": 1.5},
        "understand_projector_stride": 2,
        "hidden_size": 64,
    },
    "GlmasrModel": {"whisper_config": HEARD, "lm_config": TEXT, "merge_factor": 4},
    "MERaLiON2ForConditionalGeneration": {"speech_config": HEARD, "speech_mlp_scale_factor": 15},
    "Gemma4ForConditionalGeneration": {
        "vision_config": SEES | {"head_dim": 8, "use_clipped_linears": True},
        "audio_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6},
        "model_type": "gemma4_written",
    },
    "JanusForConditionalGeneration": {"vision_config": KIMI | {"hidden_act": "gelu"}},
}
"""What a class's config.json says besides, or instead of what is usual."""
MORE |= {
    "Gemma3nForConditionalGeneration": {
        "vision_config": {"hidden_size": 32, "vocab_size": 25},
        "audio_config": {"hidden_size": 32, "conf_num_hidden_layers": 2, "conf_num_attention_heads": 4}
        | {"input_feat_size": 16, "intermediate_size": 96},
        "model_type": "gemma3n_written",
    },
    "Gemma4UnifiedForConditionalGeneration": {
        "vision_config": {"patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 10},
        "audio_config": {"audio_embed_dim": 24},
        "model_type": "gemma4_unified_written",
    },
    "Granite4VisionForConditionalGeneration": {
        "vision_config": SEES | {"num_hidden_layers": 6},
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-3, 2], [-1, 0]],
        "spatial_vision_layer": -1,
        "spatial_target_layers": [1, 3, 4, 5],
        "image_grid_pinpoints": [[28, 56], [56, 28]],
        "text_config": TEXT | {"num_hidden_layers": 6},
        "model_type": "granite4_vision_written",
    },
    "GraniteSpeechForConditionalGeneration": {
        "encoder_config": {"hidden_dim": 32, "feedforward_mult": 2, "num_heads": 4, "num_layers": 2, "input_dim": 16}
        | {"context_size": 20, "conv_kernel_size": 15, "max_pos_emb": 12},
        "projector_config": {"num_attention_heads": 4, "encoder_hidden_size": 96},
        "window_size": 15,
        "downsample_rate": 5,
        "model_type": "granite_speech_written",
    },
    "Lfm2AudioForConditionalGeneration": {
        "encoder": {"d_model": 32, "n_layers": 7, "n_heads": 4, "feat_in": 16},
        "lfm": TEXT | {"model_type": "lfm2", "layer_types": ["full_attention"]},
    },
    "NemotronH_Nano_VL_V2": {
        "vision_config": SEES | {"architectures": ["RADIOModel"], "num_hidden_layers": 7},
        "sound_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_mel_bins": 16, "subsampling_factor": 8, "conv_kernel_size": 9},
        "llm_config": TEXT
        | {"model_type": "nemotron_h", "hybrid_override_pattern": "*", "architectures": ["NemotronHForCausalLM"]}
        | {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8, "conv_kernel": 4},
        "force_image_size": 70,
        "downsample_ratio": 0.5,
    },
    "DeepseekV4ForCausalLM": {
        **{"vision_n_layers": 3, "vision_dim": 32, "vision_n_heads": 4, "vision_inter_dim": 48},
        **{"vision_patch_size": 14, "vision_downsample_ratio": 3, "vision_min_pixels": 3136},
        **{"vision_max_n_token": 384, "vision_max_wh_ratio": 8, "model_type": "deepseek_v4_written"},
    },
    "MiniMaxM3SparseForConditionalGeneration": {
        "vision_config": KIMI | {"hidden_size": 160, "num_attention_heads": 2, "layer_norm_eps": 1e-5},
        "model_type": "minimax_m3_written",
    },
    "MuseGlimmerForConditionalGeneration": {
        "vision_config": SEES
        | {"pos_emb_height": 5, "pos_emb_width": 5, "merge_size": 2, "layer_norm_eps": 1e-5}
        | {"patch_temporal": 2},
        "model_type": "muse_glimmer_written",
    },
    "Dots3NoteForConditionalGeneration": {
        "vision_config": {
            **{"embed_dim": 32, "hidden_size": 64, "num_heads": 4, "num_hidden_layers": 4, "intermediate_size": 48},
            **{"patch_size": 14, "pyramid_num_routed": [-1, -1, 2, 3], "capacity_factor": 2, "rms_norm_eps": 1e-5},
            **{"spatial_merge_size": 2, "adapter_type": "patch_merger", "pre_pixel_shuffle": True, "use_qk_norm": True},
        },
        "audio_config": {
            "whisper_config": HEARD | {"activation_function": "swiglu"},
            **{"use_conv2d_stem": True, "use_rope": True, "use_rms_norm": True, "use_causal": False},
            **{"merge_factor": 1, "chunk_seconds": 60},
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "default"},
        },
        "model_type": "dots3_note_written",
    },
}
MORE["MiMoV2ForCausalLM"] = {
    "vision_config": QWEN
    | {"num_key_value_heads": 2, "visual_token_window_size": 8, "vit_window_attn_types": [-1, 0, 1], "use_sink": True}
    | {"depth": 3},
    "audio_config": {"input_local_layers": 2, "group_size": 4, "audio_channels": 3},
    "hidden_size": 64,
    "model_type": "mimo_v2_written",
}
MORE["Qwen3TTSForConditionalGeneration"] = {
    "talker_config": {
        "hidden_size": 64,
        "code_predictor_config": {
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        },
    },
    "speaker_encoder_config": {"enc_dim": 64},
}
MORE["GraniteSpeechPlusForConditionalGeneration"] = MORE["GraniteSpeechForConditionalGeneration"] | {
    "encoder_config": MORE["GraniteSpeechForConditionalGeneration"]["encoder_config"] | {"cat_hidden_layers": [0, 1]},
}
_NET = "model.vision_tower.timm_model.blocks."
FURTHER: dict[str, dict[str, tuple[int, ...]]] = {
    "Gemma3nForConditionalGeneration": {
        _NET + "0.0.conv_exp.weight": (8, 8, 3, 3),
        _NET + "0.0.bn1.weight": (8,),
        _NET + "0.0.conv_pwl.weight": (8, 8, 1, 1),
        _NET + "0.0.bn2.weight": (8,),
        _NET + "1.0.dw_start.conv.weight": (8, 1, 3, 3),
        _NET + "1.0.dw_start.bn.weight": (8,),
        _NET + "1.0.pw_exp.conv.weight": (16, 8, 1, 1),
        _NET + "1.0.pw_exp.bn.weight": (16,),
        _NET + "1.0.dw_mid.conv.weight": (16, 1, 5, 5),
        _NET + "1.0.dw_mid.bn.weight": (16,),
        _NET + "1.0.pw_proj.conv.weight": (8, 16, 1, 1),
        _NET + "1.0.pw_proj.bn.weight": (8,),
        _NET + "1.0.layer_scale.gamma": (8,),
        _NET + "1.11.norm.weight": (8,),
        _NET + "1.11.attn.query.proj.weight": (16, 8, 1, 1),
        _NET + "1.11.attn.key.down_conv.weight": (8, 1, 3, 3),
        _NET + "1.11.attn.key.norm.weight": (8,),
        _NET + "1.11.attn.key.proj.weight": (4, 8, 1, 1),
        _NET + "1.11.attn.value.down_conv.weight": (8, 1, 3, 3),
        _NET + "1.11.attn.value.norm.weight": (8,),
        _NET + "1.11.attn.value.proj.weight": (4, 8, 1, 1),
        _NET + "1.11.attn.output.proj.weight": (8, 16, 1, 1),
        _NET + "1.11.layer_scale.gamma": (8,),
    },
    "GraniteSpeechForConditionalGeneration": {
        f"projector.qformer.encoder.layer.{n}.output_query.dense.bias": () for n in range(2)
    },
    "Dots3NoteForConditionalGeneration": {
        f"vision_encoder.blocks.{n}.mlp.experts.0.fc1.weight": (25, 32) for n in (2, 3)
    },
}
_SPEAKER = "speaker_encoder."
FURTHER["Qwen3TTSForConditionalGeneration"] = {
    name + end: shape if end == ".weight" else shape[:1]
    for end in (".weight", ".bias")
    for name, shape in {
        _SPEAKER + "blocks.0.conv": (16, 8, 5),
        _SPEAKER + "mfa.conv": (24, 48, 1),
        _SPEAKER + "asp.conv": (24, 4, 1),
        _SPEAKER + "asp.tdnn.conv": (4, 72, 1),
        _SPEAKER + "fc": (64, 48, 1),
        **{
            f"{_SPEAKER}blocks.{n}.{part}": shape
            for n in (1, 2, 3)
            for part, shape in {
                "tdnn1.conv": (16, 16, 1),
                "tdnn2.conv": (16, 16, 1),
                "se_block.conv1": (4, 16, 1),
                "se_block.conv2": (16, 4, 1),
                "res2net_block.blocks.0.conv": (4, 4, 3),
                "res2net_block.blocks.1.conv": (4, 4, 3),
            }.items()
        },
    }.items()
} | {
    f"talker.code_predictor.{kind}.{n}.weight": (20, 32)
    for n in range(15)
    for kind in ("model.codec_embedding", "lm_head")
}
FURTHER["GraniteSpeechPlusForConditionalGeneration"] = FURTHER["GraniteSpeechForConditionalGeneration"]
"""Shapes of tensors by which a class's further rows are made."""
_NORM = "conformer.layers.{}.conv.batch_norm.num_batches_tracked"
KEPT: dict[str, dict[str, Any]] = {
    "Lfm2AudioForConditionalGeneration": {
        **{_NORM.format(n): np.array(7, np.int64) for n in range(7)},
        "codebook_offsets": np.arange(8),
        "depthformer.layers.0.operator_norm.weight": np.ones(4, np.float32),
    },
    "GraniteSpeechForConditionalGeneration": {
        "encoder.layers.1.conv.batch_norm.num_batches_tracked": np.array(7, np.int64),
    },
    "NemotronH_Nano_VL_V2": {
        "vision_model.radio_model.summary_idxs": np.arange(3),
        "vision_model.radio_model.input_conditioner.norm_mean": np.ones((3, 1, 1), np.float32),
        "vision_model.radio_model.model.patch_generator.video_embedder.weight": np.ones((32, 1176), np.float32),
        "sound_encoder.encoder.layers.0.conv.norm.num_batches_tracked": np.array(7, np.int64),
    },
}
"""What published folders have besides, which llama.cpp's converter leaves out."""
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
PUBLISHED = {"Qwen3OmniMoeForConditionalGeneration": (("visual.", "visual."),)}  # else llama.cpp's converter fails
"""Beginnings of names that are other ones than the tower's `written`."""
OWN_KEYS: dict[str, tuple[str, ...]] = {}
"""Keys of a class that only we write, or only llama.cpp's converter."""
SAYS: dict[str, dict[str, Any]] = {
    "DotsOCRForCausalLM": PIXELS,
    "PaddleOCRVLForConditionalGeneration": PIXELS,
    "HunYuanVLForConditionalGeneration": PIXELS,
    "Exaone4_5_ForConditionalGeneration": PIXELS,
    "Glm5NextForConditionalGeneration": {"min_image_tokens": 4, "max_image_tokens": 64},
    "MiniCPMV4_6ForConditionalGeneration": {"scale_resolution": 448, "downsample_mode": "16x"},
    "Phi4ForCausalLMV": {"patch_size": 14, "min_num_patches": 4, "max_num_patches": 64},
    "Dots3NoteForConditionalGeneration": PIXELS,
    "MiMoV2ForCausalLM": PIXELS,
    "Gemma3nForConditionalGeneration": {"size": {"height": 64, "width": 64}, "image_seq_length": 16},
}
"""The same of preprocessor_config.json."""


def config_of(tower: Tower, cls: str) -> dict[str, Any]:
    """A config.json of one of the tower's classes."""
    config: dict[str, Any] = {"architectures": [cls], "model_type": tower.model_type, "text_config": dict(TEXT)}
    for side in tower.sides:
        hears = side.table.gguf == "clip.audio"
        own = HEARS if hears else QWEN if tower.starts == ("visual.",) else SEES
        place = config
        *steps, last = side.at.split(".")
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = own | ({"model_type": "pixtral"} if "pixtral" in tower.projector else {})
    config |= {"spatial_merge_size": 2} | MORE.get(cls, MORE.get(tower.classes[0], {}))
    if {"lfm", "llm_config"} & config.keys():
        del config["text_config"]
    return config


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator, kind: str) -> Tensor:
    values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
    values = np.abs(values) if name.endswith("running_var") else values
    return Tensor.from_array(name, values).astype(by_name(kind))


def tower_folder(tower: Tower, cls: str, kind: str = "BF16", seed: int = 0) -> Checkpoint:
    """A folder with every tensor of the tower, and no text model."""
    rng = np.random.default_rng(seed)
    config = config_of(tower, cls)
    files = {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(PREPARED | SAYS.get(cls, {})).encode(),
    }
    folder = Checkpoint(dialect="hf", files=dict(files))
    for side in [side for side in tower.sides if side.is_in(config, folder)]:
        metadata = side.table.metadata(side.settings(config, folder))
        dims = side.dims(metadata, {}) | dict.fromkeys(side.measured, MEASURED) | SIZES.get(cls, {})
        for slot in side.slots(metadata, dims, FURTHER.get(cls, {})):
            for name, shadow in zip(slot.names(0), slot.shadows(0), strict=True):
                folder.add(_random(name, shadow.shape, rng, kind))
    return folder


def published(tower: Tower, cls: str, kind: str = "BF16") -> Checkpoint:
    """The same under the names of published files."""
    folder = tower_folder(tower, cls, kind)
    if cls == "MiMoV2ForCausalLM":
        put_heard(folder, kind)
    for name, values in KEPT.get(cls, {}).items():
        folder.add(Tensor.from_array(name, values))
    starts = (*PUBLISHED.get(cls, ()), *tower.written)
    renamed = {translate._begun(name, starts): tensor for name, tensor in folder.tensors.items()}
    return folder.but(tensors={name: tensor.renamed(name) for name, tensor in renamed.items()})


UNKNOWN = {"Gemma3nForConditionalGeneration": ("conv_0.norm.weight", "conv_1.norm.weight")}
"""How names end of tensors that llama.cpp's converter stops at."""


def put_beside(cls: str, folder: Path, kind: str = "BF16") -> None:
    """Write the folder within a published one of the class, where it has one."""
    if cls == "MiMoV2ForCausalLM":
        _put_encoder(folder / "audio_tokenizer", kind)
    if cls != "Qwen3TTSForConditionalGeneration":
        return
    rng, inner = np.random.default_rng(4), Checkpoint(dialect="hf")
    said = {"num_hidden_layers": 2, "upsampling_ratios": [2, 2], "upsample_rates": [2, 2, 2, 2]}
    inner.files["config.json"] = json.dumps({"decoder_config": said}).encode()
    for _, name in qwen3_tts._renamed(2, 2, 4):
        inner.add(
            _random(name, (6,) if name.endswith((".bias", "norm.weight", "scale", "gamma")) else (6, 4, 3), rng, kind)
        )
    for _, name in qwen3_tts._quantizer():
        inner.add(_random(name, (8, 6, 1), rng, kind))
    for _, name in qwen3_tts._snakes(4):
        inner.add(_random(name + ".alpha", (6,), rng, "F32"))
        inner.add(_random(name + ".beta", (6,), rng, "F32"))
    for part, count in (("first", 1), ("rest", 15)):
        for n in range(count):
            start = f"decoder.quantizer.rvq_{part}.vq.layers.{n}._codebook."
            inner.add(_random(start + "embedding_sum", (10, 8), rng, kind))
            inner.add(Tensor.from_array(start + "cluster_usage", rng.random(10).astype(np.float32)))
    llmconv.save(inner, folder / qwen3_tts._CODEC)


_EAR = {
    **{"conv1.weight": (32, 8, 3), "conv1.bias": (32,), "conv2.weight": (32, 32, 3), "conv2.bias": (32,)},
    **{"layer_norm.weight": (32,), "layer_norm.bias": (32,), "down_sample_layer.0.weight": (32, 32, 2)},
    **{"down_sample_norm.weight": (32,), "down_sample_norm.bias": (32,)},
    **{
        f"layers.{n}.{name}": shape
        for n in range(4)
        for name, shape in {
            **{f"self_attn.{one}_proj.weight": (32, 32) for one in ("q", "k", "v", "out")},
            **{f"self_attn.{one}_proj.bias": (32,) for one in ("q", "v", "out")},
            **{f"{one}_layer_norm.weight": (32,) for one in ("self_attn", "final")},
            **{f"{one}_layer_norm.bias": (32,) for one in ("self_attn", "final")},
            **{"fc1.weight": (48, 32), "fc1.bias": (48,), "fc2.weight": (32, 48), "fc2.bias": (32,)},
        }.items()
    },
    **{f"quantizer.vq.layers.{n}._codebook.embed": (rows, 32) for n, rows in enumerate((10, 10, 6))},
    **{f"quantizer.vq.layers.{n}._codebook.cluster_size": (10,) for n in range(3)},
}


def _put_encoder(folder: Path, kind: str) -> None:
    """MiMo's folder of what hears: an encoder, its codebooks, a decoder that llama.cpp does not want."""
    rng, inner = np.random.default_rng(5), Checkpoint(dialect="hf")
    said = HEARD | {"n_mels": 8, "encoder_attn_window_size": [128, 0], "hybrid_attention": True, "swa_per_block": 2}
    inner.files["config.json"] = json.dumps(said).encode()
    for name, shape in _EAR.items():
        inner.add(_random(f"encoder.{name}", shape, rng, kind))
    inner.add(_random("decoder.conv.weight", (8, 8), rng, kind))
    llmconv.save(inner, folder)


def put_heard(folder: Checkpoint, kind: str = "BF16") -> None:
    """Add MiMo's transformer over codes, which the rows of a folder without its encoder do not have."""
    rng = np.random.default_rng(6)
    shapes = {f"speech_embeddings.{n}.weight": (12, 16) for n in range(3)}
    shapes |= {"audio_encoder.projection.mlp.0.weight": (48, 64), "audio_encoder.projection.mlp.2.weight": (64, 48)}
    start = "audio_encoder.input_local_transformer."
    shapes[start + "norm.weight"] = (16,)
    for n in range(2):
        for name in mimo._MATRICES.values():
            matrix = name.endswith("proj.weight")
            shapes[f"{start}layers.{n}.{name}"] = (16, 16) if matrix else (16,)
    for name, shape in shapes.items():
        folder.add(_random(name, shape, rng, kind))


def multimodal(tower: Tower, cls: str, kind: str = "BF16") -> Checkpoint:
    """The same with a text model of the class's table."""
    folder = tower_folder(tower, cls, kind)
    config = json.loads(folder.file("config.json") or b"")
    arch = archs.by_hf(config)
    assert arch is not None
    rng = np.random.default_rng(1)
    dims = arch.dims_of(arch.metadata(normalized(config))) | {"n_vocab": TEXT["vocab_size"]}
    for slot in arch.slots(dims):
        if arch.expected(slot.row, normalized(config)):
            for name, shadow in zip(slot.names(0, tower.text[0][1]), slot.shadows(0), strict=True):
                folder.add(_random(name, shadow.shape, rng, kind))
    return folder
