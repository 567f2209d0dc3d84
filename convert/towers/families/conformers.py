"""Towers that hear by NeMo's conformer: LFM2-Audio's, and the Parakeet beside RADIO in Nemotron Nano VL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv.convert.tables.architecture import Row, keys, row
from llmconv.convert.tables.ops import BatchNorm, Dims, Op, Reshape
from llmconv.convert.tables.tower import Side, Tower
from llmconv.convert.towers.parts import audio, linear, norm, vision
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain
from llmconv.quant.block import Bytes

_IN = "a.blk.{i}."
_FOLDED = ("weight", "bias", "running_mean", "running_var")


_EACH, _POINT = "n_conv, 1, 3, 3", "n_conv, n_conv, 1, 1"


def _subsampling(hf: str, bias: Reshape) -> tuple[Row, ...]:
    """Rows of the convolutions that make one vector of eight: every other one by channel, those behind of one place."""
    return tuple(
        one
        for n, shape in ((0, _EACH), (2, _EACH), (3, _POINT), (5, _EACH), (6, _POINT))
        for one in (
            row(f"a.conv1d.{n}.weight", f"{hf}.{n}.weight", shape),
            row(f"a.conv1d.{n}.bias", f"{hf}.{n}.bias", ", ".join(map(str, bias.gguf)), bias),
        )
    )


def _half(n: int, hf: str, bias: bool | str) -> tuple[Row, ...]:
    """Half a step of a layer, before the attention or behind it."""
    end = "" if n == 1 else "_1"
    return (
        *norm(f"{_IN}ffn_norm{end}", f"{hf}norm_feed_forward{n}"),
        *linear(f"{_IN}ffn_up{end}", f"{hf}feed_forward{n}.linear1", "n_mid", "n_embd", bias=bias),
        *linear(f"{_IN}ffn_down{end}", f"{hf}feed_forward{n}.linear2", "n_embd", "n_mid", bias=bias),
    )


def _attention(hf: str, names: str, biases: tuple[str, str], bias: bool | str) -> tuple[Row, ...]:
    """Rows of attention that looks at distances; names: of q, k, v, out and the distances' matrix."""
    q, k, v, out, far = names.split()
    return (
        *norm(_IN + "ln1", hf + "norm_self_att"),
        *linear(_IN + "attn_q", f"{hf}self_attn.{q}", "n_embd", "n_embd", bias=bias),
        *linear(_IN + "attn_k", f"{hf}self_attn.{k}", "n_embd", "n_embd", bias=bias),
        *linear(_IN + "attn_v", f"{hf}self_attn.{v}", "n_embd", "n_embd", bias=bias),
        *linear(_IN + "attn_out", f"{hf}self_attn.{out}", "n_embd", "n_embd", bias=bias),
        *linear(_IN + "linear_pos", f"{hf}self_attn.{far}", "n_embd", "n_embd", bias=False),
        row(_IN + "pos_bias_u", f"{hf}self_attn.{biases[0]}", "n_head, n_embd // n_head"),
        row(_IN + "pos_bias_v", f"{hf}self_attn.{biases[1]}", "n_head, n_embd // n_head"),
    )


def _point(gguf: str, hf: str, n_out: str) -> Row:
    """A convolution of one place as a matrix."""
    shape = Reshape(hf=(n_out, "n_embd", 1), gguf=(n_out, "n_embd"))
    return row(f"{_IN}{gguf}.weight", hf, f"{n_out}, n_embd", shape)


_LAYER = "conformer.layers.{i}."
_ADAPTER = "audio_adapter.model."


