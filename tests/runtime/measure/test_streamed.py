"""A model whose weights stay in the file gives the numbers of one in memory, bit for bit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runnable
import tiny_models

import llmconv
from llmconv.convert.reports import streaming
from llmconv.convert.reports.streaming import StreamingPlan

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*torch:DeprecationWarning")]

NAMES = ("llama-gqa-tied-bf16", "mixtral", "deepseek-v3", "gpt-oss", "jamba", "mamba2", "gemma3n", "gemma4")
"""Dense ones, experts with and without a dense layer before them or shared ones, scans beside attention, scans; layers
that lend each other keys, with vectors for each layer, streams, experts beside a dense MLP."""
EXPERTS = ("mixtral", "gpt-oss")  # of the others the embedding is larger than a layer


def smallest(model: Any, batches: list[Any]) -> int:
    """The least memory that a model can be run with on these batches."""
    from llmconv.runtime.streamed.passing import Passed

    with pytest.raises(llmconv.UsageError, match="too small for the largest part") as caught:
        llmconv.load(model, "cpu", memory=1)
    memory = asked(caught.value)
    while (loaded := llmconv.load(model, "cpu", memory=memory)).wants is None:
        memory -= 2000
    with Passed(loaded, batches):
        return int(loaded.wants.plan.smallest)


def asked(error: llmconv.UsageError) -> int:
    """What a refusal says that is needed."""
    return int(str(error).split("at least ")[1].split()[0].replace(",", ""))


def streamed(model: Any, memory: int) -> tuple[Any, StreamingPlan]:
    """The model with its weights in the file, and the plan."""
    from llmconv.runtime.streamed.weights import Weights

    found = llmconv.load(model, "cpu", memory=memory)
    assert isinstance(found.wants, Weights)
    return found, found.wants.plan


def batches_of(vocabulary: int) -> list[Any]:
    """Batches of several shapes."""
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocabulary, shape, generator=draw) for shape in ((3, 20), (2, 20), (1, 7))]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_gives_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.streamed.passing import Passed

    pytest.importorskip("transformers")
    tiny_models.build(name, tmp_path)
    monkeypatch.setattr(streaming, "BATCH", 32)  # so that results inside a layer are smaller than weights
    resident = llmconv.load(tmp_path, "cpu")
    batches = batches_of(96)
    least, apart = smallest(tmp_path, batches), list[bool]()
    with torch.inference_mode():
        expected = [resident.hidden(tokens) for tokens in batches]
        for memory in (least, least + 30_000, least + 150_000):
            try:
                model, plan = streamed(tmp_path, memory)
            except AssertionError:
                assert memory > least
                continue
            with Passed(model, batches) as passed:
                for i, (tokens, hidden) in enumerate(zip(batches, expected, strict=True)):
                    assert torch.equal(passed.hidden(i), hidden), (name, plan)
                    assert torch.equal(model.head(passed.hidden(i)), resident.head(hidden))
                    assert torch.equal(model.hidden(tokens), hidden)  # of one batch, read as it goes
            assert plan.peak <= memory
            apart.append(bool(plan.apart))
    assert apart[0] == (name in EXPERTS)


def of_layers(path: Path, layers: int = 5) -> Path:
    """A model that is larger than its largest part."""
    return runnable.write(runnable.checkpoint(layers=layers, dim=64, ffn=256), path)


def without_clock(found: Any) -> dict[str, Any]:
    return {k: v for k, v in found.as_dict().items() if k not in ("seconds", "tokens_per_second", "path")}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results inside a layer are smaller than weights."""
    monkeypatch.setattr(streaming, "BATCH", 32)
    monkeypatch.setattr(streaming, "_TILE", 0)


@pytest.mark.usefixtures("small_batches")
def test_every_measure_is_the_same(tmp_path: Path) -> None:
    model = of_layers(tmp_path / "m.gguf")
    other = tmp_path / "o.gguf"
    llmconv.quantize(model, other, "Q8_0")
    text = llmconv.Text(runnable.text(200))
    how: dict[str, Any] = {"context": 24, "device": "cpu"}
    memory = model.stat().st_size * 2 // 3
    streamed(model, memory)
    measures = {
        "perplexity": lambda **more: llmconv.perplexity(model, text, **how, **more),
        "compare": lambda **more: llmconv.compare(model, other, text, **how, **more),
        "imatrix": lambda **more: llmconv.imatrix(model, text, process_output=True, **how, **more),
    }
    for name, measure in measures.items():
        steps: list[Any] = []
        found = without_clock(measure(memory=memory, progress=steps.append))
        assert found == without_clock(measure()), name
        assert "layers" in {step.what for step in steps}


@pytest.mark.usefixtures("small_batches")
def test_an_importance_matrix_is_kept_on_the_way(tmp_path: Path) -> None:
    model = of_layers(tmp_path / "m.gguf")
    text, how = llmconv.Text(runnable.text(400)), {"context": 24, "device": "cpu"}
    llmconv.imatrix(model, text, tmp_path / "a.gguf", **how)
    memory = model.stat().st_size * 2 // 3
    llmconv.imatrix(model, text, tmp_path / "b.gguf", memory=memory, output_frequency=3, **how)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.usefixtures("small_batches")
