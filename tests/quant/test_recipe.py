"""Mixes: the reference's choices for real models, and each option."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmconv.errors import Unsupported, UsageError
from llmconv.quant import by_name
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import ALIASES, COPY, FILE_TYPES, file_type
from llmconv.quant.recipe import Model, Options, assign, order, tensor_type_rules


@dataclass
class Named:
    name: str
    shape: tuple[int, ...]
    type: type[BlockType]


def weights(shapes: dict[str, tuple[int, ...]], kind: str = "F32") -> list[Named]:
    return [Named(name, shapes[name], by_name(kind)) for name in order(shapes)]


def blocks(n: int, shapes: dict[str, tuple[int, ...]], start: int = 0) -> dict[str, tuple[int, ...]]:
    return {f"blk.{i}.{name}.weight": shape for i in range(start, n) for name, shape in shapes.items()}


def dense(h: dict[str, int], head: int, vocab: int) -> dict[str, tuple[int, ...]]:
    embd, ff = h["n_embd"], h["n_ff"]
    q, kv = h["n_head"] * head, h["n_head_kv"] * head
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (embd,),
        "attn_q": (q, embd),
        "attn_k": (kv, embd),
        "attn_v": (kv, embd),
        "attn_output": (embd, q),
        "ffn_norm": (embd,),
        "ffn_gate": (ff, embd),
        "ffn_up": (ff, embd),
        "ffn_down": (embd, ff),
    }
    top: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, embd), "output.weight": (vocab, embd)}
    return top | {"output_norm.weight": (embd,), "rope_freqs.weight": (head // 2,)} | blocks(h["n_layer"], layer)


def experts(h: dict[str, int], ff: int) -> dict[str, tuple[int, ...]]:
    n, embd = h["n_expert"], h["n_embd"]
    return {
        "ffn_gate_inp": (n, embd),
        "ffn_gate_exps": (n, ff, embd),
        "ffn_up_exps": (n, ff, embd),
        "ffn_down_exps": (n, embd, ff),
    }


def gpt_oss(h: dict[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = {k: v for k, v in dense(h, 64, 201088).items() if not re.search(r"ffn_(gate|up|down)\.", k)}
    sinks = {f"blk.{i}.attn_sinks.weight": (h["n_head"],) for i in range(h["n_layer"])}
    return shapes | blocks(h["n_layer"], experts(h, h["n_ff"])) | sinks


def deepseek(h: dict[str, int]) -> dict[str, tuple[int, ...]]:
    embd, ff, heads, moe = h["n_embd"], h["n_ff"], h["n_head"], 2048
    attention: dict[str, tuple[int, ...]] = {
        "attn_q_a": (1536, embd),
        "attn_q_a_norm": (1536,),
        "attn_q_b": (heads * 192, 1536),
        "attn_kv_a_mqa": (576, embd),
        "attn_kv_a_norm": (512,),
        "attn_k_b": (heads, 512, 128),
        "attn_v_b": (heads, 128, 512),
        "attn_output": (embd, heads * 128),
    }
    plain: dict[str, tuple[int, ...]] = {"ffn_gate": (ff, embd), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
    shared: dict[str, tuple[int, ...]] = {
        "ffn_gate_shexp": (moe, embd),
        "ffn_up_shexp": (moe, embd),
        "ffn_down_shexp": (embd, moe),
    }
    top: dict[str, tuple[int, ...]] = {"token_embd.weight": (129280, embd), "output.weight": (129280, embd)}
    n = h["n_layer"]
    return top | blocks(n, attention) | blocks(3, plain) | blocks(n, experts(h, moe) | shared, 3)


MODELS: dict[str, tuple[str, Any]] = {
    "meta-llama-3.1-70b-instruct": ("llama", lambda h: dense(h, 128, 128256)),
    "qwen3-0.6b": ("qwen3", lambda h: dense(h, 128, 151936)),
    "gpt-oss-120b": ("gpt-oss", gpt_oss),
    "deepseek-v3.1": ("deepseek2", deepseek),
}


def read_schema(path: Path) -> tuple[dict[str, int], dict[str, tuple[str, dict[str, str]]]]:
    text = path.read_text()
    h = {k: int(v) for k, v in re.findall(r"(n_\w+)=(\d+)", text)}
    sections: dict[str, tuple[str, dict[str, str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            name, default = line[1:].split("] ")
            sections[name] = (default.upper(), {})
        elif line and not line.startswith("#"):
            tensor, kind = line.rsplit(" ", 1)
            sections[name][1][tensor] = kind.upper()
    return h, sections


@pytest.mark.parametrize("model", MODELS)
def test_real_models_get_the_references_types(shared: Path, model: str) -> None:
    arch, build = MODELS[model]
    h, sections = read_schema(shared / "recipes" / f"{model}.schema")
    tensors = weights(build(h))
    described = Model(arch, h["n_layer"], h["n_head"], h["n_head_kv"], h.get("n_expert", 0))
    assert len(sections) == 33
    for name, (default, exceptions) in sections.items():
        chosen = {c.name: c.type.name for c in assign(tensors, described, file_type(name)) if c.quantizable}
        assert chosen == dict.fromkeys(chosen, default) | exceptions, name
        assert file_type(name).default == default


SMALL = {"n_embd": 256, "n_ff": 512, "n_head": 4, "n_head_kv": 2, "n_layer": 8}
LLAMA = Model("llama", 8, 4, 2)


def chosen_types(file: str, options: Options | None = None, model: Model = LLAMA, **change: Any) -> dict[str, str]:
    shapes = dense(SMALL, 64, 1000) | change.pop("extra", {})
    for name in change.pop("without", ()):
        del shapes[name]
    chosen = assign(weights(shapes), model, file_type(file, bool(options and options.pure)), options)
    return {c.name: c.type.name for c in chosen}


def test_every_file_type_gives_every_tensor_a_known_type() -> None:
    for name in FILE_TYPES:
        for imatrix in (False, True):
            chosen = chosen_types(name, Options(importance=imatrix))
            assert chosen["blk.0.attn_norm.weight"] == chosen["output_norm.weight"] == "F32"
            assert {by_name(t).name for t in chosen.values()} == set(chosen.values())


def test_file_types_by_alias_number_and_wrong_name() -> None:
    with pytest.raises(UsageError, match="unknown file type 'nonsense'; known: F32, "):
        file_type("nonsense")
    assert file_type("q4_k") is FILE_TYPES["Q4_K_M"] and file_type("15") is FILE_TYPES["Q4_K_M"]
    assert all(ALIASES[a] in FILE_TYPES for a in ALIASES)
    numbers = [t.number for t in FILE_TYPES.values()]
    assert len(set(numbers)) == len(numbers)
    with pytest.raises(UsageError, match=r"unknown file type 'Q4_K_X'; did you mean .*Q4_K_M"):
        file_type("Q4_K_X")
    with pytest.raises(UsageError, match="pure=True takes the block type MXFP4"):
        file_type("MXFP4")
    with pytest.raises(UsageError, match="unknown file type 'I32'"):
        file_type("I32", pure=True)


def test_pure_takes_any_block_type_and_no_rules() -> None:
    for name in ("Q4_K", "MXFP4", "NVFP4", "Q6_K", "F64"):
        chosen = chosen_types(name, Options(pure=True))
        assert {v for k, v in chosen.items() if not k.endswith("norm.weight") and k != "rope_freqs.weight"} == {name}


def test_tied_embeddings_follow_the_output_rule() -> None:
    assert chosen_types("Q4_K_M")["token_embd.weight"] == "Q4_K"
    assert chosen_types("Q4_K_M", without=["output.weight"])["token_embd.weight"] == "Q6_K"
    q8 = by_name("Q8_0")
    assert chosen_types("Q4_K_M", Options(output_type=q8), without=["output.weight"])["token_embd.weight"] == "Q8_0"
    assert chosen_types("Q4_K_M", Options(output_type=q8))["output.weight"] == "Q8_0"
    assert chosen_types("Q4_K_M", Options(embedding_type=q8))["token_embd.weight"] == "Q8_0"
    assert chosen_types("Q4_K_M", Options(leave_output=True))["output.weight"] == "F32"


def test_manual_types_win_and_stop_the_count() -> None:
    rules = tensor_type_rules([r"blk\.0\.attn_v=q8_0", "ATTN_V=f16"])
    chosen = chosen_types("Q4_K_M", Options(tensor_types=rules))
    assert chosen["blk.0.attn_v.weight"] == "Q8_0" and chosen["blk.5.attn_v.weight"] == "F16"
    only = tensor_type_rules([r"blk\.[01]\.attn_v=q8_0"])
    plain, manual = chosen_types("Q4_K_M"), chosen_types("Q4_K_M", Options(tensor_types=only))
    assert plain["blk.2.attn_v.weight"] == "Q4_K" and manual["blk.2.attn_v.weight"] == "Q6_K"


@pytest.mark.parametrize("text", ["attn_v", "=Q8_0", "attn_v=", "attn_v=Q99", "(=Q8_0"])
def test_bad_manual_types_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        tensor_type_rules([text])


@pytest.mark.parametrize(
    ("file", "row", "expected"),
    [
        ("Q2_K", 288, "Q4_0"),
        ("Q3_K_M", 288, "Q4_0"),
        ("Q4_K_S", 288, "Q5_0"),
        ("Q5_K_S", 288, "Q5_1"),
        ("Q6_K", 288, "Q8_0"),
        ("IQ4_XS", 288, "IQ4_NL"),
        ("IQ3_S", 288, "IQ4_NL"),
        ("TQ1_0", 288, "Q4_0"),
        ("Q2_0", 96, "Q4_0"),
        ("Q4_K_S", 100, "F16"),
        ("Q8_0", 100, "F16"),
    ],
)
def test_rows_that_are_not_whole_blocks(file: str, row: int, expected: str) -> None:
    choice = assign([Named("blk.7.odd.weight", (4, row), by_name("F32"))], LLAMA, file_type(file))[0]
    assert choice.type.name == expected and choice.wanted.name == file_type(file).default


def test_no_stand_in_is_an_error() -> None:
    with pytest.raises(Unsupported, match="rows of 96, not a multiple of Q1_0's block of 128"):
        assign([Named("blk.0.odd.weight", (4, 96), by_name("F32"))], LLAMA, file_type("Q1_0"))


def test_what_stays_as_it_is() -> None:
    kept = {
        "blk.0.ffn_gate_inp.weight": (8, 256),
        "position_embd.weight": (64, 256),
        "blk.0.ssm_conv1d.weight": (256, 4),
        "blk.0.attn_q.bias": (2, 256),
        "blk.0.row.weight": (1, 256),
    }
    chosen = chosen_types("Q4_0", extra=kept)
    assert all(chosen[name] == "F32" for name in kept)
    integers = assign([Named("blk.0.ids.weight", (4, 256), by_name("I32"))], LLAMA, file_type("Q4_0"))
    assert integers[0].type.name == "I32"
    assert not any(c.quantizable for c in assign(weights(dense(SMALL, 64, 10)), LLAMA, COPY))


def test_a_model_of_no_known_architecture_is_quantized_whatever_its_names() -> None:
    own = [Named("layers[0].w", (4, 256), by_name("F32")), Named("layers[0].b", (256,), by_name("F32"))]
    metadata = {"general.architecture": "weird"}
    assert [c.type.name for c in assign(own, Model.of(metadata, plain=True), file_type("Q4_K_M"))] == ["Q4_K", "F32"]
    # Anybody's GGUF: the reference's rule.
    assert [c.type.name for c in assign(own, Model.of(metadata), file_type("Q4_K_M"))] == ["F32", "F32"]


def test_mixtral_and_falcon() -> None:
    eight = chosen_types("Q4_K_M", model=Model("llama", 8, 4, 2, 8))
    assert eight["blk.3.attn_v.weight"] == eight["blk.3.attn_k.weight"] == "Q8_0"
    assert eight["blk.3.attn_output.weight"] == "Q5_K"
    falcon = chosen_types("Q4_K_M", model=Model("falcon", 8, 4, 1))
    assert falcon["output.weight"] == "Q8_0" and falcon["blk.7.ffn_down.weight"] == "Q5_K"
    with pytest.raises(Unsupported, match="its layer is not one of the model's 2"):
        chosen_types("Q4_K_M", model=Model("llama", 2, 4, 2, 8))


def test_what_needs_importance() -> None:
    tensors = weights(dense(SMALL, 64, 1000))

    def needing(file: str) -> set[str]:
        return {c.name.split(".")[-2] for c in assign(tensors, LLAMA, file_type(file)) if c.needs_importance}

    assert "attn_q" in needing("Q2_K_S") and "output" not in needing("IQ1_S")
    assert needing("Q2_K") == needing("Q4_K_M") == set()


def test_order_is_by_layer_then_bytes() -> None:
    names = ["blk.10.a.weight", "output.weight", "blk.2.b.weight", "blk.2.a.weight", "token_embd.weight"]
    assert order(names) == [names[1], names[4], names[3], names[2], names[0]]


def test_hyper_parameters_from_metadata() -> None:
    arch = {"general.architecture": "llama", "llama.block_count": 80, "llama.attention.head_count": [64, 0]}
    model = Model.of(arch | {"llama.attention.head_count_kv": 8})
    assert model == Model("llama", 80, 64, 8, 0) and model.is_70b and model.n_gqa == 8
    assert Model.of(arch).n_gqa == 1 and Model("mamba", 4).n_gqa == 0
    with pytest.raises(Unsupported, match=r"general\.architecture"):
        Model.of({})
    with pytest.raises(Unsupported, match=r"llama\.block_count"):
        Model.of({"general.architecture": "llama", "llama.block_count": "many"})
