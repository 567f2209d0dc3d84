"""What tests of whole files ask for."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to the disk is tested in test_full_disk.py, and slow on a busy one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
