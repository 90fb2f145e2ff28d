"""The models that this node serves, put together: where each is loaded, by whom it is asked for, how one comes and goes
while the node runs, and how all of them leave when the owner comes.

Rule: the order of stepping aside is fixed: first no query comes in and those that run leave with what they have, then
the processes end. Coming back is the reverse. A model that the operator stops leaves in the same order, but what it has
begun may end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.cards import Card, Cards
from node.config import NodeConfig, RealmSection
from node.engines.process import HANG_SECONDS, EngineStartError, ModelFolder, ProcessEngine, Seat
from node.fit import Placement
from node.gameguard import GameGuard
from node.guard.by_hand import ByHand
from node.hardware import look, open_cards, open_senses
from node.needs import Need, Wish, read_need
from node.nurseries import one_error
from node.operations import Json
from node.residency import LoadFailed, Model, Residency, Step
from node.scheduler import Scheduler
from node.services import ModelService, Services
from node.weights import Weights, WeightsError
from protocol.messages import Device

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from node.worker import Worker

log = logging.getLogger("mtor.serving")

Key = tuple[str, str]  # realm, model

CARDS_SECONDS = 15.0
OUTER_PROGRAMS = ("ollama*", "llama-server", "llama-swap", "lm studio*", "lms", "vllm*", "koboldcpp*", "tabbyapi*")
FREE_STEP_MIB = 512  # of free memory in offers: each change is a new offer to everybody

DRAIN_SECONDS = 60.0  # for what a model has begun when the operator stops it; after that, others continue it
PICTURE_HANG_SECONDS = 300.0  # one step of a large picture, or reading one, on a CPU takes minutes


def need_of(section: RealmSection, folder: ModelFolder) -> Need:
    """What a model of realms.yml will take. What cannot be read is loaded unchecked: the engine says better what is
    wrong with it. Blocks on the disk."""
    wish = Wish(section.slots, section.context, section.device, section.arithmetic)
    name = f"{section.realm or folder.realm} {folder.name}"  # one model may serve two realms, as two processes
    try:
        return read_need(name, folder.engine, folder.path, wish)
    except WeightsError as error:
        log.warning("%s", error)
        return Need(name, Weights(0), section.arithmetic, section.slots, 0, device=section.device)


class EngineLoader:
    """The `Loadable` over a child process."""

    def __init__(
        self, engine: ProcessEngine, device: str, first_loaded: Callable[[], None], *, required: bool = True
    ) -> None:
        """`device` is the operator's wish. `first_loaded` is called once, when the engine knows what it has. One that
        is `required` ends the node if it cannot be loaded at all."""
        self._engine = engine
        self._device = device
        self._first_loaded = first_loaded
        self._required = required

    @property
    def pid(self) -> int | None:
        """See `Loadable`."""
        return self._engine.process_id

    async def load(self, placement: Placement) -> None:
        """See `Loadable`. A model of realms.yml that was never loaded and cannot be is the operator's mistake:
        `EngineStartError`."""
        before = self._engine.loaded_before
        try:
            await self._engine.resume(seat_of(placement, self._device))
        except EngineStartError as error:
            if self._required and not before:
                raise
            raise LoadFailed(str(error)) from None
        if placement.card is not None and self._engine.info.device.kind == "cpu":
            log.warning("%s runs on the CPU: torch cannot use the card; `mtor doctor` says why", placement.model)
        if not before:
            self._first_loaded()

    async def unload(self) -> None:
        """See `Loadable`."""
        await self._engine.suspend()


def seat_of(placement: Placement, device: str) -> Seat:
    """How a child is told where it runs. Behind a declared card there is none: it runs on the CPU, and what is said of
    it is that the card is declared. A card that torch cannot use is an error only if the operator asked for one."""
    card = placement.card
    options = {"context": str(placement.context)} if placement.context else {}
    if card is None:
        return Seat("cpu", {"CUDA_VISIBLE_DEVICES": ""}, options)
    if card.declared:
        return Seat("cpu", {"CUDA_VISIBLE_DEVICES": ""}, options, declared_device(card))
    # Numbers differ between the driver and CUDA; the uuid is the card's own.
    return Seat(device, {"CUDA_VISIBLE_DEVICES": card.uuid}, options)


def declared_device(card: Card) -> Device:
    """A declared card as offers name it."""
    return Device(card.kind, card.name, card.vram_mib, card.compute_capability)


@dataclass(eq=False)
class Start:
    """How a model is brought up. While it is `held`, its last step is not the end: what it leaves is put in order."""

    held: bool = False
    step: Step | None = None  # None: it is being looked at, for what it takes
    message: str = ""
    began: float = field(default_factory=time.monotonic)
    moved: trio.Event = field(default_factory=trio.Event)  # replaced at each step

    def facts(self) -> Json:
        """For the operator."""
        step = "looking" if self.step is None else self.step.value
        return {"step": step, "message": self.message, "seconds": round(time.monotonic() - self.began)}

    @property
    def decided(self) -> bool:
        """True once it is served, or cannot be."""
        return self.step in (Step.READY, Step.FAILED)

    @property
    def over(self) -> bool:
        """True once nothing more is to be done for it."""
        return self.decided and not self.held

    def tell(self, step: Step, message: str) -> None:
        """The next step; nothing comes after the last one."""
        if not self.decided:
            self.step, self.message = step, message
            self._move()

    def release(self) -> None:
        """All is in order."""
        self.held = False
        self._move()

    async def wait_decided(self) -> None:
        """Return with the last step."""
        while not self.decided:
            await self.moved.wait()

    def _move(self) -> None:
        moved, self.moved = self.moved, trio.Event()
        moved.set()


@dataclass(eq=False)
class Served:
    """One model in one realm."""

    section: RealmSection
    folder: ModelFolder
    engine: ProcessEngine
    gate: Scheduler
    model: Model
    start: Start
    life: trio.CancelScope = field(default_factory=trio.CancelScope)  # of the engine
    gone: trio.Event = field(default_factory=trio.Event)

    @property
    def name(self) -> str:
        """The model's."""
        return self.folder.name

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.section.realm, self.name


