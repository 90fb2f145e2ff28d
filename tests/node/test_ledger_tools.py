"""What the ledger says of itself: sums, explanations, files, proofs and the audit, over real books."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.bookkeeper import Bookkeeper, Receipt, Settings
from node.ledger_export import FIRST_LINE, ExportError, exported, open_export
from node.ledger_import import Imported
from node.ledger_operations import LedgerOperations
from node.ledger_proving import proven_json
from node.ledger_words import line_words, receipt_words, why_lines
from node.memory_store import MemoryStore
from node.operations import OperationFailed
from node.store import Store
from protocol.codec import body_hash, decode_as, encode, is_a
from protocol.errors import ErrorCode, Refused
from protocol.framing import frame
from protocol.ids import ChannelId, QueryId, peer_id
from protocol.ledger.proofs import check_proof
from protocol.ledger.state import Channel, View, account_key, double_vote_key, equivocation_key, order_key, u64
from protocol.messages import (
    Ballot,
    Certificate,
    Checkpoint,
    Decision,
    Hold,
    Pay,
    RequestVote,
    StateLeaves,
    Voted,
    Voucher,
    WitnessSignature,
)
from protocol.params import HOURS, REFUND_DELAY
from protocol.signing import Signer
from tests.node.ledgers import PRICES, QUOTE, TRANSCRIPT, pay
from tests.node.witnesses import CREDITS, World, begun, world_of
from tests.protocol.ledger_world import ALICE, BOB, CAROL, ISSUER, NOW

Json = dict[str, Any]


async def query(asker: Bookkeeper, worker: Bookkeeper, who: Signer, whom: Signer, tokens: int = 50) -> str:
    """One query with its receipts on both sides; the channel."""
    async with asker.lease(whom.node, *PRICES, QUOTE, 1) as lease:
        proof = await pay(lease, worker, who.node, 100, tokens)
        for ledger, role, other in ((asker, "requester", whom), (worker, "worker", who)):
            await ledger.record_receipt(receipt(role, other, lease.channel, proof, tokens))
        return lease.channel.hex()


def receipt(role: str, other: Signer, channel: ChannelId, proof: Pay, tokens: int, number: int = 0) -> Receipt:
    return Receipt(
        query_id=QueryId((number + tokens).to_bytes(16, "big")),
        role=role,
        counterparty=other.node,
        realm="$CHAT",
        model="tiny",
        units_in=100,
        units_out=tokens,
        amount=100 + 3 * tokens,
        price_in=PRICES[0],
        price_out=PRICES[1],
        quote=b"q" * 32,
        channel=channel,
        pay=proof,
        transcript=TRANSCRIPT,
        digest=bytes(32),
        outcome="stop",
        time_ms=NOW,
    )


async def end_epoch(world: World) -> None:
    """Its witnesses' operators agree that it may end early, so that open holds live on."""
    world.clock.now += 60_000
    for witness in world.witnesses:
        await world.books[witness.node].epochs.accept()
    await world.first.epochs.end()
    for ledger in world.books.values():
        await ledger.sync()
    await trio.testing.wait_all_tasks_blocked()


def parts(why: Json) -> dict[str, int]:
    return {part["part"]: part["amount"] for part in why["parts"]}


# --- why ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
async def test_a_balance_is_a_sum_of_what_can_be_shown(count: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        await query(alice, bob, ALICE, BOB, 60)
        why = alice.reports().why(ALICE.node)
        assert parts(why) == {"granted": CREDITS, "spent": -250, "held": -2_000_000}
        assert why["adds_up"] and why["sum"] == why["balance"] == (await alice.balance()).balance
        assert why["owed"] == 280 and why["own"] and not why["issuer"]
        names = {group["counterparty"]: group for group in why["groups"]}
        assert names[peer_id(BOB.node)]["queries"] == 2 and names[peer_id(BOB.node)]["spent"] == -250
        told = "\n".join(why_lines(why))
        assert "It adds up." in told and "2.99975 cr to spend" in told and "0.00028 cr of it promised" in told
        earning = bob.reports().why(BOB.node)
        assert parts(earning) == {"earned": 250, "promised": 0} and earning["pending"] == 280
        issuing = world.first.reports().why(ISSUER.node)
        assert parts(issuing) == {"issued": -CREDITS} and issuing["issuer"] and issuing["adds_up"]
        others = world.first.reports()  # a witness explains the same, without queries and times
        stranger = others.why(ALICE.node)
        assert stranger["sum"] == why["sum"] and not stranger["own"]
        assert [day["day"] for day in others.why(BOB.node, "day")["groups"]] == ["epoch 0, day not known here"]
        assert "no order of this ledger names it" in "\n".join(why_lines(others.why(CAROL.node)))


async def test_a_balance_by_day_and_its_lines_in_order() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world)
        channel = await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        days = alice.reports().why(ALICE.node, "day")["groups"]
        assert [day["day"] for day in days] == ["2027-01-15"] and days[0]["lines"] == 2
        lines = list(alice.reports().lines(ALICE.node))
        assert [(line["part"], line["amount"], line["balance"]) for line in lines] == [
            ("granted", CREDITS, CREDITS),
            ("spent", -250, CREDITS - 250),
        ]
        assert lines[1]["id"] == channel and lines[1]["adds_up"] and lines[1]["receipts_count"] == 1
        words = line_words(lines[1])
        assert "100 prompt tokens x 0.001 cr per 1,000 + 50 output tokens" in words and "1 receipts here" in words
        with pytest.raises(Refused, match="by counterparty or by day"):
            alice.reports().why(ALICE.node, "moon")


