"""Offers and the rules of gossip, each rule by its label."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol import params
from protocol.codec import encode
from protocol.errors import BadSignature, Malformed
from protocol.gossip import RULES, Verdict, judge_offer
from protocol.ids import RealmId, peer_id
from protocol.messages import Device, ModelOffer, Offer
from protocol.offers import (
    KnownOffer,
    newest_record,
    open_offer,
    pace_of_change,
    provider_name,
    record_key,
    record_valid,
    seal_offer,
)
from protocol.signing import Signer, seal
from tests.protocol.conftest import FEDERATION, NOW, model_offer

Make = Callable[..., KnownOffer]


def test_an_offer_survives_the_wire(make_offer: Make) -> None:
    known = make_offer(1, model_offer())
    assert open_offer(known.sealed) == known


def test_only_the_node_itself_signs_its_offer(make_offer: Make) -> None:
    forged = seal(Signer.from_seed(b"\2" * 32), FEDERATION, encode(make_offer(1).offer))
    with pytest.raises(BadSignature):
        open_offer(forged)


@pytest.mark.parametrize("lifetime", [0, -1, params.MAX_OFFER_LIFETIME + 1])
def test_lifetimes_are_bounded(make_offer: Make, lifetime: int) -> None:
    with pytest.raises(Malformed, match="lives"):
        open_offer(make_offer(1, lifetime=lifetime).sealed)


@pytest.mark.parametrize("models", [(model_offer(), model_offer()), (model_offer(realm=RealmId("chat")),)])
def test_models_are_unique_and_realms_legal(make_offer: Make, models: tuple[object, ...]) -> None:
    with pytest.raises(Malformed):
        open_offer(make_offer(1, *models).sealed)


def judged(sealed: bytes, known: KnownOffer | None = None, now: int = NOW) -> str:
    return judge_offer(sealed, known, now).rule


def test_each_gossip_rule(make_offer: Make) -> None:
    known = make_offer(1)
    later = make_offer(1, sequence=NOW + 1, issued=NOW + params.OFFER_MIN_INTERVAL)
    assert judged(b"x" * (params.MAX_OFFER_BYTES + 1)) == "O1"
    assert judged(known.sealed[:-1] + b"\0") == "O2"
    assert judged(b"") == "O2"
    assert judged(make_offer(1, issued=NOW + params.CLOCK_SKEW + 1).sealed) == "O3"
    assert judged(known.sealed, now=NOW + 60_000) == "O4"
    assert judged(known.sealed, known) == "O5"
    assert judged(make_offer(1, sequence=NOW + 1, issued=NOW + 1).sealed, known) == "O6"
    assert judged(later.sealed, known) == "O7"
    assert judge_offer(later.sealed, known, NOW).offer == later


def test_only_rejections_blame_the_forwarder() -> None:
    assert {label for label, (verdict, _) in RULES.items() if verdict is Verdict.REJECT} == {"O1", "O2"}


def test_records_belong_to_the_node_that_the_key_names(make_offer: Make) -> None:
    one, newer, other = make_offer(1), make_offer(1, sequence=NOW + 5), make_offer(2)
    key = record_key(one.node)
    assert record_valid(key, one.sealed) and not record_valid(key, other.sealed)
    assert not record_valid("/pk/x", one.sealed) and not record_valid(key, b"junk")
    assert newest_record(key, [other.sealed, one.sealed, newer.sealed, b""]) == 2
    assert newest_record(key, []) == 0
    assert key == f"/mtor/{peer_id(one.node)}" and provider_name(RealmId("$CHAT")) == "/mtor/realm/$CHAT"


def test_expiry_is_exclusive(make_offer: Make) -> None:
    known = make_offer(1)
    assert not known.expired(NOW + 59_999) and known.expired(NOW + 60_000)


def test_sealing_refuses_what_the_wire_refuses(make_offer: Make) -> None:
    from protocol.errors import LocalProtocolError

    signer = Signer.from_seed(b"\1" * 32)
    with pytest.raises(LocalProtocolError):
        seal_offer(signer, FEDERATION, replace(make_offer(1).offer, sequence=-1))


def test_an_offer_with_everything_at_its_longest_can_be_published() -> None:
    signer, most = Signer.from_seed(b"\1" * 32), params.MAX_INTEGER
    device = Device("k" * 16, "n" * params.MAX_NAME_BYTES, most, 1_000, most, "d" * 32)
    models = tuple(
        ModelOffer(
            realm=RealmId("$" + "R" * (params.MAX_NAME_BYTES - 1)),
            model=f"{index:02}" * (params.MAX_NAME_BYTES // 2),
            digest=bytes(32),
            requests=(127,) * params.MAX_REQUEST_KINDS,
            context_tokens=params.MAX_OUTPUT_TOKENS * 16,
            max_output_tokens=params.MAX_OUTPUT_TOKENS * 16,
            device=device,
            slots=65_535,
            busy=65_535,
            queued=65_535,
            price_in=most,
            price_out=most,
            window=params.MAX_WINDOW,
            tokens_per_second=1_000_000,
            free=1,
            features=(127,) * params.MAX_MODEL_FEATURES,
        )
        for index in range(params.MAX_MODELS)
    )
    addresses = ("a" * params.MAX_ADDRESS_BYTES,) * params.MAX_ADDRESSES
    features = (65_535,) * params.MAX_FEATURES
    offer = Offer(signer.node, most, NOW, NOW + params.MAX_OFFER_LIFETIME, addresses, models, features)
    known = seal_offer(signer, FEDERATION, offer)
    assert len(known.sealed) == 11_401  # as chapter 07 says
    assert judged(known.sealed) == "O7"


# --- how soon a change is told -------------------------------------------------------------------------

FIFTHS = {"slots": 20, "busy": 10}


@pytest.mark.parametrize(
    ("before", "after", "pace"),
    [
        ({}, {}, params.OFFER_INTERVAL),
        ({}, {"price_out": 1}, params.OFFER_MIN_INTERVAL),
        ({}, {"slots": 0}, params.OFFER_MIN_INTERVAL),
        ({}, {"busy": 1}, params.OFFER_LOAD_INTERVAL),
        ({"busy": 1}, {"busy": 2}, params.OFFER_LOAD_INTERVAL),
        (FIFTHS, FIFTHS | {"busy": 14}, params.OFFER_INTERVAL),
        (FIFTHS, FIFTHS | {"busy": 14, "queued": 1}, params.OFFER_LOAD_INTERVAL),
        (FIFTHS, FIFTHS | {"busy": 5}, params.OFFER_LOAD_INTERVAL),
        (FIFTHS | {"busy": 19}, FIFTHS | {"busy": 20}, params.OFFER_LOAD_INTERVAL),
        ({}, {"tokens_per_second": 1}, params.OFFER_INTERVAL),
        ({}, {"device": Device("cpu", "test", 0, 0, 7)}, params.OFFER_INTERVAL),
        ({}, {"device": Device("cuda", "test", 8_000, 89)}, params.OFFER_MIN_INTERVAL),
    ],
)
def test_what_others_should_know_is_told_sooner(before: dict[str, Any], after: dict[str, Any], pace: int) -> None:
    assert pace_of_change([model_offer(**before)], [model_offer(**after)]) == pace


def test_a_model_that_comes_or_goes_is_told_at_once() -> None:
    one, two = model_offer(), model_offer(model="other")
    assert pace_of_change([one], [one, two]) == pace_of_change([one, two], [two]) == params.OFFER_MIN_INTERVAL
