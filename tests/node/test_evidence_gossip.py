"""Which proofs are forwarded, which are left, and which count against the peer that forwarded them (E1 … E5)."""

from __future__ import annotations

import pytest
import trio

from node.evidence_keeper import EvidenceKeeper
from node.ledger_writer import LedgerWriter
from node.memory_store import MemoryStore
from protocol.codec import encode
from protocol.gossip import Verdict
from protocol.messages import DoubleVote, Evidence
from protocol.signing import verify
from tests.protocol.ledger_world import ALICE, BOB, CAROL, Order, signer
from tests.protocol.vector_world import FOUR, Ledger, equivocation, four_witnesses, vote_statement

NEW_KEY = signer("bob's new key")


def keeper_of(world: Ledger) -> EvidenceKeeper:
    store = MemoryStore(world.state.values)
    return EvidenceKeeper(FOUR, store, LedgerWriter(store, lambda puts: None), verify)


def gossip(*records: bytes) -> bytes:
    return encode(Evidence(1, records))


def cases() -> dict[str, tuple[Verdict, bytes]]:
    """By name: the verdict, and the message. The ledger has a channel of Alice to Bob, and no changed keys."""
    world, channel = four_witnesses()
    first, second = world.hold(ALICE, CAROL.node, 1), world.hold(ALICE, CAROL.node, 2)
    closes = [world.close(BOB, channel, world.voucher(ALICE, channel, count, 0)) for count in (1, 2)]
    by_new_key, elsewhere = world.copy(), world.copy()
    by_new_key.do(by_new_key.grant(BOB.node, 1))
    by_new_key.do(by_new_key.rotate(BOB, NEW_KEY))
    later = [by_new_key.close(NEW_KEY, channel, by_new_key.voucher(ALICE, channel, count, 0)) for count in (1, 2)]
    opened = elsewhere.give(elsewhere.hold(ALICE, BOB.node, 7))
    unknown = [elsewhere.close(BOB, opened, elsewhere.voucher(ALICE, opened, count, 0)) for count in (1, 2)]
    good = equivocation(first, second)
    return {
        "true and new": (Verdict.ACCEPT, gossip(good)),
        "two closes": (Verdict.ACCEPT, gossip(equivocation(*closes))),
        "two votes": (Verdict.ACCEPT, gossip(double_vote(world, first, second))),
        "closes by a key that is not known here": (Verdict.IGNORE, gossip(equivocation(*later))),
        "closes of a channel that is not known here": (Verdict.IGNORE, gossip(equivocation(*unknown))),
        "orders of an epoch that is not in force": (
            Verdict.IGNORE,
            gossip(equivocation(*(world.hold(ALICE, CAROL.node, amount, epoch=1) for amount in (1, 2)))),
        ),
        "no proof": (Verdict.REJECT, gossip(first.body)),
        "the same order twice": (Verdict.REJECT, gossip(equivocation(first, first))),
        "two votes, one forged": (Verdict.REJECT, gossip(double_vote(world, first, second, bytes(64)))),
        "two at once": (Verdict.REJECT, gossip(good, good)),
        "none": (Verdict.REJECT, gossip()),
        "a byte too many": (Verdict.REJECT, gossip(good) + b"\0"),
    }


def double_vote(world: Ledger, first: Order, second: Order, forged: bytes = b"") -> bytes:
    votes = [world.signature(3, vote_statement(order)).signature for order in (first, second)]
    return encode(DoubleVote(3, first.body, votes[0], second.body, forged or votes[1]))


@pytest.mark.parametrize("name", cases())
def test_a_proof_is_judged_by_what_its_forwarder_could_know(name: str) -> None:
    verdict, message = cases()[name]
    world, _ = four_witnesses()
    assert keeper_of(world).judge(message) is verdict


def test_two_closes_of_a_channel_that_is_settled_here_are_nobodys_fault() -> None:
    world, channel = four_witnesses()
    closes = [world.close(BOB, channel, world.voucher(ALICE, channel, count, 0)) for count in (1, 2)]
    world.do(closes[0])
    assert keeper_of(world).judge(gossip(equivocation(*closes))) is Verdict.IGNORE


async def test_what_is_known_is_not_forwarded_again() -> None:
    world, _ = four_witnesses()
    store = MemoryStore(world.state.values)
    proof = equivocation(*(world.hold(ALICE, CAROL.node, amount) for amount in (1, 2)))
    async with trio.open_nursery() as nursery:
        writer = LedgerWriter(store, lambda puts: None)
        await nursery.start(writer.run)
        keeper = EvidenceKeeper(FOUR, store, writer, verify)
        assert await keeper.take(proof) and not await keeper.take(proof)
        assert keeper.judge(gossip(proof)) is Verdict.IGNORE
        nursery.cancel_scope.cancel()
