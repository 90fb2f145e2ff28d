"""The rules of the ledger's core, one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import BadSignature, ErrorCode, Malformed, Refused
from protocol.ids import ChannelId, NodeId
from protocol.ledger import certificates, genesis
from protocol.ledger.accounts import credited
from protocol.ledger.audit import MAX_PROBLEMS
from protocol.ledger.channels import check_pay, no_voucher
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.state import (
    Account,
    account_key,
    certificate_key,
    channel_key,
    lock_key,
    log_key,
    order_key,
    voucher_key,
)
from protocol.messages import Certificate, Pay, Voucher, WitnessSignature
from tests.protocol.ledger_world import (
    ALICE,
    BOB,
    CAROL,
    FEDERATION,
    HOUR,
    ISSUER,
    NOW,
    WITNESS,
    Order,
    World,
    signer,
)


def refused(code: ErrorCode, order: Order, world: World) -> None:
    """A witness refuses `order` with `code` and writes nothing."""
    before = dict(world.state.values)
    with pytest.raises(Refused) as refusal:
        world.vote(order)
    assert refusal.value.code is code
    assert world.state.values == before


@pytest.fixture
def world() -> World:
    """Alice has 1 cr."""
    world = World()
    world.do(world.grant(ALICE.node, 1_000_000))
    return world


@pytest.fixture
def channel(world: World) -> bytes:
    """Alice's open channel to Bob over 0.4 cr."""
    order = world.hold(ALICE, BOB.node, 400_000)
    world.do(order)
    return order.hash


# --- genesis ---


def test_a_federation_is_the_hash_of_its_genesis() -> None:
    again = genesis.open_genesis(FEDERATION.body, FEDERATION.id)
    assert again == FEDERATION
    with pytest.raises(Refused, match="genesis"):
        genesis.open_genesis(FEDERATION.body, genesis.create("other", NOW, [WITNESS.node], [ISSUER.node]).id)


@pytest.mark.parametrize(
    ("witnesses", "issuers"),
    [
        ([WITNESS.node, ALICE.node], [ISSUER.node]),
        ([WITNESS.node], [WITNESS.node]),
        ([WITNESS.node], [ISSUER.node, ISSUER.node]),
        ([WITNESS.node, ALICE.node, BOB.node, BOB.node], [ISSUER.node]),
    ],
)
def test_a_genesis_that_names_keys_badly_is_refused(witnesses: list[NodeId], issuers: list[NodeId]) -> None:
    with pytest.raises(Malformed):
        genesis.create("bad", NOW, witnesses, issuers)


def test_a_genesis_with_a_small_order_key_is_refused() -> None:
    with pytest.raises(BadSignature):
        genesis.create("bad", NOW, [WITNESS.node], [NodeId(bytes(32))])


@pytest.mark.parametrize("changes", [{"supply_cap": 0}, {"epoch_length_ms": 0}])
def test_a_genesis_without_cap_or_epoch_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(Malformed):
        genesis.create("bad", NOW, [WITNESS.node], [ISSUER.node], **changes)


def test_four_witnesses_stand_one_fault_with_a_quorum_of_three() -> None:
    federation = genesis.create("four", NOW, [signer(f"w{index}").node for index in range(4)], [ISSUER.node])
    assert (federation.genesis.faults, federation.quorum, federation.single) == (1, 3, False)


def test_issuers_share_the_cap() -> None:
    federation = genesis.create("two", NOW, [WITNESS.node], [ISSUER.node, BOB.node], supply_cap=11)
    assert [federation.floor(key.node) for key in (ISSUER, BOB, ALICE)] == [-5, -5, 0]


# --- grants ---


def test_a_grant_moves_credits_from_the_issuer(world: World) -> None:
    assert (world.balance(ALICE), world.balance(ISSUER)) == (1_000_000, -1_000_000)


def test_a_grant_up_to_the_cap_and_no_further(world: World) -> None:
    refused(ErrorCode.SUPPLY_CAP, world.grant(BOB.node, 9_000_001), world)
    world.do(world.grant(BOB.node, 9_000_000))
    assert world.audit().verified


