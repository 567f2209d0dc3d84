"""Compiling kernels: numba's options, when a kernel is compiled, and where the result is kept."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.caching import FunctionCache

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "boundscheck": False}
"""IEEE division; no fastmath anywhere: the order and rounding of every operation is the reference's."""

inner = numba.njit(**OPTIONS, no_cfunc_wrapper=True)
"""Decorator of a function that only kernels call; compiled into each of them."""


def _given(dtype: types.Type) -> types.Array:
    # Read-only and unaligned: the loosest array, so that mapped files and odd offsets are accepted as they are.
    return types.Array(dtype, 1, "C", readonly=True, aligned=False)


def out(dtype: types.Type) -> types.Array:
    """Parameter type: a flat array that the kernel writes, e.g. `out(numba.types.uint8)`."""
    return types.Array(dtype, 1, "C")


ROWS = "rows"
"""Parameter type (the first one only): flat weights, float32, float16 or bfloat16; one compilation for each."""
F32, I32, U8 = (_given(t) for t in (types.float32, types.int32, types.uint8))
"""Parameter types: flat arrays that the kernel only reads."""

_ROW_TYPES = {
    np.dtype(np.float32): F32,
    np.dtype(np.int16): _given(types.int16),
    np.dtype(np.uint16): _given(types.uint16),
}
_LOCK = threading.RLock()
_KERNELS: list[Kernel] = []


def flat(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Contiguous rows as a kernel takes them: one axis; float16 as int16 and bfloat16 as uint16 bit patterns."""
    rows = rows.reshape(-1)
    if rows.dtype == np.float32:
        return rows
    return rows.view(np.int16 if rows.dtype == np.float16 else np.uint16)


class Kernel:
    """A compiled entry point: call it with arrays (see `flat`) and numbers.

    Compiled, or read from the cache folder, when first called, once for each kind of rows it is called with.
    """

    def __init__(self, function: Callable[..., Any], parameters: tuple[Any, ...]):
        functools.update_wrapper(self, function)
        self._function = function
        self._parameters = parameters
        self._by_rows = bool(parameters) and parameters[0] is ROWS
        self._compiled: dict[Any, Callable[..., Any]] = {}
        _KERNELS.append(self)

    def __call__(self, *args: Any) -> Any:
        kind = args[0].dtype if self._by_rows else None
        compiled = self._compiled.get(kind)
        if compiled is None:
            compiled = self._compile(kind)
        return compiled(*args)

    def _compile(self, kind: np.dtype[Any] | None) -> Callable[..., Any]:
        with _LOCK:
            if kind not in self._compiled:
                parameters = self._parameters if kind is None else (_ROW_TYPES[kind], *self._parameters[1:])
                dispatcher = numba.njit(**OPTIONS, no_cfunc_wrapper=True)(self._function)
                folder = cache_folder()
                if folder is not None:
                    dispatcher._cache = _Cache.at(folder, self._function)
                _undisturbed(functools.partial(dispatcher.compile, parameters))
                dispatcher.disable_compile()
                self._compiled[kind] = dispatcher
            return self._compiled[kind]

    def warm(self) -> None:
        """Compile for every kind of rows."""
        for kind in _ROW_TYPES if self._by_rows else (None,):
            self._compile(kind)


def _undisturbed(work: Callable[[], Any]) -> None:
    """Run `work` to its end in a thread of its own, and only then pass on an interrupt (Ctrl-C) that came meanwhile.

    LLVM calls back into Python while it compiles and loads; an exception raised there has killed the process.
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


def kernel(*parameters: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator of an entry point, given its parameters' types: ROWS, F32, I32, U8, `out(...)` or numba scalars."""
    return lambda function: Kernel(function, parameters)


def warmup() -> Iterator[Kernel]:
    """Compile every kernel of the modules imported so far, one a step, so that the first use needn't."""
    for one in list(_KERNELS):
        one.warm()
        yield one


class _Cache(FunctionCache):
    """Numba's disk cache in a folder of ours; a damaged, full or vanished folder means compiling, not failing."""

    @classmethod
    def at(cls, folder: Path, function: Callable[..., Any]) -> _Cache:
        kept = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            return cls(function)
        finally:
            numba.config.CACHE_DIR = kept

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            self.disable()


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: a folder named by the kernels' sources, the versions and the CPU.

    NUMBA_CACHE_DIR, else LLMCONV_CACHE_DIR, else the user's cache folder ($XDG_CACHE_HOME or ~/.cache; ~/Library/Caches
    on macOS; %LOCALAPPDATA% on Windows).  None when no such folder can be written: kernels are then compiled anew
    in every process.  Numba notices an edited module but not an edited helper of it, hence the hash.
    """
    root = _cache_root()
    if root is None:
        return None
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    digest.update(repr((numba.__version__, sys.version_info[:2], codegen.magic_tuple())).encode())
    folder = root / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)
    except OSError:
        return None
    _forget_unused(root)
    return folder


def _cache_root() -> Path | None:
    for variable in ("NUMBA_CACHE_DIR", "LLMCONV_CACHE_DIR"):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / "llmconv"
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home folder
        return None
    return base / "llmconv"


def _forget_unused(root: Path, days: int = 30) -> None:
    """Remove the folders of other versions that nothing has used for a while."""
    for folder in root.glob("kernels-*"):
        try:
            if time.time() - folder.stat().st_mtime > days * 86400:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
