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
from pathlib import Path
from typing import Any

from protocol.codec import decode_as, encode
from protocol.ids import NodeId
from protocol.ledger import genesis
from protocol.messages import Certificate, Close, Genesis, WitnessSignature
from protocol.params import CLOCK_SKEW, EPOCH_LENGTH, MAX_HOLD_LIFETIME, MAX_INTEGER
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, ISSUER, NOW, WITNESS, Order, World, signer

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "spec" / "vectors"
SMALL_ORDER = NodeId(b"\1" + bytes(31))  # the neutral element

Json = Any
Runner = Callable[[dict[str, Json]], Json]


def _world() -> tuple[World, list[bytes], bytes]:
    """Alice has 1 cr and a channel of 0.4 cr to Bob: world, certificates so far, channel."""
    world = World()
    certificates, channel = [], b""
    for make in (lambda: world.grant(ALICE.node, 1_000_000), lambda: world.hold(ALICE, BOB.node, 400_000)):
        order = make()
        certificates.append(world.certificate(order))
        world.apply(certificates[-1])
        channel = order.hash
    return world, certificates, channel


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
    world, _, channel = _world()
    certificate = world.view.certificate(channel)
    assert certificate is not None
    hold = decode_as(Certificate, certificate).body
    other = genesis.create("other", NOW, [WITNESS.node], [ISSUER.node])
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
    world, certificates, channel = _world()
    other = genesis.create("other", NOW, [WITNESS.node], [ISSUER.node])
    good = world.hold(ALICE, CAROL.node, 1)
    first_hold = certificates[1]
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))

    def case(
        order: Order, *, now: int = NOW, voted: tuple[Order, ...] = (), signature: bytes | None = None
    ) -> dict[str, Json]:
        return {
            "genesis": FEDERATION.body.hex(),
            "certificates": [certificate.hex() for certificate in certificates],
            "witness_seed": hashlib.sha256(b"witness").hexdigest(),
            "voted": [{"body": before.body.hex(), "signature": before.signature.hex()} for before in voted],
            "now_ms": now,
            "body": order.body.hex(),
            "signature": (signature or order.signature).hex(),
        }

    applied = decode_as(Certificate, first_hold)
    return {
        "a hold": case(good),
        "a grant": case(world.grant(BOB.node, 5)),
        "a close": case(close),
        "a refund": case(world.refund(channel, NOW + HOUR), now=NOW + HOUR),
        "the same order again": case(good, voted=(good,)),
        "an order that is applied already": case(Order(applied.body, applied.signature)),
        "another order with the same number": case(world.hold(ALICE, CAROL.node, 2), voted=(good,)),
        "replay of a number behind the head": case(world.hold(ALICE, CAROL.node, 3, sequence=0)),
        "a number ahead": case(world.hold(ALICE, CAROL.node, 3, sequence=2)),
        "the wrong predecessor": case(world.hold(ALICE, CAROL.node, 3, previous=bytes(32))),
        "more than the balance": case(world.hold(ALICE, CAROL.node, 600_001)),
        "nothing": case(world.hold(ALICE, CAROL.node, 0)),
        "to itself": case(world.hold(ALICE, ALICE.node, 1)),
        "to a small-order key": case(world.hold(ALICE, SMALL_ORDER, 1)),
        "from a small-order key": case(world.hold(ALICE, CAROL.node, 1, payer=SMALL_ORDER, sequence=0)),
        "expired": case(good, now=NOW + HOUR),
        "too long": case(world.hold(ALICE, CAROL.node, 1, expiry_ms=NOW + MAX_HOLD_LIFETIME + CLOCK_SKEW + 1)),
        "a stale epoch": case(world.hold(ALICE, CAROL.node, 1, epoch=1)),
        "signed by another": case(good, signature=BOB.sign(FEDERATION.id, good.body)),
        "signed for another federation": case(good, signature=ALICE.sign(other.id, good.body)),
        "a longer array header": case(Order(b"\xdc\x00\x0b" + good.body[1:], good.signature)),
        "a byte too many": case(Order(good.body + b"\0", good.signature)),
        "a grant by nobody's issuer": case(world.grant(BOB.node, 1, issuer=ALICE)),
        "a grant beyond the cap": case(world.grant(BOB.node, 9_000_001)),
        "a close by the payer": case(world.close(ALICE, channel, world.voucher(ALICE, channel, 100, 50))),
        "a close by a bad voucher": case(
            world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50, cumulative=251))
        ),
        "a close by a voucher that the payee signed": case(
            world.close(BOB, channel, world.voucher(BOB, channel, 100, 50))
        ),
        "a close of an unknown channel": case(
            world.signed(BOB, _renamed(world, channel)),
        ),
        "a refund before the expiry": case(world.refund(channel, NOW)),
        "a refund dated ahead": case(world.refund(channel, NOW + HOUR)),
        "a refund by somebody else": case(world.refund(channel, NOW + HOUR, witness=BOB), now=NOW + HOUR),
        "a close after a refund was voted for": case(close, now=NOW + HOUR, voted=(world.refund(channel, NOW + HOUR),)),
        "a voucher is no order": case(world.voucher(ALICE, channel, 1, 1)),
    }