async def test_after_pruning_the_sum_begins_with_what_the_checkpoint_says() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world, keep_epochs=1)
        for tokens in (10, 20, 30):
            await query(alice, bob, ALICE, BOB, tokens)
            await bob.close_idle(0)
            await end_epoch(world)
        await query(alice, bob, ALICE, BOB, 40)
        view = View(world.stores[ALICE.node])
        assert view.first_epoch == 2
        why = alice.reports().why(ALICE.node)
        assert why["opening"] == {"epoch": 2, "balance": CREDITS - 130 - 160, "held": 0}
        assert parts(why) == {"spent": -190, "held": -2_000_000} and why["adds_up"]
        assert "was there when epoch 2 began" in "\n".join(why_lines(why))
        lines = list(alice.reports().lines(ALICE.node))
        assert [line["part"] for line in lines] == ["opening", "spent", "held"]
        assert [line["epoch"] for line in lines] == [2, 2, 3]
        assert lines[-1]["balance"] == why["balance"] and "epoch 2 began" in line_words(lines[0])


async def test_a_channel_that_lives_through_pruned_epochs_is_in_the_sum() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world, keep_epochs=1)
        await end_epoch(world)
        channel = await query(alice, bob, ALICE, BOB, 10)  # held in epoch 1
        await end_epoch(world)
        await bob.close_idle(0)  # settled in epoch 2
        await alice.sync()
        await end_epoch(world)
        store = world.stores[ALICE.node]
        assert View(store).first_epoch == 2 and (await alice.verify(signatures=True)).verified
        why = alice.reports().why(ALICE.node)
        assert why["opening"] == {"epoch": 2, "balance": CREDITS - 2_000_000, "held": 2_000_000}
        assert parts(why) == {"spent": -130} and why["adds_up"]
        assert [line["amount"] for line in alice.reports().lines(ALICE.node)] == [CREDITS, -130]
        store.write({b"c" + bytes.fromhex(channel): None})
        lost, unexplained = alice.reports().why(ALICE.node)["missing"]
        assert "was open when epoch 2 began, and its end is not here" in lost and "-130 µcr" in unexplained


async def test_a_channel_that_ended_before_the_kept_part_is_not_counted_twice() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world, keep_epochs=1)
        channel = bytes.fromhex(await query(alice, bob, ALICE, BOB, 10))
        await bob.close_idle(0)
        await alice.sync()
        kept = world.stores[ALICE.node].get(b"c" + channel)
        for _ in range(2):
            await end_epoch(world)
        store = world.stores[ALICE.node]
        assert store.get(b"c" + channel) is None
        store.write({b"c" + channel: kept})  # as an older program left it
        assert parts(alice.reports().why(ALICE.node)) == {}


async def test_what_does_not_add_up_is_said() -> None:
    async with world_of(1) as world:
        alice, _ = await begun(world)
        store = world.stores[ALICE.node]
        richer = View(store).account(ALICE.node)
        store.write({account_key(ALICE.node): type(richer)(richer.balance + 7, *_rest(richer)).encode()})
        why = alice.reports().why(ALICE.node)
        assert not why["adds_up"] and "7 µcr are not explained" in why["missing"][0]
        assert "does NOT add up" in "\n".join(why_lines(why))
        grant = (await alice.history())[-1]["id"]
        store.write({b"r" + bytes.fromhex(grant): None})
        assert any("is not here" in problem for problem in alice.reports().why(ALICE.node)["missing"])


def _rest(account: Any) -> tuple[Any, ...]:
    return (account.next_sequence, account.head)


# --- show --------------------------------------------------------------------------------------------


