"""Merged adapters are W + s · B A, to the last rounding, whatever the kind; misfits are sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import llmconv
from llmconv.convert.writing import lora
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 8)).astype(np.float32)
A, B = RNG.normal(size=(2, 8)).astype(np.float32), RNG.normal(size=(12, 2)).astype(np.float32)
NAME = "model.layers.0.self_attn.q_proj"
AT = f"base_model.model.{NAME}"


def base(kind: str = "F32", **more: Any) -> Checkpoint:
    out = Checkpoint(dialect="hf")
    out.add(Tensor.from_array(f"{NAME}.weight", W, by_name(kind)))
    for name, array in more.items():
        out.add(Tensor.from_array(name.replace("__", "."), array))
    return out


def adapter(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    default = {f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B}
    save_file(default if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def merged(folder: Path, checkpoint: Checkpoint | None = None) -> Any:
    return lora.merge(checkpoint or base(), folder).tensors[f"{NAME}.weight"]


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_plain(tmp_path: Path, kind: str) -> None:
    out = merged(adapter(tmp_path), base(kind))
    start = W.astype(by_name(kind).dtype).astype(np.float32)
    exact = start.astype(np.float64) + 2.0 * B.astype(np.float64) @ A
    assert out.type is by_name(kind)
    step = {"F32": 2e-7, "BF16": 2**-8, "F16": 2**-11}[kind]
    assert np.all(np.abs(out.numpy().astype(np.float64) - exact) <= np.abs(exact) * step * 1.1 + 1e-6)
    whole = out.blocks()
    assert all(out.blocks(i, i + 5).tobytes() == whole[i : i + 5].tobytes() for i in range(0, 12, 5))


def test_quantized_on_the_way(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    llmconv.quantize(base(), tmp_path / "a.gguf", "BF16", lora=folder)
    llmconv.quantize(lora.merge(base(), folder), tmp_path / "b.gguf", "BF16")
    llmconv.quantize(base(), tmp_path / "c.gguf", "BF16")
    a, b, c = ((tmp_path / f"{n}.gguf").read_bytes() for n in "abc")
    assert a == b != c


def test_scales(tmp_path: Path) -> None:
    change = (B @ A).astype(np.float64)
    for config, scale in (
        ({"use_rslora": True}, 4 / np.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 10}}, 5.0),
        ({"alpha_pattern": {r"layers\.0\..*": 6}}, 3.0),
        ({"rank_pattern": {"v_proj": 8}}, 2.0),
        ({"lora_alpha": 0.5}, 0.25),
    ):
        assert np.allclose(merged(adapter(tmp_path, **config)).numpy(), W + scale * change, atol=1e-5)


def test_transposed_layers_of_gpt2(tmp_path: Path) -> None:
    checkpoint = base()
    checkpoint.add(Tensor.from_array(f"{NAME}.weight", np.ascontiguousarray(W.T)))
    out = merged(adapter(tmp_path, fan_in_fan_out=True), checkpoint)
    assert np.allclose(out.numpy(), W.T + 2 * (B @ A).T, atol=1e-5)


def test_embeddings(tmp_path: Path) -> None:
    tensors = {f"{AT}.lora_embedding_A": np.ascontiguousarray(B.T), f"{AT}.lora_embedding_B": np.ascontiguousarray(A.T)}
    assert np.allclose(merged(adapter(tmp_path, tensors)).numpy(), W + 2 * B @ A, atol=1e-5)


def test_an_embedding_saved_beside_its_adapter(tmp_path: Path) -> None:
    """PEFT saves the base's embedding too (save_embedding_layers): the change goes on top of it."""
    tensors = {
        f"{AT}.lora_embedding_A": np.ascontiguousarray(B.T),
        f"{AT}.lora_embedding_B": np.ascontiguousarray(A.T),
        f"{AT}.base_layer.weight": W + 1,
    }
    assert np.allclose(merged(adapter(tmp_path, tensors)).numpy(), W + 1 + 2 * B @ A, atol=1e-5)


def test_an_alpha_of_zero_changes_nothing(tmp_path: Path) -> None:
    assert np.array_equal(merged(adapter(tmp_path, lora_alpha=0)).numpy(), W)


