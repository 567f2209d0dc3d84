"""GPT-2's alphabet for bytes: the characters in which byte-level BPE writes its tokens."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["alphabet", "to_bytes"]


@lru_cache
def alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's printable alphabet for bytes.

    Bytes that print in Latin-1 stand for themselves; the others, in order, take the characters from U+0100 up
    (`bytes_to_unicode` in GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(other)}


def to_bytes(token: str) -> bytes:
    """The bytes that a token in the byte alphabet stands for; its UTF-8 where it isn't in the alphabet."""
    table = alphabet()
    try:
        return bytes(table[c] for c in token)
    except KeyError:
        return token.encode("utf-8", "surrogatepass")
