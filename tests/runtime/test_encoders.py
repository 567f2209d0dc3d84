"""Encoders that transformers lacks, and those of T5: vectors are what their own code's arithmetic, written out here,
gives, of a folder, of its GGUF, and of one that another program made."""

# ruff: noqa: E501 (tables)

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
from commands import run
from tiny_encoders import TEXTS, unigram, wordpiece

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.tables import own_keys
from llmconv.convert.writing import tasks
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
F = torch.nn.functional
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CLOSE = 2e-5


class Weights:
    """A folder's tensors by name, as torch has them."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = {name: torch.from_numpy(np.array(t.numpy())) for name, t in llmconv.open(folder).tensors.items()}

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def linear(self, x: Any, name: str, bias: bool = True) -> Any:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"] if bias else None)

    def norm(self, x: Any, name: str, eps: float) -> Any:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)


def heads(x: Any, n: int) -> Any:
    return x.unflatten(-1, (n, -1)).transpose(0, 1)  # (n, T, D)


def attend(q: Any, k: Any, v: Any, bias: Any = 0.0) -> Any:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def angles(count: int, dim: int, base: float) -> Any:
    return torch.arange(count).float()[:, None] / base ** (torch.arange(0, dim, 2) / dim)


def by_pairs(x: Any, base: float) -> Any:
    turn = torch.polar(torch.ones(()), angles(x.shape[1], x.shape[2], base))
    return torch.view_as_real(torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2))) * turn).flatten(-2)


def by_halves(x: Any, base: float) -> Any:
    at = angles(x.shape[1], x.shape[2], base)
    a, b = x.chunk(2, -1)
    return torch.cat((a * at.cos() - b * at.sin(), a * at.sin() + b * at.cos()), -1)


def rms(x: Any, weight: Any, eps: float) -> Any:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def neobert(w: Weights, ids: list[int]) -> Any:
    x = w["model.encoder.weight"][ids]
    for i in range(2):
        at = f"model.transformer_encoder.{i}."
        qkv = (rms(x, w[at + "attention_norm.weight"], 1e-5) @ w[at + "qkv.weight"].T).view(len(ids), 4, 48)
        q, k, v = (part.transpose(0, 1) for part in qkv.chunk(3, -1))
        x = x + attend(by_pairs(q, 1e4), by_pairs(k, 1e4), v) @ w[at + "wo.weight"].T
        gate, up = (rms(x, w[at + "ffn_norm.weight"], 1e-5) @ w[at + "ffn.w12.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[at + "ffn.w3.weight"].T
    return rms(x, w["model.layer_norm.weight"], 1e-5)


def jina2(w: Weights, ids: list[int]) -> Any:
    later = "encoder.layer.0.layer_norm_1.weight" in w.tensors
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = w.norm(x, "embeddings.LayerNorm", 1e-12)
    place = torch.arange(len(ids))
    slopes = 2.0 ** (-2 * torch.arange(1, 5))  # of four heads
    bias = -slopes[:, None, None] * (place[:, None] - place).abs()
    for i in range(2):
        at = f"encoder.layer.{i}."
        q, k, v = (w.linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value"))
        if later:
            q, k = (w.norm(y, f"{at}attention.self.layer_norm_{n}", 1e-12) for y, n in ((q, "q"), (k, "k")))
        out = w.linear(attend(heads(q, 4), heads(k, 4), heads(v, 4), bias), at + "attention.output.dense")
        out = w.norm(out + x, at + "attention.output.LayerNorm", 1e-12)
        if later:
            x = w.norm(x + out, at + "layer_norm_1", 1e-12)
            up, gate = w.linear(x, at + "mlp.up_gated_layer", bias=False).chunk(2, -1)
            x = w.norm(x + w.linear(up * F.gelu(gate), at + "mlp.down_layer"), at + "layer_norm_2", 1e-12)
        else:
            gate, up = w.linear(out, at + "mlp.gated_layers", bias=False).chunk(2, -1)
            x = w.norm(out + w.linear(F.gelu(gate) * up, at + "mlp.wo"), at + "mlp.layernorm", 1e-12)
    return x


def jina3(w: Weights, ids: list[int], task: int | None = None) -> Any:
    def weight(name: str, embeds: bool = False) -> Any:
        own, start = w[f"roberta.{name}.parametrizations.weight.original"], f"roberta.{name}.parametrizations.weight.0."
        if task is None or f"{start}lora_A" not in w.tensors:
            return own
        a, b = w[f"{start}lora_A"][task], w[f"{start}lora_B"][task]
        return own + (a @ b if embeds else b @ a) * w.config["lora_alpha"] / w.config["lora_rank"]

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, weight(name), w[f"roberta.{name}.bias"])

    x = weight("embeddings.word_embeddings", True)[ids] + weight("embeddings.token_type_embeddings", True)[0]
    x = w.norm(x, "roberta.emb_ln", 1e-5)
    for i in range(2):
        at = f"encoder.layers.{i}."
        q, k, v = (heads(y, 4) for y in linear(x, at + "mixer.Wqkv").chunk(3, -1))
        out = attend(by_halves(q, 2e4), by_halves(k, 2e4), v)
        x = w.norm(x + linear(out, at + "mixer.out_proj"), f"roberta.{at}norm1", 1e-5)
        x = w.norm(x + linear(F.gelu(linear(x, at + "mlp.fc1")), at + "mlp.fc2"), f"roberta.{at}norm2", 1e-5)
    return x


def nomic_moe(w: Weights, ids: list[int]) -> Any:
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = w.norm(x, "emb_ln", 1e-5)
    for i in range(2):
        at = f"encoder.layers.{i}."
        q, k, v = (heads(y, 4) for y in w.linear(x, at + "attn.Wqkv").chunk(3, -1))
        out = w.linear(attend(by_halves(q, 1e4), by_halves(k, 1e4), v), at + "attn.out_proj")
        x = w.norm(x + out, at + "norm1", 1e-5)
        if i % 2 == 0:
            made = w.linear(F.gelu(w.linear(x, at + "mlp.fc1")), at + "mlp.fc2")
        else:
            scores = (x @ w[at + "mlp.router.layer.weight"].T).softmax(-1)
            best = scores.topk(2, -1)
            w1, w2 = (w[f"{at}mlp.experts.mlp.w{n}"].view(4, 96, 64) for n in (1, 2))
            made = torch.stack([
                sum(p * (F.gelu(token @ w1[e].T) @ w2[e]) for p, e in zip(*row, strict=True))
                for token, row in zip(x, zip(best.values, best.indices.tolist(), strict=True), strict=True)
            ]) + w[at + "mlp.experts.bias"]  # fmt: skip
        x = w.norm(x + made, at + "norm2", 1e-5)
    return x


MODELS = {
    "neobert": (neobert, wordpiece, "cls"),
    "jina2": (jina2, wordpiece, "mean"),
    "jina2-code": (jina2, unigram, "mean"),
    "jina3": (jina3, unigram, "mean"),
    "nomic-moe": (nomic_moe, unigram, "mean"),
}


def pooled(hidden: Any, pooling: str) -> Any:
    vector = hidden[0] if pooling == "cls" else hidden.mean(0)
    return (vector / vector.norm()).numpy()


def foreign(path: Path, to: Path) -> None:
    """A GGUF without what only this program writes."""
    made = llmconv.open(path)
    keys = {k: v for k, v in made.metadata.items() if not k.startswith(own_keys.OWN)}
    gguf_file.save(dataclasses.replace(made, metadata=keys), to)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_of_those_that_transformers_lacks(tmp_path: Path, name: str) -> None:
    forward, tokenizer, pooling = MODELS[name]
    splits = tiny_encoders.folder_by_hand(tmp_path / "hf", name, tokenizer)
    weights = Weights(tmp_path / "hf")
    expected = np.stack([pooled(forward(weights, splits.encode(text).ids), pooling) for text in TEXTS])
    assert np.abs(llmconv.embed(tmp_path / "hf", TEXTS, device="cpu") - expected).max() < CLOSE
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    assert np.abs(llmconv.embed(tmp_path / "m.gguf", TEXTS, device="cpu") - expected).max() < CLOSE
    if name != "nomic-moe":  # whose experts' bias no other program writes
        foreign(tmp_path / "m.gguf", tmp_path / "theirs.gguf")
        assert np.abs(llmconv.embed(tmp_path / "theirs.gguf", TEXTS, device="cpu") - expected).max() < CLOSE
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again")
    files = {p.relative_to(tmp_path / "hf"): p.read_bytes() for p in (tmp_path / "hf").rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()
    }


def test_scores_of_neobert(tmp_path: Path) -> None:
    splits = tiny_encoders.folder_by_hand(tmp_path / "hf", "neobert-classifier", wordpiece)
    weights = Weights(tmp_path / "hf")
    first = torch.stack([neobert(weights, splits.encode(text).ids)[0] for text in TEXTS])
    expected = weights.linear(torch.tanh(weights.linear(first, "dense")), "classifier").numpy()
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        found = llmconv.embed(path, TEXTS, normalize=False, device="cpu")
        assert found.shape == (4, 3) and np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["neobert", "jina2-code"])
def test_as_another_program_orders_them(tmp_path: Path, name: str) -> None:
    """llama.cpp's converter leaves matrices as the folder has them: they are told by what the file does not say."""
    forward, tokenizer, pooling = MODELS[name]
    splits = tiny_encoders.folder_by_hand(tmp_path / "hf", name, tokenizer)
    weights = Weights(tmp_path / "hf")
    made = hf.to_gguf(llmconv.open(tmp_path / "hf"))
    keys = {
        k: v
        for k, v in made.metadata.items()
        if not k.startswith(own_keys.OWN) and not k.endswith(("qkv_groups", "forward_apart"))
    }
    theirs = dataclasses.replace(made, metadata=keys)
    for i in range(2):
        if name == "neobert":
            name_of, was = f"blk.{i}.attn_qkv.weight", weights[f"model.transformer_encoder.{i}.qkv.weight"]
        else:
            name_of, was = f"blk.{i}.ffn_up.weight", weights[f"encoder.layer.{i}.mlp.up_gated_layer.weight"]
            del theirs.tensors[f"blk.{i}.ffn_gate.weight"]
        theirs.add(Tensor.from_array(name_of, was.numpy()))
    gguf_file.save(theirs, tmp_path / "theirs.gguf")
    expected = np.stack([pooled(forward(weights, splits.encode(text).ids), pooling) for text in TEXTS])
    assert np.abs(llmconv.embed(tmp_path / "theirs.gguf", TEXTS, device="cpu") - expected).max() < CLOSE
    back = hf.from_gguf(llmconv.open(tmp_path / "theirs.gguf"))
    for tensor in llmconv.open(tmp_path / "hf").tensors.values():
        assert np.array_equal(back.tensors[tensor.name].numpy(), tensor.numpy()), tensor.name


