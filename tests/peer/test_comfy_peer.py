"""GGUFs of image models and their text encoders as ComfyUI-GGUF's own loader reads them, and as its tool writes them.

LLMCONV_COMFYUI_GGUF names a checkout of city96/ComfyUI-GGUF.  Of ComfyUI itself only the names are needed that the
loader's module imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from image_models import MODELS, written

import llmconv

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its modules `loader`, `dequant` and `tools.convert`."""
    home = Path(os.environ.get("LLMCONV_COMFYUI_GGUF", ""))
    if not (home / "loader.py").is_file():
        pytest.skip("LLMCONV_COMFYUI_GGUF does not name a checkout of ComfyUI-GGUF")
    layers = ("Linear", "Conv2d", "Embedding", "LayerNorm", "GroupNorm")
    manual = type("manual_cast", (), {name: type(name, (torch.nn.Module,), {}) for name in layers})
    for name in ("comfy", "comfy.ops", "comfy.lora", "comfy.model_management"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        if "." in name:
            setattr(sys.modules["comfy"], name.partition(".")[2], sys.modules[name])
    sys.modules["comfy.ops"].manual_cast = manual  # type: ignore[attr-defined]
    for name, folder in (("comfyui_gguf", home), ("comfyui_gguf.tools", home / "tools")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    found = {part: importlib.import_module(f"comfyui_gguf.{part}") for part in ("loader", "dequant", "tools.convert")}
    return types.SimpleNamespace(loader=found["loader"], dequant=found["dequant"], tool=found["tools.convert"])


def values(theirs: Any, tensor: Any) -> Any:
    return torch.Tensor(theirs.dequant.dequantize_tensor(tensor, torch.float32, torch.float32)).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_its_loader_reads_what_was_in_the_file(tmp_path: Path, theirs: Any, name: str) -> None:
    arrays = written(tmp_path / "x.safetensors", name)
    llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    for kind in ("", "Q8_0", "Q5_1", "Q6_K", "Q4_K_M", "Q2_K"):
        path = tmp_path / f"x{kind}.gguf"
        if kind:
            llmconv.quantize(tmp_path / "x.gguf", path, kind)
        read, arch = theirs.loader.gguf_sd_loader(str(path), return_arch=True)
        ours = llmconv.open(path).tensors
        assert arch == name and set(read) == set(arrays)
        for tensor, stored in arrays.items():
            found = values(theirs, read[tensor])
            assert found.shape == stored.shape, tensor
            wanted = ours[tensor].numpy().astype(np.float32) if kind else stored.astype(np.float32)
            assert np.allclose(found.reshape(-1), wanted.reshape(-1), rtol=0, atol=1e-5 if kind else 0), tensor


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen_image"])
def test_its_tool_writes_the_same_tensors(
    tmp_path: Path, theirs: Any, name: str, dtype: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those of five dimensions, which it leaves to another tool; Qwen-Image it does not take."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "x.safetensors", name, dtype)
    llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    theirs.tool.convert_file("x.safetensors", "y.gguf", interact=False, overwrite=True)
    ours, their = (gguf.GGUFReader(tmp_path / f"{n}.gguf") for n in "xy")
    found = {t.name: (t.tensor_type, list(t.shape), t.data.tobytes()) for t in ours.tensors}
    wanted = {t.name: (t.tensor_type, list(t.shape), t.data.tobytes()) for t in their.tensors}
    assert {n: found[n] for n in wanted} == wanted
    assert set(found) - set(wanted) <= {"patch_embedding.weight"}


@pytest.mark.parametrize("name", ["T5EncoderModel", "UMT5EncoderModel", "Qwen3ForCausalLM", "LlamaForCausalLM"])
def test_its_loader_reads_text_encoders(tmp_path: Path, theirs: Any, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name).config_class(
        **{"vocab_size": 64, "tie_word_embeddings": False, "num_heads": 4, "num_layers": 2, "num_hidden_layers": 2},
        **{"d_model": 32, "d_kv": 8, "d_ff": 64, "feed_forward_proj": "gated-gelu"},
        **({} if "T5" in name else {"hidden_size": 256, "intermediate_size": 48, "num_attention_heads": 32}),
        **({} if "T5" in name else {"num_key_value_heads": 8, "head_dim": 8}),
    )  # 32 heads, 8 of keys: the loader takes every Llama for one of those
    model = getattr(transformers, name)(config)
    model.save_pretrained(tmp_path / "folder")
    llmconv.convert_file(tmp_path / "folder", tmp_path / "x.gguf")
    read = theirs.loader.gguf_clip_loader(str(tmp_path / "x.gguf"))
    for tensor, wanted in model.state_dict().items():
        if tensor != "encoder.embed_tokens.weight":  # which is "shared.weight"
            assert np.array_equal(values(theirs, read[tensor]), wanted.numpy()), tensor
