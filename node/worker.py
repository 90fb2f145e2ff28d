"""Serve one inbound query.

Rule: one cancel scope holds the query, from the requester's stream to the engine's next token. A reader task always
listens, because only it notices a cancel, a voucher or a vanished requester. Nothing is delivered beyond the lane's
allowance, and the last word (`Refuse`, `Done`, `Error`) is always said in band while the stream lives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

import trio

from node.bookkeeper import Bookkeeper, Receipt
from node.config import FreeSection
from node.engines.port import EngineError, EngineEvent, Finished, Generation, Piece, Prompted
from node.lanes import FreeLane, Lane, OwnLane, PaidLane
from node.message_stream import MessageStream
from node.network import Stream, StreamReset
from node.nurseries import one_error
from node.scheduler import Ticket
from node.services import ModelService, Services
from protocol import params
from protocol.codec import decode_as
from protocol.errors import ErrorCode, ProtocolError, Refused, RemoteProtocolError
from protocol.exchange import Conversation, Role, State, check_chat, check_query, is_paid
from protocol.ids import NO_HASH, NodeId
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
    Settled,
)

log = logging.getLogger("mtor.worker")

HEARTBEAT_SECONDS = params.HEARTBEAT_INTERVAL / 1_000
MIN_CHUNK_SECONDS = 0.015  # tokens that come faster share a frame: frames cost more than bytes
EVENT_BUFFER = 16  # engine events read ahead; the engine stops at its grant, not here
MAX_STREAMS_PER_PEER = 64  # open query streams of one requester; the queue's own limits come after


@dataclass(frozen=True, slots=True)
class Prices:
    """The smallest prices at which a model is served."""

    price_in: int
    price_out: int


class Worker:
    """Answers the query protocol. Holds no query's state itself: each stream has a `_Serving` of its own."""

    def __init__(
        self,
        local: NodeId,
        services: Services,
        bookkeeper: Bookkeeper,
        free: FreeSection,
        clock: Callable[[], int],
    ) -> None:
        self.local = local
        self.services = services
        self.bookkeeper = bookkeeper
        self.free = free
        self.clock = clock
        self._open: dict[NodeId, int] = {}

    async def serve(self, stream: Stream) -> None:
        """The stream handler of the query protocol. Never raises for what the peer did."""
        messages = MessageStream(stream)
        count = self._open.get(stream.peer, 0)
        if count >= MAX_STREAMS_PER_PEER:
            await messages.reset()
            return
        self._open[stream.peer] = count + 1
        try:
            await self._converse(messages)
        finally:
            self._open[stream.peer] -= 1
            if not self._open[stream.peer]:
                del self._open[stream.peer]

    async def _converse(self, messages: MessageStream) -> None:
        query: Message | None = None
        try:
            with trio.move_on_after(params.FIRST_REPLY_TIMEOUT / 1_000):
                query = await messages.receive()
            if query is not None:
                await _Serving(self, messages).run(query)
                return
        except StreamReset:
            log.debug("the requester went away")
        except ProtocolError as error:
            log.info("query ended: %s", error)
        await messages.reset()


