"""The small Hub of `hub_taking` with Xet's storage behind it, as `hf_xet` speaks to it: https://huggingface.co/docs/xet.

Its server keeps xorbs (runs of chunks, each with a head of eight bytes) and shards (which chunks make which file).
Chunks come and go as they are: `hf_xet` is told not to compress them.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_taking import FullHub

__all__ = ["SETTINGS", "XetHub"]

SETTINGS = {"HF_XET_XORB_COMPRESSION_POLICY": "none", "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms"}
_CHUNK = 100_000  # bytes; the protocol allows 128 KiB
_ENTRY = 48  # bytes of whatever a shard lists


class XetHub(FullHub):
    """All large files are in Xet's storage.   xorbs, shards: how many came;   reads: requests of chunks."""

    def __init__(self, folder: Path, token: str = ""):
        super().__init__(folder, token)
        self.xet = True
        self.stored: dict[str, list[bytes]] = {}
        self.xorbs = self.shards = self.reads = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if not path.startswith("/cas/") and not re.search(r"/xet-(read|write)-token/", path):
            return super().answer(request)
        self.seen.append((path, request.headers.get("Authorization", "")))
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if status := self.refuse(request.command, path):
            return self._say(request, status, {"error": "no"}, Retry_After="0")
        if not path.startswith("/cas/"):
            return self._token(request)
        kind, _, name = path.removeprefix("/cas/").removeprefix("v1/").partition("/")
        if kind == "xorbs":
            self.stored[name.rpartition("/")[2]] = list(_chunks(body))
            self.xorbs += 1
            return self._say(request, 200, {"was_inserted": True})
        if kind == "shards":
            self.shards += 1
            for chunks in _files(body, self.stored):
                self.objects[hashlib.sha256(chunks).hexdigest()] = chunks
            return self._say(request, 200, {"result": 1})
        files = {self.digest(p)[::-1]: p for p in self.files().values()}
        if kind in ("reconstructions", "data") and name in files:
            return self._give(request, kind, name, files[name].read_bytes())
        return self._say(request, 404, {})  # a newer way, for which the client takes the older one

    def _token(self, request: BaseHTTPRequestHandler) -> None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._say(request, 401, {"error": "no"})
        said = {"casUrl": f"{self.url}/cas", "accessToken": "xet", "exp": int(time.time()) + 3600}
        head = {
            "X_Xet_Cas_Url": said["casUrl"],
            "X_Xet_Access_Token": "xet",
            "X_Xet_Token_Expiration": str(said["exp"]),
        }
        return self._say(request, 200, said, **head)

    def _give(self, request: BaseHTTPRequestHandler, kind: str, name: str, data: bytes) -> None:
        pieces = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
        xorb = b"".join(_head(len(piece)) + piece for piece in pieces)
        if kind == "data":
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"])
            assert found is not None
            self.reads += 1
            part = xorb[int(found[1]) : int(found[2]) + 1]
            request.send_response(206)
            request.send_header("Content-Length", str(len(part)))
            request.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{len(xorb)}")
            request.end_headers()
            request.wfile.write(part)
            return None
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found and int(found[1]) >= len(data):
            return self._say(request, 416, {})
        whole = {"start": 0, "end": len(pieces)}
        part = {"range": whole, "url": f"{self.url}/cas/data/{name}", "url_range": {"start": 0, "end": len(xorb) - 1}}
        terms = [{"hash": name, "unpacked_length": len(data), "range": whole}]
        said: dict[str, Any] = {"offset_into_first_range": 0, "terms": terms, "fetch_info": {name: [part]}}
        return self._say(request, 200, said)


def _head(size: int) -> bytes:
    """Of a chunk: version, bytes that follow, compression (none), bytes that they are."""
    return b"\0" + size.to_bytes(3, "little") + b"\0" + size.to_bytes(3, "little")


def _chunks(xorb: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(xorb) and not xorb.startswith(b"XETBLOB", place):
        version, kind = xorb[place], xorb[place + 4]
        assert (version, kind) == (0, 0), json.dumps([version, kind])
        size = int.from_bytes(xorb[place + 1 : place + 4], "little")
        yield xorb[place + 8 : place + 8 + size]
        place += 8 + size


def _files(shard: bytes, stored: dict[str, list[bytes]]) -> Iterator[bytes]:
    """What each file that a shard lists consists of."""
    place = _ENTRY
    while shard[place : place + 32] != b"\xff" * 32:
        flags, number = struct.unpack_from("<II", shard, place + 32)
        parts = []
        for i in range(number):
            at = place + _ENTRY * (i + 1)
            name = b"".join(word.to_bytes(8, "big") for word in struct.unpack_from("<4Q", shard, at)).hex()
            first, last = struct.unpack_from("<II", shard, at + 40)
            parts += stored[name][first:last]
        yield b"".join(parts)
        place += _ENTRY * (1 + number * (1 + (flags >> 31)) + (flags >> 30 & 1))
