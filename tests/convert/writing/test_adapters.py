"""Adapters as GGUFs of their own: W + s B A is the same on both sides, a folder comes back bit for bit, misfits are named."""
# ruff: noqa: E501 (tables)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import CONFIG
from hf_models import model
from safetensors.numpy import load_file, save_file

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.writing import lora
from llmconv.errors import BadFile, LlmconvError, Unsupported, UsageError
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": False}  # fmt: skip
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
PHI3 = SIZES | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 64,
}
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "vocab_size": 96, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5}  # fmt: skip
AT = "model.layers.{}."
CASES: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "attention": (LLAMA, [AT.format(i) + f"self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"], {}),
    "one layer": (LLAMA, [AT.format(1) + "mlp.down_proj"], {"lora_alpha": 5}),
    "embedding and head": (LLAMA, ["model.embed_tokens", "lm_head"], {}),
    "rank-stabilised": (LLAMA, [AT.format(0) + "self_attn.q_proj"], {"use_rslora": True, "r": 4}),
    "experts": (
        MIXTRAL,
        [AT.format(0) + f"block_sparse_moe.experts.{e}.{w}" for e in range(3) for w in ("w1", "w2", "w3")],
        {},
    ),
    "fused": (PHI3, [AT.format(0) + "self_attn.qkv_proj", AT.format(1) + "mlp.gate_up_proj"], {}),
    "turned": (GPT2, ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"], {"fan_in_fan_out": True}),
}


def base(folder: Path, config: dict[str, Any]) -> Checkpoint:
    safetensors_file.save(model(config, kind="F32"), folder)
    return llmconv.open(folder)


def adapter(folder: Path, weights: Checkpoint, modules: list[str], seed: int = 0, **config: Any) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    generator, tensors, r = np.random.default_rng(seed), {}, settings["r"]
    for module in modules:
        out, width = weights.tensors[f"{module}.weight"].shape
        if settings.get("fan_in_fan_out") or module.endswith("embed_tokens"):
            out, width = width, out
        kind = "lora_embedding_{}" if module.endswith("embed_tokens") else "lora_{}.weight"
        for part, shape in (("A", (r, width)), ("B", (out, r))):
            values = generator.normal(size=shape).astype(np.float32)
            tensors[f"base_model.model.{module}.{kind.format(part)}"] = values
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(tmp_path: Path, case: str) -> None:
    config, modules, settings = CASES[case]
    weights = base(tmp_path / "base", config)
    source = adapter(tmp_path / "My-Adapter", weights, modules, **settings)
    llmconv.convert_file(source, tmp_path / "a.gguf", base=tmp_path / "base")
    gguf = llmconv.open(tmp_path / "a.gguf")
    assert gguf.metadata["general.type"] == "adapter" and gguf.metadata["adapter.type"] == "lora"
    # What llama.cpp adds: B A alpha / r, to the GGUF of the base; the same as merging before.
    plain, merged = hf.to_gguf(weights), hf.to_gguf(lora.merge(weights, source))
    alpha, changed = float(gguf.metadata["adapter.lora.alpha"]), 0
    for name, tensor in merged.tensors.items():
        before = plain.tensors.get(name)
        if f"{name}.lora_a" not in gguf.tensors:
            assert before is None or np.array_equal(before.numpy(), tensor.numpy())
            continue
        a, b = (gguf.tensors[f"{name}.lora_{part}"].numpy() for part in "ab")
        a = np.swapaxes(a, -1, -2) if name == "token_embd.weight" else a
        change = b @ a * (alpha / b.shape[-1])
        change = np.swapaxes(change, -1, -2) if name == "token_embd.weight" else change
        start = before if before is not None else plain.tensors["token_embd.weight"]
        assert np.allclose(start.numpy() + change, tensor.numpy(), atol=1e-5), name
        changed += 1
    assert changed and not any(n.count(".lora_") != 1 for n in gguf.tensors)
    llmconv.convert_file(tmp_path / "a.gguf", tmp_path / "back")
    for path in source.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    ours, theirs = (load_file(p / "adapter_model.safetensors") for p in (tmp_path / "back", source))
    assert set(ours) == set(theirs) and all(ours[n].tobytes() == theirs[n].tobytes() for n in theirs)


