"""Every query that this node serves: counted, timed, and told in the log.

Rule: one line when it is taken or refused, one when it ends; never what was asked or answered, and no text of the
requester's. Times are those of this node's own queue and engine; what an engine waits for vouchers is not its time.
"""

from __future__ import annotations

import logging
import time

from node.measures import Measures, RunningQuery
from protocol.errors import ErrorCode
from protocol.exchange import Delivered
from protocol.ids import NodeId, short
from protocol.messages import Query

log = logging.getLogger("mtor.worker")

ENDED_WELL = ("stop", "length")
NOBODY_HEARD = {"worker_lost": "requester_gone"}  # a receipt's word, as the worker itself sees it
REPEATS = (ErrorCode.INVALID_REQUEST, ErrorCode.NO_SUCH_MODEL)  # whose sentences may repeat what the requester wrote


class ServedQuery:
    """One inbound query."""

    def __init__(self, measures: Measures, peer: NodeId, query: Query) -> None:
        self._measures = measures
        self._realm = measures.realm(query.realm)
        self._began = time.monotonic()
        self._generating_since = 0.0
        self._standing = 0.0  # seconds in which the engine waited for vouchers
        self._first = False
        self._refused = False
        self.running = RunningQuery(query.query_id.hex(), "served", self._realm, peer=short(peer))

    def taken(self, model: str, lane: str, position: int) -> None:
        """It has a place in the queue."""
        self.running.model = model
        self.running.state = f"queued {position}" if position else "answering"
        log.info("taken for %s: %s %s, %s, place %d", self.running.peer, self._realm, model, lane, position)

    def admitted(self, waited: float) -> None:
        """It has a slot, after so many seconds in the queue."""
        self.running.state = "answering"
        self._measures.observe("mtor_served_queue_wait_seconds", self._realm, seconds=waited)

    def generating(self) -> None:
        """The engine begins."""
        self._generating_since = time.monotonic()

    def stood(self, seconds: float) -> None:
        """The engine waited so long for a voucher."""
        self._standing += seconds

    def part(self) -> None:
        """The engine made the next part."""
        if not self._first:
            self._first = True
            self._measures.observe("mtor_engine_first_token_seconds", self._realm, seconds=self._engine_seconds())

    def generated(self) -> None:
        """The engine is done."""
        self._measures.observe("mtor_engine_seconds", self._realm, seconds=self._engine_seconds())

    def refused(self, code: ErrorCode, reason: str, retry_after_ms: int) -> None:
        """It was not taken."""
        self._refused = True
        self._measures.count("mtor_served_refusals", self._realm, code.name.lower())
        why = code.name.lower() if code in REPEATS else f"{code.name.lower()}: {reason}"
        retry = f", retry in {retry_after_ms} ms" if retry_after_ms else ""
        log.info("refused to %s: %s%s", self.running.peer, why, retry)

    def ended(self, outcome: str, delivered: Delivered, amount: int) -> None:
        """The books are closed."""
        self._measures.count("mtor_served_tokens", self._realm, "in", by=delivered.units_in)
        self._measures.count("mtor_served_tokens", self._realm, "out", by=delivered.units_out)
        if self._refused:
            return
        outcome = "completed" if outcome in ENDED_WELL else NOBODY_HEARD.get(outcome, outcome)
        self._measures.count("mtor_served_queries", self._realm, outcome)
        counts = (delivered.units_in, delivered.units_out, (time.monotonic() - self._began) * 1_000, amount)
        log.info("served to %s: %s, %d in, %d out, %.0f ms, %d µcr", self.running.peer, outcome, *counts)

    def _engine_seconds(self) -> float:
        return max(0.0, time.monotonic() - self._generating_since - self._standing)
