"""The models that this node serves: engine, slots and price of each.

Rule: one `ModelService` a (realm, model); what it offers to others is derived from it, never kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from node.config import RealmSection
from node.engines.port import Engine
from node.scheduler import Scheduler
from protocol.errors import ErrorCode, Refused
from protocol.ids import RealmId
from protocol.messages import ModelOffer

LOADING_RETRY_MS = 3_000  # an engine that (re)starts is asked again after this


@dataclass(frozen=True, slots=True)
class ModelService:
    """One model in one realm."""

    section: RealmSection
    engine: Engine
    scheduler: Scheduler

    @property
    def realm(self) -> RealmId:
        """Its realm."""
        return RealmId(self.section.realm)

    @property
    def max_tokens(self) -> int:
        """The longest answer: the operator's limit, or what the context holds."""
        return min(self.section.max_tokens, self.engine.info.context_tokens)

    def offer(self, *, free: bool) -> ModelOffer:
        """What others are told. An engine that is not ready offers no slots."""
        info = self.engine.info
        return ModelOffer(
            realm=self.realm,
            model=info.name,
            digest=info.digest,
            context_tokens=info.context_tokens,
            max_output_tokens=self.max_tokens,
            device=info.device,
            slots=self.section.slots if self.engine.ready else 0,
            busy=self.scheduler.busy,
            queued=self.scheduler.queued,
            price_in=self.section.price_in,
            price_out=self.section.price_out,
            window=self.section.window,
            tokens_per_second=min(round(self.engine.stats().tokens_per_second * 1_000), 1_000_000),
            free=int(free),
        )


class Services:
    """All of them."""

    def __init__(self, services: Sequence[ModelService] = (), *, free: bool) -> None:
        self._services = list(services)
        self._free = free
        self._loading: set[tuple[str, str]] = set()  # (realm, model) to come

    def expect(self, realm: str, model: str) -> None:
        """A model is being loaded: who asks for it meanwhile is told to come back."""
        self._loading.add((realm, model))

    def add(self, service: ModelService) -> None:
        """Serve one more, now that its engine is loaded."""
        self._loading.discard((service.realm, service.engine.info.name))
        self._services.append(service)

    @property
    def loading(self) -> tuple[str, ...]:
        """Names of the models that are being loaded."""
        return tuple(sorted(model for _, model in self._loading))

    def __iter__(self) -> Iterator[ModelService]:
        return iter(self._services)

    def offers(self) -> tuple[ModelOffer, ...]:
        """What this node offers now."""
        return tuple(service.offer(free=self._free) for service in self._services)

    def choose(self, realm: RealmId, model: str) -> ModelService:
        """The service of `model`, or the least busy one of the realm if `model` is "". Raises `Refused`."""
        fitting = [s for s in self._services if s.realm == realm and model in ("", s.engine.info.name)]
        expected = any(r == realm and model in ("", name) for r, name in self._loading)
        if not fitting and not expected:
            served = ", ".join(f"{s.realm} {s.engine.info.name}" for s in self._services) or "nothing"
            raise Refused(ErrorCode.NO_SUCH_MODEL, f"{realm} {model} is not served here; this node serves {served}")
        ready = [service for service in fitting if service.engine.ready]
        if not ready:
            raise Refused(ErrorCode.ENGINE_FAILED, "the model is being loaded", LOADING_RETRY_MS)
        return min(ready, key=lambda service: service.scheduler.busy + service.scheduler.queued)
