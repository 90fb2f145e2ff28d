"""OpenAI's shapes of a conversation, both ways.

Rule: what a client may send is checked here, with the parameter named; what this node cannot do is refused and not
silently left out; unknown fields are ignored, as OpenAI's own servers do. Shapes of answers follow what clients rely
on: one id and time in all chunks, the finish reason on the last content chunk, usage in a chunk without choices.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field

from node.answers import Completed, Question, WorkerShare
from node.gateway.failures import ApiError
from node.gateway.wishes import (
    Lenient,
    MtorWishes,
    encodable,
    parse,
    question,
    thousandths,
    travelling_seed,
    unsupported,
)
from protocol import params
from protocol.ids import CHAT, IMAGINE, SPEECH, VISION, peer_id
from protocol.messages import ChatRequest, Media, Turn, VisionRequest

# What holds where the client says nothing. The models that home cards serve are small: at OpenAI's default of
# temperature 1 they lose the thread, and without a penalty they repeat themselves.
DEFAULT_TEMPERATURE = 0.6
DEFAULT_TOP_P = 0.92
DEFAULT_REPETITION_PENALTY = 1.1

OTHER_ROUTES = {IMAGINE: "/v1/images/generations", SPEECH: "/v1/audio/speech or /v1/audio/transcriptions"}
ROLES = {"developer": "system"}  # newer clients' name for the same thing


class ImageUrl(Lenient):
    """`image_url` of a content part: a data: URL."""

    url: str


class ContentPart(Lenient):
    """A part of a message's content."""

    type: str
    text: str | None = None
    image_url: str | ImageUrl | None = None


class ChatMessage(Lenient):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


class StreamOptions(Lenient):
    """`stream_options`."""

    include_usage: bool = False


class ChatCompletionRequest(Lenient):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=params.MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=params.MAX_OUTPUT_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=params.MAX_OUTPUT_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    response_format: dict[str, Any] | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request."""

    question: Question
    model: str  # as the client wrote it
    stream: bool
    include_usage: bool


def read_chat_request(body: bytes) -> Asked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    request = parse(ChatCompletionRequest, body)
    _refuse_unsupported(request)
    turns, pictures = _conversation(request.messages)
    _refuse_size(turns)
    chat = ChatRequest(
        turns=turns,
        max_tokens=request.max_completion_tokens or request.max_tokens or 0,
        temperature=thousandths(request.temperature, DEFAULT_TEMPERATURE),
        top_p=thousandths(request.top_p, DEFAULT_TOP_P),
        top_k=request.top_k or 0,
        repetition_penalty=thousandths(request.repetition_penalty, DEFAULT_REPETITION_PENALTY),
        frequency_penalty=thousandths(request.frequency_penalty, 0.0) + 2_000,
        presence_penalty=thousandths(request.presence_penalty, 0.0) + 2_000,
        seed=travelling_seed(request.seed),
        stop=_stops(request.stop),
    )
    wishes = request.mtor or MtorWishes()
    if pictures:
        media = tuple(Media("image", len(picture.data), picture.turn) for picture in pictures)
        fields = {name: getattr(chat, name) for name in ChatRequest.__dataclass_fields__}
        inputs = tuple(picture.data for picture in pictures)
        asked = question(VisionRequest(**fields, media=media), request.model, VISION, wishes, inputs)
    else:
        asked = question(chat, request.model, CHAT, wishes, ())
    if asked.realm in OTHER_ROUTES:
        message = f"{asked.realm} is not asked with a chat; it is asked at {OTHER_ROUTES[asked.realm]}"
        raise ApiError(400, message, code="invalid_value", param="model")
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Asked(asked, request.model, bool(request.stream), usage)


def _refuse_unsupported(request: ChatCompletionRequest) -> None:
    format_type = (request.response_format or {}).get("type", "text")
    no_tools = "no model served here calls tools yet"
    only_text = "only plain text is answered"
    checks = (
        ("n", request.n not in (None, 1), "only one choice is made; ask again for another"),
        ("tools", bool(request.tools), no_tools),
        ("functions", bool(request.functions), no_tools),
        ("tool_choice", request.tool_choice not in (None, "none", "auto"), no_tools),
        ("function_call", request.function_call not in (None, "none", "auto"), no_tools),
        ("logprobs", bool(request.logprobs), "log probabilities are not given"),
        ("top_logprobs", bool(request.top_logprobs), "log probabilities are not given"),
        ("logit_bias", bool(request.logit_bias), "peers' models have different tokens"),
        ("response_format", format_type != "text", only_text),
        ("modalities", request.modalities not in (None, [], ["text"]), only_text),
        ("audio", request.audio is not None, only_text),
    )
    for parameter, used, reason in checks:
        if used:
            raise unsupported(parameter, reason)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture that a turn shows."""

    turn: int
    data: bytes


