"""A small Hub on this machine: the endpoints that listing and reading a repository need, with faults to be put in."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"
LARGE = 1000  # bytes; files from here on are LFS's, and are had by a redirect


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # what waits beyond is dropped without a word

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no news."""


class Hub:
    """One repository `org/toy` with the files of a folder.

    token: one that every request must bring.   delay: seconds before each answer of weights.
    rate: bytes a second of all answers together; 0: as fast as they go.   seen: (address, token) of every request.
    faults: called with (file, start, number of the request of that file's bytes); what it names goes wrong.
    xet: large files are said to be in Xet's storage too, as the Hub says it.
    asked: requests by kind;   sent: bytes of files.   most: requests of bytes under way at once.
    """

    def __init__(self, folder: Path, token: str = ""):
        self.folder, self.token, self.delay = folder, token, 0.0
        self.faults: Callable[[str, int, int], str] = lambda name, start, number: ""
        self.asked: Counter[str] = Counter()
        self.sent = self.most = self._now = 0
        self.rate = self._free = 0.0
        self.cdn = ""
        self.xet = False
        self.seen: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()
        self._digests: dict[Path, str] = {}
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def files(self) -> dict[str, Path]:
        return {str(p.relative_to(self.folder)): p for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def entry(self, name: str, path: Path) -> dict[str, Any]:
        size = path.stat().st_size
        out: dict[str, Any] = {"type": "file", "path": name, "size": size}
        out["oid"] = hashlib.sha1(b"blob %d\0" % size + (path.read_bytes() if size < LARGE else b"")).hexdigest()
        if size >= LARGE:
            out["lfs"] = {"oid": self.digest(path), "size": size, "pointerSize": 134}
            out |= {"xetHash": self.digest(path)[::-1]} if self.xet else {}
        return out

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            with path.open("rb") as file:
                self._digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[path]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and its body would wait for each other

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.seen.append((path, request.headers.get("Authorization", "")))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}" and "/cdn/" not in path:
            return self._say(request, 401, {"error": "no"})
        if path == "/api/models/org/toy" or re.fullmatch(r"/api/models/org/toy/revision/(main|v1|[0-9a-f]{40})", path):
            self.asked["info"] += 1
            there = [{"rfilename": name} for name in self.files()]
            return self._say(request, 200, {"id": "org/toy", "sha": COMMIT, "siblings": there, "tags": []})
        if path == f"/api/models/org/toy/tree/{COMMIT}":
            self.asked["tree"] += 1
            return self._say(request, 200, [self.entry(n, p) for n, p in self.files().items()])
        for start, redirected in ((f"/org/toy/resolve/{COMMIT}/", False), ("/cdn/", True)):
            name = path.removeprefix(start)
            if path.startswith(start) and name in self.files():
                return self._file(request, name, redirected)
        return self._say(request, 404, {"error": "not found"})

    def _say(self, request: BaseHTTPRequestHandler, status: int, value: Any, **headers: str) -> None:
        body = json.dumps(value).encode()
        request.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            request.send_header(key.replace("_", "-"), text)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _send(self, request: BaseHTTPRequestHandler, part: bytes) -> None:
        """The bytes of an answer, no faster than the link."""
        step = 1 << 18 if self.rate else max(1, len(part))
        for start in range(0, len(part), step):
            piece = part[start : start + step]
            if self.rate:
                with self._lock:
                    self._free = max(self._free, time.monotonic()) + len(piece) / self.rate
                    wait = self._free - time.monotonic()
                time.sleep(max(0.0, wait))
            request.wfile.write(piece)
        request.wfile.flush()

    def _file(self, request: BaseHTTPRequestHandler, name: str, redirected: bool) -> None:
        path = self.files()[name]
        size = path.stat().st_size
        if size >= LARGE and not redirected:
            route = f"{self.url}/api/models/org/toy/xet-read-token/{COMMIT}"
            xet = {"X_Xet_Hash": self.digest(path)[::-1], "X_Xet_Refresh_Route": route}
            return self._say(
                request,
                302,
                "",
                Location=f"{self.cdn or self.url}/cdn/{name}",
                X_Repo_Commit=COMMIT,
                X_Linked_Size=str(size),
                X_Linked_Etag=f'"{self.digest(path)}"',
                **(xet | {"Link": f'<{route}>; rel="xet-auth"'} if self.xet else {}),
            )
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, size)
        with self._lock:
            self.asked["bytes"] += 1
            self.asked[name] += 1
            number = self.asked[name]
            self.ranges.append((name, start, stop))
        fault = self.faults(name, start, number)
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.delay)
        with self._lock:
            self._now -= 1
        if fault == "gated":
            return self._say(request, 403, {"error": "no"}, X_Error_Code="GatedRepo")
        if fault.isdigit():
            return self._say(request, int(fault), {"error": "busy"}, Retry_After="0")
        if fault.startswith("wait "):
            return self._say(request, 503, {"error": "busy"}, Retry_After=fault.removeprefix("wait "))
        with path.open("rb") as file:
            file.seek(start)
            part = file.read(stop - start)
        if fault == "flipped":
            part = bytes([part[0] ^ 1]) + part[1:]
        if fault == "short":  # the answer says less than was asked for, and keeps to it
            part = part[: len(part) // 2]
        total = size + (fault == "other size")
        request.send_response(206 if found else 200)
        request.send_header("Content-Length", str(len(part)))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{total}")
        etag = "changed" if fault == "other tag" else self.digest(path)
        request.send_header("ETag", f'"{etag}"')
        request.end_headers()
        if request.command == "HEAD":
            return None
        if fault == "cut":
            part = part[: len(part) // 2]
            request.close_connection = True
        self._send(request, part)
        self.sent += len(part)
        if fault == "cut":
            request.connection.close()
        return None
