"""A running server process and engines that ask it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from node.engines.outer.engine import OuterEngine
from node.engines.outer.http import Access, OuterHttp
from node.engines.outer.serving import OuterModel, outer_engine
from node.engines.port import Data, Engine, EngineEvent, Piece
from protocol.requests import Request

PLENTY = 1_000_000
HERE = Path(__file__).parent


class RunningServer:
    """One process of `servers.py`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def fault(self, name: str, times: int = 1_000) -> None:
        """Spoil the next answers."""
        await self._control("POST", "/fault", {"name": name, "times": times})

    async def seen(self) -> dict[str, Any]:
        """What was asked, and how many askers went away."""
        told: dict[str, Any] = await self._control("GET", "/seen")
        return told

    async def body(self, path: str) -> dict[str, Any]:
        """The last thing that was asked at `path`."""
        found: dict[str, Any] = [each for each in (await self.seen())["seen"] if each["path"] == path][-1]["body"]
        return found

    async def reset(self) -> None:
        """Forget everything."""
        await self._control("POST", "/reset", {})

    async def _control(self, method: str, path: str, body: Any = None) -> Any:
        http = OuterHttp(Access(self.url))
        try:
            return await http.fetch(method, path, body=body)
        finally:
            await http.aclose()


@contextmanager
def running_server() -> Iterator[RunningServer]:
    """The process, ended by the end of its standard input."""
    command = [sys.executable, str(HERE / "servers.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield RunningServer(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(10)


@asynccontextmanager
async def running(engine: OuterEngine) -> AsyncIterator[OuterEngine]:
    """An engine whose health is watched."""
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


async def until(engine: OuterEngine, *, ready: bool) -> None:
    """Wait for it to come or go."""
    while engine.ready is not ready:
        await trio.sleep(0.02)


def model_of(
    server: RunningServer,
    engine: str = "openai",
    model: str = "tiny-llama",
    realm: str = "$CHAT",
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> OuterEngine:
    """An engine of one of the server's models. `options` and other fields of `OuterModel` as keywords."""
    url = f"{server.url}/v1" if engine == "openai" else server.url
    return outer_engine(OuterModel(engine, realm, model, **({"url": url} | more)), environment or {})


async def answer(
    engine: Engine, request: Request, prefix: str = "", inputs: tuple[bytes, ...] = (), grant: int = PLENTY
) -> list[EngineEvent]:
    """All events of an answer."""
    async with engine.generate(request, prefix, inputs) as generation:
        await generation.grant(grant)
        async with aclosing(generation.events()) as events:
            return [event async for event in events]


def text_of(events: list[EngineEvent]) -> str:
    """The text of an answer."""
    return "".join(event.text for event in events if isinstance(event, Piece))


def data_of(events: list[EngineEvent]) -> bytes:
    """The bytes of an answer."""
    return b"".join(event.data for event in events if isinstance(event, Data))
