"""A check whose signatures are checked elsewhere says what it would have said by itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from protocol.codec import decode_as, encode
from protocol.errors import BadSignature
from protocol.ids import FederationId, NodeId
from protocol.ledger.assumed import ATTEMPTS, BATCH, Assumed, Question, as_if_checked
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.state import Verify, certificate_key, u64
from protocol.messages import Certificate, Close, Consent
from protocol.signing import verify
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, World, signer
from tests.protocol.vector_world import Ledger, four_witnesses

SPOILT = bytes(64)


@dataclass
class Elsewhere:
    """Checks at once, and tells later."""

    taken: list[int] = field(default_factory=list)
    found: list[Question] = field(default_factory=list)

    def take(self, batch: list[Question]) -> None:
        self.taken.append(len(batch))
        for question in batch:
            try:
                verify(*question)
            except BadSignature:
                self.found.append(question)

    def wrong(self) -> list[Question]:
        found, self.found = self.found, []
        return found


@pytest.fixture
def world() -> World:
    """Alice paid Bob twice; certificates 0 to 4."""
    world = World()
    world.do(world.grant(ALICE.node, 1_000_000))
    for _ in range(2):
        hold = world.hold(ALICE, BOB.node, 400_000)
        world.do(hold)
        world.do(world.close(BOB, hold.hash, world.voucher(ALICE, hold.hash, 10, 20)))
    return world


def both(world: World) -> tuple[Report, Report]:
    """The report of a check on the spot, and of one with the signatures checked elsewhere."""

    def run(check: Verify) -> Report:
        return verify_log(world.federation, world.state, signatures=True, check=check)

    return run(verify), as_if_checked(run, Elsewhere())


def spoil(world: World, position: int, change: str) -> None:
    """Break one signature of a stored certificate, and nothing else."""
    identity = world.view.id_at(position)
    assert identity is not None
    stored = world.view.record(identity)
    assert stored is not None
    found = decode_as(Certificate, stored)
    if change == "owner":
        found = replace(found, signature=SPOILT)
    if change == "vote":
        found = replace(found, votes=(replace(found.votes[0], signature=SPOILT), *found.votes[1:]))
    world.state.write({certificate_key(identity): u64(position) + encode(found)})


def test_a_true_ledger_is_verified(world: World) -> None:
    alone, elsewhere = both(world)
    assert alone == elsewhere
    assert elsewhere.verified
    assert elsewhere.certificates == 5


@pytest.mark.parametrize("change", ["owner", "vote"])
@pytest.mark.parametrize("position", range(5))
def test_the_same_record_is_found_wrong(world: World, position: int, change: str) -> None:
    spoil(world, position, change)
    alone, elsewhere = both(world)
    assert alone == elsewhere
    assert not elsewhere.verified
    assert f"certificate {position} of" in elsewhere.problems[0]


def test_of_two_wrong_ones_the_first_ends_the_check(world: World) -> None:
    spoil(world, 1, "vote")
    spoil(world, 3, "owner")
    alone, elsewhere = both(world)
    assert alone == elsewhere
    assert alone.certificates == 1


def test_a_wrong_voucher_is_found(world: World) -> None:
    hold = world.hold(ALICE, BOB.node, 100_000)
    world.do(hold)
    good = world.voucher(ALICE, hold.hash, 10, 20)
    world.do(world.close(BOB, hold.hash, good))
    identity = world.view.id_at(6)
    assert identity is not None
    stored = world.view.record(identity)
    assert stored is not None
    found = decode_as(Certificate, stored)
    close = decode_as(Close, found.body)
    again = world.signed(BOB, replace(close, voucher_signature=SPOILT))
    forged = replace(found, body=again.body, signature=again.signature)
    world.state.write({certificate_key(identity): u64(6) + encode(forged)})
    alone, elsewhere = both(world)
    assert alone == elsewhere
    assert not elsewhere.verified


# --- an epoch that has ended ---


@pytest.fixture
def ended() -> Ledger:
    """Epoch 0 with a settled channel, and a sub-account taken by a key that the checkpoint's order names behind it."""
    ledger, channel = four_witnesses()
    sub_account = next(one for number in range(99) if (one := signer(f"sub {number}")).node < ALICE.node)
    new_key = signer("alice's new key")
    ledger.give(ledger.close(BOB, channel, ledger.voucher(ALICE, channel, 10, 20)))
    ledger.give(ledger.rotate(ALICE, new_key))
    consent = new_key.sign(ledger.federation.id, encode(Consent(sub_account.node, ALICE.node)))
    ledger.give(ledger.attach(sub_account, ALICE, consent=consent))
    ledger.end_epoch()
    return ledger


