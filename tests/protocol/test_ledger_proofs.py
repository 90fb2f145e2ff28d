"""Proofs for somebody without a node: what is true can be shown, and nothing else passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import FederationId, NodeId
from protocol.ledger import merkle
from protocol.ledger.certificates import trusting
from protocol.ledger.proofs import Proven, ProvenOrder, check_proof, prove_order, prove_state
from protocol.ledger.pruning import prune
from protocol.messages import AccountState, Certificate, ChannelState, Close, Decision, Hold, LedgerProof
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, signer
from tests.protocol.vector_world import FOUR, OTHER, Ledger, four_witnesses, one_witness


def closed(ledger: Ledger, channel: bytes) -> bytes:
    """Bob settles the channel; the id of his order."""
    return ledger.give(ledger.close(BOB, channel, ledger.voucher(ALICE, channel, 100, 50)))


def shown(proof: LedgerProof, expected: FederationId | None = None) -> Proven:
    """What a proof shows, after a way over the disk."""
    return check_proof(encode(proof), expected)


def refusal(proof: LedgerProof) -> ErrorCode:
    """Why a proof shows nothing."""
    with pytest.raises(Refused) as caught:
        shown(proof)
    return caught.value.code


def order_of(proven: Proven) -> ProvenOrder:
    assert isinstance(proven.subject, ProvenOrder)
    return proven.subject


# --- what is true can be shown ---


@pytest.mark.parametrize("world", [one_witness, four_witnesses])
def test_accounts_and_open_channels_of_a_checkpoint(world: object) -> None:
    ledger, channel = world()  # type: ignore[operator]
    ledger.end_epoch()
    ledger.give(ledger.grant(CAROL.node, 5))  # afterwards: not in the checkpoint
    proven = shown(prove_state(ledger.federation, ledger.state, ALICE.node), ledger.federation.id)
    assert isinstance(proven.subject, AccountState)
    assert (proven.subject.account, proven.subject.balance, proven.subject.next_sequence) == (ALICE.node, 600_000, 1)
    assert proven.agreed is not None and proven.agreed.checkpoint.epoch == 1
    assert proven.agreed.committers == tuple(range(ledger.federation.quorum))
    held = shown(prove_state(ledger.federation, ledger.state, channel)).subject
    assert isinstance(held, ChannelState) and (held.payer, held.amount) == (ALICE.node, 400_000)
    with pytest.raises(Refused, match="was not there then"):
        prove_state(ledger.federation, ledger.state, CAROL.node)


def test_before_the_first_checkpoint_no_account_is_proven() -> None:
    ledger, _ = four_witnesses()
    with pytest.raises(Refused, match="first epoch has not ended"):
        prove_state(FOUR, ledger.state, ALICE.node)


def test_an_order_of_the_running_epoch_has_its_certificate() -> None:
    ledger, channel = four_witnesses()
    proven = shown(prove_order(FOUR, ledger.state, channel))
    order = order_of(proven)
    assert proven.agreed is None and order.voters == (0, 1, 2) and order.signed and order.hold is None
    ledger.end_epoch()
    first = ledger.give(ledger.grant(CAROL.node, 1))
    assert ledger.view.position(first) == ledger.view.epoch_start
    assert shown(prove_order(FOUR, ledger.state, first)).agreed is None
    assert isinstance(order.checked.order, Hold) and order.checked.hash == channel


def test_a_settlement_shows_its_hold_too() -> None:
    ledger, channel = four_witnesses()
    close = closed(ledger, channel)
    for epochs in (0, 1, 3):
        order = order_of(shown(prove_order(FOUR, ledger.state, close)))
        assert isinstance(order.checked.order, Close) and order.signed
        assert order.hold is not None and (order.hold.payer, order.hold.payee) == (ALICE.node, BOB.node)
        for number in range(epochs + 1):
            ledger.end_epoch(ledger.now + HOUR * (epochs + number + 1))
    agreed = shown(prove_order(FOUR, ledger.state, close)).agreed
    assert agreed is not None and agreed.checkpoint.epoch == 1


def test_every_order_of_an_ended_epoch_is_below_its_root() -> None:
    ledger, channel = four_witnesses()
    ids = [ledger.give(ledger.grant(NodeId(signer(f"p{number}").node), 1)) for number in range(5)]
    ledger.end_epoch()
    later = ledger.give(ledger.grant(CAROL.node, 7))
    ledger.end_epoch(ledger.now + HOUR)
    for identity, epoch in ((channel, 1), *((identity, 1) for identity in ids), (later, 2)):
        agreed = shown(prove_order(FOUR, ledger.state, identity)).agreed
        assert agreed is not None and agreed.checkpoint.epoch == epoch


def test_a_refund_is_shown() -> None:
    ledger, channel = one_witness()
    ledger.now += 2 * HOUR
    refund = ledger.give(ledger.refund(channel))
    assert order_of(shown(prove_order(FEDERATION, ledger.state, refund))).hold is not None


def test_an_order_by_a_key_that_the_proof_does_not_know_is_said_to_be_so() -> None:
    ledger, _ = four_witnesses()
    fresh = signer("alice's new key")
    ledger.give(ledger.rotate(ALICE, fresh))
    hold = ledger.give(ledger.hold_by(fresh, ALICE.node, BOB.node, 10))
    assert not order_of(shown(prove_order(FOUR, ledger.state, hold))).signed


def test_what_is_not_here_or_was_pruned_is_not_proven() -> None:
    ledger, channel = four_witnesses()
    with pytest.raises(Refused, match="not known here, or was pruned"):
        prove_order(FOUR, ledger.state, bytes(32))
    ledger.end_epoch()
    close = closed(ledger, channel)
    forgetting = prune(ledger.state, 1)
    ledger.state.write(next(forgetting))
    with pytest.raises(Refused, match="not whole here"):
        prove_order(FOUR, ledger.state, channel)
    for puts in forgetting:
        ledger.state.write(puts)
    with pytest.raises(Refused, match="hold that the order ends was pruned"):
        prove_order(FOUR, ledger.state, close)


# --- nothing else passes ---


def test_only_a_proof_of_the_federation_that_is_demanded() -> None:
    ledger, channel = four_witnesses()
    proof = prove_order(FOUR, ledger.state, channel)
    assert shown(proof, FOUR.id).federation.id == FOUR.id
    with pytest.raises(Refused) as caught:
        shown(proof, OTHER.id)
    assert caught.value.code is ErrorCode.WRONG_FEDERATION
    assert refusal(replace(proof, genesis=OTHER.body)) is ErrorCode.BAD_SIGNATURE  # the votes are for FOUR


@pytest.mark.parametrize("data", [b"", b"nonsense", encode(LedgerProof(b"x", b"", b"y", b"", 0, 0, ()))])
def test_what_is_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        check_proof(data)
    assert caught.value.code is ErrorCode.MALFORMED


def test_every_byte_of_a_proof_counts() -> None:
    ledger, channel = one_witness()
    closing = closed(ledger, channel)
    ledger.end_epoch()
    for proof in (
        prove_state(FEDERATION, ledger.state, ALICE.node),
        prove_order(FEDERATION, ledger.state, channel),
        prove_order(FEDERATION, ledger.state, closing),
    ):
        data, truth = encode(proof), shown(proof)
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            try:
                found = check_proof(changed, FEDERATION.id)
            except Refused:
                continue
            # The owner's signature is not below the root: a proof says so if it does not fit.
            assert found.agreed == truth.agreed and not order_of(found).signed
            assert order_of(found).checked.body == order_of(truth).checked.body


def test_a_proof_must_have_the_shape_of_its_kind() -> None:
    ledger, channel = four_witnesses()
    running = prove_order(FOUR, ledger.state, channel)
    closing = closed(ledger, channel)
    settled = prove_order(FOUR, ledger.state, closing)
    ledger.end_epoch()
    account = prove_state(FOUR, ledger.state, ALICE.node)
    ended = prove_order(FOUR, ledger.state, channel)
    body = decode_as(Certificate, ended.leaf).body
    assert refusal(replace(running, count=1)) is ErrorCode.MALFORMED
    assert refusal(replace(account, decision=b"", index=0, count=0, neighbours=())) is ErrorCode.MALFORMED
    assert refusal(replace(account, hold=body)) is ErrorCode.MALFORMED
    assert refusal(replace(ended, hold=body)) is ErrorCode.MALFORMED
    assert refusal(replace(settled, hold=b"")) is ErrorCode.UNKNOWN_CHANNEL
    assert refusal(replace(settled, hold=b"nonsense")) is ErrorCode.MALFORMED
    other = ledger.signed(ALICE, decode_as(Hold, body)).body.replace(BOB.node, CAROL.node)
    assert refusal(replace(settled, hold=other)) is ErrorCode.UNKNOWN_CHANNEL
    assert refusal(replace(ended, leaf=account.leaf)) is ErrorCode.BAD_QUORUM
    assert refusal(replace(ended, index=ended.index ^ 1)) is ErrorCode.BAD_QUORUM
    assert refusal(replace(ended, leaf=body)) is ErrorCode.MALFORMED  # an order without its votes


def test_too_few_commits_or_votes_prove_nothing() -> None:
    ledger, channel = four_witnesses()
    ledger.end_epoch()
    proof = prove_order(FOUR, ledger.state, channel)
    decision, certificate = decode_as(Decision, proof.decision), decode_as(Certificate, proof.leaf)
    fewer = encode(replace(decision, commits=decision.commits[:2]))
    assert refusal(replace(proof, decision=fewer)) is ErrorCode.BAD_QUORUM
    assert refusal(replace(proof, leaf=encode(replace(certificate, votes=certificate.votes[:2])))) is (
        ErrorCode.BAD_QUORUM
    )


def test_an_order_of_another_epoch_is_not_in_a_checkpoint() -> None:
    """A quorum would have to sign it; the rule is checked all the same."""
    ledger, _ = one_witness()
    ledger.end_epoch()
    grant = ledger.grant(CAROL.node, 1)
    data = ledger.certificate(grant)
    path = merkle.path([grant.hash], 0)
    checkpoint = replace(ledger.checkpoint(ledger.now + HOUR), epoch=1, count=1, orders=merkle.root([grant.hash]))
    decision = ledger.decision(checkpoint)
    proof = LedgerProof(FEDERATION.body, decision, data, b"", path.index, path.count, path.neighbours)
    assert refusal(proof) is ErrorCode.STALE_EPOCH


def test_a_check_may_use_another_verifier() -> None:
    ledger, channel = four_witnesses()
    asked: list[bytes] = []

    def counting(key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
        asked.append(key)
        trusting(key, federation, body, signature)

    check_proof(encode(prove_order(FOUR, ledger.state, channel)), None, counting)
    assert len(asked) == 4  # three votes and the owner
