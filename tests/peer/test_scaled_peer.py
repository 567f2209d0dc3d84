"""Quantized layers are read as the formats' own libraries read them, value for value, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_models import in_memory

import llmconv
from llmconv.convert.scaled.unpack import unpack

pytestmark = pytest.mark.peer
torch = pytest.importorskip("torch")


def read(tensors: dict[str, Any], settings: Any = None, **more: Any) -> Any:
    found = unpack(in_memory({name: tensor.detach() for name, tensor in tensors.items()}, settings, **more))
    return torch.from_numpy(found.tensors["a.weight"].numpy().copy())


def matrix(n: int, k: int, dtype: Any = None) -> Any:
    torch.manual_seed(0)
    return torch.randn(n, k, dtype=dtype or torch.float32)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bits(kind: str, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    weight = matrix(48, 128)
    packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    made = {"a.weight": packed} | {f"a.weight.{n}": t for n, t in state.as_dict(packed=True).items()}
    assert torch.equal(read(made, {"quant_method": "bitsandbytes"}), functional.dequantize_4bit(packed, state))


def test_bitsandbytes_int8() -> None:
    functional = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    codes, scale, _ = functional.int8_vectorwise_quant(matrix(32, 64, torch.float16))
    found = read({"a.weight": codes, "a.SCB": scale}, {"quant_method": "bitsandbytes"})
    assert torch.equal(found, functional.int8_vectorwise_dequant(codes, scale))


@pytest.mark.parametrize(("bits", "group"), [(b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)])
def test_mlx_affine(bits: int, group: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    weight = mx.array(matrix(16, 256).numpy())
    packed, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
    want = np.array(mx.dequantize(packed, scales, biases, group_size=group, bits=bits))
    made = {"a.weight": packed, "a.scales": scales, "a.biases": biases}
    found = unpack(
        in_memory({n: np.array(t) for n, t in made.items()}, quantization={"bits": bits, "group_size": group})
    )
    got = found.tensors["a.weight"].numpy()
    assert np.allclose(got, want, rtol=1e-6, atol=1e-7) and (got == want).mean() > 0.9  # it may fuse product and sum


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_mlx_floats(mode: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    packed, scales = mx.quantize(mx.array(matrix(16, 256).numpy()), mode=mode)[:2]
    want = np.array(mx.dequantize(packed, scales, mode=mode, dtype=mx.float32))
    made = {"a.weight": np.array(packed), "a.scales": np.array(scales)}
    found = unpack(in_memory(made, quantization={"bits": 4, "group_size": 32, "mode": mode}))
    assert np.array_equal(found.tensors["a.weight"].numpy(), want)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq(bits: int, axis: int) -> None:
    quantizer = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed").Quantizer
    packed, meta = quantizer.quantize(
        matrix(32, 128), nbits=bits, group_size=64, axis=axis, optimize=False, device="cpu", compute_dtype=torch.float32
    )
    made = {"a.W_q": packed, "a.scale": meta["scale"], "a.zero": meta["zero"], "a.shape": torch.tensor(meta["shape"])}
    made |= {f"a.{n}": torch.tensor(meta[n]) for n in ("nbits", "group_size", "axis")}
    assert torch.equal(read(made, {"quant_method": "hqq"}), quantizer.dequantize(packed, meta))


def test_bitnet() -> None:
    bitnet = pytest.importorskip("transformers.integrations.bitnet", reason="transformers is not installed")
    codes = torch.randint(-1, 2, (64, 32))
    packed = bitnet.pack_weights(codes.clone())
    found = read({"a.weight": packed, "a.weight_scale": torch.tensor([2.0])}, {"quant_method": "bitnet"})
    assert torch.equal(found, codes / 2.0)


def compressed(settings: dict[str, Any], weight: Any, scale: Any, **more: Any) -> tuple[Any, Any]:
    """A layer as compressed-tensors stores it, and what it reads of that."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    form = settings.pop("format")
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings), format=form)
    own = BaseCompressor.get_value_from_registry(form)
    made = own.compress({"weight": weight, "weight_scale": scale, **more}, scheme)
    want = own.decompress(made, scheme)["weight"]
    return read({f"a.{n}": t for n, t in made.items()}, {"quant_method": "compressed-tensors"}), want


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_packed(bits: int, group: int | None, symmetric: bool) -> None:
    weight, across = matrix(32, 128), 128 // (group or 128)
    scale = weight.reshape(32, across, -1).abs().amax(-1) / (2 ** (bits - 1) - 1)
    settings = {"num_bits": bits, "symmetric": symmetric, "format": "pack-quantized", "group_size": group}
    settings |= {"strategy": "group" if group else "channel"}
    more = {} if symmetric else {"weight_zero_point": torch.randint(-4, 4, (32, across), dtype=torch.int8)}
    found, want = compressed(settings, weight, scale, **more)
    assert torch.equal(found, want.float())