def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    def spoil(values: Any) -> None:
        values[1, 2] = float("inf")

    broken = runnable.changed(runnable.checkpoint(layers=4, dim=64, ffn=256), "blk.2.ffn_up.weight", spoil)
    path = runnable.write(broken, tmp_path / "m.gguf")
    with pytest.raises(llmconv.LlmconvError, match=r"blk\.2\.ffn_up\.weight"):
        llmconv.perplexity(
            path, llmconv.Text(runnable.text(100)), context=24, device="cpu", memory=path.stat().st_size * 2 // 3
        )


@pytest.mark.usefixtures("small_batches")
def test_what_needs_all_weights_refuses_the_rest(tmp_path: Path) -> None:
    model, _ = streamed(of_layers(tmp_path / "m.gguf"), (tmp_path / "m.gguf").stat().st_size * 2 // 3)
    with pytest.raises(llmconv.UsageError, match="left in the file"):
        llmconv.generate(model, "w1", max_tokens=1)
    with pytest.raises(llmconv.UsageError, match="expected bytes or a size"):
        llmconv.load(tmp_path / "m.gguf", "cpu", memory=-1)
    with pytest.raises(llmconv.UsageError, match="is no size"):
        llmconv.load(tmp_path / "m.gguf", "cpu", memory="much")


def test_states_go_to_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.streamed.states import States

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = States(200, torch.device("cpu"))
    values = [torch.arange(n, dtype=torch.float32) for n in (30, 40, 50)]
    for turn in range(3):
        for i, value in enumerate(values):
            states.put(i, value + turn)
    assert all(torch.equal(states.get(i), value + 2) for i, value in enumerate(values))
    assert not list(tmp_path.iterdir())
    states.close()


@pytest.mark.slow
def test_memory_stays_within_the_limit(tmp_path: Path) -> None:
    """A model of 200 MB in a child process, with a limit of 80 MB: what the kernel saw at most, against a tiny one."""
    large = runnable.write(runnable.checkpoint(layers=22, dim=384, heads=6, ffn=1536), tmp_path / "large.gguf")
    tiny = runnable.write(runnable.checkpoint(layers=2, dim=64), tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text(runnable.text(1000))
    assert large.stat().st_size > 190e6
    program = (
        "import sys, re, llmconv\n"
        "found = llmconv.perplexity(sys.argv[1], sys.argv[2], context=128, device='cpu', memory=int(sys.argv[3]))\n"
        "print(found.perplexity, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )

    def run(model: Path, memory: int) -> tuple[str, float]:
        made = subprocess.run(
            [sys.executable, "-c", program, str(model), str(tmp_path / "text.txt"), str(memory)],
            capture_output=True,
            text=True,
            check=True,
        )
        value, kilobytes = made.stdout.split()
        return value, int(kilobytes) * 1024

    (_, base), (expected, whole), (found, peak) = run(tiny, 1 << 30), run(large, 1 << 30), run(large, 80_000_000)
    assert found == expected
    assert whole - base > 190e6
    assert peak - base < 80e6 + 10e6  # and what torch allocates for itself


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    "what",
    ["compare", *(pytest.param(n, marks=pytest.mark.slow) for n in ("perplexity", "sweep", "imatrix", "embed"))]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("calibrate", "rounding")],
)
def test_the_advice_works(what: str, tmp_path: Path) -> None:
    """Whoever is told that memory is too small, and gives what is said, is not told so again."""
    model, text = of_layers(tmp_path / "m.gguf"), llmconv.Text(runnable.text(100))
    (tmp_path / "t.txt").write_text(runnable.text(100))
    llmconv.quantize(model, tmp_path / "o.gguf", "Q8_0")
    how: dict[str, Any] = {"context": 24, "device": "cpu"}

    def run(memory: int) -> Any:
        match what:
            case "compare":
                return llmconv.compare(model, tmp_path / "o.gguf", text, memory=memory, **how)
            case "sweep":
                out = tmp_path / "sweep"
                return llmconv.sweep(model, tmp_path / "t.txt", ["Q8_0"], out, plots=False, memory=memory, **how)
            case "embed":
                return llmconv.embed(model, ["w1 w2"], device="cpu", memory=memory)
            case "rounding":
                known = llmconv.OnText(text, effort="fast", memory=memory, **how)
                return llmconv.quantize(model, tmp_path / "q.gguf", "Q4_0", calibration=known, force=True, jobs=1)
        return getattr(llmconv, what)(model, text, memory=memory, **how)

    memory, refused = 1000, 0
    while refused < 3:
        try:
            run(memory)
        except llmconv.UsageError as error:
            assert f"a memory of {memory:,} bytes is too small" in str(error)
            memory, refused = asked(error), refused + 1
        else:
            break
    assert refused == (2 if what in ("calibrate", "rounding") else 1)  # what is made of a layer is known later


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("effort", [pytest.param("fast", marks=pytest.mark.slow), "standard"])
def test_a_calibration_is_the_same(effort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.calibrate import layered

    monkeypatch.setattr(layered, "_beside", lambda model, jobs: 0)  # a tiny layer's sums are larger than it
    model, text = of_layers(tmp_path / "m.gguf", 4), llmconv.Text(runnable.text(60))
    how: dict[str, Any] = {"context": 12, "device": "cpu", "effort": effort}
    memory = model.stat().st_size * 2 // 3
    streamed(model, memory)
    for name, more in (("all", {}), ("left", {"memory": memory})):
        known = llmconv.calibrate(model, text, **how, **more)
        known.save(tmp_path / f"{name}.calibration")
        assert known.loaded(llmconv.open(model)).wants is None or name == "left"
        llmconv.quantize(model, tmp_path / f"{name}.gguf", "Q4_0", calibration=known, jobs=1)
    for suffix in ("calibration", "gguf"):
        a, b = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("all", "left"))
        assert a == b, suffix
    if effort == "standard":
        return
    kept = llmconv.Calibration.open(tmp_path / "left.calibration")
    kept.memory = 900_000  # of which each of the two models that are compared has half
    again = llmconv.Verified(kept, text, context=12, chunks=2)
    done = llmconv.quantize(model, tmp_path / "again.gguf", "Q4_0", calibration=again)
    assert any("KL divergence" in note for note in done.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "gpt-oss"])
