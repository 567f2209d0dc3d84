"""A model for Ollama: the GGUF, the Modelfile's lines, adapters; and a model of Ollama's, there and back."""

import json
import re

import numpy as np
import pytest
from chat_templates import TEMPLATES
from go_templates import executed

pytest.importorskip("jinja2", reason="chat templates need it")

import llmconv
from llmconv.cli import cli
from llmconv.errors import LlmconvError, OutputExists, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WEIGHT = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)


def model(path, template=CHATML, **more):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b"]
    keys = {
        "general.architecture": "llama",
        "llama.context_length": np.uint32(2048),
        "general.sampling.temp": np.float32(0.6),
        "general.sampling.top_k": np.int32(20),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3, 3, 1, 1], np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.chat_template": template,
    }
    keys = {k: v for k, v in (keys | more).items() if v is not None}
    made = Checkpoint(dialect="gguf", metadata=keys)
    made.add(Tensor.from_array("w.weight", WEIGHT))
    gguf_file.save(made, path)
    return path


def parsed(text: str) -> list[tuple[str, str]]:
    """A Modelfile's lines, as Ollama's parser takes them: a word, and a value that three quotes may go around."""
    found, rest = [], text
    while rest.strip():
        word, _, rest = rest.lstrip().partition(" ")
        if rest.startswith('"""'):
            value, _, rest = rest[3:].partition('"""')
        else:
            value, _, rest = rest.partition("\n")
        found.append((word, value))
    return found


def test_a_modelfile_beside_a_gguf(tmp_path):
    made = llmconv.to_ollama(model(tmp_path / "toy.gguf"))
    lines = parsed((tmp_path / "Modelfile").read_text())
    assert lines[0] == ("FROM", "./toy.gguf") and made.path == tmp_path / "Modelfile"
    stops = [v for w, v in lines if w == "PARAMETER" and v.startswith("stop")]
    assert stops == ['stop "<|im_end|>"', 'stop "<|im_start|>"']
    assert {"temperature 0.6", "top_k 20", "num_ctx 2048"} <= {v for w, v in lines if w == "PARAMETER"}
    (go,) = (v for w, v in lines if w == "TEMPLATE")
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert (
        executed(go, said) == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not made.notes
    with pytest.raises(OutputExists):
        llmconv.to_ollama(tmp_path / "toy.gguf")


def test_a_folder(tmp_path):
    long = {"llama.context_length": np.uint32(100_000)}
    source = model(tmp_path / "toy.gguf", **long)
    made = llmconv.to_ollama(source, tmp_path / "out", type="Q8_0", system='Say "yes".', num_ctx=8192)
    assert made.files == [tmp_path / "out" / "Modelfile", tmp_path / "out" / "toy.gguf"]
    assert llmconv.open(made.files[1]).tensors["w.weight"].type.name == "Q8_0"
    lines = parsed(made.text)
    assert ("SYSTEM", 'Say "yes".') in lines and ("PARAMETER", "num_ctx 8192") in lines
    assert any("100,000" in note for note in llmconv.to_ollama(source).notes)
    with pytest.raises(UsageError, match="the model was made for 100,000"):
        llmconv.to_ollama(source, tmp_path / "other", num_ctx=200_000)


def test_a_default_system_text(tmp_path):
    template = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    lines = parsed(llmconv.to_ollama(model(tmp_path / "toy.gguf", template)).text)
    assert ("SYSTEM", "Be kind.") in lines


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        ("{{ messages | length }}", "does more than texts around each turn"),
        (TEMPLATES["llama 3.1"], "the turns, not tools"),
    ],
)
def test_what_is_said(tmp_path, template, says):
    made = llmconv.to_ollama(model(tmp_path / "toy.gguf", template))
    assert any(says in note for note in made.notes), made.notes
    assert ("TEMPLATE" in made.text) == (says == "the turns, not tools")


