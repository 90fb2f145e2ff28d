"""One query's conversation: the legal moves of both roles, and what must agree between them.

Rule: `MOVES` is the whole law. Both sides keep the same state by feeding every message that they send or
receive to a `Conversation`; a move that is not in the table is the mover's error. Messages may cross on the
wire, so each state also admits what the peer could still have sent before it knew.

An answer is complete only by `Done`. Text before anything else is a part, to be continued elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from protocol import params
from protocol.errors import ErrorCode, IllegalMove, LocalProtocolError, Refused
from protocol.ids import NO_HASH, QueryId
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
    (State.ASKED, _R, Cancel): State.CANCELLING,
    (State.ACCEPTED, _W, Accept): State.ACCEPTED,
    (State.ACCEPTED, _W, Begin): State.RUNNING,
    (State.ACCEPTED, _W, Error): State.SETTLING,
    (State.ACCEPTED, _R, Cancel): State.CANCELLING,
    (State.RUNNING, _W, Chunk): State.RUNNING,
    (State.RUNNING, _R, Pay): State.RUNNING,
    (State.RUNNING, _W, Done): State.SETTLING,
    (State.RUNNING, _W, Error): State.SETTLING,
    (State.RUNNING, _R, Cancel): State.CANCELLING,
    (State.CANCELLING, _W, Accept): State.CANCELLING,
    (State.CANCELLING, _W, Refuse): State.ENDED,
    (State.CANCELLING, _W, Begin): State.CANCELLING,
    (State.CANCELLING, _W, Chunk): State.CANCELLING,
    (State.CANCELLING, _R, Pay): State.CANCELLING,
    (State.CANCELLING, _W, Done): State.SETTLING,
    (State.CANCELLING, _W, Error): State.SETTLING,
    (State.SETTLING, _R, Pay): State.SETTLING,
    (State.SETTLING, _R, Cancel): State.SETTLING,  # crossed our last word
    (State.SETTLING, _W, Settled): State.ENDED,
}


@dataclass(frozen=True, slots=True)
class Delivered:
    """A point of the answer that a voucher may cover: counts of this query, digest of the text so far."""

    units_in: int
    units_out: int
    digest: bytes


class Conversation:
    """One side's view of one exchange. Pure: it neither sends nor receives, it only knows what is legal."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.START
        self.query: Query | None = None
        self.units_in = 0
        self.units_out = 0
        self.text_bytes = 0
        self.chunks = 0
        self.begun = False
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
            self.query = message
        if isinstance(message, Begin):
            self._begin(message)
        if isinstance(message, Chunk):
            self._chunk(message)
        if isinstance(message, Done):
            self._done(message)
        self.state = following

    def _begin(self, begin: Begin) -> None:
        assert self.query is not None
        limit = prompt_token_limit(self.query)
        if begin.units_in > limit:
            raise IllegalMove(f"{begin.units_in} prompt tokens for a prompt of at most {limit}")
        if self.begun:
            raise IllegalMove("an answer begins once")
        self.begun = True
        self.units_in = begin.units_in

    def _chunk(self, chunk: Chunk) -> None:
        if not self.begun or chunk.index != self.chunks:
            raise IllegalMove(f"chunk {chunk.index}, expected {self.chunks} after a Begin")
        text = chunk.text.encode()
        limit = self.text_bytes + len(text) + self._unseen_allowance()
        if not self.units_out <= chunk.units_out <= limit:
            raise IllegalMove(f"{chunk.units_out} output tokens after {self.units_out}, for {limit} bytes at most")
        self.chunks += 1
        self.units_out = chunk.units_out
        self.text_bytes += len(text)
        self._hash.update(text)

    def _done(self, done: Done) -> None:
        if (done.units_in, done.units_out, done.digest) != (self.units_in, self.units_out, self._hash.digest()):
            raise IllegalMove("Done names other counts or another text than the chunks did")

    def _unseen_allowance(self) -> int:
        """Tokens that may have given no bytes yet: a held-back stop string, a cut code point, control tokens."""
        return params.PREFIX_TOKEN_ALLOWANCE + params.MAX_STOP_BYTES


def prompt_token_limit(query: Query) -> int:
    """The most tokens that this query's prompt can honestly have: a token stands for at least one byte."""
    return len(query.payload) + len(query.prefix.encode()) + params.PREFIX_TOKEN_ALLOWANCE


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


def check_chat(request: ChatRequest) -> None:
    """The rules of a $CHAT payload beyond its bounds. Raises `Refused`."""
    roles = {turn.role for turn in request.turns}
    if not roles <= {"system", "user", "assistant"}:
        raise Refused(ErrorCode.INVALID_REQUEST, f"roles are system, user and assistant, not {sorted(roles)}")
    if request.turns[-1].role == "assistant":
        raise Refused(ErrorCode.INVALID_REQUEST, "the last message is the assistant's; there is nothing to answer")
    if not any(turn.text.strip() for turn in request.turns):
        raise Refused(ErrorCode.INVALID_REQUEST, "the conversation is empty")


def is_paid(query: Query) -> bool:
    """True if the query names a channel; the free lane names none."""
    return query.channel != NO_HASH
