"""A client of `/ws` for tests: aiohttp's, in a thread with a loop of its own.

Every wait ends: a gateway that hangs is a failed test, not a hanging one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import trio

from tests.node.gateway_world import HANG_SECONDS, World

Frame = dict[str, Any]
ENDS = ("completed", "failed", "cancelled")
ASK = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


class Client:
    """One socket. Frames that are waited for by one query are kept for the others."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._waiting: list[Frame] = []

    async def send(self, **frame: Any) -> None:
        """One frame."""
        await self.socket.send_str(json.dumps(frame))

    async def ask(self, name: str, route: str = "chat", **body: Any) -> None:
        """A query; for a chat `body` goes over a smallest request."""
        await self.send(type="ask", id=name, route=route, body=ASK | body if route == "chat" else body)

    async def frame(self, wanted: Callable[[Frame], bool] = lambda frame: True) -> Frame:
        """The next frame of a kind."""
        for index, frame in enumerate(self._waiting):
            if wanted(frame):
                return self._waiting.pop(index)
        while True:
            message = await asyncio.wait_for(self.socket.receive(), HANG_SECONDS)
            assert message.type is aiohttp.WSMsgType.TEXT, (message, self.socket.close_code)
            frame = json.loads(message.data)
            if wanted(frame):
                return frame  # type: ignore[no-any-return]
            self._waiting.append(frame)

    async def of(self, name: str) -> Frame:
        """The next frame about a query."""
        return await self.frame(lambda frame: frame.get("id") == name)

    async def until(self, name: str, *kinds: str) -> list[Frame]:
        """Frames about a query, up to one of these kinds (by default its end)."""
        frames = [await self.of(name)]
        while frames[-1]["type"] not in (kinds or ENDS):
            frames.append(await self.of(name))
        return frames

    async def closed(self) -> int | None:
        """The code with which the node closes the socket; frames on the way are passed over."""
        while (await asyncio.wait_for(self.socket.receive(), HANG_SECONDS)).type is aiohttp.WSMsgType.TEXT:
            pass
        return self.socket.close_code

    def vanish(self) -> None:
        """As if the machine had lost its network: nothing is said."""
        response = self.socket._response
        assert response.connection is not None and response.connection.transport is not None
        response.connection.transport.abort()


Talk = Callable[[Callable[[], Awaitable[Client]]], Awaitable[None]]


async def talk(world: World, conversation: Talk, headers: Mapping[str, str] | None = None) -> None:
    """Have a conversation; it is handed something that opens sockets."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            clients: list[Client] = []

            async def connect() -> Client:
                url = world.url.replace("http", "ws") + "/ws"
                clients.append(Client(await session.ws_connect(url, headers=headers, max_msg_size=0)))
                return clients[-1]

            try:
                async with asyncio.timeout(2 * HANG_SECONDS):
                    await conversation(connect)
            finally:
                await asyncio.gather(*(client.socket.close() for client in clients))

    await trio.to_thread.run_sync(lambda: asyncio.run(main()))


def text_of(frames: list[Frame]) -> str:
    """The text of an answer."""
    return "".join(frame["text"] for frame in frames if frame["type"] == "delta")


def without_gaps(frames: list[Frame], first: int = 1) -> bool:
    """True if the events' numbers follow each other."""
    return [frame["seq"] for frame in frames] == list(range(first, first + len(frames)))
