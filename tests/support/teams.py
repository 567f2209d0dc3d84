"""Commands run by several processes at once, as torchrun would start them, but forked from one that has imported torch.

    python tests/support/teams.py < RUNS

RUNS: a JSON list of {"args": [...], "size": N, "kill": [RANK, CALLS, METHOD], "set": {PLACE: VALUE}}; prints a list of
{"codes", "out", "err"}, a text for each process.  "kill": the process of that rank dies with SIGKILL after so many
calls of a method, by default after so many slabs.  "set": values of modules' names, "package.module:NAME".
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def runs(*wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of each of some runs, in one process that imports torch once."""
    made = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert not made.returncode, made.stderr
    found: list[dict[str, Any]] = json.loads(made.stdout)
    return found


def _killed_after(calls: int, method: str = "llmconv.formats.writing.encoding:Worker.encode") -> None:
    module, _, path = method.partition(":")
    owner, name = path.split(".")
    kind = getattr(importlib.import_module(module), owner)
    real, left = getattr(kind, name), [calls]

    def counted(*given: Any, **named: Any) -> Any:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*given, **named)

    setattr(kind, name, counted)


def _child(run: dict[str, Any], rank: int, port: int, logs: Path) -> None:
    from llmconv.cli import main

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(logs / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(run["size"])}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if run.get("kill") and run["kill"][0] == rank:
        _killed_after(*run["kill"][1:])
    for place, value in run.get("set", {}).items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    main(run["args"])


def _run(run: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, socket.socket() as found:
        found.bind(("localhost", 0))
        port = int(found.getsockname()[1])
        found.close()
        pids = []
        for rank in range(run["size"]):
            pid = os.fork()
            if not pid:
                status = 99
                try:
                    _child(run, rank, port, Path(name))
                except SystemExit as end:
                    status = int(end.code or 0)
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        texts = {
            kind: [(Path(name) / f"{r}.{kind}").read_text() for r in range(run["size"])] for kind in ("out", "err")
        }
    return {"codes": codes, **texts}


if __name__ == "__main__":
    inside = ("runtime.measure.compare", "runtime.calibrate.calibration", "convert.quantizing.quantize")
    late = ("torch.distributed", "torch.fx.experimental.symbolic_shapes")  # which a first backward pass imports
    for module in (*late, *(f"llmconv.{name}" for name in inside)):
        importlib.import_module(module)
    print(json.dumps([_run(run) for run in json.load(sys.stdin)]))
