"""Signatures that were found good, so that none is checked twice in a row.

Rule: only success is remembered, for exactly these bytes under exactly this key; the oldest are forgotten first.
"""

from __future__ import annotations

from protocol.ids import FederationId, NodeId
from protocol.ledger.state import Verify

REMEMBERED = 4_096


class SignatureMemo:
    """In place of `protocol.signing.verify`, with a memory. Any thread may call it."""

    def __init__(self, check: Verify) -> None:
        self._check = check
        self._good: dict[tuple[bytes, bytes, bytes, bytes], None] = {}

    def __call__(self, key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
        """Raises `BadSignature`."""
        question = (key, federation, body, signature)
        if question in self._good:
            return
        self._check(key, federation, body, signature)
        self._remember(question)

    def _remember(self, question: tuple[bytes, bytes, bytes, bytes]) -> None:
        if len(self._good) >= REMEMBERED:
            for oldest in list(self._good)[: REMEMBERED // 4]:
                self._good.pop(oldest, None)
        self._good[question] = None
