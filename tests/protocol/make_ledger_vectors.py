"""Writes `spec/vectors/ledger_*.json`: `python -m tests.protocol.make_ledger_vectors`.

Rule: the input is made here, the result is what the code gives; nothing is random. A test compares the files with
what this program gives now, and the vector test runs each case.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from protocol.codec import decode_as, encode
from protocol.ids import NodeId
from protocol.ledger import genesis
from protocol.messages import Certificate, Close, Consent, Genesis, WitnessSignature
from protocol.params import CLOCK_SKEW, EPOCH_LENGTH, MAX_HOLD_LIFETIME, MAX_INTEGER, MAX_ROTATIONS
from protocol.signing import Signer
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, ISSUER, NOW, WITNESS, Order, World, signer
from tests.protocol.make_epoch_vectors import FILES as EPOCH_FILES
from tests.protocol.vector_world import (
    FOUR_WITNESSES,
    OTHER,
    QUORUM,
    Ledger,
    equivocation,
    four_witnesses,
    one_witness,
    unreduced,
    vote_statement,
)

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "spec" / "vectors"
SMALL_ORDER = NodeId(b"\1" + bytes(31))  # the neutral element
DEVICE, TABLET, NEWCOMER, VAULT, ALICE_NEW, BOB_NEW = map(
    signer, ("device", "tablet", "newcomer", "vault", "alice's new key", "bob's new key")
)

Json = Any
Runner = Callable[[dict[str, Json]], Json]


def _pricing() -> dict[str, Json]:
    cases = {
        "nothing": (0, 0, 1_000, 3_000),
        "one token of each kind": (1, 1, 1_000, 3_000),
        "each kind is rounded up by itself": (1, 1, 1, 1),
        "an answer": (100, 50, 1_000, 3_000),
        "free": (100, 50, 0, 0),
        "the largest amount": (MAX_INTEGER, 0, 1_000, 0),
        "overflow of one kind": (MAX_INTEGER, 0, 1_001, 0),
        "overflow of the sum": (MAX_INTEGER, 1, 1_000, 1),
    }
    names = ("units_in", "units_out", "price_in", "price_out")
    return {name: dict(zip(names, values, strict=True)) for name, values in cases.items()}


def _genesis() -> dict[str, Json]:
    four = [signer(f"w{index}").node for index in range(4)]

    def body(witnesses: list[NodeId], faults: int, issuers: list[NodeId], cap: int = 1) -> dict[str, Json]:
        return {"genesis": encode(Genesis("t", NOW, tuple(witnesses), faults, tuple(issuers), cap, EPOCH_LENGTH)).hex()}

    return {
        "one witness": {"genesis": FEDERATION.body.hex()},
        "four witnesses stand one fault": body(four, 1, [ISSUER.node]),
        "two witnesses are no 3f+1": body(four[:2], 0, [ISSUER.node]),
        "faults that do not fit the number": body(four, 0, [ISSUER.node]),
        "a witness twice": body([*four[:3], four[0]], 1, [ISSUER.node]),
        "a witness that is an issuer": body([WITNESS.node], 0, [WITNESS.node]),
        "an issuer with a small-order key": body([WITNESS.node], 0, [SMALL_ORDER]),
        "no supply": body([WITNESS.node], 0, [ISSUER.node], cap=0),
        "a byte too many": {"genesis": (FEDERATION.body + b"\0").hex()},
    }


def _voucher() -> dict[str, Json]:
    world, channel = one_witness()
    hold = decode_as(Certificate, world.log[1]).body
    other = OTHER
    first = world.voucher(ALICE, channel, 100, 50)
    good = world.voucher(ALICE, channel, 100, 60)

    def case(order: Order, earlier: Order | None = None, signature: bytes | None = None) -> dict[str, Json]:
        return {
            "federation": FEDERATION.id.hex(),
            "channel": channel.hex(),
            "hold": hold.hex(),
            "earlier": earlier.body.hex() if earlier else "",
            "voucher": order.body.hex(),
            "signature": (signature or order.signature).hex(),
        }

    long_form = first.body.replace(b"\x64", b"\xcc\x64")  # 100 in two bytes
    return {
        "the first": case(first),
        "a later one": case(good, first),
        "the same again": case(first, first),
        "the whole hold": case(world.voucher(ALICE, channel, 400_000, 0)),
        "more than the hold": case(world.voucher(ALICE, channel, 400_001, 0)),
        "one µcredit too much": case(world.voucher(ALICE, channel, 100, 50, cumulative=251)),
        "one µcredit too little": case(world.voucher(ALICE, channel, 100, 50, cumulative=249)),
        "counts whose price overflows": case(
            world.voucher(ALICE, channel, 0, 0, units_in=MAX_INTEGER, units_out=MAX_INTEGER)
        ),
        "fewer prompt tokens than before": case(world.voucher(ALICE, channel, 99, 90), first),
        "fewer output tokens than before": case(world.voucher(ALICE, channel, 190, 49), first),
        "another channel": case(world.voucher(ALICE, channel, 100, 50, channel=bytes(32))),
        "signed by the payee": case(first, None, BOB.sign(FEDERATION.id, first.body)),
        "signed for another federation": case(first, None, ALICE.sign(other.id, first.body)),
        "a number in a longer form": case(Order(long_form, ALICE.sign(FEDERATION.id, long_form))),
        "a hold in place of a voucher": case(Order(hold, ALICE.sign(FEDERATION.id, hold))),
    }


def _vote() -> dict[str, Json]:
    return {**_vote_of_one(), **_vote_of_four(), **_vote_on_keys(), **_vote_in_epochs()}


def _asked(
    ledger: Ledger,
    order: Order,
    *,
    now: int = NOW,
    voted: tuple[Order, ...] = (),
    at: int | None = None,
    signature: bytes | None = None,
    proofs: tuple[bytes, ...] = (),
    frozen: int = 0,
    set_back: tuple[tuple[int, int], ...] = (),
) -> dict[str, Json]:
    place = len(ledger.log) if at is None else at
    return {
        "genesis": ledger.federation.body.hex(),
        "log": ledger.hex_log,
        "witness_seed": hashlib.sha256(b"witness" if len(ledger.signers) == 1 else b"w0").hexdigest(),
        "voted": [{"at": place, "body": one.body.hex(), "signature": one.signature.hex()} for one in voted],
        "proofs": [proof.hex() for proof in proofs],
        "frozen": frozen,
        "set_back": [{"at": one, "until": epoch} for one, epoch in set_back],
        "now_ms": now,
        "body": order.body.hex(),
        "signature": (order.signature if signature is None else signature).hex(),
    }


def _vote_of_one() -> dict[str, Json]:
    world, channel = one_witness()
    case = partial(_asked, world)
    good = world.hold(ALICE, CAROL.node, 1)
    applied = decode_as(Certificate, world.log[1])
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    lower = world.close(BOB, channel, world.voucher(ALICE, channel, 99, 50))
    refund = world.refund(channel, NOW + HOUR)
    return {
        "a hold": case(good),
        "a grant": case(world.grant(BOB.node, 5)),
        "a close": case(close),
        "a refund": case(refund, now=NOW + HOUR),
        "the same order again": case(good, voted=(good,)),
        "an order that is applied already": case(Order(applied.body, applied.signature)),
        "another order with the same number": case(world.hold(ALICE, CAROL.node, 2), voted=(good,)),
        "another close of the channel": case(lower, voted=(close,)),
        "replay of a number behind the head": case(world.hold(ALICE, CAROL.node, 3, sequence=0)),
        "a number ahead": case(world.hold(ALICE, CAROL.node, 3, sequence=2)),
        "a number ahead, by an unknown key": case(
            world.hold(ALICE, CAROL.node, 3, sequence=2), signature=BOB.sign(FEDERATION.id, good.body)
        ),
        "the wrong predecessor": case(world.hold(ALICE, CAROL.node, 3, previous=bytes(32))),
        "the whole balance": case(world.hold(ALICE, CAROL.node, 600_000)),
        "more than the balance": case(world.hold(ALICE, CAROL.node, 600_001)),
        "the largest amount": case(world.hold(ALICE, CAROL.node, MAX_INTEGER)),
        "nothing": case(world.hold(ALICE, CAROL.node, 0)),
        "to itself": case(world.hold(ALICE, ALICE.node, 1)),
        "to a small-order key": case(world.hold(ALICE, SMALL_ORDER, 1)),
        "a grant to a small-order key": case(world.grant(SMALL_ORDER, 1)),
        "from a small-order key": case(world.hold(ALICE, CAROL.node, 1, payer=SMALL_ORDER, sequence=0)),
        "from an issuer": case(world.hold(ISSUER, CAROL.node, 1)),
        "expired": case(good, now=NOW + HOUR),
        "the longest": case(world.hold(ALICE, CAROL.node, 1, expiry_ms=NOW + MAX_HOLD_LIFETIME + CLOCK_SKEW)),
        "too long": case(world.hold(ALICE, CAROL.node, 1, expiry_ms=NOW + MAX_HOLD_LIFETIME + CLOCK_SKEW + 1)),
        "too long, voted for before": case(
            world.hold(ALICE, CAROL.node, 1, expiry_ms=NOW + MAX_HOLD_LIFETIME),
            voted=(world.hold(ALICE, CAROL.node, 1, expiry_ms=NOW + MAX_HOLD_LIFETIME),),
        ),
        "a later epoch": case(world.hold(ALICE, CAROL.node, 1, epoch=1)),
        "signed by another": case(good, signature=BOB.sign(FEDERATION.id, good.body)),
        "signed for another federation": case(good, signature=ALICE.sign(OTHER.id, good.body)),
        "a longer array header": case(Order(b"\xdc\x00\x0b" + good.body[1:], good.signature)),
        "a byte too many": case(Order(good.body + b"\0", good.signature)),
        "a grant by nobody's issuer": case(world.grant(BOB.node, 1, issuer=ALICE)),
        "a grant up to the cap": case(world.grant(BOB.node, 9_000_000)),
        "a grant beyond the cap": case(world.grant(BOB.node, 9_000_001)),
        "a grant of nothing": case(world.grant(BOB.node, 0)),
        "a close by the payer": case(world.close(ALICE, channel, world.voucher(ALICE, channel, 100, 50))),
        "a close by a bad voucher": case(
            world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50, cumulative=251))
        ),
        "a close above the hold": case(world.close(BOB, channel, world.voucher(ALICE, channel, 400_001, 0))),
        "a close by a voucher of another channel": case(
            world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50, channel=bytes(32)))
        ),
        "a close by a voucher that is no voucher": case(world.close(BOB, channel, good)),
        "a close by a voucher that the payee signed": case(
            world.close(BOB, channel, world.voucher(BOB, channel, 100, 50))
        ),
        "a close of an unknown channel": case(world.signed(BOB, _renamed(world, channel))),
        "a refund before the expiry": case(world.refund(channel, NOW)),
        "a refund dated ahead": case(refund),
        "a refund by somebody else": case(world.refund(channel, NOW + HOUR, witness=BOB), now=NOW + HOUR),
        "a close after a refund was voted for": case(close, now=NOW + HOUR, voted=(refund,)),
        "a refund after a close was voted for": case(refund, now=NOW + HOUR, voted=(close,)),
        "a voucher is no order": case(world.voucher(ALICE, channel, 1, 1)),
    }


def _vote_of_four() -> dict[str, Json]:
    world, channel = four_witnesses()
    case = partial(_asked, world)
    good, second = world.hold(ALICE, CAROL.node, 1), world.hold(ALICE, CAROL.node, 2)
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    proof = equivocation(good, second)
    others = equivocation(world.grant(BOB.node, 1), world.grant(BOB.node, 2))
    closed = world.copy()
    closed.do(close)
    return {
        "four: a hold": case(good),
        "four: a refund is no order": case(world.refund(channel, NOW + HOUR, FOUR_WITNESSES[0]), now=NOW + HOUR),
        "four: spends what has not come here": case(world.hold(BOB, CAROL.node, 1)),
        "four: a close of a settled channel": _asked(
            closed, closed.close(BOB, channel, closed.voucher(ALICE, channel, 1, 1))
        ),
        "frozen: a new order": case(good, frozen=1),
        "frozen: a close": case(close, frozen=1),
        "frozen: the same order again": case(good, voted=(good,), frozen=1),
        "frozen: another order": case(second, voted=(good,), frozen=1),
        "set back: a new order": case(good, set_back=((2, 0),)),
        "set back: the same order again": case(good, voted=(good,), set_back=((2, 0),)),
        "set back: a close": case(close, set_back=((2, 0),)),
        "an account that signed twice": case(good, proofs=(proof,)),
        "an account that signed twice: the same order again": case(good, voted=(good,), proofs=(proof,)),
        "an account that signed twice: a close of its channel": case(close, proofs=(proof,)),
        "another account signed twice": case(good, proofs=(others,)),
    }


def _family() -> Ledger:
    """Alice has 1 cr, and two devices that belong to her; one has 0.1 cr of it. Carol has 0.5 cr."""
    world = Ledger(federation=FEDERATION)
    world.do(world.grant(ALICE.node, 1_000_000))
    world.do(world.grant(CAROL.node, 500_000))
    for device in (DEVICE, TABLET):
        world.do(world.attach(device, ALICE))
    world.do(world.move(ALICE, DEVICE.node, 100_000))
    return world


def _vote_on_keys() -> dict[str, Json]:
    world = _family()
    case = partial(_asked, world)
    rotated = _rotated()
    recovered = world.copy()
    recovered.do(recovered.recovery(ALICE, VAULT.node))
    vault = partial(_asked, recovered)
    twice = equivocation(*(recovered.hold(ALICE, BOB.node, amount, sequence=9) for amount in (1, 2)))
    often, last = _rotated_often(recovered)
    used_up = partial(_asked, often)
    return {
        "attach": case(world.attach(NEWCOMER, ALICE)),
        "attach to a sub-account": case(world.attach(NEWCOMER, DEVICE)),
        "attach: not the first order": case(world.attach(DEVICE, ALICE)),
        "attach: another number": case(world.attach(NEWCOMER, ALICE, sequence=1)),
        "attach: to itself": case(world.attach(ALICE, ALICE, sequence=0)),
        "attach: to an account that is not in use": case(world.attach(NEWCOMER, BOB)),
        "attach: to an account without credits": case(world.attach(NEWCOMER, TABLET)),
        "attach: to an issuer": case(world.attach(NEWCOMER, ISSUER)),
        "attach: an issuer": case(world.attach(ISSUER, ALICE, sequence=0)),
        "attach: to a small-order key": case(world.attach(NEWCOMER, ALICE, owner=SMALL_ORDER)),
        "attach: consent by another": case(world.attach(NEWCOMER, ALICE, consent=world.consent(BOB, NEWCOMER.node))),
        "attach: consent to another account": case(
            world.attach(NEWCOMER, ALICE, consent=world.consent(ALICE, BOB.node))
        ),
        "attach: consent for another federation": case(
            world.attach(NEWCOMER, ALICE, consent=world.consent(ALICE, NEWCOMER.node, OTHER))
        ),
        "move from the owner": case(world.move(ALICE, TABLET.node, 900_000)),
        "move to the owner": case(world.move(DEVICE, ALICE.node, 100_000)),
        "move between two of one owner": case(world.move(DEVICE, TABLET.node, 1)),
        "move: more than the balance": case(world.move(DEVICE, ALICE.node, 100_001)),
        "move: nothing": case(world.move(DEVICE, ALICE.node, 0)),
        "move: to itself": case(world.move(DEVICE, DEVICE.node, 1)),
        "move: to a stranger": case(world.move(ALICE, CAROL.node, 1)),
        "move: to a small-order key": case(world.move(ALICE, SMALL_ORDER, 1)),
        "move: from an issuer": case(world.move(ISSUER, ALICE.node, 1)),
        "move: to an issuer": case(world.move(ALICE, ISSUER.node, 1)),
        "move: signed by the owner": case(world.move(DEVICE, ALICE.node, 1, by=ALICE)),
        "recovery": case(world.recovery(ALICE, VAULT.node)),
        "recovery: a small-order key": case(world.recovery(ALICE, SMALL_ORDER)),
        "recovery: an account that is not in use": case(world.recovery(BOB, VAULT.node)),
        "recovery: an issuer's": case(world.recovery(ISSUER, VAULT.node)),
        "recovery: another one, by the old one": vault(recovered.recovery(ALICE, BOB.node, by=VAULT)),
        "recovery: another one, by the account's key": vault(recovered.recovery(ALICE, BOB.node)),
        "recovery: an order of the account by it": vault(recovered.hold_by(VAULT, ALICE.node, BOB.node, 1)),
        "recovery: the applied one again": vault(Order(*_order_of(recovered.log[-1]))),
        "rotate": case(world.rotate(ALICE, ALICE_NEW)),
        "rotate by the recovery key": vault(recovered.rotate(ALICE, ALICE_NEW, by=VAULT)),
        "rotate by the recovery key: the account signed twice": vault(
            recovered.rotate(ALICE, ALICE_NEW, by=VAULT), proofs=(twice,)
        ),
        "rotate by the account's key: the account signed twice": vault(
            recovered.rotate(ALICE, ALICE_NEW), proofs=(twice,)
        ),
        "recovery: another one, by the old one: the account signed twice": vault(
            recovered.recovery(ALICE, BOB.node, by=VAULT), proofs=(twice,)
        ),
        "rotate by the account's key: half of all rotations are used up": used_up(
            often.rotate(ALICE, ALICE_NEW, by=last)
        ),
        "rotate by the recovery key: half of all rotations are used up": used_up(
            often.rotate(ALICE, ALICE_NEW, by=VAULT)
        ),
        "rotate by another": vault(recovered.rotate(ALICE, ALICE_NEW, by=BOB)),
        "rotate: consent by another": case(world.rotate(ALICE, ALICE_NEW, consent=world.consent(BOB, ALICE.node))),
        "rotate: consent for another account": case(
            world.rotate(ALICE, ALICE_NEW, consent=world.consent(ALICE_NEW, BOB.node))
        ),
        "rotate: a small-order key": case(world.rotate(ALICE, ALICE_NEW, key=SMALL_ORDER)),
        "rotate: an account that is not in use": case(world.rotate(BOB, ALICE_NEW)),
        "rotate: an issuer": case(world.rotate(ISSUER, ALICE_NEW)),
        **{f"rotated: {name}": _asked(rotated, order) for name, order in _after_rotation(rotated).items()},
    }


def _rotated_often(world: Ledger) -> tuple[Ledger, Signer]:
    """A thief of Alice's key rotates as often as it may: the ledger, and the key in force."""
    world, key = world.copy(), ALICE
    for count in range(MAX_ROTATIONS // 2):
        new = signer(f"the thief's key {count}")
        world.do(world.rotate(ALICE, new, by=key))
        key = new
    return world, key


def _rotated() -> Ledger:
    """Alice and Bob have a channel, then both rotate."""
    world = _family()
    world.do(world.hold(ALICE, BOB.node, 400_000))
    world.do(world.grant(BOB.node, 1))
    world.do(world.rotate(ALICE, ALICE_NEW))
    world.do(world.rotate(BOB, BOB_NEW))
    return world


def _after_rotation(world: Ledger) -> dict[str, Order]:
    channel = next(key[1:] for key, _ in world.state.iterate(b"o"))
    old, new = (world.voucher(key, channel, 100, 50) for key in (ALICE, ALICE_NEW))
    return {
        "an order by the new key": world.hold_by(ALICE_NEW, ALICE.node, BOB.node, 1),
        "an order by the old key": world.hold_by(ALICE, ALICE.node, BOB.node, 1),
        "an account of the new key": world.hold_by(ALICE_NEW, ALICE_NEW.node, BOB.node, 1),
        "a close by the old key, a voucher by the new": world.close(BOB, channel, new),
        "a close by the new key, a voucher by the old": world.close(BOB_NEW, channel, old),
        "a close by the payer's new key": world.close(ALICE_NEW, channel, old),
        "a voucher by the payee's new key": world.close(BOB, channel, world.voucher(BOB_NEW, channel, 100, 50)),
        "attach with the owner's old consent": world.attach(
            NEWCOMER, ALICE, consent=ALICE.sign(FEDERATION.id, encode(Consent(NEWCOMER.node, ALICE.node)))
        ),
        "attach with the owner's new key": world.attach(
            NEWCOMER, ALICE, consent=ALICE_NEW.sign(FEDERATION.id, encode(Consent(NEWCOMER.node, ALICE.node)))
        ),
        "move to a sub-account": world.move(ALICE, DEVICE.node, 1, by=ALICE_NEW),
        "move to the account of the new key": world.move(ALICE, ALICE_NEW.node, 1, by=ALICE_NEW),
        "move to the account of the new key, by the old": world.move(ALICE, ALICE_NEW.node, 1),
        "move from a sub-account": world.move(DEVICE, ALICE.node, 1),
        "rotate back": world.rotate(ALICE, ALICE, by=ALICE_NEW),
    }


def _vote_in_epochs() -> dict[str, Json]:
    world, channel = four_witnesses()
    lost, kept = world.hold(ALICE, CAROL.node, 1), world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    proof = equivocation(lost, world.hold(ALICE, CAROL.node, 2))
    before = len(world.log)
    world.end_epoch()
    case = partial(_asked, world, at=before)
    good = world.hold(ALICE, CAROL.node, 2)
    later = world.copy()
    opened = later.give(later.hold(ALICE, CAROL.node, 400_000))
    return {
        "the next epoch": case(good),
        "the next epoch: the number was voted for": case(good, voted=(lost,)),
        "the next epoch: the old order": case(lost),
        "the next epoch: the old order, voted for": case(lost, voted=(lost,)),
        "the next epoch: the close voted for": case(kept, voted=(kept,)),
        "the next epoch: another close": case(
            world.close(BOB, channel, world.voucher(ALICE, channel, 99, 50)), voted=(kept,)
        ),
        "the next epoch: the account signed twice before": case(good, proofs=(proof,)),
        "set back in the epoch before": case(good, set_back=((before, 0),)),
        "set back in the epoch before, signed in this one": case(good, set_back=((before, 1),)),
        "set back in the epoch before: a close of a channel of then": case(kept, set_back=((before, 0),)),
        "set back in the epoch before: a close of a later channel": _asked(
            later,
            later.close(CAROL, opened, later.voucher(ALICE, opened, 100, 50)),
            set_back=((before, 0),),
        ),
        "the next epoch: an epoch too far": case(world.hold(ALICE, CAROL.node, 2, epoch=2)),
    }


def _order_of(certificate: bytes) -> tuple[bytes, bytes]:
    known = decode_as(Certificate, certificate)
    return known.body, known.signature


def _renamed(world: World, channel: bytes) -> Close:
    close = decode_as(Close, world.close(BOB, channel, world.voucher(ALICE, channel, 1, 1)).body)
    return replace(close, channel=bytes(32))


def _apply() -> dict[str, Json]:
    return {**_apply_of_one(), **_apply_of_four(), **_apply_keys()}


def _certified(ledger: Ledger, certificate: bytes, log: list[bytes] | None = None) -> dict[str, Json]:
    return {
        "genesis": ledger.federation.body.hex(),
        "log": [record.hex() for record in (ledger.log if log is None else log)],
        "certificate": certificate.hex(),
    }


def _apply_of_one() -> dict[str, Json]:
    world, channel = one_witness()
    case = partial(_certified, world)
    log = world.log
    close = world.certificate(world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50)))
    known = decode_as(Certificate, close)
    stranger = Certificate(known.body, known.signature, (WitnessSignature(5, known.votes[0].signature),))
    twice = Certificate(known.body, known.signature, known.votes * 2)
    forged = Certificate(known.body, known.signature, (WitnessSignature(0, bytes(64)),))
    return {
        "a grant": case(log[0], []),
        "a hold": case(log[1], log[:1]),
        "a close": case(close),
        "a close of nothing": case(world.certificate(world.close(BOB, channel, world.voucher(ALICE, channel, 0, 0)))),
        "a refund": case(world.certificate(world.refund(channel, NOW + HOUR))),
        "a close after a refund": case(close, [*log, world.certificate(world.refund(channel, NOW + HOUR))]),
        "again": case(log[0]),
        "again, with other votes": case(
            encode(replace(decode_as(Certificate, log[0]), votes=(WitnessSignature(0, bytes(64)),)))
        ),
        "a grant before the one before it": case(world.certificate(world.grant(BOB.node, 1)), []),
        "a close before its hold": case(close, log[:1]),
        "a hold before its grant": case(log[1], []),
        "more than any account can owe": _overflow(),
        "more than any account can have": _overflow(2),
        "a vote of no witness": case(encode(stranger)),
        "one witness twice": case(encode(twice)),
        "a forged vote": case(encode(forged)),
        "an owner's signature that does not verify": case(encode(replace(known, signature=bytes(64)))),
        "a byte too many": case(close + b"\0"),
        "an order in place of a certificate": case(known.body),
    }


