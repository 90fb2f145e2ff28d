"""Offers that tests build, with fixed keys."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from protocol.codec import encode
from protocol.ids import CHAT, NO_HASH, ChannelId, FederationId, QueryId
from protocol.messages import (
    NUMBERS,
    ChatRequest,
    Device,
    ImagineRequest,
    Media,
    Message,
    ModelOffer,
    Offer,
    Query,
    SpeakRequest,
    TranscribeRequest,
    Turn,
    VisionRequest,
)
from protocol.offers import KnownOffer, seal_offer
from protocol.signing import Signer

NOW = 1_800_000_000_000
FEDERATION = FederationId(b"f" * 32)


def chat(*turns: tuple[str, str], **changes: Any) -> ChatRequest:
    """A conversation of (role, text)."""
    return replace(ChatRequest(tuple(Turn(*turn) for turn in turns), 0, 0, 1000, 0, 1000, 2000, 2000, 0, ()), **changes)


def vision(
    *turns: tuple[str, str], media: tuple[Media, ...] = (Media("image", 10, 0),), **changes: Any
) -> VisionRequest:
    """A conversation about pictures."""
    asked = chat(*(turns or [("user", "what is this?")]), **changes)
    return VisionRequest(**{field.name: getattr(asked, field.name) for field in fields(ChatRequest)}, media=media)


def imagine(**changes: Any) -> ImagineRequest:
    """A picture of 256 x 256 pixels in 24 steps: 24 units."""
    return replace(ImagineRequest("a fox", "", 256, 256, 24, 0, 1, 0), **changes)


def transcribe(size: int = 100, **changes: Any) -> TranscribeRequest:
    """Sound of `size` bytes."""
    return replace(TranscribeRequest((Media("audio", size, 0),), "", "", 0, 0, 0), **changes)


def speak(text: str = "hello") -> SpeakRequest:
    """A text to speak."""
    return SpeakRequest(text, "", 1_000)


def query(request: Message | None = None, **changes: Any) -> Query:
    """A free query with a request: a short chat unless said."""
    payload = encode(request or chat(("user", "hello")))
    return replace(Query(QueryId(b"q" * 16), CHAT, "", 1_000, ChannelId(NO_HASH), payload, "", 0, ()), **changes)


def model_offer(**changes: Any) -> ModelOffer:
    fields: dict[str, Any] = {
        "realm": CHAT,
        "model": "tiny",
        "digest": NO_HASH,
        "requests": (NUMBERS[ChatRequest],),
        "context_tokens": 2048,
        "max_output_tokens": 512,
        "device": Device("cpu", "test", 0, 0),
        "slots": 2,
        "busy": 0,
        "queued": 0,
        "price_in": 1000,
        "price_out": 3000,
        "window": 64,
        "tokens_per_second": 20_000,
        "free": 1,
    }
    return ModelOffer(**{**fields, **changes})


@pytest.fixture
def make_offer() -> Callable[..., KnownOffer]:
    """`make_offer(number, models…, sequence=…, issued=…, lifetime=…)`: node `number`'s signed offer."""

    def make(
        number: int, *models: ModelOffer, sequence: int = NOW, issued: int = NOW, lifetime: int = 60_000
    ) -> KnownOffer:
        signer = Signer.from_seed(bytes([number]) * 32)
        offer = Offer(signer.node, sequence, issued, issued + lifetime, ("/ip4/127.0.0.1/tcp/1",), models, ())
        return seal_offer(signer, FEDERATION, offer)

    return make
