"""Peers that break the rules of the query exchange: what it costs them, and that it costs nobody else."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from node.engines.fake import ANSWER_TOKENS, FakeEngine, fake_answer
from node.message_stream import MessageStream
from node.network import Stream, StreamReset
from protocol.codec import encode
from protocol.errors import ErrorCode
from protocol.exchange import Conversation, Role, transcript_hash
from protocol.framing import frame
from protocol.ids import CHAT, NO_HASH, ChannelId, QueryId
from protocol.messages import (
    Accept,
    Begin,
    Cancel,
    ChatRequest,
    Chunk,
    Done,
    Error,
    Message,
    Pay,
    Query,
    Refuse,
    Turn,
)
from protocol.params import QUERY_PROTOCOL
from tests.node.federation import MemoryFederation, memory_federation, question

WINDOW = 8


def a_query(channel: bytes = NO_HASH, features: tuple[int, ...] = (), text: str = "go on") -> Query:
    chat = ChatRequest((Turn("user", text),), 0, 0, 1000, 0, 1000, 2000, 2000, 0, ())
    return Query(QueryId(b"h" * 16), CHAT, "", 10_000, ChannelId(channel), encode(chat), "", 0, features)


@asynccontextmanager
async def dialled(federation: MemoryFederation) -> AsyncIterator[MessageStream]:
    """A query stream from the gateway's network to the only worker, in a hostile hand."""
    stream = await federation.gateway.network.open_stream(federation.workers[0].signer.node, QUERY_PROTOCOL)
    messages = MessageStream(stream)
    yield messages
    await messages.reset()


async def last_word(messages: MessageStream) -> Message | None:
    """The message that ends it; None if the stream was dropped."""
    try:
        with trio.fail_after(5):
            while (message := await messages.receive()) is not None:
                if isinstance(message, Refuse | Error | Done):
                    return message
    except StreamReset:
        return None
    return None


@pytest.mark.parametrize(
    "sent",
    [b"\x00", b"\xff" * 64, frame(b""), frame(b"\x91\xc1"), frame(encode(Cancel())), frame(encode(Chunk(0, 1, "x")))],
)
async def test_garbage_and_wrong_first_moves_cost_the_stream_alone(sent: bytes) -> None:
    async with memory_federation(FakeEngine()) as federation:
        stream = await federation.gateway.network.open_stream(federation.workers[0].signer.node, QUERY_PROTOCOL)
        await stream.send(sent)
        await stream.close()
        assert await last_word(MessageStream(stream)) is None
        assert (await federation.gateway.ask(question(max_tokens=3))).text == fake_answer(3)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (a_query(features=(2,)), ErrorCode.UNSUPPORTED_FEATURE),
        (a_query(channel=b"\x07" * 32), ErrorCode.UNKNOWN_CHANNEL),
        (a_query(), ErrorCode.PAYMENT_REQUIRED),
        (a_query(text=" "), ErrorCode.INVALID_REQUEST),
    ],
)
async def test_queries_without_right_are_refused_by_name(query: Query, code: ErrorCode) -> None:
    async with memory_federation(FakeEngine()) as federation, dialled(federation) as messages:
        await messages.send(query)
        refused = await last_word(messages)
        assert isinstance(refused, Refuse) and refused.code == code


async def test_a_payload_that_is_no_request_is_refused() -> None:
    async with memory_federation(FakeEngine()) as federation, dialled(federation) as messages:
        query = a_query()
        broken = Query(query.query_id, CHAT, "", 1_000, query.channel, b"\x01", "", 0, ())
        await messages.send(broken)
        refused = await last_word(messages)
        assert isinstance(refused, Refuse) and refused.code == ErrorCode.INVALID_REQUEST


async def paid_query(federation: MemoryFederation, signs: int) -> tuple[int, Message | None]:
    """Ask on a real channel, sign for the first `signs` points only. (output tokens received, last word)."""
    gateway, worker = federation.gateway.bookkeeper, federation.workers[0].signer.node
    async with gateway.lease(worker, 1_000, 3_000, NO_HASH, 1_000) as lease, dialled(federation) as messages:
        conversation = Conversation(Role.REQUESTER)
        query = a_query(lease.channel)
        conversation.sent(query)
        await messages.send(query)
        with trio.move_on_after(20):
            while (message := await messages.receive()) is not None:
                conversation.received(message)
                if isinstance(message, Error | Done | Refuse):
                    return conversation.units_out, message
                if isinstance(message, Begin | Chunk) and signs > 0:
                    signs -= 1
                    point = conversation.delivered
                    transcript = transcript_hash(lease.transcript, query.query_id, point)
                    await messages.send(await lease.sign(point.units_in, point.units_out, transcript))
    raise AssertionError("no last word")


