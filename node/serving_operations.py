"""What the operator may change of what is served, while the node runs.

Rule: a model is loaded first and written into `realms.yml` after that, so that a file that was written here can be
served. Who does not wait for the end has asked for it all the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import trio
from pydantic import Field

from node.config import OUTER_ENGINES, RealmSection
from node.config_edit import Append, Change, Drop, Put
from node.config_file import ConfigError
from node.config_keeper import ConfigKeeper, Written
from node.engines.process import ModelFolder
from node.models import ModelStore
from node.models.errors import step
from node.operations import Emit, Json, Method, OperationFailed, Streaming
from node.residency import Step
from node.services import Services
from node.serving import Key, Serving, Start
from protocol.ids import realm_id

log = logging.getLogger("mtor.serving")

AT = ("realms",)
ALIVE_SECONDS = 5.0  # without a step, after which it is said again how long it takes by now

Number = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the operator asked for: a model, in a realm or its own, with some settings."""

    model: str
    realm: str
    settings: Mapping[str, Any]

    def item(self) -> Json:
        """A line of realms.yml, with what was asked for and nothing else."""
        return ({"realm": self.realm} if self.realm else {}) | {"model": self.model} | dict(self.settings)


class ServingOperations:
    """Its `methods` and `streams` are some of `OPERATIONS` and `STREAMED`."""

    def __init__(self, serving: Serving, services: Services, models: ModelStore, keeper: ConfigKeeper) -> None:
        self._serving = serving
        self._services = services
        self._models = models
        self._keeper = keeper
        self.methods: dict[str, Method] = {"serving.stop": self.stop}
        self.streams: dict[str, Streaming] = {"serving.start": self.start}

    async def start(
        self,
        emit: Emit,
        model: str,
        realm: str = "",
        slots: Annotated[int, Field(ge=1, le=64)] | None = None,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        price_in: Number | None = None,
        price_out: Number | None = None,
        keep: bool = True,
    ) -> None:
        """Load a model and serve it, now and, with `keep`, after a restart."""
        if realm:
            realm_id(realm)
        given = {"slots": slots, "device": device, "price_in": price_in, "price_out": price_out}
        wish = _Wish(model, realm, {key: value for key, value in given.items() if value is not None})
        if os.sep in model and not Path(model).is_absolute():
            raise OperationFailed(f"{model!r} is a path that could start anywhere; write all of it, from {os.sep} on")
        if self._serving.guard.state.paused:
            raise OperationFailed("this node is paused for its owner; end that first: `mtor resume`")
        await emit(step("looking", message=model))
        folder = await trio.to_thread.run_sync(self._models.find, model)
        key = (realm or folder.realm, folder.name)
        section = await self._section(wish, folder)
        self._agree(key, wish)
        keeping = partial(self._keep, wish, folder) if keep else _nothing
        start = self._serving.start(section, folder, keeping)
        await _watch(start, folder.name, emit)
        if start.step is Step.FAILED:
            raise OperationFailed(start.message)
        self._reprice(key, wish)
        await emit(
            step("ready", message=f"{folder.name} is served")
            | {"done": True, "model": folder.name, "realm": key[0], "kept": keep}
            | await self._kept(wish, folder, keep)
        )

    async def stop(self, model: str, realm: str = "", keep: bool = True) -> Json:
        """Serve a model no longer: answered when what it had begun has ended and its process is gone."""
        name = Path(model).name if os.sep in model else model
        served = self._serving.models()
        keys = {key: usual for key, usual in served.items() if key[1] == name and realm in ("", key[0])}
        if not keys:
            raise OperationFailed(self._not_served(model, realm))
        async with trio.open_nursery() as nursery:
            for place, _ in keys:
                nursery.start_soon(self._serving.stop, place, name)
        answer: Json = {"stopped": name, "realms": [place for place, _ in keys], "kept": keep}
        if not keep:
            return answer
        try:
            await self._keeper.change(partial(_without, keys))
        except ConfigError as error:
            raise OperationFailed(f"{name} is stopped, but is served again at the next start: {error}") from None
        if above := self._keeper.above(AT):
            answer |= {"kept": False, "note": f"{above} names what is served; leave {name} out there, too"}
        return answer

    # --- starting ------------------------------------------------------------------------------------

    async def _section(self, wish: _Wish, folder: ModelFolder) -> RealmSection:
        """The settings: what was asked for, over what realms.yml says of this model."""
        key = (wish.realm or folder.realm, folder.name)
        try:
            items = (await self._keeper.read()).tree.get("realms", [])
        except ConfigError as error:
            raise OperationFailed(str(error)) from None
        place = _place(items, key, folder.realm)
        tree = dict(items[place]) if place is not None else {}
        section = RealmSection.model_validate(tree | wish.item())
        return section.model_copy(update={"realm": key[0]})

    def _agree(self, key: Key, wish: _Wish) -> None:
        """Raises `OperationFailed` if the model is served already in another way."""
        if any(service.section.outer and service.is_of(*key) for service in self._services):
            raise OperationFailed(f"{key[1]} is served in {key[0]} already, by a server of yours; see `mtor workers`")
        section = self._serving.section(key)
        for name in ("slots", "device"):
            wanted, has = wish.settings.get(name), getattr(section, name, None)
            if section is not None and wanted is not None and wanted != has:
                fix = f"stop it first (`mtor unserve {key[1]}`), then start it again"
                raise OperationFailed(f"{key[1]} is served with {name}: {has}; {fix}")

    def _reprice(self, key: Key, wish: _Wish) -> None:
        section = self._serving.section(key)
        if section is None:
            return
        prices = [wish.settings.get(name, getattr(section, name)) for name in ("price_in", "price_out")]
        if prices != [section.price_in, section.price_out]:
            self._serving.reprice(*key, *prices)

    async def _keep(self, wish: _Wish, folder: ModelFolder) -> None:
        """Write it down; a failure is told to who waits, and to the log."""
        try:
            await self._write(wish, folder)
        except ConfigError as error:
            log.warning("%s is served, but not after a restart: %s", folder.name, error)

    async def _kept(self, wish: _Wish, folder: ModelFolder, keep: bool) -> Json:
        """What is to be said of the next start."""
        if not keep:
            return {}
        try:
            await self._write(wish, folder)
        except ConfigError as error:
            return {"kept": False, "note": f"it is not written down, so a restart forgets it: {error}"}
        if above := self._keeper.above(AT):
            return {"kept": False, "note": f"{above} names what is served and goes over realms.yml; leave it out there"}
        return {}

    async def _write(self, wish: _Wish, folder: ModelFolder) -> None:
        key = (wish.realm or folder.realm, folder.name)

        def decide(written: Written) -> Sequence[Change]:
            items = written.tree.get("realms", [])
            place = _place(items, key, folder.realm)
            if place is None:
                return [Append(AT, wish.item())]
            wanted = wish.settings.items()
            return [Put((*AT, place, name), value) for name, value in wanted if items[place].get(name) != value]

        await self._keeper.change(decide)

    def _not_served(self, model: str, realm: str) -> str:
        if any(service.section.outer and service.section.model == model for service in self._services):
            return f"{model} is served by a server of yours; take it out of realms.yml and start the node again"
        served = ", ".join(f"{name} ({place})" for place, name in self._serving.models()) or "nothing"
        return f"{model} is not served{f' in {realm}' if realm else ''} here; this node serves {served}"


