"""One query's conversation: the legal moves of both roles, and what must agree between them.

Rule: `MOVES` is the whole law. Both sides keep the same state by feeding every message that they send or
receive to a `Conversation`; a move that is not in the table is the mover's error. Messages may cross on the
wire, so each state also admits what the peer could still have sent before it knew.

An answer is complete only by `Done`. Text before anything else is a part, to be continued elsewhere.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

from protocol import params
from protocol.errors import ErrorCode, IllegalMove, LocalProtocolError, Refused
from protocol.ids import NO_HASH, QueryId
from protocol.messages import (
    Accept,
    Begin,
    Called,
    Cancel,
    Chunk,
    Done,
    Error,
    Input,
    LikelyChunk,
    Message,
    Output,
    Pay,
    Progress,
    Query,
    Refuse,
    Settled,
)
from protocol.requests import Delivery, Request, input_bytes, kind_of, media_of, most_units_in, read_request
from protocol.wishes import CallCount, wishes_of, wrong_likelihoods


class Role(Enum):
    """Who moves."""

    REQUESTER = "requester"
    WORKER = "worker"

    @property
    def other(self) -> Role:
        """The peer's role."""
        return Role.WORKER if self is Role.REQUESTER else Role.REQUESTER


class State(Enum):
    """Where a conversation stands."""

    START = "start"
    ASKED = "asked"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SETTLING = "settling"  # the last word was said; the final voucher may follow
    ENDED = "ended"


_R, _W = Role.REQUESTER, Role.WORKER

MOVES: dict[tuple[State, Role, type[Message]], State] = {
    (State.START, _R, Query): State.ASKED,
    (State.ASKED, _W, Accept): State.ACCEPTED,
    (State.ASKED, _W, Refuse): State.ENDED,
    (State.ASKED, _R, Input): State.ASKED,
    (State.ASKED, _R, Cancel): State.CANCELLING,
    (State.ACCEPTED, _W, Accept): State.ACCEPTED,
    (State.ACCEPTED, _W, Begin): State.RUNNING,
    (State.ACCEPTED, _W, Error): State.SETTLING,
    (State.ACCEPTED, _R, Input): State.ACCEPTED,
    (State.ACCEPTED, _R, Cancel): State.CANCELLING,
    (State.RUNNING, _W, Chunk): State.RUNNING,
    (State.RUNNING, _W, LikelyChunk): State.RUNNING,
    (State.RUNNING, _W, Called): State.RUNNING,
    (State.RUNNING, _W, Output): State.RUNNING,
    (State.RUNNING, _W, Progress): State.RUNNING,
    (State.RUNNING, _R, Pay): State.RUNNING,
    (State.RUNNING, _W, Done): State.SETTLING,
    (State.RUNNING, _W, Error): State.SETTLING,
    (State.RUNNING, _R, Cancel): State.CANCELLING,
    (State.CANCELLING, _W, Accept): State.CANCELLING,
    (State.CANCELLING, _W, Refuse): State.ENDED,
    (State.CANCELLING, _W, Begin): State.CANCELLING,
    (State.CANCELLING, _W, Chunk): State.CANCELLING,
    (State.CANCELLING, _W, LikelyChunk): State.CANCELLING,
    (State.CANCELLING, _W, Called): State.CANCELLING,
    (State.CANCELLING, _W, Output): State.CANCELLING,
    (State.CANCELLING, _W, Progress): State.CANCELLING,
    (State.CANCELLING, _R, Pay): State.CANCELLING,
    (State.CANCELLING, _W, Done): State.SETTLING,
    (State.CANCELLING, _W, Error): State.SETTLING,
    (State.SETTLING, _R, Pay): State.SETTLING,
    (State.SETTLING, _R, Cancel): State.SETTLING,  # crossed our last word
    (State.SETTLING, _R, Input): State.SETTLING,  # the same
    (State.SETTLING, _W, Settled): State.ENDED,
}


@dataclass(frozen=True, slots=True)
class Delivered:
    """A point of the answer that a voucher may cover: counts of this query, digest of text and data so far."""

    units_in: int
    units_out: int
    digest: bytes


