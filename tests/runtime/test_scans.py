"""Scans against their definitions, token by token; their states through padding; what training and calibrating see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from worded import WORDS, by_hand_gguf, gguf_of

import llmconv
from llmconv.convert.quantizing.importance import read_importance
from llmconv.errors import UsageError

torch = pytest.importorskip("torch")

from llmconv.runtime.scans.delta import delta_rule
from llmconv.runtime.scans.mamba import selective_scan
from llmconv.runtime.scans.mamba2 import state_space
from llmconv.runtime.scans.rwkv7 import relearned
from llmconv.runtime.scans.sums import decayed_sums

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int) -> Any:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def mamba_by_definition(x: Any, dt: Any, a: Any, b: Any, c: Any, state: Any) -> tuple[Any, Any]:
    out = []
    for t in range(x.shape[1]):
        state = (dt[:, t, :, None] * a).exp() * state + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, 1), state


def mamba2_by_definition(x: Any, dt: Any, a: Any, b: Any, c: Any, state: Any) -> tuple[Any, Any]:
    out, each = [], x.shape[2] // b.shape[2]
    for t in range(x.shape[1]):
        shared, asked = (v[:, t].repeat_interleave(each, 1)[:, :, None] for v in (b, c))
        state = (dt[:, t] * a).exp()[..., None, None] * state + (dt[:, t, :, None] * x[:, t])[..., None] * shared
        out.append((state * asked).sum(-1))
    return torch.stack(out, 1), state


def delta_by_definition(query: Any, key: Any, value: Any, decay: Any, beta: Any, state: Any) -> tuple[Any, Any]:
    out = []
    for t in range(query.shape[1]):
        state = decay[:, t].exp()[..., None] * state
        known = (state * key[:, t, :, :, None]).sum(-2)
        new = beta[:, t, :, None] * (value[:, t] - known)
        state = state + key[:, t, :, :, None] * new[..., None, :]
        out.append((state * query[:, t, :, :, None]).sum(-2) * query.shape[-1] ** -0.5)
    return torch.stack(out, 1), state


def sums_by_definition(query: Any, key: Any, value: Any, decay: Any, state: Any, first: Any = None) -> tuple[Any, Any]:
    out = []
    for t in range(query.shape[1]):
        pair = key[:, t, :, :, None] * value[:, t, :, None]
        seen = state if first is None else state + first[..., None] * pair
        state = decay[:, t, :, :, None].exp() * state + pair
        out.append((query[:, t, :, :, None] * (state if first is None else seen)).sum(-2))
    return torch.stack(out, 1), state


def relearned_by_definition(
    query: Any, key: Any, value: Any, decay: Any, aim: Any, taken: Any, state: Any
) -> tuple[Any, Any]:
    out = []
    for t in range(query.shape[1]):
        held = (state * aim[:, t, :, :, None]).sum(-2, keepdim=True)
        state = decay[:, t, :, :, None].exp() * state + taken[:, t, :, :, None] * held
        state = state + key[:, t, :, :, None] * value[:, t, :, None]
        out.append((query[:, t, :, :, None] * state).sum(-2))
    return torch.stack(out, 1), state


def _mamba(count: int) -> tuple[Any, ...]:
    return (
        *(random(2, count, 6), random(2, count, 6).exp(), -random(6, 3).exp()),
        *(random(2, count, 3), random(2, count, 3), random(2, 6, 3)),
    )


def _mamba2(count: int) -> tuple[Any, ...]:
    return (
        *(random(2, count, 4, 3), random(2, count, 4).exp(), -random(4).exp()),
        *(random(2, count, 2, 5), random(2, count, 2, 5), random(2, 4, 3, 5)),
    )


def _delta(count: int, fine: int) -> tuple[Any, ...]:
    unit = torch.nn.functional.normalize
    return (
        *(unit(random(2, count, 2, 4), dim=-1), unit(random(2, count, 2, 4), dim=-1), random(2, count, 2, 3)),
        *(-random(2, count, 2, fine).exp(), random(2, count, 2).sigmoid(), random(2, 2, 4, 3)),
    )


def _sums(count: int, fine: int) -> tuple[Any, ...]:
    return (
        *(random(2, count, 2, 4), random(2, count, 2, 4), random(2, count, 2, 3)),
        *(-random(2, count, 2, fine).exp(), random(2, 2, 4, 3)),
    )


def _relearned(count: int) -> tuple[Any, ...]:
    query, key, value, decay, state = _sums(count, 4)
    aim = torch.nn.functional.normalize(random(2, count, 2, 4), dim=-1)
    return query, key, value, decay, -aim, aim * random(2, count, 2, 4).sigmoid(), state


SCANS = {
    "mamba": (selective_scan, mamba_by_definition, _mamba),
    "mamba2": (state_space, mamba2_by_definition, _mamba2),
    "delta": (delta_rule, delta_by_definition, lambda count: _delta(count, 1)),
    "delta of every number": (delta_rule, delta_by_definition, lambda count: _delta(count, 4)),
    "sums": (decayed_sums, sums_by_definition, lambda count: _sums(count, 1)),
    "sums of every number": (decayed_sums, sums_by_definition, lambda count: _sums(count, 4)),
    "sums and a token's own": (decayed_sums, sums_by_definition, lambda count: (*_sums(count, 4), random(2, 4))),
    "relearned": (relearned, relearned_by_definition, _relearned),
}


@pytest.mark.parametrize("count", [1, 2, 17, 65, 300])
@pytest.mark.parametrize("name", SCANS)
def test_chunks_are_tokens_one_after_another(name: str, count: int) -> None:
    """Results, states and every gradient."""
    fast, slow, made = SCANS[name]
    given = [t.requires_grad_() for t in made(count)]
    ours, theirs = fast(*given), slow(*given)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    weigh = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in ours]
    grads = [
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(pair, weigh, strict=True)), given)
        for pair in (ours, theirs)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_strong_decays_stay_finite(name: str) -> None:
    fast, _slow, made = SCANS[name]
    x, dt, *rest = (t.float() for t in made(200))
    out, state = fast(x, dt * 500, *rest)
    assert bool(out.isfinite().all() and state.isfinite().all())


FAMILIES = ["mamba", "falcon-mamba", "mamba2", "qwen3-next", "qwen3.5", "jamba", "granite-hybrid"]
BY_HAND = ["rwkv6", "rwkv6-qwen2", "rwkv7", "arwkv7", "minimax-01", "ling3"]
"""Of which transformers has no tiny model, or one under other names."""
LATER = [name if name == "rwkv7" else pytest.param(name, marks=pytest.mark.slow) for name in BY_HAND]
UNUSED = tuple(f"blk.0.time_mix_v{part}" for part in "012")
"""What RWKV 7's first layer has and does not compute with."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny models by name: their GGUF with a vocabulary, made once."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    return lambda name: (by_hand_gguf if name in BY_HAND else gguf_of)(name, folder)


