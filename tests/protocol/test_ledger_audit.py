"""What the audit says of a ledger with ended epochs when one thing in it is not as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.codec import body_hash, decode_as, encode
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.state import (
    Account,
    account_key,
    base_key,
    certificate_key,
    channel_key,
    checkpoint_key,
    log_key,
    order_key,
    u64,
)
from protocol.messages import Certificate, Decision
from tests.protocol.ledger_world import ALICE, BOB, CAROL, HOUR, ISSUER
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses


@pytest.fixture
def ledger() -> Ledger:
    """Two epochs that ended, with copies of their beginnings, and some orders in the third."""
    ledger, channel = four_witnesses()
    end_epoch(ledger)
    ledger.give(ledger.close(BOB, channel, ledger.voucher(ALICE, channel, 100, 50)), ledger.grant(CAROL.node, 7))
    end_epoch(ledger)
    ledger.give(ledger.hold(ALICE, BOB.node, 100), ledger.grant(CAROL.node, 1))
    return ledger


def end_epoch(ledger: Ledger) -> None:
    ledger.now += HOUR // 10
    ledger.end_epoch(keep_from=0)


def report(ledger: Ledger, *, signatures: bool = False, from_checkpoint: bool = False) -> Report:
    return verify_log(FOUR, ledger.state, signatures=signatures, from_checkpoint=from_checkpoint)


def told(ledger: Ledger, text: str, *, signatures: bool = False, from_checkpoint: bool = False) -> None:
    """The ledger is not verified, and the report says why."""
    found = report(ledger, signatures=signatures, from_checkpoint=from_checkpoint)
    assert not found.verified and any(text in problem for problem in found.problems), found.problems


def order_id(ledger: Ledger, position: int) -> bytes:
    identity = ledger.view.id_at(position)
    assert identity is not None
    return identity


def changed(ledger: Ledger, position: int, certificate: bytes) -> None:
    """Another record under the id of the order at that place."""
    ledger.state.write({certificate_key(order_id(ledger, position)): u64(position) + certificate})


def opened_by(ledger: Ledger, epoch: int) -> tuple[bytes, Decision]:
    """The decision that opened an epoch, and its id."""
    identity = ledger.state.values[checkpoint_key(epoch)]
    return identity, decode_as(Decision, ledger.view.record(identity) or b"")


@pytest.mark.parametrize("signatures", [False, True])
@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_a_true_ledger(ledger: Ledger, signatures: bool, from_checkpoint: bool) -> None:
    found = report(ledger, signatures=signatures, from_checkpoint=from_checkpoint)
    assert found.verified, found.problems
    assert (found.epoch, found.since_epoch) == (2, 2 if from_checkpoint else 0)
    assert found.certificates == (2 if from_checkpoint else 6)
    assert (found.accounts, found.channels, found.sum_micro) == (4, 2, 0)


def test_a_checkpoint_that_is_missing(ledger: Ledger) -> None:
    identity, _ = opened_by(ledger, 1)
    ledger.state.write({certificate_key(identity): None})
    told(ledger, "the checkpoint that opened epoch 1 is missing")
    told(ledger, "epoch 0 is not complete")
    ledger.state.write({checkpoint_key(1): None})
    told(ledger, "the checkpoint that opened epoch 1 is missing")


def test_a_checkpoint_that_is_another_one(ledger: Ledger) -> None:
    first, _ = opened_by(ledger, 1)
    second, _ = opened_by(ledger, 2)
    ledger.state.write({checkpoint_key(2): first})
    told(ledger, "the checkpoint that opened epoch 2 is another one", from_checkpoint=True)
    ledger.state.write({checkpoint_key(2): second, certificate_key(second): ledger.state.get(certificate_key(first))})
    told(ledger, "the checkpoint that opened epoch 2 is another one", from_checkpoint=True)


def test_a_checkpoint_without_a_quorum(ledger: Ledger) -> None:
    identity, decision = opened_by(ledger, 1)
    position = ledger.view.position(identity)
    assert position is not None
    fewer = encode(replace(decision, commits=decision.commits[:2]))
    ledger.state.write({certificate_key(identity): u64(position) + fewer})
    told(ledger, "2 witnesses, a quorum is 3")


def test_the_commits_of_a_checkpoint_are_signatures(ledger: Ledger) -> None:
    identity, decision = opened_by(ledger, 1)
    position = ledger.view.position(identity)
    assert position is not None
    forged = replace(decision, commits=tuple(replace(one, signature=bytes(64)) for one in decision.commits))
    ledger.state.write({certificate_key(identity): u64(position) + encode(forged)})
    assert report(ledger).verified
    told(ledger, "the signature does not verify", signatures=True)


def test_an_order_that_is_missing_in_an_ended_epoch(ledger: Ledger) -> None:
    ledger.state.write({certificate_key(order_id(ledger, 0)): None})
    told(ledger, "epoch 0: ")
    told(ledger, "below its floor")


def test_the_last_order_that_is_missing_in_an_ended_epoch(ledger: Ledger) -> None:
    """What is left is closed, but it is not what the checkpoint is about."""
    ledger.state.write({certificate_key(order_id(ledger, 1)): None})
    told(ledger, "epoch 0 does not end in the state of its checkpoint")


@pytest.mark.parametrize("what", ["owner", "vote"])
@pytest.mark.parametrize("position", [1, 6])
def test_a_forged_signature_is_found_by_the_long_check_alone(ledger: Ledger, what: str, position: int) -> None:
    """In an ended epoch and in the one in force."""
    certificate = decode_as(Certificate, ledger.view.logged(position) or b"")
    votes = (replace(certificate.votes[0], signature=bytes(64)), *certificate.votes[1:])
    forged = replace(certificate, signature=bytes(64)) if what == "owner" else replace(certificate, votes=votes)
    changed(ledger, position, encode(forged))
    assert report(ledger).verified
    told(ledger, "the signature does not verify", signatures=True)


@pytest.mark.parametrize("position", [1, 6])
def test_too_few_votes_are_found_by_the_long_check(ledger: Ledger, position: int) -> None:
    certificate = decode_as(Certificate, ledger.view.logged(position) or b"")
    changed(ledger, position, encode(replace(certificate, votes=certificate.votes[:2])))
    told(ledger, "2 votes, a quorum is 3", signatures=True)


def test_the_copy_of_the_state_is_the_one_in_the_checkpoint(ledger: Ledger) -> None:
    key = base_key(2, account_key(CAROL.node))
    account = Account.decode(ledger.state.values[key])
    ledger.state.write({key: replace(account, balance=8).encode()})
    assert report(ledger).verified  # that copy is not what a check from the first order on begins with
    told(ledger, "the state at the beginning of epoch 2 is not the one in its checkpoint", from_checkpoint=True)


def test_a_balance_that_is_not_what_the_log_makes(ledger: Ledger) -> None:
    account = ledger.view.account(CAROL.node)
    ledger.state.write({account_key(CAROL.node): replace(account, balance=account.balance + 5).encode()})
    told(ledger, "account", from_checkpoint=True)
    told(ledger, "differs from what the log makes of it")
    told(ledger, "balances and open holds add up to 5 µcredits, not to 0")


def test_a_balance_below_the_floor(ledger: Ledger) -> None:
    account = ledger.view.account(CAROL.node)
    ledger.state.write({account_key(CAROL.node): replace(account, balance=-1).encode()})
    told(ledger, "is below its floor")


def test_an_account_and_a_channel_that_are_gone(ledger: Ledger) -> None:
    channel = order_id(ledger, 6)
    ledger.state.write({account_key(CAROL.node): None, channel_key(channel): None})
    told(ledger, f"account {CAROL.node.hex()[:16]}… is missing")
    told(ledger, f"channel {channel.hex()[:16]}… is missing")


def test_an_order_that_stands_elsewhere(ledger: Ledger) -> None:
    place = ledger.view.log_length - 1
    identity = order_id(ledger, place)
    record = ledger.view.record(identity) or b""
    ledger.state.write({certificate_key(identity): u64(place - 1) + record})
    told(ledger, f"certificate {place} of the log says that it stands elsewhere")


def test_another_number_of_an_order(ledger: Ledger) -> None:
    order = order_key(ISSUER.node, 2)
    ledger.state.write({order: bytes(32)})
    told(ledger, "order 2 of account")
    ledger.state.write({order: None})
    told(ledger, "order 2 of account")


def test_places_and_records_beyond_the_log(ledger: Ledger) -> None:
    length = ledger.view.log_length
    ledger.state.write({log_key(length): bytes(32)})
    told(ledger, "places in the log for a log of")
    ledger.state.write({log_key(length): None, certificate_key(bytes(32)): u64(length) + b"x"})
    told(ledger, "certificates for a log of")


def test_a_checkpoint_is_about_its_orders() -> None:
    """A quorum that commits to a wrong state is believed by nobody who makes it anew."""
    ledger, _ = four_witnesses()
    wrong = replace(ledger.checkpoint(), state=bytes(32))
    end_epoch(ledger)
    position = ledger.view.log_length - 1
    decision, identity = ledger.decision(wrong), body_hash(encode(wrong))
    stored = {certificate_key(identity): u64(position) + decision, log_key(position): identity}
    ledger.state.write({**stored, checkpoint_key(1): identity, certificate_key(order_id(ledger, position)): None})
    told(ledger, "epoch 0 does not end in the state of its checkpoint")
