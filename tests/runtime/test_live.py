"""Models in memory: the bytes that saving the folder and converting that gives, and back into transformers."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import llmconv
from llmconv.errors import LlmconvError, Unsupported, UsageError

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
ACCELERATE = importlib.util.find_spec("accelerate") is not None
OLD_NAMES = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # PEFT asks transformers by them
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "tied": lambda: transformers.Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True),
    "experts": lambda: transformers.MixtralConfig(**LLAMA, num_local_experts=4),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32),
}


def made(kind: str, dtype=torch.bfloat16):
    torch.manual_seed(5)
    return transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).to(dtype)


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = {chr(33 + i): i for i in range(60)} | {"<s>": 60, "</s>": 61}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_as_by_way_of_a_folder(tmp_path, kind):
    model, words = made(kind), tokenizer()
    model.save_pretrained(tmp_path / "folder")
    words.save_pretrained(tmp_path / "folder")
    for type in ("Q8_0", "COPY"):
        llmconv.quantize(tmp_path / "folder", tmp_path / "a.gguf", type, force=True)
        llmconv.save_gguf(model, tmp_path / "b.gguf", type, words, name="folder", force=True)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    found, folder = llmconv.from_torch(model, words, name="folder"), llmconv.open(tmp_path / "folder")
    assert list(found.tensors) == list(folder.tensors)
    llmconv.convert_file(tmp_path / "folder", tmp_path / "c.gguf")
    llmconv.save(found, tmp_path / "d.gguf")
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "d.gguf").read_bytes()


def test_a_state_dict_with_a_config(tmp_path):
    model = made("llama")
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "generation_config.json").unlink()
    config = tmp_path / "folder"
    a = llmconv.save_gguf(model.state_dict(), tmp_path / "a.gguf", "Q4_K_M", config=config, name="folder")
    llmconv.quantize(tmp_path / "folder", tmp_path / "b.gguf", "Q4_K_M")
    assert a.written and (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    config = json.loads((tmp_path / "folder" / "config.json").read_bytes())
    for given in (model.config, config, tmp_path / "folder", str(tmp_path / "folder" / "config.json")):
        found = llmconv.from_torch(model.state_dict(), config=given)
        assert json.loads(found.file("config.json"))["hidden_size"] == 32
    assert llmconv.from_torch({"w": torch.ones(2, 3)}).dialect == "plain"


def test_nothing_is_copied_before_it_is_written():
    model = made("llama")
    found = llmconv.from_torch(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(3)
    assert np.all(found.tensors["model.norm.weight"].numpy() == 3)
    assert model.config.architectures is None  # and nothing of it is changed


@OLD_NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_as_peft_merges_it(tmp_path, dtype):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, modules_to_save=["lm_head"])
    model = peft.get_peft_model(made("llama", dtype), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.normal_()
    llmconv.save_gguf(model, tmp_path / "a.gguf", "Q8_0", name="m")
    merged = model.merge_and_unload()
    llmconv.save_gguf(merged, tmp_path / "b.gguf", "Q8_0", name="m")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    merged.save_pretrained(tmp_path / "folder")
    llmconv.quantize(tmp_path / "folder", tmp_path / "c.gguf", "Q8_0")
    rows = llmconv.open(tmp_path / "c.gguf"), llmconv.open(tmp_path / "a.gguf")
    assert all(np.array_equal(rows[0].tensors[n].blocks(), t.blocks()) for n, t in rows[1].tensors.items())


@OLD_NAMES
@pytest.mark.parametrize("name", ["default", "second"])
def test_an_adapter_as_a_gguf_of_its_own(tmp_path, name):
    """The bytes of the saved folder's, and what it adds is what PEFT adds."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=6)
    model = peft.get_peft_model(made("llama", torch.float32), config, adapter_name=name)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.normal_()
    llmconv.save_adapter(model, tmp_path / f"{name}.gguf")
    model.save_pretrained(tmp_path / "saved")
    model.get_base_model().config.architectures = ["LlamaForCausalLM"]
    model.get_base_model().config.save_pretrained(tmp_path / "base")
    folder = tmp_path / "saved" if name == "default" else tmp_path / "saved" / name
    folder = folder.rename(tmp_path / name)
    llmconv.convert_file(folder, tmp_path / "want.gguf", base=tmp_path / "base")
    assert (tmp_path / f"{name}.gguf").read_bytes() == (tmp_path / "want.gguf").read_bytes()
    found = llmconv.open(tmp_path / f"{name}.gguf")
    a, b = (found.tensors[f"blk.0.ffn_down.weight.lora_{half}"].numpy() for half in "ab")
    want = model.get_base_model().model.layers[0].mlp.down_proj.get_delta_weight(name)
    scale = found.metadata["adapter.lora.alpha"] / 4
    assert np.allclose(scale * b @ a, want.detach().numpy(), atol=1e-5)


