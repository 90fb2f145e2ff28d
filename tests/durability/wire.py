"""Lines of JSON over local sockets: how the processes of a durability test talk, and how they tell what they did.

Rule: a process says that something was done after the call that did it returned; one line is one write to the pipe, so
a kill leaves whole lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.ids import NodeId
from protocol.messages import Message, Rejected

ANSWER_SECONDS = 5.0
MAX_LINE = 4 * 1024 * 1024

Json = dict[str, Any]


class LineBroken(Exception):
    """The other process is gone, or does not answer."""


def say(what: str, **facts: Any) -> None:
    """One line to the parent. Bytes become hex."""
    shown = {key: value.hex() if isinstance(value, bytes) else value for key, value in facts.items()}
    os.write(1, json.dumps({"what": what} | shown).encode() + b"\n")


class Line:
    """A connection on which lines go back and forth."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, message: Json) -> None:
        """Raises `LineBroken`."""
        try:
            await self._stream.send_all(json.dumps(message).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LineBroken("the other process is gone") from None

    async def receive(self) -> Json:
        """Raises `LineBroken`."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data or len(self._buffer) > MAX_LINE:
                raise LineBroken("the other process is gone")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: Json = json.loads(line)
        return message

    async def ask(self, message: Json) -> Json:
        """Raises `LineBroken`."""
        with trio.move_on_after(ANSWER_SECONDS):
            await self.send(message)
            return await self.receive()
        raise LineBroken("no answer")


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[Line]:
    """Raises `LineBroken`."""
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError:
        raise LineBroken(f"{path.name} does not listen") from None
    async with stream:
        yield Line(stream)


async def listen(path: Path, handle: Callable[[Line], Awaitable[None]], nursery: trio.Nursery) -> None:
    """Serve until cancelled; a broken line ends its own handler only."""
    with suppress(FileNotFoundError):
        await trio.Path(path).unlink()
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(str(path))
    listening.listen(64)

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(LineBroken):
                await handle(Line(stream))

    nursery.start_soon(trio.serve_listeners, guarded, [trio.SocketListener(listening)])


class RemotePeers(LedgerPeers):
    """Ledgers in other processes, by the socket that each one's process listens on."""

    def __init__(self, own: NodeId, sockets: Mapping[NodeId, Path]) -> None:
        self._own = own
        self._sockets = sockets

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        if node not in self._sockets:
            raise PeerUnreachable("it answers nobody")
        question = {"peer": self._own.hex(), "message": encode(request).hex()}
        try:
            async with connect(self._sockets[node]) as line:
                answer = decode(bytes.fromhex((await line.ask(question))["message"]), MAX_LINE)
        except (LineBroken, ProtocolError, ValueError, KeyError, TypeError) as broken:
            raise PeerUnreachable(f"it answers nothing that could be read: {broken}") from None
        if not isinstance(answer, expected | Rejected):
            raise PeerUnreachable(f"answered {type(answer).__name__}")
        return answer

    def connected(self) -> list[NodeId]:
        """See `LedgerPeers`."""
        return [node for node in self._sockets if node != self._own]
