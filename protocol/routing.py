"""Which worker to ask, best first.

Rule: pure. Offers, requirements, own experience and `now_ms` come in; ordered candidates and the reasons for
every offer that was left out go out. A worker's claims about its speed count only until there is own experience,
and never for more than a modest machine's speed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from protocol import params
from protocol.ids import NodeId, RealmId, peer_id, short
from protocol.messages import ModelOffer
from protocol.offers import KnownOffer
from protocol.requests import request_name
from protocol.wishes import said_of

TYPICAL_ANSWER_TOKENS = 128  # candidates are compared by the expected time of such an answer
UNKNOWN_TTFT_MS = 1_000  # a peer nobody has tried: neither trusted nor shunned
UNKNOWN_TOKENS_PER_SECOND = 20.0
MAX_CLAIMED_TOKENS_PER_SECOND = 50.0  # a claim above this is worth no more than this
BREAKER_FAILURES = 3  # consecutive failures that open the circuit breaker
BREAKER_FIRST_MS = 10 * params.SECONDS
BREAKER_MOST_MS = 5 * params.MINUTES
MEMORY = 0.3  # weight of the newest measurement in the moving averages
AVOIDED = "a worker that answers"
LACKING = "a model that "
MOST_SHOWN = 6  # offers in an explanation
USES = {
    "chat": "answers text: ask it without pictures",
    "vision": "answers pictures: add one (`mtor ask --image FILE`)",
    "imagine": "makes pictures (`mtor imagine`)",
    "speak": "speaks (`mtor say`)",
    "transcribe": "writes down sounds (`mtor transcribe`)",
}  # of a model, by the kind of request that it takes: what to do instead of asking for what it does not
CROWDED = 1.0  # how much longer an answer takes where all slots are in use: they share one card
PRICE_MS_PER_MICRO = 0.2  # 1,000 µcredits a thousand tokens dearer is worth 200 ms of waiting


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the asker insists on. Zero and "" mean no wish."""

    model: str = ""
    min_vram_mib: int = 0
    device_kind: str = ""  # "cuda", "mps" or "cpu"
    max_price_in: int = 0  # µcredits for 1,000 prompt tokens
    max_price_out: int = 0  # µcredits for 1,000 output tokens
    min_context_tokens: int = 0
    worker: str = ""  # a peer id: this worker and no other
    request: int = 0  # the number of the request's kind
    features: tuple[int, ...] = ()  # numbers of what the model must be able to do beyond text


@dataclass(frozen=True, slots=True)
class Experience:
    """How one model of one worker did for us. Times in ms, averages move by `MEMORY`."""

    successes: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    ttft_ms: float = 0.0  # 0: not measured
    tokens_per_second: float = 0.0  # 0: not measured
    avoid_until_ms: int = 0  # open circuit breaker, or "come back later"

    @property
    def failure_rate(self) -> float:
        """0 … 1, pulled towards "good" while there is little experience."""
        return self.failures / (self.successes + self.failures + 2)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker's model that meets every requirement."""

    known: KnownOffer
    model: ModelOffer
    expected_ms: float
    local: bool

    @property
    def node(self) -> NodeId:
        """The worker."""
        return self.known.node


@dataclass(frozen=True, slots=True)
class Unfit:
    """An offer that was left out: the requirement that failed, and what it offers instead."""

    node: NodeId
    model: ModelOffer
    requirement: str
    offered: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, and why the others are not among them."""

    candidates: tuple[Candidate, ...]
    unfit: tuple[Unfit, ...]

    @property
    def avoided(self) -> bool:
        """True if somebody would fit, and is only avoided for a while."""
        return any(reason.requirement == AVOIDED for reason in self.unfit)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What this node knows when it ranks. Keys of the mappings are (node, model name)."""

    local: NodeId
    experience: Mapping[tuple[NodeId, str], Experience] = field(default_factory=dict)
    in_flight: Mapping[NodeId, int] = field(default_factory=dict)  # our own queries there now


def rank(
    realm: RealmId,
    requirements: Requirements,
    offers: Iterable[KnownOffer],
    knowledge: Knowledge,
    now_ms: int,
    tie: bytes = b"",
) -> Ranking:
    """Order all models on offer in `realm`, best first. Equals are spread by a hash of `tie` (the query id)."""
    candidates: list[Candidate] = []
    unfit: list[Unfit] = []
    for known in offers:
        for model in known.offer.models:
            reason = _unfit(realm, requirements, known, model, knowledge, now_ms)
            if reason is None:
                candidates.append(_candidate(known, model, knowledge))
            else:
                unfit.append(Unfit(known.node, model, *reason))
    candidates.sort(key=lambda candidate: (round(candidate.expected_ms, -1), _spread(candidate, tie)))
    return Ranking(tuple(candidates), tuple(unfit))


