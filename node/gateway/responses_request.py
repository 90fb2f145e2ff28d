"""`/v1/responses`: what may be asked, and what it means as a conversation.

Rule: nothing is kept here. What a client would have to have stored before is refused with that reason; what it brings
along is read in full or refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from node.answers import Question
from node.gateway.conversing import chat_questions
from node.gateway.failures import ApiError
from node.gateway.wishes import Lenient, MtorWishes, parse, unsupported
from protocol import params

Json = dict[str, Any]
NOTHING_KEPT = "nothing is kept here; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"


class TextFormat(Lenient):
    """`text`: how the answer is written."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Lenient):
    """`POST /v1/responses`."""

    model: str
    input: str | list[dict[str, Any]] = Field(json_schema_extra={"minLength": 1, "minItems": 1})
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=params.MAX_OUTPUT_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextFormat | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    truncation: str | None = Field(None, json_schema_extra={"enum": ["disabled", None]})
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request."""

    question: Question
    request: ResponsesRequest


def read_responses_request(body: bytes) -> Asked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    wanted = parse(ResponsesRequest, body)
    _refuse_unsupported(wanted)
    conversation = _Conversation()
    if wanted.instructions:
        conversation.add("instructions", {"role": "system", "content": wanted.instructions})
    if isinstance(wanted.input, str):
        conversation.add("input", {"role": "user", "content": wanted.input})
    else:
        for index, item in enumerate(wanted.input):
            _add_item(conversation, f"input.{index}", item)
    if not any(place.startswith("input") for place in conversation.places):
        raise ApiError(400, "input is empty", code="missing_value", param="input")
    fields: Json = {
        "model": wanted.model,
        "messages": conversation.messages,
        "max_completion_tokens": wanted.max_output_tokens,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "seed": wanted.seed,
        "tools": [_tool(index, tool) for index, tool in enumerate(wanted.tools or [])] or None,
        "tool_choice": _tool_choice(wanted.tool_choice),
        "parallel_tool_calls": wanted.parallel_tool_calls,
        "response_format": _format(wanted.text),
        "mtor": wanted.mtor.model_dump() if wanted.mtor else None,
    }
    if LOGPROBS in (wanted.include or []):
        fields |= {"logprobs": True, "top_logprobs": wanted.top_logprobs}
    (asked,) = chat_questions(fields, conversation.places)
    return Asked(asked, wanted)


def _refuse_unsupported(wanted: ResponsesRequest) -> None:
    checks = (
        ("previous_response_id", wanted.previous_response_id is not None, NOTHING_KEPT),
        ("conversation", wanted.conversation is not None, NOTHING_KEPT),
        ("prompt", wanted.prompt is not None, "no prompts are kept here; send the text as input"),
        ("background", bool(wanted.background), "an answer is given to whoever waits for it"),
        ("truncation", wanted.truncation not in (None, "disabled"), "a conversation is never shortened in silence"),
    )
    for parameter, used, reason in checks:
        if used:
            raise unsupported(parameter, reason)


class _Conversation:
    """Messages of a chat completion, and the client's names for them."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.places: list[str] = []

    def add(self, place: str, message: Json) -> None:
        self.messages.append(message)
        self.places.append(place)

    def add_call(self, place: str, call: Json) -> None:
        """Calls that follow each other are one message of the model's."""
        if self.messages and "tool_calls" in self.messages[-1]:
            self.messages[-1]["tool_calls"].append(call)
        else:
            self.add(place, {"role": "assistant", "content": None, "tool_calls": [call]})


def _add_item(conversation: _Conversation, place: str, item: Json) -> None:
    kind = item.get("type", "message")
    add = ITEMS.get(kind) if isinstance(kind, str) else None
    if add is None:
        message = f"{place}: an item of type {kind!r} is not taken; {' and '.join(sorted(ITEMS))} are"
        raise ApiError(400, message, code="unsupported_content", param=f"{place}.type")
    add(conversation, place, item)


def _add_message(conversation: _Conversation, place: str, item: Json) -> None:
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(f"{place}.content.{number}", part) for number, part in enumerate(content)]
    elif not isinstance(content, str):
        raise ApiError(400, f"{place}.content is missing", code="missing_value", param=f"{place}.content")
    conversation.add(place, {"role": item.get("role"), "content": content})


def _part(place: str, part: Any) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind == "input_image" and part.get("image_url") is not None:
        return {"type": "image_url", "image_url": part["image_url"]}
    if kind in ("input_image", "input_file"):
        reason = "send pictures as image_url with a data: URL; no files are kept here"
    else:
        reason = f"a content part of type {kind!r} is not taken; send input_text or input_image"
    raise ApiError(400, f"{place}: {reason}", code="unsupported_content", param=place)


def _add_call(conversation: _Conversation, place: str, item: Json) -> None:
    called = {"name": _text(item, "name", place), "arguments": _text(item, "arguments", place)}
    conversation.add_call(place, {"id": _text(item, "call_id", place), "type": "function", "function": called})


def _add_result(conversation: _Conversation, place: str, item: Json) -> None:
    output = item.get("output")
    if isinstance(output, list):
        output = "".join(str(_part(f"{place}.output.{number}", part).get("text")) for number, part in enumerate(output))
    if not isinstance(output, str):
        output = json.dumps(output)
    conversation.add(place, {"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": output})


def _add_nothing(conversation: _Conversation, place: str, item: Json) -> None:
    """Thoughts of another model: they are no part of what was said."""


ITEMS: dict[str, Callable[[_Conversation, str, Json], None]] = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_result,
    "reasoning": _add_nothing,
}


def _text(item: Json, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        where = f"{place}.{name}"
        raise ApiError(400, f"{where} is missing or no text", code="missing_value", param=where)
    return value


def _tool(index: int, tool: Json) -> Json:
    if tool.get("type") != "function":
        reason = f"{tool.get('type')!r} would have to run here; only functions are taken"
        raise unsupported(f"tools.{index}.type", reason)
    return {"type": "function", "function": _chosen(tool, "name", "description", "parameters", "strict")}


def _chosen(found: Json, *names: str) -> Json:
    return {name: found[name] for name in names if found.get(name) is not None}


def _tool_choice(choice: str | Json | None) -> str | Json | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise unsupported("tool_choice", "it is none, auto, required or one function")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _format(text: TextFormat | None) -> Json | None:
    wanted = text.format if text else None
    if not wanted or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        return {"type": wanted.get("type")}
    return {"type": "json_schema", "json_schema": _chosen(wanted, "name", "description", "schema", "strict")}
