"""Tools, JSON and likelihoods: what may be wished for, what it takes of a model, and what an answer may hold then."""

import sys
from dataclasses import replace
from typing import Any

import pytest

from protocol import params
from protocol.codec import encode
from protocol.errors import IllegalMove
from protocol.exchange import Conversation, Role
from protocol.messages import (
    Accept,
    Begin,
    Call,
    Called,
    ChatRequest,
    Chosen,
    Chunk,
    Done,
    Likelihood,
    LikelyChunk,
    Message,
    Tool,
    Wishes,
)
from protocol.requests import check_request
from protocol.wishes import (
    FEATURES,
    NO_WISHES,
    ModelFeature,
    features_needed,
    json_object,
    said_of,
    wishes_of,
    wrong_with,
)
from tests.protocol.conftest import chat, imagine, query, vision

QUESTION, ANSWER, RESULT = ("user", "why?"), ("assistant", ""), ("tool", "so")
CLOCK = Tool("clock", "", "")
MADE = Call(1, 2, "clock", "{}")


def wishing(*turns: tuple[str, str], **wished: Any) -> ChatRequest:
    return chat(*(turns or [QUESTION]), wishes=(Wishes(**wished),))


def test_what_is_wished_for_takes_features() -> None:
    every = wishing(tools=(CLOCK,), must_call=1, schema="{}", logprobs=1)
    assert features_needed(every) == (1, 2, 3, 4)
    assert features_needed(wishing(QUESTION, ANSWER, RESULT, calls=(MADE,))) == (ModelFeature.TOOLS,)
    assert features_needed(chat(QUESTION)) == features_needed(imagine()) == ()
    assert wishes_of(chat(QUESTION)) is wishes_of(imagine()) is NO_WISHES
    assert wishes_of(every) is every.wishes[0]


def test_features_are_said_in_words() -> None:
    assert set(FEATURES) == set(ModelFeature)
    assert said_of([4, 1]) == "calls tools and gives log probabilities"
    assert said_of([9]) == "has feature 9"


def test_a_request_without_wishes_pays_a_byte_for_them() -> None:
    assert encode(chat(QUESTION))[-1:] == b"\x90"


@pytest.mark.parametrize(
    "request_",
    [
        wishing(tools=(CLOCK, Tool("a-B_9", "é", '{"type":"object"}')), one_call=1),
        wishing(QUESTION, ANSWER, RESULT, calls=(MADE,)),
        wishing(QUESTION, ANSWER, QUESTION, calls=(Call(1, 0, "clock", "{}"),)),
        wishing(schema='{"a":[1,2,"[["]}', logprobs=1, likeliest=20),
        vision(wishes=(Wishes(tools=(CLOCK,)),)),
    ],
)
def test_wishes_in_order(request_: ChatRequest) -> None:
    assert wrong_with(request_) == ""
    check_request(request_, "so far")  # type: ignore[arg-type]  # a conversation


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (wishing(), "ask for nothing"),
        (wishing(tools=(replace(CLOCK, name="a b"),)), "letters"),
        (wishing(tools=(replace(CLOCK, name="größe"),)), "letters"),
        (wishing(tools=(CLOCK, CLOCK)), "one name"),
        (wishing(must_call=1), "no tools"),
        (wishing(one_call=1), "no tools"),
        (wishing(likeliest=1), "without likelihoods"),
        (wishing(tools=(replace(CLOCK, parameters="{"),)), "the parameters of clock"),
        (wishing(schema="[]"), "the schema: it is no JSON object"),
        (wishing(QUESTION, ANSWER, RESULT, calls=(replace(MADE, arguments=""),)), "the arguments of a call"),
        (wishing(QUESTION, ANSWER, RESULT, calls=(replace(MADE, turn=0),)), "turn of the assistant"),
        (wishing(QUESTION, ANSWER, RESULT, calls=(MADE, replace(MADE, turn=9, answer=0))), "turn of the assistant"),
        (wishing(QUESTION, ANSWER, QUESTION, calls=(MADE,)), "later turn of a tool"),
        (wishing(QUESTION, ANSWER, RESULT, ANSWER, QUESTION, calls=(replace(MADE, turn=3),)), "later turn of a tool"),
        (wishing(QUESTION, ANSWER, RESULT, RESULT, calls=(MADE,)), "answers one call"),
        (wishing(QUESTION, ANSWER, RESULT, calls=(MADE, MADE)), "answers one call"),
        (
            wishing(QUESTION, ANSWER, RESULT, ANSWER, QUESTION, calls=(Call(3, 0, "a", "{}"), MADE)),
            "order of their turns",
        ),
    ],
)
def test_wishes_out_of_order(request_: ChatRequest, why: str) -> None:
    assert why in wrong_with(request_)


