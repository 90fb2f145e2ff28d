"""Ledgers that an older program wrote. `data/ledgers_of_schema_1.json` was written by that program (commit 0a9426b):
a witness, Alice, and Bob, whom she paid for two queries in a settled channel and for one in an open one."""

from __future__ import annotations

import json
from pathlib import Path

import plyvel
import pytest

from node import migrations
from node.memory_store import MemoryStore
from node.store import LevelStore
from protocol.errors import ErrorCode
from protocol.ids import NO_HASH
from protocol.ledger.state import View
from protocol.messages import Rejected, RequestVote, Voted
from tests.node.ledgers import PRICES, QUOTE, books, pay
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, WITNESS

NAMES = {"witness": WITNESS, "alice": ALICE, "bob": BOB}
LEDGERS = json.loads((Path(__file__).parent / "data" / "ledgers_of_schema_1.json").read_text())


def written_by_the_old_program(name: str) -> dict[bytes, bytes | None]:
    return {bytes.fromhex(key): bytes.fromhex(value) for key, value in LEDGERS[name].items()}


def old_store(name: str) -> MemoryStore:
    store = MemoryStore()
    store.write(written_by_the_old_program(name))
    return store


async def test_an_old_ledger_is_true_and_goes_on() -> None:
    async with books() as house:
        witness, alice, bob = [await house.start(who, old_store(name)) for name, who in NAMES.items()]
        for ledger in (witness, alice, bob):
            report = await ledger.verify(signatures=True)
            assert (report.problems, report.certificates, report.channels, report.sum_micro) == ((), 4, 2, 0)
        paying, paid = await alice.balance(), await bob.balance()
        assert (paying.balance, paying.held, paying.spent, paying.owed) == (6_999_500, 2_000_000, 500, 250)
        assert (paid.balance, paid.earned, paid.pending) == (500, 500, 250)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)
        assert await bob.close_idle(0) == 2  # the channel that was open, and the new one
        await alice.sync()
        assert ((await alice.balance()).balance, (await bob.balance()).balance) == (8_999_000, 1_000)
        for ledger in (witness, alice, bob):
            assert (await ledger.verify(signatures=True)).verified


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_an_old_balance_leads_to_its_receipts(name: str) -> None:
    async with books() as house:
        await house.start(WITNESS, old_store("witness"))
        ledger = await house.start(NAMES[name], old_store(name))
        why = ledger.reports().why(ledger.node)
        assert why["adds_up"] and sum(group["queries"] for group in why["groups"]) == 3
        channels = [line for line in ledger.reports().lines(ledger.node) if "channel" in line]
        assert sorted(line["receipts_count"] for line in channels) == [1, 2]
        assert [line["receipts_left"] for line in channels] == [0, 0]


async def test_an_old_vote_is_remembered_and_given_again_and_no_other() -> None:
    old = written_by_the_old_program("witness")
    value = next(value for key, value in old.items() if key[:1] == b"l" and key[1:33] == ALICE.node)
    assert value is not None
    vote, signature, body = value[32:96], value[96:160], value[160:]
    async with books() as house:
        witness = await house.start(WITNESS, old_store("witness"))
        assert await witness.answer(ALICE.node, RequestVote(body, signature)) == Voted(0, vote)
        other = body[:-1] + bytes([body[-1] ^ 1])
        answer = await witness.answer(ALICE.node, RequestVote(other, ALICE.sign(FEDERATION.id, other)))
        assert isinstance(answer, Rejected) and answer.code in (ErrorCode.EQUIVOCATION, ErrorCode.STALE_EPOCH)


def test_a_folder_of_the_old_program_is_changed_once_and_whole(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    database = plyvel.DB(str(folder), create_if_missing=True)
    for key, value in written_by_the_old_program("alice").items():
        database.put(key, value)
    database.close()
    store = LevelStore(folder)
    assert migrations.migrate(store) and not migrations.migrate(store)
    store.close()
    again = LevelStore(folder)
    assert not again.damaged and not migrations.migrate(again)
    account = View(again).account(ALICE.node)
    assert (account.balance, account.spent, account.owner, account.rotations) == (6_999_500, 500, NO_HASH, ())
    assert len(list(again.iterate(b"o"))) == 1 and len(list(again.iterate(b"j"))) == 3
    again.close()
