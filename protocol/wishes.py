"""What a conversation may ask for beyond text: tools, JSON by a schema, likelihoods; and what it takes of a model.

Rule: a request without wishes carries an empty array and nothing else. JSON in a request is looked at before anybody
works on it: a text that is no object, or one nested too deeply, is the asker's error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any

from protocol import params
from protocol.messages import Called, ChatRequest, LikelyChunk, Turn, Wishes

TOOL_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
NO_WISHES = Wishes()


class ModelFeature(IntEnum):
    """What a model can do beyond text. Numbers are never reused."""

    TOOLS = 1
    TOOL_CHOICE = 2
    JSON = 3
    LOGPROBS = 4


FEATURES: dict[ModelFeature, tuple[str, str]] = {
    ModelFeature.TOOLS: ("calls tools", "it calls tools, and reads calls and results of a conversation"),
    ModelFeature.TOOL_CHOICE: ("can be made to call a tool", "it can be made to call a tool, or one certain tool"),
    ModelFeature.JSON: ("answers JSON by a schema", "its text can be held to a JSON schema"),
    ModelFeature.LOGPROBS: ("gives log probabilities", "it gives the likelihoods of tokens"),
}  # (what is said of a model that has it, meaning)


def wishes_of(request: object) -> Wishes:
    """The wishes of a request; those that ask for nothing if it has none."""
    return request.wishes[0] if isinstance(request, ChatRequest) and request.wishes else NO_WISHES


def features_needed(request: object) -> tuple[int, ...]:
    """Numbers of the features that a model must have to answer, ascending."""
    wishes = wishes_of(request)
    needed = (
        (ModelFeature.TOOLS, bool(wishes.tools or wishes.calls)),
        (ModelFeature.TOOL_CHOICE, bool(wishes.must_call)),
        (ModelFeature.JSON, bool(wishes.schema)),
        (ModelFeature.LOGPROBS, bool(wishes.logprobs)),
    )
    return tuple(int(feature) for feature, wanted in needed if wanted)


def said_of(features: Iterable[int]) -> str:
    """What models with these features do, for people; a feature that is not known here is its number."""
    known = {int(feature): said for feature, (said, _) in FEATURES.items()}
    return " and ".join(known.get(feature, f"has feature {feature}") for feature in sorted(features))


def json_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is. Raises `ValueError` for anything else."""
    try:
        value = json.loads(text, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot travel
        too_deep = _depth(value) > params.MAX_JSON_DEPTH
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested deeper than {params.MAX_JSON_DEPTH}")
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(_depth, inner), default=0)
    return 0


def wrong_with(request: ChatRequest) -> str:
    """What is wrong with a request's wishes and with its tools' turns; "" if nothing is."""
    return next(_problems(request), "")


def _problems(request: ChatRequest) -> Iterator[str]:
    wishes = wishes_of(request)
    if request.wishes and wishes == NO_WISHES:
        yield "wishes that ask for nothing are left out"
    names = [tool.name for tool in wishes.tools]
    yield from _bad_names(names + [call.name for call in wishes.calls])
    if len(set(names)) != len(names):
        yield "two tools have one name"
    if (wishes.must_call or wishes.one_call) and not names:
        yield "a call is wished for, and there are no tools"
    if wishes.likeliest and not wishes.logprobs:
        yield "likeliest tokens without likelihoods"
    yield from _bad_json(wishes)
    yield from _bad_calls(request.turns, wishes)


def _bad_names(names: Iterable[str]) -> Iterator[str]:
    if not all(TOOL_NAME.fullmatch(name) for name in names):
        yield "a tool's name consists of letters, digits, low lines and hyphens"


def _bad_json(wishes: Wishes) -> Iterator[str]:
    texts = [(f"the parameters of {tool.name}", tool.parameters) for tool in wishes.tools if tool.parameters]
    texts += [(f"the arguments of a call of {call.name}", call.arguments) for call in wishes.calls]
    texts += [("the schema", wishes.schema)] if wishes.schema else []
    for what, text in texts:
        try:
            json_object(text)
        except ValueError as error:
            yield f"{what}: {error}"


def _bad_calls(turns: tuple[Turn, ...], wishes: Wishes) -> Iterator[str]:
    """A call is made in a turn of the assistant; each turn of a tool has the result of one call before it."""
    roles = [turn.role for turn in turns]
    for call in wishes.calls:
        if roles[call.turn : call.turn + 1] != ["assistant"]:
            yield "a call is made in a turn of the assistant"
        if call.answer and (call.answer <= call.turn or roles[call.answer : call.answer + 1] != ["tool"]):
            yield "a call is answered in a later turn of a tool"
    answers = sorted(call.answer for call in wishes.calls if call.answer)
    if answers != [index for index, role in enumerate(roles) if role == "tool"]:
        yield "each turn of a tool answers one call"
    if [call.turn for call in wishes.calls] != sorted(call.turn for call in wishes.calls):
        yield "calls stand in the order of their turns"


# --- answers -------------------------------------------------------------------------------------------


class CallCount:
    """The calls of an answer so far."""

    def __init__(self) -> None:
        self.calls = 0
        self._bytes = 0  # of the last call's arguments

    def wrong_with(self, called: Called, wishes: Wishes) -> str:
        """Why the next part is against the rules; "" if it is not."""
        if called.name and called.name not in {tool.name for tool in wishes.tools}:
            return f"a call of {called.name!r}, which is no tool of this request"
        if called.name and self.calls == (1 if wishes.one_call else params.MAX_CALLS):
            return "more calls than there may be"
        if not called.name and not (self.calls and called.arguments):
            return "more of no call, or nothing more of one"
        if self._before(called) + len(called.arguments.encode()) > params.MAX_ARGUMENTS_BYTES:
            return f"arguments of more than {params.MAX_ARGUMENTS_BYTES} bytes"
        return ""

    def take(self, called: Called) -> None:
        """Count the next part."""
        self._bytes = self._before(called) + len(called.arguments.encode())
        self.calls += bool(called.name)

    def _before(self, called: Called) -> int:
        return 0 if called.name else self._bytes


def wrong_likelihoods(chunk: LikelyChunk, wishes: Wishes) -> str:
    """Why a chunk's likelihoods were not asked for; "" if they were."""
    if not wishes.logprobs:
        return "likelihoods that nobody asked for"
    if any(len(token.likeliest) > wishes.likeliest for token in chunk.tokens):
        return "more likeliest tokens than were asked for"
    return ""
