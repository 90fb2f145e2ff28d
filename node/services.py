"""The models that this node serves: engine, slots and price of each.

Rule: one `ModelService` a (realm, model); what it offers to others is derived from it, never kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from node.config import RealmSection
from node.engines.port import Engine
from node.scheduler import Scheduler
from protocol.errors import ErrorCode, Refused
from protocol.ids import RealmId
from protocol.messages import NUMBERS, Device, ImagineRequest, ModelOffer, SpeakRequest, TranscribeRequest
from protocol.requests import request_name
from protocol.wishes import said_of

LOADING_RETRY_MS = 3_000  # an engine that (re)starts is asked again after this
LONGEST_TEXT = 1_024  # tokens, unless the operator says otherwise
LONGEST = {NUMBERS[ImagineRequest]: 4_096, NUMBERS[SpeakRequest]: 12_000, NUMBERS[TranscribeRequest]: 16_384}
FINISHED = frozenset({"stop", "length", "tool_calls"})
FAILED = frozenset(code.name.lower() for code in (ErrorCode.ENGINE_FAILED, ErrorCode.INTERNAL))
LONGEST_REASON = 300  # characters of an error that are kept


@dataclass(slots=True)
class Tally:
    """What became of a model's queries since the node started."""

    answered: int = 0
    failed: int = 0  # by the engine's fault or this node's; a query that was refused or cancelled is neither
    units_in: int = 0
    units_out: int = 0
    last_error: str = ""

    def count(self, outcome: str, reason: str, units_in: int, units_out: int) -> None:
        """One more query has ended: `outcome` is how an answer finished, or the name of an error code."""
        self.answered += outcome in FINISHED
        self.units_in += units_in
        self.units_out += units_out
        if outcome in FAILED:
            self.failed += 1
            self.last_error = reason[:LONGEST_REASON]


@dataclass(frozen=True, slots=True)
class ModelService:
    """One model in one realm."""

    section: RealmSection
    engine: Engine
    scheduler: Scheduler
    wakes: Callable[[], bool] = lambda: False  # not loaded now, but it will be for who asks
    device: Callable[[], Device] | None = None  # what it runs on as it is now, where that changes
    tally: Tally = field(default_factory=Tally)

    @property
    def takes_queries(self) -> bool:
        """True if a query would be answered, now or when its turn comes."""
        return self.engine.ready or self.wakes()

    @property
    def realm(self) -> RealmId:
        """Its realm."""
        return RealmId(self.section.realm)

    def is_of(self, realm: str, model: str) -> bool:
        """Is it this model in this realm?"""
        return self.section.realm == realm and self.engine.info.name == model

    @property
    def max_tokens(self) -> int:
        """The longest answer in units: the operator's limit, or what the context holds."""
        info = self.engine.info
        longest = max((LONGEST.get(number, LONGEST_TEXT) for number in info.requests), default=LONGEST_TEXT)
        limit = self.section.max_tokens or longest
        return min(limit, info.context_tokens) if info.context_tokens else limit

    def offer(self, *, free: bool, paused: bool = False) -> ModelOffer:
        """What others are told. An engine that is not ready offers no slots, nor does a node that is paused."""
        info = self.engine.info
        return ModelOffer(
            realm=self.realm,
            model=info.name,
            digest=info.digest,
            requests=info.requests,
            context_tokens=info.context_tokens,
            max_output_tokens=self.max_tokens,
            device=self.device() if self.device else info.device,
            slots=self.section.slots if self.takes_queries and not paused else 0,
            busy=self.scheduler.busy,
            queued=self.scheduler.queued,
            price_in=self.section.price_in,
            price_out=self.section.price_out,
            window=self.section.window,
            tokens_per_second=min(round(self.engine.stats().tokens_per_second * 1_000), 1_000_000),
            free=int(free),
            features=info.features,
        )


class Services:
    """All of them."""

    def __init__(self, services: Sequence[ModelService] = (), *, free: bool) -> None:
        self._services = list(services)
        self.free = free  # strangers may have something for nothing
        self._loading: set[tuple[str, str]] = set()  # (realm, model) to come
        self.paused = False  # the owner has the machine: nothing is on offer

    def expect(self, realm: str, model: str) -> None:
        """A model is being loaded: who asks for it meanwhile is told to come back."""
        self._loading.add((realm, model))

    def add(self, service: ModelService) -> None:
        """Serve one more, now that its engine is loaded."""
        self._loading.discard((service.realm, service.engine.info.name))
        self._services.append(service)

    def remove(self, realm: str, model: str) -> None:
        """Offer a model no longer, or expect it no longer."""
        self._loading.discard((realm, model))
        self._services = [service for service in self._services if not service.is_of(realm, model)]

    def reprice(self, realm: str, model: str, price_in: int, price_out: int) -> None:
        """Other prices from the next query on; those that run are paid as they were agreed."""
        prices = {"price_in": price_in, "price_out": price_out}
        self._services = [
            replace(service, section=service.section.model_copy(update=prices))
            if service.is_of(realm, model)
            else service
            for service in self._services
        ]

    def uses(self, model: str) -> bool:
        """Is it served, or expected?"""
        names = {service.engine.info.name for service in self._services} | {name for _, name in self._loading}
        return model in names

    @property
    def loading(self) -> tuple[str, ...]:
        """Names of the models that are being loaded."""
        return tuple(sorted(model for _, model in self._loading))

    def __iter__(self) -> Iterator[ModelService]:
        return iter(self._services)

    def offers(self) -> tuple[ModelOffer, ...]:
        """What this node offers now."""
        return tuple(service.offer(free=self.free, paused=self.paused) for service in self._services)

    def choose(self, realm: RealmId, model: str, request: int, features: Sequence[int] = ()) -> ModelService:
        """The service of `model`, or the least busy one of the realm if `model` is "", among those that take such a
        request and have these features. Raises `Refused`."""
        named = [s for s in self._services if s.realm == realm and model in ("", s.engine.info.name)]
        fitting = [service for service in named if request in service.engine.info.requests]
        if named and not fitting:
            kinds = sorted({request_name(number) for service in named for number in service.engine.info.requests})
            message = f"{realm} {model} takes {', '.join(kinds)} requests here, not {request_name(request)}"
            raise Refused(ErrorCode.NO_SUCH_MODEL, message)
        able = [service for service in fitting if set(features) <= set(service.engine.info.features)]
        if fitting and not able:
            raise Refused(ErrorCode.UNSUPPORTED_FEATURE, f"no {model or realm} here {said_of(features)}")
        fitting = able
        expected = any(r == realm and model in ("", name) for r, name in self._loading)
        if not fitting and not expected:
            served = ", ".join(f"{s.realm} {s.engine.info.name}" for s in self._services) or "nothing"
            raise Refused(ErrorCode.NO_SUCH_MODEL, f"{realm} {model} is not served here; this node serves {served}")
        ready = [service for service in fitting if service.takes_queries]
        if not ready:
            outer = fitting and all(service.section.outer for service in fitting)
            message = "the worker's server is down" if outer else "the model is being loaded"
            raise Refused(ErrorCode.ENGINE_FAILED, message, LOADING_RETRY_MS)
        return min(ready, key=lambda service: service.scheduler.busy + service.scheduler.queued)
