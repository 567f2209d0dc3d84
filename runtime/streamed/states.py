"""What goes from layer to layer, a tensor for each batch: in memory as far as that goes, else in a temporary file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from llmconv.errors import OutputError, at
from llmconv.formats.source import read_into
from llmconv.formats.writing.checks import output_errors
from llmconv.formats.writing.target import write_at

__all__ = ["States"]


class States:
    """limit: bytes kept in memory.   The file has no name, so that no end of the program leaves it behind."""

    def __init__(self, limit: int, device: torch.device):
        self._left, self._device = limit, device
        self._here: dict[int, Tensor] = {}
        self._there: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

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
            offset, self._end = self._end, self._end + value.nbytes
        file = self._opened()
        with output_errors(self._place()):
            write_at(file.fileno(), flat.data, offset)
        self._there[i] = (offset, value.shape, value.dtype)

    def get(self, i: int) -> Tensor:
        """The states of batch `i`, on the device."""
        if i in self._here:
            return self._here[i].to(self._device)
        offset, shape, dtype = self._there[i]
        out = torch.empty(shape, dtype=dtype)
        try:
            read_into(self._opened().fileno(), out.view(-1).view(torch.uint8).numpy().data, offset)
        except (OSError, EOFError) as error:
            raise OutputError(f"{at(self._place())}: a temporary file there can't be read ({error})") from None
        return out.to(self._device)

    def close(self) -> None:
        self._here.clear()
        self._there.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            with output_errors(self._place()):
                self._file = tempfile.TemporaryFile(prefix="llmconv-states-")  # noqa: SIM115
        return self._file

    @staticmethod
    def _place() -> Path:
        return Path(tempfile.gettempdir())
