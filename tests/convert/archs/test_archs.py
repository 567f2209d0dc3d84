"""The architectures' tables: sound, found by every name, named as the ecosystem does, counted as published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv.convert import archs
from llmconv.convert.tables import scores
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import normalized


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_table_is_sound(arch: Architecture) -> None:
    names = [(r.gguf, r.when) for r in arch.rows]
    stages = {n for r in arch.rows for f in r.forms[-8:] for n in f.patterns if re.match(r"mtp\.\d\.", n)}  # of drafts
    assert len(set(names)) == len(names)
    for table_row in arch.rows:
        assert len(table_row.shapes) == len(table_row.gguf)
        for form in table_row.forms:
            marks = ("mtp.", "{i}", "{j}")
            of_layers = (n not in stages and any(mark in n for mark in marks) for n in form.patterns)
            assert all(found == table_row.per_layer for found in of_layers), table_row.gguf
    assert len({k.gguf for k in arch.keys}) == len(arch.keys)
    assert all(re.compile(pattern) for pattern in (*arch.dropped, *arch.kept))


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_found_by_every_name(arch: Architecture) -> None:
    assert archs.by_gguf(arch.gguf) is arch
    for name in arch.hf if arch.fits({}) else ():  # others share their names with a table that does
        inside = {"text_config": {"model_type": name.model_type}} if name.around else {}
        assert archs.by_hf({"architectures": [name.cls], "model_type": "?"} | inside) is arch
        found = archs.by_hf({"model_type": name.model_type})
        assert found is arch or (
            found is not None and found.gguf in ("gemma3", "t5", "bert")
        )  # whose types have encoders too
    assert archs.by_hf({"architectures": "LlamaForCausalLM"}) is None


@pytest.mark.parametrize("arch", archs.all(), ids=lambda a: a.gguf)
def test_a_name_loads_few_files(arch: Architecture) -> None:
    """By each of its names a table is found among few others: without loading all."""
    for name in {arch.gguf, *(n for known in arch.hf for n in (known.cls, known.model_type))}:
        found = list(archs._own(name))
        assert arch in found or name == ""
        assert len(found) < 16, f"{name!r} is mentioned by many files"


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
    rows = [r for r in arch.rows if r is not scores.SCORE]  # of any family: llama.cpp's constants have it in Qwen3's
    ours = {re.sub(r"\.(weight|bias|scales?|lora_[ab])$", "", n) for r in rows for n in r.gguf} | {
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
        "eurobert": {"cls", "cls.output"},  # of its classifier
        "openelm": {"output"},
        "bitnet": {"output"},
        "mimo2": {n for n in ours if ".nextn." in n or n.endswith("layer_output_norm")},
        "lfm2moe": {"output"},  # an untied head, which llama.cpp loads all the same
        "rnd1": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "bailingmoe": {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
        "step35": {n for n in ours if ".nextn." in n},
        "deepseek2": {n for n in ours if ".nextn." in n},  # which its loader knows, and older constants don't
        "exaone4": {n for n in ours if ".nextn." in n},
        "nemotron_h_moe": {n for n in ours if ".nextn." in n or n.endswith("post_attention_norm")},
        "qwen35": {n for n in ours if ".nextn." in n},
        "qwen35moe": {n for n in ours if ".nextn." in n},
        "qwen3next": {n for n in ours if ".nextn." in n} | {"blk.{i}.ffn_gate", "blk.{i}.ffn_up", "blk.{i}.ffn_down"},
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
    there = (slot for slot in arch.slots(arch.dims_of(metadata)) if arch.expected(slot.row, config))
    assert sum(int(np.prod(shape, dtype=np.int64)) for slot in there for shape in slot.shapes) == expected
