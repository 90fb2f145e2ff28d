"""The frames of `/ws`, both ways: shapes alone.

Rule: what a client sends is checked strictly, because an ignored field of a frame would be a broken promise; the `body`
of an ask is read by the same code as the HTTP route's, so that the socket takes what HTTP takes. Each event of a query
is made once, whoever reads it and however often.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from node.answers import (
    AnswerEvent,
    Bytes,
    Completed,
    Delta,
    Progressed,
    Question,
    Routed,
    TokenLogprob,
    ToolCalled,
    Waiting,
)
from node.gateway.audio import FORM_BYTES, FORM_FIELDS, read_speech_request, read_transcript_request
from node.gateway.failures import ApiError
from node.gateway.images import read_images_request
from node.gateway.openai import facts, read_chat_request, usage
from node.gateway.wishes import Lenient, parse, unsupported
from protocol import params
from protocol.ids import peer_id

MAX_KEY = 256  # characters; keys have 48
PNG = b"\x89PNG"

Json = dict[str, Any]


# --- from the client -------------------------------------------------------------------------------------


class ClientFrame(BaseModel):
    """Base of what a client may send: exact types, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Name = Annotated[str, Field(min_length=1, max_length=64)]  # the client's own name for a query on this socket


class Hello(ClientFrame):
    """The API key, of a client that cannot set headers."""

    type: Literal["hello"]
    key: str = Field(max_length=MAX_KEY)


class Ask(ClientFrame):
    """A query; `body` is the JSON of that HTTP route."""

    type: Literal["ask"]
    id: Name
    route: Literal["chat", "images", "speech", "transcription", "translation"]
    body: Json


class Cancel(ClientFrame):
    """End a query."""

    type: Literal["cancel"]
    id: Name


class Resume(ClientFrame):
    """Read a query from event `after` + 1 on, and be the one who reads it."""

    type: Literal["resume"]
    id: Name
    query: str = Field(pattern="^[0-9a-f]{32}$")
    after: int = Field(0, ge=0, le=params.MAX_INTEGER)


class Watch(ClientFrame):
    """Tell me how the node is, whenever that changes."""

    type: Literal["watch"]


class Unwatch(ClientFrame):
    """No longer."""

    type: Literal["unwatch"]


class Ping(ClientFrame):
    """Are you there?"""

    type: Literal["ping"]


AnyFrame = Hello | Ask | Cancel | Resume | Watch | Unwatch | Ping


class _Frame(RootModel[Annotated[AnyFrame, Field(discriminator="type")]]):
    """One of them."""


class _Named(Lenient):
    """What can be told of a frame that is none of them: which query it was meant for."""

    id: Name


def read_frame(text: str) -> AnyFrame:
    """A client's frame. Raises `ApiError` (400)."""
    return parse(_Frame, text, "the frame").root


def name_in(text: str) -> str | None:
    """The `id` of a frame that cannot be used, so that its error finds its query."""
    try:
        return parse(_Named, text).id
    except ApiError:
        return None


def read_question(ask: Ask) -> Question:
    """The query of an ask. Raises `ApiError` (400) that names the parameter."""
    return _READERS[ask.route](ask.body)


def _chat(body: Json) -> Question:
    _refuse_many(body)
    return read_chat_request(_streamed(body)).question


def _images(body: Json) -> Question:
    _refuse_many(body)
    return read_images_request(_streamed(body)).questions[0]


def _speech(body: Json) -> Question:
    if body.get("response_format") not in (None, "pcm"):
        raise unsupported("response_format", "sound comes as the worker makes it, pcm; /v1/audio/speech makes files")
    return read_speech_request(json.dumps(body | {"response_format": "pcm"}).encode()).question


def _transcript(body: Json, *, translate: bool) -> Question:
    fields = {name: _form_value(name, value) for name, value in body.items() if name != "file" and value is not None}
    if len(fields) > FORM_FIELDS:
        raise ApiError(400, f"body has more than {FORM_FIELDS} fields", code="invalid_value")
    return read_transcript_request(fields, _file(body.get("file")), translate=translate).question


_READERS: dict[str, Callable[[Json], Question]] = {
    "chat": _chat,
    "images": _images,
    "speech": _speech,
    "transcription": partial(_transcript, translate=False),
    "translation": partial(_transcript, translate=True),
}