def test_only_an_issuer_grants(world: World) -> None:
    refused(ErrorCode.NOT_ISSUER, world.grant(BOB.node, 1, issuer=ALICE), world)


def test_a_grant_in_the_name_of_the_issuer_needs_its_key(world: World) -> None:
    forged = world.grant(BOB.node, 1)
    refused(ErrorCode.BAD_SIGNATURE, Order(forged.body, ALICE.sign(FEDERATION.id, forged.body)), world)


def test_nothing_is_granted_to_a_small_order_key(world: World) -> None:
    refused(ErrorCode.BAD_SIGNATURE, world.grant(NodeId(bytes(32)), 1), world)


# --- holds ---


def test_a_hold_locks_its_amount(world: World, channel: bytes) -> None:
    assert world.balance(ALICE) == 600_000
    assert world.channel(channel).open


def test_a_hold_needs_the_balance(world: World) -> None:
    refused(ErrorCode.INSUFFICIENT_FUNDS, world.hold(ALICE, BOB.node, 1_000_001), world)
    world.do(world.hold(ALICE, BOB.node, 1_000_000))
    assert world.balance(ALICE) == 0


def test_an_issuer_may_grant_below_zero_and_do_nothing_else(world: World) -> None:
    refused(ErrorCode.INVALID_REQUEST, world.hold(ISSUER, BOB.node, 1), world)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (ErrorCode.INVALID_REQUEST, {"amount": 0}),
        (ErrorCode.INVALID_REQUEST, {"payee": ALICE.node}),
        (ErrorCode.BAD_SIGNATURE, {"payee": NodeId(bytes(32))}),
        (ErrorCode.BAD_SIGNATURE, {"payer": BOB.node, "payee": CAROL.node}),
        (ErrorCode.STALE_EPOCH, {"epoch": 1}),
        (ErrorCode.INVALID_REQUEST, {"expiry_ms": NOW + params.MAX_HOLD_LIFETIME + params.CLOCK_SKEW + 1}),
        (ErrorCode.BAD_SEQUENCE, {"sequence": 1}),
        (ErrorCode.BAD_SEQUENCE, {"previous": bytes(32)}),
    ],
)
def test_what_a_hold_may_not_say(world: World, code: ErrorCode, changes: dict[str, object]) -> None:
    refused(code, world.hold(ALICE, BOB.node, 1, **changes), world)


def test_the_longest_hold_is_accepted(world: World) -> None:
    world.do(world.hold(ALICE, BOB.node, 1, expiry_ms=NOW + params.MAX_HOLD_LIFETIME))
    world.do(world.hold(ALICE, BOB.node, 1, expiry_ms=NOW + 1))


def test_a_signature_for_another_federation_is_worth_nothing(world: World) -> None:
    other = genesis.create("other", NOW, [WITNESS.node], [ISSUER.node])
    body = world.hold(ALICE, BOB.node, 1).body
    refused(ErrorCode.BAD_SIGNATURE, Order(body, ALICE.sign(other.id, body)), world)


def test_bytes_that_are_not_canonical_are_refused(world: World) -> None:
    order = world.hold(ALICE, BOB.node, 1)
    long_array = b"\xdc\x00\x0b" + order.body[1:]  # the same array with a longer header
    refused(ErrorCode.MALFORMED, Order(long_array, order.signature), world)
    refused(ErrorCode.MALFORMED, Order(order.body + b"\0", order.signature), world)


def test_a_voucher_is_no_order(world: World, channel: bytes) -> None:
    refused(ErrorCode.MALFORMED, world.voucher(ALICE, channel, 1, 1), world)


# --- votes ---


def test_the_same_order_gets_the_same_vote(world: World) -> None:
    order = world.hold(ALICE, BOB.node, 1)
    first = world.vote(order)
    assert world.vote(order) == first
    world.do(order)
    assert world.vote(order) == first


def test_another_order_with_the_same_number_is_equivocation(world: World) -> None:
    world.vote(world.hold(ALICE, BOB.node, 1))
    refused(ErrorCode.EQUIVOCATION, world.hold(ALICE, BOB.node, 2), world)


