"""A witness that lost its ledger, or got an old one back: what it may have signed, it never contradicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.bookkeeper import Bookkeeper, LedgerDamaged
from node.memory_store import MemoryStore
from node.witness_memory import MemoryDamaged, WitnessMemory
from protocol.codec import encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.ledger.checkpoints import is_decision
from protocol.ledger.state import EPOCH, Draft, View, u64
from protocol.messages import (
    Certificate,
    Close,
    Message,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from tests.node.ledgers import PRICES, QUOTE, pay
from tests.node.witnesses import World, begun, world_of
from tests.protocol.ledger_world import ALICE, BOB


def draft_at(epoch: int, store: MemoryStore | None = None) -> Draft:
    draft = Draft(store or MemoryStore())
    draft.update({EPOCH: u64(epoch)})
    return draft


def test_the_first_start_is_no_loss_and_neither_is_the_next(tmp_path: Path) -> None:
    memory, store = WitnessMemory(tmp_path / "witnessed"), MemoryStore()
    draft = draft_at(0, store)
    assert not memory.begin(draft)
    store.write(draft.puts)
    memory.note(0)
    assert not WitnessMemory(tmp_path / "witnessed").begin(draft_at(0, store))


def test_an_empty_ledger_of_a_witness_that_has_signed_abstains_in_those_epochs(tmp_path: Path) -> None:
    memory = WitnessMemory(tmp_path / "witnessed")
    for epoch in (0, 1, 2, 1):
        memory.note(epoch)
    draft = draft_at(0)
    assert memory.begin(draft)
    for epoch, abstains in ((0, True), (2, True), (3, False)):
        draft.update({EPOCH: u64(epoch)})
        assert View(draft).abstaining is abstains


def test_a_ledger_of_an_earlier_epoch_abstains_too(tmp_path: Path) -> None:
    memory, store = WitnessMemory(tmp_path / "witnessed"), MemoryStore()
    draft = draft_at(1, store)
    assert not memory.begin(draft)
    store.write(draft.puts)
    memory.note(2)
    again = draft_at(1, store)
    assert memory.begin(again) and View(again).abstaining


@pytest.mark.parametrize("content", ["", "x", "-1", "1.5", "²"])
def test_a_file_that_is_no_number_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "witnessed"
    path.write_text(content)
    with pytest.raises(MemoryDamaged, match="epoch status"):
        WitnessMemory(path).check()


async def start_with_memory(world: World, index: int, memory: WitnessMemory, store: MemoryStore) -> Bookkeeper:
    return await world.start(world.witnesses[index], store, memory=memory)


async def test_a_witness_does_not_start_on_a_memory_that_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "witnessed"
    path.write_text("?")
    with pytest.RaisesGroup(pytest.RaisesExc(LedgerDamaged, match="epoch status"), flatten_subgroups=True):
        async with world_of(4) as world:
            await start_with_memory(world, 0, WitnessMemory(path), MemoryStore())


async def test_a_witness_whose_ledger_was_deleted_votes_for_nothing_old_and_for_everything_new(tmp_path: Path) -> None:
    async with world_of(4) as world:
        memory = WitnessMemory(tmp_path / "witnessed")
        await start_with_memory(world, 3, memory, MemoryStore())
        alice, bob = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:  # a channel that is open when the ledger is lost
            await pay(lease, bob, ALICE.node, 100, 50)
        lost = world.witnesses[3]
        world.stop(lost)
        again = await start_with_memory(world, 3, memory, MemoryStore())
        assert again.epochs.status().abstaining
        await again.sync()
        await world.first.grant(BOB.node, 1)  # three others are a quorum

        for ledger in world.books.values():
            if ledger.is_witness and ledger is not again:
                await ledger.epochs.accept()
        await world.first.epochs.end()
        await again.sync()
        assert again.epochs.status().epoch == 1 and not again.epochs.status().abstaining

        answers: list[Message] = []

        async def listen(asker: NodeId, request: Message, answer: Message) -> Message:
            answers.extend([answer] if isinstance(request, RequestVote) else [])
            return answer

        world.spoilt[lost.node] = listen
        assert await bob.close_idle(0) == 1  # the old channel: three witnesses settle it, this one says nothing
        assert [answer.code for answer in answers if isinstance(answer, Rejected)] == [ErrorCode.ABSTAINING]

        world.away.add(world.witnesses[2].node)  # now it takes this one's vote: for new orders it has it
        async with alice.lease(BOB.node, *PRICES, QUOTE, 2_900_000) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)
        assert await bob.close_idle(0) == 1
        assert (await bob.balance()).earned == 500


async def test_a_forgotten_vote_for_an_old_close_is_no_news_and_no_reason_to_abstain_again(tmp_path: Path) -> None:
    async with world_of(4) as world:
        memory = WitnessMemory(tmp_path / "witnessed")
        last = await start_with_memory(world, 3, memory, MemoryStore())
        alice, bob = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            voucher = await pay(lease, bob, ALICE.node, 100, 50)
        body = encode(Close(lease.channel, voucher.voucher, voucher.signature))
        request = RequestVote(body, BOB.sign(world.federation.id, body))
        voted = [
            await ledger.answer(BOB.node, request)
            for ledger in (world.first, world.books[world.witnesses[1].node], last)
        ]
        votes = [WitnessSignature(vote.witness, vote.signature) for vote in voted if isinstance(vote, Voted)]
        world.stop(world.witnesses[3])  # before it stored the certificate, and its disk is lost
        again = await start_with_memory(world, 3, memory, MemoryStore())
        for ledger in world.books.values():
            if ledger.is_witness and ledger is not again:
                await ledger.epochs.accept()
        await world.first.epochs.end()
        await again.sync()
        certificate = encode(Certificate(body, request.signature, tuple(sorted(votes, key=lambda vote: vote.witness))))
        assert len(votes) == 3 and 3 in {vote.witness for vote in votes}
        assert isinstance(await again.answer(BOB.node, StoreCertificate(certificate)), Stored)
        assert not again.epochs.status().abstaining
        assert (await again.balance(BOB.node)).earned == 250


async def test_without_the_others_a_close_of_an_old_channel_waits(tmp_path: Path) -> None:
    async with world_of(4) as world:
        memory = WitnessMemory(tmp_path / "witnessed")
        await start_with_memory(world, 3, memory, MemoryStore())
        alice, bob = await begun(world)
        async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob, ALICE.node, 100, 50)
        world.stop(world.witnesses[3])
        again = await start_with_memory(world, 3, memory, MemoryStore())
        for ledger in world.books.values():
            if ledger.is_witness and ledger is not again:
                await ledger.epochs.accept()
        await world.first.epochs.end()
        await again.sync()
        world.away.add(world.witnesses[2].node)
        assert await bob.close_idle(0) == 0
        with pytest.raises(Refused) as caught:
            await bob.close(lease.channel)
        assert caught.value.code is ErrorCode.OVERLOADED
        world.away.clear()
        assert await bob.close_idle(0) == 1


async def paid_with_the_last_witness(world: World) -> MemoryStore:
    """Alice pays Bob with the votes of witnesses 0, 1 and 3. The last one's store as it was before its votes."""
    alice, bob = await begun(world)
    old = world.stores[world.witnesses[3].node]
    assert isinstance(old, MemoryStore)
    before = MemoryStore(dict(old.iterate()))
    world.away.add(world.witnesses[2].node)
    async with alice.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
        await pay(lease, bob, ALICE.node, 100, 50)
    world.away.clear()
    await world.books[world.witnesses[2].node].sync()
    world.stop(world.witnesses[3])
    return before