@pytest.mark.parametrize("name", [*FAMILIES, *BY_HAND])
def test_padding_is_nothing_wherever_it_stands(name: str, models: Any) -> None:
    """Left, right and between: what is padded and then goes on is what was never padded."""
    model = llmconv.load(models(name), "cpu", "f32")
    ids = torch.randint(3, 90, (1, 14), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(ids)[0]
        mask = torch.tensor([[False] * 2 + [True] * 5 + [False] * 3, [True] * 7 + [False] * 3])
        padded = torch.zeros(2, 10, dtype=torch.int64)
        padded[0, 2:7], padded[1, :7] = ids[0, :5], ids[0, :7]
        cache = model.cache(2, 32)
        first = model(padded, mask, cache)
        rest = torch.stack((ids[0, 5:12], ids[0, 7:14]))
        then = model(rest, torch.ones(2, 7, dtype=torch.bool), cache)
    for row, start, end in ((0, 2, 5), (1, 0, 7)):
        torch.testing.assert_close(first[row, start : start + end], expected[:end], atol=1e-4, rtol=0)
        torch.testing.assert_close(then[row], expected[end : end + 7], atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="can't go back"):
        cache.cut(3)


@pytest.mark.parametrize("name", [*FAMILIES, *LATER])
def test_calibration_and_importance_see_every_matrix(name: str, models: Any, tmp_path: Path) -> None:
    """The recurrent projections too: each has its importance, and its inputs' matrix."""
    path, text = models(name), tmp_path / "text.txt"
    text.write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(600)))
    found = llmconv.imatrix(path, text, tmp_path / "i.gguf", context=32, device="cpu")
    assert not any("not run here" in note for note in found.notes)
    entries = read_importance(tmp_path / "i.gguf").entries
    matrices = {
        n
        for n, t in llmconv.open(path).tensors.items()
        if n.startswith("blk.")
        and n.endswith("weight")
        and len(t.shape) > 1
        and not any(part in n for part in ("conv", "_norm", "ssm_a", "gate_inp_shexp", "_lerp_", "_first", *UNUSED))
    }
    assert matrices <= set(entries)
    made = llmconv.quantize(
        path, tmp_path / "q.gguf", "Q4_0", pure=True, calibration=llmconv.OnText(text, effort="fast", device="cpu")
    )
    rounded = {t.name for t in made.output.tensors if t.loss_before is not None}
    blocks = {
        n for n, t in llmconv.open(tmp_path / "q.gguf").tensors.items() if n in matrices and t.type.name == "Q4_0"
    }
    assert blocks and {n for n in blocks if "_exps" not in n and "attn_v_b" not in n} <= rounded
    assert llmconv.size(tmp_path / "q.gguf").states > 0


@pytest.mark.parametrize("name", ["mamba", "mamba2", "qwen3-next", "rwkv6", "rwkv7", "minimax-01"])
def test_training_goes_through_the_scan(name: str, models: Any) -> None:
    model = llmconv.load(models(name), "cpu", "f32").train()
    ids = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(
            p.grad is not None and bool(p.grad.isfinite().all())
            for n, p in model.named_parameters()
            if any(part in n for part in ("ssm_", "time_mix_", "channel_mix_", "attn_qkv"))
            and not any(part in n for part in UNUSED)
        )
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