def _conversation(messages: list[ChatMessage]) -> tuple[tuple[Turn, ...], list[_Picture]]:
    turns, pictures = [], list[_Picture]()
    for index, message in enumerate(messages):
        for name in ("tool_calls", "function_call", "audio"):
            if getattr(message, name):
                raise unsupported(f"messages.{index}.{name}", "a conversation is text and pictures here")
        where = f"messages.{index}.content"
        if message.content is None:
            raise ApiError(400, f"{where} is missing; send text", code="missing_value", param=where)
        parts = (
            [ContentPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        )
        texts = [_text(f"{where}.{number}", part) for number, part in enumerate(parts)]
        pictures += [
            _Picture(index, _picture(f"{where}.{number}", part))
            for number, part in enumerate(parts)
            if part.type == "image_url"
        ]
        turns.append(Turn(ROLES.get(message.role, message.role), encodable(where, "".join(texts))))
    if len(pictures) > params.MAX_INPUTS:
        message_ = f"{len(pictures)} pictures; one conversation shows at most {params.MAX_INPUTS}"
        raise ApiError(400, message_, code="invalid_value", param="messages")
    return tuple(turns), pictures


def _text(where: str, part: ContentPart) -> str:
    if part.type == "image_url":
        return ""
    if part.type != "text":
        message = f"{where}: {part.type} is not supported by this route; send text or image_url"
        raise ApiError(400, message, code="unsupported_content", param=where)
    if part.text is None:
        raise ApiError(400, f"{where}.text is missing", code="missing_value", param=f"{where}.text")
    return part.text


def _picture(where: str, part: ContentPart) -> bytes:
    """The bytes of a data: URL. Nothing is fetched: a node that fetches what strangers name is a proxy for them."""
    url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url or ""
    head, comma, encoded = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        message = f"{where}: send the picture itself, as data:image/jpeg;base64,…; this node fetches no addresses"
        raise ApiError(400, message, code="unsupported_content", param=where)
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{where}: not valid base64", code="invalid_value", param=where) from None
    if not data:
        raise ApiError(400, f"{where}: the picture is empty", code="invalid_value", param=where)
    if len(data) > params.MAX_INPUT_BYTES:
        message = f"{where}: a picture has at most {params.MAX_INPUT_BYTES} bytes, this one {len(data)}"
        raise ApiError(413, message, code="picture_too_large", param=where)
    return data


def _refuse_size(turns: tuple[Turn, ...]) -> None:
    """A frame holds the conversation and, after a failover, the answer so far: each may have half of it."""
    size, limit = sum(len(turn.text.encode()) + 16 for turn in turns), params.MAX_TEXT_BYTES // 2
    if size > limit:
        message = f"the conversation has {size} bytes, the limit is {limit}; send a shorter one"
        raise ApiError(413, message, code="prompt_too_large", param="messages")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = tuple(text for text in ([stop] if isinstance(stop, str) else stop or []) if text)
    if len(stops) > params.MAX_STOP_STRINGS:
        raise ApiError(400, f"at most {params.MAX_STOP_STRINGS} stop strings", param="stop")
    if any(len(text.encode(errors="replace")) > params.MAX_STOP_BYTES for text in stops):
        raise ApiError(400, f"a stop string has at most {params.MAX_STOP_BYTES} bytes", param="stop")
    return stops


# --- answers -------------------------------------------------------------------------------------------


@dataclass
class Shapes:
    """One answer's constant parts."""

    asked: Asked
    model: str = ""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, delta: dict[str, str], finish: str | None = None, **more: Any) -> dict[str, Any]:
        """One streamed chunk."""
        return self._frame("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish}]) | more

    def usage_chunk(self, done: Completed) -> dict[str, Any]:
        """The chunk after the last, for `include_usage`."""
        return self._frame("chat.completion.chunk", []) | {"usage": usage(done)}

    def whole(self, text: str, done: Completed) -> dict[str, Any]:
        """The body of an answer that was not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choices = [{"index": 0, "message": message, "finish_reason": done.finish, "logprobs": None}]
        return self._frame("chat.completion", choices) | {"usage": usage(done), "mtor": facts(done)}

    def _frame(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        model = self.model or self.asked.model
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "choices": choices}


def usage(done: Completed) -> dict[str, int]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": done.units_in,
        "completion_tokens": done.units_out,
        "total_tokens": done.units_in + done.units_out,
    }


def facts(done: Completed) -> dict[str, Any]:
    """The `mtor` object of an answer: who served it and what it cost."""
    return {
        "units_in": done.units_in,
        "units_out": done.units_out,
        "ttft_ms": done.ttft_ms,
        "failover": done.failover,
        "cost_micro": sum(share.amount for share in done.shares),
        "shares": [share_facts(share) for share in done.shares],
    }


def share_facts(share: WorkerShare) -> dict[str, Any]:
    """What one worker delivered."""
    return asdict(share) | {"worker": peer_id(share.worker)}
