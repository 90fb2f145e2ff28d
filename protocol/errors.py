"""Whose fault it is, and what the wire calls it.

Rule: an exception says who broke a rule (`Local…`: we did, `Remote…`: the peer did) and carries values,
not only text. `CODES` is the wire's registry; `spec/07-registries.md` holds the same table, and a
test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ProtocolError(Exception):
    """A rule of the protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This node asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class Malformed(RemoteProtocolError):
    """Bytes that are not one canonical message within the limits."""


class IllegalMove(RemoteProtocolError):
    """A well-formed message at a moment when it may not be sent."""


class BadSignature(RemoteProtocolError):
    """A signature that does not verify, or a key that must not be used."""


class ErrorCode(IntEnum):
    """Codes of REFUSE, ERROR and REJECTED messages. Numbers are never reused."""

    INTERNAL = 1
    MALFORMED = 2
    UNSUPPORTED_FEATURE = 3
    WRONG_FEDERATION = 4
    NO_SUCH_MODEL = 5
    OVERLOADED = 6
    PAUSED = 7
    PAYMENT_REQUIRED = 8
    QUOTA_EXCEEDED = 9
    PRICE_CHANGED = 10
    CONTEXT_OVERFLOW = 11
    INVALID_REQUEST = 12
    DEADLINE_EXCEEDED = 13
    CANCELLED = 14
    ENGINE_FAILED = 15
    UNPAID = 16
    BLOCKED = 17
    NO_PEER = 18
    WORKER_LOST = 19
    BAD_SIGNATURE = 32
    BAD_SEQUENCE = 33
    INSUFFICIENT_FUNDS = 34
    EQUIVOCATION = 35
    UNKNOWN_CHANNEL = 36
    CHANNEL_CLOSED = 37
    BAD_VOUCHER = 38
    NOT_ISSUER = 39
    EXPIRED = 40
    NOT_A_WITNESS = 41
    STALE_EPOCH = 42
    SUPPLY_CAP = 43
    BAD_QUORUM = 44
    OVERFLOW = 45
    NOT_RELATED = 46
    EPOCH_CHANGING = 47
    ABSTAINING = 48


@dataclass(frozen=True, slots=True)
class CodeMeaning:
    """What a code tells its receiver: whose fault, and whether another worker may do better."""

    fault: str  # "requester", "worker", "nobody"
    try_another: bool
    meaning: str


CODES: dict[ErrorCode, CodeMeaning] = {
    ErrorCode.INTERNAL: CodeMeaning("worker", True, "the node failed in a way that it cannot name"),
    ErrorCode.MALFORMED: CodeMeaning("requester", False, "bytes that are not one canonical message"),
    ErrorCode.UNSUPPORTED_FEATURE: CodeMeaning("nobody", True, "a required feature is not known here"),
    ErrorCode.WRONG_FEDERATION: CodeMeaning("requester", True, "signed for another federation"),
    ErrorCode.NO_SUCH_MODEL: CodeMeaning("requester", True, "this node does not serve that realm or model"),
    ErrorCode.OVERLOADED: CodeMeaning("nobody", True, "the queue is full; see retry_after"),
    ErrorCode.PAUSED: CodeMeaning("nobody", True, "the owner took the card back; see retry_after"),
    ErrorCode.PAYMENT_REQUIRED: CodeMeaning("requester", True, "neither cover nor free quota"),
    ErrorCode.QUOTA_EXCEEDED: CodeMeaning("requester", True, "the free quota is used up; see retry_after"),
    ErrorCode.PRICE_CHANGED: CodeMeaning("nobody", True, "the hold's prices are below the offer in force"),
    ErrorCode.CONTEXT_OVERFLOW: CodeMeaning("requester", True, "prompt and answer exceed the model's context"),
    ErrorCode.INVALID_REQUEST: CodeMeaning("requester", False, "a value of the request is out of range"),
    ErrorCode.DEADLINE_EXCEEDED: CodeMeaning("nobody", False, "the query's time is used up"),
    ErrorCode.CANCELLED: CodeMeaning("requester", False, "the requester cancelled"),
    ErrorCode.ENGINE_FAILED: CodeMeaning("worker", True, "the engine crashed or gave no answer"),
    ErrorCode.UNPAID: CodeMeaning("requester", False, "the voucher for delivered tokens did not come"),
    ErrorCode.BLOCKED: CodeMeaning("requester", True, "the operator of this node refuses this peer"),
    ErrorCode.NO_PEER: CodeMeaning("nobody", False, "no offer meets the requirements"),
    ErrorCode.WORKER_LOST: CodeMeaning("worker", True, "the worker vanished or fell silent"),
    ErrorCode.BAD_SIGNATURE: CodeMeaning("requester", False, "a signature or key is not valid"),
    ErrorCode.BAD_SEQUENCE: CodeMeaning("requester", False, "not the account's next order, or the wrong link"),
    ErrorCode.INSUFFICIENT_FUNDS: CodeMeaning("requester", False, "the balance does not cover the hold"),
    ErrorCode.EQUIVOCATION: CodeMeaning("requester", False, "another order holds this account's number already"),
    ErrorCode.UNKNOWN_CHANNEL: CodeMeaning("requester", False, "no hold with this id is known"),
    ErrorCode.CHANNEL_CLOSED: CodeMeaning("requester", False, "the channel is closed"),
    ErrorCode.BAD_VOUCHER: CodeMeaning("requester", False, "amount, counts or transcript do not fit the hold"),
    ErrorCode.NOT_ISSUER: CodeMeaning("requester", False, "only an issuer named in genesis may grant"),
    ErrorCode.EXPIRED: CodeMeaning("requester", False, "the hold has expired"),
    ErrorCode.NOT_A_WITNESS: CodeMeaning("requester", True, "genesis does not name this node as a witness"),
    ErrorCode.STALE_EPOCH: CodeMeaning("requester", False, "the order names another epoch"),
    ErrorCode.SUPPLY_CAP: CodeMeaning("requester", False, "the grant would pass the federation's supply cap"),
    ErrorCode.BAD_QUORUM: CodeMeaning("requester", False, "too few valid votes, or one witness twice"),
    ErrorCode.OVERFLOW: CodeMeaning("requester", False, "an amount would leave 0 … 2^53-1"),
    ErrorCode.NOT_RELATED: CodeMeaning("requester", False, "credits move between accounts of one owner only"),
    ErrorCode.EPOCH_CHANGING: CodeMeaning("nobody", True, "the federation changes epochs; open channels go on"),
    ErrorCode.ABSTAINING: CodeMeaning("worker", True, "this witness was set back and does not vote in this epoch"),
}


class Refused(ProtocolError):
    """A rule was applied and the answer is no: `code`, a sentence, and when to come back."""

    def __init__(self, code: ErrorCode, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.message}"
