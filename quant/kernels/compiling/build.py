"""Compiling kernels: numba's options, what an entry point may take, and how its machine code is made."""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import compiler
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llmconv.quant.kernels.compiling.cache import Entry, entry
from llmconv.quant.kernels.vectors.codegen import flat_array

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "boundscheck": False}
"""IEEE division; no fastmath anywhere: the order and rounding of every operation is the reference's."""

inner = numba.njit(**OPTIONS, no_cfunc_wrapper=True)
"""Decorator of a function that only kernels call; compiled into each of them."""
inlined = numba.njit(**OPTIONS, no_cfunc_wrapper=True, forceinline=True)
"""The same for one that is never called: an array that a call hands on is seven words."""


def _given(dtype: types.Type) -> types.Array:
    # Read-only and unaligned: the loosest array, so that mapped files and odd offsets are accepted as they are.
    return types.Array(dtype, 1, "C", readonly=True, aligned=False)


def out(dtype: types.Type) -> types.Array:
    """Parameter type: a flat array that the kernel writes, e.g. `out(numba.types.uint8)`."""
    return types.Array(dtype, 1, "C")


ROWS = "rows"
"""Parameter type (the first one only): flat weights, float32, float16 or bfloat16; one compilation for each."""
F32, I32, I16, U16, U8 = (_given(t) for t in (types.float32, types.int32, types.int16, types.uint16, types.uint8))
"""Parameter types: flat arrays that the kernel only reads."""

_ROWS = types.float32, types.int16, types.uint16  # float16 and bfloat16 as `flat` hands them in
_DECLARED: dict[Entry, tuple[Any, ...]] = {}
"""The parameters' types of every entry point whose module is imported."""


def kernel(*parameters: Any) -> Callable[[Callable[..., Any]], Entry]:
    """Decorator of an entry point, given its parameters' types: ROWS, F32, I32, U8, `out(...)` or numba scalars.

    The first one is an array.  An entry point returns nothing, raises nothing and takes its working memory from
    `stack.empty`, so that its code needs nothing but itself.
    """

    def declare(function: Callable[..., Any]) -> Entry:
        found = entry(function.__module__.rpartition(".")[2], function.__name__)
        functools.update_wrapper(found, function)
        found.compiled = functools.partial(_compiled, function, parameters)
        _DECLARED[found] = parameters
        return found

    return declare


def entries() -> Iterator[tuple[Entry, list[np.dtype[Any]]]]:
    """Every entry point there is and what its first argument can be; imports all kernels."""
    for source in sorted(Path(__file__).parents[1].glob("*.py")):
        importlib.import_module(f"llmconv.quant.kernels.{source.stem}")
    for one, parameters in _DECLARED.items():
        yield one, _dtypes(parameters)


def _dtypes(parameters: tuple[Any, ...]) -> list[np.dtype[Any]]:
    first = parameters[0]
    return [np.dtype(str(t)) for t in (_ROWS if first is ROWS else (first.dtype,))]


def _compiled(
    function: Callable[..., Any], parameters: tuple[Any, ...], dtype: np.dtype[Any]
) -> tuple[str, list[tuple[Any, ...]], bytes]:
    """See `Entry.compiled`."""
    if dtype not in _dtypes(parameters):
        raise TypeError(f"{function.__name__} takes {', '.join(map(str, _dtypes(parameters)))}, not {dtype}")
    if parameters[0] is ROWS:
        parameters = (_given(numba.from_dtype(dtype)), *parameters[1:])
    outer, words = _outer(function, parameters)
    result: list[tuple[str, bytes]] = []
    _undisturbed(lambda: result.append(_image(outer, words)))
    ((symbol, image),) = result
    names = inspect.signature(function).parameters
    return symbol, [(name, *_described(p)) for name, p in zip(names, parameters, strict=True)], image


def _described(parameter: types.Type) -> tuple[Any, ...]:
    if isinstance(parameter, types.Array):
        return "array", str(parameter.dtype), parameter.mutable
    return ("float32",) if parameter is types.float32 else ("integer",)


def _outer(function: Callable[..., Any], parameters: tuple[Any, ...]) -> tuple[Callable[..., Any], list[types.Type]]:
    """The function with addresses and lengths in place of arrays, and its parameters' types."""
    scope: dict[str, Any] = {"function": numba.njit(**OPTIONS)(function)}
    names: list[str] = []
    given: list[str] = []
    words: list[types.Type] = []
    for i, parameter in enumerate(parameters):
        names.append(f"a{i}")
        if isinstance(parameter, types.Array):
            names.append(f"n{i}")
            scope[f"array{i}"] = _array_at(parameter)
            given.append(f"array{i}(a{i}, n{i})")
            words += [types.voidptr, types.int64]
        elif parameter is types.float32:
            given.append(f"a{i}")
            words.append(types.float32)
        else:
            scope[f"type{i}"] = bool if parameter is types.boolean else np.dtype(str(parameter)).type
            given.append(f"type{i}(a{i})")
            words.append(types.int64)
    exec(f"def outer({', '.join(names)}):\n    function({', '.join(given)})", scope)
    return scope["outer"], words


def _array_at(array_type: types.Array) -> Any:
    """A function of an address and a length that gives the array there."""

    @intrinsic
    def array_at(typingctx: Any, address: types.Type, size: types.Type) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = builder.bitcast(args[0], context.get_data_type(array_type.dtype).as_pointer())
            return flat_array(context, builder, array_type, data, args[1])

        return array_type(address, size), generate

    return array_at


def _image(function: Callable[..., Any], parameters: list[types.Type]) -> tuple[str, bytes]:
    flags = compiler.Flags()
    flags.error_model = OPTIONS["error_model"]
    flags.nrt = False  # nothing is counted or allocated: the code refers to nothing of numba's
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    context = cpu_target.target_context
    made = compiler.compile_extra(cpu_target.typing_context, context, function, parameters, types.none, flags, {})
    triple, cpu, features = context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=numba.config.OPT, reloc="pic", codemodel="small"
    )
    image: bytes = machine.emit_object(llvm.parse_assembly(made.library.get_llvm_str()))
    return made.fndesc.llvm_func_name, image


def _undisturbed(work: Callable[[], Any]) -> None:
    """Run `work` to its end in a thread of its own, and only then pass on an interrupt (Ctrl-C) that came meanwhile.

    LLVM calls back into Python while it compiles; an exception raised there has killed the process.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread, interrupt = threading.Thread(target=run, name="llmconv-compile"), None
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt or failed:
        raise interrupt or failed[0]
