"""How much memory a run may take: what somebody says, or what is there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llmconv.formats.limits import in_bytes
from llmconv.formats.sharing.team import beside

__all__ = ["Memory", "limit"]

Memory = int | str | None
"""Bytes, as a number or like "2G"; None: what is there, shared by a run's processes on one machine."""

_SHARE = 0.9
"""Of what is there; the rest is for other programs and for what grows."""


def limit(memory: Memory, device: torch.device) -> int | None:
    """Bytes for weights and what is made of them; None where nobody knows how many there are.

    `UsageError` for what is no size.
    """
    if memory is not None:
        return in_bytes(memory, "memory", 1)
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0]) // -(-beside() // torch.cuda.device_count())
    free = [n for n in (_of_machine(), _of_group()) if n is not None]
    return int(_SHARE * min(free)) // beside() if free else None


def _of_machine() -> int | None:
    """Memory that programs could have without others being swapped out."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _of_group() -> int | None:
    """What a container's control group (version 2) leaves."""
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return None if most == "max" else max(0, int(most) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
