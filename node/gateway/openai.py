"""OpenAI's shapes, both ways.

Rule: what a client may send is checked here, with the parameter named; what this node cannot do is refused and not
silently left out; unknown fields are ignored, as OpenAI's own servers do. Shapes of answers follow what clients rely
on: one id and time in all chunks, the finish reason on the last content chunk, usage in a chunk without choices.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.answers import Completed, Question, WorkerShare
from node.gateway.failures import ApiError
from protocol import params
from protocol.errors import Malformed
from protocol.ids import CHAT, QueryId, RealmId, parse_peer_id, peer_id, realm_id
from protocol.messages import ChatRequest, Turn
from protocol.routing import Requirements

# What holds where the client says nothing. The models that home cards serve are small: at OpenAI's default of
# temperature 1 they lose the thread, and without a penalty they repeat themselves.
DEFAULT_TEMPERATURE = 0.6
DEFAULT_TOP_P = 0.92
DEFAULT_REPETITION_PENALTY = 1.1

ANY_MODEL = ("auto", "")  # "$CHAT" and other realms also mean any model of theirs
ROLES = {"developer": "system"}  # newer clients' name for the same thing


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ContentPart(_Lenient):
    """A part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(_Lenient):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


class StreamOptions(_Lenient):
    """`stream_options`."""

    include_usage: bool = False


class MtorWishes(BaseModel):
    """The `mtor` object of a request: what the asker insists on. Typing errors here are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    realm: str = Field("$CHAT", max_length=params.MAX_NAME_BYTES)
    min_vram_mib: int = Field(0, ge=0, le=params.MAX_INTEGER)
    device: Literal["", "cuda", "mps", "cpu"] = ""
    max_price_in: int = Field(0, ge=0, le=params.MAX_INTEGER)
    max_price_out: int = Field(0, ge=0, le=params.MAX_INTEGER)
    min_context_tokens: int = Field(0, ge=0, le=params.MAX_INTEGER)
    worker: str = Field("", max_length=params.MAX_NAME_BYTES)
    deadline_ms: int = Field(params.DEFAULT_DEADLINE, ge=100, le=params.MAX_DEADLINE)


class ChatCompletionRequest(_Lenient):
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
    request = _parse(body)
    _refuse_unsupported(request)
    wishes = request.mtor or MtorWishes()
    realm, model = _target(request.model, wishes.realm)
    turns = tuple(_turn(index, message) for index, message in enumerate(request.messages))
    _refuse_size(turns)
    chat = ChatRequest(
        turns=turns,
        max_tokens=request.max_completion_tokens or request.max_tokens or 0,
        temperature=_thousandths(request.temperature, DEFAULT_TEMPERATURE),
        top_p=_thousandths(request.top_p, DEFAULT_TOP_P),
        top_k=request.top_k or 0,
        repetition_penalty=_thousandths(request.repetition_penalty, DEFAULT_REPETITION_PENALTY),
        frequency_penalty=_thousandths(request.frequency_penalty, 0.0) + 2_000,
        presence_penalty=_thousandths(request.presence_penalty, 0.0) + 2_000,
        seed=_seed(request.seed),
        stop=_stops(request.stop),
    )
    requirements = Requirements(
        model=model,
        min_vram_mib=wishes.min_vram_mib,
        device_kind=wishes.device,
        max_price_in=wishes.max_price_in,
        max_price_out=wishes.max_price_out,
        min_context_tokens=wishes.min_context_tokens,
        worker=_worker(wishes.worker),
    )
    question = Question(QueryId(secrets.token_bytes(16)), realm, chat, requirements, wishes.deadline_ms)
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Asked(question, request.model, bool(request.stream), usage)


def _parse(body: bytes) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _wrong_value(error) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None


def _wrong_value(error: ValidationError) -> ApiError:
    """The innermost of the first problems, which is the one that helps where a value may have several types."""
    found = max(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
    if found["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {found['msg']}", code="invalid_json")
    where = ".".join(str(part) for part in found["loc"] if not _names_a_type(part))
    return ApiError(400, f"{where or 'the body'}: {found['msg']}", code="invalid_value", param=where or None)


def _names_a_type(part: int | str) -> bool:
    """pydantic puts the tried type into a place: `stop.list[str].1`."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


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
            raise _unsupported(parameter, reason)


