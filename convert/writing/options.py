"""How an output is written: one value for converting and quantizing."""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.errors import UsageError
from llmconv.formats.writing.stream import threads
from llmconv.progress import Meter, Progress

__all__ = ["Writing"]


@dataclass(frozen=True)
class Writing:
    """Everything about writing that is no matter of the model.

    force: replace what is there.  jobs: threads (None: processors).  progress: called with each step.
    provenance: record the source, its content hash and the rounding.  dry_run: only plan.
    allow_overflow: values that the type can't hold become infinite.  allow_nonfinite: NaN and infinities pass.
    resumable: an interrupted run leaves `NAME.partial`, from which the same call goes on.
    portable: a GGUF for publishing, with no keys of ours.
    """

    force: bool = False
    jobs: int | None = None
    progress: Progress | None = None
    provenance: bool = False
    dry_run: bool = False
    allow_overflow: bool = False
    allow_nonfinite: bool = False
    resumable: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        if self.portable and self.provenance:
            raise UsageError("--provenance is a key of ours, and --portable leaves all of them out; choose one")
        threads(self.jobs)  # `UsageError` for none at all, whether the format has use for them or not

    def meter(self, what: str, total: int) -> Meter:
        """What tells `progress` of bytes."""
        return Meter(self.progress, what, total)