async def test_every_kind_of_entry_is_explained() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world)
        first = await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        await query(alice, bob, ALICE, BOB, 60)
        await end_epoch(world)
        shown = {entry["kind"]: await alice.show(entry["id"]) for entry in await alice.history()}
        assert shown["grant"]["kind"] == "grant" and "has issued 5 cr" in shown["grant"]["sentence"]
        assert shown["close"]["asked"] == "close" and shown["close"]["id"] == first
        assert "is settled: 100 prompt tokens" in shown["close"]["sentence"]
        assert shown["close"]["settlement"]["type"] == "close" and shown["close"]["adds_up"]
        kept = shown["query"]
        assert kept["kind"] == "receipt" and kept["voucher"]["signed"] and kept["adds_up"]
        assert "signed by the payer" in receipt_words(kept)
        held = await alice.show(next(e["id"] for e in await alice.history() if e["kind"] == "hold"))
        assert held["kind"] == "channel" and held["role"] == "payer" and held["order"]["witnesses"]
        assert shown["checkpoint"]["kind"] == "checkpoint"
        assert "1 of 1 witnesses committed" in shown["checkpoint"]["sentence"]
        latest = (await alice.history(1))[0]
        assert latest["kind"] == "checkpoint" and latest["sentence"].startswith("Epoch 1 began: 4 orders")


async def test_sub_accounts_and_keys_are_explained() -> None:
    async with world_of(1) as world:
        alice, _ = await begun(world)
        made = await alice.accounts.create("tablet", b"t" * 32)
        await alice.accounts.move(ALICE.node, made, 1_000_000)
        await alice.accounts.name_recovery(made, CAROL.node)
        await alice.accounts.rotate(made, b"u" * 32)
        history = {entry["kind"]: entry for entry in await alice.history()}
        assert history.keys() == {"attach", "move", "grant", "recovery", "rotate"}
        for kind in ("attach", "move", "recovery", "rotate"):
            told = await alice.show(history[kind]["id"])
            assert told["kind"] == kind and told["sentence"] and history[kind]["sentence"]
        why = alice.reports().why(made)
        assert parts(why) == {"moved": 1_000_000} and why["adds_up"]
        assert parts(alice.reports().why(ALICE.node)) == {"granted": CREDITS, "moved": -1_000_000}


async def test_an_expired_hold_came_back_and_is_explained() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            channel = lease.channel.hex()
        world.clock.now += 2 * HOURS + REFUND_DELAY
        await end_epoch(world)
        shown = await alice.show(channel)
        assert shown["status"] == "refunded" and "came back whole" in shown["sentence"]
        returned = next(entry for entry in await alice.history() if entry["kind"] == "refund")
        assert (await alice.show(returned["id"]))["asked"] == "refund"
        why = alice.reports().why(ALICE.node)
        assert parts(why) == {"granted": CREDITS, "returned": 0} and why["adds_up"]
        assert "2 cr had been locked" in "\n".join(why_lines(why))


async def test_a_void_order_counts_for_nothing_and_is_told(tmp_path: Path) -> None:
    """Certified, and known to its owner alone when the epoch ends."""
    async with world_of(4) as world:
        alice, _ = await begun(world)
        account = View(world.stores[ALICE.node]).account(ALICE.node)
        fields = (ALICE.node, account.next_sequence, account.head, BOB.node, 1_000_000, *PRICES, NOW + HOURS, QUOTE, 0)
        body = encode(Hold(*fields))
        request = RequestVote(body, ALICE.sign(world.federation.id, body))
        votes = []
        for witness in world.witnesses[:3]:
            voted = await world.books[witness.node].answer(ALICE.node, request)
            assert isinstance(voted, Voted)
            votes.append(WitnessSignature(voted.witness, voted.signature))
        certificate = encode(Certificate(body, request.signature, tuple(votes)))
        assert (await taken(alice, made_up(tmp_path / "file", world.federation.body, certificate))).fresh == 1
        identity = body_hash(body).hex()
        assert (await alice.show(identity))["kind"] == "channel" and (await alice.balance()).held == 1_000_000
        await end_epoch(world)
        told = await alice.show(identity)
        assert (told["kind"], told["entry"]) == ("void", "hold") and "counts for nothing" in told["sentence"]
        entry = next(entry for entry in await alice.history() if entry["id"] == identity)
        assert entry["amount"] == 0 and entry["was"] == -1_000_000 and "void" in entry["sentence"]
        why = alice.reports().why(ALICE.node)
        assert parts(why) == {"granted": CREDITS} and why["adds_up"]