def _lfm(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["feed_forward_length"] = np.uint32(dims["n_embd"])  # what llama.cpp's converter writes; nobody reads it


def _lfm_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("layer_norm_eps", None)
    config.update(
        ff_expansion_factor=dims["n_mid"] // max(1, dims["n_embd"]),
        conv_kernel_size=dims["n_kernel"],
        subsampling="dw_striding",
        subsampling_factor=8,
        subsampling_conv_channels=dims["n_conv"],
    )


LFM2_AUDIO = Tower(
    "lfm2a",
    ("Lfm2AudioForConditionalGeneration",),
    "lfm2_audio",
    (
        Side(
            audio(
                (
                    *_subsampling("conformer.pre_encode.conv", Reshape(hf=("n_conv",), gguf=("n_conv", 1, 1))),
                    *linear("a.pre_encode.out", "conformer.pre_encode.out", "n_embd", "n_flat"),
                    *_half(1, _LAYER, True),
                    *_attention(
                        _LAYER,
                        "linear_q linear_k linear_v linear_out linear_pos",
                        ("pos_bias_u", "pos_bias_v"),
                        True,
                    ),
                    *norm(_IN + "norm_conv", _LAYER + "norm_conv"),
                    _point("conv_pw1", _LAYER + "conv.pointwise_conv1.weight", "2 * n_embd"),
                    row(_IN + "conv_pw1.bias", _LAYER + "conv.pointwise_conv1.bias", "2 * n_embd"),
                    row(
                        _IN + "conv_dw.weight",
                        _LAYER + "conv.depthwise_conv.weight",
                        "n_embd, n_kernel",
                        Reshape(hf=("n_embd", 1, "n_kernel"), gguf=("n_embd", "n_kernel")),
                    ),
                    row(_IN + "conv_dw.bias", _LAYER + "conv.depthwise_conv.bias", "n_embd"),
                    row(
                        (_IN + "conv_norm.weight", _IN + "conv_norm.bias"),
                        tuple(f"{_LAYER}conv.batch_norm.{name}" for name in _FOLDED),
                        ("n_embd", "n_embd"),
                        BatchNorm(),
                    ),
                    _point("conv_pw2", _LAYER + "conv.pointwise_conv2.weight", "n_embd"),
                    row(_IN + "conv_pw2.bias", _LAYER + "conv.pointwise_conv2.bias", "n_embd"),
                    *_half(2, _LAYER, True),
                    *norm(_IN + "ln2", _LAYER + "norm_out"),
                    *norm("mm.a.mlp.0", _ADAPTER + "0"),
                    *linear("mm.a.mlp.1", _ADAPTER + "1", "n_wide", "n_embd"),
                    *linear("mm.a.mlp.3", _ADAPTER + "3", "n_proj", "n_wide"),
                    row("a.position_embd.weight", "audio_embedding.embedding.weight", "n_codes, n_proj"),
                    *norm("a.position_embd_norm", "audio_embedding.embedding_norm", "n_proj", bias=False),
                    row("a.embd_to_logits.weight", "audio_embedding.to_logits.weight", "n_codes, n_proj"),
                ),
                keys=keys("""
                    embedding_length        u32   d_model     512
                    feed_forward_length     u32   -
                    block_count             u32   n_layers    17
                    attention.head_count    u32   n_heads     8
                    num_mel_bins            u32   feat_in     128
                """),
                constants={"/clip.projector_type": "lfm2a"},
                finish=_lfm,
                rebuild=_lfm_back,
            ),
            "encoder",
            {
                "n_conv": ("a.conv1d.0.weight", 0),
                "n_flat": ("a.pre_encode.out.weight", 1),
                "n_mid": ("a.blk.0.ffn_up.weight", 0),
                "n_kernel": ("a.blk.0.conv_dw.weight", -1),
                "n_wide": ("mm.a.mlp.1.weight", 0),
                "n_codes": ("a.position_embd.weight", 0),
            },
        ),
    ),
    starts=(
        *("conformer.", _ADAPTER, "audio_embedding.", "audio_loss_weights", "codebook_offsets"),
        *("depth_embeddings.", "depth_linear.", "depthformer."),
    ),
    kept=(
        r"conformer\.layers\.\d+\.conv\.batch_norm\.num_batches_tracked",
        r"(?:audio_loss_weights|codebook_offsets|depth_embeddings|depth_linear|depthformer)\b.*",
    ),
    text=(("model.", "lfm."),),
    inner="lfm",
)

_RADIO = "vision_model.radio_model.model."
_EYE = _RADIO + "blocks.{i}."
_PLACES = _RADIO + "patch_generator.pos_embed"
_AT = "v.blk.{i}."
_SIDE = "(image // patch)"


def _placed(folder: Checkpoint, settings: Mapping[str, Any]) -> Iterable[Tensor]:
    """The table of positions at the size that pictures are cut to, of one for the largest pictures there may be."""
    table = folder.tensors.get(_PLACES)
    outer, patch = settings["outer"], int(settings.get("patch_size", 16))
    side = int(outer.get("force_image_size") or 512) // max(1, patch)
    if table is None or len(table.shape) != 3 or table.shape[1] == side * side:
        return ()
    n, width = math.isqrt(table.shape[1]), table.shape[2]

    def read(start: int, stop: int) -> Bytes:
        values = table.numpy().astype(np.float32).reshape(n, n, width)
        return _resized(values, side).reshape(side * side, width).view(np.uint8)[start:stop]

    return (Tensor("v.position_embd.weight", (1, side * side, width), plain.F32, read),)


def _resized(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A square of vectors with another number of them a side: bilinear, corners on corners."""
    n = len(values)
    at = np.arange(side, dtype=np.float32) * np.float32((n - 1) / max(1, side - 1))
    low = np.minimum(at.astype(np.intp), n - 1)
    high = np.minimum(low + 1, n - 1)
    part = (at - low.astype(np.float32))[:, None]
    rows = []
    for y in range(side):
        above, below = values[low[y]], values[high[y]]
        first = above[low] * (1 - part) + above[high] * part
        second = below[low] * (1 - part) + below[high] * part
        rows.append(first * (1 - part[y]) + second * part[y])
    return np.ascontiguousarray(rows, np.float32)


def _radio(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    ratio = float(config["outer"].get("downsample_ratio", 0.5))
    own["projector.scale_factor"] = np.uint32(int(1 / ratio) if ratio > 0 else 0)
    hears = isinstance(config["outer"].get("sound_config"), Mapping)
    own["projector_type" if hears else "/clip.projector_type"] = "nemotron_v2_vl"
    for name, usual in (("image_mean", (0.485, 0.456, 0.406)), ("image_std", (0.229, 0.224, 0.225))):
        if name not in own:
            own[name] = np.array(usual, np.float32)


def _radio_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("layer_norm_eps", None)
    outer = config.setdefault("outer", {})
    outer["downsample_ratio"] = 1 / max(1, int(own.get("projector.scale_factor", 2)))
    config["architectures"] = ["RADIOModel"]


_SEEN = vision(
    (
        row("v.class_embd", _RADIO + "patch_generator.cls_token.token", "n_class, n_embd"),
        row(
            "v.patch_embd.weight",
            _RADIO + "patch_generator.embedder.weight",
            "n_embd, 3, patch, patch",
            Reshape(hf=("n_embd", "3 * patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
        ),
        row(
            "v.position_embd.weight",
            _PLACES,
            f"1, {_SIDE} * {_SIDE}, n_embd",
            when=f"n_places == {_SIDE} * {_SIDE}",
        ),
        *norm(_AT + "ln1", _EYE + "norm1"),
        *linear(_AT + "attn_qkv", _EYE + "attn.qkv", "3 * n_embd", "n_embd", bias="?"),
        *linear(_AT + "attn_out", _EYE + "attn.proj", "n_embd", "n_embd"),
        *norm(_AT + "ln2", _EYE + "norm2"),
        *linear(_AT + "ffn_up", _EYE + "mlp.fc1", "n_ff", "n_embd"),
        *linear(_AT + "ffn_down", _EYE + "mlp.fc2", "n_embd", "n_ff"),
        row("mm.model.mlp.0.weight", "mlp1.0.weight", "n_joined"),
        row("mm.model.mlp.1.weight", "mlp1.1.weight", "n_wide, n_joined"),
        row("mm.model.mlp.3.weight", "mlp1.3.weight", "n_proj, n_wide"),
    ),
    keys=keys("""
        image_size              u32   outer.force_image_size    512
        embedding_length        u32   hidden_size               1280
        feed_forward_length     u32   intermediate_size         5120
        block_count             u32   num_hidden_layers         32
        attention.head_count    u32   num_attention_heads       16
        attention.layer_norm_epsilon    f32   -                 1e-6
    """),
    constants={"/clip.use_gelu": True},
    finish=_radio,
    rebuild=_radio_back,
)

_SOUND = "sound_encoder.encoder."
_PART = _SOUND + "layers.{i}."
_ROW = Reshape(hf=("n_conv",), gguf=(1, "n_conv", 1, 1))


def _point_bias(gguf: str, hf: str, n: str) -> Row:
    shape = Reshape(hf=(n,), gguf=(1, n, 1, 1))
    return row(f"{_IN}{gguf}.bias", hf, f"1, {n}, 1, 1", shape, optional=True)


_DEPTHWISE: Op = Reshape(hf=("n_embd", 1, "n_kernel"), gguf=(1, 1, "n_embd", "n_kernel"))


def _sound_back(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config.pop("layer_norm_eps", None)
    config.update(
        model_type="parakeet", subsampling_conv_channels=dims["n_conv"], projection_hidden_size=dims["n_wide"]
    )


_HEARD = audio(
    (
        row("a.mel_filters", _SOUND + "feature_extractor.featurizer.fb", "1, n_mel, n_freq", optional=True),
        row("a.window", _SOUND + "feature_extractor.featurizer.window", "n_window", optional=True),
        *_subsampling(_SOUND + "subsampling.layers", _ROW),
        *linear("a.pre_encode.out", _SOUND + "subsampling.linear", "n_embd", "n_flat"),
        *_half(1, _PART, "?"),
        *_attention(_PART, "q_proj k_proj v_proj o_proj relative_k_proj", ("bias_u", "bias_v"), "?"),
        *norm(_IN + "norm_conv", _PART + "norm_conv"),
        _point("conv_pw1", _PART + "conv.pointwise_conv1.weight", "2 * n_embd"),
        _point_bias("conv_pw1", _PART + "conv.pointwise_conv1.bias", "2 * n_embd"),
        row(_IN + "conv_dw.weight", _PART + "conv.depthwise_conv.weight", "1, 1, n_embd, n_kernel", _DEPTHWISE),
        row(_IN + "conv_dw.bias", _PART + "conv.depthwise_conv.bias", "n_embd", optional=True),
        *norm(_IN + "conv_norm", _PART + "conv.norm"),
        row(_IN + "conv_norm_mean", _PART + "conv.norm.running_mean", "n_embd"),
        row(_IN + "conv_norm_var", _PART + "conv.norm.running_var", "n_embd"),
        _point("conv_pw2", _PART + "conv.pointwise_conv2.weight", "n_embd"),
        _point_bias("conv_pw2", _PART + "conv.pointwise_conv2.bias", "n_embd"),
        *_half(2, _PART, "?"),
        *norm(_IN + "ln2", _PART + "norm_out"),
        *norm("mm.a.norm_pre", "sound_projection.norm", bias=False),
        *linear("mm.a.mlp.1", "sound_projection.linear1", "n_wide", "n_embd", bias="?"),
        *linear("mm.a.mlp.2", "sound_projection.linear2", "n_proj", "n_wide", bias="?"),
    ),
    keys=keys("""
        subsampling_factor      u32   subsampling_factor    8
        conv_kernel_size        u32   conv_kernel_size      9
        attention.layer_norm_epsilon  f32   -               1e-5
    """),
    constants={"projector_type": "parakeet"},
    rebuild=_sound_back,
)

NEMOTRON_VL = Tower(
    "nemotron_v2_vl",
    ("NemotronH_Nano_VL_V2", "RADIOModel"),
    "NemotronH_Nano_VL_V2",
    (
        Side(
            _SEEN,
            "vision_config",
            {
                "n_class": ("v.class_embd", 0),
                "n_places": ("v.position_embd.weight", -2),
                "n_joined": ("mm.model.mlp.0.weight", 0),
                "n_wide": ("mm.model.mlp.1.weight", 0),
            },
            made=_placed,
        ),
        Side(
            _HEARD,
            "sound_config",
            {
                "n_freq": ("a.mel_filters", -1),
                "n_window": ("a.window", 0),
                "n_conv": ("a.conv1d.0.weight", 0),
                "n_flat": ("a.pre_encode.out.weight", 1),
                "n_mid": ("a.blk.0.ffn_up.weight", 0),
                "n_kernel": ("a.blk.0.conv_dw.weight", -1),
                "n_wide": ("mm.a.mlp.1.weight", 0),
            },
            optional=True,
        ),
    ),
    starts=("vision_model.", "mlp1.", "sound_encoder.", "sound_projection."),
    kept=(
        r"vision_model\.input_conditioner\..*",
        r"vision_model\.radio_model\.(?:input_conditioner\..*|summary_idxs)",
        r"vision_model\.radio_model\.model\.patch_generator\.(?:video_embedder\..*|pos_embed)",
        r"sound_encoder\.encoder\.layers\.\d+\.conv\.norm\.num_batches_tracked",
    ),
    inner="llm_config",
    text=(("backbone.", "language_model.backbone."), ("lm_head.", "language_model.lm_head.")),
    projectors=("parakeet",),
)

TOWERS = (LFM2_AUDIO, NEMOTRON_VL)
