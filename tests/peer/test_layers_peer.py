"""What TensorFlow.js and Keras themselves save runs as they compute it.

Needs node and LLMCONV_TFJS (see `test_tfjs_peer`), or `pip install keras` (its torch backend).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv

pytestmark = pytest.mark.peer

torch = pytest.importorskip("torch", reason="running models needs torch")

IDS = [1, 3, 2, 5, 4, 0]
MAKE = """
const tf = require('@tensorflow/tfjs'), fs = require('fs'), path = require('path'), l = tf.layers, V = 9;
const kinds = {
  onehot: () => tf.sequential({layers: [l.lstm({units: 6, inputShape: [6, V]}),
                                        l.dense({units: V, activation: 'softmax'})]}),
  two: () => tf.sequential({layers: [l.embedding({inputDim: V, outputDim: 5, inputShape: [null]}),
    l.lstm({units: 6, returnSequences: true}), l.dropout({rate: 0.2}), l.lstm({units: 4, returnSequences: true}),
    l.timeDistributed({layer: l.dense({units: V})}), l.activation({activation: 'softmax'})]}),
  gru: () => tf.sequential({layers: [l.embedding({inputDim: V, outputDim: 5, inputShape: [null]}),
    l.gru({units: 6, returnSequences: true, recurrentActivation: 'sigmoid'}),
    l.dense({units: V, activation: 'softmax'})]}),
  graph: () => {
    const x = tf.input({shape: [null]}), e = l.embedding({inputDim: V, outputDim: 5}).apply(x);
    const h = l.simpleRNN({units: 6, returnSequences: true}).apply(e);
    return tf.model({inputs: x, outputs: l.dense({units: V, activation: 'softmax'}).apply(h)});
  },
};
(async () => {
  await tf.setBackend('cpu');
  const [kind, folder] = process.argv.slice(2), model = kinds[kind](), ids = %s;
  model.setWeights(model.getWeights().map((w, i) => tf.randomNormal(w.shape, 0, 0.5, 'float32', 7 + i)));
  await model.save({save: async a => {
    const manifest = [{paths: ['weights.bin'], weights: a.weightSpecs}];
    const saved = {format: a.format, modelTopology: a.modelTopology, weightsManifest: manifest};
    fs.mkdirSync(folder);
    fs.writeFileSync(path.join(folder, 'model.json'), JSON.stringify(saved));
    fs.writeFileSync(path.join(folder, 'weights.bin'), Buffer.from(a.weightData));
    return {};
  }});
  const x = kind === 'onehot' ? tf.oneHot(tf.tensor2d([ids], [1, ids.length], 'int32'), V) : tf.tensor2d([ids]);
  console.log(JSON.stringify(Array.from(await model.predict(x.toFloat()).data())));
})().catch(e => { console.error(e); process.exit(1); });
"""


def chances(path: Path) -> Any:
    with torch.no_grad():
        return torch.softmax(llmconv.load(path, "cpu", "f64")(torch.tensor([IDS]))[0], -1).numpy()


@pytest.mark.parametrize("kind", ["onehot", "two", "gru", "graph"])
def test_tensorflow_js(tmp_path: Path, kind: str) -> None:
    modules = Path(os.environ.get("LLMCONV_TFJS", "nowhere")) / "node_modules"
    if shutil.which("node") is None or not (modules / "@tensorflow" / "tfjs").is_dir():
        pytest.skip("they need node and @tensorflow/tfjs: npm install it and name that folder in LLMCONV_TFJS")
    (tmp_path / "make.cjs").write_text(MAKE % json.dumps(IDS))
    done = subprocess.run(
        ["node", str(tmp_path / "make.cjs"), kind, str(tmp_path / "m")],
        capture_output=True, text=True, env={**os.environ, "NODE_PATH": str(modules)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = np.array(json.loads(done.stdout.splitlines()[-1])).reshape(-1, 9)
    assert np.abs(chances(tmp_path / "m")[-len(wanted) :] - wanted).max() < 1e-6
    llmconv.convert_file(tmp_path / "m", tmp_path / "m.gguf")
    assert np.abs(chances(tmp_path / "m.gguf")[-len(wanted) :] - wanted).max() < 1e-6
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.tfjs")
    there, back = ((f / "model.json").read_text() for f in (tmp_path / "m", tmp_path / "back.tfjs"))
    assert json.loads(there)["modelTopology"] == json.loads(back)["modelTopology"]


@pytest.fixture(scope="session")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="compares with the optional keras")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru, reset before", "rnn of one-hot inputs", "hard", "graph"])
def test_keras(tmp_path: Path, keras: Any, kind: str, ending: str) -> None:
    at, vocab = keras.layers, 9
    head = at.Dense(vocab, activation="softmax")
    start = [at.Input((None,)), at.Embedding(vocab, 5)]
    hard = {"recurrent_activation": "hard_sigmoid"}
    made = {
        "lstm": lambda: [*start, at.LSTM(6, return_sequences=True), at.Dropout(0.1), at.LSTM(4, return_sequences=True)],
        "gru": lambda: [*start, at.GRU(6, return_sequences=True)],
        "gru, reset before": lambda: [*start, at.GRU(6, return_sequences=True, reset_after=False)],
        "rnn of one-hot inputs": lambda: [at.Input((6, vocab)), at.SimpleRNN(6)],
        "hard": lambda: [*start, at.LSTM(6, return_sequences=True, **hard)],
    }
    if kind == "graph":
        inputs = at.Input((None,))
        x = at.Embedding(vocab, 5, name="words")(inputs)
        model = keras.Model(inputs, head(at.LSTM(6, return_sequences=True, name="memory")(x)))
    else:
        model = keras.Sequential([*made[kind](), head])
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(rng.normal(0, 0.5, weight.shape))
    model.save(tmp_path / f"m{ending}")
    given = np.eye(vocab)[[IDS]] if "one-hot" in kind else np.array([IDS])
    wanted = np.asarray(model.predict(given, verbose=0)).reshape(-1, vocab)
    assert np.abs(chances(tmp_path / f"m{ending}")[-len(wanted) :] - wanted).max() < 1e-6
    llmconv.convert_file(tmp_path / f"m{ending}", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / f"back{ending}")
    again = keras.models.load_model(tmp_path / f"back{ending}")
    assert np.array_equal(np.asarray(again.predict(given, verbose=0)).reshape(-1, vocab), wanted)


def _attending(keras: Any, causal: bool = True) -> Any:
    """Of Keras's own layers, norms before the sublayers, an MLP as a model among the layers."""
    at = keras.layers
    inputs = at.Input((None,), dtype="int32")
    x = at.Embedding(9, 8)(inputs)
    for _ in range(2):
        h = at.LayerNormalization()(x)
        x = at.Add()([x, at.MultiHeadAttention(2, 5)(h, h, use_causal_mask=causal)])
        x = x + keras.Sequential([at.Dense(16, activation="gelu"), at.Dense(8)])(at.LayerNormalization()(x))
    return keras.Model(inputs, at.Dense(9, activation="softmax")(at.LayerNormalization()(x)))


