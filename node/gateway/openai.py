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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from node.answers import Completed, Question, TokenLogprob, ToolCalled, WorkerShare
from node.gateway.chat_wishes import (
    CallShape,
    ChoiceShape,
    Conversing,
    FormatShape,
    ToolShape,
    likeliest_in,
    wishes_in,
)
from node.gateway.failures import ApiError
from node.gateway.wishes import (
    Lenient,
    MtorWishes,
    encodable,
    following_seed,
    parse,
    question,
    thousandths,
    travelling_seed,
    unsupported,
)
from node.picture_headers import PictureRefused, check_pictures
from protocol import params
from protocol.ids import CHAT, IMAGINE, SPEECH, VISION, QueryId, peer_id
from protocol.messages import Call, ChatRequest, Media, Turn, VisionRequest

# What holds where the client says nothing. The models that home cards serve are small: at OpenAI's default of
# temperature 1 they lose the thread, and without a penalty they repeat themselves.
DEFAULT_TEMPERATURE = 0.6
DEFAULT_TOP_P = 0.92
DEFAULT_REPETITION_PENALTY = 1.1

OTHER_ROUTES = {IMAGINE: "/v1/images/generations", SPEECH: "/v1/audio/speech or /v1/audio/transcriptions"}
MOST_CHOICES = 8
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

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[CallShape] | None = Field(None, max_length=params.MAX_CALLS)
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None


class StreamOptions(Lenient):
    """`stream_options`."""

    include_usage: bool = False


class Sampling(Lenient):
    """How long an answer may be and how its tokens are chosen, in OpenAI's names."""

    max_tokens: int | None = Field(None, ge=1, le=params.MAX_OUTPUT_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None


class ChatCompletionRequest(Sampling):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=params.MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=params.MAX_OUTPUT_TOKENS)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    tools: list[ToolShape] | None = Field(None, max_length=params.MAX_TOOLS)
    tool_choice: str | ChoiceShape | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=params.MAX_LIKELIEST)
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    response_format: FormatShape | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request."""

    questions: tuple[Question, ...]  # one a choice
    model: str  # as the client wrote it
    stream: bool
    include_usage: bool

    @property
    def question(self) -> Question:
        """Of the first choice."""
        return self.questions[0]


def read_chat_request(body: bytes) -> Asked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    request = parse(ChatCompletionRequest, body)
    _refuse_unsupported(request)
    turns, pictures, calls = _conversation(request.messages)
    likeliest = likeliest_in(request.logprobs, request.top_logprobs)
    parallel = request.parallel_tool_calls is not False
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
        wishes=wishes_in(request.tools or (), request.tool_choice, parallel, calls, request.response_format, likeliest),
    )
    _refuse_size(chat)
    wishes = request.mtor or MtorWishes()
    if pictures:
        media = tuple(Media("image", len(picture.data), picture.turn) for picture in pictures)
        fields = {name: getattr(chat, name) for name in ChatRequest.__dataclass_fields__}
        inputs = tuple(picture.data for picture in pictures)
        _refuse_pixels(inputs)
        asked = question(VisionRequest(**fields, media=media), request.model, VISION, wishes, inputs)
    else:
        asked = question(chat, request.model, CHAT, wishes, ())
    if asked.realm in OTHER_ROUTES:
        message = f"{asked.realm} is not asked with a chat; it is asked at {OTHER_ROUTES[asked.realm]}"
        raise ApiError(400, message, code="invalid_value", param="model")
    usage = bool(request.stream_options and request.stream_options.include_usage)
    questions = tuple(_choice(asked, index) for index in range(request.n or 1))
    return Asked(questions, request.model, bool(request.stream), usage)


def _choice(first: Question, index: int) -> Question:
    """The query of choice `index`: one of its own, with the next seed."""
    if not index:
        return first
    assert isinstance(first.request, ChatRequest)
    request = replace(first.request, seed=following_seed(first.request.seed, index))
    return replace(first, query_id=QueryId(secrets.token_bytes(16)), request=request)


def _refuse_unsupported(request: ChatCompletionRequest) -> None:
    use_tools = "it was replaced by tools and tool_choice; use those"
    only_text = "only text is answered; see /v1/audio/speech"
    checks = (
        ("functions", bool(request.functions), use_tools),
        ("function_call", request.function_call not in (None, "none", "auto"), use_tools),
        ("logit_bias", bool(request.logit_bias), "peers' models have different tokens"),
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


def _conversation(messages: list[ChatMessage]) -> tuple[tuple[Turn, ...], list[_Picture], tuple[Call, ...]]:
    turns, pictures, conversing = [], list[_Picture](), Conversing()
    for index, message in enumerate(messages):
        _note_calls(conversing, index, message)
        where = f"messages.{index}.content"
        if message.content is None and not message.tool_calls:
            raise ApiError(400, f"{where} is missing; send text", code="missing_value", param=where)
        content = message.content or ""
        parts = [ContentPart(type="text", text=content)] if isinstance(content, str) else content
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
    return tuple(turns), pictures, conversing.calls


def _note_calls(conversing: Conversing, index: int, message: ChatMessage) -> None:
    """A message's calls, or the call that it is the result of. Raises `ApiError` (400)."""
    where = f"messages.{index}"
    if message.function_call:
        raise unsupported(f"{where}.function_call", "it was replaced by tool_calls; use those")
    if message.audio:
        raise unsupported(f"{where}.audio", "a conversation is text and pictures here")
    if message.tool_calls and message.role != "assistant":
        why = f"{where}.tool_calls: the assistant calls tools"
        raise ApiError(400, why, code="invalid_value", param=f"{where}.tool_calls")
    conversing.made(index, message.tool_calls or ())
    if message.role == "tool":
        conversing.answered(index, message.tool_call_id)


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