def explain_no_peer(realm: RealmId, requirements: Requirements, ranking: Ranking) -> str:
    """Why nobody can serve: which requirement failed, and what is on offer, in a sentence or two."""
    here = [each for each in ranking.unfit if each.model.realm == realm]
    if requirements.model and all(each.model.model != requirements.model for each in here):
        return _explain_no_model(realm, requirements.model, ranking.unfit)
    if not here:
        elsewhere = _listed(f"{each.model.model} in {each.model.realm}" for each in ranking.unfit)
        start = f"no peer offers {realm} now; serve a model here (`mtor serve NAME`), or see `mtor peers`"
        return f"{start}. On offer elsewhere: {elsewhere}" if elsewhere else start
    meant = [each for each in here if not each.requirement.startswith(("worker ", "model "))] or here
    if lacks_features(ranking):
        return _explain_features(realm, requirements, here)
    failed = ", ".join(sorted({each.requirement for each in meant}))
    shown = _listed(f"{short(each.node)} {each.model.model} {each.offered}" for each in meant)
    return f"no peer can serve {realm}: {failed} not met. On offer: {shown}"


def lacks_features(ranking: Ranking) -> bool:
    """True if somebody would fit but for what the model cannot do, and nobody can: waiting would not help."""
    earlier = ("realm ", "worker ", "model ", LACKING)
    failed = [each.requirement for each in ranking.unfit]
    lacking = any(requirement.startswith(LACKING) for requirement in failed)
    others = [each for each in failed if not each.startswith(earlier) and not each.endswith(" requests")]
    return lacking and not others and not ranking.candidates


def _explain_features(realm: RealmId, requirements: Requirements, here: Iterable[Unfit]) -> str:
    """No model that is meant can do what is wished: what they can, and which others could."""
    start = f"no {requirements.model or 'model'} on offer in {realm} {said_of(requirements.features)}"
    lacking = (each for each in here if each.requirement.startswith(LACKING))
    shown = _listed(f"{each.model.model} {each.offered}" for each in lacking)
    able = _listed(each.model.model for each in here if set(requirements.features) <= set(each.model.features))
    return f"{start}; on offer: {shown}" + (f". Models there that can: {able}" if able else "")


def _explain_no_model(realm: RealmId, wanted: str, unfit: Iterable[Unfit]) -> str:
    """Nobody in the realm has the model: perhaps it is one for something else, or its name is another."""
    start = f"no peer offers the model {wanted} in {realm}"
    uses = [f"{wanted} {_uses(each.model)}" for each in unfit if each.model.model == wanted]
    if uses:
        return f"{start}; {uses[0]}"
    names = _listed(each.model.model for each in unfit if each.model.realm == realm)
    return f"{start}; on offer there: {names}" if names else f"{start}, nor another model there; see `mtor realms`"


def _uses(model: ModelOffer) -> str:
    """What a model is for; of several things that it takes, the first that is its own."""
    kinds = [request_name(number) for number in model.requests]
    special = [kind for kind in kinds if kind != "chat"] or kinds
    known = [USES[kind] for kind in special if kind in USES]
    return known[0] if known else f"takes {', '.join(kinds)} requests in {model.realm}"


def _listed(texts: Iterable[str]) -> str:
    """Each once, and not too many of them."""
    each = sorted(set(texts))
    more = f"; and {len(each) - MOST_SHOWN} more" if len(each) > MOST_SHOWN else ""
    return "; ".join(each[:MOST_SHOWN]) + more


def after_success(known: Experience, ttft_ms: float, tokens_per_second: float) -> Experience:
    """Experience after a whole answer."""
    return replace(
        known,
        successes=known.successes + 1,
        consecutive_failures=0,
        avoid_until_ms=0,
        ttft_ms=_moved(known.ttft_ms, ttft_ms),
        tokens_per_second=_moved(known.tokens_per_second, tokens_per_second),
    )


def after_failure(known: Experience, now_ms: int) -> Experience:
    """Experience after a lost or broken answer; the third in a row opens the breaker, longer each time."""
    consecutive = known.consecutive_failures + 1
    excess = consecutive - BREAKER_FAILURES
    pause = 0 if excess < 0 else min(BREAKER_FIRST_MS << min(excess, 10), BREAKER_MOST_MS)
    return replace(
        known,
        failures=known.failures + 1,
        consecutive_failures=consecutive,
        avoid_until_ms=max(known.avoid_until_ms, now_ms + pause),
    )