def test_an_order_behind_the_head_is_equivocation_even_without_a_lock(world: World) -> None:
    late = world.hold(ALICE, BOB.node, 2)
    world.do(world.hold(ALICE, BOB.node, 1))
    world.state.values = {key: value for key, value in world.state.values.items() if key[:1] != b"l"}
    refused(ErrorCode.EQUIVOCATION, late, world)


def test_a_vote_is_given_again_after_the_clock_has_moved_on(world: World) -> None:
    order = world.hold(ALICE, BOB.node, 1)
    first = world.vote(order)
    world.now += 2 * HOUR
    assert world.vote(order) == first


# --- vouchers and closes ---


def test_a_close_pays_the_worker_and_returns_the_rest(world: World, channel: bytes) -> None:
    world.do(world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50)))
    assert (world.balance(ALICE), world.balance(BOB)) == (999_750, 250)
    assert not world.channel(channel).open


def test_a_close_for_exactly_the_hold(world: World, channel: bytes) -> None:
    world.do(world.close(BOB, channel, world.voucher(ALICE, channel, 400_000, 0)))
    assert (world.balance(ALICE), world.balance(BOB)) == (600_000, 400_000)


@pytest.mark.parametrize(
    ("units", "changes"),
    [
        ((1, 0), {"cumulative": 2}),
        ((1, 0), {"cumulative": 0}),
        ((1, 0), {"units_out": 1}),
        ((400_001, 0), {}),
        ((1, 0), {"channel": bytes(32)}),
    ],
)
def test_a_close_by_a_bad_voucher(
    world: World, channel: bytes, units: tuple[int, int], changes: dict[str, object]
) -> None:
    voucher = world.voucher(ALICE, channel, *units, **changes)
    refused(ErrorCode.BAD_VOUCHER, world.close(BOB, channel, voucher), world)


def test_a_voucher_whose_price_overflows(world: World, channel: bytes) -> None:
    voucher = world.voucher(ALICE, channel, 1, 0, units_in=params.MAX_INTEGER, units_out=params.MAX_INTEGER)
    refused(ErrorCode.OVERFLOW, world.close(BOB, channel, voucher), world)


def test_only_the_payer_signs_vouchers_and_only_the_payee_closes(world: World, channel: bytes) -> None:
    good = world.voucher(ALICE, channel, 1, 0)
    refused(ErrorCode.BAD_SIGNATURE, world.close(BOB, channel, world.voucher(BOB, channel, 1, 0)), world)
    refused(ErrorCode.BAD_SIGNATURE, world.close(ALICE, channel, good), world)


def test_a_channel_closes_once(world: World, channel: bytes) -> None:
    low, high = world.voucher(ALICE, channel, 1, 0), world.voucher(ALICE, channel, 2, 0)
    world.do(world.close(BOB, channel, low))
    refused(ErrorCode.EQUIVOCATION, world.close(BOB, channel, high), world)
    world.state.values = {key: value for key, value in world.state.values.items() if key[:1] != b"l"}
    refused(ErrorCode.CHANNEL_CLOSED, world.close(BOB, channel, high), world)


def test_an_unknown_channel_is_a_missing_predecessor(world: World, channel: bytes) -> None:
    elsewhere = World()
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 1, 0))
    with pytest.raises(MissingPredecessor) as refusal:
        elsewhere.check(close)
    assert refusal.value.code is ErrorCode.UNKNOWN_CHANNEL


# --- refunds ---


def test_an_expired_hold_comes_back(world: World, channel: bytes) -> None:
    world.now += HOUR
    world.do(world.refund(channel))
    assert world.balance(ALICE) == 1_000_000
    assert world.audit(signatures=True).verified


def test_no_refund_before_the_expiry_nor_dated_ahead(world: World, channel: bytes) -> None:
    refused(ErrorCode.INVALID_REQUEST, world.refund(channel), world)
    refused(ErrorCode.INVALID_REQUEST, world.refund(channel, NOW + HOUR), world)


