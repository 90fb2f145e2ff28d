"""Serve one inbound query.

Rule: one cancel scope holds the query, from the requester's stream to the engine's next token. A reader task always
listens, because only it notices a cancel, a voucher or a vanished requester. Nothing is delivered beyond the lane's
allowance, and the last word (`Refuse`, `Done`, `Error`) is always said in band while the stream lives.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace

import trio

from node.bookkeeper import Bookkeeper, Receipt
from node.config import FreeSection
from node.engines.port import CallPart, Data, EngineError, EngineEvent, Finished, Generation, Piece, Prompted, Step
from node.lanes import FreeLane, Lane, OwnLane, PaidLane
from node.log_context import query_named
from node.measures import Measures
from node.message_stream import MessageStream
from node.network import Stream, StreamReset
from node.nurseries import one_error
from node.picture_headers import PictureRefused, check_pictures
from node.scheduler import Scheduler, Ticket
from node.served_queries import ServedQuery
from node.services import ModelService, Services
from protocol import params
from protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, Refused, RemoteProtocolError
from protocol.exchange import Conversation, Role, State, check_query, is_paid, split_inputs
from protocol.ids import NO_HASH, NodeId
from protocol.messages import (
    Accept,
    Begin,
    Called,
    Cancel,
    ChatRequest,
    Chosen,
    Chunk,
    Done,
    Error,
    ImagineRequest,
    Input,
    LikelyChunk,
    Message,
    Output,
    Pay,
    Progress,
    Query,
    Refuse,
    Settled,
    VisionRequest,
)
from protocol.requests import (
    Request,
    check_request,
    input_bytes,
    most_units_in,
    picture_units,
    read_request,
    request_number,
)
from protocol.wishes import features_needed

log = logging.getLogger("mtor.worker")

HEARTBEAT_SECONDS = params.HEARTBEAT_INTERVAL / 1_000
MIN_CHUNK_SECONDS = 0.015  # tokens that come faster share a frame: frames cost more than bytes
EVENT_BUFFER = 16  # engine events read ahead; the engine stops at its grant, not here
MAX_STREAMS_PER_PEER = 64  # open query streams of one requester; the queue's own limits come after
REFUSED_STREAMS = 2  # times as many are listened to, so that an honest requester hears why; what is beyond is dropped
FULL_RETRY_MS = 1_000
HELD_BYTES = 256 * params.MIB  # of pictures and sounds, over all queries that are here
HELD_BYTES_PER_PEER = HELD_BYTES // 4
INPUT_SECONDS = params.INPUT_TIMEOUT / 1_000


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
        measures: Measures | None = None,
    ) -> None:
        self.local = local
        self.measures = measures or Measures()
        self.services = services
        self.bookkeeper = bookkeeper
        self.free = free
        self.clock = clock
        self._open: dict[NodeId, int] = {}
        self._servings: set[_Serving] = set()
        self._paused: int | None = None  # what refused peers are told: milliseconds until they may ask again
        self._held: Counter[NodeId] = Counter()

    @contextmanager
    def hold(self, peer: NodeId, size: int) -> Iterator[None]:
        """Room in memory for a query's pictures and sounds. Raises `Refused` (OVERLOADED) if there is none."""
        if self._held.total() + size > HELD_BYTES or self._held[peer] + size > HELD_BYTES_PER_PEER:
            raise Refused(ErrorCode.OVERLOADED, "too many pictures and sounds wait here", 2_000)
        self._held[peer] += size
        try:
            yield
        finally:
            self._held[peer] -= size
            if not self._held[peer]:
                del self._held[peer]

    @property
    def streams(self) -> int:
        """Query streams that are open now."""
        return sum(self._open.values())

    @property
    def paused(self) -> bool:
        """True while everything is refused."""
        return self._paused is not None

    def pause(self, retry_after_ms: int) -> None:
        """The owner takes the machine: refuse new queries, and end those that wait or run with PAUSED after what they
        have delivered, so that whoever asks goes on with another peer where this one stopped. Peers are not told why:
        what the owner plays is nobody's business."""
        self._paused = retry_after_ms
        for serving in tuple(self._servings):
            serving.end_paused()

    def resume(self) -> None:
        """Serve again."""
        self._paused = None

    @contextmanager
    def working(self, serving: _Serving) -> Iterator[None]:
        """A query that `pause` may end. Raises `Refused`: PAUSED if it comes too late, OVERLOADED if its requester has
        too many here."""
        self.check_paused()
        if self._open.get(serving.peer, 0) > MAX_STREAMS_PER_PEER:
            message = f"{MAX_STREAMS_PER_PEER} queries of yours are here already"
            raise Refused(ErrorCode.OVERLOADED, message, FULL_RETRY_MS)
        self._servings.add(serving)
        try:
            yield
        finally:
            self._servings.discard(serving)

    def check_paused(self) -> None:
        """Raises `Refused` (PAUSED) while the owner has the machine."""
        if self._paused is not None:
            raise Refused(ErrorCode.PAUSED, "the owner of this node needs the machine", self._paused)

    async def serve(self, stream: Stream) -> None:
        """The stream handler of the query protocol. Never raises for what the peer did."""
        messages = MessageStream(stream)
        count = self._open.get(stream.peer, 0)
        if count >= REFUSED_STREAMS * MAX_STREAMS_PER_PEER:
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
        self._inputs: bytearray | None = None  # what came of the request's media; None until there is room for it
        self._place: tuple[Scheduler, Ticket] | None = None
        self._scope = trio.CancelScope()  # the work; the last word is said outside it
        self._paid = trio.Event()  # replaced at each voucher
        self._paused = False  # the worker's pause ended it
        self._gone = False  # the requester's stream ended: nobody is there to hear a last word
        self._cancelled = False
        self._stalled_since: float | None = None
        self._model = ""
        self._served: ServedQuery | None = None  # what is told of it, once it is known
        self._outcome = "worker_lost"  # of the receipt, until a last word was said
        self._reason = ""  # of a failure
        self._service: ModelService | None = None

    @property
    def peer(self) -> NodeId:
        """Who asks."""
        return self._messages.peer

    async def run(self, first: Message) -> None:
        """The whole conversation after its first message."""
        try:
            self._conversation.received(first)
        except RemoteProtocolError as error:
            log.info("first message: %s", error)
            await self._messages.reset()
            return
        assert isinstance(first, Query)
        self._served = ServedQuery(self._worker.measures, self._messages.peer, first)
        with query_named(first.query_id.hex()), self._worker.measures.running(self._served.running):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                await self._work(first)
                nursery.cancel_scope.cancel()
            await (self._messages.reset() if self._gone else self._messages.close())

    def end_paused(self) -> None:
        """Stop here; the last word says why."""
        self._paused = True
        self._scope.cancel()

    # --- the requester's side of the stream ----------------------------------------------------------

    async def _listen(self) -> None:
        """Take vouchers and cancels until the stream ends; its end cancels the work."""
        try:
            while (message := await self._messages.receive()) is not None:
                if self._conversation.state is State.ENDED:
                    return  # it crossed our refusal
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
        if isinstance(message, Input) and self._inputs is not None:  # otherwise its refusal is on the way
            self._inputs += message.data
            if self._place is not None and self._conversation.inputs_whole:
                scheduler, ticket = self._place
                scheduler.make_ready(ticket)
        if isinstance(message, Pay):
            await self._lane.take(message)
            self._note_voucher()
            await self._grant()
            paid, self._paid = self._paid, trio.Event()
            paid.set()

    async def _cancel(self) -> None:
        self._cancelled = True
        if self._place is not None:
            self._place[1].cut_short = True
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
                with (
                    trio.move_on_after(query.time_left_ms / 1_000) as deadline,
                    self._worker.working(self),
                    self._scope,
                    one_error(),
                ):
                    await self._serve(query, channel)
                if deadline.cancelled_caught:
                    raise Refused(ErrorCode.DEADLINE_EXCEEDED, "the query's time is used up")
                if self._cancelled and self._conversation.state is State.CANCELLING:
                    await self._say_done("cancelled")
                if self._paused:
                    self._worker.check_paused()
            except (Refused, EngineError) as error:
                await self._last_word(error.code, error.message, getattr(error, "retry_after_ms", 0))
            except LocalProtocolError as error:  # an engine that counts what cannot be, say
                log.error("%s answers against the rules: %s", self._model, error)
                await self._last_word(ErrorCode.ENGINE_FAILED, "the engine's answer broke a rule")
            except StreamReset:
                self._gone = True
            await self._finish(query)

    async def _serve(self, query: Query, channel: AsyncExitStack) -> None:
        check_query(query)
        request = read_request(query)
        check_request(request, query.prefix)
        with self._worker.hold(self._messages.peer, input_bytes(request)):
            self._inputs = bytearray()
            service = self._worker.services.choose(
                query.realm, query.model, request_number(request), features_needed(request)
            )
            self._service, self._model = service, service.engine.info.name
            _check_size(request, service.max_tokens)
            self._lane = await self._choose_lane(query, service, channel)
            left, whole = query.time_left_ms, self._conversation.inputs_whole
            place = service.scheduler.place(self._messages.peer, paid=self._lane.paid, time_left_ms=left, ready=whole)
            async with place as ticket:
                self._place = (service.scheduler, ticket)
                self._told.taken(self._model, "paid" if is_paid(query) else "unpaid", ticket.position)
                await self._wait_turn(service, ticket)
                await self._answer(service, query, request, split_inputs(request, bytes(self._inputs)))

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
        began = time.monotonic()
        while True:
            wait = service.scheduler.wait_estimate_ms(ticket.position)
            await self._send(Accept(min(ticket.position, 65_535), wait))
            if ticket.admitted:
                self._told.admitted(time.monotonic() - began)
                return
            if not ticket.ready and time.monotonic() - began > INPUT_SECONDS:
                raise Refused(ErrorCode.INVALID_REQUEST, f"the picture or sound did not come in {INPUT_SECONDS:.0f} s")
            with trio.move_on_after(HEARTBEAT_SECONDS):
                await service.scheduler.wait_moved(ticket)

    async def _answer(self, service: ModelService, query: Query, request: Request, inputs: Sequence[bytes]) -> None:
        if isinstance(request, VisionRequest):
            _check_pictures(inputs)
        if isinstance(request, ChatRequest):
            wanted = min(request.max_tokens or service.max_tokens, service.max_tokens) - query.prefix_tokens
            if wanted <= 0:
                await self._send(Begin(0, self._model, service.section.window))
                await self._say_done("length")
                return
            request = replace(request, max_tokens=wanted)
        async with (
            service.engine.generate(request, query.prefix, inputs) as generation,
            trio.open_nursery() as nursery,
        ):
            self._generation = generation
            self._told.generating()
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
            for part in _joined(batch):
                if isinstance(part, EngineError):
                    raise part
                if isinstance(part, Prompted):
                    await self._begin(service, part.units_in)
                if isinstance(part, Finished):
                    self._told.generated()
                    await self._say_done(part.finish)
                    return
                if isinstance(part, Piece | CallPart | Data):
                    self._told.part()
                    if self._too_long(service, part):
                        await self._say_done("length")
                        return
                    await self._send_part(part)
                if isinstance(part, Step):
                    await self._send(Progress(part.done, part.total, part.preview))
            if not batch:
                await self._heartbeat()
            if not all(isinstance(event, Prompted) for event in batch):
                await trio.sleep(MIN_CHUNK_SECONDS)

    async def _begin(self, service: ModelService, units_in: int) -> None:
        query, request = self._conversation.query, self._conversation.request
        assert query is not None and request is not None
        units_in = min(units_in, most_units_in(query, request))  # very sparse sound counts as less
        await self._lane.begin(units_in)
        await self._deliver(Begin(units_in, self._model, service.section.window))
        await self._grant()
        self._note_stall()

    async def _send_part(self, part: Piece | CallPart | Data) -> None:
        index = self._conversation.chunks
        if isinstance(part, Piece):
            chunk = Chunk(index, part.units_out, part.text)
            if part.tokens:
                chunk = LikelyChunk(index, part.units_out, part.text, part.tokens)
            await self._deliver(chunk)
        elif isinstance(part, CallPart):
            await self._deliver(Called(index, part.units_out, part.name, part.arguments))
        else:
            await self._deliver(Output(index, part.units_out, part.media_type, part.data))
        self._note_stall()

    def _too_long(self, service: ModelService, part: Piece | CallPart | Data) -> bool:
        """True if the answer ends before this part: nothing beyond what was offered is covered. A conversation's engine
        was told its limit. Raises `Refused` (INVALID_REQUEST) for a picture, which is whole or nothing."""
        request = self._conversation.request
        if isinstance(request, ChatRequest):
            return False
        data_bytes = self._conversation.delivery.data_bytes + (len(part.data) if isinstance(part, Data) else 0)
        most = service.max_tokens
        too_long = part.units_out > most or data_bytes > params.MAX_OUTPUT_BYTES
        if too_long and isinstance(request, ImagineRequest):
            reason = f"the picture has {part.units_out} units, this worker makes at most {most}; ask for a smaller one"
            raise Refused(ErrorCode.INVALID_REQUEST, reason)
        return too_long

    async def _heartbeat(self) -> None:
        """Say that the query lives; give up on one that waits for a voucher for too long."""
        if self._conversation.begun:
            await self._send(Chunk(self._conversation.chunks, self._conversation.units_out, ""))
        else:
            await self._send(Accept(0, 0))
        stalled = self._stalled_since
        if stalled is not None and time.monotonic() - stalled > self._lane.patience_seconds:
            raise self._lane.exhausted()

    def _note_voucher(self) -> None:
        if self._stalled_since is not None:
            self._told.stood(time.monotonic() - self._stalled_since)
        self._stalled_since = None

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
        self._outcome, self._reason = code.name.lower(), reason
        if refuse:
            self._told.refused(code, reason, retry_after_ms)
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
        delivered = self._conversation.delivered
        if self._service is not None:
            self._service.tally.count(self._outcome, self._reason, delivered.units_in, delivered.units_out)
        try:
            await self._lane.end(delivered)
            await self._keep_receipt(query)
        except Refused as error:
            log.warning("query %s is not in the books: %s", query.query_id.hex(), error)
        proof = self._lane.proof()
        self._told.ended(self._outcome, self._conversation.delivered, proof.amount if proof else 0)

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

    @property
    def _told(self) -> ServedQuery:
        assert self._served is not None
        return self._served

    async def _deliver(self, message: Begin | Chunk | LikelyChunk | Called | Output) -> None:
        """Send what is to be paid. It is noted first: its voucher can be here before the send returns."""
        self._conversation.sent(message)
        self._lane.delivered(self._conversation.delivered)
        await self._messages.send(message)

    async def _send(self, message: Message) -> None:
        self._conversation.sent(message)
        await self._messages.send(message)