def after_refusal(known: Experience, retry_after_ms: int, now_ms: int) -> Experience:
    """Experience after an honest "not now": no failure, but no need to ask again before that time."""
    pause = min(retry_after_ms, BREAKER_MOST_MS)
    return replace(known, avoid_until_ms=max(known.avoid_until_ms, now_ms + pause))


def _moved(average: float, measured: float) -> float:
    return measured if average == 0.0 else (1 - MEMORY) * average + MEMORY * measured


def _unfit(
    realm: RealmId,
    wanted: Requirements,
    known: KnownOffer,
    model: ModelOffer,
    knowledge: Knowledge,
    now_ms: int,
) -> tuple[str, str] | None:
    """(requirement, what is offered) of the first requirement that fails, or None."""
    device = model.device
    own = known.node == knowledge.local  # one's own card costs nothing
    avoid_until = _experience(knowledge, known.node, model).avoid_until_ms
    checks = (
        (model.realm != realm, f"realm {realm}", model.realm),
        (bool(wanted.worker) and wanted.worker != peer_id(known.node), f"worker {wanted.worker}", "is another worker"),
        (bool(wanted.model) and wanted.model != model.model, f"model {wanted.model}", model.model),
        (
            bool(wanted.request) and wanted.request not in model.requests,
            f"{request_name(wanted.request)} requests",
            f"takes {', '.join(map(request_name, model.requests))}: it {_uses(model)}",
        ),
        (
            not set(wanted.features) <= set(model.features),
            LACKING + said_of(wanted.features),
            f"{said_of(model.features)}, and no more" if model.features else "answers text alone",
        ),
        (known.expired(now_ms), "an offer that is still valid", "was offered a while ago"),
        (device.vram_mib < wanted.min_vram_mib, f"{wanted.min_vram_mib} MiB of VRAM", f"has {device.vram_mib} MiB"),
        (
            bool(wanted.device_kind) and wanted.device_kind != device.kind,
            f"device {wanted.device_kind}",
            f"runs on {device.kind}, not {wanted.device_kind}",
        ),
        (
            model.context_tokens < wanted.min_context_tokens,
            f"{wanted.min_context_tokens} tokens of context",
            f"looks at {model.context_tokens} tokens at most",
        ),
        (
            not own and 0 < wanted.max_price_in < model.price_in,
            f"price in at most {wanted.max_price_in}",
            f"takes {model.price_in} µcr per 1,000 tokens",
        ),
        (
            not own and 0 < wanted.max_price_out < model.price_out,
            f"price out at most {wanted.max_price_out}",
            f"takes {model.price_out} µcr per 1,000 tokens",
        ),
        (model.slots == 0, "a free slot", "is paused by its owner, or loading"),
        (avoid_until > now_ms, AVOIDED, f"did not answer; left alone for {-(-(avoid_until - now_ms) // 1_000)} s more"),
    )
    return next(((requirement, offered) for failed, requirement, offered in checks if failed), None)


def _candidate(known: KnownOffer, model: ModelOffer, knowledge: Knowledge) -> Candidate:
    experience = _experience(knowledge, known.node, model)
    speed = experience.tokens_per_second or _claimed_speed(model)
    one_answer = TYPICAL_ANSWER_TOKENS / speed * 1_000
    ahead = max(model.busy + model.queued, knowledge.in_flight.get(known.node, 0))
    waiting = max(0, ahead + 1 - model.slots) / model.slots * one_answer
    crowding = CROWDED * min(1.0, ahead / model.slots) * one_answer  # spreads queries before anybody is full
    local = known.node == knowledge.local
    price = 0.0 if local else model.price_out * PRICE_MS_PER_MICRO
    answering = waiting + (experience.ttft_ms or UNKNOWN_TTFT_MS) + one_answer + crowding
    expected = answering * (1 + 4 * experience.failure_rate)
    return Candidate(known, model, expected + price, local)


def _claimed_speed(model: ModelOffer) -> float:
    claimed = model.tokens_per_second / 1_000
    return min(claimed, MAX_CLAIMED_TOKENS_PER_SECOND) if claimed else UNKNOWN_TOKENS_PER_SECOND


def _experience(knowledge: Knowledge, node: NodeId, model: ModelOffer) -> Experience:
    return knowledge.experience.get((node, model.model), Experience())


def _spread(candidate: Candidate, tie: bytes) -> bytes:
    return hashlib.sha256(tie + candidate.node).digest()
