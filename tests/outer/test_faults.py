"""Servers that lie, hang, break off and never stop: each costs one query, and nothing beyond the limits."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import trio

from node.engines.outer.http import OuterError
from node.engines.port import EngineError, Finished
from node.engines.requests import chat_request
from protocol.codec import encode
from protocol.errors import CODES, ErrorCode
from protocol.messages import Chunk
from tests.outer.world import RunningServer, answer, model_of, running, text_of, until

ASKED = chat_request("hello there", max_tokens=12)
LIMIT = 2 * 2**20


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("500", ErrorCode.ENGINE_FAILED),
        ("400", ErrorCode.UNSUPPORTED_FEATURE),
        ("401", ErrorCode.ENGINE_FAILED),
        ("404", ErrorCode.UNSUPPORTED_FEATURE),
        ("429", ErrorCode.OVERLOADED),
        ("context", ErrorCode.CONTEXT_OVERFLOW),
        ("html", ErrorCode.ENGINE_FAILED),
        ("no json", ErrorCode.ENGINE_FAILED),
        ("deep json", ErrorCode.ENGINE_FAILED),
        ("garbage event", ErrorCode.ENGINE_FAILED),
        ("error event", ErrorCode.ENGINE_FAILED),
        ("closes", ErrorCode.ENGINE_FAILED),
        ("ends early", ErrorCode.ENGINE_FAILED),
        ("endless line", ErrorCode.ENGINE_FAILED),
        ("endless comments", ErrorCode.ENGINE_FAILED),
        ("huge json", ErrorCode.ENGINE_FAILED),
        ("bomb", ErrorCode.ENGINE_FAILED),
        ("cut gzip", ErrorCode.ENGINE_FAILED),
        ("brotli", ErrorCode.ENGINE_FAILED),
        ("redirect out", ErrorCode.ENGINE_FAILED),
        ("redirect 302", ErrorCode.ENGINE_FAILED),
        ("redirect loop", ErrorCode.ENGINE_FAILED),
        ("redirect file", ErrorCode.ENGINE_FAILED),
    ],
)
async def test_a_fault_is_one_querys_end(server: RunningServer, fault: str, code: ErrorCode) -> None:
    async with running(
        model_of(server, model="tiny-plain", max_response_bytes=LIMIT, first_pause_seconds=0.01)
    ) as engine:
        await server.fault(fault)
        with pytest.raises(EngineError) as failed:
            await answer(engine, ASKED)
        assert failed.value.code is code and CODES[code].try_another
        for secret in (str(server.port), "127.0.0.1", "10.9.8.7", "secret prompt"):
            assert secret not in failed.value.message  # a stranger reads it
        await server.fault("", 0)
        await until(engine, ready=True)
        assert text_of(await answer(engine, ASKED)) != ""
        assert engine.stats().running == 0


@pytest.mark.parametrize("fault", ["huge json", "bomb", "endless line", "endless comments"])
async def test_no_more_than_the_limit_is_held(server: RunningServer, fault: str) -> None:
    async with running(model_of(server, max_response_bytes=LIMIT)) as engine:
        await server.fault(fault)
        tracemalloc.start()
        try:
            with pytest.raises(OuterError):
                await answer(engine, ASKED)
            assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
        finally:
            tracemalloc.stop()


async def test_a_server_that_hangs_is_left_when_the_asker_is(server: RunningServer) -> None:
    async with running(model_of(server)) as engine:
        await server.fault("hang")
        with trio.move_on_after(0.3) as patience:
            await answer(engine, ASKED)
        assert patience.cancelled_caught and engine.stats().running == 0
        while (await server.seen())["cut"] == 0:
            await trio.sleep(0.01)


async def test_a_server_that_is_silent_too_long_is_given_up(server: RunningServer) -> None:
    async with running(model_of(server, read_seconds=0.3)) as engine:
        await server.fault("hang")
        with pytest.raises(OuterError, match="broke off"):
            await answer(engine, ASKED)


async def test_a_model_that_never_stops_is_stopped(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        await server.fault("endless tokens")
        events = await answer(engine, ASKED)
        assert events[-1] == Finished("length", 7, 12) and text_of(events) == "more " * 12
        while (await server.seen())["cut"] == 0:
            await trio.sleep(0.01)


async def test_a_whole_answer_in_one_piece_is_cut_at_what_was_asked_for(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        await server.fault("big piece")
        events = await answer(engine, ASKED)
    assert text_of(events) == "x" * 12 * 64 and events[-1] == Finished("stop", 7, 12)


async def test_a_lying_count_is_bounded_by_what_was_delivered(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-vllm")) as engine:
        await server.fault("lying usage")
        events = await answer(engine, chat_request("x"))
        last = events[-1]
        assert text_of(events) == "one two three"
        assert isinstance(last, Finished) and last.units_out == len("one two three") + 16
        events = await answer(engine, chat_request("x", max_tokens=5))
        assert isinstance(events[-1], Finished) and events[-1].units_out == 5


async def test_strange_text_travels_as_text(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        await server.fault("strange text")
        text = text_of(await answer(engine, ASKED))
    assert text == "a\0\x1b[31m\ufffdb\ufffd<|im_end|>"
    encode(Chunk(0, 1, text))


async def test_events_that_mean_nothing_are_passed_over(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        await server.fault("odd events")
        assert text_of(await answer(engine, ASKED)) == "fine"


async def test_a_slow_drip_is_put_together(server: RunningServer) -> None:
    async with running(model_of(server, model="tiny-plain")) as engine:
        await server.fault("drip")
        events = await answer(engine, ASKED)
    assert text_of(events) == "grüße 日本" and events[-1] == Finished("stop", 7, 2)


async def test_a_failure_before_the_first_byte_is_tried_again(server: RunningServer) -> None:
    async with running(model_of(server, first_pause_seconds=0.01)) as engine:
        await server.fault("500", times=2)
        assert text_of(await answer(engine, ASKED)) != ""
        asked = [each for each in (await server.seen())["seen"] if each["path"] == "/v1/chat/completions"]
        assert len(asked) == 3


@pytest.mark.parametrize("fault", ["closes", "400", "html"])
async def test_nothing_else_is_tried_again(server: RunningServer, fault: str) -> None:
    async with running(model_of(server, model="tiny-plain", first_pause_seconds=0.01)) as engine:
        await server.fault(fault)
        with pytest.raises(EngineError):
            await answer(engine, ASKED)
        asked = [each for each in (await server.seen())["seen"] if each["path"] == "/v1/chat/completions"]
        assert len(asked) == 1


async def test_a_server_that_fails_is_looked_at_at_once(server: RunningServer) -> None:
    """Until it is well, nothing more is sent to it; then it is used again without anybody's doing."""
    async with running(model_of(server, first_pause_seconds=0.01)) as engine:
        began = time.monotonic()
        await server.fault("500")
        with pytest.raises(EngineError):
            await answer(engine, ASKED)
        await server.fault("models 500")
        await until(engine, ready=False)
        assert time.monotonic() - began < 14  # it would be asked every fifteen seconds
        with pytest.raises(OuterError, match="down") as refused:
            await answer(engine, ASKED)
        assert refused.value.retry_after_ms >= 1_000 and engine.stats().restarts == 1
        await server.fault("", 0)
        await until(engine, ready=True)
        assert engine.problem == "" and text_of(await answer(engine, ASKED)) != ""
