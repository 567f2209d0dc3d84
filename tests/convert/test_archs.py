"""The tables themselves, families that transformers does not have, other ways of writing a model, and bad input."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest

from llmconv import formats
from llmconv.convert import archs
from llmconv.convert.dialects import hf
from llmconv.convert.dialects.gguf import check_gguf
from llmconv.convert.tables import own_keys
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.decoder import describe
from llmconv.errors import BadFile, LlmconvError, Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}


def model(config: dict[str, Any], kind: str = "BF16", form: int = 0, **changes: Any) -> Checkpoint:
    """A model of this configuration, every tensor that it must have; `form` is the way of writing."""
    arch = archs.by_hf(config)
    assert arch is not None
    flat = normalized(config)
    dims = arch.dims_of(arch.metadata(flat))
    dims["n_vocab"] = dims["n_vocab"] or flat["vocab_size"]
    prefix = changes.get("prefix", arch.prefixes[0])
    rng = np.random.default_rng(7)
    out = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    for slot in arch.slots(dims):
        if not (arch.expected(slot.row, config) or changes.get("all_rows")):
            continue
        if changes.get("without", "?") in slot.gguf[0] and len(slot.gguf) > 1:
            continue
        number = min(form, len(slot.row.forms) - 1)
        mxfp4 = any(type(op).__name__ == "PackMxfp4" for op in slot.row.forms[number].ops)
        parts = tuple(
            Tensor(n, shape, by_name("MXFP4" if mxfp4 else kind), lambda a, b: np.empty((b - a, 0), np.uint8))
            for n, shape in zip(slot.gguf, slot.shapes, strict=True)
        )
        for op in reversed(slot.row.forms[number].ops):
            parts = op.undo(parts, slot.dims)
        for name, part in zip(slot.names(number, prefix), parts, strict=True):
            dtype = part.type.dtype if mxfp4 else by_name(kind).dtype
            assert dtype is not None
            size = int(np.prod(part.shape))
            values = rng.integers(0, 256, size) if mxfp4 else rng.normal(0, 1, size)
            out.add(Tensor.from_array(name, values.astype(dtype).reshape(part.shape)))
    return out


def assert_round_trip(checkpoint: Checkpoint) -> Checkpoint:
    gguf = hf.to_gguf(checkpoint)
    back = hf.from_gguf(gguf)
    assert sorted(back.tensors) == sorted(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        other = back.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert tensor.blocks().tobytes() == other.blocks().tobytes(), name
    assert back.file("config.json") == checkpoint.file("config.json")
    return gguf


# ---------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_table_is_sound(arch: Architecture) -> None:
    names = [(r.gguf, r.when) for r in arch.rows]
    assert len(set(names)) == len(names)
    for table_row in arch.rows:
        assert len(table_row.shapes) == len(table_row.gguf)
        for form in table_row.forms:
            assert all(("{i}" in name) == table_row.per_layer for name in form.patterns), table_row.gguf
    assert len({k.gguf for k in arch.keys}) == len(arch.keys)
    assert all(re.compile(pattern) for pattern in (*arch.dropped, *arch.kept))


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_found_by_every_name(arch: Architecture) -> None:
    assert archs.by_gguf(arch.gguf) is arch
    for name in arch.hf:
        assert archs.by_hf({"architectures": [name.cls], "model_type": "?"}) is arch
        assert archs.by_hf({"model_type": name.model_type}) is arch
    assert archs.by_hf({"architectures": "LlamaForCausalLM"}) is None


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_names_are_the_ecosystem_s(arch: Architecture) -> None:
    """Every GGUF name we use is one that llama.cpp's own constants give this architecture."""
    gguf = pytest.importorskip("gguf")
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch.gguf in ("opt", "simple-llm", "small-gpt", "microgpt", "blocks", "forge", "transformer-desde-cero"):
        assert arch.gguf not in known
        return
    if arch.gguf not in known:
        pytest.skip(f"the installed gguf is older than {arch.gguf}")
    tensors = {gguf.TENSOR_NAMES[t].replace("{bid}", "{i}") for t in gguf.MODEL_TENSORS[known[arch.gguf]]}
    ours = {re.sub(r"\.(weight|bias|scales)$", "", n) for r in arch.rows for n in r.gguf} | {
        re.sub(r"\.weight$", "", m.gguf) for m in arch.made
    }
    beyond = {
        "command-r": {"output"},  # untied heads, which llama.cpp does not load
        "cohere2": {"output"},
        "gemma": {"output"},
        "gemma2": {"output"},
        "falcon": {"blk.{i}.ffn_norm"},  # Falcon-RW's serial blocks
        "mpt": {"blk.{i}.ffn.act"},
        "qwen2moe": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},  # layers without experts
        "qwen3moe": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "qwen3vlmoe": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "lfm2moe": {"output"},  # an untied head, which llama.cpp loads all the same
        "rnd1": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "bailingmoe": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "deepseek2": {n for n in ours if ".nextn." in n},  # which its loader knows, and older constants don't
    }
    assert ours - tensors - {"rope_freqs"} <= beyond.get(arch.gguf, set())


