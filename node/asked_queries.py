"""Every query that this node asks, by whatever way it came in: counted, timed, and told in the log.

Rule: one line when it is asked, one for each worker that takes it, one when it ends; never what was asked or answered,
nor a worker's own words about it, which may repeat them. Times are this node's own measurements.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from node.answers import AnswerEvent, Bytes, Completed, Delta, Failed, Question, Routed, Waiting
from node.gateway.ports import Answers
from node.log_context import current_client, query_named
from node.measures import Measures, RunningQuery
from protocol.ids import short

log = logging.getLogger("mtor.query")

Emit = Callable[[AnswerEvent], Awaitable[None]]


class WatchedAnswers:
    """The same answers, watched."""

    def __init__(self, answers: Answers, measures: Measures) -> None:
        self._answers = answers
        self._measures = measures

    async def answer(self, question: Question, emit: Emit) -> None:
        """See `Answers`."""
        asked = _Asked(question, self._measures, emit)
        with query_named(question.query_id.hex()), self._measures.running(asked.running):
            asked.begin()
            try:
                await self._answers.answer(question, asked.take)
            except trio.Cancelled:
                asked.end("client_gone")
                raise
            except BaseException:
                asked.end("internal")
                raise
            asked.end("internal")  # unless its last word was said


class _Asked:
    """One query."""

    def __init__(self, question: Question, measures: Measures, emit: Emit) -> None:
        self._question = question
        self._measures = measures
        self._emit = emit
        self._realm = measures.realm(question.realm)
        self._began = time.monotonic()
        self._first_at = 0.0
        self._attempt = 0
        self._ended = False
        self.running = RunningQuery(question.query_id.hex(), "asked", question.realm, question.requirements.model)

    def begin(self) -> None:
        """It is asked."""
        wanted = self._question.requirements.model or "any model"
        log.info("asked by %s: %s, %s", current_client(), self._question.realm, wanted)

    async def take(self, event: AnswerEvent) -> None:
        """Note an event and hand it on."""
        if isinstance(event, Routed):
            self._routed(event)
        if isinstance(event, Waiting):
            self.running.state = "waiting"
        if isinstance(event, Delta | Bytes) and not self._first_at:
            self._first_at = time.monotonic()
            self.running.state = "answering"
            self._measures.observe("mtor_first_token_seconds", self._realm, seconds=self._first_at - self._began)
        if isinstance(event, Completed):
            self._complete(event)
        if isinstance(event, Failed):
            self.end(event.code.name.lower())
        await self._emit(event)

    def end(self, outcome: str) -> None:
        """Once: how it ended."""
        if self._ended:
            return
        self._ended = True
        self._measures.count("mtor_queries", self._realm, outcome)
        if outcome != "completed":
            log.info("not answered: %s, after %.0f ms", outcome, self._ms())

    def _routed(self, event: Routed) -> None:
        worker, position = short(event.worker), event.queue_position
        if event.attempt != self._attempt:
            if self._attempt and self._first_at:
                self._measures.count("mtor_failovers", self._realm)
            log.info("routed to %s: %s, attempt %d, place %d", worker, event.model, event.attempt, position)
        self._attempt = event.attempt
        self.running.model, self.running.peer = event.model, worker
        self.running.state = f"queued {position}" if position else "answering"

    def _complete(self, done: Completed) -> None:
        self._measures.observe("mtor_answer_seconds", self._realm, seconds=time.monotonic() - self._began)
        self._measures.count("mtor_tokens", self._realm, "in", by=done.units_in)
        self._measures.count("mtor_tokens", self._realm, "out", by=done.units_out)
        cost = sum(share.amount for share in done.shares)
        counts = (done.units_in, done.units_out, self._ms(), cost)
        log.info("answered: %s, %d in, %d out, %.0f ms, %d µcr", done.finish, *counts)
        self.end("completed")

    def _ms(self) -> float:
        return (time.monotonic() - self._began) * 1_000
