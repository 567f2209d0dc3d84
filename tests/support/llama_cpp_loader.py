"""The tensors that llama.cpp's loader of an architecture accepts but does not need, read out of its sources.

What is read is `create_tensor(tn(NAME, "part", i), {shape}, ... TENSOR_NOT_REQUIRED)` in the file of the architecture,
and in the helpers and the passes that all of them share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_CREATE = re.compile(
    r"create_tensor\(\s*tn\(\s*LLM_TENSOR_(\w+)\s*(?:,\s*\"(\w+)\"\s*)?(,\s*\w+\s*)?\)\s*,\s*\{([^{}]*)\}\s*,([^;]*?)\)\s*;"
)


_NOT_ALWAYS = ("TENSOR_NOT_REQUIRED", "skip", "kv_flags")
"""What marks tensors that some files lack."""


@cache
def _names(sources: Path) -> dict[str, str]:
    text = (sources / "src/llama-arch.cpp").read_text()
    return dict(re.findall(r"\{\s*LLM_TENSOR_(\w+)\s*,\s*\"([^\"]+)\"\s*\}", text))


@cache
def _file_of(sources: Path, arch: str) -> Path | None:
    text = (sources / "src/llama-arch.cpp").read_text()
    found = re.search(rf"\{{\s*LLM_ARCH_(\w+)\s*,\s*\"{re.escape(arch)}\"", text)
    if found is None:
        return None
    model = (sources / "src/llama-model.cpp").read_text()
    made = re.search(rf"case LLM_ARCH_{found[1]}:\s*(?:case \w+:\s*)*return new llama_model_(\w+)\(", model)
    if made is None:
        return None  # a name without a loader
    for path in sorted((sources / "src/models").glob("*.cpp")):
        if re.search(rf"llama_model_{made[1]}::load_arch_tensors\(", path.read_text()):
            return path
    header = (sources / "src/models/models.h").read_text()
    parent = re.search(rf"struct llama_model_{made[1]}\s*:\s*public llama_model_(\w+)", header)
    assert parent, made[1]
    return next(
        p
        for p in sorted((sources / "src/models").glob("*.cpp"))
        if re.search(rf"llama_model_{parent[1]}::load_arch_tensors\(", p.read_text())
    )


@cache
def keys_of(sources: Path, arch: str) -> frozenset[str]:
    """The keys, without the architecture's name, that the loader of an architecture asks for."""
    names = dict(re.findall(r"\{\s*(LLM_KV_\w+)\s*,\s*\"%s\.([^\"]+)\"", (sources / "src/llama-arch.cpp").read_text()))
    text = _body((sources / "src/llama-model.cpp").read_text(), "void llama_model_base::load_hparams(")
    path = _file_of(sources, arch)
    own = path.read_text() if path is not None else ""
    if "::load_arch_hparams(" in own:
        text += _body(own, "::load_arch_hparams(")
    if "load_swa_pattern" in text:
        text += "LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN"
    return frozenset(names[key] for key in re.findall(r"LLM_KV_\w+", text) if key in names)


def _created(text: str, sources: Path) -> Iterator[tuple[str, str, str]]:
    """(name with `{i}` for the layer, shape, flags) of every tensor that is asked for."""
    for name, part, _, shape, flags in _CREATE.findall(text):
        yield _names(sources)[name].replace("%d", "{i}") + ("." + part if part else ""), shape, flags


def _body(text: str, start: str) -> str:
    at = text.index(start)
    return text[at : text.index("\n}\n", at)]


def optional(sources: Path, arch: str) -> Iterator[tuple[str, str]]:
    """(name with `{i}` for the layer, shape in C, fastest dimension first) of every optional tensor."""
    path = _file_of(sources, arch)
    if path is None:
        return
    model = (sources / "src/llama-model.cpp").read_text()
    parts = [*_parts(path, model), _body(model, "// generic pass: load optional per-tensor")]
    seen = set()
    for body in parts:
        for full, shape, flags in _created(body, sources):
            new = (full, shape) not in seen and "%" not in full
            if new and ("TENSOR_NOT_REQUIRED" in flags or "flags" in flags):
                seen.add((full, shape))
                yield full, shape


def _parts(path: Path, model: str) -> list[str]:
    """The loader's function and those of its helpers that it calls."""
    own = re.sub(r"//[^\n]*", "", _body(path.read_text(), "::load_arch_tensors("))
    helpers = ("create_tensor_qkv(", "create_tensor_gate_up_exps(")
    return [own, *(_body(model, f"::{name}") for name in helpers if name in own)]


def known(sources: Path, arch: str) -> tuple[set[str], set[str]] | None:
    """Names of tensors that the loader asks for, and of those that it can do without; None: there is no loader."""
    path = _file_of(sources, arch)
    if path is None:
        return None
    model = (sources / "src/llama-model.cpp").read_text()
    found = [item for part in _parts(path, model) for item in _created(part, sources)]
    optional = {name for name, _, flags in found if any(word in flags for word in _NOT_ALWAYS)}
    return {name for name, _, _ in found}, optional


def evaluated(shape: str, dims: Mapping[str, Any]) -> tuple[int, ...] | None:
    """A shape in numpy's order; None where it speaks of what these dimensions don't have."""
    h, hd, hv, kv = (int(dims[k]) for k in ("n_head", "head_dim", "head_dim_v", "n_head_kv"))
    known = {
        **{k: v for k, v in dims.items() if isinstance(v, int)},
        **{"n_embd_": dims["n_embd"], "n_embd_q_": h * hd, "n_embd_k_": kv * hd, "n_embd_v_": kv * hv},
        **{"n_embd_qkv": h * hd + kv * hd + kv * hv, "n_embd_k_gqa": kv * hd, "n_embd_v_gqa": kv * hv},
        **{"n_embd_gqa": kv * hv, "n_embd_head_k": hd, "n_embd_head_v": hv, "n_expert_": dims["n_expert"]},
        **{"n_ff_": dims.get("n_ff_exp", 0), "n_token_types": 2},
        **{"n_cls_out": 2, "dense_2_feat_out": 48, "dense_3_feat_in": 48, "n_embd_out": 48},
        **{"n_ctx_train": dims["n_ctx"], "n_vocab_out": dims["n_vocab"], "n_embd_head": hd, "n_qo_dim": h * hd},
        **{"kv_lora_rank": dims["kv_lora"], "q_lora_rank": dims["q_lora"], "n_embd_head_qk_rope": dims["n_rot"]},
        **{"n_embd_head_qk_nope": dims["nope"] - dims["n_rot"], "n_embd_head_k_mla": dims["nope"]},
        **{"n_embd_head_v_mla": dims["v_mla"]},
    }
    text = re.sub(r"hparams\.(\w+?)(_impl)?(\(\w*\))?", lambda m: m[1], shape)
    text = re.sub(r"\b(\w+)\((?:i|il|bid)?\)", r"\1", text).replace("/", "//")
    out = []
    for size in text.split(","):
        try:
            out.append(int(eval(size, {"__builtins__": {}}, known)))
        except (NameError, SyntaxError, TypeError, ZeroDivisionError):
            return None
    return tuple(reversed(out)) if all(n > 0 for n in out) else None