def shape(width: int, ff: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip((*names, "vocab_size"), (width, ff, layers, heads, kv, vocab), strict=True)) | more


def gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    return sizes | {"model_type": "gpt2"}


def test_the_page_lists_every_architecture(root: Path) -> None:
    page = (root / "docs" / "architectures.md").read_text()
    assert [a.gguf for a in archs.all() if f"`{a.gguf}`" not in page] == []


# Parameters as published, or as the sizes of the released checkpoints say.
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (gpt2(768, 12, 12), 124_439_808),
    "gpt2-medium": (gpt2(1024, 24, 16), 354_823_168),
    "gpt2-large": (gpt2(1280, 36, 20), 774_030_080),
    "gpt2-xl": (gpt2(1600, 48, 25), 1_557_611_200),
    "llama-2-7b": (shape(4096, 11008, 32, 32, 32, 32000, model_type="llama"), 6_738_415_616),
    "llama-2-13b": (shape(5120, 13824, 40, 40, 40, 32000, model_type="llama"), 13_015_864_320),
    "llama-3-8b": (shape(4096, 14336, 32, 32, 8, 128256, model_type="llama"), 8_030_261_248),
    "mixtral-8x7b": (
        shape(4096, 14336, 32, 32, 8, 32000, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "qwen2-0.5b": (shape(896, 4864, 24, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True), 494_032_768),
    "qwen3-0.6b": (
        shape(1024, 3072, 28, 16, 8, 151936, model_type="qwen3", head_dim=128, tie_word_embeddings=True),
        596_049_920,
    ),
    "gemma-2b": (shape(2048, 16384, 18, 8, 1, 256000, model_type="gemma", head_dim=256), 2_506_172_416),
    "pythia-70m": (shape(512, 2048, 6, 8, 8, 50304, model_type="gpt_neox"), 70_426_624),
    "bert-base": (
        shape(768, 3072, 12, 12, 12, 30522, model_type="bert", max_position_embeddings=512),
        109_482_240 - 590_592,  # without the pooler
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted(name: str) -> None:
    config, expected = COUNTS[name]
    arch = archs.by_hf(config)
    assert arch is not None
    metadata = arch.metadata(normalized(config))
    metadata.setdefault(f"{arch.gguf}.vocab_size", np.uint32(config["vocab_size"]))
    assert arch.count_parameters(metadata, config) == expected


# ------------------------------------------------------------------------------------------ other ways of writing

INTERNLM2 = LLAMA | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}
BAICHUAN = LLAMA | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_key_value_heads": 4}
GPT_OSS = LLAMA | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 32,
    "head_dim": 16,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "attention_bias": True,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}
QWEN3_MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 4,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {k: v for k, v in LLAMA.items() if k not in ("architectures", "model_type")} | {"head_dim": 8},
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_ctx": 32,
    "n_positions": 32,
    "vocab_size": 20,
}


