"""A tiny folder of Pocket TTS, of random tensors under the published names; it has no config.json."""

from __future__ import annotations

import numpy as np

from llmconv.convert.vocab import proto
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

_DIM, _WIDE, _LATENT, _WORDS, _FLOW = 128, 128, 8, 20, 24
"""Heads are of 64 numbers, whatever the model's size."""


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _convolution(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[1] if "convtr" in name else shape[0],)}


def _transformer(start: str, scaled: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        at = f"{start}layers.{i}."
        found |= {f"{at}norm{n}.{part}": (_DIM,) for n in (1, 2) for part in ("weight", "bias")}
        found |= {f"{at}self_attn.in_proj.weight": (3 * _DIM, _DIM), f"{at}self_attn.out_proj.weight": (_DIM, _DIM)}
        found |= {f"{at}linear1.weight": (256, _DIM), f"{at}linear2.weight": (_DIM, 256)}
        found |= {f"{at}layer_scale_{n}.scale": (_DIM,) for n in (1, 2) if scaled}
    return found


def _mimi() -> dict[str, tuple[int, ...]]:
    found = _convolution("mimi.encoder.model.0.conv", 4, 1, 7) | _convolution("mimi.decoder.model.0.conv", 32, _WIDE, 7)
    for n, wide in enumerate((4, 8, 16)):
        at = f"mimi.encoder.model.{1 + 3 * n}.block."
        found |= _convolution(f"{at}1.conv", wide // 2, wide, 3) | _convolution(f"{at}3.conv", wide, wide // 2, 1)
        found |= _convolution(f"mimi.encoder.model.{3 + 3 * n}.conv", 2 * wide, wide, 4)
    for n, wide in enumerate((16, 8, 4)):
        at = f"mimi.decoder.model.{3 + 3 * n}.block."
        found |= _convolution(f"mimi.decoder.model.{2 + 3 * n}.convtr", 2 * wide, wide, 4)
        found |= _convolution(f"{at}1.conv", wide // 2, wide, 3) | _convolution(f"{at}3.conv", wide, wide // 2, 1)
    found |= _convolution("mimi.encoder.model.11.conv", _WIDE, 32, 3) | _convolution(
        "mimi.decoder.model.11.conv", 1, 4, 3
    )
    for side in ("encoder", "decoder"):
        found |= _transformer(f"mimi.{side}_transformer.transformer.", True)
    found |= {
        "mimi.downsample.conv.conv.weight": (_WIDE, _WIDE, 4),
        "mimi.upsample.convtr.convtr.weight": (_WIDE, 1, 4),
    }
    return found | {"mimi.quantizer.output_proj.weight": (_WIDE, _LATENT, 1)}


def _flow() -> dict[str, tuple[int, ...]]:
    at = "flow_lm.flow_net."
    found = _linear(f"{at}input_proj", _FLOW, _LATENT) | _linear(f"{at}cond_embed", _FLOW, _DIM)
    found |= _linear(f"{at}final_layer.linear", _LATENT, _FLOW)
    found |= _linear(f"{at}final_layer.adaLN_modulation.1", 2 * _FLOW, _FLOW)
    for n in range(2):
        time = f"{at}time_embed.{n}."
        found |= _linear(f"{time}mlp.0", _FLOW, 16) | _linear(f"{time}mlp.2", _FLOW, _FLOW)
        found |= {f"{time}freqs": (8,), f"{time}mlp.3.alpha": (_FLOW,)}
    for n in range(3):
        block = f"{at}res_blocks.{n}."
        found |= _linear(f"{block}mlp.0", _FLOW, _FLOW) | _linear(f"{block}mlp.2", _FLOW, _FLOW)
        found |= _linear(f"{block}adaLN_modulation.1", 3 * _FLOW, _FLOW)
        found |= {f"{block}in_ln.{part}": (_FLOW,) for part in ("weight", "bias")}
    return found


def pocket_folder(kind: str = "F32", voice: bool = True) -> Checkpoint:
    """voice: whether it has the vector that stands before a voice."""
    shapes: dict[str, tuple[int, ...]] = {
        "flow_lm.conditioner.embed.weight": (_WORDS, _DIM),
        "flow_lm.bos_emb": (_LATENT,),
        "flow_lm.input_linear.weight": (_DIM, _LATENT),
        "flow_lm.emb_mean": (_LATENT,),
        "flow_lm.emb_std": (_LATENT,),
        "flow_lm.out_norm.weight": (_DIM,),
        "flow_lm.out_norm.bias": (_DIM,),
        "flow_lm.speaker_proj_weight": (_DIM, _WIDE),
        **_linear("flow_lm.out_eos", 1, _DIM),
        **({"flow_lm.bos_before_voice": (1, 1, _DIM)} if voice else {}),
        **_transformer("flow_lm.transformer.", False),
        **_mimi(),
        **_flow(),
    }
    rng, folder = np.random.default_rng(5), Checkpoint(dialect="hf", files={"tokenizer.model": _pieces()})
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        folder.add(Tensor.from_array(name, values).astype(by_name(kind)))
    return folder


def _pieces() -> bytes:
    """A sentencepiece model of the kind Unigram; the last row of words is the padding's."""
    texts = ["<unk>", "<s>", "</s>", "\u2581", *(f"\u2581w{n}" for n in range(_WORDS - 5))]
    types = [2, 3, 3] + [1] * (len(texts) - 3)
    rest = proto.spec(
        [0, 1, 2, -1], byte_fallback=False, add_dummy_prefix=True, remove_extra_whitespaces=True, charsmap=b""
    )
    rest = rest.replace(b"\x18\x02", b"\x18\x01", 1)  # model_type: UNIGRAM, not BPE
    return proto.serialise([(t, -float(i), k) for i, (t, k) in enumerate(zip(texts, types, strict=True))], rest)
