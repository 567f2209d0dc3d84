"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors: none of them should start threads for all
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
NO_TORCH = "they need torch; pip install torch (see the README for a build without CUDA), and run again"


def pytest_configure(config: pytest.Config) -> None:
    """Signals as a terminal's: a run started by nohup or in the background ignores them, and its children with it."""
    for name, usual in (
        ("SIGINT", signal.default_int_handler),
        ("SIGHUP", signal.SIG_DFL),
        ("SIGTERM", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The peers' folder where no peer is asked for: importing their libraries takes seconds."""
    return True if collection_path.name == "peer" and "not peer" in config.option.markexpr else None


@pytest.fixture(autouse=True, scope="session")
def _no_flush() -> Iterator[None]:
    """Nothing that a test could read depends on whether a file has been flushed, which takes long on a busy disk.

    That it is asked for, and what comes of its failing, is tested in test_full_disk.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and references that may not be redistributed; tests that need them skip without."""
    if not SHARED.is_dir():
        pytest.skip("they need reference data that is not part of this repository")
    return SHARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, each reason once; and how to get those that torch would have added."""
    reasons: dict[str, list[pytest.TestReport | pytest.CollectReport]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        reasons.setdefault(NO_TORCH if re.search(r"\b(Py)?[Tt]orch\b", reason) else reason, []).append(report)
    for reason, reports in sorted(reasons.items(), key=lambda found: -len(found[1])):
        terminalreporter.write_line(f"left out: {_counted(reports)}: {reason}")


def _counted(reports: list[pytest.TestReport | pytest.CollectReport]) -> str:
    """Tests; a file that was skipped as a whole counts its functions, whatever they are parametrized over."""
    files = [ROOT / report.nodeid for report in reports if isinstance(report, pytest.CollectReport)]
    functions = sum(len(re.findall(r"^def test_", file.read_text("utf-8"), re.MULTILINE)) for file in files)
    tests = len(reports) - len(files) + functions
    more = f" or more, {len(files)} whole files" if files else ""
    return f"{tests} test{'' if tests == 1 else 's'}{more}"