def test_no_system_text_is_taken(tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML
    path = model(tmp_path / "toy.gguf", template)
    with pytest.raises(UsageError, match="takes no system text"):
        llmconv.to_ollama(path, system="x")
    assert any("takes no system text" in note for note in llmconv.to_ollama(path, force=True).notes)


def test_a_model_of_ollama_s_comes_back(tmp_path, monkeypatch):
    """Its own template, system text, parameters and licence."""
    import hashlib

    root = tmp_path / "models"
    (root / "blobs").mkdir(parents=True)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    params = {"stop": ["<a>", "<b>"], "temperature": 0.5, "num_ctx": 99}
    texts = {"template": "{{ .Prompt }}", "system": "Be brief.", "params": json.dumps(params), "license": "MIT"}
    layers = []
    for kind, data in [
        ("model", model(tmp_path / "x.gguf").read_bytes()),
        *((k, t.encode()) for k, t in texts.items()),
    ]:
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(data)
        kind = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)})
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / "toy" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "mediaType": "x", "config": {}, "layers": layers}))
    made = llmconv.to_ollama("ollama://toy", tmp_path / "out")
    lines = parsed(made.text)
    assert lines[:4] == [
        ("FROM", "./toy.gguf"), ("TEMPLATE", "{{ .Prompt }}"), ("SYSTEM", "Be brief."), ("LICENSE", "MIT")
    ]  # fmt: skip
    assert [v for w, v in lines[4:] if v] == ['stop "<a>"', 'stop "<b>"', "temperature 0.5", "num_ctx 2048"]
    with pytest.raises(UsageError, match="name a folder"):
        llmconv.to_ollama("ollama://toy")


def test_split_models_need_a_folder(tmp_path):
    whole = llmconv.open(model(tmp_path / "toy.gguf"))
    whole.add(Tensor.from_array("v.weight", WEIGHT))
    llmconv.save(whole, tmp_path / "big.gguf", split_max_tensors=1)
    first = tmp_path / "big-00001-of-00002.gguf"
    with pytest.raises(UsageError, match="Ollama takes one file"):
        llmconv.to_ollama(first)
    made = llmconv.to_ollama(first, tmp_path / "out")
    assert len(made.files) == 2 and len(llmconv.open(made.files[1]).tensors) == 2


def test_adapters(tmp_path):
    """PEFT's folder becomes a GGUF; one that is a GGUF stays where it is."""
    from click.testing import CliRunner

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    shapes = {"model.embed_tokens": (8, 64), "lm_head": (8, 64), "model.norm": (64,)}
    at = "model.layers.0."
    shapes |= {at + "input_layernorm": (64,), at + "post_attention_layernorm": (64,)}
    shapes |= {at + f"self_attn.{n}_proj": (64, 64) for n in "qkvo"}
    shapes |= {at + f"mlp.{n}_proj": (64, 64) for n in ("gate", "up", "down")}
    base = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    for name, shape in shapes.items():
        base.add(Tensor.from_array(f"{name}.weight", np.ones(shape, np.float32)))
    llmconv.save(base, tmp_path / "base")
    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "base_model_name_or_path": ""}
    adapter = Checkpoint(dialect="hf", files={"adapter_config.json": json.dumps(lora).encode()})
    for half, shape in (("A", (2, 64)), ("B", (64, 2))):
        name = f"base_model.model.{at}self_attn.v_proj.lora_{half}.weight"
        adapter.add(Tensor.from_array(name, np.ones(shape, np.float32)))
    llmconv.save(adapter, tmp_path / "lora")
    made = llmconv.to_ollama(tmp_path / "base", tmp_path / "out", adapters=[tmp_path / "lora"])
    assert ("ADAPTER", "./lora.gguf") in parsed(made.text) and made.files[-1] == tmp_path / "out" / "lora.gguf"
    assert llmconv.open(made.files[-1]).metadata["general.type"] == "adapter"
    run = CliRunner().invoke(cli, ["ollama", str(made.files[1]), "--adapter", str(made.files[-1]), "--force", "--json"])
    found = json.loads(run.output[run.output.index("{") :])["result"]
    assert run.exit_code == 0 and re.search(r"ADAPTER \./lora\.gguf", found["text"])


def test_three_quotes(tmp_path):
    with pytest.raises(LlmconvError, match="which a Modelfile can't"):
        llmconv.to_ollama(model(tmp_path / "toy.gguf"), system='"""')
    assert not (tmp_path / "Modelfile").exists()
