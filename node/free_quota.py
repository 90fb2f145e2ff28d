"""What strangers may have for nothing: tokens per UTC day, for each peer and for all together.

Rule: a local gift, never credits. What would pass a limit is refused whole, with the time until midnight UTC.
"""

from __future__ import annotations

from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.ledger.state import Draft, Reader, read_number, u64
from protocol.params import DAYS


def quota_day(now_ms: int) -> bytes:
    """Key prefix of a UTC day."""
    return b"q" + (now_ms // DAYS).to_bytes(4, "big")


def left(reader: Reader, peer: NodeId, per_peer: int, total: int, now_ms: int) -> int:
    """Tokens that `peer` may still have today."""
    day = quota_day(now_ms)
    return max(0, min(per_peer - read_number(reader, day + peer), total - read_number(reader, day)))


def used(reader: Reader, now_ms: int) -> int:
    """Tokens that all peers together had today."""
    return read_number(reader, quota_day(now_ms))


def use(draft: Draft, peer: NodeId, tokens: int, per_peer: int, total: int, now_ms: int) -> None:
    """Count `tokens`. Raises `Refused` (QUOTA_EXCEEDED), and counts nothing then."""
    if tokens > left(draft, peer, per_peer, total, now_ms):
        wait = DAYS - now_ms % DAYS
        raise Refused(ErrorCode.QUOTA_EXCEEDED, "today's free tokens are used up; they return at midnight UTC", wait)
    day = quota_day(now_ms)
    draft.update({key: u64(read_number(draft, key) + tokens) for key in (day, day + peer)})
