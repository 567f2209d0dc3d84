"""An adapter's GGUF is the one that llama.cpp's convert_lora_to_gguf makes: tensors and keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="compares with PEFT, which is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    "mlp": ("llama", {"target_modules": ["gate_proj", "down_proj"], "lora_alpha": 3}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "qwen": ("qwen2", {"target_modules": ["q_proj", "up_proj"]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "tied": ("qwen3", {"target_modules": ["q_proj", "down_proj"], "tied": True}),
    "normed": ("gemma2", {"target_modules": ["v_proj", "gate_proj"], "tied": True}),
    "starcoder2": ("starcoder2", {"target_modules": ["k_proj", "c_fc", "c_proj"]}),
    "shared experts": ("qwen2_moe", {"target_modules": ["q_proj", "shared_expert.up_proj", "shared_expert_gate"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_as_reference(tmp_path: Path, case: str) -> None:
    home = Path(os.environ.get("LLMCONV_LLAMA_CPP", ""))
    if not (home / "convert_lora_to_gguf.py").is_file():
        pytest.skip("LLMCONV_LLAMA_CPP does not name a folder with llama.cpp's convert_lora_to_gguf.py")
    kind, settings = CASES[case]
    torch.manual_seed(1)
    settings = dict(settings)
    config = transformers.AutoConfig.for_model(kind, **SIZES, tie_word_embeddings=settings.pop("tied", False))
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**({"r": 4, "lora_alpha": 8} | settings)))
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "My-Adapter-1B-lora"
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: some/Base-1B\n---\n")
    places = (folder, "--base", tmp_path / "base", "--outfile", tmp_path / "t.gguf")
    done = subprocess.run(
        [sys.executable, home / "convert_lora_to_gguf.py", *places],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(home / "gguf-py"), str(home)])},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    llmconv.convert_file(folder, tmp_path / "o.gguf", base=tmp_path / "base", portable=True)
    ours, theirs = llmconv.open(tmp_path / "o.gguf"), llmconv.open(tmp_path / "t.gguf")
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert (ours.tensors[name].shape, ours.tensors[name].type) == (tensor.shape, tensor.type), name
        assert np.array_equal(ours.tensors[name].blocks(), tensor.blocks()), name
    del ours.metadata["general.file_type"]  # of any file that is written here
    assert {k: str(v) for k, v in ours.metadata.items()} == {k: str(v) for k, v in theirs.metadata.items()}
