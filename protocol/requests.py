"""What a query may ask, kind by kind: what must hold of a request, and what an answer to it can honestly count.

Rule: one table entry a kind of request; whoever adds a kind adds it here. Counts are units: tokens of text, tenths of a
second of sound, 65,536 pixel-steps of a picture. A worker that counts more than these limits breaks a rule, so a
requester knows before it asks what an answer may cost at most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import params
from protocol.codec import decode
from protocol.errors import ErrorCode, ProtocolError, Refused
from protocol.messages import (
    NUMBERS,
    REGISTRY,
    ChatRequest,
    ImagineRequest,
    Media,
    Message,
    Query,
    SpeakRequest,
    TranscribeRequest,
    VisionRequest,
)
from protocol.wishes import wrong_with

Request = ChatRequest | VisionRequest | ImagineRequest | TranscribeRequest | SpeakRequest

ROLES = frozenset({"system", "user", "assistant", "tool"})
PCM = re.compile(r"audio/pcm;rate=([1-9]\d{3,4})", re.ASCII)  # one channel, 16 bits, little endian


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an answer consists of so far."""

    text_bytes: int = 0
    data_bytes: int = 0
    media_type: str = ""  # of the data
    calls: int = 0  # of tools; their names and arguments are text


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of one kind of request."""

    name: str  # as people and configurations say it
    check: Callable[[Any], None]  # raises `Refused`
    most_in: Callable[[Any, int], int]  # (request, bytes of payload and prefix) -> units of the question at most
    most_out: Callable[[Any, Delivery], int]  # units of the answer so far at most
    answers: Callable[[str], bool] = lambda media_type: media_type == ""  # True for what its answer may be; "" is text
    continued: bool = False  # another worker may go on from a part of the answer
    paid_whole: bool = False  # its units come with its last data


def request_number(request: Message) -> int:
    """The message number of a request: how offers name what they take."""
    return NUMBERS[type(request)]


def request_name(number: int) -> str:
    """A kind's name for people; the number itself if it is none that is known here."""
    kind = KINDS.get(REGISTRY.get(number, Message))
    return kind.name if kind else str(number)


def read_request(query: Query) -> Request:
    """The request that a query carries. Raises `Refused` (INVALID_REQUEST)."""
    try:
        request = decode(query.payload)
    except ProtocolError as error:
        raise Refused(ErrorCode.INVALID_REQUEST, f"the payload is no request: {error}") from None
    if type(request) not in KINDS:
        raise Refused(ErrorCode.INVALID_REQUEST, f"{type(request).__name__} is no request of a realm")
    return request  # type: ignore[return-value]  # the table's keys are the union's members


def check_request(request: Request, prefix: str = "") -> None:
    """The rules of a request beyond its bounds, and of its query's prefix. Raises `Refused` (INVALID_REQUEST)."""
    kind = kind_of(request)
    kind.check(request)
    if prefix and not kind.continued:
        raise _invalid(f"only a conversation is continued; {kind.name} requests have no prefix")
    if sum(each.size for each in media_of(request)) > params.MAX_INPUT_BYTES:
        raise _invalid(f"pictures and sounds have at most {params.MAX_INPUT_BYTES} bytes together")


def kind_of(request: Request) -> Kind:
    """The table's entry for a request."""
    return KINDS[type(request)]


def media_of(request: Request) -> Sequence[Media]:
    """The inputs that follow the query."""
    return request.media if isinstance(request, VisionRequest | TranscribeRequest) else ()


def input_bytes(request: Request) -> int:
    """The sum of the inputs' sizes."""
    return sum(each.size for each in media_of(request))


def most_units_in(query: Query, request: Request) -> int:
    """The most units that this query's question can honestly have."""
    return kind_of(request).most_in(request, len(query.payload) + len(query.prefix.encode()))


def most_units_out(request: Request, offered: int) -> int:
    """The most units that an answer to this request may have, where the offer allows `offered` of them."""
    wanted = offered
    if isinstance(request, ChatRequest) and request.max_tokens:
        wanted = request.max_tokens
    if isinstance(request, ImagineRequest):
        wanted = _picture(request)
    return min(wanted, offered)