def test_a_task_s_adapter(tmp_path: Path) -> None:
    splits = tiny_encoders.folder_by_hand(tmp_path / "hf", "jina3", unigram)
    weights = Weights(tmp_path / "hf")
    result = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    assert [path.name for path in result.paths] == [
        "m.gguf",
        "lora-retrieval.query-m.gguf",
        "lora-text-matching-m.gguf",
    ]
    assert any("lora-retrieval.query-m.gguf (and 1 more)" in note for note in result.notes)
    for number, task in enumerate(("retrieval.query", "text-matching")):
        start = "what is " if number == 0 else ""
        expected = np.stack([pooled(jina3(weights, splits.encode(start + text).ids, number), "mean") for text in TEXTS])
        for path in (tmp_path / "hf", tmp_path / "m.gguf"):
            assert np.abs(llmconv.embed(path, TEXTS, task=task, device="cpu") - expected).max() < CLOSE
    assert np.abs(expected - llmconv.embed(tmp_path / "hf", TEXTS, device="cpu")).max() > 1e-3
    result = run("embed", tmp_path / "m.gguf", TEXTS[0], "--task", "text-matching", "--device", "cpu", "--json")
    assert np.abs(np.float32(json.loads(result.out)["result"]["vectors"][0]) - expected[0]).max() < CLOSE
    planned = llmconv.quantize(tmp_path / "hf", tmp_path / "q.gguf", "Q8_0")
    assert any("('retrieval.query' (and 1 more)) are not written beside it" in note for note in planned.notes)
    assert llmconv.embed(tmp_path / "q.gguf", TEXTS[:1], task="text-matching", device="cpu").shape == (1, 64)
    with pytest.raises(llmconv.UsageError, match=r"has no task 'x'; its tasks: 'retrieval\.query', 'text-matching'"):
        llmconv.embed(tmp_path / "m.gguf", TEXTS, task="x", device="cpu")
    foreign(tmp_path / "m.gguf", tmp_path / "theirs.gguf")
    with pytest.raises(llmconv.UsageError, match="has no adapters for tasks in it"):
        llmconv.embed(tmp_path / "theirs.gguf", TEXTS, task="x", device="cpu")


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiny_encoders.folder_by_hand(tmp_path / "hf", "jina3", unigram)
    folder = llmconv.open(tmp_path / "hf")
    name = "roberta.encoder.layers.0.mlp.fc1.parametrizations.weight.0.lora_B"
    folder.add(Tensor.from_array(name, folder.tensors[name].numpy()[:1]))
    with pytest.raises(llmconv.BadFile, match="do not fit 2 tasks and a weight of"):
        list(tasks.adapters(folder))
    del folder.tensors[name]
    with pytest.raises(llmconv.BadFile, match="lacks lora_B"):
        list(tasks.adapters(folder))
    for task in ("../x", "a/b", "", "x" * 300):
        config = json.loads(folder.file("config.json") or b"") | {"lora_adaptations": [task, "b"]}
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
        with pytest.raises(llmconv.BadFile, match="which is no name for a file"):
            llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
        assert not list(tmp_path.rglob("*.gguf"))


