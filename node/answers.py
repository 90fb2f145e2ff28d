"""What a query asks for and what comes back, between the router and whoever asked.

Rule: an answer is complete only after `Completed`. `Failed` ends it otherwise; text that came before it stands,
and is not the whole answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.errors import ErrorCode
from protocol.ids import NodeId, QueryId, RealmId
from protocol.requests import Request
from protocol.routing import Requirements


@dataclass(frozen=True, slots=True)
class Question:
    """One query, before a worker is chosen."""

    query_id: QueryId
    realm: RealmId
    request: Request
    requirements: Requirements
    deadline_ms: int = 120_000
    payer: NodeId | None = None  # a sub-account whose credits are the limit: every answer is paid by it
    inputs: tuple[bytes, ...] = ()  # the bytes of the request's media, in its order
    charged: Callable[[WorkerShare], None] | None = field(default=None, compare=False, repr=False)
    """Called once with each worker's share when it is in the books, also if nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A worker took the query (again after a failover, with `attempt` one higher), or its place there changed."""

    worker: NodeId
    model: str
    attempt: int
    queue_position: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nobody works on the query now: why, and when the one that stopped may be back (0: not known)."""

    reason: str
    retry_ms: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token of the answer, and the likeliest ones in its place. Natural logarithms."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    data: bytes = b""  # its UTF-8, perhaps cut within a character, which `token` shows as U+FFFD


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of text. `logprobs` are of its tokens, where they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model calls a tool of the client's; whole, and before `Completed`."""

    id: str
    name: str
    arguments: str  # JSON text


@dataclass(frozen=True, slots=True)
class Bytes:
    """The next bytes of a picture or sound."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far the worker is. `total` 0: not known. `preview` is a small PNG or JPEG, or empty."""

    done: int
    total: int
    preview: bytes


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker delivered of an answer, and what it cost."""

    worker: NodeId
    model: str
    units_in: int
    units_out: int
    amount: int  # µcredits
    receipt: str  # hex id for `mtor ledger show`; "" when nothing was paid (own node, free lane)
    lane: str  # "own", "free" or "paid"


@dataclass(frozen=True, slots=True)
class Completed:
    """The whole answer was delivered."""

    finish: str  # "stop", "length" or "tool_calls"
    model: str
    units_in: int  # of the first worker: what the client's prompt counts
    units_out: int  # over all workers
    ttft_ms: int
    shares: tuple[WorkerShare, ...]
    failover: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """No whole answer. `message` says what was tried and what would help."""

    code: ErrorCode
    message: str
    retry_after_ms: int = 0
    shares: tuple[WorkerShare, ...] = field(default=())


AnswerEvent = Routed | Waiting | Delta | ToolCalled | Bytes | Progressed | Completed | Failed
