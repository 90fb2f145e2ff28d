"""What a client may send: read, or refused with the parameter's name; nothing is silently left out."""

import json
from typing import Any

import pytest

from node.gateway.failures import ApiError
from node.gateway.openai import Asked, read_chat_request
from protocol.params import MAX_INTEGER


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
        {"tools": [{}]},
        {"functions": [{}]},
        {"tool_choice": "required"},
        {"function_call": {"name": "f"}},
        {"top_logprobs": 3},
        {"logit_bias": {"5": 1}},
        {"modalities": ["audio"]},
        {"audio": {}},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_no_model_here_can_do_is_refused_by_name(used: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        read(**used)
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")
    assert refused.value.param == next(iter(used))


@pytest.mark.parametrize("harmless", [{"tool_choice": "none"}, {"modalities": ["text"]}, {"n": 1}, {"unknown": 1}])
def test_what_asks_for_nothing_more_is_taken(harmless: dict[str, Any]) -> None:
    assert read(**harmless).model == "auto"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "messages.0.tool_calls"),
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
