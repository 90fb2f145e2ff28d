"""Tools, JSON and log probabilities of an operator's server: what it is asked, what is taken of its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from node.engines.outer.engine import OuterEngine
from node.engines.port import CallPart, EngineError, Finished, Piece
from node.engines.process import EngineStartError
from node.engines.requests import chat_request
from protocol.messages import Call, ChatRequest, Chosen, Likelihood, Tool, Turn, Wishes
from tests.outer.servers import token
from tests.outer.world import RunningServer, answer, model_of, running

CHAT = "/v1/chat/completions"
CLOCK, WEATHER = Tool("clock", "", ""), Tool("weather", "of a city", '{"type":"object"}')


def wishing(**wished: Any) -> ChatRequest:
    return replace(chat_request("hello there", max_tokens=12), wishes=(Wishes(**wished),))


def able(server: RunningServer, can: str = "tools tool_choice", model: str = "tiny-llama") -> OuterEngine:
    return model_of(server, model=model, options={"can": can})


async def test_calls_are_passed_on_as_they_come(server: RunningServer) -> None:
    async with running(able(server)) as engine:
        events = await answer(engine, wishing(tools=(CLOCK, WEATHER)))
    parts = [event for event in events if isinstance(event, CallPart)]
    assert [part.name for part in parts if part.name] == ["clock", "weather"]
    assert "".join(part.arguments for part in parts) == '{"number": 0}{"number": 1}'
    assert [part.units_out for part in parts] == sorted(part.units_out for part in parts)
    last = events[-1]
    assert isinstance(last, Finished) and last.finish == "tool_calls"
    assert not any(event.text for event in events if isinstance(event, Piece)), "what stands behind calls is left out"


async def test_a_call_of_what_nobody_gave_it_costs_the_query(server: RunningServer) -> None:
    await server.fault("strange call")
    async with running(able(server)) as engine:
        with pytest.raises(EngineError, match="no tool of this query"):
            await answer(engine, wishing(tools=(CLOCK,)))


async def test_the_server_is_asked_in_its_own_words(server: RunningServer) -> None:
    async with running(able(server)) as engine:
        turns = (Turn("user", "time?"), Turn("assistant", ""), Turn("tool", "noon"))
        made = (Call(1, 2, "clock", '{"zone":"UTC"}'),)
        asked = wishing(tools=(CLOCK, WEATHER), must_call=1, one_call=1, calls=made)
        await answer(engine, replace(asked, turns=turns))
        body = await server.body(CHAT)
        assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
        assert body["tools"][1] == {
            "type": "function",
            "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
        }
        call = body["messages"][1]["tool_calls"][0]
        assert call["function"] == {"name": "clock", "arguments": '{"zone":"UTC"}'}
        assert body["messages"][2]["tool_call_id"] == call["id"]
        await answer(engine, wishing(schema='{"type":"object"}'))
        assert (await server.body(CHAT))["response_format"] == {"type": "json_object"}
        await answer(engine, wishing(schema='{"type":"object","title":"x"}', logprobs=1))
        body = await server.body(CHAT)
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object", "title": "x"}
        assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
        await answer(engine, chat_request("x", max_tokens=1))
        assert not {"tools", "tool_choice", "response_format", "logprobs"} & set(await server.body(CHAT))


async def test_likelihoods_are_taken_as_far_as_they_can_be_used(server: RunningServer) -> None:
    async with running(able(server)) as engine:
        events = await answer(engine, wishing(logprobs=1, likeliest=3))
        tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
        text = token(0).encode()
        assert len(tokens) == 12
        assert tokens[0] == Chosen(text, 500_000, (Likelihood(text, 500_000), Likelihood(b"\xc3", 9_999_000_000)))


async def test_what_a_server_can_do_is_its_familys_or_the_operators_word(server: RunningServer) -> None:
    for model, features in (("tiny-llama", (3, 4)), ("tiny-vllm", (3, 4)), ("tiny-plain", ())):
        async with running(model_of(server, model=model)) as engine:
            assert engine.info.features == features
    async with running(able(server, "logprobs, tools", "tiny-plain")) as engine:
        assert engine.info.features == (1, 4)
    with pytest.raises(EngineStartError, match="can is some of tools, tool_choice, json, logprobs, not magic"):
        able(server, "magic")