def test_only_the_only_witness_refunds(world: World, channel: bytes) -> None:
    world.now += HOUR
    refused(ErrorCode.NOT_A_WITNESS, world.refund(channel, witness=BOB), world)
    forged = world.refund(channel)
    refused(ErrorCode.BAD_SIGNATURE, Order(forged.body, ALICE.sign(FEDERATION.id, forged.body)), world)


def test_of_close_and_refund_only_one_wins(world: World, channel: bytes) -> None:
    world.now += HOUR
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 1, 0))
    world.vote(world.refund(channel))
    refused(ErrorCode.EQUIVOCATION, close, world)


# --- certificates ---


def test_applying_again_changes_nothing(world: World) -> None:
    certificate = world.certificate(world.hold(ALICE, BOB.node, 1))
    first = world.apply(certificate)
    before = dict(world.state.values)
    again = world.apply(certificate)
    assert (first.repeated, again.repeated, again.position) == (False, True, first.position)
    assert world.state.values == before


def test_a_certificate_that_comes_too_early_is_told_apart(world: World) -> None:
    replica = World()
    first = world.certificate(world.grant(BOB.node, 1))
    world.apply(first)
    second = world.certificate(world.grant(BOB.node, 2))
    with pytest.raises(MissingPredecessor):
        replica.apply(second)
    assert replica.state.values == {}


def _votes(certificate: bytes, votes: tuple[WitnessSignature, ...]) -> bytes:
    known = decode_as(Certificate, certificate)
    return encode(Certificate(known.body, known.signature, votes))


FOUR = tuple(signer(f"w{index}") for index in range(4))
FOUR_FEDERATION = genesis.create("four", NOW, [key.node for key in FOUR], [ISSUER.node], supply_cap=10_000_000)


def _four() -> tuple[list[World], Order, list[WitnessSignature]]:
    worlds = [World(FOUR_FEDERATION, key, index) for index, key in enumerate(FOUR)]
    order = worlds[0].grant(ALICE.node, 5)
    return worlds, order, [world.vote(order) for world in worlds]


@pytest.mark.parametrize("chosen", [(0,), (0, 1), (0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 2, 3)])
def test_fewer_than_a_quorum_of_distinct_witnesses_is_refused(chosen: tuple[int, ...]) -> None:
    worlds, order, votes = _four()
    certificate = certificates.certify(worlds[0].check(order), votes[:3])
    with pytest.raises(Refused) as refusal:
        worlds[0].apply(_votes(certificate, tuple(votes[index] for index in chosen)))
    assert refusal.value.code is ErrorCode.BAD_QUORUM


@pytest.mark.parametrize("chosen", [(0, 1, 2), (0, 2, 3), (0, 1, 2, 3)])
def test_any_quorum_will_do(chosen: tuple[int, ...]) -> None:
    worlds, order, votes = _four()
    worlds[0].apply(certificates.certify(worlds[0].check(order), [votes[index] for index in reversed(chosen)]))
    assert worlds[0].balance(ALICE) == 5


def test_a_vote_of_a_stranger_or_for_another_order_is_refused() -> None:
    worlds, order, votes = _four()
    checked = worlds[0].check(order)
    stranger = WitnessSignature(9, votes[0].signature)
    swapped = WitnessSignature(3, votes[0].signature)
    for vote, code in ((stranger, ErrorCode.NOT_A_WITNESS), (swapped, ErrorCode.BAD_SIGNATURE)):
        with pytest.raises(Refused) as refusal:
            worlds[0].apply(certificates.certify(checked, [*votes[:2], vote]))
        assert refusal.value.code is code


def test_two_certificates_for_one_number_are_refused(world: World) -> None:
    """What only a broken witness can make: the second is told as equivocation and changes nothing."""
    fresh = World(state=world.state)
    one, two = world.hold(ALICE, BOB.node, 1), world.hold(ALICE, BOB.node, 2)
    first = fresh.certificate(one)
    fresh.state.values = {key: value for key, value in fresh.state.values.items() if key[:1] != b"l"}
    second = fresh.certificate(two)
    fresh.apply(first)
    with pytest.raises(Refused) as refusal:
        fresh.apply(second)
    assert refusal.value.code is ErrorCode.EQUIVOCATION


