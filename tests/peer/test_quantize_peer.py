"""Whole files, byte for byte: ours against llama-quantize's on the same GGUF and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_models
import llama_quantize as reference
import pytest
import synthetic

from llmconv.convert.dialects import hf
from llmconv.convert.quantizing.quantize import quantize
from llmconv.formats.gguf import gguf_file
from llmconv.quant import by_name
from llmconv.quant.filetypes import FILE_TYPES

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not reference.available(), reason=reference.MISSING),
]

# Without importance weights for the head or the embeddings these can't be made, ours and the reference's alike.
NEEDS_IMPORTANCE = [n for n in FILE_TYPES if "needs an importance" in FILE_TYPES[n].note]
ENCODABLE = [n for n, t in FILE_TYPES.items() if by_name(t.default).can_encode()]
PLAIN = [n for n in ENCODABLE if n not in NEEDS_IMPORTANCE]

_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
}
_SCAN = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 96, "state_size": 16}
_DELTA = _SIZES | {
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
}
WIDE: dict[str, dict[str, Any]] = {
    "mamba": _SCAN | {"architectures": ["MambaForCausalLM"]},
    "mamba2": _SCAN | {"architectures": ["Mamba2ForCausalLM"], "head_dim": 64, "n_groups": 2},
    "qwen3.5": _DELTA | {"architectures": ["Qwen3_5ForCausalLM"]},
    "qwen3-next": _DELTA | _MOE | {"architectures": ["Qwen3NextForCausalLM"]},
    "jamba": _SIZES
    | {
        "architectures": ["JambaForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 4,
        "attn_layer_offset": 1,
    },
    "nemotron-h": _SIZES
    | {
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": "M*-M",
        "mamba_num_heads": 8,
        "mamba_head_dim": 64,
        "ssm_state_size": 16,
        "n_groups": 2,
        "head_dim": 64,
    },
    "kimi-linear": _SIZES
    | {
        "architectures": ["KimiLinearForCausalLM"],
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 256,
        "routed_scaling_factor": 2.0,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "linear_attn_config": {"full_attn_layers": [2], "short_conv_kernel_size": 4, "head_dim": 64, "num_heads": 4},
    },
}
"""Models with rows of whole blocks: what their scans are stored as when quantized."""


def assert_same(tmp_path: Path, src: Path, type: str, **options: Any) -> None:
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    pairs = options.pop("overrides", ())
    assert reference.quantize(src, theirs, type, override_kv=pairs, **options)
    kinds = {bool: "bool", str: "str", float: "float", int: "int"}
    texts = [f"{k}={next(n for t, n in kinds.items() if isinstance(v, t))}:{str(v).lower()}" for k, v in pairs]
    quantize(src, ours, type, override_kv=texts, force=True, **options)
    a, b = theirs.read_bytes(), ours.read_bytes()
    if a != b:
        one, two = gguf_file.open(theirs), gguf_file.open(ours)
        assert {n: t.type.name for n, t in one.tensors.items()} == {n: t.type.name for n, t in two.tensors.items()}
        assert list(one.metadata) == list(two.metadata)
        wrong = [n for n, t in one.tensors.items() if (t.blocks() != two.tensors[n].blocks()).any()]
        raise AssertionError(f"{type}: {len(a)} and {len(b)} bytes; tensors that differ: {wrong}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    moe = {"n_layer": 3, "n_expert": 4, "n_ff": 256}
    return {
        "F16": synthetic.write(folder / "f16.gguf", "F16", n_layer=9),
        "BF16": synthetic.write(folder / "bf16.gguf", "BF16", seed=1, tied=True),
        "F32": synthetic.write(folder / "f32.gguf", "F32", seed=2),
        "odd rows": synthetic.write(folder / "odd.gguf", "F16", seed=3, n_embd=192, n_ff=352, n_kv=64),
        "experts": synthetic.write(folder / "moe.gguf", "F16", seed=4, **moe),
        "importance": synthetic.write_importance(folder / "f16.imatrix.gguf", n_layer=9),
        "experts' importance": synthetic.write_importance(folder / "moe.imatrix.gguf", seed=5, **moe),
    }


@pytest.mark.parametrize("source", ["F16", "BF16", "F32", "odd rows", "experts"])
@pytest.mark.parametrize("type", PLAIN)
def test_same_file(models: dict[str, Path], tmp_path: Path, type: str, source: str) -> None:
    if type == "Q1_0" and source == "odd rows":
        pytest.skip("neither has a type to fall back to")
    assert_same(tmp_path, models[source], type)


@pytest.mark.parametrize("type", ["Q4_K_M", "Q2_K", "Q4_0", "Q8_0", "IQ4_XS"])
@pytest.mark.parametrize("name", WIDE)
def test_same_file_of_scans(tmp_path: Path, name: str, type: str) -> None:
    """Which of a scan's tensors stay as they are, and what the others become."""
    made = hf.to_gguf(hf_models.model(WIDE[name], kind="F16"))
    gguf_file.save(made, tmp_path / "m.gguf")
    assert_same(tmp_path, tmp_path / "m.gguf", type)