async def test_a_witness_reads_the_others_before_it_signs_and_finds_what_it_forgot() -> None:
    async with world_of(4) as world:
        before = await paid_with_the_last_witness(world)
        order = next(message for _, _, message in world.asked if isinstance(message, RequestVote))
        again = await world.start(world.witnesses[3], before)
        world.away |= set(world.books) - {again.node}
        answer = await again.answer(ALICE.node, order)
        assert isinstance(answer, Rejected) and answer.code == ErrorCode.OVERLOADED
        world.away.clear()
        assert not again.epochs.status().abstaining
        other = next(message for _, _, message in reversed(world.asked) if isinstance(message, RequestVote))
        answer = await again.answer(ALICE.node, other)
        assert isinstance(answer, Rejected) and answer.code == ErrorCode.ABSTAINING
        assert again.epochs.status().abstaining


async def test_a_vote_that_was_forgotten_and_comes_with_a_checkpoint_is_noticed_too() -> None:
    async with world_of(4) as world:
        before = await paid_with_the_last_witness(world)
        for witness in world.witnesses[:3]:
            await world.books[witness.node].epochs.accept()
        await world.first.epochs.end()
        decision = next(
            message.certificate
            for _, _, message in reversed(world.asked)
            if isinstance(message, StoreCertificate) and is_decision(message.certificate)
        )
        again = await world.start(world.witnesses[3], before)
        await again._checkpoints.adopt(decision, again._replica.source(world.witnesses[0].node))
        assert again.epochs.status().epoch == 1 and not again.epochs.status().abstaining
        alice, bob = (world.books[who.node] for who in (ALICE, BOB))
        await alice.sync()
        await bob.sync()
        answers: list[Message] = []

        async def listen(asker: NodeId, request: Message, answer: Message) -> Message:
            answers.extend([answer] if isinstance(request, RequestVote) else [])
            return answer

        world.spoilt[again.node] = listen
        world.away.add(world.witnesses[2].node)
        assert await bob.close_idle(0) == 0
        assert [answer.code for answer in answers if isinstance(answer, Rejected)] == [ErrorCode.ABSTAINING]


class Killed(Exception):
    """The process ends here."""


class DeadlyMemory(WitnessMemory):
    """Kills its process when a later epoch is noted, before or after."""

    def __init__(self, path: Path, *, before: bool) -> None:
        super().__init__(path)
        self._before = before

    def note(self, epoch: int) -> None:
        if self._before and epoch:
            raise Killed
        super().note(epoch)
        if epoch:
            raise Killed


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("count", [1, 4])
async def test_a_kill_between_an_epoch_and_its_note_is_not_taken_for_a_loss(
    tmp_path: Path, count: int, before: bool
) -> None:
    path, store = tmp_path / "witnessed", MemoryStore()
    with pytest.RaisesGroup(Killed, flatten_subgroups=True):
        async with world_of(count) as world:
            for index in range(1, count):
                await world.start(world.witnesses[index])
            await start_with_memory(world, 0, DeadlyMemory(path, before=before), store)
            for ledger in world.books.values():
                await ledger.epochs.accept()
            await world.first.epochs.end()
    async with world_of(count) as world:
        again = await start_with_memory(world, 0, WitnessMemory(path), store)
        assert not again.epochs.status().abstaining and again.epochs.status().epoch == 1
