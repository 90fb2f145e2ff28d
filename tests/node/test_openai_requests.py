"""What a client may send: read, or refused with the parameter's name; nothing is silently left out."""

import json
from typing import Any

import pytest

from node.gateway.failures import ApiError
from node.gateway.openai import Asked, read_chat_request
from protocol.messages import Tool, Wishes
from protocol.params import MAX_INTEGER
from protocol.wishes import NO_WISHES, wishes_of


def read(**changes: Any) -> Asked:
    """A good request with `changes`."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    return read_chat_request(json.dumps(body | changes).encode())


@pytest.mark.parametrize("seed", [0, MAX_INTEGER + 1, -(MAX_INTEGER + 1)])
def test_a_seed_of_zero_is_a_seed(seed: int) -> None:
    assert read(seed=seed).question.request.seed == MAX_INTEGER  # 0 would leave the choice to the worker


def test_no_seed_leaves_the_choice_to_the_worker() -> None:
    assert read().question.request.seed == 0 and read(seed=7).question.request.seed == 7


@pytest.mark.parametrize(
    "used",
    [
        {"functions": [{}]},
        {"function_call": {"name": "f"}},
        {"logit_bias": {"5": 1}},
        {"modalities": ["audio"]},
        {"audio": {}},
    ],
)
def test_what_no_model_here_can_do_is_refused_by_name(used: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        read(**used)
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")
    assert refused.value.param == next(iter(used))


TOOL = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize(
    "harmless",
    [
        {"tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [], "parallel_tool_calls": False},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"modalities": ["text"]},
        {"n": 1},
        {"unknown": 1},
    ],
)
def test_what_asks_for_nothing_more_is_taken(harmless: dict[str, Any]) -> None:
    assert read(**harmless).model == "auto"
    assert wishes_of(read(**harmless).question.request) is NO_WISHES


def test_wishes_travel() -> None:
    def wished(**changes: Any) -> Wishes:
        return wishes_of(read(**changes).question.request)

    clock, other = Tool("clock", "", ""), {"type": "function", "function": {"name": "other", "description": "x"}}
    assert wished(tools=[TOOL]) == Wishes(tools=(clock,))
    assert wished(tools=[TOOL], tool_choice="required") == Wishes(tools=(clock,), must_call=1)
    named = {"type": "function", "function": {"name": "clock"}}
    assert wished(tools=[TOOL, other], tool_choice=named) == Wishes(tools=(clock,), must_call=1, one_call=1)
    assert wished(tools=[TOOL], parallel_tool_calls=False) == Wishes(tools=(clock,), one_call=1)
    assert wished(logprobs=True) == Wishes(logprobs=1)
    assert wished(logprobs=True, top_logprobs=20) == Wishes(logprobs=1, likeliest=20)
    assert wished(response_format={"type": "json_object"}) == Wishes(schema='{"type":"object"}')
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "title": "é"}}}
    assert wished(response_format=schema) == Wishes(schema='{"type":"object","title":"é"}')


def test_each_choice_is_a_query_with_a_seed_of_its_own() -> None:
    asked = read(n=3, seed=MAX_INTEGER)
    assert [question.request.seed for question in asked.questions] == [MAX_INTEGER, MAX_INTEGER, 1]
    assert len({question.query_id for question in asked.questions}) == 3
    assert [question.request.seed for question in read(n=2).questions] == [0, 0]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "messages.0.tool_calls.0.id"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "messages.0.function_call"),
    ],
)
def test_a_message_that_is_not_all_text_is_refused_at_its_place(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(messages=[message])
    assert (refused.value.status, refused.value.param) == (400, param)


def test_names_are_bounded_in_bytes() -> None:
    with pytest.raises(ApiError) as refused:
        read(model="ü" * 100)
    assert refused.value.param == "model"