@pytest.mark.parametrize("type", ENCODABLE)
def test_same_file_with_importance(models: dict[str, Path], tmp_path: Path, type: str) -> None:
    assert_same(tmp_path, models["F16"], type, imatrix=models["importance"])


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q2_K_S", "IQ3_S", "Q4_0"])
def test_same_file_with_importance_by_expert(models: dict[str, Path], tmp_path: Path, type: str) -> None:
    assert_same(tmp_path, models["experts"], type, imatrix=models["experts' importance"])


@pytest.mark.parametrize("type", ["Q4_K_M", "Q8_0", "IQ4_NL", "F16", "BF16"])
def test_same_stories(shared: Path, tmp_path: Path, type: str) -> None:
    assert_same(tmp_path, shared / "stories260K" / "stories260K-f32.gguf", type)


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"tensor_types": ["attn_v=Q8_0", r"blk\.[02]\.FFN_down=q6_k"]},
        {"output_tensor_type": "Q8_0", "token_embedding_type": "Q5_0"},
        {"leave_output_tensor": True},
        {"prune_layers": [1, 4, 5]},
        {"prune_layers": [0], "imatrix": True},
        {"imatrix": True, "include_weights": ["attn_k", "ffn_up"]},
        {"imatrix": True, "exclude_weights": ["blk.1", "ffn"]},
        {"keep_split": False, "overrides": [("general.name", "new"), ("x.i", -5), ("x.f", 0.1), ("x.b", True)]},
        {"overrides": [("general.file_type", 99), ("llama.rope.freq_base", 5e5)]},
    ],
)
def test_same_file_with_options(models: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("imatrix"):
        options = options | {"imatrix": models["importance"]}
    assert_same(tmp_path, models["F16"], "Q4_K_M", **options)


def test_same_file_from_quantized(models: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "q8.gguf"
    quantize(models["F16"], source, "Q8_0")
    assert_same(tmp_path, source, "Q4_K_M", allow_requantize=True)
    assert_same(tmp_path, source, "COPY")
    assert not reference.quantize(source, tmp_path / "x.gguf", "Q4_K_M")


def test_same_files_of_a_split_model(models: dict[str, Path], tmp_path: Path) -> None:
    parts = gguf_file.save(gguf_file.open(models["F16"]), tmp_path / "s.gguf", split_max_tensors=20)
    assert len(parts) > 2
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    assert reference.quantize(parts[0], theirs / "m", "Q4_K_M", keep_split=True)
    made = quantize(parts[0], ours / "m.gguf", "Q4_K_M", keep_split=True)
    names = sorted(p.name for p in theirs.iterdir())
    assert [p.name for p in made.output.paths] == names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert_same(tmp_path, parts[0], "Q4_K_M")