class Conversation:
    """One side's view of one exchange. Pure: it neither sends nor receives, it only knows what is legal."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.START
        self.query: Query | None = None
        self.request: Request | None = None  # the query's, None if its payload is none
        self.units_in = 0
        self.units_out = 0
        self.delivery = Delivery()
        self.chunks = 0  # and outputs
        self.inputs = 0
        self.input_bytes = 0
        self.begun = False
        self._calls = CallCount()
        self._hash = hashlib.sha256()

    def sent(self, message: Message) -> None:
        """Record a message of ours. Raises `LocalProtocolError` if the table does not allow it."""
        try:
            self._move(self.role, message)
        except IllegalMove as error:
            raise LocalProtocolError(str(error)) from None

    def received(self, message: Message) -> None:
        """Record a message of the peer's. Raises `IllegalMove` if the table or a count does not allow it."""
        self._move(self.role.other, message)

    @property
    def delivered(self) -> Delivered:
        """Everything delivered so far."""
        return Delivered(self.units_in, self.units_out, self._hash.digest())

    def _move(self, mover: Role, message: Message) -> None:
        following = MOVES.get((self.state, mover, type(message)))
        if following is None:
            raise IllegalMove(f"{mover.value} may not send {type(message).__name__} when {self.state.value}")
        if isinstance(message, Query):
            self._ask(message)
        if isinstance(message, Input):
            self._input(message)
        if isinstance(message, Begin):
            self._begin(message)
        if isinstance(message, Chunk):
            self._chunk(message)
        if isinstance(message, Called):
            self._called(message)
        if isinstance(message, Output):
            self._part(message, message.data, message.media_type)
        if isinstance(message, Done):
            self._done(message)
        self.state = following

    @property
    def inputs_whole(self) -> bool:
        """True once all bytes of the request's media have come."""
        return self.request is None or self.input_bytes == input_bytes(self.request)

    def _ask(self, query: Query) -> None:
        self.query = query
        with suppress(Refused):  # the worker says so itself
            self.request = read_request(query)

    def _input(self, part: Input) -> None:
        declared = input_bytes(self.request) if self.request is not None else 0
        if part.index != self.inputs or self.input_bytes + len(part.data) > declared:
            raise IllegalMove(f"input {part.index} with {len(part.data)} bytes after {self.input_bytes} of {declared}")
        self.inputs += 1
        self.input_bytes += len(part.data)

    def _begin(self, begin: Begin) -> None:
        assert self.query is not None
        if self.request is None or not self.inputs_whole:
            raise IllegalMove("an answer begins once the question is whole")
        limit = most_units_in(self.query, self.request)
        if begin.units_in > limit:
            raise IllegalMove(f"{begin.units_in} units for a question of at most {limit}")
        if self.begun:
            raise IllegalMove("an answer begins once")
        self.begun = True
        self.units_in = begin.units_in

    def _chunk(self, chunk: Chunk) -> None:
        wrong = wrong_likelihoods(chunk, wishes_of(self.request)) if isinstance(chunk, LikelyChunk) else ""
        if chunk.text and self._calls.calls:
            wrong = "text after a call"
        if wrong:
            raise IllegalMove(wrong)
        self._part(chunk, chunk.text.encode(), "")

    def _called(self, called: Called) -> None:
        wrong = self._calls.wrong_with(called, wishes_of(self.request))
        if wrong:
            raise IllegalMove(wrong)
        self._part(called, called.name.encode() + called.arguments.encode(), "")
        self._calls.take(called)

    def _part(self, part: Chunk | Called | Output, content: bytes, media_type: str) -> None:
        if not self.begun or self.request is None or part.index != self.chunks:
            raise IllegalMove(f"part {part.index}, expected {self.chunks} after a Begin")
        delivery = self._with(self.request, content, media_type)
        if isinstance(part, Called) and part.name:
            delivery = replace(delivery, calls=delivery.calls + 1)
        limit = kind_of(self.request).most_out(self.request, delivery)
        if not self.units_out <= part.units_out <= limit:
            raise IllegalMove(f"{part.units_out} units after {self.units_out}, where at most {limit} can be")
        self.chunks += 1
        self.units_out = part.units_out
        self.delivery = delivery
        self._hash.update(content)

    def _with(self, request: Request, content: bytes, media_type: str) -> Delivery:
        """What is delivered once `content` is: text if it has no media type."""
        before, kind = self.delivery, kind_of(request)
        if not content:
            return before
        if not kind.answers(media_type) or before.media_type not in ("", media_type):
            raise IllegalMove(f"{media_type or 'text'!r} in the answer to a {kind.name} request")
        if kind.paid_whole and self.units_out:
            raise IllegalMove(f"more of what was counted as whole by its {self.units_out} units")
        if not media_type:
            return replace(before, text_bytes=before.text_bytes + len(content))
        data_bytes = before.data_bytes + len(content)
        if data_bytes > params.MAX_OUTPUT_BYTES:
            raise IllegalMove(f"an answer has at most {params.MAX_OUTPUT_BYTES} bytes of data")
        return replace(before, data_bytes=data_bytes, media_type=media_type)

    def _done(self, done: Done) -> None:
        if (done.units_in, done.units_out, done.digest) != (self.units_in, self.units_out, self._hash.digest()):
            raise IllegalMove("Done names other counts or another answer than its parts did")
        if done.finish == "tool_calls" and not self._calls.calls:
            raise IllegalMove("Done because of calls, and there was none")


def split_inputs(request: Request, data: bytes) -> tuple[bytes, ...]:
    """The media of a request out of all their bytes, in the request's order."""
    parts, start = [], 0
    for each in media_of(request):
        parts.append(data[start : start + each.size])
        start += each.size
    return tuple(parts)


def transcript_hash(previous: bytes, query_id: QueryId, delivered: Delivered) -> bytes:
    """The transcript that a voucher names: the channel's transcript before this query, then what was delivered.

    The query id is random and known to the two parties alone, so the hash tells nobody else about the text.
    """
    counts = delivered.units_in.to_bytes(8, "big") + delivered.units_out.to_bytes(8, "big")
    return hashlib.sha256(b"mtor/transcript/1\0" + previous + query_id + counts + delivered.digest).digest()


def check_query(query: Query) -> None:
    """The rules of a query that need no state. Raises `Refused`."""
    unknown = [feature for feature in query.features if feature % 2 == 0]
    if unknown:
        raise Refused(ErrorCode.UNSUPPORTED_FEATURE, f"required features {unknown} are not known here")
    if query.prefix_tokens and not query.prefix:
        raise Refused(ErrorCode.INVALID_REQUEST, "prefix_tokens without a prefix")


def is_paid(query: Query) -> bool:
    """True if the query names a channel; the free lane names none."""
    return query.channel != NO_HASH