EXAONE = LLAMA | {
    "architectures": ["ExaoneForCausalLM"],
    "model_type": "exaone",
    "num_layers": 2,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "silu",
}
CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "multi_query_attention": True,
    "add_qkv_bias": True,
    "kv_channels": 4,
    "padded_vocab_size": 20,
    "seq_length": 32,
    "rope_ratio": 50,
    "layernorm_epsilon": 1.5625e-07,
}
ERNIE = LLAMA | {"architectures": ["Ernie4_5_ForCausalLM"], "model_type": "ernie4_5", "head_dim": 4}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param(EXAONE, {}, id="exaone"),
        pytest.param(CHATGLM, {"form": 1, "all_rows": True, "without": "attn_q"}, id="chatglm"),
        pytest.param(ERNIE, {"form": 1}, id="ernie-fused"),
        pytest.param(INTERNLM2, {}, id="internlm2"),
        pytest.param(INTERNLM2 | {"bias": True}, {}, id="internlm2-bias"),
        pytest.param(BAICHUAN, {}, id="baichuan"),
        pytest.param(GPT_OSS, {}, id="gpt-oss-mxfp4"),
        pytest.param({k: v for k, v in GPT_OSS.items() if k != "quantization_config"}, {"form": 1}, id="gpt-oss-plain"),
        pytest.param(QWEN3_MOE, {"form": 1}, id="experts-stacked"),
        pytest.param(GEMMA3, {"prefix": "language_model.model."}, id="gemma3-inside-multimodal"),
        pytest.param(GPT2, {"prefix": ""}, id="gpt2-without-prefix"),
        pytest.param(GPT2, {"kind": "F32"}, id="gpt2-f32"),
        pytest.param(LLAMA, {"all_rows": True, "kind": "F16"}, id="llama-all-biases"),
        pytest.param(LLAMA | {"head_dim": 6}, {}, id="llama-head-dim"),
        pytest.param(LLAMA, {"kind": "F64"}, id="llama-f64"),
        pytest.param(LLAMA, {"kind": "F8_E4M3"}, id="llama-f8"),
    ],
)
def test_hand_made_models_come_back(config: dict[str, Any], options: dict[str, Any]) -> None:
    gguf = assert_round_trip(model(config, **options))
    arch = archs.by_hf(config)
    assert arch is not None and gguf.metadata["general.architecture"] == arch.gguf


@pytest.mark.parametrize("name", by_hand.CONFIGS)
def test_models_that_transformers_lacks_come_back(name: str) -> None:
    gguf = assert_round_trip(model(by_hand.CONFIGS[name], form=by_hand.FORMS.get(name, 0)))
    if not name.endswith(("vl", "paddleocr")):  # whose GGUFs are those of another program's text model
        assert describe(gguf).vocab_size == 96
    keys = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    back = hf.from_gguf(dataclasses.replace(gguf, metadata=keys))
    config = json.loads(back.file("config.json") or b"{}")
    assert config.get("num_hidden_layers", config.get("num_layers")) == 2 and len(back.tensors) == len(
        model(by_hand.CONFIGS[name]).tensors
    )


def test_mixed_types_are_remembered_in_few_words() -> None:
    checkpoint = model(LLAMA)
    for i in range(2):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        checkpoint.tensors[name] = checkpoint.tensors[name].astype(by_name("F32"))
    one = "model.layers.1.mlp.up_proj.weight"
    checkpoint.tensors[one] = checkpoint.tensors[one].astype(by_name("F16"))
    gguf = assert_round_trip(checkpoint)
    assert json.loads(gguf.metadata[own_keys.DTYPES]) == {
        "default": "BF16",
        "F32": ["model.layers.{}.mlp.down_proj.weight"],
        "F16": [one],
    }


def test_internlm2_is_split_as_its_own_code_reads_it() -> None:
    """modeling_internlm2: wqkv is (kv head, queries of the group + key + value, head_dim)."""
    checkpoint = model(INTERNLM2, kind="F32")
    wqkv = checkpoint.tensors["model.layers.0.attention.wqkv.weight"].numpy().reshape(2, 4, 4, 16)
    gguf = hf.to_gguf(checkpoint)

    def permuted(x: Any, heads: int) -> Any:
        return x.reshape(heads, 2, 2, 16).swapaxes(1, 2).reshape(-1, 16)

    assert np.array_equal(gguf.tensors["blk.0.attn_q.weight"].numpy(), permuted(wqkv[:, :2].reshape(-1, 16), 4))
    assert np.array_equal(gguf.tensors["blk.0.attn_k.weight"].numpy(), permuted(wqkv[:, 2].reshape(-1, 16), 2))
    assert np.array_equal(gguf.tensors["blk.0.attn_v.weight"].numpy(), wqkv[:, 3].reshape(-1, 16))


def test_gpt_oss_blocks_decode_to_the_same_values() -> None:
    """Decoding ggml's MXFP4 gives what the microscaling format defines: FP4 (E2M1) times a power of two."""
    checkpoint = model(GPT_OSS)
    scales = checkpoint.tensors["model.layers.0.mlp.experts.down_proj_scales"].numpy() % 20 + 120
    checkpoint.add(Tensor.from_array("model.layers.0.mlp.experts.down_proj_scales", scales.astype(np.uint8)))
    blocks = checkpoint.tensors["model.layers.0.mlp.experts.down_proj_blocks"].numpy()
    fp4 = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = np.stack([fp4[blocks & 15], fp4[blocks >> 4]], -1).reshape(*scales.shape, 32)
    expected = (values * 2.0 ** (scales.astype(np.float32) - 127)[..., None]).reshape(3, 64, 32)
    assert np.array_equal(hf.to_gguf(checkpoint).tensors["blk.0.ffn_down_exps.weight"].numpy(), expected)


