"""Checkpoints that torch.distributed.checkpoint wrote, whole and in pieces, and what is wrong with some."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import llmconv
from llmconv.errors import LlmconvError

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of saving without a process group

STATE = {
    "model": {"layers.0.w.weight": (6, 8), "b": (5,), "stacked": (2, 3, 4)},
    "optimizer": {"state": {0: {"exp_avg": (6, 8)}}},
}


def numbers(shape, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def state():
    model = {name: numbers(shape) for name, shape in STATE["model"].items()}
    model["stacked"] = model["stacked"].bfloat16()
    return {
        "model": model,
        "optimizer": {"state": {0: {"exp_avg": numbers((6, 8), 9)}}},
        "step": torch.tensor(3),
        "n": 4,
    }


@pytest.fixture
def saved(tmp_path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(state(), checkpoint_id=str(tmp_path / "cp"), no_dist=True)
    return tmp_path / "cp"


def test_the_model_is_taken(saved):
    found = llmconv.open(saved)
    want = state()["model"]
    assert (found.format, list(found.tensors)) == ("distcp", list(want))
    for name, tensor in found.tensors.items():
        got = np.asarray(tensor.to_float32() if hasattr(tensor, "to_float32") else tensor)
        assert tensor.shape == tuple(want[name].shape) and np.array_equal(got, want[name].float().numpy())
    assert found.tensors["stacked"].type.name == "BF16"
    assert any("under 'optimizer'" in note for note in found.notes)
    assert any("beside the model: 'step'" in note for note in found.notes)
    other = llmconv.open(saved, key="optimizer")
    assert [t.shape for t in other.tensors.values()] == [(6, 8)]
    assert llmconv.open(saved / ".metadata").tensors.keys() == found.tensors.keys()
    assert llmconv.open(next(saved.glob("*.distcp"))).tensors.keys() == found.tensors.keys()


def test_with_a_configuration_it_is_a_model(tmp_path):
    """As accelerate saves under FSDP: pytorch_model_fsdp_0 beside config.json."""
    transformers = pytest.importorskip("transformers")
    import torch.distributed.checkpoint as dcp

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    folder = tmp_path / "checkpoint-5"
    dcp.save({"model": model.state_dict()}, checkpoint_id=str(folder / "pytorch_model_fsdp_0"), no_dist=True)
    (folder / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    llmconv.convert_file(tmp_path / "hf", tmp_path / "want.gguf")
    llmconv.convert_file(folder, tmp_path / "got.gguf")
    a, b = llmconv.open(tmp_path / "want.gguf"), llmconv.open(tmp_path / "got.gguf")
    assert list(a.tensors) == list(b.tensors)
    assert all(np.array_equal(t.blocks(), b.tensors[n].blocks()) for n, t in a.tensors.items())


PIECES = """
import os, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def work(rank):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4"}
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    base = torch.load("base.pt")
    cuts = {
        "rows": (Shard(0), Replicate()),
        "columns": (Replicate(), Shard(1)),
        "both": (Shard(0), Shard(1)),
        "line": (Shard(0), Replicate()),
        "deep": (Shard(0), Shard(2)),
        "one": (Shard(0), Shard(0)),
    }
    dcp.save({n: distribute_tensor(base[n], mesh, list(how)) for n, how in cuts.items()}, checkpoint_id="whole")
    middle = distribute_tensor(base["deep"], mesh, [Shard(1), Replicate()])
    dcp.save({"middle": middle}, checkpoint_id="middle")
    dist.destroy_process_group()


others = []
for rank in (1, 2, 3):  # forked, for loading torch takes seconds
    others.append(os.fork())
    if not others[-1]:
        work(rank)
        os._exit(0)
work(0)
assert not any(os.waitpid(pid, 0)[1] for pid in others)
"""


@pytest.mark.slow
def test_pieces_of_four_processes(tmp_path):
    """Rows, columns and both, of uneven sizes, a row that three of four processes have nothing of."""
    shapes = {"rows": (5, 8), "columns": (6, 7), "both": (5, 9), "line": (7,), "deep": (3, 4, 5), "one": (1, 6)}
    base = {name: numbers(shape) for name, shape in shapes.items()}
    torch.save(base, tmp_path / "base.pt")
    words = [sys.executable, "-W", "ignore", "-c", PIECES]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env)
    assert run.returncode == 0, run.stderr
    with pytest.raises(LlmconvError, match="cut in a way that is not read"):
        llmconv.open(tmp_path / "middle")
    found = llmconv.open(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("*.distcp"))) == 4
    for name, want in base.items():
        tensor = found.tensors[name]
        assert tensor.shape == tuple(want.shape)
        assert np.array_equal(np.asarray(tensor), want.numpy()), name
        if len(want.shape) == 2:
            assert np.array_equal(np.asarray(tensor[1:]), want.numpy()[1:])


def rewritten(folder: Path, change) -> None:
    """The metadata with something changed, by torch's own classes."""
    meta = pickle.loads((folder / ".metadata").read_bytes())
    change(meta)
    (folder / ".metadata").write_bytes(pickle.dumps(meta))


def first(meta):
    return next(info for index, info in meta.storage_data.items() if index.fqn == "model.b")


def _other_size(meta):
    meta.state_dict_metadata["model.b"].size = torch.Size([6])


def _far(meta):
    first(meta).offset = 10**9


def _outside(meta):
    first(meta).relative_path = "../x.distcp"


def _missing(meta):
    first(meta).relative_path = "__9_9.distcp"


def _packed(meta):
    first(meta).transform_descriptors = ["zstd"]


def _no_place(meta):
    meta.storage_data = {k: v for k, v in meta.storage_data.items() if k.fqn != "model.b"}


def _twice(meta):
    meta.state_dict_metadata["model.b"].chunks *= 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_size, "are not the whole of [6]"),
        (_far, "is cut short"),
        (_outside, "states tensors in a way that is not read"),
        (_missing, "its file __9_9.distcp is missing"),
        (_packed, "packed by"),
        (_no_place, "states tensors in a way that is not read"),
        (_twice, "are not the whole of"),
    ],
)
def test_what_is_refused(saved, change, says):
    rewritten(saved, change)
    with pytest.raises(LlmconvError, match=re.escape(says)) as refused:
        llmconv.open(saved)
    assert len(str(refused.value)) < 300 + len(str(saved))


class _Program:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(_Program())])
def test_a_metadata_that_is_none(saved, content, monkeypatch):
    monkeypatch.chdir(saved)
    (saved / ".metadata").write_bytes(content)
    with pytest.raises(LlmconvError, match="is no checkpoint's metadata"):
        llmconv.open(saved)
    assert not (saved / "ran").exists()
