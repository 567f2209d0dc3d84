"""kill -9 at random moments: runs of training that are forked from one process that has imported everything, killed,
and resumed until they are done; what is left must always resume, and end as a run that nobody killed.

    python tests/support/killing.py one|ddp|fsdp KILLS FOLDER [SEED]

With "resize" for KILLS: a run of two processes goes on with one, or of one with two.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PROCESSES = {"one": 1, "ddp": 2, "fsdp": 2}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def _fork(config: Any, size: int, log: Path) -> list[int]:
    """The processes of one attempt: resumed where there is anything to resume, begun otherwise."""
    from llmconv.errors import LlmconvError
    from llmconv.runtime.training.loop import train

    port, pids = _free_port(), []
    for rank in range(size):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            train(config, resume=(Path(config.output) / "config.json").is_file())
            status = 0
        except LlmconvError as error:
            print(f"llmconv: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pids


def _wait(pids: list[int], until: float, grace: float = 60.0) -> list[int]:
    """Exit codes (negative: signals) of processes; when one fails, or at `until`, the others are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            until = min(until, time.monotonic() + grace)
        if time.monotonic() > until:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def config_of(kind: str, data: Path, output: Path, **changes: Any) -> Any:
    from llmconv.runtime.training.config import TrainConfig

    return TrainConfig(
        **{
            "data": str(data), "output": str(output), "preset": "simple-1m-causal", "layers": 1, "dim": 32, "heads": 2,
            "context": 16, "steps": 60, "batch_size": 4, "save_every": 2, "eval_every": 10, "eval_sequences": 8,
            "dropout": 0.1, "device": "cpu", "tensorboard": False, "plot": False, "export": "gguf", "log_every": 1,
            "tokenizer": "char", "parallel": "fsdp" if kind == "fsdp" else "ddp", **changes,
        }
    )  # fmt: skip


def resize(kind: str, folder: Path, data: Path) -> dict[str, Any]:
    """Half a run by one number of processes, half by another; how far its losses are from those of one process."""
    common = {"dropout": 0.0, "schedule": "constant", "warmup": 1}
    first, second = (1, 2) if kind == "one" else (2, 1)
    log, gap = folder / "resize.err", 0.0
    for name, parts in (("whole", [(1, 12)]), ("cut", [(first, 6), (second, 12)])):
        for size, steps in parts:
            config = config_of(kind, data, folder / name, steps=steps, **common)
            codes = _wait(_fork(config, size, log), time.monotonic() + 300)
            assert codes == [0] * size, log.read_text()[-3000:]
    runs = [(folder / name / "log.csv").read_text().splitlines()[1:] for name in ("whole", "cut")]
    losses = [[float(row.split(",")[2]) for row in rows if row.split(",")[2]] for rows in runs]
    assert len(losses[0]) == len(losses[1]) == 12
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return {"kind": kind, "gap": gap}


def kill_and_resume(kind: str, kills: int, folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """Train, killing all processes or one of them `kills` times at random moments; compare with an unkilled run."""

    def config(output: Path) -> Any:
        return config_of(kind, data, output)

    size, chance, log = PROCESSES[kind], random.Random(seed), folder / f"{kind}.err"
    began = time.monotonic()
    assert _wait(_fork(config(folder / "whole"), size, log), began + 600) == [0] * size, log.read_text()
    whole_run = time.monotonic() - began
    done, round_number, signals, where = 0, 0, [], []
    while done < kills:
        output = folder / f"cut-{round_number}"
        round_number += 1
        finished = False
        while not finished:
            pids = _fork(config(output), size, log)
            moment = chance.random() * whole_run if done < kills else 600.0
            end = time.monotonic() + moment
            if chance.random() < 0.7:  # while it trains: what comes before takes most of so short a run
                _begun(output / "log.csv", pids)
                end = time.monotonic() + moment / 4
            while time.monotonic() < end and all(os.path.exists(f"/proc/{pid}") for pid in pids):
                time.sleep(0.002)
                if any(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in pids):
                    break
            victims = pids if chance.random() < 0.5 else [chance.choice(pids)]
            killed = moment < 600 and time.monotonic() >= end
            for pid in victims if killed else ():
                os.kill(pid, signal.SIGKILL)
            codes = _wait(pids, time.monotonic() + (5 if killed else 600), 5)
            if killed and -signal.SIGKILL in codes:
                done += 1
                signals += [code for code in codes if code < 0 and code != -signal.SIGKILL]
                steps = sorted(p.name for p in output.glob("checkpoints/step-*"))
                where.append(steps[-1] if steps else "before the first")
                print(f"kill {done}: {where[-1]}, ends {codes}", file=sys.stderr, flush=True)
            else:
                signals += [code for code in codes if code]
                assert codes == [0] * size, (codes, log.read_text()[-3000:])
            finished = codes == [0] * size
        _same(folder / "whole", output)
    said = log.read_text() if log.exists() else ""  # who was not killed says in a sentence that it is alone now
    assert "Traceback" not in said, said[-3000:]
    ends = {"kill": done, "sentence": said.count("another of the run's"), "other": signals}
    return {"kind": kind, "kills": done, "runs": round_number, "ends": ends, "last checkpoint": where}


def _begun(log: Path, pids: list[int]) -> None:
    """Wait until a line is added to the log, or a process has ended."""

    def size() -> int:
        return log.stat().st_size if log.exists() else 0

    before = size()
    while size() == before and not any(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in pids):
        time.sleep(0.002)


def _same(whole: Path, cut: Path) -> None:
    """The same losses in the log, the same weights at the end, and nothing half written."""
    columns = [[line.split(",")[:5] for line in (run / "log.csv").read_text().splitlines()] for run in (whole, cut)]
    assert columns[0] == columns[1], cut
    assert (whole / "model.gguf").read_bytes() == (cut / "model.gguf").read_bytes()
    assert not list(cut.glob("checkpoints/.llmconv-*"))


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import tokenizers
    import torch
    import torch.distributed.checkpoint.state_dict_saver
    import torch.distributed.fsdp

    import llmconv.runtime.training.loop  # so that each fork has it

    torch.set_num_threads(1)
    assert llmconv, tokenizers
    kind, kills, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(__file__).parents[2] / "examples" / "corpus.txt"
    small = folder / "corpus.txt"
    small.write_text(data.read_text()[:20000])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 7
    resizing = kills == "resize"
    print(
        json.dumps(resize(kind, folder, small) if resizing else kill_and_resume(kind, int(kills), folder, small, seed))
    )


if __name__ == "__main__":
    main()
