"""A small federation for ledger tests: fixed keys, orders in one line each, and a state to apply them to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from protocol.codec import body_hash, encode
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.ledger import certificates, genesis, orders, votes
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.certificates import Transition
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Channel, Draft, View, lock_key
from protocol.messages import Close, Grant, Hold, Message, Refund, Voucher, WitnessSignature
from protocol.pricing import channel_cost
from protocol.signing import Signer

NOW = 1_800_000_000_000
HOUR = 3_600_000


def signer(name: str) -> Signer:
    """The key that a name stands for."""
    return Signer.from_seed(hashlib.sha256(name.encode()).digest())


WITNESS, ISSUER = signer("witness"), signer("issuer")
ALICE, BOB, CAROL = signer("alice"), signer("bob"), signer("carol")
FEDERATION = genesis.create("test", NOW, [WITNESS.node], [ISSUER.node], supply_cap=10_000_000)


class Mapping:
    """An empty start, in the shape that the audit walks."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes, /) -> bytes | None:
        return self.values.get(key)

    def iterate(self, prefix: bytes = b"", start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        assert not reverse
        keys = sorted([key for key in self.values if key.startswith(prefix)])  # a few among many
        return iter([(key, self.values[key]) for key in keys if key >= start])

    def write(self, puts: certificates.Puts) -> None:
        for key, value in puts.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value


@dataclass(frozen=True)
class Order:
    """An encoded order with its owner's signature."""

    body: bytes
    signature: bytes

    @property
    def hash(self) -> bytes:
        return body_hash(self.body)


@dataclass
class World:
    """One witness's state, and the clock."""

    federation: Federation = FEDERATION
    witness: Signer = WITNESS
    index: int = 0
    now: int = NOW
    state: Mapping = field(default_factory=Mapping)

    @property
    def view(self) -> View:
        return View(self.state)

    def balance(self, who: Signer) -> int:
        return self.view.account(who.node).balance

    # --- orders ---

    def signed(self, owner: Signer, message: Message) -> Order:
        body = encode(message)
        return Order(body, owner.sign(self.federation.id, body))

    def grant(self, to: NodeId, amount: int, issuer: Signer = ISSUER, **changes: object) -> Order:
        account = self.view.account(issuer.node)
        order = Grant(issuer.node, account.next_sequence, account.head, to, amount, 0)
        return self.signed(issuer, replace(order, **changes))  # type: ignore[arg-type]

    def hold(self, payer: Signer, payee: NodeId, amount: int, /, **changes: object) -> Order:
        account = self.view.account(payer.node)
        order = Hold(
            payer=payer.node,
            sequence=account.next_sequence,
            previous=account.head,
            payee=payee,
            amount=amount,
            price_in=1_000,
            price_out=3_000,
            expiry_ms=self.now + HOUR,
            quote=NO_HASH,
            epoch=0,
        )
        return self.signed(payer, replace(order, **changes))  # type: ignore[arg-type]

    def voucher(self, payer: Signer, channel: bytes, units_in: int, units_out: int, /, **changes: object) -> Order:
        state = self.channel(channel)
        cost = channel_cost(units_in, units_out, state.price_in, state.price_out)
        voucher = Voucher(ChannelId(channel), cost, units_in, units_out, NO_HASH)
        return self.signed(payer, replace(voucher, **changes))  # type: ignore[arg-type]

    def close(self, payee: Signer, channel: bytes, voucher: Order) -> Order:
        return self.signed(payee, Close(ChannelId(channel), voucher.body, voucher.signature))

    def refund(self, channel: bytes, time_ms: int | None = None, witness: Signer = WITNESS) -> Order:
        time = self.now if time_ms is None else time_ms
        return self.signed(witness, Refund(witness.node, ChannelId(channel), time))

    def channel(self, channel: bytes) -> Channel:
        state = self.view.channel(channel)
        assert state is not None
        return state

    # --- the witness ---

    def check(self, order: Order) -> orders.CheckedOrder:
        return orders.check_order(self.federation, self.view, order.body, order.signature)

    def vote(self, order: Order) -> WitnessSignature:
        """This witness's vote, its lock written."""
        checked = self.check(order)
        lock = votes.decide(self.federation, self.view, checked, votes.Moment(self.now), self.witness)
        self.state.write({lock_key(checked.object, checked.version): lock.encode()})
        return WitnessSignature(self.index, lock.vote)

    def certificate(self, order: Order) -> bytes:
        """The order's certificate, which may or may not be applicable."""
        vote = self.vote(order)
        return certificates.certify(self.check(order), [vote])

    def apply(self, certificate: bytes) -> Transition:
        transition = certificates.apply(self.federation, self.view, certificate)
        self.state.write(transition.puts)
        return transition

    def do(self, order: Order) -> Transition:
        """Vote, certify, apply."""
        return self.apply(self.certificate(order))

    def audit(self, *, signatures: bool = False) -> Report:
        return verify_log(self.federation, self.state, signatures=signatures)

    def draft(self) -> Draft:
        return Draft(self.state)