def test_a_sum_that_the_type_can_not_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"merged, .*q_proj.weight' is .* at \[0, \d\], which F16 can't hold"):
        merged(adapter(tmp_path, lora_alpha=1_000_000), base("F16")).numpy()
    assert np.isfinite(merged(adapter(tmp_path, lora_alpha=1_000_000)).numpy()).all()


def test_biases_of_the_adapter(tmp_path: Path) -> None:
    own, change = np.ones(12, np.float32), np.arange(12, dtype=np.float32)
    tensors = {f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B, f"{AT}.lora_B.bias": change}
    out = lora.merge(base(**{f"{NAME}.bias": own}), adapter(tmp_path, tensors)).tensors
    assert np.array_equal(out[f"{NAME}.bias"].numpy(), own + 2 * change)
    assert np.allclose(out[f"{NAME}.weight"].numpy(), W + 2 * B @ A, atol=1e-5)
    with pytest.raises(BadFile, match="which has none in the base model"):
        merged(tmp_path)


def test_a_base_that_was_changed_at_the_start_is_named(tmp_path: Path) -> None:
    out = lora.merge(base(), adapter(tmp_path, init_lora_weights="pissa_niter_4"))
    assert "the base must be the one saved with it" in out.notes[-1]


def test_dora(tmp_path: Path) -> None:
    lengths = RNG.uniform(1, 2, 12).astype(np.float32)
    tensors = {f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B, f"{AT}.lora_magnitude_vector": lengths}
    out = merged(adapter(tmp_path, tensors, use_dora=True)).numpy()
    assert np.allclose(np.linalg.norm(out, axis=1), lengths, rtol=1e-5)
    sum_ = W + 2 * B @ A
    assert np.allclose(
        out / np.linalg.norm(out, axis=1)[:, None], sum_ / np.linalg.norm(sum_, axis=1)[:, None], atol=1e-5
    )


def test_dora_of_a_transposed_layer(tmp_path: Path) -> None:
    """GPT-2's matrices stand [in][out]: the columns get the trained lengths."""
    lengths = RNG.uniform(1, 2, 12).astype(np.float32)
    tensors = {f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B, f"{AT}.lora_magnitude_vector": lengths}
    folder = adapter(tmp_path, tensors, use_dora=True, fan_in_fan_out=True)
    checkpoint = base()
    checkpoint.add(Tensor.from_array(f"{NAME}.weight", np.ascontiguousarray(W.T)))
    turned = merged(folder, checkpoint).numpy()
    sum_ = (W + 2 * B @ A).T
    assert np.allclose(turned, sum_ / np.linalg.norm(sum_, axis=0) * lengths, atol=1e-5)


def test_whole_tensors_replace_the_base_s(tmp_path: Path) -> None:
    tensors = {
        f"{AT}.lora_A.default.weight": A,
        f"{AT}.lora_B.default.weight": B,
        "base_model.model.lm_head.modules_to_save.default.weight": np.ones((3, 4), np.float32),
    }
    out = lora.merge(base(lm_head__weight=np.zeros((3, 4), np.float16)), adapter(tmp_path, tensors))
    assert out.tensors["lm_head.weight"].type is by_name("F16") and out.tensors["lm_head.weight"].numpy().min() == 1
    assert out.notes == [f"LoRA adapter {tmp_path.name} merged into 1 tensors; 1 replaced"]


