"""Two implementations side by side: random orders, delivered in any order, through several epochs, to several replicas.

Rule: the code and the stranger see the same bytes and have to say the same: applied or refused and why, the same state
after each step, the same checkpoint of each union. What a seed draws is fixed, so a failure comes again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace

import pytest
import stranger_epochs
import stranger_ledger

from protocol.codec import decode, decode_as
from protocol.errors import Refused
from protocol.ids import NodeId
from protocol.ledger import checkpoints, votes
from protocol.ledger.checkpoints import epoch_orders, outcome, record_id
from protocol.ledger.orders import AccountOrder, MissingPredecessor, check_order, owner_of
from protocol.ledger.state import View, lock_key
from protocol.messages import Certificate
from protocol.params import MAX_INTEGER, SIGNATURE_BYTES
from tests.protocol.ledger_world import HOUR, ISSUER, signer
from tests.protocol.vector_world import FOUR, FOUR_WITNESSES, Ledger, Order, Union

PEOPLE = [signer(f"person {index}") for index in range(5)]
SPARE = [signer(f"spare key {index}") for index in range(12)]
KEYS = {one.node: one for one in (*PEOPLE, *SPARE)}
SEED = hashlib.sha256(b"w0").hexdigest()  # of the first witness
REPLICAS, EPOCHS, ORDERS, FREEZE = 3, 3, 24, 17


@dataclass
class Both:
    """One replica, twice."""

    code: Ledger = field(default_factory=Ledger.of_four)
    other: stranger_ledger.Ledger = field(
        default_factory=lambda: stranger_ledger.Ledger(stranger_ledger.Federation(FOUR.body.hex()))
    )

    def take(self, certificate: bytes) -> str:
        """Apply it; what both say."""
        said = _said(lambda: self.code.apply(certificate).position)
        assert said == _said(lambda: self.other.apply(certificate.hex())[1])
        self.compare()
        return said

    def vote(self, order: Order, now_ms: int, frozen: bool) -> str:
        """As the first witness: ask both for a vote, and write it down."""

        def ours() -> str:
            view = self.code.view
            checked = check_order(FOUR, view, order.body, order.signature)
            lock = votes.decide(FOUR, view, checked, votes.Moment(now_ms, frozen), FOUR_WITNESSES[0])
            self.code.state.write({lock_key(checked.object, checked.version): lock.encode()})
            return lock.vote.hex()

        def theirs() -> str:
            self.other.frozen = frozen
            return str(self.other.vote(SEED, now_ms, order.body.hex(), order.signature.hex())["vote"])

        said = _said(ours)
        assert said == _said(theirs)
        return said

    def adopt(self, decision: bytes, union: Iterable[bytes]) -> None:
        """Go over to the next epoch."""
        orders = [*union]
        self.code.adopt(decision, orders)
        stranger_epochs.adopt(self.other, decision.hex(), stranger_epochs.united([one.hex() for one in orders]))
        self.compare()

    def compare(self) -> None:
        """Both have the same state, and the same orders in this epoch; everything adds up to 0."""
        ours = [leaf.hex() for leaf in checkpoints.leaves(self.code.state)]
        assert ours == stranger_epochs.leaves(self.other.state)
        assert {one.hex() for one in epoch_orders(self.code.state).certificates} == set(self.other.orders)
        held = sum(one.hold["amount"] for one in self.other.state.channels.values() if one.status == "open")
        assert sum(one.balance for one in self.other.state.accounts.values()) + held == 0


def _said(do: Callable[[], object]) -> str:
    try:
        return f"{do()}"
    except MissingPredecessor as refusal:
        return f"missing {refusal.code.name}"
    except Refused as refusal:
        return refusal.code.name
    except stranger_ledger.Refused as refusal:
        return f"missing {refusal.code}" if refusal.missing else refusal.code


class Walk:
    """Somebody who knows everything makes orders; replicas hear of some of them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.all = Ledger.of_four()
        self.pool: list[bytes] = []
        self.replicas = [Both() for _ in range(REPLICAS)]
        self.spare = list(SPARE)
        self.said: set[str] = set()
        self.asked: set[str] = set()
        self.begun = 0
        self.void = 0

    def epoch(self) -> None:
        """Orders, deliveries, and an end."""
        self.begun = len(self.pool)
        union: dict[bytes, bytes] = {}
        for step in range(ORDERS):
            self._order()
            self._deliver()
            self._ask()
            if step == FREEZE:  # some others hear of orders later than that
                for replica in self.draw.sample(self.replicas, self.draw.randint(1, 2)):
                    union |= epoch_orders(replica.code.state).certificates
        self._end(union)

    def _order(self) -> None:
        make = self.draw.choice(
            [self._grant] * 3 + [self._hold] * 4 + [self._close] * 3 + [self._move, self._attach, self._keys]
        )
        try:
            order = make()
            certificate = self.all.certificate(order)
            self.all.apply(certificate)
        except (Refused, IndexError):  # nothing to close, nobody to pay, not related
            return
        self.pool.append(certificate)

    def _person(self) -> NodeId:
        return self.draw.choice(PEOPLE).node

    def _by(self, account: NodeId) -> tuple[NodeId, bytes]:
        return account, self.all.view.account(account).key_at(account, self.all.view.account(account).next_sequence)

    def _grant(self) -> Order:
        return self.all.grant(self._person(), self.draw.randint(1, 500_000))

    def _hold(self) -> Order:
        payer, key = self._by(self._person())
        return self.all.hold_by(KEYS[key], payer, self._person(), self.draw.randint(1, 100_000))

    def _close(self) -> Order:
        channel = self.draw.choice([key[1:] for key, _ in self.all.state.iterate(b"o")])
        state = self.all.channel(channel)
        payer, payee = (KEYS[self.draw.choice(self._keys_of(one))] for one in (state.payer, state.payee))
        return self.all.close(payee, channel, self.all.voucher(payer, channel, self.draw.randint(0, 1_500), 0))

    def _keys_of(self, account: NodeId) -> list[NodeId]:
        return [account, *(key for _, key in self.all.view.account(account).rotations)]

    def _move(self) -> Order:
        account, key = self._by(self._person())
        return self.all.move(KEYS[account], self._person(), self.draw.randint(1, 50_000), by=KEYS[key])

    def _attach(self) -> Order:
        one, other = self.draw.sample(PEOPLE, 2)
        return self.all.attach(one, other)

    def _keys(self) -> Order:
        account, key = self._by(self._person())
        recovery = self.all.view.account(account).recovery_at(self.all.view.account(account).next_sequence)
        by = KEYS[recovery or key]
        new = self.spare.pop()
        if self.draw.random() < 0.5:
            return self.all.recovery(KEYS[account], new.node, by=by)
        return self.all.rotate(KEYS[account], new, by=by)

    def _deliver(self) -> None:
        """To each replica some that it lacks, in no order, or just any."""
        for replica in self.replicas:
            lacking = [one for one in self.pool[self.begun :] if replica.code.view.position(record_id(one)) is None]
            for choice in (lacking, lacking, self.pool):
                if choice and self.draw.random() < 0.5:
                    self.said.add(replica.take(self.draw.choice(choice)))

    def _ask(self) -> None:
        """One replica for votes on what somebody could have signed."""
        witness, frozen = self.draw.choice(self.replicas), self.draw.random() < 0.1
        for certificate in self.draw.sample(self.pool, min(3, len(self.pool))):
            said = witness.vote(self._changed(certificate), witness.code.now, frozen)
            self.asked.add("a vote" if len(said) == 2 * SIGNATURE_BYTES else said)

    def _changed(self, certificate: bytes) -> Order:
        """An order like one that was made, mostly with something else in one place, and signed by somebody."""
        order = decode(decode_as(Certificate, certificate).body)
        names = [field_.name for field_ in fields(order) if isinstance(getattr(order, field_.name), int)]
        if names and self.draw.random() < 0.7:
            name = self.draw.choice(names)
            value = getattr(order, name) + self.draw.choice([-1, 1, -1_000, 10**7, MAX_INTEGER])
            order = replace(order, **{name: max(0, min(value, MAX_INTEGER))})
        if isinstance(order, AccountOrder) and self.draw.random() < 0.8:  # as if it were made now
            order = replace(order, epoch=self.all.view.epoch)
            if self.draw.random() < 0.8:
                account = self.draw.choice(self.replicas).code.view.account(owner_of(order))
                order = replace(order, sequence=account.next_sequence, previous=account.head)
        signers = [KEYS.get(self._signer(order), ISSUER), self.draw.choice(list(KEYS.values()))]
        return self.all.signed(self.draw.choices(signers, [9, 1])[0], order)

    def _signer(self, order: Order) -> NodeId:
        if isinstance(order, AccountOrder):
            return self.all.view.account(owner_of(order)).key_at(owner_of(order), order.sequence)
        channel = self.all.view.channel(order.channel)
        return self._person() if channel is None else channel.payee

    def _end(self, union: dict[bytes, bytes]) -> None:
        first = self.replicas[0]
        time_ms = first.code.now + self.draw.choice([1, 3 * HOUR])
        found = outcome(FOUR, first.code.state, Union(union), time_ms)
        other = stranger_epochs.outcome(first.other, {one.hex(): data.hex() for one, data in union.items()}, time_ms)
        summary = {"count": found.count, "orders": found.orders.hex(), "state": found.state.hex()}
        assert summary == other.summary
        decision = first.code.decision(first.code.checkpoint(time_ms, union=union.values()))
        for replica in self.replicas:
            self.void += len(epoch_orders(replica.code.state).certificates.keys() - union.keys())
            replica.adopt(decision, union.values())
        self.all.adopt(decision, union.values())
        for ledger in (self.all, *(replica.code for replica in self.replicas)):
            ledger.now = time_ms


@pytest.mark.parametrize("seed", range(5))
def test_code_and_stranger_say_the_same(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(EPOCHS):
        walk.epoch()
    assert View(walk.all.state).epoch == EPOCHS
    assert len(walk.said) > 5 and len(walk.asked) > 5 and walk.void  # applied, refused, and undone again