def test_derived_buffers_are_dropped_and_noted() -> None:
    checkpoint = model(GPT2, kind="F32")
    for i in range(2):
        checkpoint.add(Tensor.from_array(f"transformer.h.{i}.attn.bias", np.ones((1, 1, 32, 32), np.bool_)))
    gguf = hf.to_gguf(checkpoint)
    assert any("computed from the configuration: transformer.h.0.attn.bias (and 1 more)" in n for n in gguf.notes)


def test_quantized_weights_come_back_in_their_old_type() -> None:
    wide = LLAMA | {"hidden_size": 64, "intermediate_size": 64}
    gguf = hf.to_gguf(model(wide))
    name = "blk.0.ffn_up.weight"
    gguf.tensors[name] = gguf.tensors[name].astype(by_name("Q8_0"))
    back = hf.from_gguf(gguf)
    assert back.tensors["model.layers.0.mlp.up_proj.weight"].type is by_name("BF16")
    assert "1 tensors decoded from Q8_0 are rounded to BF16" in back.notes


def test_quantized_q_and_k_are_unpermuted() -> None:
    wide = LLAMA | {"hidden_size": 64, "intermediate_size": 64}
    checkpoint = model(wide, kind="F32")
    q8 = by_name("Q8_0")
    direct = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].astype(q8).numpy()
    gguf = hf.to_gguf(checkpoint)
    gguf.tensors["blk.0.attn_q.weight"] = gguf.tensors["blk.0.attn_q.weight"].astype(q8)
    assert np.array_equal(hf.from_gguf(gguf).tensors["model.layers.0.self_attn.q_proj.weight"].numpy(), direct)


# ----------------------------------------------------------------------------------------------------- stories260K


def test_stories_are_the_reference_s(shared: Path) -> None:
    folder = shared / "stories260K"
    ours, theirs = hf.to_gguf(formats.open(folder / "hf")), formats.open(folder / "stories260K-f32.gguf")
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape and ours.tensors[name].type is tensor.type
        assert ours.tensors[name].blocks().tobytes() == tensor.blocks().tobytes(), name
    for key, value in theirs.metadata.items():
        if key.startswith("llama."):
            assert ours.metadata.get(key, value) == value, key


def test_stories_come_back_from_somebody_else_s_gguf(shared: Path) -> None:
    folder = shared / "stories260K"
    original, back = formats.open(folder / "hf"), hf.from_gguf(formats.open(folder / "stories260K-f32.gguf"))
    assert sorted(original.tensors) == sorted(back.tensors)
    assert all(t.blocks().tobytes() == back.tensors[n].blocks().tobytes() for n, t in original.tensors.items())
    config, rebuilt = (
        json.loads((folder / "hf" / "config.json").read_text()),
        json.loads(back.file("config.json") or b""),
    )
    for key in (
        "hidden_size",
        "num_key_value_heads",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    ):
        assert rebuilt[key] == config[key]


# ------------------------------------------------------------------------------------------------------- bad input


def without(name: str) -> Callable[[Checkpoint], None]:
    return lambda c: c.tensors.pop(name) and None


def config_with(**changes: Any) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint.files["config.json"] = json.dumps(LLAMA | changes).encode()

    return change


