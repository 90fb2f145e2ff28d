"""Signed orders of a made-up federation, as payers, workers, the issuer and the witnesses would make them.

Rule: nothing here is a shortcut past the code of `protocol/`: bodies, signatures, votes and certificates are encoded
and signed by it. Keys follow from names, so that every process of a run has the same federation without being told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from protocol.codec import body_hash, encode
from protocol.ids import NO_HASH, ChannelId
from protocol.ledger.genesis import Federation, create
from protocol.ledger.state import first_head
from protocol.messages import Certificate, Close, Grant, Hold, Voucher, WitnessSignature
from protocol.messages import Vote as VoteBody
from protocol.pricing import channel_cost
from protocol.signing import Signer

CREATED_MS = 1_800_000_000_000
LIFETIME_MS = 3_600_000  # of a hold
AMOUNT = 2_000_000  # µcredits held, as a node does by default
PRICES = (1_000, 3_000)  # µcredits for 1,000 tokens
UNITS = (40, 120)  # prompt and output tokens of a query


def seed(name: str) -> bytes:
    """The secret of the key that a name stands for."""
    return hashlib.sha256(f"mtor bench {name}".encode()).digest()


def key(name: str) -> Signer:
    """The key that a name stands for."""
    return Signer.from_seed(seed(name))


@dataclass(frozen=True, slots=True)
class Order:
    """An encoded order with its owner's signature, and what a witness votes for."""

    body: bytes
    signature: bytes
    object: bytes
    version: int

    @property
    def id(self) -> bytes:
        """The order's id; a hold's is its channel's."""
        return body_hash(self.body)


@dataclass(frozen=True, slots=True)
class Parties:
    """Everybody with a key."""

    federation: Federation
    issuer: Signer
    witnesses: tuple[Signer, ...]
    payers: tuple[Signer, ...]
    workers: tuple[Signer, ...]


@cache
def parties(witnesses: int, payers: int, workers: int) -> Parties:
    """A federation of so many."""
    named = [
        tuple(key(f"{kind} {place}") for place in range(count)) for kind, count in _kinds(witnesses, payers, workers)
    ]
    issuer = key("issuer")
    federation = create("bench", CREATED_MS, [witness.node for witness in named[0]], [issuer.node])
    return Parties(federation, issuer, *named)


def _kinds(witnesses: int, payers: int, workers: int) -> list[tuple[str, int]]:
    return [("witness", witnesses), ("payer", payers), ("worker", workers)]


def grants(who: Parties, amount: int) -> Iterator[Order]:
    """One grant for each payer: the issuer's chain."""
    head = first_head(who.issuer.node)
    for sequence, payer in enumerate(who.payers):
        body = encode(Grant(who.issuer.node, sequence, head, payer.node, amount, epoch=0))
        yield _signed(who, who.issuer, body, who.issuer.node, sequence)
        head = body_hash(body)


def channels(who: Parties, payer: int, count: int, queries: int, epochs: int = 1) -> Iterator[tuple[Order, Order]]:
    """A payer's channels one after the other, spread over so many epochs: each hold, and the close after so many
    queries' vouchers."""
    owner, head = who.payers[payer], first_head(who.payers[payer].node)
    for sequence in range(count):
        payee = who.workers[(payer + sequence) % len(who.workers)]
        epoch, expiry_ms = sequence * epochs // count, CREATED_MS + LIFETIME_MS
        hold = Hold(owner.node, sequence, head, payee.node, AMOUNT, *PRICES, expiry_ms, NO_HASH, epoch)
        body = encode(hold)
        head = body_hash(body)
        opened = _signed(who, owner, body, owner.node, sequence)
        yield opened, _close(who, owner, payee, ChannelId(head), queries)


def _close(who: Parties, payer: Signer, payee: Signer, channel: ChannelId, queries: int) -> Order:
    voucher, signature = b"", b""
    for query in range(1, queries + 1):
        units_in, units_out = UNITS[0] * query, UNITS[1] * query
        owed = channel_cost(units_in, units_out, *PRICES)
        voucher = encode(Voucher(channel, owed, units_in, units_out, hashlib.sha256(bytes([query % 256])).digest()))
        signature = payer.sign(who.federation.id, voucher)
    return _signed(who, payee, encode(Close(channel, voucher, signature)), channel, 0)


def _signed(who: Parties, owner: Signer, body: bytes, object_id: bytes, version: int) -> Order:
    return Order(body, owner.sign(who.federation.id, body), object_id, version)


def certificate(order: Order, votes: Sequence[WitnessSignature]) -> bytes:
    """The order with its votes, encoded."""
    return encode(Certificate(order.body, order.signature, tuple(votes)))


def voted(who: Parties, order: Order) -> bytes:
    """The order's certificate with the votes of a quorum, signed here."""
    body = encode(VoteBody(order.id, order.version, order.object))
    votes = [
        WitnessSignature(index, who.witnesses[index].sign(who.federation.id, body))
        for index in range(who.federation.quorum)
    ]
    return certificate(order, votes)
