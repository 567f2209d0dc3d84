"""`llmconv`, `python -m llmconv`: the entry point.  Ctrl-C is answered before the command's libraries are imported."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any


def _stop(number: int, frame: Any) -> None:
    """Nothing has been read or written yet; raising would be swallowed by, or break, a half-done import."""
    os.write(2, b"llmconv: interrupted\n")
    os._exit(130)  # for SIGTERM too, as in the rest of a run (`llmconv.cli.main`)


def main() -> None:
    """Run the command; see `llmconv.cli.main`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of a shell's background job
            signal.signal(number, _stop)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Else torch's threads wait busily for milliseconds, which is what a run takes where others use the processors.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    gc.set_threshold(100_000)  # a start makes objects by the ten thousand and no garbage; looking costs a tenth of it
    from llmconv.cli import main as run

    try:
        run()
    finally:
        gc.freeze()  # nor is there any to look for at the end, where the interpreter looks several times


if __name__ == "__main__":
    main()