def with_extra(checkpoint: Checkpoint) -> None:
    checkpoint.add(Tensor.from_array("model.layers.0.extra.weight", np.zeros((2, 2), np.float32)))


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LLAMA | {"rope_scaling": _LLAMA3 | {"low_freq_factor": 0}}, "rope.low_freq_factor is 0"),
        (LLAMA | {"rope_scaling": _LLAMA3 | {"factor": "x"}}, "rope.factor is 'x'"),
        (LLAMA | {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": None}}, "embeddings is None"),
        (LLAMA | {"rope_parameters": {"full_attention": {}, "sliding_attention": 5}}, "sliding_attention is 5"),
        (GPT2 | {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "attn_config": 5}, "attn_config is 5"),
        (GPT2 | {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "expansion_ratio": []}, "_ratio is []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_of_no_use_is_named(config: dict[str, Any], named: str) -> None:
    arch = archs.by_hf(config)
    assert arch is not None
    checkpoint = Checkpoint(dialect="hf", files={"config.json": json.dumps(config).encode()})
    with pytest.raises(BadFile, match=re.escape(named)):
        hf.to_gguf(checkpoint)


ODD: tuple[Any, ...] = (None, "x", -1, 0, 1.5, 2**40, [], [1], ["a"], {"a": 1}, True, float("nan"))
MUTATED = {"llama": LLAMA | {"rope_scaling": _LLAMA3}, "gpt-oss": GPT_OSS, "qwen3-moe": QWEN3_MOE, "gpt2": GPT2}
MUTATED |= {"baichuan": BAICHUAN, "gemma3": GEMMA3}


_INSIDE = {"prefix": "language_model.model."}


@pytest.mark.parametrize("name", MUTATED)
def test_no_setting_breaks_the_reader(name: str) -> None:
    """Every value of a config.json replaced by odd ones: a sentence, or a conversion."""
    good = model(MUTATED[name], **(_INSIDE if name == "gemma3" else {}))

    def attempt(config: dict[str, Any]) -> None:
        try:
            hf.to_gguf(dataclasses.replace(good, files={"config.json": json.dumps(config).encode()}))
        except LlmconvError as error:
            assert "\n" not in str(error)

    for key, value in MUTATED[name].items():
        for odd in ODD:
            attempt(MUTATED[name] | {key: odd})
            for inner in value if isinstance(value, dict) else ():
                attempt(MUTATED[name] | {key: value | {inner: odd}})


@pytest.mark.parametrize("name", MUTATED)
def test_no_key_breaks_the_reader(name: str) -> None:
    """The same with the keys of a GGUF, ours among them, for everything that reads them."""
    good = hf.to_gguf(
        model(MUTATED[name], prefix="language_model.model.") if name == "gemma3" else model(MUTATED[name])
    )
    bare = {k: v for k, v in good.metadata.items() if not k.startswith("llmconv.")}
    arrays = (np.array([1, 2], np.int32), np.array([], np.float32), np.float32("nan"), "{}", "[]")
    for metadata in (good.metadata, bare):
        for key in metadata:
            for odd in (*ODD, *arrays):
                changed = metadata | {key: odd}
                if odd is None:
                    del changed[key]
                for read in (check_gguf, hf.from_gguf, describe):
                    try:
                        read(dataclasses.replace(good, metadata=changed, tensors=dict(good.tensors)))
                    except LlmconvError as error:
                        assert "\n" not in str(error)


BAD: dict[str, tuple[Callable[[Checkpoint], None], str]] = {
    "missing tensor": (
        without("model.layers.1.mlp.up_proj.weight"),
        "model: tensor 'model.layers.1.mlp.up_proj.weight' is missing; a llama model of this config.json needs it; "
        'layout="plain" converts any tensors under their own names',
    ),
    "half of the layers": (
        config_with(num_hidden_layers=4),
        "model: tensor 'model.layers.2.input_layernorm.weight' is missing; a llama model of this config.json needs it; "
        'layout="plain" converts any tensors under their own names',
    ),
    "billions of layers": (
        config_with(num_hidden_layers=4_000_000_000),
        "model: tensor 'model.layers.2.input_layernorm.weight' is missing",
    ),
    "billions of experts": (
        config_with(num_local_experts=4_000_000_000, num_experts_per_tok=2),
        "model: tensor 'model.layers.0.block_sparse_moe.gate.weight' is missing",
    ),
    "contradicting shape": (
        config_with(intermediate_size=32),
        "model: tensor 'model.layers.0.mlp.gate_proj.weight' has shape [24, 16], expected [32, 16] by config.json",
    ),
    "other heads": (
        config_with(num_key_value_heads=1),
        "model: tensor 'model.layers.0.self_attn.k_proj.weight' has shape [8, 16], expected [4, 16] by config.json",
    ),
    "no heads": (
        config_with(num_attention_heads=0),
        "expected [0, 16] by config.json",
    ),
    "vocabulary of another size": (
        config_with(vocab_size=21),
        "model: tensor 'model.embed_tokens.weight' has shape [20, 16], expected [21, 16] by config.json",
    ),
    "extra tensor": (
        with_extra,
        "'model.layers.0.extra.weight' is none that a llama model has; strict=False leaves such tensors out",
    ),
    "negative number": (
        config_with(num_hidden_layers=-1),
        "model: config.json: num_hidden_layers is -1, expected a whole number from 0 to 4294967295",
    ),
    "text for a number": (
        config_with(rms_norm_eps="small"),
        "model: config.json: rms_norm_eps is 'small', expected a number",
    ),
    "rope without a factor": (
        config_with(rope_scaling={"type": "linear"}),
        "model: config.json: rope type 'linear' lacks 'factor'",
    ),
    "broken config": (
        lambda c: c.files.update({"config.json": b"[1, 2"}),
        "model: config.json is not a JSON object; repair or replace it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_in_one_sentence(name: str) -> None:
    spoil, message = BAD[name]
    checkpoint = model(LLAMA)
    spoil(checkpoint)
    with pytest.raises(BadFile) as error:
        hf.to_gguf(checkpoint)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_rope_type() -> None:
    checkpoint = model(LLAMA)
    config_with(rope_scaling={"type": "spiral", "factor": 2})(checkpoint)
    with pytest.raises(
        Unsupported, match="unknown rope type 'spiral'; known: default, linear, dynamic, yarn, llama3, longrope"
    ):
        hf.to_gguf(checkpoint)


def test_unknown_architectures_keep_their_names() -> None:
    checkpoint = Checkpoint(dialect="hf", files={"config.json": b'{"architectures": ["MysteryForCausalLM"]}'})
    checkpoint.add(Tensor.from_array("a.b", np.arange(12, dtype=np.float16).reshape(3, 4)))
    gguf = hf.to_gguf(checkpoint)
    assert list(gguf.tensors) == ["a.b"] and gguf.metadata["llmconv.layout"] == "plain"
    assert any("MysteryForCausalLM is no architecture known here" in note for note in gguf.notes)
    back = hf.from_gguf(gguf)
    assert back.tensors["a.b"].blocks().tobytes() == checkpoint.tensors["a.b"].blocks().tobytes()


def test_not_strict_leaves_extra_tensors_out() -> None:
    checkpoint = model(LLAMA)
    with_extra(checkpoint)
    gguf = hf.to_gguf(checkpoint, strict=False)
    assert "left out, unknown to llama: model.layers.0.extra.weight" in gguf.notes
    gguf.add(Tensor.from_array("blk.0.strange.weight", np.zeros((2, 2), np.float32)))
    with pytest.raises(BadFile, match=r"'blk.0.strange.weight' is none that a llama model has"):
        hf.from_gguf(gguf)
    assert "left out, unknown to llama: blk.0.strange.weight" in hf.from_gguf(gguf, strict=False).notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g.tensors.pop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' is missing; a llama model"),
        (
            lambda g: g.metadata.update({"llama.feed_forward_length": np.uint32(25)}),
            r"'blk.0.ffn_gate.weight' has shape \[24, 16\], expected \[25, 16\]",
        ),
        (lambda g: g.metadata.update({own_keys.PREFIX: "../"}), "llmconv.hf.prefix is '../', expected one of 'model.'"),
        (lambda g: g.metadata.update({own_keys.FORMS: '{"blk.{i}.attn_q.weight":9}'}), "llmconv.hf.forms says 9"),
        (lambda g: g.metadata.update({"llama.block_count": np.uint32(2**31)}), "'blk.2.attn_norm.weight' is missing"),
    ],
)
def test_bad_ggufs_are_refused_in_one_sentence(spoil: Callable[[Checkpoint], Any], message: str) -> None:
    gguf = hf.to_gguf(model(LLAMA))
    spoil(gguf)
    with pytest.raises(BadFile, match=message):
        hf.from_gguf(gguf)


def test_side_files_come_back_but_never_leave_the_folder() -> None:
    checkpoint = model(LLAMA)
    checkpoint.files |= {
        "generation_config.json": b'{"top_p": 0.9}',
        "README.md": b"# hi\n",
        "weights.dat": b"\xff\xfe",
    }
    gguf = hf.to_gguf(checkpoint)
    assert any("weights.dat is not kept" in note for note in gguf.notes)
    gguf.metadata[own_keys.FILE + "../evil"] = "x"
    gguf.metadata[own_keys.FILE + "/etc/evil"] = "x"
    files = hf.from_gguf(gguf).files
    assert files["generation_config.json"] == b'{"top_p": 0.9}' and files["README.md"] == b"# hi\n"
    assert set(files) == {"config.json", "generation_config.json", "README.md"}
