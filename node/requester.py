"""Drive one outbound query with one worker.

Rule: text is handed on as it comes, a voucher is signed for what was received and for nothing else, and the outcome
says exactly what was delivered, so that another worker can continue from there. Leaving early (the client went
away, the deadline passed) is said to the worker, and what it delivered is paid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from node.answers import Question, WorkerShare
from node.bookkeeper import Bookkeeper, ChannelLease, Receipt
from node.message_stream import MessageStream
from node.network import NetworkError, Stream, StreamReset
from node.nurseries import one_error, shielded
from protocol import params
from protocol.codec import encode
from protocol.errors import ErrorCode, ProtocolError, Refused, RemoteProtocolError
from protocol.exchange import Conversation, Delivered, Role, State, transcript_hash
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.messages import (
    Accept,
    Begin,
    Called,
    Cancel,
    Chosen,
    Chunk,
    Done,
    Error,
    Input,
    LikelyChunk,
    Message,
    ModelOffer,
    Output,
    Pay,
    Progress,
    Query,
    Refuse,
    Settled,
)
from protocol.pricing import channel_cost
from protocol.requests import most_units_in, most_units_out
from protocol.routing import Candidate

log = logging.getLogger("mtor.requester")

OPEN_SECONDS = 5.0  # dial and open a stream
FIRST_REPLY_SECONDS = params.FIRST_REPLY_TIMEOUT / 1_000
SILENCE_SECONDS = params.SILENCE_TIMEOUT / 1_000
SETTLE_SECONDS = 5.0  # wait for Settled after the last voucher
LEAVE_SECONDS = 2.0  # to say goodbye and pay when the asker has gone

SHARE_UNPAID = 4  # of the window: a voucher a quarter of it keeps a fast worker running, and costs both sides a write

TAKES_INPUTS = (State.ASKED, State.ACCEPTED)
STALE_CHANNEL = (ErrorCode.CHANNEL_CLOSED, ErrorCode.UNKNOWN_CHANNEL, ErrorCode.EXPIRED)

OpenStream = Callable[[NodeId], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears what a worker says while it answers."""

    text: Callable[[str, Sequence[Chosen]], Awaitable[None]]  # with its tokens, where they were asked for
    called: Callable[[str, str], None]  # (name, arguments); without a name: more of the last call
    data: Callable[[str, bytes], Awaitable[None]]  # (media type, bytes)
    progress: Callable[[int, int, bytes], Awaitable[None]]  # (done, total, preview)
    queued: Callable[[int, int], Awaitable[None]]  # (position, expected wait in ms)


@dataclass(frozen=True, slots=True)
class Part:
    """What was delivered before this attempt."""

    text: str = ""
    units_out: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended. `finish` is "" unless the answer is complete; then `code` is None."""

    finish: str
    code: ErrorCode | None
    reason: str
    retry_after_ms: int
    refused: bool  # an honest "not now", which is no failure of the worker
    units_in: int
    units_out: int
    ttft_ms: float  # 0 if no text came
    seconds: float  # from the first text to the last
    share: WorkerShare | None  # None if nothing was delivered or paid
    hop_seconds: float = 0.0  # to open the stream and hear the worker's first word; 0 if it said none
    queue_seconds: float | None = None  # from that word to the one that it begins; None if it never said so
    says_worker: bool = False  # `reason` is the worker's, who may repeat there what was asked


class Requester:
    """Asks workers. Holds no query's state itself: each attempt has an `_Asking` of its own."""

    def __init__(
        self,
        local: NodeId,
        open_stream: OpenStream,
        bookkeeper: Bookkeeper,
        clock: Callable[[], int],
    ) -> None:
        self.local = local
        self.open_stream = open_stream
        self.bookkeeper = bookkeeper
        self.clock = clock

    async def ask(
        self, candidate: Candidate, question: Question, part: Part, time_left_ms: int, listener: Listener
    ) -> Outcome:
        """Ask one worker to answer, or to continue `part`. Never raises for what the worker did."""
        asking = _Asking(self, candidate, question, part, listener)
        outcome = await asking.run(time_left_ms)
        if asking.channel_was_stale:  # the worker settled it in the meantime; a new channel will do
            asking = _Asking(self, candidate, question, part, listener)
            outcome = await asking.run(time_left_ms)
        return outcome


