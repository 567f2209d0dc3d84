"""What goes from layer to layer, a tensor for each batch: in memory as far as that goes, else in a temporary file."""

from __future__ import annotations

import torch
from torch import Tensor

from llmconv.formats.writing.scratch import Scratch

__all__ = ["States"]


class States:
    """limit: bytes kept in memory."""

    def __init__(self, limit: int, device: torch.device):
        self._left, self._device = limit, device
        self._here: dict[int, Tensor] = {}
        self._there: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._scratch = Scratch()

    def put(self, i: int, value: Tensor) -> None:
        """Keep the states of batch `i`, in place of those before."""
        old = self._here.get(i)
        if old is not None or (i not in self._there and value.nbytes <= self._left):
            self._left += (0 if old is None else old.nbytes) - value.nbytes
            self._here[i] = value if value.device.type == "cpu" else value.cpu()
            return
        flat = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        offset, shape, dtype = self._there.get(i, (-1, value.shape, value.dtype))
        if offset < 0 or shape.numel() * dtype.itemsize < value.nbytes:
            offset = self._scratch.room(value.nbytes)
        self._scratch.put(flat.data, offset)
        self._there[i] = (offset, value.shape, value.dtype)

    def get(self, i: int) -> Tensor:
        """The states of batch `i`, on the device."""
        if i in self._here:
            return self._here[i].to(self._device)
        offset, shape, dtype = self._there[i]
        out = torch.empty(shape, dtype=dtype)
        self._scratch.fill(out.view(-1).view(torch.uint8).numpy().data, offset)
        return out.to(self._device)

    def close(self) -> None:
        self._here.clear()
        self._there.clear()
        self._scratch.close()
