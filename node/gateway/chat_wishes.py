"""What a chat request asks for beyond text: tools and their calls, JSON, log probabilities; from OpenAI's shapes to the
wire's.

Rule: what is wrong is told with the parameter's place. Ids of calls stay here: on the wire a call and its result belong
together by their turns, so each id must name one call of an earlier message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from node.gateway.failures import ApiError
from node.gateway.wishes import Lenient, encodable, unsupported
from protocol import params
from protocol.messages import Call, Tool, Wishes
from protocol.wishes import NO_WISHES, TOOL_NAME, json_object

ANY_OBJECT = '{"type":"object"}'


class FunctionShape(Lenient):
    """`function` of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolShape(Lenient):
    """One of `tools`."""

    type: str
    function: FunctionShape | None = None


class CalledFunction(Lenient):
    """`function` of a call."""

    name: str
    arguments: str


class CallShape(Lenient):
    """One of a message's `tool_calls`."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class NamedFunction(Lenient):
    """`function` of a `tool_choice`."""

    name: str


class ChoiceShape(Lenient):
    """`tool_choice` that names a function."""

    type: str
    function: NamedFunction | None = None


class SchemaShape(Lenient):
    """`json_schema` of a `response_format`. `schema` would hide a method of the base."""

    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class FormatShape(Lenient):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaShape | None = None


def wishes_in(
    tools: Sequence[ToolShape],
    choice: str | ChoiceShape | None,
    parallel: bool,
    calls: tuple[Call, ...],
    response_format: FormatShape | None,
    likeliest: int | None,
) -> tuple[Wishes, ...]:
    """The wire's wishes; empty if there are none. `likeliest` is None where no log probabilities are asked for. Raises
    `ApiError` (400)."""
    offered, must_call = _chosen(_tools(tools), choice)
    wishes = Wishes(
        tools=offered,
        must_call=int(must_call),
        one_call=int(bool(offered) and (not parallel or isinstance(choice, ChoiceShape))),
        calls=calls,
        schema=_schema(response_format),
        logprobs=int(likeliest is not None),
        likeliest=likeliest or 0,
    )
    return () if wishes == NO_WISHES else (wishes,)


def likeliest_in(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """How many alternatives to each token; None if no log probabilities are asked for. Raises `ApiError` (400)."""
    if top_logprobs is not None and not logprobs:
        raise _invalid("top_logprobs", "is given with logprobs: true only")
    return (top_logprobs or 0) if logprobs else None


def _tools(shapes: Sequence[ToolShape]) -> tuple[Tool, ...]:
    tools = []
    for index, shape in enumerate(shapes):
        where = f"tools.{index}"
        if shape.type != "function" or shape.function is None:
            raise unsupported(where, f"tools are functions of yours; {shape.type!r} needs type and function")
        function = shape.function
        name = _name(f"{where}.function.name", function.name)
        description = _short(f"{where}.function.description", function.description or "")
        parameters = _json(f"{where}.function.parameters", function.parameters) if function.parameters else ""
        tools.append(Tool(name, description, parameters))
    if len({tool.name for tool in tools}) != len(tools):
        raise _invalid("tools", "have two functions of one name")
    return tuple(tools)


def _chosen(tools: tuple[Tool, ...], choice: str | ChoiceShape | None) -> tuple[tuple[Tool, ...], bool]:
    """(the tools that may be called, one must be). Who must be called is the only one that the model is shown."""
    if isinstance(choice, ChoiceShape):
        if choice.type != "function" or choice.function is None:
            raise unsupported("tool_choice", "name a function, or say none, auto or required")
        named = tuple(tool for tool in tools if tool.name == choice.function.name)
        if not named:
            raise _invalid("tool_choice", f"names {choice.function.name!r}, which is none of the tools")
        return named, True
    if choice not in (None, "none", "auto", "required"):
        raise _invalid("tool_choice", "is none, auto, required, or names a function")
    if choice == "required" and not tools:
        raise _invalid("tool_choice", "is required, and there are no tools")
    return (() if choice == "none" else tools), choice == "required"


def _schema(wanted: FormatShape | None) -> str:
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return ANY_OBJECT
    where = "response_format.json_schema"
    if wanted.json_schema is None:
        raise ApiError(400, f"{where} is missing", code="missing_value", param=where)
    return _json(f"{where}.schema", wanted.json_schema.schema_ or {"type": "object"})


class Conversing:
    """Calls of a conversation while its messages are read, one after the other."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}  # by the client's id

    @property
    def calls(self) -> tuple[Call, ...]:
        """All of them, in the order of their turns."""
        return tuple(self._calls.values())

    def made(self, turn: int, shapes: Sequence[CallShape]) -> None:
        """The assistant's turn makes these. Raises `ApiError` (400)."""
        for index, shape in enumerate(shapes):
            where = f"messages.{turn}.tool_calls.{index}"
            if shape.id in self._calls:
                raise _invalid(f"{where}.id", f"{shape.id!r} is the id of another call")
            name = _name(f"{where}.function.name", shape.function.name)
            arguments = shape.function.arguments or "{}"
            self._calls[shape.id] = Call(turn, 0, name, _checked(f"{where}.function.arguments", arguments))

    def answered(self, turn: int, call_id: str | None) -> None:
        """The turn is the result of the call with this id. Raises `ApiError` (400)."""
        where = f"messages.{turn}.tool_call_id"
        call = self._calls.get(call_id or "")
        if call is None or call.answer:
            why = "is the id of a call that an earlier message of the assistant made, and that has no result yet"
            raise _invalid(where, why)
        self._calls[call_id or ""] = Call(call.turn, turn, call.name, call.arguments)


def _name(where: str, name: str) -> str:
    if not TOOL_NAME.fullmatch(name) or len(name) > params.MAX_TOOL_NAME_BYTES:
        raise _invalid(where, f"has 1 to {params.MAX_TOOL_NAME_BYTES} letters, digits, low lines and hyphens")
    return name


def _json(where: str, value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _short(where, _checked(where, text))


def _checked(where: str, text: str) -> str:
    """The text of a JSON object that can travel."""
    encodable(where, text)
    try:
        json_object(text)
    except ValueError as error:
        raise _invalid(where, f"is not the text of a JSON object: {error}") from None
    if len(text.encode()) > params.MAX_ARGUMENTS_BYTES:
        raise _invalid(where, f"has more than {params.MAX_ARGUMENTS_BYTES} bytes")
    return text


def _short(where: str, text: str) -> str:
    if len(encodable(where, text).encode()) > params.MAX_SCHEMA_BYTES:
        raise _invalid(where, f"has more than {params.MAX_SCHEMA_BYTES} bytes")
    return text


def _invalid(where: str, why: str) -> ApiError:
    return ApiError(400, f"{where} {why}", code="invalid_value", param=where)
