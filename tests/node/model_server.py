"""A server on loopback that gives files as a model hub does, and misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34
REPO = "garden/Small-Model"


@dataclass
class World:
    """What the server has, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path
    redirects: dict[str, str] = field(default_factory=dict)
    repo: dict[str, bytes] = field(default_factory=dict)  # files of REPO at COMMIT
    card: dict[str, Any] = field(default_factory=dict)
    drop_after: list[int] = field(default_factory=list)  # bytes after which each next body breaks off
    statuses: list[int] = field(default_factory=list)  # answered first, one each
    no_ranges: bool = False
    no_length: bool = False
    stated: dict[str, str] = field(default_factory=dict)  # other digests than the right ones
    tag: str = '"one"'
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range, of bodies
    url: str = ""

    def ranges(self, path: str) -> list[str | None]:
        """The ranges that were asked of one path."""
        return [asked for where, asked in self.asked if where == path]

    def info(self) -> dict[str, Any]:
        """What a hub says of REPO."""
        return {
            "id": REPO,
            "modelId": REPO,
            "sha": COMMIT,
            "tags": [],
            "gated": False,
            "cardData": self.card,
            "siblings": [self.sibling(name, data) for name, data in self.repo.items()],
        }

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        """What a hub says of one file."""
        blob = self.stated.get(name, sha1(b"blob %d\0" % len(data) + data).hexdigest())
        facts: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith((".safetensors", ".gguf")):
            digest = self.stated.get(name, sha256(data).hexdigest())
            facts["lfs"] = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 100}
        return facts


@contextmanager
def serving() -> Iterator[World]:
    """The server while the context is entered."""
    world = World()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if world.statuses:
                self._send(world.statuses.pop(0), b"", {})
            elif path in world.redirects:
                self._send(302, b"", {"Location": world.redirects[path]})
            elif path.startswith(f"/api/models/{REPO}"):
                self._hub(path.removeprefix(f"/api/models/{REPO}"))
            elif path.startswith(f"/{REPO}/resolve/"):
                commit, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
                self._file(f"/{name}", world.repo.get(name) if commit in (COMMIT, "main") else None, body)
            else:
                self._file(path, world.files.get(path), body)

        def _hub(self, rest: str) -> None:
            revision = rest.removeprefix("/revision/") if rest else "main"
            if revision.startswith("/tree/"):
                rows = [world.sibling(name, data) | {"path": name, "type": "file"} for name, data in world.repo.items()]
                rows = [{**row, "oid": row["blobId"]} for row in rows]
                self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
            elif revision in ("main", COMMIT):
                self._send(200, json.dumps(world.info()).encode(), {"Content-Type": "application/json"})
            else:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})

        def _file(self, path: str, data: bytes | None, body: bool) -> None:
            if data is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound" if path.startswith("/api") else "EntryNotFound"})
                return
            wanted = self.headers.get("Range")
            headers = {"ETag": world.tag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if path.lstrip("/") in world.repo:
                headers["ETag"] = f'"{sha256(data).hexdigest()}"'
                headers["X-Linked-Size"] = str(len(data))
            if body:
                world.asked.append((path, wanted))
            usable = wanted and not world.no_ranges and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
            if not (usable and wanted):
                self._send(200, data, headers, body)
                return
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            if begin >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206, data[begin:], headers, body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if world.no_length and data:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            if data and world.drop_after and status in (200, 206) and len(data) > world.drop_after[0]:
                data = data[: world.drop_after.pop(0)]
                self.close_connection = True
            with contextlib.suppress(ConnectionError):  # a client that has read enough
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    world.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield world
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