def test_compressed_tensors_floats_of_four_bits() -> None:
    weight = matrix(32, 128)
    whole = 448 * 6 / weight.abs().max().reshape(1)
    scale = (weight.reshape(32, 8, 16).abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn).float()
    settings = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    settings |= {"format": "nvfp4-pack-quantized"}
    found, want = compressed(settings, weight, scale, weight_global_scale=whole)
    assert torch.allclose(found, want.float(), rtol=2**-7)  # it computes in bfloat16
    scale = torch.exp2(torch.floor(torch.log2(weight.reshape(32, 4, 32).abs().amax(-1))) - 2)
    settings = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
    settings |= {"scale_dtype": torch.uint8}
    found, want = compressed(settings | {"format": "mxfp4-pack-quantized"}, weight, scale)
    assert torch.equal(found, want.float())


def test_torchao() -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    for config in (torchao.Int8WeightOnlyConfig(version=2), torchao.Float8WeightOnlyConfig(version=2)):
        module = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False, dtype=torch.float32))
        torchao.quantize_(module, config)
        weight = module[0].weight
        flat, _ = flatten_tensor_state_dict({"a.weight": weight.data})
        assert torch.equal(read(flat, {"quant_method": "torchao"}), weight.dequantize())


def test_quanto() -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    for kind in (quanto.qint8, quanto.qfloat8_e4m3fn):
        module = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
        quanto.quantize(module, weights=kind)
        quanto.freeze(module)
        made = {n.replace("0.", "a.", 1): t for n, t in module.state_dict().items()}
        assert torch.equal(read(made, {"quant_method": "quanto"}), module[0].weight.dequantize())


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptqmodel(bits: int, order: bool, v2: bool) -> None:
    own = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch", reason="gptqmodel is not installed").TorchLinear
    linear = torch.nn.Linear(128, 64, bias=False)
    groups = torch.arange(128) // 32
    groups = groups[torch.randperm(128)] if order else groups
    scale, zero = torch.rand(64, 4) * 0.1 + 0.01, torch.randint(1, 2**bits, (64, 4))
    linear.weight.data = (torch.randint(0, 2**bits, (64, 128)) - zero[:, groups]) * scale[:, groups].half().float()
    layer = own(bits=bits, group_size=32, sym=False, desc_act=order, in_features=128, out_features=64, bias=False)
    layer.pack(linear, scale.half().float(), zero, groups.int())
    want = layer.dequantize_weight().T.float()
    made = {f"a.{n}": getattr(layer, n) for n in ("qweight", "qzeros", "scales", "g_idx")}
    if not v2:
        fields = sum(1 << (bits * i) for i in range(32 // bits)) if bits != 3 else 0
        if bits == 3:
            pytest.skip("zero points of 3 bits reach over words")
        made["a.qzeros"] = (made["a.qzeros"].long() - fields).int()
    found = read(made, {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq_v2" if v2 else "gptq"})
    assert torch.allclose(found, want, rtol=1e-3)  # gptqmodel multiplies in float16


def test_what_we_write_is_loaded_by_transformers_and_mlx(tmp_path: Path) -> None:
    """A Llama from a Q4_0 GGUF: transformers' logits with compressed-tensors are those of the decoded weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "in")
    llmconv.quantize(tmp_path / "in", tmp_path / "a.gguf", "Q4_0", pure=True, output_tensor_type="F32")
    llmconv.quantize(tmp_path / "a.gguf", tmp_path / "w4", "W4A16")
    llmconv.convert_file(tmp_path / "a.gguf", tmp_path / "f32", outtype="f32")
    ids = torch.arange(1, 20)[None]
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)(ids).logits
        for name in ("w4", "f32")
    ]
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-5)
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    llmconv.quantize(tmp_path / "a.gguf", tmp_path / "mlx", "MLX")
    made = mx.load(str(tmp_path / "mlx" / "model.safetensors"))
    stem = "model.layers.1.self_attn.q_proj"
    got = mx.dequantize(made[f"{stem}.weight"], made[f"{stem}.scales"], made[f"{stem}.biases"], group_size=32, bits=4)
    want = llmconv.open(tmp_path / "f32").tensors[f"{stem}.weight"].numpy()
    assert np.allclose(np.array(got.astype(mx.float32)), want, rtol=2e-3, atol=1e-5)  # MLX computes in float16
