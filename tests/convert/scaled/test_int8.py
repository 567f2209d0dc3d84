"""INT8 in the compressed-tensors layout: what it rounds, how it packs, and that the real loaders agree."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from int8_layers import decode, layer_tensors

from llmconv import formats
from llmconv.convert.quantizing.quantize import quantize
from llmconv.errors import Unsupported, UsageError
from llmconv.quant import int8

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def _rows(dtype: type, n: int = 37, k: int = 131) -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-7, 2, (n, 1))
    rows[5] = 0
    rows[6] = -0.0
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_is_off_by_more_than_half_a_scale(dtype: type) -> None:
    rows = _rows(dtype)
    q, scale = int8.encode(rows)
    assert q.dtype == np.int8 and scale.dtype == dtype and scale.shape == (len(rows), 1)
    assert q.min() >= -127
    error = np.abs(decode(q, scale).astype(np.float64) - rows.astype(np.float64))
    assert (error <= scale.astype(np.float64) * 0.5001).all()
    assert (q[5:7] == 0).all() and (scale[5:7] == 1).all()


def test_slabs_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(np.float32)
    whole = int8.encode(rows)
    monkeypatch.setattr(int8, "_SLAB", 500)
    for a, b in zip(whole, int8.encode(rows), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("k", [0, 1, 3, 4, 31, 32, 33])
def test_pack_inverts_and_puts_the_lowest_byte_first(k: int) -> None:
    q = np.random.default_rng(k).integers(-128, 128, (5, k)).astype(np.int8)
    packed = int8.pack(q)
    assert packed.dtype == np.int32 and packed.shape == (5, -(-k // 4))
    np.testing.assert_array_equal(int8.unpack(packed, k), q)
    for j in range(k):
        byte = (packed[:, j // 4].astype(np.int64) >> (8 * (j % 4))) & 255
        np.testing.assert_array_equal(byte, q[:, j].astype(int) + 128)


@pytest.mark.parametrize("layout", int8.LAYOUTS)
def test_layer_tensors_and_config(layout: str) -> None:
    rows = _rows(np.float16)
    tensors = layer_tensors("model.layers.0.mlp.up_proj", rows, layout)
    config = int8.quantization_config(layout, ["lm_head", "model.layers.1.mlp.gate"])
    assert json.loads(json.dumps(config)) == config
    assert config["format"] == layout and config["ignore"][1] == "model.layers.1.mlp.gate"
    group = config["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel" and group["weights"]["symmetric"]
    if layout == "int-quantized":
        assert tensors["model.layers.0.mlp.up_proj.weight"].shape == rows.shape
        assert group["input_activations"]["dynamic"] and group["input_activations"]["strategy"] == "token"
    else:
        assert tensors["model.layers.0.mlp.up_proj.weight_shape"].tolist() == list(rows.shape)
        assert group["input_activations"] is None


def test_wrong_calls_are_sentences() -> None:
    with pytest.raises(UsageError, match="int-quantized"):
        int8.quantization_config("gguf")
    with pytest.raises(UsageError, match="rows of shape"):
        int8.encode(np.zeros(4, np.float32))
    with pytest.raises(UsageError, match="words"):
        int8.unpack(np.zeros((2, 2), np.int32), 4)


@pytest.mark.peer
@pytest.mark.parametrize("layout", int8.LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compressed_tensors_reads_it(layout: str, dtype: type) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    rows = _rows(dtype)
    config = QuantizationConfig.model_validate(int8.quantization_config(layout))
    scheme = config.config_groups["group_0"]

    def tensor(value: np.ndarray) -> object:
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    stored = {name[2:]: tensor(value) for name, value in layer_tensors("x", rows, layout).items()}
    compressor = BaseCompressor.load_from_registry(layout)
    weight = compressor.decompress(stored, scheme)["weight"].float().numpy()
    q, scale = int8.encode(rows)
    expected = decode(q, scale).astype(dtype).astype(np.float32)  # the loader works in the scale's dtype
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.peer
@pytest.mark.parametrize("layout", int8.LAYOUTS)
def test_transformers_loads_it(layout: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tensors, exact = {}, {}
    for name, value in model.state_dict().items():
        rows = value.numpy()
        if ".layers." in name and rows.ndim == 2:
            module = name.removesuffix(".weight")
            tensors |= layer_tensors(module, rows, layout)
            exact[name] = torch.from_numpy(decode(*int8.encode(rows)))
        else:
            tensors[name] = rows
            exact[name] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = config.to_dict() | {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": int8.quantization_config(layout),
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ids = torch.arange(12)[None]
    model.load_state_dict(exact)
    with torch.no_grad():
        expected = model(ids).logits
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        logits = loaded(ids).logits
    tolerance = 2e-6 if layout == "pack-quantized" else 2e-2  # int-quantized rounds the activations as well
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()


def test_int8_folders(shared: Path, tmp_path: Path) -> None:
    source = shared / "stories260K" / "hf"
    made = quantize(source, tmp_path / "int8", "INT8")
    before, after = formats.open(source), formats.open(tmp_path / "int8")
    config = json.loads(after.file("config.json") or b"")
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    name = "model.layers.0.mlp.down_proj"
    q, scale = after.tensors[f"{name}.weight"], after.tensors[f"{name}.weight_scale"]
    assert (q.type.name, q.shape, scale.shape) == ("I8", (64, 172), (64, 1))
    close = decode(q.numpy(), scale.numpy())
    values = before.tensors[f"{name}.weight"].numpy()
    assert np.abs(close - values).max() <= np.abs(values).max() / 127
    assert after.tensors["model.embed_tokens.weight"].type.name == "F32"
    assert made.output.type == "INT8" and "lm_head" in config["quantization_config"]["ignore"]
    lone = quantize(source, tmp_path / "m.safetensors", "INT8")
    assert lone.output.paths == (tmp_path / "m.safetensors",)
    with pytest.raises(Unsupported, match="quantized already"):
        quantize(tmp_path / "int8", tmp_path / "x", "INT8")