def test_an_ended_epoch_is_verified_by_keys_that_stand_behind_in_it(ended: Ledger) -> None:
    alone, elsewhere = both(ended)
    assert alone == elsewhere
    assert alone.verified, alone.problems
    assert alone.epoch == 1
    assert alone.certificates == 5


@pytest.mark.parametrize("change", ["owner", "vote"])
@pytest.mark.parametrize("position", range(5))
def test_a_wrong_signature_in_an_ended_epoch_is_found(ended: Ledger, position: int, change: str) -> None:
    spoil(ended, position, change)
    alone, elsewhere = both(ended)
    assert alone == elsewhere
    assert alone.problems == ("epoch 0: bad_signature: the signature does not verify",)


QUESTIONS: list[Question] = [(ALICE.node, FEDERATION.id, bytes([0x91, 1, place]), SPOILT) for place in range(8)]


def test_one_of_several_keys_may_be_wrong() -> None:
    """As where an account's key was changed: the first does not fit, the second does, and that is good."""
    body = QUESTIONS[0][2]
    signature = BOB.sign(FEDERATION.id, body)

    def run(check: Verify) -> list[str]:
        said = []
        for key in (ALICE.node, BOB.node):
            try:
                check(key, FEDERATION.id, body, signature)
                said.append("good")
                break
            except BadSignature:
                said.append("wrong")
        return said

    elsewhere = Elsewhere()
    assert as_if_checked(run, elsewhere) == run(verify) == ["wrong", "good"]
    assert elsewhere.taken == [1, 1]


def test_who_always_asks_for_more_is_checked_on_the_spot() -> None:
    """Each answer leads to another question, more often than a checker is asked again."""

    def run(check: Verify) -> int:
        for place, question in enumerate(QUESTIONS):
            try:
                check(*question)
            except BadSignature:
                continue
            return place
        return len(QUESTIONS)

    elsewhere = Elsewhere()
    assert as_if_checked(run, elsewhere) == run(verify) == len(QUESTIONS)
    assert len(elsewhere.taken) == ATTEMPTS


def test_too_many_wrong_ones_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.ledger.assumed.MAX_WRONG", 3)

    def run(check: Verify) -> int:
        wrong = 0
        for question in QUESTIONS:
            try:
                check(*question)
            except BadSignature:
                wrong += 1
        return wrong

    elsewhere = Elsewhere()
    assert as_if_checked(run, elsewhere) == len(QUESTIONS)
    assert len(elsewhere.taken) == 1


def test_signatures_go_in_batches() -> None:
    taken: list[int] = []
    assumed = Assumed(lambda batch: taken.append(len(batch)), set())
    for _ in range(BATCH + 1):
        assumed(ALICE.node, FEDERATION.id, b"", SPOILT)
    assumed.flush()
    assumed.flush()
    assert taken == [BATCH, 1]


def test_a_wrong_one_is_wrong_for_the_reason_that_the_check_gives() -> None:
    def refuse(key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
        raise BadSignature("not this one")

    assumed = Assumed(lambda batch: None, set(QUESTIONS), refuse)
    with pytest.raises(BadSignature, match="not this one"):
        assumed(*QUESTIONS[0])
