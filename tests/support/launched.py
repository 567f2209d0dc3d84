"""Commands under the real torchrun, several of them in each of its processes, so that torch is imported once in each.

    python -m torch.distributed.run --nproc-per-node N tests/support/launched.py RUNS FOLDER

RUNS: a JSON file of {"args": [[...], ...], "kill": [RANK, SLABS]}.   FOLDER: gets I.RANK.out, I.RANK.err and the exit
status, I.RANK.code, of command I in the process RANK.  A run in which one is killed has one command, and prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import teams


def launch(folder: Path, size: int, *args: list[str]) -> list[dict[str, list[str]]]:
    """Exit statuses and texts of each command, by rank, in `size` processes; of one, without torchrun."""
    done = _started(folder, size, {"args": args, "kill": None})
    assert not done.returncode, done.stderr

    def texts(i: int, kind: str) -> list[str]:
        return [(folder / f"{i}.{rank}.{kind}").read_text() for rank in range(size)]

    return [{kind: texts(i, kind) for kind in ("code", "out", "err")} for i in range(len(args))]


def launch_and_kill(folder: Path, size: int, args: list[str], kill: list[Any]) -> list[str]:
    """What each process of a run says on standard error, of which the process kill[0] dies after kill[1] slabs, or
    calls of the method kill[2]."""
    done = _started(folder, size, {"args": [args], "kill": kill})
    assert done.returncode
    files = [next((folder / "logs").glob(f"*/attempt_0/{rank}/stderr.log")) for rank in range(size)]
    return [file.read_text() for file in files]


def _started(folder: Path, size: int, run: dict[str, Any]) -> Any:
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps(run))
    program = [__file__, str(folder / "runs.json"), str(folder)]
    if size > 1:
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = str(found.getsockname()[1])
        how = ["--nproc-per-node", str(size), "--master-port", port]
        how += ["-r", "3", "--log-dir", str(folder / "logs")] if run["kill"] else []
        program = ["-m", "torch.distributed.run", *how, *program]
    return subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(teams.ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def _ran(args: list[str], stem: Path) -> None:
    from llmconv.cli import main

    status: Any = 0
    with Path(f"{stem}.out").open("w") as out, Path(f"{stem}.err").open("w") as err:
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(args)
        except SystemExit as end:
            status = end.code or 0
    Path(f"{stem}.code").write_text(str(status))


def _all() -> None:
    import llmconv
    from llmconv.cli import main

    run, folder, rank = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), os.environ.get("RANK", "0")
    if run["kill"]:
        if run["kill"][0] == int(rank):
            teams._killed_after(*run["kill"][1:])
        main(run["args"][0])
    with llmconv.together():
        for i, args in enumerate(run["args"]):
            _ran(args, folder / f"{i}.{rank}")


if __name__ == "__main__":
    _all()