class Serving:
    """All models that this node loads, the guard over them, and the `Aside` port."""

    def __init__(
        self,
        config: NodeConfig,
        data: Path,
        served: Sequence[tuple[RealmSection, ModelFolder]],
        services: Services,
        worker: Worker,
        clock: Callable[[], int],
        engines: Callable[..., ProcessEngine] = ProcessEngine,
    ) -> None:
        """Raises `CardsFileError`."""
        self._engines = engines
        self._services = services
        self._worker = worker
        self._served: dict[Key, Served] = {}
        self._starting: dict[Key, Start] = {}
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._cards_now: dict[str, Card] = {}  # by uuid
        self.cards: Cards = open_cards(config.hardware)
        self.residency = Residency(
            [self._serve(section, folder, need_of(section, folder)).model for section, folder in served],
            partial(look, self.cards, config.hardware.reserve_mib),
            config.hardware.idle_unload_seconds,
        )
        ignored = OUTER_PROGRAMS if config.outer_models else ()
        senses = open_senses(config.guard, self.cards, self._own, self._ours, ignored)
        resume_after = config.guard.resume_after_seconds
        self.guard = GameGuard(senses, ByHand(data, clock), self, resume_after, clock)

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve for ever; started once it is known whether the owner needs the machine. Raises `EngineStartError` for
        a model that cannot be loaded at all."""
        with one_error():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for served in self._served.values():
                    await served.engine.suspend()  # until the residency finds room for it
                    nursery.start_soon(_live, served)
                self._running.set()
                await nursery.start(self.guard.run)
                task_status.started()
                nursery.start_soon(self._watch_cards)
                await self.residency.run()

    # --- one comes, one goes -------------------------------------------------------------------------

    def models(self) -> Mapping[Key, str]:
        """What is served or brought up, with the realm that each model is made for."""
        starting = {key: key[0] for key in self._starting}
        return starting | {key: served.folder.realm for key, served in self._served.items()}

    def section(self, key: Key) -> RealmSection | None:
        """How a model is served."""
        served = self._served.get(key)
        return served.section if served else None

    def start(self, section: RealmSection, folder: ModelFolder, once_ready: Callable[[], Awaitable[None]]) -> Start:
        """Load a model and serve it from then on; what is returned tells how that goes on. One that is served or on its
        way stays as it is. What cannot be loaded leaves nothing behind."""
        key = (section.realm, folder.name)
        if key in self._starting:
            return self._starting[key]
        served = self._served.get(key)
        if served is not None:
            return self._again(served)
        if self._nursery is None:
            return _failed("the node is only just starting; try again in some seconds")
        start = self._starting[key] = Start(held=True)
        self._nursery.start_soon(self._bring_up, start, section, folder, once_ready)
        return start

    def _again(self, served: Served) -> Start:
        """The operator wants what is there: one that could not be loaded is tried again."""
        if served.model.leaving:
            return _failed(f"{served.name} is being stopped; start it again when it has ended")
        if served.model.problem and not served.model.ready and served.start.over:
            served.start = Start()
            served.model.tell = served.start.tell
            self.residency.add(served.model)
        return served.start

    async def _bring_up(
        self, start: Start, section: RealmSection, folder: ModelFolder, once_ready: Callable[[], Awaitable[None]]
    ) -> None:
        assert self._nursery is not None
        try:
            need = await trio.to_thread.run_sync(need_of, section, folder)
            if start.decided:
                return
            served = self._serve(section, folder, need, start, required=False)
            await served.engine.suspend()
            self._nursery.start_soon(_live, served)
            self.residency.add(served.model)
            await start.wait_decided()
            if start.step is Step.READY:
                await once_ready()
            else:
                await self._end(served)
        except OSError as error:  # its files went away while they were looked at
            start.tell(Step.FAILED, f"{folder.name} cannot be read: {error}; `mtor models verify` looks closer")
        finally:
            self._starting.pop((section.realm, folder.name), None)
            start.release()

    async def stop(self, realm: str, model: str) -> None:
        """Serve a model no longer: no new queries, those that run may end, then its process ends. Goes on to its end
        even if who asked for it does not wait."""
        if (start := self._starting.get((realm, model))) is not None:
            start.tell(Step.FAILED, f"{model} was stopped while it was being loaded")
        await self._running.wait()
        served = self._served.get((realm, model))
        if served is not None and self._nursery is not None:
            served.start.tell(Step.FAILED, f"{model} was stopped while it was being loaded")
            self._nursery.start_soon(self._end, served)
            await served.gone.wait()

    async def _end(self, served: Served) -> None:
        self._services.remove(*served.key)
        served.gate.retire(f"{served.name} is no longer served here")
        await self.residency.remove(served.model, DRAIN_SECONDS)
        served.life.cancel()
        if self._served.get(served.key) is served:
            del self._served[served.key]
            log.info("%s is no longer served with %s", *served.key)
        served.gone.set()

    def reprice(self, realm: str, model: str, price_in: int, price_out: int) -> None:
        """Other prices from the next query on."""
        served = self._served[realm, model]
        served.section = served.section.model_copy(update={"price_in": price_in, "price_out": price_out})
        self._services.reprice(realm, model, price_in, price_out)

    def loading(self) -> list[Json]:
        """Models that are not there yet, and how far each is."""
        waiting = {key: served.start for key, served in self._served.items() if not served.model.ready} | self._starting
        return [
            {"realm": realm, "model": model} | start.facts()
            for (realm, model), start in waiting.items()
            if start.step is not Step.READY
        ]

    # --- the owner comes first -----------------------------------------------------------------------

    async def drain(self, reason: str, retry_after_ms: int) -> None:
        """See `Aside`. The reason stays here: what the owner does is nobody's business."""
        self._services.paused = True
        self._worker.pause(retry_after_ms)
        began = trio.current_time()
        await self.residency.suspend()
        log.info("aside for the owner after %.1f s", trio.current_time() - began)

    async def resume(self) -> None:
        """See `Aside`. Queries that come while the models load wait for them."""
        await self.residency.resume()
        self._worker.resume()
        self._services.paused = False

    def hint(self) -> str:
        """What this node itself is waiting for, for who asked and found nobody; empty if for nothing."""
        if self.guard.state.paused:
            return "This node is paused for its owner; `mtor status` says why"
        names = ", ".join(self._services.loading)
        return f"This node is loading {names}; try again in some seconds" if names else ""

    def problems(self) -> list[str]:
        """What is wrong or not ready now, in words."""
        state = self.guard.state
        if state.paused:
            return [f"paused for the owner: {state.why or 'the machine was needed a moment ago'}"]
        problems = [model.problem for model in self.residency.models if model.problem]
        return problems or [f"{name} is still being loaded" for name in self._services.loading]

    def _serve(
        self,
        section: RealmSection,
        folder: ModelFolder,
        need: Need,
        start: Start | None = None,
        *,
        required: bool = True,
    ) -> Served:
        engine = self._engines(
            folder,
            section.device,
            section.threads,
            section.slots,
            hang_seconds=HANG_SECONDS if folder.engine == "torch-chat" else PICTURE_HANG_SECONDS,
            options={"arithmetic": section.arithmetic} | section.options,
        )
        gate = Scheduler(section.slots, section.queue, on_change=lambda: self.residency.poke())
        loader = EngineLoader(engine, section.device, lambda: self._offer(served), required=required)
        start = start or Start()
        model = Model(need.model, need, loader, gate, section.pinned, tell=start.tell)
        served = self._served[section.realm, folder.name] = Served(section, folder, engine, gate, model, start)
        self._services.expect(*served.key)
        return served

    def _offer(self, served: Served) -> None:
        """It was loaded for the first time."""
        if served.model.leaving:
            return
        wakes = partial(self.residency.can_wake, served.model)
        device = partial(self._device, served.engine, served.model)
        self._services.add(ModelService(served.section, served.engine, served.gate, wakes, device))
        log.info("serving %s with %s on %s", *served.key, served.engine.info.device.kind)

    async def _watch_cards(self) -> None:
        """What offers say of the cards' free memory."""
        while True:
            cards = await trio.to_thread.run_sync(self.cards.cards)
            self._cards_now = {card.uuid: card for card in cards}
            await trio.sleep(CARDS_SECONDS)

    def _device(self, engine: ProcessEngine, model: Model) -> Device:
        """What a model runs on, as it is now."""
        device = engine.info.device
        placed = model.placement.card if model.placement else None
        if placed is None or device.kind == "cpu":
            return device
        card = self._cards_now.get(placed.uuid, placed)
        free = min(card.free_mib // FREE_STEP_MIB * FREE_STEP_MIB, device.vram_mib)
        return replace(device, free_mib=free, driver=card.driver[:32])

    def _own(self) -> Collection[int]:
        return {pid for served in self._served.values() if (pid := served.engine.process_id) is not None}

    def _ours(self, card: Card) -> bool:
        """Has the node a model on this card, or is one being loaded there?"""
        placed = [model.placement for model in self.residency.models]
        return any(placement is not None and placement.place == card.uuid for placement in placed)


def _failed(why: str) -> Start:
    return Start(step=Step.FAILED, message=why)


async def _live(served: Served) -> None:
    """An engine's service, until the model is stopped."""
    with served.life:
        await served.engine.run()
