"""Compiled kernels: machine code that is kept in a folder, loaded without numba and called with arrays and numbers.

Importing numba and preparing it takes longer than many a conversion, so it is left to `build`, which makes the code.
A file is a line of JSON (the symbol, the parameters, a digest) and an object file as LLVM writes it; nothing in it is
unpickled.  One that is damaged or of other sources counts as absent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import itertools
import json
import logging
import operator
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_KERNELS = Path(__file__).parents[1]
_LOG = logging.getLogger("llmconv.kernels")
_LOCK = threading.RLock()
_HERE = threading.local()
"""listed: in a thread that is in `missing`, what it has found so far."""
_listing = 0
"""How many threads are in `missing`."""
_OUTCOME = ctypes.create_string_buffer(64)
"""Where code writes that it returns nothing, and how it failed; kernels don't fail."""


def flat(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Contiguous rows as a kernel takes them: one axis; float16 as int16 and bfloat16 as uint16 bit patterns."""
    rows = rows.reshape(-1)
    if rows.dtype == np.float32:
        return rows
    return rows.view(np.int16 if rows.dtype == np.float16 else np.uint16)


class Entry:
    """A kernel's entry point: call it with flat arrays (see `flat`) and numbers, as its `@kernel` declares them.

    The first argument goes by its place, the others by place or by name.  Its code is loaded, or compiled, when it is
    first called with rows of that dtype.  The interpreter's lock is released while it runs.  Raises `TypeError` for
    other arguments than declared.
    """

    compiled: Callable[[np.dtype[Any]], tuple[str, list[tuple[Any, ...]], bytes]]
    """Makes the code for a first argument of a dtype: its symbol, its parameters (name, kind and what `_PARAMETERS`
    takes for that kind), an object file.  `build` sets it when the family's module is imported."""

    def __init__(self, family: str, name: str):
        self.family, self.name = family, name
        self._codes: dict[np.dtype[Any], _Code] = {}

    def __call__(self, *args: Any, **named: Any) -> None:
        if _listing and self._listed(args[0].dtype):
            return
        code = self._codes.get(args[0].dtype)
        if code is None:
            code = self.load(args[0].dtype)
        code.run(args, named)

    def address(self, dtype: np.dtype[Any]) -> int:
        """Where its code for a first argument of `dtype` is, for kernels that call it; 0 while they are listed."""
        return 0 if _listing and self._listed(dtype) else self.load(dtype).address

    def load(self, dtype: np.dtype[Any]) -> _Code:
        """The code for a first argument of `dtype`."""
        with _LOCK:
            if dtype not in self._codes:
                self._codes[dtype] = self._kept(dtype) or self._new(dtype)
            return self._codes[dtype]

    def _listed(self, dtype: np.dtype[Any]) -> bool:
        """Whether this thread is in `missing`, so that nothing is to be run."""
        listed: list[tuple[Entry, np.dtype[Any]]] | None = getattr(_HERE, "listed", None)
        if listed is None:
            return False
        with _LOCK:
            kept = self._codes.get(dtype) or self._kept(dtype)
            if kept is not None:
                self._codes[dtype] = kept
            elif (self, dtype) not in listed:
                listed.append((self, dtype))
        return True

    def _file(self, dtype: np.dtype[Any]) -> Path | None:
        folder = cache_folder()
        return folder and folder / f"{self.family}.{self.name}.{dtype.name}"

    def _kept(self, dtype: np.dtype[Any]) -> _Code | None:
        path = self._file(dtype)
        try:
            return None if path is None else _Code(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def _new(self, dtype: np.dtype[Any]) -> _Code:
        _LOG.info("compiling %s.%s for this processor, once", self.family, self.name)
        importlib.import_module(f"llmconv.quant.kernels.{self.family}")
        symbol, parameters, image = self.compiled(dtype)
        head = {"symbol": symbol, "parameters": parameters, "digest": _digest(image)}
        content = json.dumps(head).encode() + b"\n" + image
        code, path = _Code(content), self._file(dtype)
        if path is not None:
            _keep(path, content)
        return code


class Family:
    """The entry points of a module of kernels, by name, without importing it."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Entry:
        if name.startswith("__"):
            raise AttributeError(name)
        found = self.__dict__[name] = entry(self._name, name)
        return found


@functools.cache
def entry(family: str, name: str) -> Entry:
    """The one entry point of that name."""
    return Entry(family, name)


def missing(work: Callable[[], object]) -> list[tuple[Entry, np.dtype[Any]]]:
    """What `work` calls and would have to be compiled: it is run, in this thread, without any kernel running."""
    global _listing
    found: list[tuple[Entry, np.dtype[Any]]] = []
    with _LOCK:
        _listing += 1
    try:
        with _thread_listing(found):
            work()
    finally:
        with _LOCK:
            _listing -= 1
    return found


def really() -> contextlib.AbstractContextManager[None]:
    """Kernels run in it even while they are listed: for what is kept."""
    return _thread_listing(None)


@contextlib.contextmanager
def _thread_listing(listed: list[tuple[Entry, np.dtype[Any]]] | None) -> Iterator[None]:
    before, _HERE.listed = getattr(_HERE, "listed", None), listed
    try:
        yield
    finally:
        _HERE.listed = before


class _Code:
    """Code in memory.  `content`: a file as described above; `ValueError` and others when it isn't one."""

    def __init__(self, content: bytes):
        line, _, image = content.partition(b"\n")
        head = json.loads(line)
        if _digest(image) != head["digest"]:
            raise ValueError("damaged")
        self._names = [name for name, *_ in head["parameters"]]
        self._parameters = [_PARAMETERS[kind](*rest) for _, kind, *rest in head["parameters"]]
        words = [word for p in self._parameters for word in p.words]
        self._library = _link(head["symbol"], image)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *words)
        self.address: int = self._library[head["symbol"]]
        self._function = prototype(self.address)

    def run(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if named:
            count = len(args)
            try:  # no set, no generator: for small pieces they cost as much as the search
                args = (*args, *map(named.__getitem__, self._names[count:]))
            except KeyError:
                args = ()
            if len(args) != count + len(named):
                raise TypeError(f"a kernel takes {', '.join(self._names)}; {count} and {', '.join(named)} are given")
        words: list[Any] = []
        for parameter, value in zip(self._parameters, args, strict=True):
            parameter.give(value, words)
        if self._function(_OUTCOME, _OUTCOME, *words):
            raise RuntimeError("a kernel failed")


class _Array:
    """A flat array: its address and its length."""

    words = ctypes.c_void_p, ctypes.c_int64

    def __init__(self, dtype: str, written: bool):
        self._dtype, self._written = np.dtype(dtype), written

    def give(self, value: Any, words: list[Any]) -> None:
        flags = value.flags
        if value.dtype != self._dtype or value.ndim != 1 or not flags.c_contiguous:
            raise TypeError(f"a kernel takes a flat array of {self._dtype}, not {value.dtype} {value.shape}")
        if self._written and not flags.writeable:
            raise TypeError("a kernel can't write to a read-only array")
        words.append(_address(value))
        words.append(value.size)


def _listed_address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _stored_address(array: np.ndarray[Any, Any]) -> int | None:
    """The same five times faster, which for small pieces is what a call costs: the word after the object's header."""
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value


_SAMPLE = np.zeros(1)
_address = _stored_address if _stored_address(_SAMPLE) == _listed_address(_SAMPLE) else _listed_address


class _Number:
    def __init__(self, word: Any, convert: Callable[[Any], Any]):
        self.words, self._convert = (word,), convert

    def give(self, value: Any, words: list[Any]) -> None:
        words.append(self._convert(value))


_PARAMETERS: dict[str, Callable[..., Any]] = {
    "array": _Array,
    "integer": functools.partial(_Number, ctypes.c_int64, operator.index),
    "float32": functools.partial(_Number, ctypes.c_float, float),
}
"""How an argument is handed over; `build` says which for each parameter."""


@functools.cache
def _jit() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


_LINKED: list[Any] = []  # code lives as long as these do
_NUMBERS = itertools.count()


def _link(symbol: str, image: bytes) -> Any:
    """Load an object file: a mapping from the symbol to its address."""
    import llvmlite.binding as llvm

    library = llvm.JITLibraryBuilder().add_object_img(image).export_symbol(symbol).add_current_process()
    _LINKED.append(library.link(_jit(), f"llmconv-{next(_NUMBERS)}"))
    return _LINKED[-1]


def _keep(path: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all; a full or vanished folder means compiling again."""
    temporary = path.with_name(f"{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError:
        return


def _digest(content: bytes) -> str:
    """Tells contents apart; a hash against forgery would need OpenSSL, which takes longer to load than a kernel."""
    return importlib.util.source_hash(content).hex()


# Where code is kept.

_CODE_OPTIONS = "CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE"


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: a folder named by the kernels' sources, the versions and the CPU.

    NUMBA_CACHE_DIR, else LLMCONV_CACHE_DIR, else the user's cache folder ($XDG_CACHE_HOME or ~/.cache; ~/Library/Caches
    on macOS; %LOCALAPPDATA% on Windows).  None when no such folder can be written: kernels are then compiled anew
    in every process.
    """
    root = _cache_root()
    if root is None:
        return None
    folder = root / f"kernels-{_fingerprint()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # it is in use; fails where it can't be written
    except OSError:
        return None
    _forget_unused(root)
    return folder


def _fingerprint() -> str:
    """A digest of all that the code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    sources = b"".join(source.read_bytes() for source in sorted(_KERNELS.rglob("*.py")))
    cpu = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    options = [os.environ.get(f"NUMBA_{name}") for name in _CODE_OPTIONS]  # that numba goes by
    versions = _numba_version(), llvmlite.__version__, sys.version_info[:2]
    return _digest(sources + repr((cpu, options, versions)).encode())


def _numba_version() -> bytes:
    """What tells one numba from another, without importing it."""
    found = importlib.util.find_spec("numba")
    assert found is not None and found.origin is not None  # llmconv depends on it
    return Path(found.origin).with_name("_version.py").read_bytes()


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