def test_nothing_changes_where_b_is_zero(tmp_path: Path) -> None:
    tensors = {f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": np.zeros_like(B)}
    assert (
        merged(adapter(tmp_path, tensors), base("BF16")).blocks().tobytes()
        == base("BF16").tensors[f"{NAME}.weight"].blocks().tobytes()
    )


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({f"{AT}.lora_A.weight": A}, {}, "lacks lora_A or lora_B"),
        (
            {"base_model.model.model.x.lora_A.weight": A, "base_model.model.model.x.lora_B.weight": B},
            {},
            "adapts 'model.x'",
        ),
        ({f"{AT}.lora_A.weight": A[:, :4].copy(), f"{AT}.lora_B.weight": B}, {}, r"by a change of shape \(12, 4\)"),
        (None, {"r": 3}, "expected rank 3"),
        (None, {"r": "two"}, "gives r 'two'"),
        ({f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B, "base_model.model.y.bias": A}, {}, "has tensor 'y.bias'"),
    ],
)
def test_misfits(tmp_path: Path, tensors: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        merged(adapter(tmp_path, tensors, **config))


@pytest.mark.parametrize("index", [False, True])
def test_in_several_files(tmp_path: Path, index: bool) -> None:
    """Which their names count, with or without the list that says where each tensor is."""
    want = merged(adapter(tmp_path)).numpy()
    (tmp_path / "adapter_model.safetensors").unlink()
    parts = {f"{AT}.lora_A.weight": A}, {f"{AT}.lora_B.weight": B}
    names = [f"adapter_model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    for name, tensors in zip(names, parts, strict=True):
        save_file(tensors, tmp_path / name)
    if index:
        where = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        (tmp_path / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert np.array_equal(merged(tmp_path).numpy(), want)
    (tmp_path / names[1]).unlink()
    with pytest.raises(BadFile, match=r"-00002-of-00002\.safetensors is missing; fetch it"):
        merged(tmp_path)


def test_other_kinds_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="peft_type is 'LOHA'; only LORA adapters are merged"):
        merged(adapter(tmp_path, peft_type="LOHA"))
    with pytest.raises(Unsupported, match="layer_replication is set"):
        merged(adapter(tmp_path, layer_replication=[[0, 1], [0, 1]]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match=r"has no adapter_config.json"):
        merged(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(BadFile, match=r"has no adapter_model.safetensors or .bin"):
        merged(tmp_path / "empty")


EMBED, HEAD = RNG.normal(size=(2, 6, 4)).astype(np.float32)
UP, DOWN = RNG.normal(size=(6, 2)).astype(np.float32), RNG.normal(size=(2, 4)).astype(np.float32)
AT_EMBED, AT_HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
CHANGE = 2 * UP @ DOWN


@pytest.mark.parametrize(
    ("tensors", "embedding", "head"),
    [
        ({f"{AT_EMBED}.weight": HEAD}, HEAD, EMBED),
        ({f"{AT_HEAD}.weight": HEAD}, EMBED, HEAD),
        ({f"{AT_EMBED}.weight": HEAD, f"{AT_HEAD}.weight": EMBED + 1}, HEAD, EMBED + 1),
        ({f"{AT_EMBED}.weight": HEAD, f"{AT_HEAD}.weight": HEAD}, HEAD, None),
        ({f"{AT_HEAD}.lora_A.weight": DOWN, f"{AT_HEAD}.lora_B.weight": UP}, EMBED, EMBED + CHANGE),
        (
            {f"{AT_EMBED}.lora_embedding_A": UP.T.copy(), f"{AT_EMBED}.lora_embedding_B": DOWN.T.copy()},
            EMBED + CHANGE,
            EMBED,
        ),
        ({f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": B}, EMBED, None),
    ],
)
def test_what_was_one_tensor_becomes_two_where_one_is_changed(
    tmp_path: Path, tensors: Any, embedding: Any, head: Any
) -> None:
    checkpoint = base(**{"model.embed_tokens.weight": EMBED})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    checkpoint.files["config.json"] = json.dumps(config).encode()
    out = lora.merge(checkpoint, adapter(tmp_path, tensors))
    assert np.allclose(out.tensors["model.embed_tokens.weight"].numpy(), embedding, atol=1e-6)
    assert ("lm_head.weight" in out.tensors) is (head is not None)
    assert json.loads(out.file("config.json") or b"")["tie_word_embeddings"] is (head is None)
    assert any("which were tied" in note for note in out.notes) is (head is not None)
    if head is not None:
        assert np.allclose(out.tensors["lm_head.weight"].numpy(), head, atol=1e-6)


@pytest.mark.parametrize(
    "setting", ["target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config"]
)
def test_what_is_no_sum_of_products_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(Unsupported, match=f"{setting} is set, which can't be merged"):
        merged(adapter(tmp_path, **{setting: [1]}))
