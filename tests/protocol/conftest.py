"""Offers that tests build, with fixed keys."""

from collections.abc import Callable
from typing import Any

import pytest

from protocol.ids import CHAT, NO_HASH, FederationId
from protocol.messages import Device, ModelOffer, Offer
from protocol.offers import KnownOffer, seal_offer
from protocol.signing import Signer

NOW = 1_800_000_000_000
FEDERATION = FederationId(b"f" * 32)


def model_offer(**changes: Any) -> ModelOffer:
    fields: dict[str, Any] = {
        "realm": CHAT,
        "model": "tiny",
        "digest": NO_HASH,
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
