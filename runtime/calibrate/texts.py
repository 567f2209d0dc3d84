"""The texts of a calibration as batches of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv.errors import UsageError
from llmconv.runtime.measure import texts
from llmconv.runtime.measure.chunks import Window, Work, work_on
from llmconv.runtime.model import Model

__all__ = ["Reading", "rows_of", "without_context", "works"]


@dataclass(frozen=True)
class Reading:
    """What is run.   context: tokens in a chunk.   chunks: of all texts together; None: all there are."""

    texts: Sequence[texts.TextSource]
    context: int | None = None
    chunks: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not self.texts:
            raise UsageError("no text to calibrate on; give at least one, of the kind that the model is for")
        Window(self.context, self.chunks)

    @property
    def names(self) -> list[str]:
        """The texts' names, for the file."""
        return [texts.read(text).name for text in self.texts]


def works(model: Model, reading: Reading, tokens: int | None = None) -> list[Work]:
    """One `Work` a text, cut as for perplexity; a number of chunks is shared out among the texts.

    tokens: about how many are wanted where no number of chunks is; of pairs all are taken.
    """
    found: list[Work] = []
    left = reading.chunks
    for i, text in enumerate(reading.texts):
        passage = texts.read(text)
        if left is None and tokens is not None and passage.pairs is None:
            left = max(len(reading.texts), tokens // (reading.context or min(512, model.context_length or 512)))
        share = None if left is None else -(-left // (len(reading.texts) - i))
        if share == 0:
            break
        work = work_on(model, passage, Window(reading.context, share))
        found.append(work)
        left = None if left is None else left - work.total
    if left and reading.chunks:
        total = sum(work.total for work in found)
        note = f"the texts have {total} chunks of {found[0].context} tokens, fewer than the {reading.chunks} asked for"
        found[-1] = dataclasses.replace(found[-1], notes=[*found[-1].notes, note])
    return found


@contextmanager
def without_context() -> Iterator[None]:
    """A sentence that advises `-c` names the command that has it: `quantize` has none."""
    try:
        yield
    except UsageError as error:
        raise UsageError(str(error).replace("(-c)", "(llmconv calibrate -c, then --calibration)")) from None


def rows_of(found: Sequence[Work]) -> Iterator[Tensor]:
    """The batches' tokens, (rows, tokens) int64 each."""
    for work in found:
        for batch in work.batches:
            yield torch.as_tensor(batch.inputs)
