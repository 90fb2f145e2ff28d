"""The models that this node serves, put together: where each is loaded, by whom it is asked for, and how all of them
leave when the owner comes.

Rule: the order of stepping aside is fixed: first no query comes in and those that run leave with what they have, then
the processes end. Coming back is the reverse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
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
from node.residency import LoadFailed, Model, Residency
from node.scheduler import Scheduler
from node.services import ModelService, Services
from node.weights import Weights, WeightsError
from protocol.messages import Device

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from node.worker import Worker

log = logging.getLogger("mtor.serving")

CARDS_SECONDS = 15.0
OUTER_PROGRAMS = ("ollama*", "llama-server", "llama-swap", "lm studio*", "lms", "vllm*", "koboldcpp*", "tabbyapi*")
FREE_STEP_MIB = 512  # of free memory in offers: each change is a new offer to everybody

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

    def __init__(self, engine: ProcessEngine, device: str, first_loaded: Callable[[], None]) -> None:
        """`device` is the operator's wish. `first_loaded` is called once, when the engine knows what it has."""
        self._engine = engine
        self._device = device
        self._first_loaded = first_loaded

    @property
    def pid(self) -> int | None:
        """See `Loadable`."""
        return self._engine.process_id

    async def load(self, placement: Placement) -> None:
        """See `Loadable`. A model that was never loaded and cannot be is the operator's mistake: `EngineStartError`."""
        before = self._engine.loaded_before
        try:
            await self._engine.resume(seat_of(placement, self._device))
        except EngineStartError as error:
            if not before:
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


class Serving:
    """All models of realms.yml, the guard over them, and the `Aside` port."""

    def __init__(
        self,
        config: NodeConfig,
        data: Path,
        served: Sequence[tuple[RealmSection, ModelFolder]],
        services: Services,
        worker: Worker,
        clock: Callable[[], int],
    ) -> None:
        """Raises `CardsFileError`."""
        self._services = services
        self._worker = worker
        self._engines: list[ProcessEngine] = []
        self._cards_now: dict[str, Card] = {}  # by uuid
        self.cards: Cards = open_cards(config.hardware)
        self.residency = Residency(
            [self._model(section, folder) for section, folder in served],
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
                for engine in self._engines:
                    await engine.suspend()  # until the residency finds room for it
                    nursery.start_soon(engine.run)
                await nursery.start(self.guard.run)
                task_status.started()
                nursery.start_soon(self._watch_cards)
                await self.residency.run()

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

    def _model(self, section: RealmSection, folder: ModelFolder) -> Model:
        engine = ProcessEngine(
            folder,
            section.device,
            section.threads,
            section.slots,
            hang_seconds=HANG_SECONDS if folder.engine == "torch-chat" else PICTURE_HANG_SECONDS,
            options={"arithmetic": section.arithmetic} | section.options,
        )
        self._engines.append(engine)
        gate = Scheduler(section.slots, section.queue, on_change=lambda: self.residency.poke())
        self._services.expect(section.realm, folder.name)

        def first_loaded() -> None:
            wakes, device = partial(self.residency.can_wake, model), partial(self._device, engine, model)
            self._services.add(ModelService(section, engine, gate, wakes, device))
            log.info("serving %s with %s on %s", section.realm, folder.name, engine.info.device.kind)

        loader = EngineLoader(engine, section.device, first_loaded)
        need = need_of(section, folder)
        model = Model(need.model, need, loader, gate, section.pinned)
        return model

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
        return {engine.process_id for engine in self._engines if engine.process_id is not None}

    def _ours(self, card: Card) -> bool:
        """Has the node a model on this card, or is one being loaded there?"""
        placed = [model.placement for model in self.residency.models]
        return any(placement is not None and placement.place == card.uuid for placement in placed)
