"""A node behind a node: the gateway is an OpenAI-compatible server too, and a real one."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from node.answers import Bytes, Delta, Question
from node.engines.outer.engine import OuterEngine
from node.engines.outer.serving import OuterModel, outer_engine
from node.engines.port import EngineError, Finished, Piece
from node.engines.requests import chat_request
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, ImagineRequest, Media, SpeakRequest, TranscribeRequest
from protocol.requests import Request
from tests.node.gateway_world import MODEL, ROUTED, Emit, completed, events, failing, gateway_world, saying
from tests.outer.servers import png, wav
from tests.outer.world import answer, data_of, running, text_of

ASKED = chat_request("hi", max_tokens=5, temperature=250, repetition_penalty=1_100, seed=3, stop=("END",))


def behind(url: str) -> OuterEngine:
    return outer_engine(OuterModel("openai", "$CHAT", MODEL, f"{url}/v1"), {})


async def test_a_node_answers_through_another(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Hel", "lo", " all")) as world, running(behind(world.url)) as engine:
        assert engine.ready and engine.info.context_tokens == 8_192
        said = await answer(engine, ASKED)
        assert text_of(said) == "Hello all"
        assert said[-1] == Finished("stop", 5, 3)
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
        async with engine.generate(chat_request("hi"), "") as generation, aclosing(generation.events()) as coming:
            await generation.grant(3)
            async for event in coming:
                if isinstance(event, Piece) and event.units_out == 3:
                    await generation.cancel()
        while not world.answers.cancelled:
            await trio.sleep(0.01)


async def test_pictures_sound_and_text_come_through_too(tmp_path: Path) -> None:
    picture, tone = png(30, 20), wav(4)[44:]
    asked: list[tuple[str, Request, tuple[bytes, ...]]] = [
        ("imagine", ImagineRequest("a barn", "", 30, 20, 4, 0, 5, 0), ()),
        ("speak", SpeakRequest("four", "anna", 1_000), ()),
        ("transcribe", TranscribeRequest((Media("audio", len(wav(4)), 0),), "en", "", 0, 0, 0), (wav(4),)),
    ]
    scripts = {
        "imagine": events(ROUTED, Bytes("image/png", picture), completed()),
        "speak": events(ROUTED, Bytes("audio/pcm;rate=24000", tone), completed()),
        "transcribe": saying("well said"),
    }
    async with gateway_world(tmp_path) as world:
        for serves, request, inputs in asked:
            world.answers.script = scripts[serves]
            model = OuterModel("openai", "$SPEECH", MODEL, f"{world.url}/v1", {"serves": serves})
            async with running(outer_engine(model, {})) as engine:
                found = await answer(engine, request, inputs=inputs)
            assert text_of(found) == ("well said" if serves == "transcribe" else "")
            assert data_of(found) == {"imagine": picture, "speak": tone, "transcribe": b""}[serves]
            assert world.answers.asked[-1].inputs == inputs
    sent = [question.request for question in world.answers.asked]
    assert sent[:2] == [asked[0][1], asked[1][1]]