@OLD_NAMES
def test_adapters_that_are_none():
    peft = pytest.importorskip("peft")
    with pytest.raises(UsageError, match="takes a PEFT model"):
        llmconv.save_adapter(made("llama"), "x.gguf")
    model = peft.get_peft_model(made("llama"), peft.LoraConfig(target_modules=["q_proj"], r=4))
    with pytest.raises(UsageError, match="name one of default"):
        llmconv.save_adapter(model, "x.gguf", adapter="other")
    model = peft.get_peft_model(made("llama"), peft.LoraConfig(target_modules=["q_proj"], r=4, use_dora=True))
    with pytest.raises(Unsupported):
        llmconv.save_adapter(model, "x.gguf")


@OLD_NAMES
def test_what_is_no_plain_lora_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=4, use_dora=True)
    with pytest.raises(Unsupported, match=r"q_proj.*merge_and_unload"):
        llmconv.from_torch(peft.get_peft_model(made("llama", torch.float32), config))


def changed(model):
    """A PEFT model whose adapters do something."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.normal_(std=0.1)
    return model


@OLD_NAMES
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
@pytest.mark.parametrize(
    "adapted",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}],
    ids=str,
)
def test_an_adapter_of_one_of_two_tied_weights(tmp_path, adapted):
    """Which are two from there on: what is written computes what PEFT computes."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, **{"target_modules": ["q_proj"], **adapted})
    model = changed(peft.get_peft_model(made("tied", torch.float32), config)).eval()
    llmconv.save_gguf(model, tmp_path / "m.gguf")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        want, found = model(ids).logits, llmconv.to_torch(tmp_path / "m.gguf")(ids).logits
    assert torch.allclose(found, want, atol=1e-5)


@OLD_NAMES
def test_adapters_without_peft_s_wrapper_and_prompts(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=4)
    model = changed(peft.get_peft_model(made("llama", torch.float32), config))
    inner = model.get_base_model()
    for given in (model, inner):
        found = llmconv.from_torch(given)
        assert not np.array_equal(
            found.tensors["model.layers.0.self_attn.q_proj.weight"].numpy(),
            inner.model.layers[0].self_attn.q_proj.base_layer.weight.detach().numpy(),
        )
        assert not any("lora" in name or "base_layer" in name for name in found.tensors)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(Unsupported, match="has learned a prompt, which no weight holds"):
        llmconv.from_torch(peft.get_peft_model(made("llama", torch.float32), prompt))


@OLD_NAMES
def test_an_adapter_is_no_model(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(made("llama", torch.float32), peft.LoraConfig(target_modules=["q_proj"], r=4))
    llmconv.save_adapter(model, tmp_path / "a.gguf")
    for call in (llmconv.load, llmconv.to_torch, llmconv.state_dict):
        with pytest.raises(Unsupported, match="is an adapter, no model"):
            call(tmp_path / "a.gguf")


class Compiled(torch.nn.Module):
    """As `torch.compile` wraps a module, and calls it."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def test_wrappers_are_taken_off():
    """A model's, and those of its layers."""
    model = made("llama")
    wrapped = torch.nn.Module()
    wrapped.module = Compiled(model)
    names = llmconv.from_torch(model).tensors.keys()
    assert llmconv.from_torch(wrapped).tensors.keys() == names
    want = llmconv.save_gguf(model, "none.gguf", dry_run=True).output.tensors
    for i in range(2):
        model.model.layers[i] = Compiled(model.model.layers[i])
    for given in (model, {f"module.{n}": v for n, v in model.state_dict().items()}):
        assert llmconv.save_gguf(given, "none.gguf", dry_run=True, config=model.config).output.tensors == want


def test_a_state_dict_of_tied_weights():
    """One tensor, as the model's own folder has."""
    model = made("tied")
    found = llmconv.from_torch(model.state_dict(), config=model.config)
    assert found.tensors.keys() == llmconv.from_torch(model).tensors.keys() != model.state_dict().keys()


class Own(torch.nn.Module):
    """Somebody's model, with settings of its own kind."""

    def __init__(self, config):
        super().__init__()
        self.config, self.wte = config, torch.nn.Embedding(4, 32)


@pytest.mark.parametrize("config", [None, {"n_layer": 2}, object()], ids=["none", "dict", "object"])
def test_a_model_of_no_library(config):
    found = llmconv.from_torch(Own(config))
    assert found.dialect == "plain" and list(found.tensors) == ["wte.weight"]
    assert any("keep their own names" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (3, UsageError, "takes a model or a state dict"),
        ({"w": 3}, UsageError, "'w'"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, UsageError, "complex128"),
        (torch.nn.Linear(2, 2, device="meta"), Unsupported, "no values"),
        ({"w": torch.ones(2, 2), "v": torch.ones(2, device="meta")}, Unsupported, "'v' has no values"),
        ({"w": torch.ones(2, 2).to_sparse()}, Unsupported, "make it dense"),
    ],
)
def test_what_is_no_model_is_named(model, error, says):
    with pytest.raises(error, match=says):
        llmconv.from_torch(model)