@pytest.mark.parametrize(("signs", "most"), [(0, 0), (1, WINDOW)])
async def test_a_requester_that_does_not_sign_gets_no_more_than_the_window(
    signs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.lanes.PaidLane.patience_seconds", 0.2)
    monkeypatch.setattr("node.worker.HEARTBEAT_SECONDS", 0.3)
    async with memory_federation(FakeEngine(), window=WINDOW) as federation:
        received, ending = await paid_query(federation, signs)
        assert received == most
        assert isinstance(ending, Error) and ending.code == ErrorCode.UNPAID


async def test_a_requester_that_always_signs_gets_all() -> None:
    async with memory_federation(FakeEngine(), window=WINDOW) as federation:
        received, ending = await paid_query(federation, 10_000)
        assert received == ANSWER_TOKENS and isinstance(ending, Done)


async def test_a_forged_voucher_ends_the_answer() -> None:
    async with memory_federation(FakeEngine()) as federation:
        gateway, worker = federation.gateway.bookkeeper, federation.workers[0].signer.node
        async with gateway.lease(worker, 1_000, 3_000, NO_HASH, 1_000) as lease, dialled(federation) as messages:
            query = a_query(lease.channel)
            await messages.send(query)
            conversation = Conversation(Role.REQUESTER)
            conversation.sent(query)
            while not conversation.begun:
                message = await messages.receive()
                assert message is not None
                conversation.received(message)
            point = conversation.delivered
            good = await lease.sign(
                point.units_in, point.units_out, transcript_hash(lease.transcript, query.query_id, point)
            )
            await messages.send(Pay(good.voucher, bytes(64)))
            ending = await last_word(messages)
            assert ending is None or (isinstance(ending, Error) and ending.code == ErrorCode.BAD_SIGNATURE)
        await federation.settle()
        assert (await federation.workers[0].bookkeeper.balance()).earned == 0


async def test_one_channel_carries_one_query() -> None:
    async with memory_federation(FakeEngine(seconds_per_token=0.05)) as federation:
        gateway, worker = federation.gateway.bookkeeper, federation.workers[0].signer.node
        async with (
            gateway.lease(worker, 1_000, 3_000, NO_HASH, 1_000) as lease,
            dialled(federation) as first,
            dialled(federation) as second,
        ):
            await first.send(a_query(lease.channel))
            assert isinstance(await first.receive(), Accept)
            await second.send(a_query(lease.channel))
            refused = await last_word(second)
            assert isinstance(refused, Refuse) and refused.code == ErrorCode.INVALID_REQUEST


Script = Callable[[MessageStream, Query], Awaitable[None]]


async def lie_about_the_digest(messages: MessageStream, query: Query) -> None:
    await messages.send(Accept(0, 0))
    await messages.send(Begin(1, "fake", 64))
    await messages.send(Chunk(0, 1, "alpha0 "))
    await messages.send(Done("stop", 1, 1, bytes(32)))


async def inflate_the_prompt(messages: MessageStream, query: Query) -> None:
    await messages.send(Accept(0, 0))
    await messages.send(Begin(16_000_000, "fake", 64))


async def inflate_the_answer(messages: MessageStream, query: Query) -> None:
    await messages.send(Accept(0, 0))
    await messages.send(Begin(1, "fake", 64))
    await messages.send(Chunk(0, 5_000, ""))


async def end_without_a_last_word(messages: MessageStream, query: Query) -> None:
    await messages.send(Accept(0, 0))
    await messages.send(Begin(1, "fake", 64))
    await messages.send(Chunk(0, 1, "alpha0 "))
    await messages.close()


async def talk_out_of_turn(messages: MessageStream, query: Query) -> None:
    await messages.send(Begin(1, "fake", 64))


@pytest.mark.parametrize(
    "script",
    [lie_about_the_digest, inflate_the_prompt, inflate_the_answer, end_without_a_last_word, talk_out_of_turn],
)
async def test_a_lying_worker_is_left_for_an_honest_one(script: Script) -> None:
    async with memory_federation(FakeEngine(), FakeEngine()) as federation:
        liar, honest = federation.workers

        async def lie(stream: Stream) -> None:
            messages = MessageStream(stream)
            query = await messages.receive()
            assert isinstance(query, Query)
            await script(messages, query)
            await trio.sleep(1)

        liar.network.serve(QUERY_PROTOCOL, lie)
        for _ in range(3):
            answered = await federation.gateway.ask(question())
            assert answered.text == fake_answer(ANSWER_TOKENS) and answered.completed.finish == "stop"
            assert answered.workers[-1] == honest.signer.node
        paid_to_liar = (await federation.gateway.bookkeeper.balance(liar.signer.node)).pending
        assert paid_to_liar < 100_000
