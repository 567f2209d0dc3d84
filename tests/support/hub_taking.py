"""The small Hub of `hub_server`, with the endpoints that making a repository and sending files to it need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_server import COMMIT, LARGE, Hub

__all__ = ["FullHub", "TakingHub"]


class TakingHub(Hub):
    """Repositories that are made and filled; none is there at first.

    repos: name -> its files, by path.   objects: large contents that arrived, by SHA-256.   put: how many were sent.
    refuse: called with (method, path); a status that it gives is the answer.   private: of those made.
    parts: bytes of the parts that a large content is sent in; 0: whole.
    """

    def __init__(self, folder: Path, token: str = ""):
        super().__init__(folder, token)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.put = self.parts = 0
        self._parts: dict[str, dict[int, bytes]] = {}
        self.messages: list[str] = []
        self.refuse: Callable[[str, str], int] = lambda method, path: 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if status := self.refuse(request.command, path):
            return self._say(request, status, {"error": "busy"}, Retry_After="0")
        if path.startswith("/lfs/"):
            return self._take(request, path.removeprefix("/lfs/"), body)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._say(request, 401, {"error": "no"}, X_Error_Code="RepoNotFound")
        if path == "/api/validate-yaml":
            return self._say(request, 200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos[name] = {}
            self.private[name] = asked.get("private", asked.get("visibility"))
            return self._say(request, 200, {"url": f"{self.url}/{name}"})
        for name, files in self.repos.items():
            if path.removeprefix("/api/models").startswith(f"/{name}"):
                return self._of(request, name, files, path.removeprefix("/api/models").removeprefix(f"/{name}"), body)
        return self._say(request, 404, {"error": "no"}, X_Error_Code="RepoNotFound")

    def _of(self, request: BaseHTTPRequestHandler, name: str, files: dict[str, bytes], path: str, body: bytes) -> None:
        if path == "" or path.startswith("/revision/"):  # huggingface_hub before 1.0 asks the second whether it has Xet
            return self._say(request, 200, {"id": name, "sha": COMMIT, "siblings": [], "tags": []})
        if path.startswith("/branch/"):
            return self._say(request, 201, {})
        if path.startswith("/tree/"):
            return self._say(request, 200, [_entry(n, data) for n, data in files.items()])
        if found := re.fullmatch(r"/resolve/[^/]+/(.+)", path):
            if found[1] not in files:
                return self._say(request, 404, {"error": "no"}, X_Error_Code="EntryNotFound")
            size = str(len(files[found[1]]))
            return self._say(request, 200, "", X_Repo_Commit=COMMIT, ETag='"x"', X_Linked_Size=size)
        if path.startswith("/preupload/"):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._say(request, 200, {"files": modes})
        if path == ".git/info/lfs/objects/batch":
            wanted = [o | self._action(o["oid"], o["size"]) for o in json.loads(body)["objects"]]
            return self._say(request, 200, {"transfer": "basic", "objects": wanted})
        if path.startswith("/commit/"):
            return self._commit(request, name, files, body)
        raise AssertionError(path)

    def _action(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.objects:
            return {}
        upload: dict[str, Any] = {"href": f"{self.url}/lfs/{oid}"}
        if self.parts:
            parts = {str(i + 1): f"{self.url}/lfs/{oid}/{i}" for i in range(-(-size // self.parts))}
            upload["header"] = {"chunk_size": str(self.parts)} | parts
        return {"actions": {"upload": upload}}

    def _take(self, request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        """A content, a part of it, or the word that all parts are there."""
        oid, _, number = name.partition("/")
        if number:
            self._parts.setdefault(oid, {})[int(number)] = body
            return self._say(request, 200, {}, ETag=f'"{number}"')
        parts = self._parts.pop(oid, {})
        self.objects[oid] = b"".join(parts[i] for i in sorted(parts)) if parts else body
        self.put += 1
        return self._say(request, 200, {})

    def _commit(self, request: BaseHTTPRequestHandler, name: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.objects[value["oid"]]
        url = f"{self.url}/{name}/commit/{COMMIT}"
        return self._say(request, 200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})


class FullHub(TakingHub):
    """`org/toy` to read, any other repository to make and fill."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if "/org/toy" in request.path or request.path.startswith("/cdn/"):
            Hub.answer(self, request)
        else:
            super().answer(request)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
    out["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + (data if len(data) < LARGE else b"")).hexdigest()
    if len(data) >= LARGE:
        out["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return out