def _refuse_pixels(pictures: tuple[bytes, ...]) -> None:
    """What would be too large for any worker to open is told here, before anybody has been asked."""
    try:
        check_pictures(pictures)
    except PictureRefused as error:
        raise ApiError(400, f"messages: {error}", code="invalid_value", param="messages") from None


def _refuse_size(chat: ChatRequest) -> None:
    """A frame holds the conversation and, after a failover, the answer so far: each may have half of it."""
    size, limit = sum(len(turn.text.encode()) + 16 for turn in chat.turns), params.MAX_TEXT_BYTES // 2
    for wishes in chat.wishes:
        texts = [wishes.schema, *(tool.description + tool.parameters for tool in wishes.tools)]
        texts += [call.arguments for call in wishes.calls]
        size += sum(len(text.encode()) + 80 for text in texts)
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

    def chunk(
        self,
        delta: dict[str, Any],
        finish: str | None = None,
        index: int = 0,
        logprobs: Sequence[TokenLogprob] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """One streamed chunk of choice `index`."""
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        choice |= {"logprobs": likelihoods(logprobs)} if logprobs else {}
        return self._frame("chat.completion.chunk", [choice]) | more

    def usage_chunk(self, done: Iterable[Completed]) -> dict[str, Any]:
        """The chunk after the last, for `include_usage`."""
        return self._frame("chat.completion.chunk", []) | {"usage": usage_of_all(done)}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of an answer that was not streamed. Where there are several choices, each has its own facts."""
        done = [choice.done for choice in choices]
        shown = [choice.shape(index) for index, choice in enumerate(choices)]
        if len(choices) > 1:
            shown = [each | {"mtor": facts(one)} for each, one in zip(shown, done, strict=True)]
        return self._frame("chat.completion", shown) | {"usage": usage_of_all(done), "mtor": facts_of_all(done)}

    def _frame(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        model = self.model or self.asked.model
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "choices": choices}


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    calls: tuple[ToolCalled, ...]
    done: Completed

    def shape(self, index: int) -> dict[str, Any]:
        """OpenAI's choice."""
        content = None if self.calls and not self.text.strip() else self.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            message["tool_calls"] = [call_shape(call) for call in self.calls]
        shown = likelihoods(self.logprobs) if self.logprobs else None
        return {"index": index, "message": message, "finish_reason": self.done.finish, "logprobs": shown}


def call_shape(call: ToolCalled) -> dict[str, Any]:
    """OpenAI's call of a tool."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def likelihoods(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's `logprobs`."""
    content = [
        _token(each.token, each.logprob, each.data) | {"top_logprobs": [_token(*likely) for likely in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float, data: bytes = b"") -> dict[str, Any]:
    """`bytes` is null where a token is a part of a character and its bytes are not known."""
    known = data or (token.encode() if "\ufffd" not in token else None)
    return {"token": token, "logprob": logprob, "bytes": None if known is None else list(known)}


def usage_of_all(done: Iterable[Completed]) -> dict[str, int]:
    """OpenAI's `usage` of all choices together: each was a query of its own, and read the prompt."""
    counts = [usage(one) for one in done]
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def facts_of_all(done: Sequence[Completed]) -> dict[str, Any]:
    """The `mtor` object of several choices: what all of them together were."""
    every = [facts(one) for one in done]
    summed = {name: sum(one[name] for one in every) for name in ("units_in", "units_out", "cost_micro")}
    return {
        **every[0],
        **summed,
        "ttft_ms": min(one["ttft_ms"] for one in every),
        "failover": any(one["failover"] for one in every),
        "shares": [share for one in every for share in one["shares"]],
    }


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