def _unsupported(parameter: str, reason: str) -> ApiError:
    message = f"{parameter} is not supported: {reason}"
    return ApiError(400, message, code="unsupported_parameter", param=parameter)


def _target(model: str, realm: str) -> tuple[RealmId, str]:
    """(realm, model): a realm's name as the model means any model of that realm."""
    if len(model.encode(errors="replace")) > params.MAX_NAME_BYTES:
        message = f"a model's name has at most {params.MAX_NAME_BYTES} bytes"
        raise ApiError(400, message, code="invalid_value", param="model")
    named_by_model = model.startswith("$")
    try:
        if named_by_model:
            realm, model = model, ""
        chosen = realm_id(realm)
    except Malformed as error:
        place = "model" if named_by_model else "mtor.realm"
        raise ApiError(400, str(error), code="invalid_value", param=place) from None
    if chosen != CHAT:
        message = f"{chosen} is not asked with a chat; this route serves {CHAT}"
        raise ApiError(400, message, code="invalid_value", param="model")
    return chosen, "" if model in ANY_MODEL else model


def _turn(index: int, message: ChatMessage) -> Turn:
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            raise _unsupported(f"messages.{index}.{name}", "a conversation is text here")
    return Turn(ROLES.get(message.role, message.role), _text(f"messages.{index}.content", message.content))


def _text(where: str, content: str | list[ContentPart] | None) -> str:
    if content is None:
        raise ApiError(400, f"{where} is missing; send text", code="missing_value", param=where)
    if isinstance(content, str):
        return _encodable(where, content)
    return _encodable(where, "".join(_part(f"{where}.{number}", part) for number, part in enumerate(content)))


def _part(where: str, part: ContentPart) -> str:
    if part.type != "text":
        message = f"{where}: {part.type} is not supported by this route yet; send text"
        raise ApiError(400, message, code="unsupported_content", param=where)
    if part.text is None:
        raise ApiError(400, f"{where}.text is missing", code="missing_value", param=f"{where}.text")
    return part.text


def _encodable(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{where} is not valid Unicode (a lone surrogate)"
        raise ApiError(400, message, code="invalid_value", param=where) from None
    return text


def _seed(seed: int | None) -> int:
    """0 is the wire's "the worker chooses", so a client's own 0 travels as the largest number: the same each time."""
    return 0 if seed is None else seed % (params.MAX_INTEGER + 1) or params.MAX_INTEGER


def _refuse_size(turns: tuple[Turn, ...]) -> None:
    """A frame holds the conversation and, after a failover, the answer so far: each may have half of it."""
    size, limit = sum(len(turn.text.encode()) + 16 for turn in turns), params.MAX_TEXT_BYTES // 2
    if size > limit:
        message = f"the conversation has {size} bytes, the limit is {limit}; send a shorter one"
        raise ApiError(413, message, code="prompt_too_large", param="messages")


def _thousandths(value: float | None, default: float) -> int:
    return round((default if value is None else value) * 1_000)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = tuple(text for text in ([stop] if isinstance(stop, str) else stop or []) if text)
    if len(stops) > params.MAX_STOP_STRINGS:
        raise ApiError(400, f"at most {params.MAX_STOP_STRINGS} stop strings", param="stop")
    if any(len(text.encode(errors="replace")) > params.MAX_STOP_BYTES for text in stops):
        raise ApiError(400, f"a stop string has at most {params.MAX_STOP_BYTES} bytes", param="stop")
    return stops


def _worker(text: str) -> str:
    if text:
        try:
            parse_peer_id(text)
        except Malformed as error:
            raise ApiError(400, str(error), param="mtor.worker") from None
    return text


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
    return {
        "worker": peer_id(share.worker),
        "model": share.model,
        "units_in": share.units_in,
        "units_out": share.units_out,
        "amount": share.amount,
        "receipt": share.receipt,
        "lane": share.lane,
    }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n\n"


DONE_EVENT = b"data: [DONE]\n\n"
