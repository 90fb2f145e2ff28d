"""Choices, tools, JSON and log probabilities over HTTP, in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from node.answers import Delta, Question, TokenLogprob, ToolCalled
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest
from protocol.wishes import wishes_of
from tests.node.gateway_world import ROUTED, Emit, completed, events, failing, gateway_world

TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
HALF = TokenLogprob("\ufffd", -0.5, (("\ufffd", -0.5), ("a", -2.0)), b"\xc3")
LIKELY = events(ROUTED, Delta("Hé", (TokenLogprob("H", -0.25, (("H", -0.25),), b"H"), HALF)), completed())
CALLING = events(
    ROUTED,
    ToolCalled("call_1", "clock", '{"zone":"UTC"}'),
    ToolCalled("call_2", "clock", "{}"),
    completed("tool_calls"),
)


def seed(question: Question) -> int:
    assert isinstance(question.request, ChatRequest)
    return question.request.seed


async def by_seed(question: Question, emit: Emit) -> None:
    """An answer that tells the query's seed; larger seeds answer sooner."""
    await emit(ROUTED)
    for part in ("seed ", str(seed(question))):
        await trio.sleep(0.02 * (10 - seed(question)))
        await emit(Delta(part))
    await emit(completed())


async def test_choices_are_queries_side_by_side_with_following_seeds(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, by_seed) as world:
        reply = await world.chat(n=3, seed=5)
        assert [(each["index"], each["message"]["content"]) for each in reply.json["choices"]] == [
            (0, "seed 5"),
            (1, "seed 6"),
            (2, "seed 7"),
        ]
        assert reply.json["usage"] == {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30}
        assert reply.json["mtor"]["cost_micro"] == 48 and len(reply.json["mtor"]["shares"]) == 3
        assert [each["mtor"]["cost_micro"] for each in reply.json["choices"]] == [16, 16, 16]
        assert len({question.query_id for question in world.answers.asked}) == 3


async def test_streamed_choices_share_a_stream(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, by_seed) as world:
        reply = await world.chat(n=3, seed=5, stream=True, stream_options={"include_usage": True})
        said: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
        order = []
        *chunks, last = reply.chunks
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            said[choice["index"]].append(choice)
            order.append(choice["index"])
        for index, choices in said.items():
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(each["delta"].get("content", "") for each in choices) == f"seed {5 + index}"
            assert [each["finish_reason"] for each in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert order != sorted(order), "they come side by side"
        assert last["choices"] == [] and last["usage"]["total_tokens"] == 30
        assert reply.frames[-1] == "[DONE]" and len({chunk["id"] for chunk in reply.chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_one_choice_that_fails_fails_the_request(tmp_path: Path, stream: bool) -> None:
    async def script(question: Question, emit: Emit) -> None:
        if seed(question) == 6:
            await failing(ErrorCode.ENGINE_FAILED, "crashed")(question, emit)
            return
        await emit(ROUTED)
        await trio.sleep_forever()

    async with gateway_world(tmp_path, script) as world:
        reply = await world.chat(n=2, seed=5, stream=stream)
        assert reply.status == 502 and reply.error["message"] == "crashed"
        while world.answers.cancelled < 1:
            await trio.sleep(0.01)


async def test_a_choice_that_fails_in_mid_stream_ends_it_without_done(tmp_path: Path) -> None:
    async def script(question: Question, emit: Emit) -> None:
        after = ("one",) if seed(question) == 5 else ()
        await trio.sleep(0.1 * (seed(question) - 5))
        await failing(ErrorCode.ENGINE_FAILED, "crashed", after)(question, emit)

    async with gateway_world(tmp_path, script) as world:
        reply = await world.chat(n=2, seed=5, stream=True)
        assert "crashed" in reply.frames[-1] and "[DONE]" not in reply.frames


async def test_calls_of_tools_in_one_piece(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, CALLING) as world:
        choice = (await world.chat(tools=[TOOL])).json["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        assert choice["message"]["tool_calls"][0] == {
            "id": "call_1",
            "type": "function",
            "function": {"name": "clock", "arguments": '{"zone":"UTC"}'},
        }
        asked = wishes_of(world.answers.asked[0].request)
        assert [(tool.name, tool.parameters) for tool in asked.tools] == [("clock", '{"type":"object"}')]


async def test_calls_of_tools_in_a_stream(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, CALLING) as world:
        chunks = (await world.chat(tools=[TOOL], stream=True)).chunks
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        called = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [(call["index"], call["id"], call["function"]["name"]) for call in called] == [
            (0, "call_1", "clock"),
            (1, "call_2", "clock"),
        ]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities(tmp_path: Path, stream: bool) -> None:
    async with gateway_world(tmp_path, LIKELY) as world:
        reply = await world.chat(logprobs=True, top_logprobs=2, stream=stream)
        shapes = [chunk["choices"][0] for chunk in reply.chunks] if stream else reply.json["choices"]
        found = [shape["logprobs"] for shape in shapes if shape.get("logprobs")]
        assert found == [
            {
                "content": [
                    {
                        "token": "H",
                        "logprob": -0.25,
                        "bytes": [72],
                        "top_logprobs": [{"token": "H", "logprob": -0.25, "bytes": [72]}],
                    },
                    {
                        "token": "\ufffd",
                        "logprob": -0.5,
                        "bytes": [0xC3],
                        "top_logprobs": [
                            {"token": "\ufffd", "logprob": -0.5, "bytes": None},
                            {"token": "a", "logprob": -2.0, "bytes": [97]},
                        ],
                    },
                ],
                "refusal": None,
            }
        ]


async def test_what_no_model_can_do_is_a_400_that_says_who_can_what(tmp_path: Path) -> None:
    why = "no model on offer in $CHAT calls tools; on offer: tiny answers text alone"
    async with gateway_world(tmp_path, failing(ErrorCode.UNSUPPORTED_FEATURE, why)) as world:
        reply = await world.chat(tools=[TOOL])
        assert reply.status == 400 and reply.error["code"] == "unsupported_feature" and reply.error["message"] == why


Wrong = Callable[[], dict[str, Any]]
ASKED = [{"role": "user", "content": "time?"}]
MADE = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "clock", "arguments": ""}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "noon"}


async def test_a_conversation_with_calls_and_results(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        assert (await world.chat(messages=[*ASKED, MADE, RESULT])).status == 200
        request = world.answers.asked[0].request
        assert isinstance(request, ChatRequest)
        assert [(turn.role, turn.text) for turn in request.turns] == [
            ("user", "time?"),
            ("assistant", ""),
            ("tool", "noon"),
        ]
        (call,) = wishes_of(request).calls
        assert (call.turn, call.answer, call.name, call.arguments) == (1, 2, "clock", "{}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 70_000}}]},
            "tools.0.function.description",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"a": json.loads("[" * 70 + "]" * 70)}},
                    }
                ]
            },
            "tools.0.function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [*ASKED, RESULT]}, "messages.1.tool_call_id"),
        ({"messages": [*ASKED, MADE, RESULT, RESULT]}, "messages.3.tool_call_id"),
        ({"messages": [*ASKED, MADE, {"role": "tool", "content": "x"}]}, "messages.2.tool_call_id"),
        ({"messages": [*ASKED, MADE, MADE, RESULT]}, "messages.2.tool_calls.0.id"),
        ({"messages": [MADE | {"role": "user"}]}, "messages.0.tool_calls"),
        (
            {"messages": [MADE | {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]}, *ASKED]},
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
async def test_what_cannot_be_used_is_refused_at_its_place(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.chat(**fields)
        assert (reply.status, reply.error["param"]) == (400, param)
        assert not world.answers.asked