@pytest.mark.parametrize("case", ["attention", "experts", "fused", "turned", "embedding and head"])
def test_a_gguf_is_merged_as_the_folder_is(tmp_path: Path, case: str) -> None:
    """Also one of somebody else's, which keeps nothing of ours."""
    config, modules, settings = CASES[case]
    weights = base(tmp_path / "base", config)
    source = adapter(tmp_path / "adapter", weights, modules, **settings)
    llmconv.convert_file(source, tmp_path / "a.gguf", base=tmp_path / "base", portable=True)
    assert not any(k.startswith("llmconv.") for k in llmconv.open(tmp_path / "a.gguf").metadata)
    llmconv.convert_file(tmp_path / "base", tmp_path / "one", lora=source)
    llmconv.convert_file(tmp_path / "base", tmp_path / "two", lora=tmp_path / "a.gguf")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert set(one) == set(two) and all(np.allclose(one[n], two[n], atol=1e-6) for n in one)
    if case == "attention":
        llmconv.quantize(tmp_path / "base", tmp_path / "q.gguf", "Q8_0", lora=tmp_path / "a.gguf")
        llmconv.convert_file(tmp_path / "a.gguf", tmp_path / "back", base=tmp_path / "base")
        again = lora.merge(weights, tmp_path / "back")
        assert all(np.allclose(again.tensors[n].numpy(), one[n], atol=1e-6) for n in one)


def test_refusals(tmp_path: Path) -> None:
    weights = base(tmp_path / "base", LLAMA)
    q = AT.format(0) + "self_attn.q_proj"

    def fails(
        kind: type[LlmconvError], sentence: str, modules: list[str], files: dict[str, Any] | None = None, **config: Any
    ) -> None:
        folder = adapter(tmp_path / f"a{len(list(tmp_path.iterdir()))}", weights, modules, **config)
        tensors = load_file(folder / "adapter_model.safetensors") | (files or {})
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / "adapter_model.safetensors")
        with pytest.raises(kind, match=sentence):
            llmconv.convert_file(folder, tmp_path / "a.gguf", base=tmp_path / "base")
        assert not (tmp_path / "a.gguf").exists()

    at = f"base_model.model.{q}."
    fails(Unsupported, "use_qalora is set", [q], use_qalora=True)
    fails(Unsupported, "only LORA", [q], peft_type="LOHA")
    fails(Unsupported, "DoRA magnitude", [q], {at + "lora_magnitude_vector": np.ones(32, np.float32)})
    fails(Unsupported, "trained whole", [q], {"base_model.model.lm_head.weight": np.ones((96, 32), np.float32)})
    fails(
        Unsupported,
        "scaled differently",
        [q, AT.format(1) + "self_attn.q_proj"],
        alpha_pattern={"layers.1.self_attn.q_proj": 9},
    )
    fails(BadFile, "lacks lora_A or lora_B", [q], {at + "lora_A.weight": None})
    fails(LlmconvError, "expected", [q], {at + "lora_B.weight": np.ones((31, 2), np.float32)})
    fails(
        BadFile,
        "no place for",
        [q],
        {f"base_model.model.nowhere.lora_{p}.weight": np.ones((2, 2), np.float32) for p in "AB"},
    )
    with pytest.raises(UsageError, match="is no adapter"):
        llmconv.convert_file(tmp_path / "base", tmp_path / "a.gguf", base=tmp_path / "base")
    source = adapter(tmp_path / "good", weights, [q])
    llmconv.convert_file(source, tmp_path / "p.gguf", base=tmp_path / "base", portable=True)
    with pytest.raises(UsageError, match="does not say which model"):
        llmconv.convert_file(tmp_path / "p.gguf", tmp_path / "back")
    llmconv.convert_file(tmp_path / "base", tmp_path / "m.gguf")
    llmconv.convert_file(source, tmp_path / "by-gguf.gguf", base=tmp_path / "m.gguf", portable=True)
    assert llmconv.diff(tmp_path / "by-gguf.gguf", tmp_path / "p.gguf") == [] and CONFIG
    with pytest.raises(BadFile, match="is no adapter"):
        llmconv.convert_file(tmp_path / "base", tmp_path / "x.gguf", lora=tmp_path / "m.gguf")