def _check_prices(service: ModelService, held: Prices) -> None:
    if held.price_in < service.section.price_in or held.price_out < service.section.price_out:
        raise Refused(ErrorCode.PRICE_CHANGED, "the hold's prices are below the offer in force")


def _check_size(request: Request, most: int) -> None:
    """A picture's size is known before it is made. Raises `Refused` (INVALID_REQUEST)."""
    if isinstance(request, ImagineRequest):
        units = picture_units(request.width, request.height, request.steps)
        if units > most:
            size = f"{request.width} x {request.height} pixels in {request.steps} steps"
            reason = f"{size} are {units} units, this worker makes at most {most}; ask for a smaller one or fewer steps"
            raise Refused(ErrorCode.INVALID_REQUEST, reason)


def _check_pictures(pictures: Sequence[bytes]) -> None:
    """Raises `Refused` (INVALID_REQUEST)."""
    try:
        check_pictures(pictures)
    except PictureRefused as error:
        raise Refused(ErrorCode.INVALID_REQUEST, str(error)) from None


def _joined(batch: Sequence[EngineEvent | EngineError]) -> Iterator[EngineEvent | EngineError]:
    """The events, pieces that follow each other as one, and so are the parts of a call."""
    held: list[Piece | CallPart] = []
    for event in batch:
        if held and not _goes_on(held, event):
            yield _as_one(held)
            held = []
        if isinstance(event, Piece | CallPart):
            held.append(event)
        else:
            yield event
    if held:
        yield _as_one(held)


def _goes_on(held: Sequence[Piece | CallPart], event: EngineEvent | EngineError) -> bool:
    """Does the event fit into one message with those before it?"""
    if isinstance(event, CallPart):
        return isinstance(held[-1], CallPart) and not event.name
    if not isinstance(event, Piece) or not isinstance(held[-1], Piece):
        return False
    return sum(len(piece.tokens) for piece in (*held, event) if isinstance(piece, Piece)) <= params.MAX_CHUNK_TOKENS


def _as_one(held: Sequence[Piece | CallPart]) -> Piece | CallPart:
    last, calls = held[-1], [part for part in held if isinstance(part, CallPart)]
    if calls:
        return CallPart(calls[0].name, "".join(part.arguments for part in calls), last.units_out)
    pieces = [piece for piece in held if isinstance(piece, Piece)]
    tokens: list[Chosen] = [token for piece in pieces for token in piece.tokens]
    return Piece("".join(piece.text for piece in pieces), last.units_out, tuple(tokens))


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