def _grouped(keras: Any) -> Any:
    at = keras.layers
    inputs = at.Input((None,), dtype="int32")
    x = at.Embedding(9, 8)(inputs)
    x = at.LayerNormalization()(x + at.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True))
    x = at.LayerNormalization()(x + at.Dense(8)(at.ReLU()(at.Dense(12)(x))))
    return keras.Model(inputs, at.Dense(9, activation="softmax")(x))


def _by_hand(keras: Any) -> Any:
    at = keras.layers
    inputs = at.Input((None,), dtype="int32")
    x = at.Embedding(9, 8)(inputs) * 3.0
    q, k, v = at.Dense(6)(x), at.Dense(6)(x), at.Dense(6)(x)
    x = x + at.Dense(8)(at.Attention()([q, v, k], use_causal_mask=True))
    x = x + at.Dense(8)(at.Dense(12, activation="silu")(x))
    return keras.Model(inputs, at.Dense(9, activation="softmax")(x))


def _hub(keras: Any) -> Any:
    hub = pytest.importorskip("keras_hub").layers
    inputs = keras.layers.Input((None,), dtype="int32")
    x = hub.TokenAndPositionEmbedding(9, 12, 8)(inputs)
    for _ in range(2):
        x = hub.TransformerDecoder(16, 2)(x)
    return keras.Model(inputs, keras.layers.Dense(9, activation="softmax")(x))


