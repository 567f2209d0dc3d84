"""Object files into memory: a kernel's code is a function that needs nothing but itself.

On Linux on x86-64 that is done here, in less time than importing LLVM's bindings takes: sections are laid out one after
another, and the few references between them filled in.  Everywhere else, and for what this does not know, LLVM does it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import struct
import sys
from typing import Any, NamedTuple

__all__ = ["HERE", "load", "placed"]

HERE = sys.platform == "linux" and os.uname().machine == "x86_64"
"""Whether object files are of the kind that is read here."""

_LINKED: list[Any] = []  # by LLVM: code lives as long as these do
_NUMBERS = itertools.count()

# What these files have of ELF (System V ABI and its AMD64 supplement).
_HEAD = struct.Struct("<6s10xHH20xQ10xHHH")
_SECTION = struct.Struct("<IIQ8xQQIIQ8x")
_SYMBOL = struct.Struct("<I2xHQ8x")
_REFERENCE = struct.Struct("<QIIq")
_LITTLE_64, _RELOCATABLE, _X86_64 = b"\x7fELF\x02\x01", 1, 62
_BYTES, _SYMBOLS, _REFERENCES, _ZEROS = 1, 2, 4, 8
_WRITTEN, _IN_MEMORY = 1, 2
_OUTSIDE, _RESERVED = 0, 0xFF00
_ADDRESS, _DISTANCES = 1, (2, 4)


def load(symbol: str, image: bytes) -> int:
    """The address of `symbol`, an object file's function, now in memory; `RuntimeError` and others if it isn't one."""
    if HERE:
        with contextlib.suppress(NotImplementedError, LookupError, ValueError, OSError, struct.error):
            return placed(symbol, image)
    return _linked(symbol, image)


def placed(symbol: str, image: bytes) -> int:
    """The same without LLVM; `NotImplementedError` and others for a file with more than kernels have."""
    sections = _sections(image)
    offsets, size = _laid_out(sections)
    code = bytearray(size)
    base = _memory(size)
    for i, offset in offsets.items():
        code[offset : offset + len(sections[i].content)] = sections[i].content
    symbols = _symbols(sections)

    def address(name: str, section: int, value: int) -> int:
        return base + offsets[section] + value if section != _OUTSIDE else _of_process(name)

    for section in sections:
        if section.kind == _REFERENCES and section.about in offsets:
            for place, kind, number, plus in _REFERENCE.iter_unpack(section.content):
                at, there = offsets[section.about] + place, address(*symbols[number]) + plus
                if kind == _ADDRESS:
                    struct.pack_into("<Q", code, at, there)
                elif kind in _DISTANCES:
                    struct.pack_into("<i", code, at, there - base - at)
                else:
                    raise NotImplementedError("a reference of another kind")
    (found,) = (one for one in symbols if one[0] == symbol)
    ctypes.memmove(base, bytes(code), size)
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(base), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError("memory may not be executed")
    return address(*found)


def _memory(size: int) -> int:
    """Where there is memory for code.  It is never given back: a thread may run it until the process ends."""
    take = ctypes.CDLL(None).mmap
    take.restype, take.argtypes = (
        ctypes.c_void_p,
        (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long),
    )
    address = take(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError("no memory")
    return int(address)


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    link: int
    about: int
    align: int
    content: bytes


def _sections(image: bytes) -> list[_Section]:
    magic, kind, machine, at, size, count, names = _HEAD.unpack_from(image)
    if (magic, kind, machine, size) != (_LITTLE_64, _RELOCATABLE, _X86_64, _SECTION.size):
        raise NotImplementedError("another kind of file")
    rows = list(_SECTION.iter_unpack(image[at : at + count * size]))
    parts = [image[begin : begin + length] for _, _, _, begin, length, *_ in rows]
    return [
        _Section(_text(parts[names], name), kind, flags, link, about, align, part)
        for (name, kind, flags, _, _, link, about, align), part in zip(rows, parts, strict=True)
    ]


def _laid_out(sections: list[_Section]) -> tuple[dict[int, int], int]:
    """Where the sections go that are needed, one after another, and how long they are together."""
    offsets: dict[int, int] = {}
    size = 0
    for i, section in enumerate(sections):
        if section.flags & _IN_MEMORY and section.kind in (_BYTES, _ZEROS):  # of others, frames are for exceptions
            if section.kind == _ZEROS or (section.flags & _WRITTEN and section.name != ".data.rel.ro"):
                raise NotImplementedError("code with variables")
            offsets[i] = -(-size // section.align) * section.align
            size = offsets[i] + len(section.content)
    return offsets, size


def _symbols(sections: list[_Section]) -> list[tuple[str, int, int]]:
    """Each symbol's name, the section it is in, and where."""
    table = next(section for section in sections if section.kind == _SYMBOLS)
    names = sections[table.link].content
    return [(_text(names, name), section, value) for name, section, value in _SYMBOL.iter_unpack(table.content)]


def _text(names: bytes, begin: int) -> str:
    return names[begin : names.index(b"\0", begin)].decode()


def _of_process(name: str) -> int:
    """Where a function of the C library is, such as memset."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise NotImplementedError(f"no function {name}") from None
    return ctypes.cast(found, ctypes.c_void_p).value or 0


@functools.cache
def _jit() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


def _linked(symbol: str, image: bytes) -> int:
    import llvmlite.binding as llvm

    library = llvm.JITLibraryBuilder().add_object_img(image).export_symbol(symbol).add_current_process()
    _LINKED.append(library.link(_jit(), f"llmconv-{next(_NUMBERS)}"))
    address: int = _LINKED[-1][symbol]
    return address
