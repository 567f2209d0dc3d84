"""Every family, made by transformers: HF -> GGUF -> HF is the same state dict, bit for bit, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import llmconv
from llmconv import formats
from llmconv.convert.dialects import hf
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Name -> (class, folder) of a tiny model, made once."""
    root, done = tmp_path_factory.mktemp("tiny"), dict[str, tuple[Any, Path]]()

    def make(name: str) -> tuple[Any, Path]:
        if name not in done:
            done[name] = type(tiny_models.build(name, root / name)), root / name
        return done[name]

    return make


def through_gguf(folder: Path, tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    """(the GGUF, read back from its file; the model folder made of it)"""
    gguf_file.save(hf.to_gguf(formats.open(folder)), tmp_path / "model.gguf")
    gguf = formats.open(tmp_path / "model.gguf")
    back = hf.from_gguf(gguf)
    beside = (".visual.", "_decay", ".slope_rate")  # its tower; what MiniMax computes from the configuration
    back.tensors |= {n: t for n, t in formats.open(folder).tensors.items() if any(part in n for part in beside)}
    return gguf, back


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert sorted(a.tensors) == sorted(b.tensors)
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert tensor.blocks().tobytes() == other.blocks().tobytes(), name


def logits(model: Any) -> Any:
    ids = torch.arange(2, 26).reshape(2, 12) % 96  # none is for padding
    with torch.no_grad():
        out = model(ids, decoder_input_ids=ids) if hasattr(model, "decoder") else model(ids)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize("name", tiny_models.variants_later(tiny_models.MODELS))
def test_round_trip(name: str, built: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    model, folder = built(name)
    gguf, back = through_gguf(folder, tmp_path)
    assert gguf.metadata["general.architecture"] == tiny_models.MODELS[name].gguf
    assert_same(formats.open(folder), back)
    assert back.file("config.json") == (folder / "config.json").read_bytes()
    safetensors_file.save(back, tmp_path / "back")
    original = model.from_pretrained(folder, dtype="auto").eval()
    loaded, info = model.from_pretrained(tmp_path / "back", output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected, found = logits(original), logits(loaded.eval())
    # A single number's product is summed as the vectors happen to lie in memory.
    assert torch.equal(expected, found) or (found.shape[-1] == 1 and torch.allclose(expected, found, rtol=1e-5))


WITHOUT = ("bert-mlm", "glm-5-next", "hy-v4-transformers", "minimax-01-transformers")
"""Of whose heads for masked words, or tower, there is no place in a text model's GGUF; whose keys, which say what
llama.cpp computes, mean other rotations than transformers'; or whose config.json is made for the published code."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, t in tiny_models.MODELS.items() if n not in WITHOUT and not t.rounded])
def test_config_is_rebuilt_from_the_keys(name: str, built: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    """A GGUF of somebody else's has none of our keys; from its own alone, transformers computes the same.

    Rounded products are not the same.
    """
    model, folder = built(name)
    original = model.from_pretrained(folder, dtype=torch.float32).eval()
    gguf = hf.to_gguf(formats.open(folder))
    gguf.metadata = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    back = hf.from_gguf(gguf)
    safetensors_file.save(back, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    if "roberta" in name or name == "camembert":  # whose positions become a BERT's
        model = getattr(transformers, config["architectures"][0])
    loaded = model.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    assert config.get("text_config", config)["vocab_size"] == 96
    expected, found = logits(original), logits(loaded)
    assert torch.allclose(expected, found, atol=1e-4, rtol=1e-4), (expected - found).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ernie4.5-moe", "kimi-linear", "qwen3-next-predicting"])
def test_a_quantized_file_comes_back_as_what_it_computes(
    name: str, built: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    """Other experts may be chosen than those of the model as it was: transformers and we choose the same."""
    model, folder = built(name)
    llmconv.quantize(folder, tmp_path / "q.gguf", "Q8_0")
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "back")
    expected = logits(model.from_pretrained(tmp_path / "back", dtype=torch.float32).eval())
    with torch.no_grad():
        found = llmconv.load(tmp_path / "q.gguf", "cpu", "f32")(torch.arange(2, 26).reshape(2, 12) % 96)
    off = 1e-4 if tiny_models.MODELS[name].dtype == "float32" else 1e-2  # the folder's is rounded to that
    assert torch.allclose(expected, found, atol=off, rtol=1e-4), (expected - found).abs().max()


def test_a_jamba_of_others_says_by_its_tensors_where_experts_are(built: Callable[[str], tuple[Any, Path]]) -> None:
    _model, folder = built("jamba")
    gguf = hf.to_gguf(formats.open(folder))
    kept = dict(hf.from_gguf(gguf).tensors)
    gguf.metadata = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.") and "moe_layers" not in k}
    back = hf.from_gguf(gguf)
    config = json.loads(back.file("config.json") or b"")
    assert (config["expert_layer_period"], config["expert_layer_offset"]) == (3, 1)
    assert {name for name in kept if "router" in name} == {name for name in back.tensors if "router" in name}
