"""Tools, JSON and log probabilities from end to end over fakes: who is asked, what comes back, who is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio

from node.answers import AnswerEvent, Delta, Question, Routed, TokenLogprob, ToolCalled
from node.engines.fake import ANSWER_TOKENS, FakeEngine, fake_answer, fake_token
from protocol.errors import ErrorCode
from protocol.messages import Tool, Wishes
from protocol.routing import Requirements
from protocol.wishes import ModelFeature
from tests.node.federation import Answered, memory_federation, question

CLOCK, WEATHER = Tool("clock", "", ""), Tool("weather", "of a city", '{"type":"object"}')
ALL = tuple(map(int, ModelFeature))


def wishing(**wished: Any) -> Question:
    asked = question()
    return replace(asked, request=replace(asked.request, wishes=(Wishes(**wished),)))  # type: ignore[call-arg]


def logprobs(answered: Answered) -> list[TokenLogprob]:
    return [token for event in answered.events if isinstance(event, Delta) for token in event.logprobs]


def calls(answered: Answered) -> list[ToolCalled]:
    return [event for event in answered.events if isinstance(event, ToolCalled)]


async def test_calls_come_whole_after_the_text_and_are_paid() -> None:
    async with memory_federation(FakeEngine(features=ALL)) as federation:
        answered = await federation.gateway.ask(wishing(tools=(CLOCK, WEATHER)))
        made = calls(answered)
        assert [(call.name, json.loads(call.arguments)) for call in made] == [
            ("clock", {"number": 0}),
            ("weather", {"number": 1}),
        ]
        assert len({call.id for call in made}) == 2 and all(call.id.startswith("call_") for call in made)
        done = answered.completed
        assert done.finish == "tool_calls" and done.units_out == 6 and done.shares[0].amount > 0


async def test_likelihoods_belong_to_the_text_also_after_a_failover() -> None:
    engines = [FakeEngine(seconds_per_token=0.02, features=ALL) for _ in range(2)]
    async with memory_federation(*engines) as federation:
        answered = Answered()
        async with trio.open_nursery() as nursery:
            asked = wishing(logprobs=1, likeliest=2)
            nursery.start_soon(federation.gateway.router.answer, asked, answered.emit)
            while len(answered.text.split()) < 10:
                await trio.sleep(0.01)
            federation.hub.kill(answered.workers[0])
        assert answered.completed.failover and answered.text == fake_answer(ANSWER_TOKENS)
        told = logprobs(answered)
        assert [token.token for token in told] == [fake_token(index) for index in range(ANSWER_TOKENS)]
        assert told[3] == TokenLogprob(
            fake_token(3), -0.250003, ((fake_token(3), -0.250003), ("\ufffd", -2.0)), fake_token(3).encode()
        )


async def test_calls_of_a_lost_worker_are_made_anew() -> None:
    engines = [FakeEngine(features=ALL), FakeEngine(features=ALL)]
    async with memory_federation(*engines) as federation:
        for engine in engines:
            engine.crash_after = 4  # in the middle of the second call
        answered = Answered()

        async def emit(event: AnswerEvent) -> None:
            if isinstance(event, Routed) and event.attempt == 1:
                for node, engine in zip(federation.workers, engines, strict=True):
                    engine.crash_after = 4 if node.signer.node == event.worker else None
            await answered.emit(event)

        await federation.gateway.router.answer(wishing(tools=(CLOCK, WEATHER)), emit)
        assert len(answered.workers) == 2
        assert [call.name for call in calls(answered)] == ["clock", "weather"]
        assert answered.completed.finish == "tool_calls"


async def test_only_models_that_can_are_asked() -> None:
    plain, able = FakeEngine("plain"), FakeEngine("able", features=ALL)
    async with memory_federation(plain, able) as federation:
        for _ in range(3):
            done = (await federation.gateway.ask(wishing(tools=(CLOCK,)))).completed
            assert done.model == "able"


async def test_what_nobody_can_do_is_told_at_once_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    async with memory_federation(FakeEngine("plain")) as federation:
        failed = (await federation.gateway.ask(wishing(tools=(CLOCK,), logprobs=1))).failed
        assert failed.code is ErrorCode.UNSUPPORTED_FEATURE and failed.retry_after_ms == 0
        assert "calls tools and gives log probabilities; on offer: plain answers text alone" in failed.message


async def test_a_worker_refuses_what_its_model_cannot_do() -> None:
    """Its offer said so once, and the model was exchanged since."""
    engine = FakeEngine("fake", features=ALL)
    async with memory_federation(engine) as federation:
        engine.features = ()
        failed = (await federation.gateway.ask(replace(wishing(schema="{}"), requirements=Requirements()))).failed
        assert failed.code is ErrorCode.UNSUPPORTED_FEATURE
        assert "no fake here answers JSON by a schema" in failed.message
