"""The only file that knows both loops: asyncio under aiohttp, trio under everything else.

Rule: a job runs on the trio side in a cancel scope of its own; its items cross in a bounded stream, so a slow client
slows its job and nothing else. Leaving the stream on the asyncio side cancels the job. When either loop ends first, the
other side sees an end, never a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

log = logging.getLogger("mtor.bridge")

BUFFERED_ITEMS = 32  # of one job, on their way to a client
CREDIT_ITEMS = 8  # taken by the client, after which the job hears of it: waking the other loop costs more than an item

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = Callable[[Callable[[Any], Awaitable[None]]], Awaitable[None]]


class NodeStopping(Exception):
    """The trio side is ending; there is nobody to do the job."""


class _End:
    """The last thing in a stream; with the job's error, if it had one."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class JobStream(Generic[Item]):
    """The asyncio side of one job: an asynchronous iterator and context manager."""

    def __init__(self, bridge: Bridge, job: Job) -> None:
        self._bridge = bridge
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item | _End] = deque()
        self._arrived = asyncio.Event()
        self._waking = False  # the asyncio loop was told of items and has not looked yet
        self._taken = 0
        self._credit: trio.Semaphore | None = None
        self._scope: trio.CancelScope | None = None
        self._left = False
        self._context = contextvars.copy_context()  # which query it is, for the log of the other side

    async def __aenter__(self) -> JobStream[Item]:
        self._bridge.soon(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        with contextlib.suppress(NodeStopping):
            self._bridge.soon(self._cancel)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Items until the job ends. Raises what the job raised."""
        while (item := await self.next()) is not None:
            yield item

    async def next(self, patience: float | None = None) -> Item | None:
        """The next item; None at the end. Raises what the job raised, and `TimeoutError` after `patience` seconds."""
        async with asyncio.timeout(patience if not self._items else None):
            while not self._items:
                self._arrived.clear()
                await self._arrived.wait()
        item = self._items[0]
        if isinstance(item, _End):  # it stays: whoever asks again hears the same
            if item.error is not None:
                raise item.error
            return None
        self._items.popleft()
        self._taken += 1
        if self._taken >= CREDIT_ITEMS:
            taken, self._taken = self._taken, 0
            with contextlib.suppress(NodeStopping):
                self._bridge.soon(partial(self._give_credit, taken))
        return item

    def _wake(self) -> None:
        self._waking = False
        self._arrived.set()

    # --- on the trio side ----------------------------------------------------------------------------

    def _start(self) -> None:
        self._credit = trio.Semaphore(BUFFERED_ITEMS)
        self._scope = trio.CancelScope()
        if not self._context.run(self._bridge.start_job, self._run):
            self._put(_End(NodeStopping("the node is stopping")))

    async def _run(self) -> None:
        assert self._scope is not None
        error: Exception | None = NodeStopping("the node is stopping")
        try:
            with self._scope:
                await self._job(self._emit)
                error = None
        except Exception as failure:
            error = failure
        finally:
            self._put(_End(error))

    async def _emit(self, item: Item) -> None:
        assert self._credit is not None
        await self._credit.acquire()
        self._put(item)

    def _put(self, item: Item | _End) -> None:
        self._items.append(item)
        if self._waking:
            return
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the asyncio loop is closed: nobody listens any more
            self._cancel()

    def _give_credit(self, items: int) -> None:
        if self._credit is not None:
            for _ in range(items):
                self._credit.release()

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


class Bridge:
    """Runs an asyncio program in a thread, and that program's jobs on the trio side."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._jobs: trio.Nursery | None = None

    # --- called on the asyncio side ------------------------------------------------------------------

    def stream(self, job: Job) -> JobStream[Any]:
        """A job and the items that it emits."""
        return JobStream(self, job)

    async def call(self, function: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        """One answer from the trio side. Raises what the function raised."""

        async def job(emit: Callable[[Result], Awaitable[None]]) -> None:
            await emit(await function(*arguments))

        async with self.stream(job) as stream:
            async for item in stream:
                result: Result = item
                return result
        raise NodeStopping("the node is stopping")

    def soon(self, function: Callable[[], None]) -> None:
        """Have the trio loop call `function`. Raises `NodeStopping`."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise NodeStopping("the node is stopping") from None

    # --- called on the trio side ---------------------------------------------------------------------

    def start_job(self, function: Callable[[], Awaitable[None]]) -> bool:
        """Start a job in the nursery; False if it is closing."""
        if self._jobs is None:
            return False
        self._jobs.start_soon(function)
        return True

    async def run(self, program: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Run `program` in a thread of its own until it ends. When this is cancelled, the program's event is set, its
        jobs are cancelled, and it has as long as it needs to say goodbye."""
        self._token = trio.lowlevel.current_trio_token()
        stopper: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def main() -> None:
            stop = asyncio.Event()
            stopper.append((asyncio.get_running_loop(), stop))
            await program(stop)

        async def stop_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                self._jobs = None
                for loop, stop in stopper:
                    with contextlib.suppress(RuntimeError):
                        loop.call_soon_threadsafe(stop.set)

        try:
            async with trio.open_nursery() as jobs:
                self._jobs = jobs
                jobs.start_soon(stop_when_cancelled)
                await trio.to_thread.run_sync(_run_asyncio, main)
                jobs.cancel_scope.cancel()
        finally:
            self._jobs = None


def _run_asyncio(main: Callable[[], Any]) -> None:
    """An asyncio run on uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
