"""Certificates: a converted file records what it was made from, and anybody can check it against that source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmconv import __version__
from llmconv.convert.reports.content_hash import content_hash
from llmconv.convert.reports.verify import TensorVerdict, comparable, verify_checkpoints
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.progress import Meter
from llmconv.quant import by_name, names
from llmconv.show import Shown

__all__ = ["KEY", "Certificate", "Check", "certify", "check_certificate"]

KEY = own_keys.PROVENANCE
"""The metadata key that holds the certificate, a JSON object, in GGUF and in safetensors' `__metadata__`."""
IMPORTANCE = "quantize.imatrix.entries_count"
"""A key of files that were quantized with importance weights."""
NEAR = 0.7
"""Cosine of the angle between a tensor and its quantized self that even one bit a weight keeps (1 bit of normally
distributed weights: sqrt(2 / pi) = 0.80)."""


@dataclass(frozen=True)
class Check(Shown):
    """One thing that was checked: its name, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Certificate(Shown):
    """What `check_certificate` found; `ok` when every check holds."""

    recorded: dict[str, Any]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the answer."""
        return {"ok": self.ok, **super().as_dict()}


def certify(checkpoint: Checkpoint, canonical: Checkpoint, source: Checkpoint, rounding: str) -> None:
    """Put a certificate into `checkpoint.metadata`: the source's name, its content hash, the rounding, our version.

    checkpoint: what will be written.  canonical: the source in GGUF's dialect, read once, whole, for its hash.
    rounding: a sentence such as "none" or "F64 to F32".
    `UsageError` for a JSON checkpoint, whose document has no place for one.
    """
    if checkpoint.dialect == "json":
        raise UsageError("a legacy JSON file has no place for a certificate; convert to GGUF or safetensors for one")
    record = {
        "source": source.source.name if source.source else "",
        "source_format": source.format,
        "source_content_sha256": content_hash(source if checkpoint.dialect == source.dialect else canonical).model,
        "rounding": rounding,
        "tool": f"llmconv {__version__}",
    }
    checkpoint.metadata[KEY] = json.dumps(record, ensure_ascii=False)


def check_certificate(checkpoint: Checkpoint, source: Checkpoint, meter: Meter | None = None) -> Certificate:
    """Check a converted checkpoint's certificate against the source it names.

    `BadFile` when there is none or it is not a certificate.
    """
    where = at(checkpoint.source or "checkpoint", f"metadata {KEY!r}")
    text = checkpoint.metadata.get(KEY)
    if not isinstance(text, str):
        raise BadFile(f"{where}: not there, expected a certificate; convert again with --provenance")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    wanted = ("source", "source_content_sha256", "rounding", "tool")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in wanted):
        raise BadFile(f"{where}: is no certificate, expected a JSON object with {', '.join(wanted)}")
    found = content_hash(comparable(source, checkpoint)[0], meter).model
    verdict = verify_checkpoints(source, checkpoint, meter=meter)
    counts = ", ".join(f"{n} {status}" for status, n in verdict.counts().items())
    weighted = IMPORTANCE in checkpoint.metadata
    allowed = all(_allowed(tensor, record["rounding"], weighted) for tensor in verdict.tensors)
    weights = ", with importance weights" if weighted else ""
    changed = [f"hyper-parameter {key}" for key in verdict.hparams] + verdict.vocab
    checks = [
        Check(
            "source",
            found == record["source_content_sha256"],
            f"content {found[:16]}…, recorded {record['source_content_sha256'][:16]}…",
        ),
        Check("values", allowed, f"{counts}; stated rounding: {record['rounding']}{weights}"),
        Check("model", not changed, "; ".join(changed[:3]) or "hyper-parameters and vocabulary are the source's"),
        Check("tool", record["tool"].startswith("llmconv "), record["tool"]),
    ]
    return Certificate(record, checks)


def _allowed(tensor: TensorVerdict, rounding: str, weighted: bool) -> bool:
    """Whether a tensor is what its source is under the stated rounding.

    Blocks chosen with importance weights can't be recomputed without those: they must only be near.
    """
    if tensor.status in ("identical", "equal"):
        return True
    if rounding == "none":
        return False
    blocks = tensor.type_b in names() and not by_name(tensor.type_b).is_plain()
    return tensor.status == "rounded" or (weighted and blocks and tensor.cosine > NEAR)