class _Serving:
    """One query."""

    def __init__(self, worker: Worker, messages: MessageStream) -> None:
        self._worker = worker
        self._messages = messages
        self._conversation = Conversation(Role.WORKER)
        self._lane: Lane = OwnLane()
        self._generation: Generation | None = None
        self._scope = trio.CancelScope()  # the work; the last word is said outside it
        self._paid = trio.Event()  # replaced at each voucher
        self._gone = False  # the requester's stream ended: nobody is there to hear a last word
        self._cancelled = False
        self._stalled_since: float | None = None
        self._model = ""
        self._outcome = "worker_lost"  # of the receipt, until a last word was said

    async def run(self, first: Message) -> None:
        """The whole conversation after its first message."""
        try:
            self._conversation.received(first)
        except RemoteProtocolError as error:
            log.info("first message: %s", error)
            await self._messages.reset()
            return
        assert isinstance(first, Query)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._work(first)
            nursery.cancel_scope.cancel()
        await (self._messages.reset() if self._gone else self._messages.close())

    # --- the requester's side of the stream ----------------------------------------------------------

    async def _listen(self) -> None:
        """Take vouchers and cancels until the stream ends; its end cancels the work."""
        try:
            while (message := await self._messages.receive()) is not None:
                self._conversation.received(message)
                await self._take(message)
        except (StreamReset, RemoteProtocolError) as error:
            log.debug("stream ended: %s", error)
        except Refused as error:
            self._scope.cancel()
            await self._last_word(error.code, error.message)
        self._gone = True
        self._paid.set()
        self._scope.cancel()

    async def _take(self, message: Message) -> None:
        if isinstance(message, Cancel):
            await self._cancel()
        if isinstance(message, Pay):
            await self._lane.take(message)
            self._stalled_since = None
            await self._grant()
            paid, self._paid = self._paid, trio.Event()
            paid.set()

    async def _cancel(self) -> None:
        self._cancelled = True
        if self._generation is not None:
            await self._generation.cancel()
        elif self._conversation.state is State.CANCELLING:
            self._scope.cancel()  # still in the queue

    async def _grant(self) -> None:
        if self._generation is not None:
            await self._generation.grant(self._lane.allowance())

    # --- the work ------------------------------------------------------------------------------------

    async def _work(self, query: Query) -> None:
        """Admission, answer, last word, settlement."""
        async with AsyncExitStack() as channel:
            try:
                with trio.move_on_after(query.time_left_ms / 1_000) as deadline, self._scope, one_error():
                    await self._serve(query, channel)
                if deadline.cancelled_caught:
                    raise Refused(ErrorCode.DEADLINE_EXCEEDED, "the query's time is used up")
                if self._cancelled and self._conversation.state is State.CANCELLING:
                    await self._say_done("cancelled")
            except (Refused, EngineError) as error:
                await self._last_word(error.code, error.message, getattr(error, "retry_after_ms", 0))
            except StreamReset:
                self._gone = True
            await self._finish(query)

    async def _serve(self, query: Query, channel: AsyncExitStack) -> None:
        request = self._check(query)
        service = self._worker.services.choose(query.realm, query.model)
        self._model = service.engine.info.name
        self._lane = await self._choose_lane(query, service, channel)
        async with service.scheduler.place(self._messages.peer, paid=self._lane.paid) as ticket:
            await self._wait_turn(service, ticket)
            await self._answer(service, query, request)

    def _check(self, query: Query) -> ChatRequest:
        check_query(query)
        try:
            request = decode_as(ChatRequest, query.payload)
        except ProtocolError as error:
            raise Refused(ErrorCode.INVALID_REQUEST, f"the payload is no ChatRequest: {error}") from None
        check_chat(request)
        return request

    async def _choose_lane(self, query: Query, service: ModelService, channel_use: AsyncExitStack) -> Lane:
        peer, worker = self._messages.peer, self._worker
        if peer == worker.local and not is_paid(query):
            return OwnLane()
        if is_paid(query):
            await channel_use.enter_async_context(worker.bookkeeper.serving(query.channel))
            channel = await worker.bookkeeper.cover(query.channel, peer)
            _check_prices(service, Prices(channel.price_in, channel.price_out))
            return PaidLane(worker.bookkeeper, channel, query.query_id, service.section.window)
        left = await worker.bookkeeper.free_left(peer, worker.free.tokens_per_day, worker.free.total_tokens_per_day)
        if left <= 0:
            raise Refused(ErrorCode.PAYMENT_REQUIRED, "no cover, and no free quota here today")
        return FreeLane(worker.bookkeeper, worker.free, peer)

    async def _wait_turn(self, service: ModelService, ticket: Ticket) -> None:
        """Say the place in the queue at once, when it changes, and as a heartbeat."""
        while True:
            wait = service.scheduler.wait_estimate_ms(ticket.position)
            await self._send(Accept(min(ticket.position, 65_535), wait))
            if ticket.admitted:
                return
            with trio.move_on_after(HEARTBEAT_SECONDS):
                await service.scheduler.wait_moved(ticket)

    async def _answer(self, service: ModelService, query: Query, request: ChatRequest) -> None:
        wanted = min(request.max_tokens or service.max_tokens, service.max_tokens) - query.prefix_tokens
        if wanted <= 0:
            await self._send(Begin(0, self._model, service.section.window))
            await self._say_done("length")
            return
        bounded = replace(request, max_tokens=wanted)
        async with service.engine.generate(bounded, query.prefix) as generation, trio.open_nursery() as nursery:
            self._generation = generation
            if self._cancelled:
                await generation.cancel()
            send, receive = trio.open_memory_channel[EngineEvent | EngineError](EVENT_BUFFER)
            nursery.start_soon(_pump, generation, send)
            await self._relay(service, receive)
            nursery.cancel_scope.cancel()

    async def _relay(self, service: ModelService, events: trio.MemoryReceiveChannel[EngineEvent | EngineError]) -> None:
        """Engine events to frames: several tokens a frame when they come fast, a heartbeat when none come."""
        while True:
            batch = await _next_batch(events, HEARTBEAT_SECONDS)
            await self._send_pieces([event for event in batch if isinstance(event, Piece)])
            for event in batch:
                if isinstance(event, EngineError):
                    raise event
                if isinstance(event, Prompted):
                    await self._begin(service, event.units_in)
                if isinstance(event, Finished):
                    await self._say_done(event.finish)
                    return
            if not batch:
                await self._heartbeat()
            await trio.sleep(MIN_CHUNK_SECONDS)

    async def _begin(self, service: ModelService, units_in: int) -> None:
        await self._lane.begin(units_in)
        await self._send(Begin(units_in, self._model, service.section.window))
        self._lane.delivered(self._conversation.delivered)
        await self._grant()
        self._note_stall()

    async def _send_pieces(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        text = "".join(piece.text for piece in pieces)
        await self._send(Chunk(self._conversation.chunks, pieces[-1].units_out, text))
        self._lane.delivered(self._conversation.delivered)
        self._note_stall()

    async def _heartbeat(self) -> None:
        """Say that the query lives; give up on one that waits for a voucher for too long."""
        if self._conversation.begun:
            await self._send(Chunk(self._conversation.chunks, self._conversation.units_out, ""))
        else:
            await self._send(Accept(0, 0))
        stalled = self._stalled_since
        if stalled is not None and time.monotonic() - stalled > self._lane.patience_seconds:
            raise self._lane.exhausted()

    def _note_stall(self) -> None:
        if self._conversation.units_out >= self._lane.allowance():
            self._stalled_since = self._stalled_since or time.monotonic()

    # --- the end -------------------------------------------------------------------------------------

    async def _say_done(self, finish: str) -> None:
        delivered = self._conversation.delivered
        self._outcome = finish
        await self._send(Done(finish, delivered.units_in, delivered.units_out, delivered.digest))

    async def _last_word(self, code: ErrorCode, reason: str, retry_after_ms: int = 0) -> None:
        """A Refuse before the admission, an Error after it; nothing if the last word was said already."""
        reason = reason.encode()[: params.MAX_REASON_BYTES].decode(errors="ignore")
        state = self._conversation.state
        refuse = state is State.ASKED or (state is State.CANCELLING and not self._conversation.begun)
        if self._gone or state in (State.SETTLING, State.ENDED):
            return
        self._outcome = code.name.lower()
        try:
            last = Refuse if refuse else Error
            await self._send(last(int(code), reason, retry_after_ms))
        except StreamReset:
            self._gone = True

    async def _finish(self, query: Query) -> None:
        """Wait for the final voucher, keep the receipt, confirm. Charged even if the requester is gone."""
        delivered = self._conversation.delivered
        try:
            with trio.move_on_after(params.VOUCHER_TIMEOUT / 1_000):
                while not (self._gone or self._lane.settled(delivered)):
                    await self._paid.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._close_books(query)
        if self._conversation.state is State.SETTLING and not self._gone:
            try:
                await self._send(Settled(self._lane.cumulative()))
            except StreamReset:
                self._gone = True

    async def _close_books(self, query: Query) -> None:
        """Quota and receipt. The voucher is on the disk already, so a ledger that closes first loses a line only."""
        try:
            await self._lane.end(self._conversation.delivered)
            await self._keep_receipt(query)
        except Refused as error:
            log.warning("query %s is not in the books: %s", query.query_id.hex(), error)

    async def _keep_receipt(self, query: Query) -> None:
        """What this node was paid for this query; nothing is kept of unpaid ones."""
        proof = self._lane.proof()
        if proof is None:
            return
        receipt = Receipt(
            query_id=query.query_id,
            role="worker",
            counterparty=self._messages.peer,
            realm=query.realm,
            model=self._model,
            units_in=proof.covered.units_in,
            units_out=proof.covered.units_out,
            amount=proof.amount,
            price_in=proof.price_in,
            price_out=proof.price_out,
            quote=NO_HASH,
            channel=query.channel,
            pay=proof.pay,
            transcript=proof.transcript,
            digest=proof.covered.digest,
            outcome=self._outcome,
            time_ms=self._worker.clock(),
        )
        await self._worker.bookkeeper.record_receipt(receipt)

    async def _send(self, message: Message) -> None:
        self._conversation.sent(message)
        await self._messages.send(message)


def _check_prices(service: ModelService, held: Prices) -> None:
    if held.price_in < service.section.price_in or held.price_out < service.section.price_out:
        raise Refused(ErrorCode.PRICE_CHANGED, "the hold's prices are below the offer in force")


async def _pump(generation: Generation, send: trio.MemorySendChannel[EngineEvent | EngineError]) -> None:
    """Engine events into a channel; an engine's error is the last of them."""
    async with send, aclosing(generation.events()) as events:
        try:
            async for event in events:
                await send.send(event)
        except EngineError as error:
            await send.send(error)


async def _next_batch(
    events: trio.MemoryReceiveChannel[EngineEvent | EngineError], patience: float
) -> list[EngineEvent | EngineError]:
    """The next event and all that wait behind it; empty after `patience` seconds without one."""
    batch: list[EngineEvent | EngineError] = []
    with trio.move_on_after(patience):
        batch.append(await events.receive())
    while batch:
        try:
            batch.append(events.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return batch