async def _nothing() -> None:
    """What is not to be kept."""


async def _watch(start: Start, name: str, emit: Emit) -> None:
    """Tell each step, and now and then how long it takes, until the last one."""
    while not start.over:
        moved, facts = start.moved, start.facts()
        await emit(step(facts["step"], message=facts["message"] or name, seconds=facts["seconds"]))
        with trio.move_on_after(ALIVE_SECONDS):
            await moved.wait()


def _place(items: Sequence[Mapping[str, Any]], key: Key, usual: str) -> int | None:
    """Where realms.yml has a model that this node loads. `usual` is the realm of a line that names none."""
    return next((place for place, item in enumerate(items) if _is_of(item, key, usual)), None)


def _is_of(item: Mapping[str, Any], key: Key, usual: str) -> bool:
    model = str(item.get("model", ""))
    name = Path(model).name if os.sep in model else model
    loaded_here = item.get("engine") not in OUTER_ENGINES
    return loaded_here and (item.get("realm") or usual, name) == key


def _without(keys: Mapping[Key, str], written: Written) -> Sequence[Change]:
    """Take models out of the file; `keys` has the usual realm of each. From behind, so that places stay."""
    items = written.tree.get("realms", [])
    places = {place for key, usual in keys.items() if (place := _place(items, key, usual)) is not None}
    return [Drop(AT, place) for place in sorted(places, reverse=True)]
