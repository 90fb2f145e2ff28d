"""What every engine promises, asked of the fake one, of the real one in its child process and of outer servers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from node.engines.fake import FakeEngine
from node.engines.port import Engine, EngineError, EngineEvent, Finished, Generation, Piece, Prompted
from node.engines.process import ModelFolder, ProcessEngine
from node.engines.requests import chat_request
from node.engines.tiny import make_tiny_model
from protocol.errors import ErrorCode
from tests.outer.world import RunningServer, model_of, running, running_server

PLENTY = 1_000_000
ASKED = chat_request("hello there", max_tokens=24)


@asynccontextmanager
async def _fake(folder: Path, server: RunningServer) -> AsyncIterator[Engine]:
    yield FakeEngine()


@asynccontextmanager
async def _process(folder: Path, server: RunningServer) -> AsyncIterator[Engine]:
    engine = ProcessEngine(ModelFolder("tiny", folder, bytes(32)), device="cpu", threads=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Speaks as llama.cpp's server and as vLLM do."""
    with running_server() as running_one:
        yield running_one


def _server(model: str) -> Callable[[Path, RunningServer], AbstractAsyncContextManager[Engine]]:
    def made(folder: Path, server: RunningServer) -> AbstractAsyncContextManager[Engine]:
        return running(model_of(server, model=model))

    return made


@pytest.fixture(params=[_fake, _server("tiny-llama"), _server("tiny-vllm")], ids=["fake", "llama", "vllm"])
async def engine(
    request: pytest.FixtureRequest, tiny_folder: Path, server: RunningServer
) -> AsyncGenerator[Engine, None]:
    with trio.fail_after(60):
        async with request.param(tiny_folder, server) as made:
            yield made


async def rest(generation: Generation) -> list[EngineEvent]:
    async with aclosing(generation.events()) as events:
        return [event async for event in events]


async def answer(engine: Engine, request: Any = ASKED, prefix: str = "", grant: int = PLENTY) -> list[EngineEvent]:
    async with engine.generate(request, prefix) as generation:
        await generation.grant(grant)
        return await rest(generation)


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


async def until(
    generation: Generation, units_out: int, then: Callable[[], Awaitable[None]], seen: list[EngineEvent]
) -> None:
    """Collect all events; call `then` once, when `units_out` tokens are out."""
    done = False
    async with aclosing(generation.events()) as events:
        async for event in events:
            seen.append(event)
            if isinstance(event, Piece) and event.units_out >= units_out and not done:
                done = True
                await then()


async def test_events_come_in_order_and_count_up(engine: Engine) -> None:
    events = await answer(engine)
    assert isinstance(events[0], Prompted) and events[0].units_in > 0
    last = events[-1]
    assert isinstance(last, Finished)
    pieces = events[1:-1]
    assert all(isinstance(piece, Piece) for piece in pieces)
    counts = [piece.units_out for piece in pieces if isinstance(piece, Piece)]
    assert counts == sorted(set(counts)) and counts[-1] == last.units_out == 24
    assert (last.finish, last.units_in) == ("length", events[0].units_in)


async def test_the_same_question_has_the_same_answer(engine: Engine) -> None:
    first, second = await answer(engine), await answer(engine)
    assert text_of(first) == text_of(second) != ""
    assert engine.ready and engine.info.context_tokens > 0 and engine.stats().running == 0


async def test_the_prompt_is_counted_before_any_grant_and_nothing_is_produced(engine: Engine) -> None:
    async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
        assert isinstance(await anext(events), Prompted)
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.3):
            await anext(events)


async def test_output_stops_at_the_grant_and_goes_on_with_the_next(engine: Engine) -> None:
    whole = text_of(await answer(engine))
    async with engine.generate(ASKED, "") as generation:
        await generation.grant(7)
        await generation.grant(3)  # lower than before: changes nothing
        seen: list[EngineEvent] = []
        stopped_at: list[int] = []

        async def more() -> None:
            await trio.sleep(0.2)  # what could come too early would come now
            stopped_at.append(engine.stats().running)
            await generation.grant(PLENTY)

        await until(generation, 7, more, seen)
    counts = [event.units_out for event in seen if isinstance(event, Piece)]
    assert 7 in counts and stopped_at == [1]
    assert text_of(seen) == whole


async def test_nothing_beyond_the_grant_arrives(engine: Engine) -> None:
    highest = 0
    async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
        await generation.grant(5)
        with trio.move_on_after(0.5):
            async for event in events:
                highest = max(highest, event.units_out if isinstance(event, Piece) else 0)
    assert highest == 5


async def test_cancel_ends_with_a_finished_that_counts_what_was_delivered(engine: Engine) -> None:
    seen: list[EngineEvent] = []
    async with engine.generate(ASKED, "") as generation:
        await generation.grant(4)
        await until(generation, 4, generation.cancel, seen)
    last = seen[-1]
    assert isinstance(last, Finished)
    assert (last.finish, last.units_out) == ("cancelled", 4)


async def test_cancel_before_the_first_grant(engine: Engine) -> None:
    async with engine.generate(ASKED, "") as generation:
        await generation.cancel()
        events = await rest(generation)
    assert events[-1] == Finished("cancelled", events[-1].units_in, 0)  # type: ignore[union-attr]


async def test_leaving_the_context_frees_the_engine_for_the_next(engine: Engine) -> None:
    async with engine.generate(ASKED, "") as generation, aclosing(generation.events()) as events:
        await generation.grant(PLENTY)
        await anext(events)
    assert engine.stats().running == 0
    assert text_of(await answer(engine)) != ""


async def test_a_continuation_goes_on_where_the_prefix_ends(engine: Engine) -> None:
    whole = text_of(await answer(engine))
    halves = await answer(engine, dataclasses.replace(ASKED, max_tokens=11))
    first = text_of(halves)
    assert whole.startswith(first)
    second = await answer(engine, dataclasses.replace(ASKED, max_tokens=13), prefix=first)
    assert first + text_of(second) == whole
    assert isinstance(halves[0], Prompted) and isinstance(second[0], Prompted)
    assert second[0].units_in > halves[0].units_in  # the prefix has to be read


async def test_answers_at_the_same_time_do_not_mix(engine: Engine) -> None:
    questions = [chat_request(text, max_tokens=20) for text in ("one", "two", "three")]
    alone = [text_of(await answer(engine, question)) for question in questions]
    together: dict[int, str] = {}

    async def ask(index: int) -> None:
        together[index] = text_of(await answer(engine, questions[index]))

    async with trio.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(ask, index)
    assert [together[index] for index in range(3)] == alone


async def test_strange_roles_are_refused_and_the_engine_lives(engine: Engine) -> None:
    tool = dataclasses.replace(ASKED.turns[0], role="tool")
    with pytest.raises(EngineError) as refused:
        await answer(engine, dataclasses.replace(ASKED, turns=(tool,)))
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert "tool" in refused.value.message
    assert text_of(await answer(engine)) != ""


def _checks() -> list[Callable[[Engine], Awaitable[None]]]:
    """The tests of this file that take an engine alone."""
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    return [test for test in tests if list(inspect.signature(test).parameters) == ["engine"]]


async def test_an_engine_in_a_child_process_keeps_it_all(
    tiny_folder: Path, server: RunningServer, subtests: pytest.Subtests
) -> None:
    """One child for all that is above: its start takes longer than any of it."""
    with trio.fail_after(300):
        async with _process(tiny_folder, server) as child:
            for check in _checks():
                with subtests.test(check.__name__):
                    await check(child)
            assert len(_checks()) > 10 and child.stats().restarts == 0
