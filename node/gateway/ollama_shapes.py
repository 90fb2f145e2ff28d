"""Ollama's shapes of a request, and what they mean as a conversation.

Rule: what decides the answer is taken or refused; what is about the server that Ollama is (threads, layers on a card,
how long a model stays loaded) is the worker's own business here and left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from node.answers import Question
from node.gateway.conversing import chat_questions
from node.gateway.failures import ApiError
from node.gateway.wishes import Lenient, MtorWishes, unsupported
from protocol import params

LATEST = ":latest"  # what Ollama's clients may add to a name; it means the same
Json = dict[str, Any]


class OllamaOptions(Lenient):
    """`options`: those that decide the answer."""

    num_predict: int | None = Field(None, ge=-2, le=params.MAX_OUTPUT_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    repeat_penalty: float | None = Field(None, ge=0.1, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class OllamaFunction(Lenient):
    """What a tool call calls."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaToolCall(Lenient):
    """A call that the model made."""

    function: OllamaFunction


class OllamaMessage(Lenient):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None


class OllamaQuery(Lenient):
    """What both ways of asking have in common."""

    model: str = Field(json_schema_extra={"minLength": 1})
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    think: bool | str | None = None
    mtor: MtorWishes | None = None


class OllamaChatRequest(OllamaQuery):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] = Field(default_factory=list, max_length=params.MAX_MESSAGES)
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(OllamaQuery):
    """`POST /api/generate`."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    template: str | None = None
    context: list[int] | None = None


class OllamaShowRequest(Lenient):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None


def chat_query(wanted: OllamaChatRequest) -> Question:
    """The query of a conversation. Raises `ApiError` (400)."""
    places = [f"messages.{index}" for index in range(len(wanted.messages))]
    more = {"tools": wanted.tools} if wanted.tools else {}
    return _question(wanted, _messages(wanted.messages), places, more)


def generate_query(wanted: OllamaGenerateRequest) -> Question:
    """The query of one prompt. Raises `ApiError` (400)."""
    if wanted.suffix:
        raise unsupported("suffix", "models are asked as in a conversation and fill no gaps")
    if wanted.raw or wanted.template:
        raise unsupported("raw" if wanted.raw else "template", "the worker's model has its own template")
    if wanted.context:
        raise unsupported("context", "token numbers mean something else in each peer's model; use /api/chat")
    messages: list[Json] = [{"role": "system", "content": wanted.system}] if wanted.system else []
    messages.append({"role": "user", "content": _content(wanted.prompt, wanted.images)})
    return _question(wanted, messages, [*(["system"] if wanted.system else []), "prompt"], {})


def plain_name(model: str) -> str:
    """A model's name without Ollama's tag for the usual one."""
    return model.removesuffix(LATEST)


def _question(wanted: OllamaQuery, messages: list[Json], places: Sequence[str], more: Json) -> Question:
    if wanted.think:
        raise unsupported("think", "no model here shows its thinking")
    options = wanted.options or OllamaOptions()
    limit = options.num_predict or 0
    fields: Json = {
        "model": plain_name(wanted.model),
        "messages": messages,
        "max_tokens": limit if limit > 0 else None,  # -1 and -2 mean as much as there is
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.seed,
        "stop": options.stop,
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "response_format": _format(wanted.format),
        "mtor": wanted.mtor.model_dump() if wanted.mtor else None,
    }
    (asked,) = chat_questions(fields | more, places)
    return asked


def _format(format: str | Json | None) -> Json | None:
    if not format:
        return None
    if isinstance(format, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": format}}
    if format == "json":
        return {"type": "json_object"}
    raise ApiError(400, 'format is "json" or a JSON schema', code="invalid_value", param="format")


def _content(text: str, images: list[str] | None) -> str | list[Json]:
    if not images:
        return text
    pictures = [{"type": "image_url", "image_url": f"data:image;base64,{''.join(image.split())}"} for image in images]
    return [{"type": "text", "text": text}, *pictures]


def _messages(messages: Sequence[OllamaMessage]) -> list[Json]:
    """OpenAI's messages. Ollama's tool calls have no ids: a result belongs to the first open call of its tool."""
    result: list[Json] = []
    open_calls: list[tuple[str, str]] = []  # (tool, id)
    for index, message in enumerate(messages):
        if message.role == "tool":
            call = _called(open_calls, message.tool_name, index)
            result.append({"role": "tool", "content": message.content, "tool_call_id": call})
            continue
        fields: Json = {"role": message.role, "content": _content(message.content, message.images)}
        if message.tool_calls:
            calls = [(f"call_{index}_{number}", call.function) for number, call in enumerate(message.tool_calls)]
            open_calls = [(function.name, call) for call, function in calls]
            fields["tool_calls"] = [_call(call, function) for call, function in calls]
        result.append(fields)
    return result


def _call(call: str, function: OllamaFunction) -> Json:
    arguments = json.dumps(function.arguments, ensure_ascii=False)
    return {"id": call, "type": "function", "function": {"name": function.name, "arguments": arguments}}


def _called(open_calls: list[tuple[str, str]], tool: str | None, index: int) -> str:
    for each in open_calls:
        if tool is None or each[0] == tool:
            open_calls.remove(each)
            return each[1]
    message = f"messages.{index} is the result of a tool that no message before it calls"
    raise ApiError(400, message, code="invalid_value", param=f"messages.{index}")
