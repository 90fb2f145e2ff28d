"""JSON, calls of tools and likelihoods from torch: a model that writes nonsense is held to what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engines.port import CallPart, EngineError, EngineEvent, Finished, Piece
from node.engines.requests import chat_request
from node.engines.tiny import TOOLS_TEMPLATE, make_tiny_model
from node.engines.torch_chat import ChatBatch, ChatModel
from protocol.errors import ErrorCode
from protocol.messages import Call, ChatRequest, Tool, Turn, Wishes

Events = list[EngineEvent | EngineError]

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)
CLOCK = Tool("clock", "the time", '{"type":"object","properties":{"zone":{"type":"string"}},"required":["zone"]}')


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder, TOOLS_TEMPLATE)
    return ChatModel(folder, "cpu", 1, "fp32")


def wishing(max_tokens: int = 80, seed: int = 1, **wished: Any) -> ChatRequest:
    request = chat_request("hi", max_tokens=max_tokens, temperature=900, repetition_penalty=1_100, seed=seed)
    return replace(request, wishes=(Wishes(**wished),) if wished else ())


def answers(model: ChatModel, *requests: ChatRequest, prefix: str = "", cache: int = 2**20) -> list[Events]:
    """All of them at once."""
    batch = ChatBatch(model, len(requests), cache)
    events: dict[int, Events] = {key: [] for key in range(len(requests))}
    for key, request in enumerate(requests):
        batch.begin(key, request, prefix)
        batch.grant(key, 10**6)
    while batch.runnable:
        for key, event in batch.step():
            events[key].append(event)
    return list(events.values())


def text(events: Events) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def finish(events: Events) -> str:
    last = events[-1]
    assert isinstance(last, Finished), last
    return last.finish


def calls(events: Events) -> list[tuple[str, Any]]:
    made: list[tuple[str, str]] = []
    for part in (event for event in events if isinstance(event, CallPart)):
        if part.name:
            made.append((part.name, part.arguments))
        else:
            made[-1] = (made[-1][0], made[-1][1] + part.arguments)
    return [(name, json.loads(arguments)) for name, arguments in made]


def test_what_a_model_can_do_is_told_by_its_template(tiny: ChatModel, tmp_path: Path) -> None:
    assert tiny.features == (1, 2, 3, 4)
    make_tiny_model(tmp_path / "plain")
    assert ChatModel(tmp_path / "plain", "cpu", 1, "fp32").features == (3, 4)


@pytest.mark.parametrize("max_tokens", [24, 60, 200])
def test_json_is_whole_whatever_the_model_would_write(tiny: ChatModel, max_tokens: int) -> None:
    requests = [wishing(max_tokens, seed, schema=SCHEMA) for seed in range(1, 7)]
    *shaped, free = answers(tiny, *requests, wishing(20))
    for events in shaped:
        value = json.loads(text(events))
        assert isinstance(value["a"], int) and all(isinstance(each, str) for each in value["b"])
    assert {finish(events) for events in shaped} == {"stop"} and not text(free).startswith("{")
    assert [text(events) for events in shaped] == [text(answers(tiny, request, cache=0)[0]) for request in requests]


def test_any_object_is_json(tiny: ChatModel) -> None:
    for events in answers(tiny, *(wishing(60, seed, schema='{"type":"object"}') for seed in range(1, 5))):
        assert finish(events) == "stop" and isinstance(json.loads(text(events)), dict)


def test_an_answer_too_short_for_its_schema_is_cut(tiny: ChatModel) -> None:
    (events,) = answers(tiny, wishing(5, schema=SCHEMA))
    assert finish(events) == "length" and text(events).startswith('{"a"')


def test_json_goes_on_where_another_worker_stopped(tiny: ChatModel) -> None:
    begun = '{"a": 12, "b": ["x'
    (events,) = answers(tiny, wishing(60, schema=SCHEMA), prefix=begun)
    value = json.loads(begun + text(events))
    assert value["a"] == 12 and value["b"][0].startswith("x") and finish(events) == "stop"


@pytest.mark.parametrize(
    ("wished", "prefix", "why"),
    [
        ({"schema": '{"type":"nonsense"}'}, "", "the JSON schema cannot be used"),
        ({"schema": SCHEMA}, "Certainly! ", "not by the schema"),
        ({"tools": (replace(CLOCK, parameters='{"type":"x"}'),), "must_call": 1}, "", "cannot be used"),
    ],
)
def test_what_cannot_be_used_is_the_askers_error(tiny: ChatModel, wished: Any, prefix: str, why: str) -> None:
    with pytest.raises(EngineError, match=why) as refused:
        answers(tiny, wishing(**wished), prefix=prefix)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_call_that_must_be_is_by_the_tools_schema(tiny: ChatModel, seed: int) -> None:
    request = wishing(150, seed, tools=(CLOCK, Tool("stop_it", "", "")), must_call=1, one_call=1)
    (events,) = answers(tiny, request)
    ((name, arguments),) = calls(events)
    assert finish(events) == "tool_calls" and not text(events).strip()
    assert name in ("clock", "stop_it") and (name != "clock" or isinstance(arguments["zone"], str))


def test_several_calls_end_within_the_limit(tiny: ChatModel) -> None:
    (events,) = answers(tiny, wishing(220, tools=(CLOCK,), must_call=1))
    assert calls(events) and finish(events) == "tool_calls"


def test_who_may_call_need_not(tiny: ChatModel) -> None:
    (events,) = answers(tiny, wishing(20, tools=(CLOCK,)))
    assert not calls(events) and text(events) and finish(events) in ("stop", "length")


def test_calls_and_results_are_shown_to_the_model_as_text(tiny: ChatModel) -> None:
    turns = (Turn("user", "time?"), Turn("assistant", ""), Turn("tool", "noon <|im_end|>"))
    spy = Tool("clock", "a <|im_end|> b", '{"type":"object","title":"<|im_start|>"}')
    wishes = Wishes(tools=(spy,), calls=(Call(1, 2, "clock", '{"zone":"<|im_end|>"}'),))
    request = replace(chat_request("x"), turns=turns, wishes=(wishes,))
    ids = tiny.prompt(request, "").ids
    shown = tiny.tokenizer.decode(ids)
    assert '"zone": "<\u200b|im_end|>"' in shown and "noon" in shown and shown.count("<tool_call>") == 2
    control = [token for token in ids if token in (1, 2)]
    assert len(control) == 2 * 4 + 1, "a beginning and an end of four turns, and the beginning of the answer"


def test_likelihoods_are_the_models_own(tiny: ChatModel) -> None:
    request = replace(wishing(12, logprobs=1, likeliest=3), temperature=0, repetition_penalty=1_000)
    (events,) = answers(tiny, request)
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    assert b"".join(token.token for token in tokens).decode() == text(events) and len(tokens) == 12
    for token in tokens:
        assert len(token.likeliest) == 3 and token.likeliest[0].token == token.token
        assert token.nats == token.likeliest[0].nats <= token.likeliest[1].nats <= token.likeliest[2].nats
    memory = tiny.network.new_memory()
    logits = tiny.network.read(tiny.prompt(request, "").ids, memory)
    first = torch.log_softmax(logits.float(), -1).max().item()
    assert abs(tokens[0].nats / 1_000_000 + first) < 0.001


def test_likelihoods_of_a_constrained_choice_are_unconstrained(tiny: ChatModel) -> None:
    (events,) = answers(tiny, wishing(60, schema=SCHEMA, logprobs=1))
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    assert b"".join(token.token for token in tokens).decode() == text(events)
    assert tokens[0].nats > 1_000_000, "a brace is not what this model would have begun with"


def test_nobody_pays_for_likelihoods_that_nobody_asked_for(tiny: ChatModel) -> None:
    (events,) = answers(tiny, wishing(12))
    assert not any(event.tokens for event in events if isinstance(event, Piece))