@pytest.mark.parametrize("tokenizer", [3, "nowhere"])
def test_what_is_no_tokenizer_is_named(tokenizer):
    with pytest.raises(LlmconvError, match="tokenizer"):
        llmconv.from_torch({"w": torch.ones(2)}, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_back_into_transformers(tmp_path, kind):
    model = made(kind, torch.float32).eval()
    llmconv.save_gguf(model, tmp_path / "m.gguf")
    back = llmconv.to_torch(tmp_path / "m.gguf")
    assert type(back) is type(model) and back.dtype == torch.float32
    ids = torch.arange(12)[None] % 60
    with torch.no_grad():
        assert torch.equal(model(ids).logits, back(ids).logits)


def test_quantized_weights_are_decoded(tmp_path):
    model = made("llama", torch.float32)
    llmconv.save_gguf(model, tmp_path / "m.gguf", "Q8_0")
    back = llmconv.to_torch(tmp_path / "m.gguf", dtype="bf16")
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    named = dict(llmconv.state_dict(tmp_path / "m.gguf"))
    assert named["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    assert torch.allclose(named["lm_head.weight"], model.lm_head.weight, atol=0.01)
    assert named.keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match="unknown dtype"):
        llmconv.state_dict(tmp_path / "m.gguf", dtype="q4")


def test_what_can_t_be_made_is_said(tmp_path):
    model = made("llama")
    llmconv.save_gguf(model, tmp_path / "m.gguf")
    for how, says in (({"dtype": torch.int8}, "unknown dtype"), ({"device": "foo"}, "unknown device")):
        with pytest.raises(UsageError, match=says):
            llmconv.to_torch(tmp_path / "m.gguf", **how)
    state = transformers.TrainerState(is_world_process_zero=True)
    args = transformers.TrainingArguments(tmp_path / "out", report_to=[]) if ACCELERATE else None
    if args is not None:
        with pytest.raises(UsageError, match="unknown file type 'Q9'"):
            llmconv.GGUFCallback("Q9").on_train_begin(args, state, None, model=model)


def test_a_trainer_writes_ggufs(tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    model = made("llama", torch.float32)
    args = transformers.TrainingArguments(
        tmp_path / "out", max_steps=2, save_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
    callback = llmconv.GGUFCallback("Q8_0")
    transformers.Trainer(model, args, train_dataset=rows, callbacks=[callback]).train()
    assert [p.parent.name for p in callback.paths] == ["checkpoint-1", "checkpoint-2"]
    folder: Path = callback.paths[1].parent
    llmconv.quantize(folder, tmp_path / "want.gguf", "Q8_0")
    a, b = llmconv.open(callback.paths[1]), llmconv.open(tmp_path / "want.gguf")
    assert all(np.array_equal(t.blocks(), b.tensors[n].blocks()) for n, t in a.tensors.items())


SHARDED = """
import os, sys
import torch, transformers
from torch.distributed.fsdp import fully_shard
import llmconv

folder, *kinds = sys.argv[1:]


def work(rank):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for kind in kinds:
        model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/{kind}")
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        made = llmconv.save_gguf(model, f"{folder}/sharded/{kind}.gguf", "Q8_0", name="m")
        assert made.written == (rank == 0)
        if not os.path.isdir(f"{folder}/{kind}-lora"):
            continue
        import peft

        model = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/{kind}"), f"{folder}/{kind}-lora"
        )
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
        llmconv.save_gguf(model, f"{folder}/sharded/{kind}-lora.gguf", "Q8_0", name="m")
        llmconv.save_adapter(model, f"{folder}/sharded/{kind}-adapter.gguf")
    torch.distributed.barrier()


if pid := os.fork():
    work(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
work(1)
os._exit(0)
"""


@OLD_NAMES
@pytest.mark.slow
def test_a_sharded_model_is_gathered(tmp_path):
    """By two processes, as FSDP cuts it; the bytes are those of the whole."""
    import os
    import subprocess
    import sys

    pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP")
    kinds = ("llama", "tied")
    for kind in kinds:
        model = made(kind, torch.float32)
        model.save_pretrained(tmp_path / kind)
        llmconv.save_gguf(model, tmp_path / f"{kind}.gguf", "Q8_0", name="m")
        if importlib.util.find_spec("peft") is not None:
            import peft

            config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False)
            model = peft.get_peft_model(model, config)
            model.save_pretrained(tmp_path / f"{kind}-lora")
            llmconv.save_gguf(model, tmp_path / f"{kind}-lora.gguf", "Q8_0", name="m")
            llmconv.save_adapter(model, tmp_path / f"{kind}-adapter.gguf")
    (tmp_path / "sharded").mkdir()
    words = [sys.executable, "-c", SHARDED, str(tmp_path), *kinds]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    whole = list(tmp_path.glob("*.gguf"))
    assert len(whole) in (2, 6)
    for path in whole:
        gathered = tmp_path / "sharded" / path.name
        if "adapter" not in path.name:
            assert gathered.read_bytes() == path.read_bytes(), path.name
            continue
        a, b = (llmconv.open(p).tensors for p in (gathered, path))  # whose keys name the folder of the base
        assert a.keys() == b.keys() and all(np.array_equal(t.numpy(), b[n].numpy()) for n, t in a.items())