def picture_units(width: int, height: int, steps: int) -> int:
    """Units of a picture of `width` times `height` pixels in `steps` steps."""
    return -(-width * height * steps // params.PICTURE_UNIT)


def _tokens(request: Any, size: int) -> int:
    """A token stands for at least one byte; the template adds some."""
    return size + params.PREFIX_TOKEN_ALLOWANCE


def _written(request: Any, delivery: Delivery) -> int:
    """Tokens may have given no bytes yet: a held-back stop string, a cut code point, control tokens; or give none at
    all, those around a call."""
    around = delivery.calls * params.CALL_TOKENS
    return delivery.text_bytes + params.PREFIX_TOKEN_ALLOWANCE + params.MAX_STOP_BYTES + around


def _seen(request: VisionRequest, size: int) -> int:
    return _tokens(request, size) + params.PICTURE_TOKENS * len(request.media)


def _picture(request: ImagineRequest) -> int:
    """What was asked for; the most there is where the worker chooses."""
    side, steps = params.MAX_PICTURE_SIDE, params.MAX_PICTURE_STEPS
    return picture_units(request.width or side, request.height or side, request.steps or steps)


def _painted(request: ImagineRequest, delivery: Delivery) -> int:
    return _picture(request) if delivery.data_bytes else 0


def _heard(request: TranscribeRequest, size: int) -> int:
    """The sound's tenths of a second are not known here; sparser sound than this counts as less."""
    return min(params.MAX_SOUND_TENTHS, input_bytes(request) // params.MIN_HEARD_BYTES + 1)


def _spoken(request: SpeakRequest, delivery: Delivery) -> int:
    """Started tenths of a second: two bytes a sample."""
    return -(-delivery.data_bytes * 5 // sound_rate(delivery.media_type)) if delivery.data_bytes else 0


def sound_rate(media_type: str) -> int:
    """Samples a second of a spoken answer; 0 if the type is none of such an answer."""
    match = PCM.fullmatch(media_type)
    rate = int(match[1]) if match else 0
    return rate if params.MIN_SOUND_RATE <= rate <= params.MAX_SOUND_RATE else 0


def _check_chat(request: ChatRequest) -> None:
    roles = {turn.role for turn in request.turns}
    if not roles <= ROLES:
        raise _invalid(f"roles are system, user, assistant and tool, not {sorted(roles)}")
    if request.turns[-1].role == "assistant":
        raise _invalid("the last message is the assistant's; there is nothing to answer")
    wrong = wrong_with(request)
    if wrong:
        raise _invalid(wrong)


def _check_text(request: ChatRequest) -> None:
    _check_chat(request)
    if not any(turn.text.strip() for turn in request.turns):
        raise _invalid("the conversation is empty")


def _check_vision(request: VisionRequest) -> None:
    _check_chat(request)
    for each in request.media:
        if each.kind != "image":
            raise _invalid(f"a turn shows pictures, not {each.kind!r}")
        if each.turn >= len(request.turns) or request.turns[each.turn].role != "user":
            raise _invalid("a picture belongs to a turn of the user")


def _check_imagine(request: ImagineRequest) -> None:
    if not request.prompt.strip():
        raise _invalid("the prompt is empty")


def _check_transcribe(request: TranscribeRequest) -> None:
    if request.media[0].kind != "audio":
        raise _invalid(f"a sound is transcribed, not {request.media[0].kind!r}")


def _check_speak(request: SpeakRequest) -> None:
    if not request.text.strip():
        raise _invalid("the text is empty")


def _invalid(reason: str) -> Refused:
    return Refused(ErrorCode.INVALID_REQUEST, reason)


KINDS: dict[type[Message], Kind] = {
    ChatRequest: Kind("chat", _check_text, _tokens, _written, continued=True),
    VisionRequest: Kind("vision", _check_vision, _seen, _written, continued=True),
    ImagineRequest: Kind(
        "imagine",
        _check_imagine,
        lambda request, size: 0,
        _painted,
        answers=lambda media_type: media_type == "image/png",
        paid_whole=True,
    ),
    TranscribeRequest: Kind("transcribe", _check_transcribe, _heard, _written),
    SpeakRequest: Kind(
        "speak",
        _check_speak,
        lambda request, size: len(request.text.encode()),
        _spoken,
        answers=lambda media_type: sound_rate(media_type) > 0,
    ),
}
