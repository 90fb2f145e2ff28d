"""What the owner may ask of the machine: pause, resume, and what is on the cards.

Rule: a view over the guard, the residency and the cards; each change is their own.
"""

from __future__ import annotations

import time
from typing import Annotated

import trio
from pydantic import Field

from node.cards import Cards
from node.fit import DoesNotFit, Space, plan
from node.gameguard import GameGuard, guard_facts
from node.hardware import describe, look
from node.needs import Need
from node.operations import Json, Method, OperationFailed
from node.residency import Model, Residency

LONGEST_PAUSE_SECONDS = 366 * 24 * 3_600


class OwnerOperations:
    """Its `methods` are some of `OPERATIONS`."""

    def __init__(self, guard: GameGuard, residency: Residency, cards: Cards, reserve_mib: int) -> None:
        self._guard = guard
        self._residency = residency
        self._cards = cards
        self._reserve_mib = reserve_mib
        self.methods: dict[str, Method] = {"pause": self.pause, "resume": self.resume, "hardware": self.hardware}

    async def pause(self, seconds: Annotated[int, Field(ge=1, le=LONGEST_PAUSE_SECONDS)] | None = None) -> Json:
        """Step aside, for a time or until `resume`; answered when the cards are free."""
        try:
            return guard_facts(await self._guard.pause(seconds))
        except OSError as error:
            raise OperationFailed(f"the pause cannot be kept: {error}; make room on the disk") from None

    async def resume(self, anyway: bool = False) -> Json:
        """End a pause by hand; `anyway` also overrules what else asks for the machine now."""
        try:
            return guard_facts(await self._guard.resume(anyway=anyway))
        except OSError as error:
            raise OperationFailed(f"the pause cannot be ended: {error}; see the data folder") from None

    async def hardware(self) -> Json:
        """Cards, who is on them, which models are loaded, and where each would go."""
        own = {m.engine.pid: m.placement.mib for m in self._residency.models if m.engine.pid and m.placement}
        space = await look(self._cards, self._reserve_mib, own)
        now = time.monotonic()
        return {
            "about": self._cards.about,
            "cards": await trio.to_thread.run_sync(describe, self._cards, tuple(own)),
            "cpu_mib": space.cpu_mib,
            "models": [_model(model, space, now) for model in self._residency.models],
            "guard": guard_facts(self._guard.state),
        }


def _model(model: Model, space: Space, now: float) -> Json:
    place = model.placement
    return {
        "model": model.name,
        "loaded": model.ready,
        "where": "" if place is None else place.card.name if place.card else "CPU",
        "planned_mib": 0 if place is None else place.mib,
        "context": 0 if place is None else place.context,
        "pinned": model.pinned,
        "busy": model.gate.busy,
        "queued": model.gate.queued,
        "idle_seconds": round(now - model.used_at) if model.ready and model.idle else 0,
        "problem": model.problem,
        "fits": fits(model.need, space),
    }


def fits(need: Need, space: Space) -> Json:
    """Where a model would go if it had the machine for itself."""
    found = plan(need, space, ())
    if isinstance(found, DoesNotFit):
        nothing: Json = {"fits": False, "where": "", "mib": found.needed_mib, "context": 0}
        return nothing | {"said": found.message, "nearest": list(found.nearest)}
    where = found.card.name if found.card else "CPU"
    something: Json = {"fits": True, "where": where, "mib": found.mib, "context": found.context}
    return something | {"said": found.said, "nearest": []}