def test_a_json_object_and_what_is_none() -> None:
    deep = params.MAX_JSON_DEPTH - 1
    assert json_object('{"a":[1,{}]}') == {"a": [1, {}]}
    json_object(f'{{"a":{"[" * deep}{"]" * deep}}}')
    for text, why in (
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ("[]", "no JSON object"),
        ('{"a":NaN}', "NaN is no JSON"),
        ('{"a":"\\ud800"}', "surrogates"),
        (f'{{"a":[{"[" * deep}{"]" * deep}]}}', "deeper than 64"),
        ('{"a":' * 50_000, "deeper than 64"),
    ):
        with pytest.raises(ValueError, match=why):
            json_object(text)
    assert sys.getrecursionlimit() < 50_000


# --- answers ---------------------------------------------------------------------------------------------


def asked(request: Message) -> Conversation:
    """The requester's side after Begin."""
    requester = Conversation(Role.REQUESTER)
    requester.sent(query(request))
    requester.received(Accept(0, 0))
    requester.received(Begin(5, "m", 64))
    return requester


def refused(request: Message, *parts: Message) -> str:
    """Why the last of these is refused; what was legal stands."""
    requester = asked(request)
    for part in parts[:-1]:
        requester.received(part)
    before = requester.delivered
    with pytest.raises(IllegalMove) as refusal:
        requester.received(parts[-1])
    assert requester.delivered == before
    return str(refusal.value)


TOOLED, MEASURED = wishing(tools=(CLOCK,)), wishing(logprobs=1, likeliest=1)
TOKEN = Chosen(b"a", 1, (Likelihood(b"a", 1),))


def test_text_then_calls_in_parts() -> None:
    requester = asked(TOOLED)
    parts = (Chunk(0, 1, "Let me."), Called(1, 9, "clock", '{"a"'), Called(2, 11, "", ":1}"), Chunk(3, 11, ""))
    for part in (*parts, Called(4, 15, "clock", "{}")):
        requester.received(part)
    assert requester.delivery.calls == 2
    assert requester.delivery.text_bytes == len('Let me.clock{"a":1}clock{}')
    requester.received(Done("tool_calls", 5, 15, requester.delivered.digest))


def test_calls_that_may_not_be() -> None:
    call = Called(0, 1, "clock", "{}")
    one = wishing(tools=(CLOCK,), one_call=1)
    assert "no tool of this request" in refused(chat(QUESTION), call)
    assert "no tool of this request" in refused(TOOLED, replace(call, name="watch"))
    assert "more of no call" in refused(TOOLED, replace(call, name=""))
    assert "nothing more" in refused(TOOLED, call, Called(1, 1, "", ""))
    assert "more calls" in refused(one, call, replace(call, index=1))
    assert "expected 0" in refused(TOOLED, replace(call, index=1))
    assert "text after a call" in refused(TOOLED, call, Chunk(1, 1, "a"))
    assert "at most" in refused(TOOLED, replace(call, units_out=512 + 64 + 8))
    assert "there was none" in refused(TOOLED, Done("tool_calls", 5, 0, asked(TOOLED).delivered.digest))


def test_calls_and_their_arguments_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "MAX_CALLS", 2)
    monkeypatch.setattr(params, "MAX_ARGUMENTS_BYTES", 3)
    calls = [Called(index, 1, "clock", "é") for index in range(3)]
    assert "more calls" in refused(TOOLED, *calls)
    assert "more than 3 bytes" in refused(TOOLED, calls[0], Called(1, 1, "", "a"), Called(2, 1, "", "a"))


def test_likelihoods_are_what_was_asked_for() -> None:
    chunk = LikelyChunk(0, 1, "a", (TOKEN,))
    requester = asked(MEASURED)
    requester.received(chunk)
    assert requester.delivery.text_bytes == 1
    assert "nobody asked" in refused(chat(QUESTION), chunk)
    assert "more likeliest" in refused(
        MEASURED, replace(chunk, tokens=(replace(TOKEN, likeliest=TOKEN.likeliest * 2),))
    )


def test_the_largest_likely_chunk_fits_a_frame() -> None:
    token = b"a" * params.MAX_TOKEN_BYTES
    likeliest = (Likelihood(token, params.MAX_INTEGER),) * params.MAX_LIKELIEST
    tokens = (Chosen(token, params.MAX_INTEGER, likeliest),) * params.MAX_CHUNK_TOKENS
    largest = LikelyChunk(params.MAX_INTEGER, 1, "a" * params.MAX_CHUNK_BYTES, tokens)
    assert len(encode(largest)) < params.MAX_FRAME_BYTES
