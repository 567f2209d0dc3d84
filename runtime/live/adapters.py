"""A module's values under the names of its saved folder: adapters merged, ties once, transformers' fusions undone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from llmconv.errors import Unsupported, cut, kind_of

__all__ = ["Values", "check", "is_sharded", "once", "values_of", "whole_of"]

Values: TypeAlias = tuple[torch.Tensor, Callable[[], torch.Tensor] | None]
"""A tensor whose shape and dtype are those of the value; and what gives the value, where it is not the tensor's own."""


def values_of(model: torch.nn.Module) -> tuple[Any, dict[str, Values]]:
    """The innermost model, and its values by name."""
    for wrapper in ("module", "_orig_mod"):  # DDP, torch.compile
        outer: Any = model
        model = getattr(outer, wrapper, outer)
    inner = _without_peft(model)
    values = _merged(inner)
    check(values, inner)
    for pattern in getattr(inner, "_keys_to_ignore_on_save", None) or ():
        values = {name: value for name, value in values.items() if not re.search(pattern, name)}
    values = _gathered(_untied(inner, values))
    return inner, _as_saved(inner, values)


def _without_peft(model: Any) -> Any:
    """The model that PEFT's wrapper holds, its adapters inside; `Unsupported` where they are no part of it."""
    if not any(cls.__module__.startswith("peft.") for cls in type(model).__mro__):  # FSDP puts a class before it
        return model
    if getattr(model, "prompt_encoder", None):
        raise Unsupported(f"{kind_of(model)} has learned a prompt, which no weight holds; give its get_base_model()")
    return model.get_base_model() if hasattr(model, "get_base_model") else model.base_model.model


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether every process has a part of each weight (FSDP, tensor parallel)."""
    return any(map(_is_part, model.parameters()))


def _is_part(value: Any) -> bool:
    return type(value).__name__ == "DTensor" or type(getattr(value, "data", None)).__name__ == "DTensor"


def _gathered(values: dict[str, Values]) -> dict[str, Values]:
    """The whole of what is sharded, in the first process's memory; every process has to come here.

    The others get shapes without values.  Adapters are added before, to each process's whole weight, as one process
    adds them.
    """
    out = {}
    for name, (value, change) in values.items():
        if _is_part(value):
            whole = (whole_of(value) if change is None else change()).cpu()
            value, change = whole if torch.distributed.get_rank() == 0 else whole.to("meta"), None
        out[name] = value, change
    return out


def whole_of(value: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered from all processes where it is sharded."""
    part: Any = value.data
    return part.full_tensor() if _is_part(value) else part  # type: ignore[no-any-return]


def check(values: Mapping[str, Values], model: Any = None) -> None:
    """`Unsupported` for values that are not this process's numbers."""
    if getattr(model, "hf_quantizer", None) is not None:
        raise Unsupported(f"the {kind_of(model)} is quantized in memory; load it without, or call its dequantize()")
    for name, (value, _) in values.items():
        if not isinstance(value, torch.Tensor):
            raise Unsupported(f"{cut(name)} is {kind_of(value)}, expected a tensor; save the model's folder instead")
        if value.is_quantized or value.layout != torch.strided:
            raise Unsupported(f"{cut(name)} is {value.layout}, {value.dtype}; make it dense floats first")
        if hasattr(value, "__tensor_flatten__") and not _is_part(value):  # torchao's, and others' of several tensors
            raise Unsupported(f"{cut(name)} is {kind_of(value)}, packed in memory; make it dense floats first")
        if value.is_meta and not hasattr(model, "hf_device_map"):
            raise Unsupported(f"{cut(name)} has no values (device meta); load them first")


def _merged(model: Any) -> dict[str, Values]:
    """The base model's names, each with what its active adapters add."""
    out: dict[str, Values] = {}
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    replaced = {name: module for name, module in model.named_modules() if hasattr(module, "modules_to_save")}
    for name, value in model.state_dict().items():
        layer = next((prefix for prefix in layers if name.startswith(prefix + ".")), None)
        whole = next((prefix for prefix in replaced if name.startswith(prefix + ".")), None)
        if layer is not None:
            rest = name[len(layer) + 1 :]
            if rest.startswith("base_layer."):
                one = rest.removeprefix("base_layer.")
                change = _change(layers[layer], layer) if one == "weight" else None
                out[f"{layer}.{one}"] = value, change
        elif whole is not None:
            active = replaced[whole].active_adapters[0] if replaced[whole].active_adapters else ""
            for kept in (f"{whole}.modules_to_save.{active}.",) if active else (f"{whole}.original_module.",):
                if name.startswith(kept):
                    out[f"{whole}.{name[len(kept) :]}"] = value, None
        else:
            out[name] = value, None
    return out