def test_experts_are_calibrated_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.progress import Meter
    from llmconv.runtime.calibrate import layered
    from llmconv.runtime.calibrate.gradients import gather
    from llmconv.runtime.measure.chunks import Running

    pytest.importorskip("transformers")
    tiny_models.build(name, tmp_path)
    monkeypatch.setattr(streaming, "BATCH", 32)
    monkeypatch.setattr(layered, "_beside", lambda model, jobs: 0)
    batches, found = batches_of(96), []
    whole = sum(t.nbytes for t in llmconv.open(tmp_path).tensors.values())
    for memory in ("1T", whole * 9 // 10):
        model = Running("cpu", memory=memory).model(tmp_path)
        assert (model.wants is None) == (memory == "1T")
        if model.wants is not None:  # of two layers one has nearly all
            model.wants.plan = dataclasses.replace(model.wants.plan, memory=2 * whole)
        layered.prepare(model, batches)
        found.append(gather(model, batches, 3, Meter(None, "x", 0)))
    a, b = found
    assert set(a.rows) == set(b.rows) and set(a.tokens) == set(b.tokens)
    for name in a.rows:
        for one, other in zip(a.of_rows(name) or [], b.of_rows(name) or [], strict=True):
            assert torch.equal(one, other), name
    assert all(torch.equal(a.tokens[name], b.tokens[name]) for name in a.tokens)
    assert torch.equal(a.embedding, b.embedding)


@pytest.mark.slow
def test_what_is_calibrated_in_memory_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmconv.runtime.calibrate import layered
    from llmconv.runtime.measure.chunks import Running

    pytest.importorskip("transformers")
    tiny_models.build("gemma3n", tmp_path)
    monkeypatch.setattr(streaming, "BATCH", 32)
    model = Running("cpu", memory=600_000).model(tmp_path)
    with pytest.raises(llmconv.UsageError, match="hand each other more than states, so that it is calibrated"):
        layered.prepare(model, batches_of(96))


@pytest.mark.gpu
@pytest.mark.usefixtures("small_batches")
def test_on_a_gpu_a_layer_at_a_time(tmp_path: Path) -> None:
    """Weights that come through pinned memory while the device computes: the figures of a model that lies on it."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    from llmconv.runtime.streamed.weights import Weights

    model, text = of_layers(tmp_path / "m.gguf", 8), llmconv.Text(runnable.text(400))
    memory = model.stat().st_size * 2 // 3
    left = llmconv.load(model, "cuda", memory=memory)
    assert isinstance(left.wants, Weights) and left.wants._lane is not None
    there = llmconv.load(model, "cuda", memory="1T")
    assert there.wants is None
    expected = without_clock(llmconv.perplexity(there, text, context=32))
    for _ in range(2):  # the second in the memory that the first has used
        assert without_clock(llmconv.perplexity(left, text, context=32)) == expected


def test_what_is_staged_on_its_way_to_a_gpu_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: streams and events that do nothing, slabs of 64 bytes."""
    from contextlib import nullcontext
    from unittest.mock import MagicMock

    from llmconv.runtime.streamed import lane

    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(lane, "_SLAB", 64)
    monkeypatch.setattr(lane, "_pinned", lambda: torch.empty(64, dtype=torch.uint8))
    made = lane.Lane(torch.device("cpu"))
    with made.copying(torch.cuda.Event()):
        for values in (torch.arange(100.0), torch.arange(33).to(torch.int16), torch.arange(40.0).view(5, 8)):
            for to in (torch.empty_like(values), torch.empty(values.shape, dtype=torch.float64)):
                made.copied(to, values)
                assert torch.equal(to, values.to(to.dtype))