@dataclass(frozen=True, slots=True)
class _Paid:
    """A voucher and the point of the answer that it covers."""

    point: Delivered
    pay: Pay


class _Asking:
    """One attempt."""

    def __init__(
        self,
        requester: Requester,
        candidate: Candidate,
        question: Question,
        part: Part,
        listener: Listener,
    ) -> None:
        self._requester = requester
        self._candidate = candidate
        self._question = question
        self._part = part
        self._listener = listener
        self._conversation = Conversation(Role.REQUESTER)
        self._lease: ChannelLease | None = None
        self._messages: MessageStream | None = None
        self._paid: _Paid | None = None  # the last voucher and what it covers
        self._share: WorkerShare | None = None  # once it is written down
        self._signing = trio.Lock()
        self._window = 1
        self.channel_was_stale = False
        self._lost = False  # there is nobody to say goodbye to
        self._unpaid = trio.Event()  # set when there is more to sign for; replaced when taken
        self._dialled_at = 0.0
        self._heard_at = 0.0  # the worker's first word
        self._begun_at = 0.0  # its word that it begins
        self._says_worker = False  # how it ended is the worker's word
        self._began = time.monotonic()
        self._first_part: float | None = None
        self._last_part = 0.0

    async def run(self, time_left_ms: int) -> Outcome:
        """The whole attempt."""
        async with AsyncExitStack() as stack:
            try:
                with one_error():
                    ending = await self._converse(time_left_ms, stack)
                    return await self._ended(ending)
            except Refused as error:
                if self._lease is not None and error.code in STALE_CHANNEL:
                    self._lease.spoil()
                    self.channel_was_stale = not self._conversation.begun
                return await self._outcome(error.code, error.message, error.retry_after_ms, refused=True)
            except NetworkError as error:
                self._lost = True
                await self._sign_for_rest()
                return await self._outcome(ErrorCode.WORKER_LOST, f"the worker is gone: {error}")
            except RemoteProtocolError as error:
                self._lost = True
                return await self._outcome(ErrorCode.MALFORMED, f"the worker broke a rule: {error}")
            finally:
                await self._leave()

    # --- opening -------------------------------------------------------------------------------------

    async def _converse(self, time_left_ms: int, stack: AsyncExitStack) -> Message:
        """Open, ask, and follow the answer to its last word, which is returned."""
        began = time.monotonic()
        query = self._query(NO_HASH, time_left_ms)
        channel = await self._choose_lane(query, stack)
        self._dialled_at = time.monotonic()
        with trio.move_on_after(OPEN_SECONDS):
            self._messages = MessageStream(await self._requester.open_stream(self._candidate.node))
        if self._messages is None:
            raise NetworkError(f"no stream within {OPEN_SECONDS:.0f} s")
        left = time_left_ms - round((time.monotonic() - began) * 1_000)
        await self._send(self._query(channel, max(1, left)))
        async with trio.open_nursery() as nursery:
            if self._lease is not None:
                nursery.start_soon(self._keep_paying)
            if self._question.inputs:
                nursery.start_soon(self._send_inputs)
            ending = await self._follow()
            nursery.cancel_scope.cancel()
        return ending

    async def _send_inputs(self) -> None:
        """The request's media, until all is sent or the worker will take no more."""
        data, index = b"".join(self._question.inputs), 0
        try:
            while index * params.MAX_CHUNK_BYTES < len(data) and self._conversation.state in TAKES_INPUTS:
                start = index * params.MAX_CHUNK_BYTES
                await self._send(Input(index, data[start : start + params.MAX_CHUNK_BYTES]))
                index += 1
        except NetworkError:
            return  # the reading side sees it too, and says so

    def _query(self, channel: bytes, time_left_ms: int) -> Query:
        return Query(
            query_id=self._question.query_id,
            realm=self._candidate.model.realm,
            model=self._candidate.model.model,
            time_left_ms=min(time_left_ms, params.MAX_DEADLINE),
            channel=ChannelId(channel),
            payload=encode(self._question.request),
            prefix=self._part.text,
            prefix_tokens=self._part.units_out,
            features=(),
        )

    async def _choose_lane(self, query: Query, stack: AsyncExitStack) -> ChannelId:
        """The channel to pay with; NO_HASH for one's own node and for the free lane."""
        model, requester = self._candidate.model, self._requester
        if self._candidate.local and self._question.payer is None:
            return ChannelId(NO_HASH)
        if self._candidate.known.federation != requester.bookkeeper.federation:
            if self._question.payer is not None:
                raise Refused(ErrorCode.PAYMENT_REQUIRED, "the worker belongs to another federation")
            return _free_lane(model, "the worker belongs to another federation and serves strangers nothing")
        try:
            lease = requester.bookkeeper.lease(
                self._candidate.node,
                model.price_in,
                model.price_out,
                self._candidate.known.quote,
                self._need(query),
                self._question.payer,
            )
            self._lease = await stack.enter_async_context(lease)
        except Refused as error:
            if error.code is not ErrorCode.INSUFFICIENT_FUNDS or not model.free or self._question.payer is not None:
                raise
            log.info("no cover, asking for the free lane: %s", error)
            return _free_lane(model, error.message)
        return ChannelId(self._lease.channel)

    def _need(self, query: Query) -> int:
        """µcredits that the longest answer to this query may cost."""
        model, request = self._candidate.model, self._question.request
        longest = most_units_out(request, model.max_output_tokens)
        return channel_cost(most_units_in(query, request), longest, model.price_in, model.price_out)

    # --- following -----------------------------------------------------------------------------------

    async def _follow(self) -> Message:
        """Take messages until the last word. Raises `Refused`, `NetworkError` or `RemoteProtocolError`."""
        patience = FIRST_REPLY_SECONDS
        while True:
            message = await self._receive(patience)
            patience = SILENCE_SECONDS
            self._note_word(message)
            if isinstance(message, Accept):
                await self._listener.queued(message.queue_position, message.wait_ms)
            if isinstance(message, Begin):
                self._window = message.window
                self._unpaid.set()
            if isinstance(message, Chunk) and message.text:
                self._note_part()
                await self._listener.text(message.text, message.tokens if isinstance(message, LikelyChunk) else ())
            if isinstance(message, Called):
                self._note_part()
                self._listener.called(message.name, message.arguments)
            if isinstance(message, Output):
                self._note_part()
                await self._listener.data(message.media_type, message.data)
            if isinstance(message, Progress):
                await self._listener.progress(message.done, message.total, message.preview)
            if isinstance(message, Refuse):
                self._says_worker = True
                raise Refused(_code(message.code), message.reason, message.retry_after_ms)
            if isinstance(message, Done | Error):
                return message

    def _note_word(self, message: Message) -> None:
        """When it came: times of the answer are measured here, not believed."""
        now = time.monotonic()
        self._heard_at = self._heard_at or now
        begins = isinstance(message, Begin) or (isinstance(message, Accept) and not message.queue_position)
        if begins and not self._begun_at:
            self._begun_at = now

    def _note_part(self) -> None:
        """Something came: from now on there is more to sign for."""
        self._last_part = time.monotonic()
        self._first_part = self._first_part or self._last_part
        self._unpaid.set()

    async def _receive(self, patience: float) -> Message:
        assert self._messages is not None
        with trio.move_on_after(patience):
            message = await self._messages.receive()
            if message is None:
                raise StreamReset("the stream ended without a last word")
            self._conversation.received(message)
            return message
        raise NetworkError(f"silent for {patience:.0f} s")

    async def _send(self, message: Message) -> None:
        assert self._messages is not None
        self._conversation.sent(message)
        await self._messages.send(message)

    # --- paying --------------------------------------------------------------------------------------

    async def _keep_paying(self) -> None:
        """Sign for the prompt, and again whenever a part of the window is unpaid; points that come while signing share
        a voucher."""
        while True:
            await self._unpaid.wait()
            self._unpaid = trio.Event()
            if not self._due():
                continue
            try:
                await self._pay()
            except NetworkError:
                return  # the reading side sees it too, and says so

    def _due(self) -> bool:
        """True if so much is unpaid that the worker should not wait for the end to be paid."""
        if self._paid is None:
            return True
        unpaid = self._conversation.delivered.units_out - self._paid.point.units_out
        return unpaid >= max(1, self._window // SHARE_UNPAID)

    async def _pay(self) -> None:
        """Sign, stored before it leaves, and send. Does nothing if all is paid."""
        async with self._signing:
            with trio.CancelScope(shield=True):  # what is signed is also sent
                if await self._sign_newest():
                    assert self._paid is not None
                    await self._send(self._paid.pay)

    async def _sign_newest(self) -> bool:
        """A voucher for all that was delivered; False if there is nothing to sign for."""
        point = self._conversation.delivered
        if self._lease is None or (self._paid and point == self._paid.point) or not self._conversation.begun:
            return False
        self._paid = _Paid(point, await self._sign(self._lease, point))
        return True

    async def _sign_for_rest(self) -> None:
        """The worker is gone: what it delivered is signed for, and it hears of it when it is back."""
        async with self._signing:
            try:
                with trio.CancelScope(shield=True):
                    await self._sign_newest()
            except Refused as error:
                log.info("the rest of a lost answer is not paid: %s", error)

    async def _sign(self, lease: ChannelLease, point: Delivered) -> Pay:
        return await lease.sign(
            lease.units_in + point.units_in,
            lease.units_out + point.units_out,
            transcript_hash(lease.transcript, self._question.query_id, point),
        )

    # --- ending --------------------------------------------------------------------------------------

    async def _ended(self, ending: Message) -> Outcome:
        """After the worker's last word: pay the rest, wait for its confirmation, keep the receipt."""
        await self._settle()
        if isinstance(ending, Done) and ending.finish in ("stop", "length", "tool_calls"):
            return await self._outcome(None, "", finish=ending.finish)
        if isinstance(ending, Done):
            return await self._outcome(ErrorCode.CANCELLED, "the answer was cancelled")
        assert isinstance(ending, Error)
        self._says_worker = True
        return await self._outcome(_code(ending.code), ending.reason, ending.retry_after_ms)

    async def _settle(self) -> None:
        """Pay what is unpaid and read the confirmation. A worker that does not confirm was paid all the same."""
        try:
            await self._pay()
            with trio.move_on_after(SETTLE_SECONDS):
                while self._conversation.state is not State.ENDED:
                    message = await self._receive(SETTLE_SECONDS)
                    if isinstance(message, Settled) and self._lease is not None:
                        self._lease.confirm(message.cumulative)
        except (NetworkError, ProtocolError) as error:
            log.info("the worker did not confirm the settlement: %s", error)

    async def _leave(self) -> None:
        """Whatever happened: end the stream. If the worker still runs, cancel it and pay what it delivered."""
        messages = self._messages
        if messages is None:
            return
        with shielded(LEAVE_SECONDS):
            if not self._lost and self._conversation.state in (State.ASKED, State.ACCEPTED, State.RUNNING):
                await self._cancel()
            if self._conversation.state is State.ENDED:
                await messages.close()
                return
        with trio.CancelScope(shield=True):
            await messages.reset()

    async def _cancel(self) -> None:
        try:
            await self._send(Cancel())
            while self._conversation.state is State.CANCELLING:
                await self._receive(LEAVE_SECONDS)
            await self._settle()
            await self._keep_receipt(ErrorCode.CANCELLED, "")
        except (NetworkError, ProtocolError) as error:
            log.debug("the worker did not hear the cancel: %s", error)

    async def _outcome(
        self, code: ErrorCode | None, reason: str, retry_after_ms: int = 0, *, finish: str = "", refused: bool = False
    ) -> Outcome:
        delivered = self._conversation.delivered
        share = await self._keep_receipt(code, finish)
        return Outcome(
            finish=finish,
            code=code,
            reason=reason,
            retry_after_ms=retry_after_ms,
            refused=refused,
            units_in=delivered.units_in,
            units_out=delivered.units_out,
            ttft_ms=(self._first_part - self._began) * 1_000 if self._first_part else 0.0,
            seconds=self._last_part - self._first_part if self._first_part else 0.0,
            share=share,
            hop_seconds=self._heard_at - self._dialled_at if self._heard_at else 0.0,
            queue_seconds=self._begun_at - self._heard_at if self._begun_at else None,
            says_worker=self._says_worker,
        )

    async def _keep_receipt(self, code: ErrorCode | None, finish: str) -> WorkerShare | None:
        """Write down what was paid, once, and say what this worker delivered; None if it delivered nothing."""
        if self._share is not None or not self._conversation.begun:
            return self._share
        delivered = self._conversation.delivered
        receipt, amount = "", 0
        if self._paid is not None and self._lease is not None:
            amount = self._lease.spent
            outcome = finish or (code.name.lower() if code else "")
            with trio.CancelScope(shield=True):
                receipt = await self._record_or_warn(self._lease, self._paid, amount, outcome)
        self._share = WorkerShare(
            worker=self._candidate.node,
            model=self._candidate.model.model,
            units_in=delivered.units_in,
            units_out=delivered.units_out,
            amount=amount,
            receipt=receipt,
            lane="paid" if self._lease else "own" if self._candidate.local else "free",
        )
        if self._question.charged is not None:
            self._question.charged(self._share)
        return self._share

    async def _record_or_warn(self, lease: ChannelLease, paid: _Paid, amount: int, outcome: str) -> str:
        """The receipt's id; "" if the ledger could not take it. The voucher is stored, so no credit is lost."""
        try:
            return await self._record(lease, paid, amount, outcome)
        except Refused as error:
            log.warning("query %s is not in the books: %s", self._question.query_id.hex(), error)
            return ""

    async def _record(self, lease: ChannelLease, paid: _Paid, amount: int, outcome: str) -> str:
        receipt = Receipt(
            query_id=self._question.query_id,
            role="requester",
            counterparty=self._candidate.node,
            realm=self._candidate.model.realm,
            model=self._candidate.model.model,
            units_in=paid.point.units_in,
            units_out=paid.point.units_out,
            amount=amount,
            price_in=lease.prices.price_in,
            price_out=lease.prices.price_out,
            quote=self._candidate.known.quote,
            channel=lease.channel,
            pay=paid.pay,
            transcript=transcript_hash(lease.transcript, self._question.query_id, paid.point),
            digest=paid.point.digest,
            outcome=outcome,
            time_ms=self._requester.clock(),
        )
        return await self._requester.bookkeeper.record_receipt(receipt)


def _free_lane(model: ModelOffer, why_not_paid: str) -> ChannelId:
    if not model.free:
        raise Refused(ErrorCode.PAYMENT_REQUIRED, why_not_paid)
    return ChannelId(NO_HASH)


def _code(number: int) -> ErrorCode:
    """A peer's code; one that this version does not know counts as INTERNAL."""
    try:
        return ErrorCode(number)
    except ValueError:
        return ErrorCode.INTERNAL
