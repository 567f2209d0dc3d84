"""What npm's @tensorflow/tfjs makes of the folders that we write: under Node, and in a browser without a window.

LLMCONV_TFJS names a folder in which `npm install @tensorflow/tfjs` was run; the browser is Chromium or Chrome.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

pytestmark = pytest.mark.peer

Read = Callable[..., Any]

FOUND = """
async function found(load, weights, node, layers) {
  const out = {};
  for (const [name, t] of Object.entries(weights)) {
    out[name] = [t.shape, t.dtype, Array.from(await t.data()).slice(0, 6)];
  }
  const model = layers ? await tf.loadLayersModel(load) : await tf.loadGraphModel(load);
  const values = node ? Array.from(await model.execute({}, node).data()) : null;
  return [out, values, layers ? model.getWeights().length : Object.keys(model.weights).length];
}
"""
NODE = """
const tf = require('@tensorflow/tfjs'), fs = require('fs'), path = require('path');
(async () => {
  const [folder, node] = process.argv.slice(2), model = JSON.parse(fs.readFileSync(path.join(folder, 'model.json')));
  const specs = model.weightsManifest.flatMap(g => g.weights), files = model.weightsManifest.flatMap(g => g.paths);
  const all = Buffer.concat(files.map(p => fs.readFileSync(path.join(folder, p))));
  const weightData = all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
  const load = {load: async () => ({...model, weightSpecs: specs, weightData})};
  const layers = model.format === 'layers-model';
  console.log(JSON.stringify(await found(load, tf.io.decodeWeights(weightData, specs), node, layers)));
})().catch(e => { console.error(e); process.exit(1); });
"""
PAGE = """<!doctype html><script src="/tf.js"></script><script>%s
(async () => {
  const node = new URLSearchParams(location.search).get('node');
  const model = await (await fetch('/model/model.json')).json();
  await tf.setBackend('cpu');
  const weights = await tf.io.loadWeights(model.weightsManifest, '/model/');
  return found('/model/model.json', weights, node, model.format === 'layers-model');
})().catch(e => String(e.stack || e)).then(x => fetch('/answer', {method: 'POST', body: JSON.stringify(x)}));
</script>"""
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder of npm's packages."""
    home = Path(os.environ.get("LLMCONV_TFJS", "nowhere")) / "node_modules"
    if not (home / "@tensorflow" / "tfjs").is_dir():
        pytest.skip("they need @tensorflow/tfjs: npm install it and name that folder in LLMCONV_TFJS")
    return home


@pytest.fixture(scope="session")
def node(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    if shutil.which("node") is None:
        pytest.skip("they need node")
    script = tmp_path_factory.mktemp("script") / "read.cjs"
    script.write_text(FOUND + NODE)

    def read(folder: Path, name: str = "") -> Any:
        done = subprocess.run(
            ["node", str(script), str(folder), *([name] if name else [])],
            capture_output=True, text=True, env={**os.environ, "NODE_PATH": str(modules)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return read


class Server(http.server.BaseHTTPRequestHandler):
    """The page, TensorFlow.js and a model's folder; what the page answers goes into a queue."""

    def __init__(self, files: dict[str, Path | bytes], answers: queue.Queue[Any], *args: Any):
        self.files, self.answers = files, answers
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self.files.get(path) or (Path(str(self.files["/model"])) / path.removeprefix("/model/"))
        raw = found if isinstance(found, bytes) else found.read_bytes() if found.is_file() else None
        self.send_response(200 if raw is not None else 404)
        self.send_header("Content-Type", "text/html" if path == "/" else "application/octet-stream")
        self.end_headers()
        self.wfile.write(raw or b"")

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def browser(modules: Path, tmp_path: Path) -> Iterator[Read]:
    program = next((p for n in ("chromium", "google-chrome", "chrome") if (p := shutil.which(n)) is not None), None)
    if program is None:
        pytest.skip("they need Chromium or Chrome")
    files: dict[str, Path | bytes] = {"/": (PAGE % FOUND).encode()}
    files["/tf.js"] = modules / "@tensorflow" / "tfjs" / "dist" / "tf.min.js"
    answers: queue.Queue[Any] = queue.Queue()
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Server, files, answers)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def read(folder: Path, name: str = "") -> Any:
            files["/model"] = folder
            page = f"http://localhost:{server.server_port}/?node={name}"
            errors = (tmp_path / "chromium.log").open("wb")
            command = [program, *OPTIONS, f"--user-data-dir={tmp_path / 'user'}", page]
            started = subprocess.Popen(command, stdout=errors, stderr=errors)
            try:
                return answers.get(timeout=120)
            except queue.Empty:
                pytest.fail((tmp_path / "chromium.log").read_text(errors="replace")[-2000:])
            finally:
                started.terminate()
                started.wait()
                errors.close()

        yield read
        server.shutdown()
        thread.join()


@pytest.fixture(params=["node", "browser"])
def reads(request: pytest.FixtureRequest) -> Read:
    """(folder, name of a node to compute) -> (weights by name, the node's values, how many weights the model has)."""
    found: Read = request.getfixturevalue(request.param)
    return found


def test_it_reads_what_we_write(tmp_path: Path, reads: Read) -> None:
    arrays: dict[str, Any] = {
        "a.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
        "a/half": np.array([1.5, -2], np.float16),
        "ids:0": np.array([1, -7], np.int32),
        "flag": np.array([True, False]),
    }
    made = Checkpoint({n: Tensor.from_array(n, a) for n, a in arrays.items()}, dialect="plain")
    llmconv.save(made, tmp_path / "m.tfjs")
    found, values, count = reads(tmp_path / "m.tfjs", "a/half")
    assert count == 4 and values == [1.5, -2]
    kinds = {"a.weight": "float32", "a/half": "float32", "ids:0": "int32", "flag": "bool"}
    for name, array in arrays.items():
        assert found[name] == [list(array.shape), kinds[name], array.reshape(-1)[:6].astype(float).tolist()]


def test_it_reads_a_language_model(tmp_path: Path, reads: Read, shared: Path) -> None:
    llmconv.convert_file(shared / "stories260K" / "stories260K-f32.gguf", tmp_path / "s.tfjs")
    opened = llmconv.open(tmp_path / "s.tfjs")
    found, values, count = reads(tmp_path / "s.tfjs", "model.norm.weight")
    assert count == len(opened.tensors) and values == opened.tensors["model.norm.weight"].numpy().tolist()
    for name, tensor in opened.tensors.items():
        assert found[name] == [list(tensor.shape), "float32", tensor.numpy().reshape(-1)[:6].astype(float).tolist()]


def test_it_reads_its_own_model_back_from_a_gguf(tmp_path: Path, reads: Read, shared: Path) -> None:
    llmconv.convert_file(shared / "hobby" / "tfjs-layers_model", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    assert reads(tmp_path / "back.tfjs") == reads(shared / "hobby" / "tfjs-layers_model")