def test_two_settlements_of_one_channel_are_refused(world: World, channel: bytes) -> None:
    low, high = (world.close(BOB, channel, world.voucher(ALICE, channel, units, 0)) for units in (1, 2))
    first = world.certificate(low)
    world.state.values = {key: value for key, value in world.state.values.items() if key[:1] != b"l"}
    second = world.certificate(high)
    world.apply(first)
    with pytest.raises(Refused) as refusal:
        world.apply(second)
    assert refusal.value.code is ErrorCode.CHANNEL_CLOSED


def test_a_certificate_that_overspends_waits_for_the_credits(world: World) -> None:
    """It has a certificate, so they exist: no replica is ever insolvent."""
    poor = World()
    with pytest.raises(MissingPredecessor) as refusal:
        certificates.apply(FEDERATION, poor.view, world.certificate(world.hold(ALICE, BOB.node, 1)))
    assert refusal.value.code is ErrorCode.INSUFFICIENT_FUNDS


# --- audit ---


def _busy(world: World, channel: bytes) -> None:
    world.do(world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50)))
    world.do(world.hold(ALICE, CAROL.node, 7))


def test_a_true_ledger_verifies(world: World, channel: bytes) -> None:
    _busy(world, channel)
    report = world.audit(signatures=True)
    assert report.verified, report.problems
    assert (report.certificates, report.channels, report.sum_micro) == (4, 2, 0)


def test_every_changed_byte_of_the_derived_state_is_found(world: World, channel: bytes) -> None:
    _busy(world, channel)
    whole = dict(world.state.values)
    for key in [key for key in whole if key[:1] in b"abcnr"]:
        value = whole[key]
        world.state.values = {**whole, key: value[:-1] + bytes([value[-1] ^ 1])}
        assert not world.audit(signatures=True).verified, key[:1]
        world.state.values = {other: kept for other, kept in whole.items() if other != key}
        assert not world.audit(signatures=True).verified, key[:1]


def test_a_shortened_log_is_found(world: World) -> None:
    world.state.values[b"m:log"] = bytes(8)
    assert not world.audit().verified


def _problems(world: World) -> str:
    report = world.audit(signatures=True)
    assert not report.verified
    return "; ".join(report.problems)


def test_a_swapped_log_and_a_misplaced_certificate_are_told(world: World, channel: bytes) -> None:
    whole, first, second = dict(world.state.values), b"n" + bytes(8), b"n" + bytes(7) + b"\1"
    grant = world.state.values[first]
    elsewhere = b"r" + grant
    world.state.values[elsewhere] = bytes(7) + b"\5" + whole[elsewhere][8:]
    assert "stands elsewhere" in _problems(world)
    hold = b"r" + whole[second]
    misnamed = {**whole, second: bytes(32), b"r" + bytes(32): whole[hold]}
    world.state.values = {key: value for key, value in misnamed.items() if key != hold}
    assert "certificate 1 of the log is not the order" in _problems(world)


def test_a_log_that_overspends_is_told(world: World) -> None:
    """What a bad witness could write: a hold that the balance never covered."""
    certificate = world.certificate(world.hold(ALICE, BOB.node, 1_000_000))
    poor = World()
    account = poor.view.account(ALICE.node)
    poor.state.write({b"a" + ALICE.node: replace(account, balance=1_000_000).encode()})
    poor.apply(certificate)
    assert "the balance is 0 cr" in _problems(poor)


def test_a_broken_link_between_certificates_is_refused(world: World) -> None:
    """Two witnesses' logs that disagree: the number fits, the predecessor does not."""
    other = World()
    other.do(other.grant(BOB.node, 5))
    world.do(world.grant(BOB.node, 6))
    other.do(other.grant(BOB.node, 7))
    with pytest.raises(Refused) as refusal:
        world.apply(other.certificate(other.grant(BOB.node, 8)))
    assert refusal.value.code is ErrorCode.BAD_SEQUENCE


