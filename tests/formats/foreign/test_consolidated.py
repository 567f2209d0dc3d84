"""Meta's and Mistral's own folders: the same weights, vocabulary and settings as Hugging Face's of the same model."""

import base64
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import llmconv
from llmconv.convert import vocab as vocabularies
from llmconv.errors import BadFile, BadKey, LlmconvError, MissingTensor, UnknownTensor, Unsupported, WrongShape

torch = pytest.importorskip("torch")

DIM, HEADS, KV, LAYERS, FF, ROWS = 32, 4, 2, 2, 48, 320
HEAD = DIM // HEADS
PARAMS = {
    "dim": DIM, "n_heads": HEADS, "n_kv_heads": KV, "n_layers": LAYERS, "norm_eps": 1e-5, "vocab_size": ROWS,
    "multiple_of": 16, "rope_theta": 500000.0,
}  # fmt: skip
MISTRAL = {k: v for k, v in PARAMS.items() if k != "multiple_of"} | {"head_dim": HEAD, "hidden_dim": FF}


def weights(experts=0) -> dict:
    """A model under Meta's names; what each is to be under Hugging Face's."""
    made = torch.Generator().manual_seed(7)

    def new(*shape):
        return torch.randn(shape, generator=made).to(torch.bfloat16)

    def halves(w, heads):  # Hugging Face's row j of a head is Meta's 2j, its row HEAD / 2 + j Meta's 2j + 1
        rows = []
        for h in range(heads):
            rows += [w[h * HEAD + 2 * j] for j in range(HEAD // 2)] + [
                w[h * HEAD + 2 * j + 1] for j in range(HEAD // 2)
            ]
        return torch.stack(rows)

    ours = {"tok_embeddings.weight": new(ROWS, DIM), "norm.weight": new(DIM), "output.weight": new(ROWS, DIM)}
    theirs = {
        "model.embed_tokens.weight": ours["tok_embeddings.weight"], "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["output.weight"],
    }  # fmt: skip
    for i in range(LAYERS):
        a, b = f"layers.{i}.", f"model.layers.{i}."
        q, k, v, o = new(DIM, DIM), new(KV * HEAD, DIM), new(KV * HEAD, DIM), new(DIM, DIM)
        ours |= {a + f"attention.w{n}.weight": w for n, w in zip("qkvo", (q, k, v, o), strict=True)}
        theirs |= {
            b + "self_attn.q_proj.weight": halves(q, HEADS), b + "self_attn.k_proj.weight": halves(k, KV),
            b + "self_attn.v_proj.weight": v, b + "self_attn.o_proj.weight": o,
        }  # fmt: skip
        for mine, other in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            ours[a + mine + ".weight"] = theirs[b + other + ".weight"] = new(DIM)
        shapes = {"w1": (FF, DIM), "w2": (DIM, FF), "w3": (FF, DIM)}
        if experts:
            gate = new(experts, DIM)
            ours[a + "feed_forward.gate.weight"] = theirs[b + "block_sparse_moe.gate.weight"] = gate
            for e in range(experts):
                for n, shape in shapes.items():
                    w = new(*shape)
                    ours[f"{a}feed_forward.experts.{e}.{n}.weight"] = w
                    theirs[f"{b}block_sparse_moe.experts.{e}.{n}.weight"] = w
        else:
            for n, other in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                ours[f"{a}feed_forward.{n}.weight"] = theirs[f"{b}mlp.{other}.weight"] = new(*shapes[n])
    return {"ours": ours, "theirs": theirs}


_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def cut(name: str, tensor, part: int, parts: int, embedding: int):
    """A shard of a tensor, as fairscale's layers cut it."""
    if tensor.ndim < 2:
        return tensor.clone()
    axis = embedding if name == "tok_embeddings.weight" else int(name.endswith(_BY_COLUMNS))
    return tensor.chunk(parts, axis)[part].clone()


def meta(folder: Path, parts=1, embedding=0, params=PARAMS, **changes) -> dict:
    made = weights()
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params | changes))
    for i in range(parts):
        shard = {n: cut(n, t, i, parts, embedding) for n, t in made["ours"].items()}
        torch.save(shard | {"rope.freqs": torch.ones(HEAD // 2)}, folder / f"consolidated.{i:02d}.pth")
    return made["theirs"]


def mistral(folder: Path, experts=0, **changes) -> dict:
    save_file = pytest.importorskip("safetensors.torch").save_file
    made = weights(experts)
    folder.mkdir()
    moe = {"moe": {"num_experts": experts, "num_experts_per_tok": 2}} if experts else {}
    (folder / "params.json").write_text(json.dumps(MISTRAL | moe | changes))
    save_file(made["ours"], folder / "consolidated.safetensors")
    return made["theirs"]


def same(checkpoint, wanted: dict) -> None:
    assert checkpoint.dialect == "hf" and checkpoint.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        found = checkpoint.tensors[name]
        assert found.shape == tuple(tensor.shape), name
        want = tensor.view(torch.uint8).numpy().reshape(found.n_rows, -1)
        assert np.array_equal(found.blocks(), want), name
        middle = max(1, found.n_rows // 2)  # rows that are no whole head
        part = slice(middle - 1, min(middle + 1, found.n_rows))
        assert np.array_equal(found.blocks(part.start, part.stop), want[part]), name


@pytest.mark.parametrize(("parts", "embedding"), [(1, 0), (2, 0), (2, 1)])
def test_shards_are_joined_as_they_are_cut(tmp_path, parts, embedding):
    wanted = meta(tmp_path / "model", parts, embedding)
    same(llmconv.open(tmp_path / "model"), wanted)
    same(llmconv.open(tmp_path / "model" / "consolidated.00.pth"), wanted)


@pytest.mark.parametrize("experts", [0, 4])
def test_mistral(tmp_path, experts):
    wanted = mistral(tmp_path / "model", experts, sliding_window=64)
    found = llmconv.open(tmp_path / "model")
    same(found, wanted)
    kind = "MixtralForCausalLM" if experts else "MistralForCausalLM"
    assert json.loads(found.file("config.json"))["architectures"] == [kind]


def test_the_folder_is_hugging_faces(tmp_path):
    """transformers computes with the converted folder what it computes with these weights under its own names."""
    transformers = pytest.importorskip("transformers")
    wanted = meta(tmp_path / "model", 2, use_scaled_rope=True)
    llmconv.convert_file(tmp_path / "model", tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500000.0, 8.0)
    made = llmconv.quantize(tmp_path / "model", tmp_path / "q.gguf", "Q8_0")
    assert made.written and not set(_names(tmp_path / "q.gguf")) - set(_names(_gguf(tmp_path / "hf")))


def _gguf(folder: Path) -> Path:
    return llmconv.convert_file(folder, folder.with_suffix(".gguf")).paths[0]


def _names(path: Path) -> list:
    return list(llmconv.open(path).tensors)


def test_ministral_says_what_transformers_says(tmp_path):
    mistral(
        tmp_path / "m",
        yarn={"original_max_position_embeddings": 64, "factor": 4.0, "apply_scale": False, "beta": 32, "alpha": 1},
        llama_4_scaling={"original_max_position_embeddings": 64, "beta": 0.1},
        max_position_embeddings=256,
    )
    llmconv.convert_file(tmp_path / "m", tmp_path / "m.gguf")
    keys = llmconv.open(tmp_path / "m.gguf").metadata
    assert keys["general.architecture"] == "mistral3"
    assert keys["mistral3.rope.scaling.factor"] == 4 and keys["mistral3.attention.temperature_scale"] == np.float32(0.1)


BROKEN = [
    (lambda f: (f / "consolidated.00.pth").unlink(), BadFile, "consolidated.00.pth is missing"),
    (lambda f: said(f, qk_norm=True), Unsupported, "'qk_norm'"),
    (lambda f: said(f, moe_args={"num_experts": 2}), Unsupported, "'moe_args'"),
    (lambda f: said(f, n_heads=0), BadKey, "n_heads"),
    (lambda f: said(f, n_heads=3), LlmconvError, "n_kv_heads"),
    (lambda f: said(f, n_layers=True), BadKey, "n_layers"),
    (lambda f: said(f, norm_eps="x"), BadKey, "norm_eps"),
    (lambda f: said(f, vocab_size=319), BadKey, "vocab_size"),
    (lambda f: said(f, n_kv_heads=4), WrongShape, "attention.wk"),
    (lambda f: said(f, dim=64), LlmconvError, "shape"),
    (lambda f: (f / "params.json").write_text("[]"), BadFile, "params.json"),
    (lambda f: shard(f, more={"layers.0.attention.q_norm.weight": torch.ones(4)}), UnknownTensor, "q_norm"),
    (lambda f: shard(f, without="norm.weight"), MissingTensor, "norm.weight"),
]


def said(folder: Path, **changes) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))


def shard(folder: Path, more=None, without=None) -> None:
    for i in range(2 if more else 1):
        path = folder / f"consolidated.{i:02d}.pth"
        tensors = torch.load(path) | (more or {})
        tensors.pop(without, None)
        torch.save(tensors, path)


@pytest.mark.parametrize(("harm", "error", "says"), BROKEN)
def test_faults_are_named(tmp_path, harm, error, says):
    meta(tmp_path / "m", 2)
    harm(tmp_path / "m")
    with pytest.raises(error, match=re.escape(says)):
        llmconv.open(tmp_path / "m")


def test_hugging_faces_files_come_first(tmp_path):
    """Mistral's repositories hold the model twice."""
    mistral(tmp_path / "m")
    llmconv.convert_file(tmp_path / "m", tmp_path / "hf")
    for file in (tmp_path / "m").iterdir():
        (tmp_path / "hf" / file.name).write_bytes(file.read_bytes())
    assert llmconv.open(tmp_path / "hf").format == "safetensors"


# ------------------------------------------------------------------------------------------------ their tokenizers


def tiktoken_lines(texts=("th", "he", "the", " the", "in", "ing", " a", "an", "and", " and", "  ")) -> bytes:
    pieces = [bytes([b]) for b in range(256)] + [t.encode() for t in texts]
    return b"".join(base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(pieces))


def by_hand(pieces: dict, word: bytes) -> list[int]:
    """tiktoken's own rule: join the neighbours whose bytes together have the lowest rank, until there are none."""
    parts = [bytes([b]) for b in word]
    if word in pieces:
        return [pieces[word]]
    while True:
        pairs = [(pieces[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in pieces]
        if not pairs:
            return [pieces[p] for p in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("newer", [False, True])
def test_llama3s_tokenizer(tmp_path, newer):
    data = tiktoken_lines()
    config = {"rope_scaling": {"rope_type": "llama3"}} if newer else {}
    found = vocabularies.from_files({"tokenizer.model": data}, config)
    n = 256 + 11
    assert len(found) == n + 256 and found.pre == "llama-bpe" and found.special["bos"] == n
    names = found.tokens[n:]
    assert names[0] == "<|begin_of_text|>" and names[9] == "<|eot_id|>" and len(set(names)) == 256
    assert names[4] == ("<|finetune_right_pad_id|>" if newer else "<|reserved_special_token_2|>")
    assert names[5] == ("<|reserved_special_token_2|>" if newer else "<|reserved_special_token_3|>")
    assert names[255] == ("<|reserved_special_token_247|>" if newer else "<|reserved_special_token_250|>")
    tokenizer = llmconv.ModelTokenizer(found)
    ranks = {base64.b64decode(line.split()[0]): i for i, line in enumerate(data.splitlines())}
    words = ["the", " thing", " and", " anding", "thheing", "ü", " a"]
    wanted = [id for word in words for id in by_hand(ranks, word.encode())]
    assert list(tokenizer.encode("".join(words), add_special=False)) == wanted


def test_llama3s_folder_keeps_its_tokenizer(tmp_path):
    meta(tmp_path / "m", 1, vocab_size=-1)
    (tmp_path / "m" / "tokenizer.model").write_bytes(tiktoken_lines(["th", "he", "the"]))
    with pytest.raises(BadFile, match="515 tokens"):  # 256 + 3 + 256 are more than the 320 rows
        llmconv.convert_file(tmp_path / "m", tmp_path / "m.gguf")


TEKKEN = {
    "config": {
        "pattern": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        "default_vocab_size": 256 + 5 + 24, "default_num_special_tokens": 24, "version": "v7",
    },
    "vocab": [
        {"rank": i, "token_bytes": base64.b64encode(p).decode(), "token_str": None}
        for i, p in enumerate([*(bytes([b]) for b in range(256)), b"th", b"the", b" t", b"an", b"and", b"beyond"])
    ],
}  # fmt: skip


def test_tekken(tmp_path):
    found = vocabularies.from_files({"tekken.json": json.dumps(TEKKEN).encode()})
    assert (len(found), found.pre, found.special["bos"], found.tokens[3], found.tokens[23]) == (
        285, "tekken", 1, "[INST]", "<SPECIAL_23>",
    )  # fmt: skip
    tokenizer = llmconv.ModelTokenizer(found)
    assert list(tokenizer.encode("theand9", add_special=False)) == [
        *by_hand({base64.b64decode(e["token_bytes"]): e["rank"] + 24 for e in TEKKEN["vocab"][:-1]}, b"theand"),
        24 + ord("9"),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["vocab"].pop(7), "rank 7 is missing"),
        (lambda t: t["vocab"][9].update(token_bytes="%%"), "base64"),
        (lambda t: t["vocab"][9].update(token_bytes="AA=="), "repeats"),
        (lambda t: t["config"].update(default_vocab_size=10**6), "fewer tokens"),
        (lambda t: t.update(config=None), "sizes"),
        (lambda t: t.update(special_tokens=[{"rank": 99, "token_str": "x"}]), "special token"),
        (lambda t: t.update(special_tokens=3), "special token"),
        (lambda t: t["vocab"].__setitem__(3, 4), "a rank"),
    ],
)
def test_broken_tekken(change, says):
    whole = json.loads(json.dumps(TEKKEN))
    change(whole)
    with pytest.raises(BadFile, match=says):
        vocabularies.from_files({"tekken.json": json.dumps(whole).encode()})


def test_tekken_against_mistral_common():
    """Mistral's own vocabulary and their own program: the same ids for whatever text."""
    tokenizers = pytest.importorskip("mistral_common.tokens.tokenizers.tekken", reason="they need mistral-common")
    from llmconv.convert.vocab.read.recognise import PROBE

    path = Path(tokenizers.__file__).parents[2] / "data" / "tekken_240911.json"
    theirs = tokenizers.Tekkenizer.from_file(path)
    found = vocabularies.from_files({"tekken.json": path.read_bytes()})
    assert len(found) == theirs.n_words and found.pre == "tekken"
    tokenizer = llmconv.ModelTokenizer(found)
    for text in (PROBE, "Bonjour le monde!", "x = [1, 2]\n\n", "日本語", ""):
        assert list(tokenizer.encode(text, add_special=False)) == theirs.encode(text, bos=False, eos=False)
    for id in (0, 1, 2, 3, 17, 999, 1000, 131071):
        control = id < 1000
        assert (found.types[id] != 1) == control
        if control:
            assert found.tokens[id] == theirs.id_to_piece(id)