def _overflow(issuers: int = 1) -> dict[str, Json]:
    """All that can be granted was granted, and more is certified."""
    keys = [ISSUER, signer("another issuer")][:issuers]
    federation = genesis.create("rich", NOW, [WITNESS.node], [key.node for key in keys], supply_cap=MAX_INTEGER)
    world = Ledger(federation=federation)
    for key in keys:
        world.do(world.grant(ALICE.node, MAX_INTEGER // issuers, key))
    return _certified(world, world.certificate(world.grant(BOB.node if issuers == 1 else ALICE.node, 2, keys[-1])))


def _apply_of_four() -> dict[str, Json]:
    world, channel = four_witnesses()
    case = partial(_certified, world)
    order = world.hold(ALICE, CAROL.node, 1)
    known = decode_as(Certificate, world.certificate(order))
    other = world.certificate(world.hold(ALICE, CAROL.node, 2))
    statement = vote_statement(order)
    foreign = tuple(world.signature(index, statement, OTHER) for index in QUORUM)
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    overdrawn = world.copy()
    overdrawn.do(overdrawn.hold(ALICE, CAROL.node, 600_000))
    ended = world.copy()
    ended.end_epoch()
    return {
        "four: three votes": case(encode(known)),
        "four: four votes": case(world.certificate(order, 0, 1, 2, 3)),
        "four: other three": case(world.certificate(order, 0, 2, 3)),
        "four: two votes": case(world.certificate(order, 0, 1)),
        "four: votes in another order": case(world.certificate(order, 0, 2, 1)),
        "four: a vote twice": case(world.certificate(order, 0, 1, 1)),
        "four: three and a forged one": case(
            encode(replace(known, votes=(*known.votes, WitnessSignature(3, known.votes[0].signature))))
        ),
        "four: a vote whose S is not reduced": case(
            encode(replace(known, votes=(*known.votes[:2], unreduced(known.votes[2]))))
        ),
        "four: a witness that does not exist": case(
            encode(replace(known, votes=(*known.votes[:2], WitnessSignature(4, known.votes[2].signature))))
        ),
        "four: votes for another federation": case(encode(replace(known, votes=foreign))),
        "four: votes for another order": case(encode(replace(known, votes=decode_as(Certificate, other).votes))),
        "four: a second certificate for a number": case(other, [*world.log, encode(known)]),
        "four: spends what has not come here": case(
            overdrawn.certificate(overdrawn.hold(ALICE, CAROL.node, 1)), overdrawn.log
        ),
        "four: a number ahead": case(world.certificate(world.hold(ALICE, CAROL.node, 1, sequence=2))),
        "four: another predecessor": case(world.certificate(world.hold(ALICE, CAROL.node, 1, previous=bytes(32)))),
        "four: a later epoch": case(world.certificate(world.hold(ALICE, CAROL.node, 1, epoch=1))),
        "four: an earlier epoch": case(encode(known), ended.log),
        "four: an earlier epoch, applied in it": case(world.log[0], ended.log),
        "four: the epoch in force": case(ended.certificate(ended.hold(ALICE, CAROL.node, 1)), ended.log),
        "four: a close in a later epoch": case(world.certificate(close), ended.log),
        "four: a refund": case(world.certificate(world.refund(channel, NOW + HOUR, FOUR_WITNESSES[0]))),
        "four: a hold for nothing": case(world.certificate(world.hold(ALICE, CAROL.node, 0))),
        "four: a hold for a small-order key": case(world.certificate(world.hold(ALICE, SMALL_ORDER, 1))),
    }


def _apply_keys() -> dict[str, Json]:
    world = _family()
    case = partial(_certified, world)
    attach, move = world.log[2], world.log[4]
    rotated = _rotated()
    names = {"an order by the new key", "a close by the new key, a voucher by the old"}
    late = {name: order for name, order in _after_rotation(rotated).items() if name in names}
    return {
        "attach": case(attach, world.log[:2]),
        "move": case(move, world.log[:4]),
        "move before the attachment": case(move, world.log[:2]),
        "recovery": case(world.certificate(world.recovery(ALICE, VAULT.node))),
        "rotate": case(world.certificate(world.rotate(ALICE, ALICE_NEW))),
        "rotate twice": _certified(rotated, rotated.certificate(rotated.rotate(ALICE, ALICE, by=ALICE_NEW))),
        **{f"rotated: {name}": _certified(rotated, rotated.certificate(order)) for name, order in late.items()},
        **{
            f"before the rotations: {name}": _certified(rotated, rotated.certificate(order), rotated.log[:-2])
            for name, order in late.items()
        },
    }


FILES: dict[str, tuple[str, Callable[[], dict[str, Json]]]] = {
    "pricing": ("Counts and prices to µcredits.", _pricing),
    "ledger_genesis": ("A federation's constitution: its id and its quorum.", _genesis),
    "ledger_voucher": ("What the payee checks when a voucher comes.", _voucher),
    "ledger_vote": ("What a witness answers to an order.", _vote),
    "ledger_apply": ("What a certificate does to the state.", _apply),
    **EPOCH_FILES,
}


def generated() -> dict[Path, str]:
    """Path and text of each file."""
    sys.path.insert(0, str(ROOT / "tests" / "spec"))
    from ledger_runners import LEDGER_RUNNERS
    from runners import outcome

    files: dict[Path, str] = {}
    for name, (description, inputs) in FILES.items():
        cases = [
            {"name": case, "input": given, **outcome(LEDGER_RUNNERS[name], given)} for case, given in inputs().items()
        ]
        content = {"kind": name, "description": description, "cases": cases}
        files[VECTORS / f"{name}.json"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return files


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