def _refuse_many(body: Json) -> None:
    if body.get("n") not in (None, 1):
        raise unsupported("n", "each query on a socket has one answer; ask again, under another id, for another")


def _streamed(body: Json) -> bytes:
    """As a request whose events are wanted as they happen, previews among them."""
    return json.dumps(body | {"stream": True}).encode()


def _form_value(name: str, value: Any) -> str:
    """A field as a form has it."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > FORM_BYTES:
        raise ApiError(413, f"{name} has more than {FORM_BYTES} characters", code="request_too_large", param=name)
    return text


def _file(encoded: Any) -> bytes:
    if not isinstance(encoded, str):
        raise ApiError(400, "file is the sound as base64", code="invalid_value", param="file")
    try:
        sound = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "file is not valid base64", code="invalid_value", param="file") from None
    if len(sound) > params.MAX_INPUT_BYTES:
        message = f"file has {len(sound)} bytes, at most {params.MAX_INPUT_BYTES} are taken"
        raise ApiError(413, message, code="request_too_large", param="file")
    return sound


# --- to the client -----------------------------------------------------------------------------------------


def encoded(frame: Mapping[str, Any]) -> bytes:
    """A frame's text. A lone surrogate of a worker's text becomes a question mark."""
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def named(name: str, event: bytes) -> bytes:
    """An encoded event of a query under the name that its reader has for it."""
    return b'{"id":' + encoded_name(name) + b"," + event[1:]


def encoded_name(name: str) -> bytes:
    """A client's name as JSON."""
    return json.dumps(name).encode()


def accepted(query: str) -> Json:
    """The first event."""
    return {"type": "accepted", "query": query}


def happened(item: AnswerEvent) -> Json:
    """An event of an answer."""
    return _TOLD[type(item)](item)


def failed(error: ApiError) -> Json:
    """The last event of a query that has no whole answer."""
    return {"type": "failed", "error": error_facts(error)}


def cancelled() -> Json:
    """The last event of a query that its client ended, or left for too long."""
    return {"type": "cancelled"}


def refused(error: ApiError, name: str | None = None) -> Json:
    """A frame that cannot be used."""
    return {"type": "error"} | ({} if name is None else {"id": name}) | {"error": error_facts(error)}


def error_facts(error: ApiError) -> Json:
    """OpenAI's shape, with what HTTP says in its status and headers."""
    facts_: Json = error.body()["error"]
    return facts_ | {"status": error.status, "retry_ms": error.retry_ms}


def _routed(item: Routed) -> Json:
    worker = {"worker": peer_id(item.worker), "model": item.model, "attempt": item.attempt}
    return {"type": "routed"} | worker | {"queue_position": item.queue_position, "wait_ms": item.wait_ms}


def _waiting(item: Waiting) -> Json:
    return {"type": "waiting", "reason": item.reason, "retry_ms": item.retry_ms}


def _delta(item: Delta) -> Json:
    return {"type": "delta", "text": item.text} | ({"logprobs": _logprobs(item.logprobs)} if item.logprobs else {})


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[Json]:
    """OpenAI's names for it."""
    return [
        {"token": each.token, "logprob": each.logprob}
        | {"top_logprobs": [{"token": token, "logprob": logprob} for token, logprob in each.top]}
        for each in tokens
    ]


def _tool_call(item: ToolCalled) -> Json:
    return {"type": "tool_call", "call": {"id": item.id, "name": item.name, "arguments": item.arguments}}


def _progress(item: Progressed) -> Json:
    progress: Json = {"type": "progress", "done": item.done, "total": item.total}
    if item.preview:
        media_type = "image/png" if item.preview.startswith(PNG) else "image/jpeg"
        progress |= {"preview": _base64(item.preview), "media_type": media_type}
    return progress


def _bytes(item: Bytes) -> Json:
    return {"type": "bytes", "media_type": item.media_type, "data": _base64(item.data)}


def _completed(item: Completed) -> Json:
    whole = {"finish": item.finish, "model": item.model, "usage": usage(item)}
    return {"type": "completed"} | whole | {"mtor": facts(item)}


_TOLD: dict[type[Any], Callable[[Any], Json]] = {
    Routed: _routed,
    Waiting: _waiting,
    Delta: _delta,
    ToolCalled: _tool_call,
    Progressed: _progress,
    Bytes: _bytes,
    Completed: _completed,
}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