def test_keys_of_different_kinds_differ_and_numbers_sort() -> None:
    kinds = (account_key(b""), channel_key(b""), certificate_key(b""), voucher_key(ChannelId(b"")))
    keys = (*kinds, order_key(b"", 0), lock_key(b"", 0), log_key(0))
    assert len({key[:1] for key in keys}) == len(keys)
    numbers = [0, 1, 255, 256, 2**53]
    assert sorted(map(log_key, numbers)) == list(map(log_key, numbers))


def test_the_report_ends_after_enough_problems(world: World) -> None:
    for number in range(2 * MAX_PROBLEMS):
        world.state.values[b"a" + number.to_bytes(32, "big")] = Account(0, 0, bytes(32)).encode()
    assert len(world.audit().problems) == MAX_PROBLEMS


def test_a_node_is_a_witness_by_its_place_in_genesis() -> None:
    assert [FEDERATION.witness_index(key.node) for key in (WITNESS, ALICE)] == [0, None]


@pytest.mark.parametrize("key", [b"r" + bytes(32), b"n" + b"\xff" * 8])
def test_what_lies_beyond_the_log_is_found(world: World, key: bytes) -> None:
    world.state.values[key] = bytes(40)
    assert not world.audit().verified


def test_a_value_of_the_wrong_size_is_found(world: World) -> None:
    world.state.values[b"a" + BOB.node] = b"short"
    assert not world.audit().verified


def test_a_forged_signature_is_found_only_by_the_long_check(world: World) -> None:
    order = world.hold(ALICE, BOB.node, 1)
    world.do(order)
    key = b"r" + order.hash
    stored = world.state.values[key]
    certificate = decode_as(Certificate, stored[8:])
    forged = encode(Certificate(certificate.body, bytes(64), certificate.votes))
    world.state.values[key] = stored[:8] + forged
    assert world.audit().verified
    assert not world.audit(signatures=True).verified


def test_a_vote_lock_for_another_order_is_found(world: World) -> None:
    key = next(key for key in world.state.values if key[:1] == b"l")
    value = world.state.values[key]
    world.state.values[key] = bytes(32) + value[32:]
    assert not world.audit().verified


# --- vouchers between the two parties ---


def pay(order: Order) -> Pay:
    return Pay(order.body, order.signature)


@pytest.mark.parametrize(("later", "allowed"), [((5, 5), True), ((6, 5), True), ((4, 90), False), ((90, 4), False)])
def test_no_count_of_a_later_voucher_is_lower(
    world: World, channel: bytes, later: tuple[int, int], allowed: bool
) -> None:
    state, channel_id = world.channel(channel), ChannelId(channel)
    before = no_voucher(channel_id)
    first = check_pay(FEDERATION.id, channel_id, state, before, pay(world.voucher(ALICE, channel, 5, 5)), world.view)
    second = pay(world.voucher(ALICE, channel, *later))
    if allowed:
        assert check_pay(FEDERATION.id, channel_id, state, first, second, world.view).units_in == later[0]
        return
    with pytest.raises(Refused) as refusal:
        check_pay(FEDERATION.id, channel_id, state, first, second, world.view)
    assert refusal.value.code is ErrorCode.BAD_VOUCHER


def test_a_voucher_needs_the_payers_signature(world: World, channel: bytes) -> None:
    state, channel_id = world.channel(channel), ChannelId(channel)
    with pytest.raises(BadSignature):
        check_pay(
            FEDERATION.id, channel_id, state, no_voucher(channel_id), pay(world.voucher(BOB, channel, 1, 1)), world.view
        )


def test_a_balance_beyond_the_bound_is_refused() -> None:
    full = Account(params.MAX_INTEGER, 0, bytes(32))
    with pytest.raises(Refused) as refusal:
        credited(full, 1)
    assert refusal.value.code is ErrorCode.OVERFLOW
    assert credited(full, 0) == full


def test_a_voucher_is_what_its_channel_says(world: World, channel: bytes) -> None:
    assert decode_as(Voucher, world.voucher(ALICE, channel, 1, 2).body).cumulative == 7
