"""Talking to the node that runs on a data folder.

Rule: standard library alone, so that `mtor ask` starts at once. Where the node listens and what its token is stand in
files of the data folder; a file left by a dead node is recognised as such.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]
TIMEOUT_SECONDS = 600.0  # between two pieces of an answer; the node's own limits are far below
BROKEN_OFF = "the answer broke off: the node ended"


class NoNode(RuntimeError):
    """No node runs on this data folder."""


class UsageError(ValueError):
    """What was asked for cannot be asked so; the message names the fix."""


class NodeRefused(RuntimeError):
    """The node said no; the message is its own. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NodeClient:
    """One running node's local API."""

    def __init__(self, data: Path, timeout: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        try:
            facts = json.loads((data / "gateway.json").read_text())
            self.url: str = facts["url"]
            self.pid: int = facts["pid"]
            self._tls: dict[str, str] | None = facts.get("tls")
            self._token = (data / "admin.token").read_text().strip()
        except (OSError, ValueError, KeyError):
            raise NoNode(f"no node is running on {data}; start one with `mtor up`") from None
        if not _alive(self.pid):
            raise NoNode(f"the node that ran on {data} is gone (process {self.pid}); start it again with `mtor up`")

    def call(self, name: str, arguments: Json | None = None) -> Json:
        """One operation. Raises `NodeRefused` or `NoNode`."""
        with self._post(f"/mtor/v1/{name}", arguments or {}) as response:
            answer: Json = json.loads(response.read())
        return answer

    def not_ready(self) -> str:
        """Why no question could be answered now; "" if one could. Raises `NoNode`."""
        with self._send("GET", "/readyz") as response:
            facts: Json = json.loads(response.read())
        return "" if facts["ready"] else facts["reason"]

    def stream(self, name: str, arguments: Json) -> Iterator[Json]:
        """A streamed operation's progress. Raises `NodeRefused` or `NoNode`."""
        with self._post(f"/mtor/v1/{name}", arguments) as response:
            for line in response:
                progress = json.loads(line)
                if "error" in progress:
                    raise NodeRefused(400, progress["error"]["message"])
                yield progress

    def chat(self, body: Json) -> Iterator[Json]:
        """A streamed chat completion's chunks. Raises `NodeRefused`, also for an error in mid-stream."""
        return self.events("/v1/chat/completions", body | {"stream": True})

    def events(self, path: str, body: Json) -> Iterator[Json]:
        """The server-sent events of an answer. Raises `NodeRefused`, also for an error in mid-stream."""
        whole = False
        with self._post(path, body) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    whole = True
                elif data.startswith("{"):
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise NodeRefused(502, chunk["error"]["message"])
                    whole = whole or chunk.get("type", "").endswith((".completed", "audio.done"))
                    yield chunk
        if not whole:
            raise NodeRefused(502, BROKEN_OFF)

    def download(self, path: str, body: Json) -> Iterator[bytes]:
        """The bytes of an answer as they come. Raises `NodeRefused`, also if it breaks off."""
        with self._post(path, body) as response:
            while data := response.read1(65_536):
                yield data

    def form(self, path: str, fields: dict[str, str], name: str, file: bytes) -> bytes:
        """Send a form with a file; the whole answer. Raises `NodeRefused` or `NoNode`."""
        boundary = secrets.token_hex(16)
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
            for field, value in fields.items()
        ]
        shown = re.sub(r"[^\w. -]", "_", name)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n\r\n'
        body = b"".join([*parts, head.encode(), file, f"\r\n--{boundary}--\r\n".encode()])
        with self._send("POST", path, body, f"multipart/form-data; boundary={boundary}") as response:
            if response.status != 200:
                raise NodeRefused(response.status, _message(response))
            return response.read()

    def _line(self, host: str, port: int | None) -> http.client.HTTPConnection:
        """To the node, and to no other: with TLS it is known by its very certificate."""
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        return _OwnNode(host, port, self._tls["certificate"], self._tls["name"], self._timeout)

    @staticmethod
    def parsed(body: bytes) -> Json:
        """A JSON answer."""
        answer: Json = json.loads(body)
        return answer

    @contextmanager
    def _post(self, path: str, body: Json) -> Iterator[http.client.HTTPResponse]:
        """A good answer, to be read in the block. Leaving the block hangs up, which cancels a query."""
        with self._send("POST", path, json.dumps(body)) as response:
            if response.status != 200:
                raise NodeRefused(response.status, _message(response))
            yield response

    @contextmanager
    def _send(
        self, method: str, path: str, body: str | bytes | None = None, kind: str = "application/json"
    ) -> Iterator[http.client.HTTPResponse]:
        """Whatever answer comes, to be read in the block."""
        parts = urlsplit(self.url)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        with closing(self._line(parts.hostname or "", parts.port)) as line:
            try:
                line.request(method, path, body, headers)
                response = line.getresponse()
            except TimeoutError:
                raise NodeRefused(504, f"nothing for {self._timeout:.0f} s: the node at {self.url} hangs") from None
            except (OSError, http.client.HTTPException) as error:
                raise NoNode(f"the node at {self.url} does not answer ({error}); see `mtor doctor`") from None
            with response:
                try:
                    yield response
                except (OSError, http.client.HTTPException):
                    raise NodeRefused(502, BROKEN_OFF) from None


class _OwnNode(http.client.HTTPConnection):
    """A connection by TLS to a node whose certificate is known. The name in it is checked, too; it need not be this
    machine's, because a certificate is made for those who come from elsewhere."""

    def __init__(self, host: str, port: int | None, certificate: str, name: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # this one, whoever signed it
        self._context.load_verify_locations(cadata=certificate)
        self._name = name

    def connect(self) -> None:
        """See `http.client`."""
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)


def _message(response: http.client.HTTPResponse) -> str:
    body = response.read()
    try:
        message: str = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status}: {body[:200].decode(errors='replace')}"
    return message


def _alive(pid: int) -> bool:
    """True if a process with this id exists."""
    if os.name == "nt":
        return True  # a signal would end it there; connecting tells
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
