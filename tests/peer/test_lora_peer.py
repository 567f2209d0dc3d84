"""Merged adapters are PEFT's own, bit for bit (DoRA: to the last bit of float32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.convert.writing.lora import merge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="compares with PEFT, which is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
ATTENTION = ["q_proj", "v_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "rank-stabilised": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "ranks": ("llama", {"rank_pattern": {"q_proj": 2, r".*\\.1\\..*v_proj": 3}}),
    "alphas": ("llama", {"alpha_pattern": {"q_proj": 20, "layers.1.self_attn.v_proj": 1}}),
    "overlapping patterns": ("llama", {"rank_pattern": {"proj": 2}, "alpha_pattern": {"k_proj": 9, ".*_proj": 3}}),
    "alpha 0": ("llama", {"lora_alpha": 0}),
    "whole modules": ("llama", {"modules_to_save": ["lm_head"]}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "biases": ("llama", {"lora_bias": True, "target_modules": ["q_proj"]}),
    "one layer": ("llama", {"layers_to_transform": [1]}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "dora, embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "dora, transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "trained biases": ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "bias": "lora_only"}),
}


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
    ],
)
def test_a_tied_model_computes_what_it_was_trained_to(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("llama", vocab_size=64, tie_word_embeddings=True, **LLAMA)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **({"target_modules": ATTENTION} | settings)))
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    llmconv.convert_file(tmp_path / "base", tmp_path / "merged", lora=tmp_path / "adapter")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids).logits, adapted.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_merged_as_peft_merges(tmp_path: Path, name: str) -> None:
    kind, settings = CASES[name]
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, **(LLAMA | {"attention_bias": name == "biases"} if kind == "llama" else GPT2)}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes))
    model.save_pretrained(tmp_path / "base")
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": False} | settings
    adapted = peft.get_peft_model(model, peft.LoraConfig(**wanted))
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.mul_(1.3)
    adapted.save_pretrained(tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    ours = merge(llmconv.open(tmp_path / "base"), tmp_path / "adapter").tensors
    for tensor in ours.values():
        expected = theirs[tensor.name].float().numpy()
        if settings.get("use_dora"):
            assert np.allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7), tensor.name
        else:
            assert np.array_equal(tensor.numpy(), expected), tensor.name
