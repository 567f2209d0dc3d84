"""Loading keeps what is stored, saving gives it back, gradients flow, dtypes are what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv import formats
from llmconv.formats.gguf import gguf_file
from llmconv.quant.block import by_name

torch = pytest.importorskip("torch")

from llmconv.runtime.save import checkpoint_of

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "stories260K" / "stories260K-f32.gguf"


def mixed(path: Path, kind: str) -> Any:
    """The model with its matrices as `kind` where a row is whole blocks."""
    checkpoint = formats.open(path)
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) > 1 and not tensor.row_len % by_name(kind).block_size:
            checkpoint.tensors[name] = tensor.astype(by_name(kind))
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_saves_the_same_bytes(kind: str, stories: Path, tmp_path: Path) -> None:
    checkpoint = mixed(stories, kind)
    gguf_file.save(checkpoint, tmp_path / "a.gguf")
    model = llmconv.load(tmp_path / "a.gguf", "cpu")
    back = checkpoint_of(model)
    assert back.tensors.keys() == checkpoint.tensors.keys() == model.state_dict().keys()
    for name, tensor in checkpoint.tensors.items():
        assert (back.tensors[name].type, back.tensors[name].shape) == (tensor.type, tensor.shape)
        np.testing.assert_array_equal(back.tensors[name].blocks(), tensor.blocks())
    gguf_file.save(back, tmp_path / "b.gguf")
    again = llmconv.load(tmp_path / "b.gguf", "cpu")
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens), again(tokens))


def test_a_file_that_changed_since_it_was_opened(stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(stories.read_bytes())
    checkpoint = formats.open(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64)
    with pytest.raises(llmconv.BadFile, match="changed while it was being read"):
        llmconv.load(checkpoint, "cpu")


def test_a_big_endian_file_is_turned_round(stories: Path, tmp_path: Path) -> None:
    gguf_file.save(formats.open(stories), tmp_path / "big.gguf", byte_order="big")
    big, little = (llmconv.load(path, "cpu").state_dict() for path in (tmp_path / "big.gguf", stories))
    assert all(torch.equal(big[name], little[name]) for name in little)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f64", torch.float64), ("bf16", torch.bfloat16), ("f16", torch.float16)]
)
def test_dtypes(dtype: str, expected: Any, stories: Path) -> None:
    model, exact = llmconv.load(stories, "cpu", dtype), llmconv.load(stories, "cpu")
    tokens = torch.arange(5, 45)[None]
    with torch.inference_mode():
        logits = model(tokens)
        assert logits.dtype == expected
        chances, reference = logits.double().softmax(-1), exact(tokens).double().softmax(-1)
    assert float((chances - reference).abs().max()) < {"f64": 1e-4, "bf16": 0.1, "f16": 0.02}[dtype]


def test_a_quantized_model_in_float64_multiplies_in_float64(stories: Path) -> None:
    checkpoint, tokens = mixed(stories, "Q8_0"), torch.arange(5, 45)[None]
    with torch.inference_mode():
        narrow, wide = (llmconv.load(checkpoint, "cpu", dtype)(tokens) for dtype in ("f32", "f64"))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, atol=1e-3, rtol=0)


def test_a_float_model_trains(stories: Path) -> None:
    model = llmconv.load(stories, "cpu", "f32").train()
    tokens = torch.randint(3, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_a_bfloat16_model_has_gradients_under_float32(stories: Path) -> None:
    model = llmconv.load(mixed(stories, "BF16"), "cpu")
    model(torch.arange(5, 25)[None]).square().mean().backward()
    weight = model.blk[0].attn_q.weight
    assert weight.dtype == torch.bfloat16 and weight.grad is not None and weight.grad.abs().max() > 0


def test_a_cache_grows_and_is_cut(stories: Path) -> None:
    model, tokens = llmconv.load(stories, "cpu"), torch.randint(3, 512, (2, 40))
    with torch.inference_mode():
        whole, cache = model(tokens), model.cache(2, 4)
        model(tokens[:, :30], cache=cache)
        model(tokens[:, :3], cache=cache)  # a wrong turn
        cache.cut(30)
        torch.testing.assert_close(model(tokens[:, 30:], cache=cache), whole[:, 30:], atol=1e-4, rtol=0)
    assert cache.length == 40