async def test_pruned_orders_are_told_from_the_journal() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world, keep_epochs=1)
        grant = (await alice.history())[0]["id"]
        channel = await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        for _ in range(3):
            await end_epoch(world)
        told = await alice.show(grant)
        assert (told["kind"], told["entry"]) == ("forgotten", "grant") and "pruned here" in told["sentence"]
        with pytest.raises(Refused, match="nothing in this ledger begins with"):
            await world.first.show(channel)


# --- export and import --------------------------------------------------------------------------------


def export_of(world: World, who: Signer, path: Path) -> Path:
    """The exported ledger of a node."""
    path.write_bytes(b"".join(exported(world.federation, world.stores[who.node], lambda done, total: None)))
    return path


async def heard(so_far: Imported) -> None:
    """Nobody wants to know."""


async def taken(ledger: Bookkeeper, path: Path) -> Imported:
    seen: list[Imported] = []

    async def tell(so_far: Imported) -> None:
        seen.append(so_far)

    last = await ledger.bring_in(open_export(path, ledger.federation), tell)
    assert seen and last.done_bytes == last.total_bytes > 0
    return last


@pytest.mark.parametrize("count", [1, 4])
async def test_a_ledger_goes_through_a_file_and_twice_changes_nothing(count: int, tmp_path: Path) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        for tokens in (10, 20):
            await query(alice, bob, ALICE, BOB, tokens)
            await bob.close_idle(0)
            await end_epoch(world)
        await query(alice, bob, ALICE, BOB, 30)
        await alice.sync()
        await bob.sync()
        file = export_of(world, ALICE, tmp_path / "ledger")
        away = await world.start(CAROL)
        world.away.add(CAROL.node)
        imported = await taken(away, file)
        assert imported.fresh == View(world.stores[ALICE.node]).log_length and imported.epochs == 2
        assert not (imported.refused or imported.waiting or imported.closed or imported.began_anew)
        assert (await away.balance(ALICE.node)).balance == (await alice.balance()).balance
        report = await away.verify(signatures=True)
        assert report.verified and report.epoch == 2
        again = await taken(away, file)
        assert again.fresh == 0 and again.known == imported.fresh and again.epochs == 0
        world.away.clear()
        await away.sync()  # goes on as if it had never been away
        assert (await away.verify(signatures=True)).verified


async def test_a_pruned_ledger_is_taken_from_its_checkpoint_on(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world, keep_epochs=1)
        for tokens in (10, 20, 30):
            await query(alice, bob, ALICE, BOB, tokens)
            await bob.close_idle(0)
            await end_epoch(world)
        file = export_of(world, ALICE, tmp_path / "ledger")
        fresh = await world.start(CAROL)
        imported = await taken(fresh, file)
        assert imported.began_anew and imported.epochs == 2
        assert (await fresh.balance(BOB.node)).balance == (await bob.balance()).balance
        assert (await taken(fresh, file)).fresh == 0
        assert (await taken(alice, file)).fresh == 0
        assert (await fresh.verify(signatures=True)).verified


async def test_a_node_one_epoch_behind_a_pruned_file_is_told_what_to_do(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world, keep_epochs=1)
        late = await world.start(CAROL)
        await query(alice, bob, ALICE, BOB, 10)
        await late.sync()
        await bob.close_idle(0)
        world.away.add(CAROL.node)
        await end_away(world)
        await end_away(world)
        file = export_of(world, ALICE, tmp_path / "ledger")
        assert View(world.stores[ALICE.node]).first_epoch == 1
        with pytest.raises(Refused, match="reaches further back"):
            await taken(late, file)
        assert (await late.verify(signatures=True)).verified


async def end_away(world: World) -> None:
    """An epoch ends without Carol."""
    world.clock.now += 60_000
    for witness in world.witnesses:
        await world.books[witness.node].epochs.accept()
    await world.first.epochs.end()
    for node, ledger in world.books.items():
        if node != CAROL.node:
            await ledger.sync()
    await trio.testing.wait_all_tasks_blocked()


