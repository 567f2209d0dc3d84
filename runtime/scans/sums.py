"""Linear attention that forgets: a head's state is the sum of its keys with their values, which decays.

    S = decay S + k vᵀ,  y = qᵀ S

The decay of a token is one number a head, or one for each number of its keys.  Inside a chunk it is a product with a
triangle of decays, from chunk to chunk the state goes on (arXiv:2312.06635).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmconv.runtime.scans.past import decayed, in_chunks, in_full

__all__ = ["COARSE", "FINE", "decayed_sums"]

COARSE, FINE = 64, 16
"""Tokens of a chunk; fewer of decays for each number of a key, which can't be taken out of the products."""


@in_full
def decayed_sums(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """query and key (B, T, H, K), value (B, T, H, V), logarithms of decays (B, T, H, 1 or K), state (B, H, K, V) ->
    (B, T, H, V), and the state after it.

    first: (H, K), by which a token's own key counts; it is asked before the state decays then (RWKV 6).
    """
    count = query.shape[1]
    length = min(COARSE if decay.shape[-1] == 1 else FINE, count)
    chunks = -(-count // length)
    query, key, value, decay = (in_chunks(t, length, chunks) for t in (query, key, value, decay))
    ends = decay.cumsum(-2)  # since the chunk's start
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if first is None:
        upto, within = ends, decayed(query, key, ends, ends, seen)
    else:
        upto = F.pad(ends, (0, 0, 1, -1))
        own = (query * first[:, None, None] * key).sum(-1)
        within = decayed(query, key, upto, ends, seen.tril(-1)) + own.diag_embed()
    added = (key * (ends[..., -1:, :] - ends).exp()).transpose(-1, -2) @ value  # (B, H, chunks, K, V)
    before = []
    for i in range(chunks):
        before.append(state)
        state = ends[:, :, i, -1, :, None].exp() * state + added[:, :, i]
    out = within @ value + (query * upto.exp()) @ torch.stack(before, 2)
    return out.movedim(1, 3).flatten(1, 2)[:, :count], state