def _change(layer: Any, name: str) -> Callable[[], torch.Tensor] | None:
    """The weight with its adapters' products added, made anew at each reading; None where there are none."""
    if getattr(layer, "merged", False):
        return None
    halves = [*getattr(layer, "lora_A", ()), *getattr(layer, "lora_embedding_A", ())]
    active = [a for a in layer.active_adapters if a in halves]
    others = [a for a in layer.active_adapters if a not in active and _has_adapter(layer, a)]
    variants = [a for a in active if a in getattr(layer, "lora_variant", ()) or getattr(layer, "lora_bias", {}).get(a)]
    if others or variants:
        raise Unsupported(f"the adapter of {cut(name)} is no plain LoRA; merge it first, with merge_and_unload()")
    if not active or layer.disable_adapters:
        return None
    weight = layer.get_base_layer().weight

    def merged() -> torch.Tensor:
        # As PEFT merges: one adapter after another, each sum rounded to the weight's type.
        value, whole = whole_of(weight).clone(), _whole_layer(layer)
        for adapter in active:
            value += whole.get_delta_weight(adapter)
        return value

    return merged


def _whole_layer(layer: Any) -> Any:
    """A layer of PEFT's whose adapters are whole: itself, or a twin of it with what is gathered in their places."""
    if not is_sharded(layer):
        return layer
    twin = copy.copy(layer)
    twin.__dict__ = {**layer.__dict__, "_modules": dict(layer._modules)}
    for name in (n for n in layer.adapter_layer_names if n in layer._modules):
        twin._modules[name] = _gathered_module(layer._modules[name])
    return twin


def _gathered_module(module: Any) -> Any:
    """The same module, or container of modules or parameters, with whole parameters."""
    twin = copy.copy(module)
    whole = {n: p if p is None else torch.nn.Parameter(whole_of(p), False) for n, p in module._parameters.items()}
    inner = {n: None if m is None else _gathered_module(m) for n, m in module._modules.items()}
    twin.__dict__ = {**module.__dict__, "_parameters": whole, "_modules": inner}
    return twin


def _has_adapter(layer: Any, adapter: str) -> bool:
    return any(adapter in getattr(layer, names, ()) for names in layer.adapter_layer_names)


def _untied(model: Any, values: dict[str, Values]) -> dict[str, Values]:
    """Each tensor once: of names that share memory, one that the class does not list as tied to another."""
    tied = getattr(model, "_tied_weights_keys", None) or ()
    by_place: dict[Any, list[str]] = {}
    for name, (value, change) in values.items():  # a change is its name's own, whoever shares the weight
        elsewhere = value.is_meta or _is_part(value)
        place = id(_held(model, name)) if elsewhere else value.data_ptr()
        own = change is not None or value.numel() == 0
        by_place.setdefault((place, tuple(value.shape), own and name), []).append(name)
    gone: set[str] = set()
    for names in by_place.values():
        listed = [name for name in names if any(re.search(pattern, name) for pattern in tied)]
        gone.update(sorted(listed)[: len(names) - 1] if len(names) > 1 else ())
    return {name: value for name, value in values.items() if name not in gone}


def once(values: Mapping[str, Values]) -> dict[str, Values]:
    """Each tensor under the first of its names, as a model whose weights are tied is saved."""
    seen: set[Any] = set()
    out = {}
    for name, (value, change) in values.items():
        place = (value.data_ptr(), tuple(value.shape), value.stride())
        if place not in seen or not value.numel():
            out[name] = value, change
        seen.add(place)
    return out


def _held(model: Any, name: str) -> Any:
    """The parameter or buffer of that name, or, where PEFT put a layer around it, what that has in its place."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    module = getattr(module, "base_layer", module)
    if hasattr(module, "modules_to_save"):
        active = module.active_adapters
        module = module.modules_to_save[active[0]] if active else module.original_module
    return module.get_parameter(last) if last in module._parameters else module.get_buffer(last)


def _as_saved(model: Any, values: dict[str, Values]) -> dict[str, Values]:
    """Under the names and shapes of the saved folder, where transformers fuses weights when it loads."""
    if getattr(model, "hf_device_map", None) and any(value.is_meta for value, _ in values.values()):
        from transformers.integrations.accelerate import load_offloaded_parameter

        def loading(name: str) -> Callable[[], torch.Tensor]:
            return lambda: load_offloaded_parameter(model, name)

        values = {n: (v, loading(n) if v.is_meta else change) for n, (v, change) in values.items()}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 nothing is fused
        return values
    if not hasattr(model, "config") or not hasattr(model, "base_model_prefix"):
        return values
    plain = {name: value for name, (value, _) in values.items()}
    saved = revert_weight_conversion(model, dict(plain))
    if saved.keys() == plain.keys():
        return values
    if any(change is not None for _, change in values.values()):
        raise Unsupported(
            f"the {kind_of(model)} is fused in memory, and has an adapter or is offloaded; merge the adapter first, "
            "with merge_and_unload(), or load the model whole"
        )
    return {name: (value, None) for name, value in saved.items()}