async def test_records_that_are_not_signed_are_left_out_and_named(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        store = MemoryStore(dict(world.stores[ALICE.node].iterate()))
        identity = View(store).id_at(0)
        assert identity is not None
        grant = store.get(b"r" + identity)
        assert grant is not None
        store.write({b"r" + identity: grant[:-1] + bytes([grant[-1] ^ 1])})  # a witness's vote
        file = tmp_path / "ledger"
        file.write_bytes(b"".join(exported(world.federation, store, lambda done, total: None)))
        fresh = await world.start(CAROL)
        world.away.add(CAROL.node)
        imported = await taken(fresh, file)
        assert imported.refused == 1 and "signature" in imported.problems[0] and imported.fresh == 0
        assert imported.waiting == 2  # the hold and its close build on it
        assert (await fresh.balance(ALICE.node)).balance == 0


async def test_with_one_witness_the_first_bad_record_ends_an_import(tmp_path: Path) -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        await alice.sync()
        grant, hold = frames_of(export_of(world, ALICE, tmp_path / "good"))
        fresh = await world.start(CAROL)
        for messages, why in (((grant[:-1] + b"\xff", hold), "signature"), ((hold, grant), "the order takes 2 cr")):
            with pytest.raises(Refused, match=why):
                await taken(fresh, made_up(tmp_path / "bad", world.federation.body, *messages))
        assert View(world.stores[CAROL.node]).log_length == 0


def whole_file(federation: bytes, *messages: bytes) -> bytes:
    """An export that somebody made up."""
    begin = FIRST_LINE + frame(federation) + b"".join(map(frame, messages))
    count = sum(is_a(Certificate, message) or is_a(Decision, message) for message in messages)
    return begin + frame(b"\0" + count.to_bytes(8, "big") + hashlib.sha256(begin).digest())


async def test_what_is_no_export_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        good = export_of(world, ALICE, tmp_path / "good").read_bytes()
        bad = tmp_path / "bad"
        cases = {
            "no export": b"something else entirely",
            "no export ": b"",
            "ends too early": good[:-1],
            "ends too early ": good[: len(good) // 2],
            "was damaged": good[:-50] + bytes([good[-50] ^ 1]) + good[-49:],
            "goes on behind": good + b"x",
            "does not begin with a genesis": whole_file(b"nonsense"),
            "was damaged: ": good[:21] + b"\xff" * 20,
        }
        for why, content in cases.items():
            bad.write_bytes(content)
            with pytest.raises(ExportError, match=why.strip()):
                open_export(bad, world.federation.id)
        with pytest.raises(ExportError, match="cannot be read"):
            open_export(tmp_path / "nothing")
        bad.write_bytes(good)
        with pytest.raises(ExportError, match="is the ledger of federation several"):
            open_export(bad, world.federation.id[::-1])  # type: ignore[arg-type]
        for message in (b"\x92\x05\x01", encode(Pay(b"v", bytes(64)))):
            bad.write_bytes(whole_file(world.federation.body, message))
            with pytest.raises(Refused, match="is no record of a ledger"):
                await alice.bring_in(open_export(bad), heard)
        for message in (b"\x94\x0f\x01\x02\x03", b"\x96\x4e\x01", encode(StateLeaves(b"d", 0, 0, 0, ()))):
            bad.write_bytes(whole_file(world.federation.body, message))
            with pytest.raises(Refused) as caught:
                await alice.bring_in(open_export(bad), heard)
            assert caught.value.code is ErrorCode.MALFORMED


def frames_of(path: Path) -> list[bytes]:
    """The records of an export."""
    return [message for _, message in open_export(path).frames()][1:]


def made_up(path: Path, federation: bytes, *messages: bytes) -> Path:
    path.write_bytes(whole_file(federation, *messages))
    return path


async def test_records_in_any_order_find_what_they_build_on(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        for tokens in (10, 20):
            await query(alice, bob, ALICE, BOB, tokens)
            await bob.close_idle(0)
            await alice.sync()
        records = frames_of(export_of(world, ALICE, tmp_path / "good"))
        fresh = await world.start(CAROL)
        imported = await taken(fresh, made_up(tmp_path / "bad", world.federation.body, *reversed(records)))
        assert (imported.fresh, imported.waiting, imported.refused) == (len(records), 0, 0)
        assert (await fresh.verify(signatures=True)).verified


async def test_a_file_that_leaves_an_epoch_out_is_not_taken(tmp_path: Path) -> None:
    async with world_of(4) as world:
        await begun(world)
        await end_epoch(world)
        await end_epoch(world)
        *_, first, second = frames_of(export_of(world, ALICE, tmp_path / "good"))
        fresh = await world.start(CAROL)
        for messages in ((second,), (second, first)):
            with pytest.raises(Refused, match="leaves out how epoch 0 ended"):
                await taken(fresh, made_up(tmp_path / "bad", world.federation.body, *messages))
        with pytest.raises(Refused, match="does not hold the 1 orders of epoch 0"):
            await taken(fresh, made_up(tmp_path / "bad", world.federation.body, first))


async def test_what_is_closed_here_is_left_alone(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        pruned = await world.start(CAROL, settings=Settings(keep_epochs=1))
        await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        for _ in range(2):
            await end_epoch(world)
        before = View(world.stores[CAROL.node]).log_length
        imported = await taken(pruned, export_of(world, ALICE, tmp_path / "ledger"))
        assert imported.closed > 0 and (imported.fresh, imported.refused, imported.waiting) == (0, 0, 0)
        assert View(world.stores[CAROL.node]).log_length == before and (await pruned.verify(signatures=True)).verified


async def test_another_checkpoint_of_an_epoch_is_an_alarm_if_it_is_signed(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        await end_epoch(world)
        *_, record = frames_of(export_of(world, ALICE, tmp_path / "good"))
        decision = decode_as(Decision, record)
        other = encode(replace(decode_as(Checkpoint, decision.body), time_ms=5))
        ballot = encode(Ballot(2, 0, 0, body_hash(other)))
        signed = tuple(
            WitnessSignature(index, world.witnesses[index].sign(world.federation.id, ballot)) for index in range(3)
        )
        for commits, why in ((signed, "ask its members"), (decision.commits, "does not verify")):
            forged = encode(Decision(other, 0, commits))
            with pytest.raises(Refused, match=why):
                await taken(alice, made_up(tmp_path / "bad", world.federation.body, forged))


async def test_an_order_that_was_void_and_counts_later_is_exported_once(tmp_path: Path) -> None:
    async with world_of(4) as world:
        await begun(world)
        store = world.stores[ALICE.node]
        first, length = View(store).id_at(0), View(store).log_length
        store.write({b"n" + u64(length): first, b"m:log": u64(length + 1)})  # a place that it stood at before
        assert len(frames_of(export_of(world, ALICE, tmp_path / "ledger"))) == length


async def test_a_file_of_a_log_that_was_set_back_is_noticed(tmp_path: Path) -> None:
    """One witness: everybody's log is a prefix of its own."""
    async with world_of(1) as world:
        alice, _ = await begun(world)
        before = MemoryStore(dict(world.stores[world.witnesses[0].node].iterate()))
        await world.first.grant(BOB.node, 1)
        await alice.sync()
        world.stop(world.witnesses[0])
        other = await world.start(world.witnesses[0], before)
        await other.grant(CAROL.node, 2)
        world.stores[world.witnesses[0].node] = before
        file = export_of(world, world.witnesses[0], tmp_path / "ledger")
        with pytest.raises(Refused, match="set back"):
            await taken(alice, file)


# --- proofs -------------------------------------------------------------------------------------------


def operations(world: World, who: Signer) -> LedgerOperations:
    return LedgerOperations(world.books[who.node], who.node)


@pytest.mark.parametrize("count", [1, 4])
async def test_accounts_orders_channels_and_receipts_are_proven(count: int) -> None:
    async with world_of(count) as world:
        alice, bob = await begun(world)
        channel = await query(alice, bob, ALICE, BOB)
        asked = operations(world, ALICE)

        async def proven(subject: str, **more: bool) -> Json:
            answer = await asked.call("ledger.prove", {"subject": subject, **more})
            return proven_json(check_proof(bytes.fromhex(answer["proof"]), world.federation.id))

        held = await proven(channel)
        assert (held["type"], held["checkpoint"], held["final"]) == ("hold", None, count == 1)
        assert any("counts for good" in line for line in held["does_not_prove"]) == (count > 1)
        with pytest.raises(OperationFailed, match="no checkpoint says yet"):
            await proven("")
        await end_epoch(world)
        state = await proven(channel, state=True)
        assert state["what"] == "channel" and state["amount"] == 2_000_000
        await bob.close_idle(0)
        await alice.sync()
        settled = await proven(channel)
        assert settled["type"] == "close" and settled["hold"]["payer"] == peer_id(ALICE.node)
        kept = next(entry for entry in await alice.history() if entry["kind"] == "query")
        assert (await proven(kept["id"]))["id"] == settled["id"]
        await end_epoch(world)
        assert (await proven(channel))["checkpoint"]["epoch"] == 2
        account = await proven("")
        assert (account["balance"], account["final"]) == (CREDITS - 250, True)
        assert "4.99975 cr to spend" in account["means"][0]
        grant = next(entry for entry in await alice.history() if entry["kind"] == "grant")
        assert "granted" in (await proven(grant["id"]))["means"][0]
        with pytest.raises(OperationFailed, match="nothing in this ledger begins"):
            await proven("abcdef")
        with pytest.raises(OperationFailed, match="was not there then"):
            await proven(peer_id(CAROL.node))


# --- audit --------------------------------------------------------------------------------------------


def found(audit: Json, what: str) -> list[Json]:
    return [finding for finding in audit["findings"] if finding["what"] == what]


async def test_an_audit_of_a_good_federation_finds_nothing_wrong() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await end_epoch(world)
        audit = await alice.audit(signatures=True)
        assert audit["passed"] and audit["sum_micro"] == 0 and audit["supply"]["granted"] == CREDITS
        assert {check["result"] for check in audit["invariants"]} == {"PASS", "not visible here"}
        assert all(finding["level"] == "odd" for finding in audit["findings"])
        assert found(audit, "pair")  # the only two


async def test_credits_that_go_round_newcomers_and_expired_channels_are_odd() -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world)
        carol = await world.start(CAROL)
        await world.first.grant(BOB.node, CREDITS)
        await end_epoch(world)
        await world.first.grant(CAROL.node, CREDITS)
        for asker, worker, who, whom in (
            (alice, bob, ALICE, BOB),
            (bob, carol, BOB, CAROL),
            (carol, alice, CAROL, ALICE),
        ):
            await asker.sync()
            await query(asker, worker, who, whom)
            await worker.close_idle(0)
        await alice.sync()
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1):
            pass
        world.clock.now += 2 * HOURS
        audit = await alice.audit()
        circles = found(audit, "circle")
        assert [len(circle["accounts"]) for circle in circles] == [3] and circles[0]["amount"] == 250
        assert [finding["account"] for finding in found(audit, "newcomer")] == [peer_id(CAROL.node)]
        assert "1 channels with 2 cr are open" in found(audit, "expired_channels")[0]["text"]
        assert audit["passed"]
        await query(bob, alice, BOB, ALICE, 60)
        await alice.close_idle(0)
        audit = await alice.audit()
        assert sorted(len(circle["accounts"]) for circle in found(audit, "circle")) == [2, 3]


async def test_an_issuer_at_its_cap_and_a_silent_witness_are_odd() -> None:
    async with world_of(4) as world:
        world.away.add(world.witnesses[3].node)
        await begun(world)
        for _ in range(20):
            await world.first.grant(BOB.node, 1)
        await world.first.grant(BOB.node, 9 * 10**11)
        audit = await world.first.audit()
        [silent] = found(audit, "silent_witness")
        assert silent["witness"] == peer_id(world.witnesses[3].node)
        assert found(audit, "supply")


async def test_evidence_and_broken_books_are_wrong() -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        store = world.stores[ALICE.node]
        store.write({equivocation_key(BOB.node): u64(0) + b"proof", double_vote_key(2): u64(0) + b"proof"})
        audit = await alice.audit()
        assert found(audit, "equivocation")[0]["account"] == peer_id(BOB.node)
        assert "in epoch 0" in found(audit, "equivocation")[0]["text"]
        assert found(audit, "double_vote")[0]["witness"] == peer_id(world.witnesses[2].node)
        assert audit["passed"]
        rich = View(store).account(BOB.node)
        store.write({account_key(BOB.node): type(rich)(rich.balance + 5, 0, rich.head).encode()})
        audit = await alice.audit()
        assert not audit["passed"] and audit["findings"][0]["level"] == "wrong"
        assert {finding["invariant"] for finding in found(audit, "invariant")} >= {"I1", "I6, I13"}


Spoil = Callable[[Store], dict[bytes, bytes | None]]


def grant_id(store: Store) -> bytes:
    identity = View(store).id_at(0)
    assert identity is not None
    return identity


def channel_of(store: Store) -> tuple[bytes, Channel]:
    """The only one."""
    [(key, value)] = store.iterate(b"c")
    return key[1:], Channel.decode(value)


def without_gap(store: Store) -> dict[bytes, bytes | None]:
    account = View(store).account(ALICE.node)
    return {account_key(ALICE.node): replace(account, next_sequence=3).encode()}


def in_debt(store: Store) -> dict[bytes, bytes | None]:
    return {account_key(BOB.node): replace(View(store).account(BOB.node), balance=-1).encode()}


def other_end(store: Store) -> dict[bytes, bytes | None]:
    identity, channel = channel_of(store)
    return {b"c" + identity: replace(channel, settled_by=b"x" * 32).encode()}


def other_sum(store: Store) -> dict[bytes, bytes | None]:
    identity, channel = channel_of(store)
    return {b"c" + identity: replace(channel, paid=channel.paid + 1).encode()}


def above_hold(store: Store) -> dict[bytes, bytes | None]:
    identity, channel = channel_of(store)
    voucher = Voucher(ChannelId(identity), channel.amount + 1, 0, 0, TRANSCRIPT)
    return {b"v" + identity: encode(Pay(encode(voucher), bytes(64)))}


SPOILT: dict[str, tuple[str, str, Spoil]] = {
    "two orders with one number": ("I3", "has two certificates", lambda s: {order_key(ISSUER.node, 0): b"x" * 32}),
    "another end of a channel": ("I3", "another order settled it", other_end),
    "a gap": ("I4", "is missing", without_gap),
    "another head": ("I4", "is not its order", lambda s: {order_key(ALICE.node, 0): b"x" * 32}),
    "more paid than promised": ("I5", "by a voucher of 250", other_sum),
    "a voucher above its hold": ("I5", "the voucher of channel", above_hold),
    "nonsense in the log": ("I9", "record 0 of the log", lambda s: {b"r" + grant_id(s): u64(0) + b"nonsense"}),
    "debt": ("I2", "has -1 µcr", in_debt),
}


@pytest.mark.parametrize(("invariant", "why", "spoil"), SPOILT.values(), ids=SPOILT.keys())
async def test_each_broken_rule_has_its_name(invariant: str, why: str, spoil: Spoil) -> None:
    async with world_of(1) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        store = world.stores[ALICE.node]
        store.write(spoil(store))
        audit = await alice.audit()
        broken = {check["invariant"]: check["problems"] for check in audit["invariants"] if check["result"] == "FAIL"}
        assert any(why in problem for problem in broken[invariant]), broken
        assert (not audit["passed"] and "I6, I13" in broken) or invariant == "I5"


async def test_checkpoints_that_do_not_follow_each_other_are_found() -> None:
    async with world_of(4) as world:
        alice, _ = await begun(world)
        for _ in range(2):
            await end_epoch(world)
        store = world.stores[ALICE.node]
        identity = store.get(b"k" + u64(2)) or b""
        record = store.get(b"r" + identity) or b""
        decision = decode_as(Decision, record[8:])
        other = replace(decode_as(Checkpoint, decision.body), previous=b"x" * 32)
        store.write({b"r" + identity: record[:8] + encode(replace(decision, body=encode(other)))})
        broken = {check["invariant"] for check in (await alice.audit())["invariants"] if check["result"] == "FAIL"}
        assert {"I12", "I6, I13"} <= broken


# --- long work in pieces ------------------------------------------------------------------------------


async def pieces(asked: LedgerOperations, name: str, **arguments: object) -> list[Json]:
    emitted: list[Json] = []

    async def emit(progress: Json) -> None:
        emitted.append(progress)

    await asked.stream(name, arguments, emit)
    return emitted


async def test_long_work_comes_in_pieces_with_progress(tmp_path: Path) -> None:
    async with world_of(4) as world:
        alice, bob = await begun(world)
        await query(alice, bob, ALICE, BOB)
        asked = operations(world, ALICE)
        *steps, last = await pieces(asked, "ledger.verifying", signatures=True)
        assert last["report"]["verified"] and last["done"] and steps[0]["step"] == "verifying"
        lines = await pieces(asked, "ledger.lines")
        assert [line["part"] for part in lines for line in part["lines"]] == ["granted", "held"]
        file = tmp_path / "ledger"
        file.write_bytes(b"".join(base64.b64decode(p.get("data", "")) for p in await pieces(asked, "ledger.export")))
        assert open_export(file).records == 2
        *_, last = await pieces(asked, "ledger.import", file=str(file))
        assert last["known"] == 2 and last["done"]


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("ledger.import", {"file": "/nowhere/at/all"}, "cannot be read"),
        ("ledger.import", {}, "takes {file}"),
        ("ledger.lines", {"account": "nobody"}, "nobody"),
        ("ledger.lines", {"much": 1}, "takes {account"),
        ("ledger.lines", {"emit": 1}, "takes {account"),
        ("ledger.nothing", {}, "no streamed operation"),
    ],
)
async def test_wrong_arguments_are_named(name: str, arguments: Json, why: str) -> None:
    async with world_of(1) as world:
        await begun(world)
        with pytest.raises(OperationFailed, match=why):
            await pieces(operations(world, ALICE), name, **arguments)
        with pytest.raises(OperationFailed, match="at least 1"):
            await operations(world, ALICE).call("ledger.why", {"limit": 0})


async def test_who_stops_listening_stops_the_work() -> None:
    async with world_of(1) as world:
        await begun(world)
        with trio.CancelScope() as scope:

            async def emit(progress: Json) -> None:
                scope.cancel()
                await trio.sleep_forever()

            await operations(world, ALICE).stream("ledger.export", {}, emit)
        assert scope.cancelled_caught
        assert (await operations(world, ALICE).call("ledger.balance", {}))["balance"] == CREDITS
