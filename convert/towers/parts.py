"""What tables of towers are made of: keys of both sides, rows of the usual blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmconv.convert.tables.architecture import Architecture, HfName, Key, Row, keys, row
from llmconv.convert.tables.config import Settings
from llmconv.convert.tables.ops import Op, Reshape, Split
from llmconv.errors import Unsupported

__all__ = [
    "AUDIO",
    "CONV3D",
    "VISION",
    "act_keys",
    "as_they_are",
    "audio",
    "block",
    "gen_audio",
    "linear",
    "norm",
    "split_qkv",
    "vision",
]

VISION = keys("""
    projection_dim                  u32   text.hidden_size|text.n_embd
    image_size                      u32   image_size                            224
    patch_size                      u32   patch_size                            16
    embedding_length                u32   hidden_size|width                     768
    feed_forward_length             u32   intermediate_size                     3072
    block_count                     u32   num_hidden_layers|depth|layers        12
    attention.head_count            u32   num_attention_heads|num_heads|heads   12
    attention.layer_norm_epsilon    f32   layer_norm_eps                        1e-6
    image_mean                      f32s  processor.image_mean
    image_std                       f32s  processor.image_std
""")
"""Keys of what sees; their defaults are SigLIP's in transformers."""

AUDIO = keys("""
    projection_dim                  u32   text.hidden_size|text.n_embd
    embedding_length                u32   hidden_size|d_model
    feed_forward_length             u32   intermediate_size|encoder_ffn_dim
    block_count                     u32   num_hidden_layers|encoder_layers
    attention.head_count            u32   num_attention_heads|encoder_attention_heads
    num_mel_bins                    u32   num_mel_bins                          80
    attention.layer_norm_epsilon    f32   layer_norm_eps                        1e-5
""")
"""Keys of what hears."""


def _merged(base: tuple[Key, ...], new: tuple[Key, ...], drop: tuple[str, ...]) -> tuple[Key, ...]:
    replaced = {key.gguf: key for key in new}
    known = {key.gguf for key in base}
    return (
        *(replaced.get(key.gguf, key) for key in base if key.gguf not in drop),
        *(key for key in new if key.gguf not in known),
    )


def vision(
    rows: tuple[Row, ...],
    keys: tuple[Key, ...] = (),
    constants: Mapping[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    **more: Any,
) -> Architecture:
    """The table of a side that sees."""
    return _side("clip.vision", "vision", _merged(VISION, keys, drop), rows, constants, more)


def audio(
    rows: tuple[Row, ...],
    keys: tuple[Key, ...] = (),
    constants: Mapping[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    **more: Any,
) -> Architecture:
    """The table of a side that hears."""
    return _side("clip.audio", "audio", _merged(AUDIO, keys, drop), rows, constants, more)


def gen_audio(
    rows: tuple[Row, ...],
    keys: tuple[Key, ...] = (),
    constants: Mapping[str, Any] | None = None,
    **more: Any,
) -> Architecture:
    """The table of a side that speaks."""
    return _side("clip.gen.audio", "gen_audio", keys, rows, constants, more)


def as_they_are(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Row]:
    """Rows of tensors of any shape, by their names in the GGUF and in the folder.  shapes: of the tensors at hand."""
    for gguf, hf in names.items():
        yield row(gguf, hf, ", ".join(map(str, shapes.get(hf) or shapes.get(gguf) or (0,))))


def _side(
    gguf: str,
    kind: str,
    keys: tuple[Key, ...],
    rows: tuple[Row, ...],
    constants: Mapping[str, Any] | None,
    more: dict[str, Any],
) -> Architecture:
    return Architecture(
        gguf,
        (HfName("", ""),),
        keys=keys,
        rows=rows,
        constants={f"/clip.has_{kind}_encoder": True, **(constants or {})},
        prefixes=("",),
        decoder={"activation_key": ""},
        **more,
    )


def act_keys(own: dict[str, Any], config: Settings | Mapping[str, Any], default: str) -> None:
    """`clip.use_gelu` or `clip.use_silu`, by the setting; `Unsupported` for another activation."""
    act = config.get("hidden_act", default)
    known = {"gelu": "/clip.use_gelu", "gelu_pytorch_tanh": "/clip.use_gelu", "silu": "/clip.use_silu"}
    if act not in known:
        raise Unsupported(f"config.json: the tower's hidden_act is {act!r:.60}, known in llama.cpp: gelu, silu")
    own[known[act]] = True


def linear(gguf: str, hf: str, n_out: str, n_in: str, bias: bool | str = True, when: str = "", **more: Any) -> Any:
    """Rows of a linear layer.  bias: False: it has none; True: it has one; "?": it may have one."""
    rows = [row(f"{gguf}.weight", f"{hf}.weight", f"{n_out}, {n_in}", when=when, **more)]
    if bias:
        rows.append(
            row(
                f"{gguf}.bias",
                f"{hf}.bias",
                n_out,
                when=when,
                **{**more, "optional": bias == "?" or more.get("optional", False)},
            )
        )
    return tuple(rows)


def norm(gguf: str, hf: str, size: str = "n_embd", bias: bool = True, optional: bool = False, when: str = "") -> Any:
    """Rows of a norm, with a bias for a LayerNorm's."""
    rows = [row(f"{gguf}.weight", f"{hf}.weight", size, optional=optional, when=when)]
    if bias:
        rows.append(row(f"{gguf}.bias", f"{hf}.bias", size, optional=optional, when=when))
    return tuple(rows)


def split_qkv(v: str, hf: str, bias: bool | str = True) -> tuple[Row, ...]:
    """Rows of queries, keys and values that are one matrix in the folder and three in the GGUF."""
    names = tuple(f"{v}attn_{one}" for one in "qkv")
    three: Op = Split(("n_embd", "n_embd", "n_embd"))
    weight = row(tuple(n + ".weight" for n in names), f"{hf}.weight", ("n_embd, n_embd",) * 3, three)
    if not bias:
        return (weight,)
    return (weight, row(tuple(n + ".bias" for n in names), f"{hf}.bias", ("n_embd",) * 3, three, optional=bias == "?"))


def block(
    hf: str,
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2"),
    attn: str = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj",
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2"),
    side: str = "v",
) -> tuple[Row, ...]:
    """Rows of a usual encoder's layer: LayerNorms, four projections and two matrices, all with biases."""
    at = f"{side}.blk.{{i}}."
    q, k, v, out = attn.split()
    return (
        *norm(at + "ln1", hf + norms[0]),
        *linear(at + "attn_q", hf + q, "n_embd", "n_embd"),
        *linear(at + "attn_k", hf + k, "n_embd", "n_embd", bias="?"),
        *linear(at + "attn_v", hf + v, "n_embd", "n_embd"),
        *linear(at + "attn_out", hf + out, "n_embd", "n_embd"),
        *norm(at + "ln2", hf + norms[1]),
        *linear(at + "ffn_up", hf + mlp[0], "n_ff", "n_embd"),
        *linear(at + "ffn_down", hf + mlp[1], "n_embd", "n_ff"),
    )


CONV3D = row(
    ("v.patch_embd.weight", "v.patch_embd.weight.1"),
    "visual.patch_embed.proj.weight",
    ("n_embd, 3, patch, patch", "n_embd, 3, patch, patch"),
    Reshape(hf=("n_embd", 3, 2, "patch", "patch"), gguf=("6 * n_embd", "patch * patch")),
    Split((1, 1), "3 * n_embd"),
    Reshape(hf=("3 * n_embd", "patch * patch"), gguf=("n_embd", 3, "patch", "patch")),
)
"""A convolution over two pictures of a film at once, as one over each."""
