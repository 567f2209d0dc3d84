"""Mixes against llama.cpp's own choice on models that never existed: every file type, random shapes and options.

Calls `llama_quant_compute_types` (src/llama-ext.h), which has C++ linkage; skips where its symbol has another name.
"""

from __future__ import annotations

import ctypes
import random
import re
from dataclasses import dataclass
from typing import Any

import llama_quantize as reference
import pytest

from llmconv.errors import Unsupported
from llmconv.quant import by_ggml_id, by_name
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import FILE_TYPES
from llmconv.quant.recipe import Model, Options, assign, order, tensor_type_rules

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not reference.available(), reason=reference.MISSING),
]

_MODEL = "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc"
_INIT = "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params"
_FREE = "_Z16llama_quant_freeP19quantize_state_impl"
_TYPES = "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem"
ARCHS = ["llama", "qwen2", "falcon", "gpt-oss", "deepseek2", "bailingmoe3", "gemma3", "qwen3moe", "phi3", "glm5-next"]


class Description(ctypes.Structure):
    _fields_ = [("architecture", ctypes.c_char_p)] + [
        (n, ctypes.c_uint32)
        for n in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "n_embd_head_k", "n_embd_head_v")
    ]


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@dataclass
class Named:
    name: str
    shape: tuple[int, ...]
    type: type[BlockType]


def functions() -> tuple[Any, Any]:
    lc = reference.library()
    llama = lc.llama_cpp._lib
    base = ctypes.CDLL(str(__import__("ggml").find()))
    try:
        for name, result, arguments in (
            (_MODEL, ctypes.c_void_p, [ctypes.POINTER(Description)]),
            (_INIT, ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
            (_FREE, None, [ctypes.c_void_p]),
            (_TYPES, None, [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
        ):
            found = getattr(llama, name)
            found.restype, found.argtypes = result, arguments
    except AttributeError:
        pytest.skip("this build of llama.cpp does not export its choice of types")
    base.ggml_init.restype, base.ggml_init.argtypes = ctypes.c_void_p, [InitParams]
    base.ggml_tensor_overhead.restype = ctypes.c_size_t
    base.ggml_free.argtypes = [ctypes.c_void_p]
    base.ggml_new_tensor_4d.restype = ctypes.c_void_p
    base.ggml_new_tensor_4d.argtypes = [ctypes.c_void_p, ctypes.c_int] + [ctypes.c_int64] * 4
    base.ggml_set_name.restype, base.ggml_set_name.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    return llama, base


def random_model(rng: random.Random) -> tuple[Model, list[Named]]:
    arch = rng.choice(ARCHS)
    layers = rng.choice([1, 3, 8, 17, 32, 80])
    heads = rng.choice([8, 16, 64])
    model = Model(arch, layers, heads, heads // rng.choice([1, 2, 4, 8]), rng.choice([0, 0, 4, 8, 16]))
    row = rng.choice([256, 512, 512, 256 + 64, 96, 100])
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, row), "output_norm.weight": (row,)}
    if rng.random() < 0.6:
        shapes["output.weight"] = (64, row)
    if rng.random() < 0.2:
        shapes["per_layer_token_embd.weight"] = (64, row)
    stack = (model.n_expert,) if model.n_expert else ()
    end = "_exps" if stack else ""
    fused = rng.random() < 0.3
    for i in range(layers):
        names: dict[str, tuple[int, ...]] = {
            "attn_output": (row, row),
            "ffn_gate_inp": (8, row),
            "attn_k_b": (4, 512, 128),
            "attn_q_a": (64, row),
            "ssm_conv1d": (row, 4),
            "nextn.eh_proj": (64, row),
            f"ffn_up{end}": (*stack, 512, row),
            f"ffn_gate{end}": (*stack, 512, row),
            f"ffn_down{end}": (*stack, row, 512),
            "ffn_down_shexp": (row, 512),
            "odd.one": (1, row),
        }
        names |= {"attn_qkv": (3 * row, row)} if fused else {f"attn_{c}": (row, row) for c in "qkv"}
        for name in rng.sample(sorted(names), len(names) - rng.randrange(4)):
            shapes[f"blk.{i}.{name}.weight"] = names[name]
    return model, [Named(name, shapes[name], by_name("F32")) for name in order(shapes)]


@pytest.mark.parametrize("seed", range(40))
def test_same_types(seed: int) -> None:
    llama, base = functions()
    rng = random.Random(seed)
    model, tensors = random_model(rng)
    description = Description(model.arch.encode(), 512, 512, model.n_layer, model.n_head, model.n_head_kv)
    description.n_expert, description.n_embd_head_k, description.n_embd_head_v = model.n_expert, 64, 64
    theirs = getattr(llama, _MODEL)(ctypes.byref(description))
    lc = reference.library()
    params = lc.llama_model_quantize_default_params()
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["pure"] = params.pure = True
    if rng.random() < 0.3:
        options["leave_output"], params.quantize_output_tensor = True, False
    if rng.random() < 0.3:
        options["output_type"], params.output_tensor_type = by_name("F16"), 1
    if rng.random() < 0.3:
        options["embedding_type"], params.token_embedding_type = by_name("F16"), 1
    rules = rng.sample(["attn_v=F16", r"blk\.[0-3]\.ffn_down=BF16", "per_layer=F32", "k_b=Q4_0"], rng.randrange(3))
    # Ours refuses a rule that matches nothing, the reference passes over it.
    rules = [rule for rule in rules if any(re.search(rule.split("=")[0], tensor.name) for tensor in tensors)]
    options["tensor_types"] = tensor_type_rules(rules)
    array = reference.tensor_rules(rules)
    params.tt_overrides = array
    state = getattr(llama, _INIT)(theirs, ctypes.byref(params))
    context = base.ggml_init(InitParams(len(tensors) * base.ggml_tensor_overhead() + 1024, None, True))
    pointers = (ctypes.c_void_p * len(tensors))()
    for i, tensor in enumerate(tensors):
        ne = [*tensor.shape[::-1], 1, 1, 1][:4]
        pointers[i] = base.ggml_new_tensor_4d(context, 0, *ne)
        base.ggml_set_name(pointers[i], tensor.name.encode())
    chosen = (ctypes.c_int * len(tensors))()
    for file in FILE_TYPES.values():
        try:
            ours = assign(tensors, model, file, Options(**options))
        except Unsupported:
            continue  # no fallback: the reference throws, which ctypes does not survive
        getattr(llama, _TYPES)(state, file.number, pointers, chosen, len(tensors))
        expected = {t.name: by_ggml_id(n) for t, n in zip(tensors, chosen, strict=True)}
        wrong = [(c.name, c.type.name, expected[c.name]) for c in ours if c.type is not expected[c.name]]
        assert not wrong, (file.name, model, wrong[:5])
    getattr(llama, _FREE)(state)
    base.ggml_free(context)
