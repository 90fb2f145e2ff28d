"""One server process for all tests of outer workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest
import trio

from tests.outer.world import RunningServer, running_server


@pytest.fixture(scope="session")
def process() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def server(process: RunningServer) -> AsyncGenerator[RunningServer, None]:
    """The process as if it had just been started."""
    with trio.fail_after(30):
        await process.reset()
        yield process