def _tied(keras: Any) -> Any:
    hub = pytest.importorskip("keras_hub").layers
    inputs, words = keras.layers.Input((None,), dtype="int32"), hub.ReversibleEmbedding(9, 8)
    x = words(inputs)
    x = hub.TransformerDecoder(16, 2, normalize_first=True, activation="gelu")(x + hub.SinePositionEncoding()(x))
    return keras.Model(inputs, keras.layers.Softmax()(words(x, reverse=True)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("make", [_attending, _grouped, _by_hand, _hub, _tied])
def test_transformers_of_keras(tmp_path: Path, keras: Any, make: Any, ending: str) -> None:
    model, rng = make(keras), np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    model.save(tmp_path / f"m{ending}")
    wanted = np.asarray(model.predict(np.array([IDS]), verbose=0))[0]
    assert np.abs(chances(tmp_path / f"m{ending}") - wanted).max() < 1e-6
    llmconv.convert_file(tmp_path / f"m{ending}", tmp_path / "m.gguf")
    assert np.abs(chances(tmp_path / "m.gguf") - wanted).max() < 1e-6


LOAD = """
const tf = require('@tensorflow/tfjs'), fs = require('fs'), path = require('path'), folder = process.argv[2];
(async () => {
  await tf.setBackend('cpu');
  const model = JSON.parse(fs.readFileSync(path.join(folder, 'model.json')));
  const specs = model.weightsManifest.flatMap(g => g.weights), files = model.weightsManifest.flatMap(g => g.paths);
  const all = Buffer.concat(files.map(p => fs.readFileSync(path.join(folder, p))));
  const weightData = all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
  const net = await tf.loadLayersModel({load: async () => ({...model, weightSpecs: specs, weightData})});
  console.log(JSON.stringify(Array.from(await net.predict(tf.tensor2d([%s])).data())));
})().catch(e => { console.error(e); process.exit(1); });
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["sequence", "graph"])
def test_what_keras_saved_is_a_layers_model_for_the_page(tmp_path: Path, keras: Any, kind: str, ending: str) -> None:
    modules = Path(os.environ.get("LLMCONV_TFJS", "nowhere")) / "node_modules"
    if shutil.which("node") is None or not (modules / "@tensorflow" / "tfjs").is_dir():
        pytest.skip("they need node and @tensorflow/tfjs: npm install it and name that folder in LLMCONV_TFJS")
    at, last = keras.layers, {"units": 9, "activation": "softmax"}
    if kind == "sequence":
        cells = [at.LSTM(6, return_sequences=True), at.GRU(4, return_sequences=True, reset_after=False)]
        model = keras.Sequential([at.Input((None,)), at.Embedding(9, 5), *cells, at.Dense(**last)])
    else:
        inputs = at.Input((None,))
        x = at.Embedding(9, 8)(inputs)
        q, k, v = at.Dense(8)(x), at.Dense(8)(x), at.Dense(8)(x)
        mixed = at.Dot(axes=(2, 1))([at.Softmax()(at.Dot(axes=(2, 2))([q, k])), v])
        x = at.LayerNormalization()(at.Add()([x, mixed]))
        x = at.LayerNormalization()(at.Add()([x, at.Dense(8)(at.Dense(12, activation="relu")(x))]))
        model = keras.Model(inputs, at.Dense(**last)(x))
    rng = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    model.save(tmp_path / f"m{ending}")
    wanted = np.asarray(model.predict(np.array([IDS]), verbose=0)).ravel()
    llmconv.convert_file(tmp_path / f"m{ending}", tmp_path / "m.gguf")
    (tmp_path / "load.cjs").write_text(LOAD % json.dumps(IDS))
    for k, source in enumerate((tmp_path / f"m{ending}", tmp_path / "m.gguf")):
        llmconv.convert_file(source, tmp_path / f"{k}.tfjs")
        done = subprocess.run(
            ["node", str(tmp_path / "load.cjs"), str(tmp_path / f"{k}.tfjs")],
            capture_output=True, text=True, env={**os.environ, "NODE_PATH": str(modules)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert np.abs(np.array(json.loads(done.stdout.splitlines()[-1])) - wanted).max() < 1e-6
