"""Offers: what a node serves, signed by it, until a time.

Rule: an offer is true for whoever holds it only while it is signed by its own node, unexpired, and newer than the
one known before. Its body's hash is the quote that a hold refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import BadSignature, Malformed, ProtocolError
from protocol.ids import FederationId, NodeId, RealmId, parse_peer_id, peer_id, realm_id
from protocol.messages import ModelOffer, Offer
from protocol.signing import Signer, open_envelope, seal

NOTABLE_LOAD = 0.25  # of the slots


@dataclass(frozen=True, slots=True)
class KnownOffer:
    """An offer whose signature was verified. `quote` is the sha256 of its body, `sealed` its envelope's bytes."""

    offer: Offer
    federation: FederationId
    quote: bytes
    sealed: bytes

    @property
    def node(self) -> NodeId:
        """Who offers."""
        return self.offer.node

    def expired(self, now_ms: int) -> bool:
        """True once nobody should act on it any more."""
        return self.offer.expires_ms <= now_ms


def seal_offer(signer: Signer, federation: FederationId, offer: Offer) -> KnownOffer:
    """Sign one's own offer. Raises `LocalProtocolError` if a field is out of bounds."""
    body = encode(offer)
    return KnownOffer(offer, federation, body_hash(body), seal(signer, federation, body))


def open_offer(sealed: bytes) -> KnownOffer:
    """The offer in an envelope, with every check that needs no clock. Raises `Malformed` or `BadSignature`."""
    envelope = open_envelope(sealed, params.MAX_OFFER_BYTES)
    offer = decode_as(Offer, envelope.body)
    if offer.node != envelope.signer:
        raise BadSignature("an offer is signed by the node that offers")
    _check_lifetime(offer)
    _check_models(offer.models)
    return KnownOffer(offer, envelope.federation, body_hash(envelope.body), sealed)


def is_newer(offer: Offer, known: Offer | None) -> bool:
    """True if `offer` replaces `known`: a higher sequence number of the same node."""
    return known is None or offer.sequence > known.sequence


def pace_of_change(told: Sequence[ModelOffer], now: Sequence[ModelOffer]) -> int:
    """After how many ms others should hear of a change: at once what is offered, soon a load that moved by a good part
    of the slots, and at the next interval what concerns nobody yet."""
    if [_terms(model) for model in told] != [_terms(model) for model in now]:
        return params.OFFER_MIN_INTERVAL
    if any(_load_moved(before, after) for before, after in zip(told, now, strict=True)):
        return params.OFFER_LOAD_INTERVAL
    return params.OFFER_INTERVAL


def _terms(model: ModelOffer) -> ModelOffer:
    """Without what changes as it works."""
    device = replace(model.device, free_mib=0)
    return replace(model, busy=0, queued=0, tokens_per_second=0, device=device)


def _load_moved(before: ModelOffer, after: ModelOffer) -> bool:
    filled = (before.busy < before.slots) != (after.busy < after.slots)
    moved = abs(after.busy + after.queued - before.busy - before.queued)
    return filled or moved >= max(1.0, after.slots * NOTABLE_LOAD)


def record_key(node: NodeId) -> str:
    """Where the DHT keeps a node's offer."""
    return f"/{params.DHT_NAMESPACE}/{peer_id(node)}"


def provider_name(realm: RealmId) -> str:
    """What a node that serves `realm` provides in the DHT."""
    return f"/{params.DHT_NAMESPACE}/realm/{realm}"


def record_valid(key: str, value: bytes) -> bool:
    """True if `value` may be stored under `key`: an offer signed by the node that the key names."""
    try:
        return open_offer(value).node == _record_owner(key)
    except ProtocolError:
        return False


def newest_record(key: str, values: Sequence[bytes]) -> int:
    """The index of the valid record with the highest sequence; 0 if none is valid."""
    return max(range(len(values)), key=lambda index: _record_sequence(key, values[index]), default=0)


def _record_sequence(key: str, value: bytes) -> int:
    return open_offer(value).offer.sequence if record_valid(key, value) else -1


def _record_owner(key: str) -> NodeId:
    prefix = f"/{params.DHT_NAMESPACE}/"
    if not key.startswith(prefix):
        raise Malformed(f"a record's key begins with {prefix}")
    return parse_peer_id(key.removeprefix(prefix))


def _check_lifetime(offer: Offer) -> None:
    lifetime = offer.expires_ms - offer.issued_ms
    if not 0 < lifetime <= params.MAX_OFFER_LIFETIME:
        raise Malformed(f"an offer lives 1 … {params.MAX_OFFER_LIFETIME} ms, not {lifetime}")


def _check_models(models: Sequence[ModelOffer]) -> None:
    named = {(model.realm, model.model) for model in models}
    if len(named) != len(models):
        raise Malformed("a model is offered once in a realm")
    for model in models:
        realm_id(model.realm)