T5S = [("T5EncoderModel", "t5", "gated-gelu"), ("T5EncoderModel", "t5", "relu"), ("UMT5EncoderModel", "umt5", "gated-gelu"),
       ("MT5ForConditionalGeneration", "mt5", "gated-gelu")]  # fmt: skip


@pytest.mark.parametrize(("cls", "kind", "mlp"), T5S)
def test_encoders_of_t5(tmp_path: Path, cls: str, kind: str, mlp: str) -> None:
    transformers = pytest.importorskip("transformers")
    splits = unigram()
    sizes = {
        "vocab_size": splits.get_vocab_size(),
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 3,
        "num_heads": 4,
    }
    config = transformers.AutoConfig.for_model(kind, feed_forward_proj=mlp, relative_attention_num_buckets=8, **sizes)
    torch.manual_seed(3)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (0.5 if parameter.ndim == 1 else 0.0))
    model.save_pretrained(tmp_path / "hf")
    splits.save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(tiny_encoders.NAMES[unigram]))
    with pytest.raises(llmconv.UsageError, match="which says no words; llmconv embed gives its vectors"):
        llmconv.generate(tmp_path / "hf", "the llama", device="cpu")
    long = " ".join(TEXTS * 4)
    expected = []
    for text in (*TEXTS, long):
        with torch.no_grad():
            hidden = model.get_encoder()(torch.tensor([splits.encode(text).ids])).last_hidden_state[0]
        expected.append(pooled(hidden, "mean"))
    notes = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf").notes
    assert not any(
        "its logits are divided by the root of its width" in note for note in notes
    )  # no encoder's, no mT5's
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        found = llmconv.embed(path, [*TEXTS, long], device="cpu")
        assert np.abs(found - np.stack(expected)).max() < 5e-5


def test_llama_that_looks_both_ways(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    splits = tiny_encoders.folder_by_hand(tmp_path / "hf", "llama-embed", unigram)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    own = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    model = transformers.LlamaModel(transformers.LlamaConfig(**own, attn_implementation="eager")).eval()
    tensors = {n: torch.from_numpy(np.array(t.numpy())) for n, t in llmconv.open(tmp_path / "hf").tensors.items()}
    model.load_state_dict(tensors, strict=False)
    expected = []
    for text in TEXTS:
        ids = splits.encode(text).ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), attention_mask=torch.zeros(1, 1, len(ids), len(ids))).last_hidden_state
        expected.append(pooled(hidden[0], "mean"))
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        assert np.abs(llmconv.embed(path, TEXTS, device="cpu") - np.stack(expected)).max() < CLOSE


def test_the_tensors_that_travel_along_are_named(tmp_path: Path) -> None:
    tiny_encoders.folder_by_hand(tmp_path / "hf", "nomic-moe", unigram)
    notes = hf.to_gguf(llmconv.open(tmp_path / "hf")).notes
    assert any("llama.cpp computes without 'encoder.layers.1.mlp.experts.bias'" in note for note in notes)