def _renamed(world: World, channel: bytes) -> Close:
    close = decode_as(Close, world.close(BOB, channel, world.voucher(ALICE, channel, 1, 1)).body)
    return replace(close, channel=bytes(32))


def _apply() -> dict[str, Json]:
    world, certificates, channel = _world()
    early = world.certificate(world.grant(BOB.node, 1))
    close = world.certificate(world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50)))
    known = decode_as(Certificate, close)
    stranger = Certificate(known.body, known.signature, (WitnessSignature(5, known.votes[0].signature),))
    twice = Certificate(known.body, known.signature, known.votes * 2)
    forged = Certificate(known.body, known.signature, (WitnessSignature(0, bytes(64)),))

    def case(certificate: bytes, before: list[bytes]) -> dict[str, Json]:
        return {
            "genesis": FEDERATION.body.hex(),
            "certificates": [data.hex() for data in before],
            "certificate": certificate.hex(),
        }

    return {
        "a grant": case(certificates[0], []),
        "a hold": case(certificates[1], certificates[:1]),
        "a close": case(close, certificates),
        "again": case(certificates[0], certificates),
        "a grant before the one before it": case(early, []),
        "a close before its hold": case(close, certificates[:1]),
        "a vote of no witness": case(encode(stranger), certificates),
        "one witness twice": case(encode(twice), certificates),
        "a forged vote": case(encode(forged), certificates),
        "a byte too many": case(close + b"\0", certificates),
    }


FILES: dict[str, tuple[str, str, Callable[[], dict[str, Json]]]] = {
    "ledger_pricing": ("pricing", "Counts and prices to µcredits.", _pricing),
    "ledger_genesis": ("ledger_genesis", "A federation's constitution: its id and its quorum.", _genesis),
    "ledger_voucher": ("ledger_voucher", "What the payee checks when a voucher comes.", _voucher),
    "ledger_vote": ("ledger_vote", "What a witness answers to an order.", _vote),
    "ledger_apply": ("ledger_apply", "What a certificate does to the accounts and channels.", _apply),
}


def generated() -> dict[Path, str]:
    """Path and text of each file."""
    sys.path.insert(0, str(ROOT / "tests" / "spec"))
    from ledger_runners import LEDGER_RUNNERS
    from runners import outcome

    files = {}
    for name, (kind, description, inputs) in FILES.items():
        cases = [
            {"name": case, "input": given, **outcome(LEDGER_RUNNERS[kind], given)} for case, given in inputs().items()
        ]
        content = {"kind": kind, "description": description, "cases": cases}
        files[VECTORS / f"{name}.json"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return files


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
