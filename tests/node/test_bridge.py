"""The bridge between the loops: order, bounds, cancellation, and an end on both sides whoever ends first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel

from node.gateway.bridge import BUFFERED_ITEMS, CREDIT_ITEMS, Bridge, NodeStopping
from tests.node.gateway_world import HANG_SECONDS, until

Emit = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def running(bridge: Bridge, program: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[None]:
    """A bridge whose program runs until the block ends."""
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, program)
            yield
            nursery.cancel_scope.cancel()


async def run_to_end(bridge: Bridge, program: Callable[[], Awaitable[None]]) -> None:
    """A program that ends by itself."""

    async def with_event(stop: asyncio.Event) -> None:
        await asyncio.wait_for(program(), HANG_SECONDS)

    await bridge.run(with_event)


async def test_items_come_in_order_and_the_stream_ends() -> None:
    bridge, got = Bridge(), []

    async def job(emit: Emit) -> None:
        for number in range(1_000):
            await emit(number)

    async def program() -> None:
        async with bridge.stream(job) as stream:
            got.extend([item async for item in stream])

    await run_to_end(bridge, program)
    assert got == list(range(1_000))


async def test_a_call_gives_what_the_function_gives() -> None:
    bridge, got = Bridge(), []

    async def add(one: int, two: int) -> int:
        await trio.lowlevel.checkpoint()  # proves that it runs under trio
        return one + two

    async def program() -> None:
        got.extend(await asyncio.gather(*(bridge.call(add, number, 1) for number in range(50))))

    await run_to_end(bridge, program)
    assert got == list(range(1, 51))


async def test_an_error_comes_after_the_items_before_it() -> None:
    bridge, got = Bridge(), []

    async def job(emit: Emit) -> None:
        await emit("one")
        raise KeyError("two")

    async def program() -> None:
        with pytest.raises(KeyError, match="two"):
            async with bridge.stream(job) as stream:
                async for item in stream:
                    got.append(item)
        with pytest.raises(KeyError):
            await bridge.call(failing)
        assert await bridge.call(working) == "still here"

    async def failing() -> str:
        raise KeyError("three")

    async def working() -> str:
        return "still here"

    await run_to_end(bridge, program)
    assert got == ["one"]


async def test_a_reader_that_waits_bounds_what_is_emitted() -> None:
    bridge, emitted, seen = Bridge(), [0], []

    async def job(emit: Emit) -> None:
        while True:
            await emit("x")
            emitted[0] += 1

    async def program() -> None:
        async with bridge.stream(job) as stream:
            items = aiter(stream)
            taken = 0
            for more in (1, 10, 100):
                for _ in range(more):
                    await anext(items)
                taken += more
                while emitted[0] <= taken + BUFFERED_ITEMS - CREDIT_ITEMS:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.02)  # time to overrun, for a bridge that does not hold back
                seen.append(emitted[0] - taken)
            await items.aclose()  # type: ignore[attr-defined]

    await run_to_end(bridge, program)
    assert all(BUFFERED_ITEMS - CREDIT_ITEMS < ahead <= BUFFERED_ITEMS for ahead in seen)


async def test_leaving_the_stream_cancels_the_job_and_no_other() -> None:
    bridge, cancelled = Bridge(), []
    other_ended = []

    async def endless(emit: Emit) -> None:
        try:
            while True:
                await emit("x")
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            cancelled.append(True)
            raise

    async def short(emit: Emit) -> None:
        while not cancelled:
            await trio.sleep(0.001)
        await emit("after the other was cancelled")

    async def leave_early() -> None:
        async with bridge.stream(endless) as stream:
            async for _ in stream:
                break

    async def stay() -> None:
        async with bridge.stream(short) as stream:
            other_ended.extend([item async for item in stream])

    async def program() -> None:
        await asyncio.gather(stay(), leave_early())

    await run_to_end(bridge, program)
    assert cancelled == [True] and other_ended == ["after the other was cancelled"]


async def test_a_stream_left_before_its_first_item_is_cancelled() -> None:
    bridge, ended = Bridge(), []

    async def job(emit: Emit) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async def program() -> None:
        for _ in range(100):
            async with bridge.stream(job):
                pass
        while len(ended) < 100:  # cancelled, though nobody took an item
            await asyncio.sleep(0.001)

    await run_to_end(bridge, program)


async def test_when_the_trio_side_ends_readers_see_an_end() -> None:
    bridge, said = Bridge(), []

    async def silent(emit: Emit) -> None:
        await emit("first")
        await trio.sleep_forever()

    async def program(stop: asyncio.Event) -> None:
        try:
            async with bridge.stream(silent) as stream:
                async for item in stream:
                    said.append(item)
        except NodeStopping:
            said.append("stopping")
        await stop.wait()
        with pytest.raises(NodeStopping):
            await asyncio.wait_for(bridge.call(trio.sleep, 0), HANG_SECONDS)
        said.append("refused")

    async with running(bridge, program):
        await until(lambda: said == ["first"])
    assert said == ["first", "stopping", "refused"]


async def test_when_the_program_ends_its_jobs_are_cancelled() -> None:
    bridge, started, cancelled = Bridge(), [], []

    async def job(emit: Emit) -> None:
        started.append(True)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(True)
            raise

    async def program() -> None:
        stream = bridge.stream(job)
        await stream.__aenter__()  # and never left
        while not started:
            await asyncio.sleep(0.001)

    with trio.fail_after(HANG_SECONDS):
        await run_to_end(bridge, program)
    assert cancelled == [True]


async def test_a_program_that_fails_is_heard() -> None:
    async def program() -> None:
        raise KeyError("of the program")

    with pytest.raises(ExceptionGroup) as failure:
        await run_to_end(Bridge(), program)
    assert failure.group_contains(KeyError, match="of the program")
