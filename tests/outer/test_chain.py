"""A node behind a node: the gateway is an OpenAI-compatible server too, and a real one."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from node.answers import Delta, Question
from node.engines.outer.engine import OuterEngine
from node.engines.outer.serving import OuterModel, outer_engine
from node.engines.port import EngineError, Finished, Piece
from node.engines.requests import chat_request
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest
from tests.node.gateway_world import MODEL, ROUTED, Emit, failing, gateway_world, saying
from tests.outer.world import answer, running, text_of

ASKED = chat_request("hi", max_tokens=5, temperature=250, repetition_penalty=1_100, seed=3, stop=("END",))


def behind(url: str) -> OuterEngine:
    return outer_engine(OuterModel("openai", "$CHAT", MODEL, f"{url}/v1"), {})


async def test_a_node_answers_through_another(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Hel", "lo", " all")) as world, running(behind(world.url)) as engine:
        assert engine.ready and engine.info.context_tokens == 8_192
        events = await answer(engine, ASKED)
        assert text_of(events) == "Hello all"
        assert events[-1] == Finished("stop", 5, 3)
        assert world.answers.asked[0].request == ASKED  # every parameter came through
        with pytest.raises(EngineError) as refused:
            await answer(engine, ASKED, prefix="Hel")  # a gateway begins anew
        assert refused.value.code is ErrorCode.UNSUPPORTED_FEATURE


async def test_what_fails_there_fails_here(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.OVERLOADED, "full")) as world:
        async with running(behind(world.url)) as engine:
            with pytest.raises(EngineError) as before:
                await answer(engine, ASKED)
            assert before.value.code is ErrorCode.OVERLOADED
            world.answers.script = failing(ErrorCode.WORKER_LOST, "gone", after=("Hel",))
            with pytest.raises(EngineError) as amid:
                await answer(engine, ASKED)
            assert amid.value.code is ErrorCode.ENGINE_FAILED


async def test_a_cancel_reaches_the_far_end(tmp_path: Path) -> None:
    async def for_ever(question: Question, emit: Emit) -> None:
        assert isinstance(question.request, ChatRequest)
        await emit(ROUTED)
        while True:
            await emit(Delta("on "))
            await trio.sleep(0.01)

    async with gateway_world(tmp_path, for_ever) as world, running(behind(world.url)) as engine:
        async with engine.generate(chat_request("hi"), "") as generation, aclosing(generation.events()) as events:
            await generation.grant(3)
            async for event in events:
                if isinstance(event, Piece) and event.units_out == 3:
                    await generation.cancel()
        while not world.answers.cancelled:
            await trio.sleep(0.01)
