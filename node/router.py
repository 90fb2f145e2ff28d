"""Answer one query: rank, try, fail over, within one deadline.

Rule: the asker sees one answer. Whatever a lost worker delivered stands and is continued by the next; a refusal, a
time-out or a broken answer goes on to the next candidate; only `Completed` means whole. The owner of nothing:
offers and experience are the directory's, attempts are the requester's.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import trio

from node.answers import (
    AnswerEvent,
    Bytes,
    Completed,
    Delta,
    Failed,
    Progressed,
    Question,
    Routed,
    TokenLogprob,
    ToolCalled,
    Waiting,
    WorkerShare,
)
from node.directory import Directory
from node.log_context import query_named
from node.measures import Measures
from node.requester import Listener, Outcome, Part, Requester
from protocol.errors import CODES, ErrorCode
from protocol.ids import NodeId, RealmId, short
from protocol.messages import ChatRequest, Chosen, ImagineRequest
from protocol.requests import request_number
from protocol.routing import Candidate, Ranking, Requirements, explain_no_peer, lacks_features
from protocol.wishes import features_needed, json_object

log = logging.getLogger("mtor.router")

MAX_ATTEMPTS = 8  # workers asked for one query; more would only spread a poison query
NO_PEER_RETRY_MS = 5_000  # offers come and go within seconds
LAST_WORD_MS = 1_000  # of the deadline, kept for the worker's last word and the settlement
DISCOVERY_SECONDS = 3.0  # to wait for a first offer when none is known
RECOVERY_PAUSE_SECONDS = 0.5  # between looks for somebody to continue
PATIENCE_SECONDS = (
    15.0  # for a first worker, while all that fit are lost: one that was avoided meanwhile is tried again
)
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how a preview begins: a stranger's bytes are shown to people
LEAST_LOGPROB = -9999.0  # that is told of a token; OpenAI's word for "as good as impossible"
PASSING = frozenset(
    {
        ErrorCode.WORKER_LOST,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.OVERLOADED,
        ErrorCode.PAUSED,
        ErrorCode.MALFORMED,
        ErrorCode.INTERNAL,
    }
)  # troubles that pass, or that another worker does not have

Emit = Callable[[AnswerEvent], Awaitable[None]]


class Router:
    """Answers queries. Each has an `_Answering` of its own."""

    def __init__(
        self,
        directory: Directory,
        requester: Requester,
        seek: Callable[[RealmId], None],
        hint: Callable[[], str] = lambda: "",
        backups: Mapping[RealmId, Sequence[RealmId]] = MappingProxyType({}),
        measures: Measures | None = None,
    ) -> None:
        """`seek` starts a search for offers of a realm; `hint` says what this node itself is waiting for; `backups`
        are the realms that stand in for another while nobody there can answer."""
        self.directory = directory
        self.requester = requester
        self.seek = seek
        self.hint = hint
        self.backups = backups
        self.measures = measures or Measures()

    async def answer(self, question: Question, emit: Emit) -> None:
        """Emit events; the last is `Completed` or `Failed`. Cancel the surrounding scope to stop."""
        answering = _Answering(self, question, emit)
        with query_named(question.query_id.hex()):
            with trio.move_on_after(question.deadline_ms / 1_000) as deadline:
                await answering.run()
            if deadline.cancelled_caught:
                await answering.deadline_passed()


class _Answering:
    """One query."""

    def __init__(self, router: Router, question: Question, emit: Emit) -> None:
        self._router = router
        self._question = question
        self._emit = emit
        self._began = time.monotonic()
        self._text: list[str] = []
        self._calls: list[ToolCalled] = []  # of the worker that is asked now
        self._data: list[Bytes] = []  # of a picture, which is handed over whole
        self._data_bytes = 0  # handed over
        self._skip = 0  # characters or bytes that a worker which begins anew will say again
        self._units_out = 0
        self._units_in = 0
        self._ttft_ms = 0.0
        self._realms = (question.realm, *router.backups.get(question.realm, ()))
        self._tried: set[tuple[RealmId, NodeId]] = set()
        self._shares: list[WorkerShare] = []
        self._attempts = 0
        self._continued = False
        self._model = ""
        self._last: Outcome | None = None
        self._waits = False  # nobody works on it, and somebody may come back
        self._told: Waiting | None = None

    async def run(self) -> None:
        """Try candidates until one finishes or none is left."""
        while self._attempts < MAX_ATTEMPTS:
            candidate = await self._next_candidate()
            if candidate is None:
                return
            outcome = await self._attempt(candidate)
            if outcome.finish:
                await self._complete(outcome)
                return
            self._last = outcome
            if self._reached_limit():
                await self._complete(outcome)
                return
            if not self._worth_another(outcome):
                break
        await self._fail()

    async def deadline_passed(self) -> None:
        """The time is used up, by work or by waiting: only one who worked would have needed more of it."""
        reason = self._last.reason if self._last else "no worker answered"
        seconds = self._question.deadline_ms / 1_000
        if self._waits:
            await self._emit(self._nobody_went_on(seconds))
            return
        message = (
            f"no whole answer within {seconds:.0f} s; last: {reason}. Ask for less, or allow more time (deadline_ms)"
        )
        await self._emit(Failed(ErrorCode.DEADLINE_EXCEEDED, message, 0, tuple(self._shares)))

    def _nobody_went_on(self, seconds: float) -> Failed:
        waiting = self._why_it_waits()
        model = self._model or self._question.requirements.model or "NAME"
        goal = "go on with the answer" if self._text or self._data_bytes else "answer"
        message = (
            f"{waiting.reason}, and nobody else could {goal} within {seconds:.0f} s. Start another worker "
            f"(`mtor up --model {model}` on another machine), or try again later"
        )
        code = self._last.code if self._last and self._last.code else ErrorCode.NO_PEER
        return Failed(code, message, waiting.retry_ms, tuple(self._shares))

    # --- choosing ------------------------------------------------------------------------------------

    async def _next_candidate(self) -> Candidate | None:
        """The best untried candidate. Emits `Failed` and gives None if there is none to come."""
        ranking = self._rank()
        if not ranking.candidates and not self._attempts:
            ranking = await self._discover()
        while not ranking.candidates and self._may_wait(ranking):
            self._waits = True
            await self._tell_why_it_waits()
            await trio.sleep(RECOVERY_PAUSE_SECONDS)  # somebody may come back, or be no longer avoided
            self._router.seek(self._question.realm)
            self._tried.clear()
            ranking = self._rank()
        self._waits = False
        if ranking.candidates:
            return ranking.candidates[0]
        if self._last is not None:
            await self._fail()
            return None
        wanted = self._wanted()
        reason = explain_no_peer(self._question.realm, wanted, ranking)
        if lacks_features(ranking):
            await self._emit(Failed(ErrorCode.UNSUPPORTED_FEATURE, reason))
            return None
        hint = self._router.hint()
        await self._emit(Failed(ErrorCode.NO_PEER, f"{reason}. {hint}" if hint else reason, NO_PEER_RETRY_MS))
        return None

    async def _tell_why_it_waits(self) -> None:
        """Once for each reason, until a worker takes the query."""
        waiting = self._why_it_waits()
        if waiting != self._told:
            self._told = waiting
            await self._emit(waiting)

    def _why_it_waits(self) -> Waiting:
        if self._last is None:
            return Waiting("the workers that fit could not be reached a moment ago", 0)
        return Waiting(self._last.reason, self._last.retry_after_ms)

    def _may_wait(self, ranking: Ranking) -> bool:
        """True if waiting may help: for a begun answer until the deadline, for another a short while."""
        if self._last is not None and self._last.code not in PASSING:
            return False
        if self._text or self._data_bytes:
            return True
        lost = (
            ranking.avoided if self._last is None else self._last.code not in (ErrorCode.OVERLOADED, ErrorCode.PAUSED)
        )
        return lost and time.monotonic() - self._began < PATIENCE_SECONDS

    def _rank(self) -> Ranking:
        """Those who could answer, in the first realm where somebody can; otherwise why nobody in the asked one can."""
        question, wanted = self._question, self._wanted()
        rankings = []
        for realm in self._realms:
            without = frozenset(node for tried, node in self._tried if tried == realm)
            ranking = self._router.directory.rank(realm, wanted, question.query_id, without)
            if ranking.candidates:
                return ranking
            rankings.append(ranking)
        return rankings[0]

    def _wanted(self) -> Requirements:
        """What the asker insists on, and what the question itself takes."""
        request = self._question.request
        return replace(self._question.requirements, request=request_number(request), features=features_needed(request))

    async def _discover(self) -> Ranking:
        """Nobody fits: perhaps offers are still on their way. Wait a moment for a first one that does."""
        self._router.seek(self._question.realm)
        ranking = self._rank()
        with trio.move_on_after(DISCOVERY_SECONDS):
            while not ranking.candidates:
                await self._router.directory.wait_changed()
                ranking = self._rank()
        return ranking

    # --- trying --------------------------------------------------------------------------------------

    async def _attempt(self, candidate: Candidate) -> Outcome:
        self._attempts += 1
        self._tried.add((candidate.model.realm, candidate.node))
        attempt = self._attempts
        self._model = self._model or candidate.model.model
        part = self._part()
        self._continued = self._continued or bool(self._text or self._data_bytes)

        async def queued(position: int, wait_ms: int) -> None:
            self._told = None
            await self._emit(Routed(candidate.node, candidate.model.model, attempt, position, wait_ms))

        listener = Listener(self._deliver, self._called, self._deliver_data, self._progress, queued)
        with self._router.directory.asking(candidate.node):
            outcome = await self._router.requester.ask(
                candidate, self._question, part, self._workers_time_ms(), listener
            )
        self._learn(candidate, outcome)
        self._count(outcome)
        self._measure(candidate, outcome)
        level = logging.DEBUG if outcome.finish else logging.INFO  # the end of the answer is told anyway
        log.log(level, "attempt %d at %s: %s", attempt, short(candidate.node), outcome.finish or _why(outcome))
        return outcome

    def _measure(self, candidate: Candidate, outcome: Outcome) -> None:
        measures = self._router.measures
        realm, where = measures.realm(candidate.model.realm), "own" if candidate.local else "remote"
        code = outcome.code.name.lower() if outcome.code else "completed"
        ended = "completed" if outcome.finish else "refused" if outcome.refused else "failed"
        measures.count("mtor_attempts", realm, where, ended)
        if ended != "completed":
            measures.count(f"mtor_attempt_{'refusals' if outcome.refused else 'failures'}", realm, code)
        if outcome.hop_seconds and not candidate.local:
            measures.observe("mtor_hop_seconds", realm, seconds=outcome.hop_seconds)
        if outcome.queue_seconds is not None:
            measures.observe("mtor_queue_wait_seconds", realm, seconds=outcome.queue_seconds)

    def _part(self) -> Part:
        """What the next worker goes on from. Only conversations can be continued; of anything else the next one makes
        the whole again, and what it repeats is left out."""
        self._calls.clear()  # they are no text that could be gone on from: the next worker makes them anew
        if isinstance(self._question.request, ChatRequest):
            return Part("".join(self._text), self._units_out) if self._text else Part()
        self._data.clear()
        self._skip = sum(map(len, self._text)) + self._data_bytes
        return Part()

    async def _deliver(self, text: str, tokens: Sequence[Chosen]) -> None:
        text = text[self._skipped(len(text)) :]
        if not text:
            return
        self._note_first()
        self._text.append(text)
        await self._emit(Delta(text, tuple(map(_logprob, tokens))))

    def _called(self, name: str, arguments: str) -> None:
        """Calls are handed over when they are whole."""
        self._note_first()
        if name:
            self._calls.append(ToolCalled(f"call_{secrets.token_hex(12)}", name, arguments))
        else:
            self._calls[-1] = replace(self._calls[-1], arguments=self._calls[-1].arguments + arguments)

    async def _deliver_data(self, media_type: str, data: bytes) -> None:
        self._note_first()
        if isinstance(self._question.request, ImagineRequest):
            self._data.append(Bytes(media_type, data))
            return
        data = data[self._skipped(len(data)) :]
        self._data_bytes += len(data)
        if data:
            await self._emit(Bytes(media_type, data))

    async def _progress(self, done: int, total: int, preview: bytes) -> None:
        request = self._question.request
        welcome = isinstance(request, ImagineRequest) and request.previews and preview.startswith(PICTURES)
        await self._emit(Progressed(done, total, preview if welcome else b""))

    def _skipped(self, length: int) -> int:
        """How much of the next `length` the asker has already."""
        skipped = min(length, self._skip)
        self._skip -= skipped
        return skipped

    def _note_first(self) -> None:
        self._ttft_ms = self._ttft_ms or (time.monotonic() - self._began) * 1_000

    def _count(self, outcome: Outcome) -> None:
        self._units_in = self._units_in or outcome.units_in
        self._units_out += outcome.units_out
        if outcome.share is not None:
            self._shares.append(outcome.share)

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        """Tell the directory how the worker did. What is the asker's own fault teaches nothing."""
        directory, node, model = self._router.directory, candidate.node, candidate.model.model
        if outcome.finish:
            speed = (outcome.units_out - 1) / outcome.seconds if outcome.seconds and outcome.units_out > 1 else 0.0
            directory.succeeded(node, model, outcome.ttft_ms, speed)
        elif outcome.code is ErrorCode.WORKER_LOST:
            directory.unreachable(node, model)
        elif outcome.refused or outcome.code is ErrorCode.PAUSED:  # in mid-answer too, it said when to come back
            directory.refused(node, model, outcome.retry_after_ms)
        elif outcome.code is not None and CODES[outcome.code].fault == "worker":
            directory.failed(node, model)

    def _worth_another(self, outcome: Outcome) -> bool:
        """A worker that broke a rule says nothing about the query; otherwise the code decides."""
        return outcome.code is ErrorCode.MALFORMED or (outcome.code is not None and CODES[outcome.code].try_another)

    def _reached_limit(self) -> bool:
        request = self._question.request
        return isinstance(request, ChatRequest) and 0 < request.max_tokens <= self._units_out

    def _workers_time_ms(self) -> int:
        """The time left, less a little: a worker that ends first can still say so, and be paid."""
        left = self._question.deadline_ms - round((time.monotonic() - self._began) * 1_000)
        return max(1, left - min(LAST_WORD_MS, left // 5))

    # --- ending --------------------------------------------------------------------------------------

    async def _complete(self, outcome: Outcome) -> None:
        if isinstance(self._question.request, ImagineRequest) and not self._data:
            await self._emit(Failed(ErrorCode.ENGINE_FAILED, "the worker made no picture", 0, tuple(self._shares)))
            return
        for part in self._data:
            await self._emit(part)
        calls = [call for call in self._calls if _is_object(call.arguments)]  # one that the limit cut is none
        for call in calls:
            await self._emit(call)
        finish = outcome.finish or "length"
        if finish != "length":
            finish = "tool_calls" if calls else "stop"
        await self._emit(
            Completed(
                finish=finish,
                model=self._model,
                units_in=self._units_in,
                units_out=self._units_out,
                ttft_ms=round(self._ttft_ms),
                shares=tuple(self._shares),
                failover=self._continued,
            )
        )

    async def _fail(self) -> None:
        last = self._last
        assert last is not None and last.code is not None
        tried = f" ({self._attempts} attempts)" if self._attempts > 1 else ""
        await self._emit(Failed(last.code, last.reason + tried, last.retry_after_ms, tuple(self._shares)))


def _why(outcome: Outcome) -> str:
    """How an attempt ended, for the log: a worker's own sentence may repeat what was asked, so its code has to do."""
    code = outcome.code.name.lower() if outcome.code else "no last word"
    retry = f", retry in {outcome.retry_after_ms} ms" if outcome.retry_after_ms else ""
    return (f"{'refused: ' if outcome.refused else ''}{code}" if outcome.says_worker else outcome.reason) + retry


def _logprob(chosen: Chosen) -> TokenLogprob:
    top = tuple((_shown(each.token), _natural(each.nats)) for each in chosen.likeliest)
    return TokenLogprob(_shown(chosen.token), _natural(chosen.nats), top, chosen.token)


def _shown(token: bytes) -> str:
    return token.decode(errors="replace")


def _natural(nats: int) -> float:
    return max(-nats / 1_000_000, LEAST_LOGPROB) if nats else 0.0


def _is_object(text: str) -> bool:
    try:
        json_object(text)
    except ValueError:
        return False
    return True
