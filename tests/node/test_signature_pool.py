"""Signatures on several processes: the same answers as here."""

from __future__ import annotations

from node.signature_pool import BATCHES_HERE, SignaturePool, check_batch, signature_pool, verify_on_all_cores
from protocol.ledger.assumed import Question
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, World

BODY = bytes([0x91, 3])
GOOD: Question = (ALICE.node, FEDERATION.id, BODY, ALICE.sign(FEDERATION.id, BODY))
FORGED: Question = (BOB.node, FEDERATION.id, BODY, GOOD[3])


def test_a_batch_gives_back_what_is_wrong() -> None:
    assert check_batch([GOOD, FORGED, GOOD]) == [FORGED]


def test_processes_find_what_is_wrong_wherever_it_stands() -> None:
    with signature_pool(2) as pool:
        for number in range(BATCHES_HERE + 40):
            pool.take([GOOD, FORGED] if number in (0, BATCHES_HERE + 1, BATCHES_HERE + 39) else [GOOD])
        assert pool.wrong() == [FORGED, FORGED, FORGED]
        assert pool.wrong() == []
        pool.take([FORGED])
        assert pool.wrong() == [FORGED]


def test_a_few_are_checked_here() -> None:
    pool = SignaturePool(2)
    pool.take([FORGED])
    assert pool.wrong() == [FORGED]
    assert pool._executor is None


def test_one_core_starts_no_process() -> None:
    pool = SignaturePool(1)
    for _ in range(BATCHES_HERE + 2):
        pool.take([GOOD])
    assert pool.wrong() == []
    assert pool._executor is None


def test_a_ledger_is_verified_with_and_without_signatures() -> None:
    world = World()
    world.do(world.grant(ALICE.node, 1_000_000))
    with_them = verify_on_all_cores(FEDERATION, world.state, signatures=True)
    assert with_them.verified
    assert with_them == verify_on_all_cores(FEDERATION, world.state, signatures=False)
