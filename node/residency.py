"""Which models are loaded: those that do not fit together take turns.

Rule: one owner, one loop, one change at a time. A model that is asked for and is not loaded gets room: where it fits
beside the others nobody moves; else the least recently used idle one leaves, a busy one closes its gate, ends what it
has begun and leaves then; a pinned one stays. Whoever is loaded keeps its turn for a while, or two busy models would
spend their time on loading. A model is never unloaded while it answers, except by `suspend`: the owner comes first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import trio

from node.fit import DoesNotFit, Placement, Resident, Space, plan
from node.needs import Need

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.residency")

TURN_SECONDS = 30.0  # at least, while it has work of its own and another waits
TURN_LOADS = 3.0  # and so many times as long as its loading took, so that loading is a quarter of the time at most
RETRY_SECONDS = 30.0  # after a model could not be loaded
LOOK_SECONDS = 5.0  # for room that others made, and for idle ones


class LoadFailed(Exception):
    """A model could not be loaded; the message says why."""


class Loadable(Protocol):
    """An engine whose process can be started and ended."""

    @property
    def pid(self) -> int | None:
        """Its process, None without one."""

    async def load(self, placement: Placement) -> None:
        """Start it there; returns once it answers. Raises `LoadFailed`. Cancelled, it leaves no process behind."""

    async def unload(self) -> None:
        """End its process, now; returns once its memory is free. Nothing happens without one."""


class Gate(Protocol):
    """The queries of one model: admitted ones are busy, the others wait outside."""

    @property
    def busy(self) -> int:
        """Queries that are being answered."""

    @property
    def queued(self) -> int:
        """Queries that wait."""

    def open(self) -> None:
        """Admit queries."""

    def close(self) -> None:
        """Let them wait, each with its position."""

    def turn_away(self, why: str, retry_after_ms: int) -> None:
        """Refuse all that wait: their turn would not come."""


Tell = Callable[["Step", str], None]


class Step(Enum):
    """What becomes of a model that is to be loaded."""

    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


def nobody(step: Step, message: str) -> None:
    """Who is told when nobody wants to know."""


@dataclass(eq=False)
class Model:
    """One model that this node serves."""

    name: str
    need: Need
    engine: Loadable
    gate: Gate
    pinned: bool = False
    placement: Placement | None = None  # while it is loaded, or being loaded
    ready: bool = False
    used_at: float = 0.0
    loaded_at: float = 0.0
    load_seconds: float = 0.0
    problem: str = ""  # why it could not be loaded last
    tried_at: float | None = None
    tell: Tell = nobody  # how its loading goes on
    leaving: bool = False

    @property
    def idle(self) -> bool:
        """Nobody is served or waits."""
        return not (self.gate.busy or self.gate.queued)


Look = Callable[[Mapping[int, int]], Awaitable[Space]]  # (MiB planned for each of our processes) -> what there is


class Residency:
    """See the rule above. Poke it whenever a gate's queue changes."""

    def __init__(
        self,
        models: Sequence[Model],
        look: Look,
        idle_unload_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._look = look
        self.idle_unload_seconds = idle_unload_seconds  # 0: never
        self._clock = clock
        self._turn_seconds = turn_seconds
        self._changed = trio.Event()
        self._suspended = False
        self._before: list[str] = []  # what was loaded when it was suspended
        self._work: trio.CancelScope | None = None
        self._bringing: Model | None = None
        self._resting = trio.Event()  # set while no change is under way
        self._resting.set()

    @property
    def models(self) -> Sequence[Model]:
        """All of them: in the order of realms.yml, then those that came later."""
        return tuple(self._models.values())

    @property
    def suspended(self) -> bool:
        """True while the owner has the machine."""
        return self._suspended

    def can_wake(self, model: Model) -> bool:
        """True if a query for it is worth its wait: it is loaded when its turn comes."""
        resting = model.tried_at is not None and self._clock() - model.tried_at < RETRY_SECONDS
        return not self._suspended and not resting

    def poke(self) -> None:
        """A queue changed."""
        now = self._clock()
        for model in self._models.values():
            if model.gate.busy:
                model.used_at = now
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it so for ever; started when each model was loaded once, as far as it fits: what is known of a model
        only then (its context, its device) goes into offers."""
        for model in self._models.values():
            model.gate.close()
        first = sorted(self._models.values(), key=lambda model: not model.pinned)
        self._before = [model.name for model in first]
        await self._change()
        task_status.started()
        while True:
            changed = self._changed
            await self._change()
            with trio.move_on_after(LOOK_SECONDS):
                await changed.wait()

    async def suspend(self) -> None:
        """Unload everything at once and keep it so; returns when all memory is free."""
        if not self._suspended:
            self._suspended = True
            self._before = [model.name for model in self._models.values() if model.placement] + self._before
        for model in self._models.values():
            model.gate.close()
        if self._work is not None:
            self._work.cancel()
        async with trio.open_nursery() as nursery:
            for model in self._models.values():
                nursery.start_soon(self._unload, model)
        await self._resting.wait()

    async def resume(self) -> None:
        """Load again what was loaded; returns at once."""
        self._suspended = False
        self.poke()

    def add(self, model: Model) -> None:
        """One more, to be loaded as soon as there is room; its `tell` says how that goes on. Returns at once."""
        model.gate.close()
        self._models[model.name] = model
        self._before.append(model.name)
        model.tell(Step.WAITING, "for its turn to be loaded")
        self.poke()

    async def remove(self, model: Model, drain_seconds: float) -> None:
        """Unload one for good: what it has begun may end within `drain_seconds`. Its gate lets nobody in by now.
        Returns when its memory is free."""
        model.leaving = True
        self._before = [name for name in self._before if name != model.name]
        if self._bringing is model and self._work is not None:
            self._work.cancel()
            await self._resting.wait()
        with trio.move_on_after(drain_seconds):
            while model.gate.busy:
                await self._wait(LOOK_SECONDS)
        await self._unload(model)
        self._models.pop(model.name, None)
        self.poke()

    # --- one change at a time ------------------------------------------------------------------------

    async def _change(self) -> None:
        """All that is to be done now."""
        self._resting = trio.Event()
        try:
            with trio.CancelScope() as self._work:
                while not self._suspended and (model := self._next()) is not None:
                    await self._bring(model)
                    self._before = [name for name in self._before if name != model.name]
                if not self._suspended:
                    await self._unload_idle()
        finally:
            self._work = self._bringing = None
            self._resting.set()

    def _next(self) -> Model | None:
        """Who is to be loaded: what was loaded before a pause, then who has waited longest for its turn."""
        before = [self._models[name] for name in self._before if name in self._models]
        if first := next((model for model in before if not (model.ready or model.leaving)), None):
            return first
        now = self._clock()
        waiting = [
            m
            for m in self._models.values()
            if m.gate.queued and not (m.ready or m.leaving) and not self._resting_after(m, now)
        ]
        return min(waiting, key=lambda model: model.used_at, default=None)

    def _resting_after(self, model: Model, now: float) -> bool:
        """True for a while after it could not be loaded; who asks meanwhile is told."""
        resting = model.tried_at is not None and now - model.tried_at < RETRY_SECONDS
        if resting:
            model.gate.turn_away(model.problem, round(RETRY_SECONDS * 1_000))
        return resting

    async def _bring(self, model: Model) -> None:
        """Load a model, after those that have to leave for it."""
        self._bringing = model
        while True:
            placement = plan(model.need, await self._look(self._own()), self._residents())
            if isinstance(placement, DoesNotFit):
                nearest = f" (this would help: {'; '.join(placement.nearest)})" if placement.nearest else ""
                self._failed(model, placement.message + nearest)
                return
            if not placement.unload:
                break
            victim = self._models[placement.unload[0]]
            model.tell(Step.WAITING, f"for the room of {victim.name}, which ends what it has begun")
            await self._end_turn(victim)
            await self._unload(victim)
        log.info("%s", placement.said)
        model.tell(Step.LOADING, placement.said)
        await self._load(model, placement)

    async def _load(self, model: Model, placement: Placement) -> None:
        began = self._clock()
        model.placement = placement
        try:
            await model.engine.load(placement)
        except LoadFailed as error:
            model.placement = None
            self._failed(model, str(error))
            return
        except BaseException:
            model.placement = None
            raise
        model.loaded_at = model.used_at = self._clock()
        model.load_seconds = model.loaded_at - began
        model.ready, model.problem, model.tried_at = True, "", None
        model.gate.open()
        model.tell(Step.READY, placement.said)

    def _failed(self, model: Model, problem: str) -> None:
        if model.problem != problem:
            log.warning("%s", problem)
        model.problem, model.tried_at = problem, self._clock()
        model.gate.turn_away(problem, round(RETRY_SECONDS * 1_000))
        model.tell(Step.FAILED, problem)

    async def _end_turn(self, model: Model) -> None:
        """Wait until a model has had its turn and is idle; its newcomers wait outside then."""
        turn_ends = model.loaded_at + max(self._turn_seconds, TURN_LOADS * model.load_seconds)
        while not model.idle and (left := turn_ends - self._clock()) > 0:
            await self._wait(left)
        model.gate.close()
        while model.gate.busy:
            await self._wait(LOOK_SECONDS)

    async def _unload(self, model: Model) -> None:
        model.gate.close()
        model.ready = False
        await model.engine.unload()
        model.placement = None

    async def _unload_idle(self) -> None:
        """What nobody has asked for in a while makes room for other programs."""
        if not self.idle_unload_seconds:
            return
        now = self._clock()
        for model in self.models:
            if model.ready and model.idle and not model.pinned and now - model.used_at >= self.idle_unload_seconds:
                log.info("%s is unloaded: nobody asked for it in %.0f s", model.name, now - model.used_at)
                await self._unload(model)

    async def _wait(self, seconds: float) -> None:
        changed = self._changed
        with trio.move_on_after(seconds):
            await changed.wait()

    # --- what there is -------------------------------------------------------------------------------

    def _own(self) -> dict[int, int]:
        loaded = [(model.engine.pid, model.placement) for model in self._models.values()]
        return {pid: placement.mib for pid, placement in loaded if pid is not None and placement is not None}

    def _residents(self) -> list[Resident]:
        return [
            Resident(model.name, model.placement.mib, model.placement.place, model.used_at, model.idle, model.pinned)
            for model in self._models.values()
            if model.placement is not None
        ]
