"""The loss that never holds all logits, beside torch's own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from llmconv.runtime.training import loss


@pytest.mark.parametrize("positions, none", [(128, 0), (5, 7), (4, 24)], ids=["at once", "in parts", "no targets"])
def test_it_is_the_cross_entropy_of_the_heads_product(
    positions: int, none: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "POSITIONS", positions)
    chance = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(2, 12, 8, generator=chance), torch.randn(50, 8, generator=chance)
    targets = torch.randint(0, 50, (2, 12), generator=chance)
    targets.flatten()[:none] = -100
    ours, theirs = ([t.clone().requires_grad_() for t in (hidden, weight)] for _ in "12")
    summed, shared = loss.loss_of_head(*ours, targets, 0.25)
    (3 * shared).backward()
    logits = theirs[0] @ theirs[1].T
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (3 * 0.25 * expected).backward()
    torch.testing.assert_close(summed, expected.detach())
    assert not summed.requires_grad
    torch.testing.assert_close([t.grad for t in ours], [t.grad for t in theirs])
