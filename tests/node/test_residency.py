"""Which models are loaded: turns, room, pins, idleness, and the owner who comes first."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from node.cards import Card, Room
from node.fit import Placement, Space
from node.needs import Need
from node.residency import LoadFailed, Model, Residency, Step
from node.weights import Weights

GIB = 1_024
CARD = Card(0, "GPU-1", "RTX 4090", 24 * GIB, 24 * GIB, 89, "580")


@dataclass
class FakeLoadable:
    """An engine that loads when it may."""

    pid: int | None = None
    places: list[str] = field(default_factory=list)
    fail: str = ""
    slow: trio.Event | None = None

    async def load(self, placement: Placement) -> None:
        """See `Loadable`."""
        await trio.lowlevel.checkpoint()
        if self.fail:
            raise LoadFailed(self.fail)
        if self.slow is not None:
            await self.slow.wait()
        self.pid = 100
        self.places.append(placement.place)

    async def unload(self) -> None:
        """See `Loadable`."""
        await trio.lowlevel.checkpoint()
        self.pid = None


@dataclass
class FakeGate:
    """A queue that is told what is in it."""

    busy: int = 0
    queued: int = 0
    is_open: bool = False
    refused: list[str] = field(default_factory=list)

    def open(self) -> None:
        """See `Gate`."""
        self.is_open = True
        self.busy, self.queued = self.busy + self.queued, 0

    def close(self) -> None:
        """See `Gate`."""
        self.is_open = False

    def turn_away(self, why: str, retry_after_ms: int) -> None:
        """See `Gate`."""
        self.refused += [why] * self.queued
        self.queued = 0


def model(name: str, gib: int, *, pinned: bool = False, device: str = "cuda") -> Model:
    """One whose weights take `gib`."""
    need = Need(name, Weights(gib * 2**29), "auto", 1, 0, device=device)
    return Model(name, need, FakeLoadable(), FakeGate(), pinned)


def engine(of: Model) -> FakeLoadable:
    """The fake inside."""
    assert isinstance(of.engine, FakeLoadable)
    return of.engine


def gate(of: Model) -> FakeGate:
    """The fake inside."""
    assert isinstance(of.gate, FakeGate)
    return of.gate


@dataclass
class World:
    """A card that only we use."""

    models: list[Model]
    now: float = 1_000.0
    free_mib: int = 24 * GIB
    idle: float = 0.0
    turn: float = 30.0

    def residency(self) -> Residency:
        """Over the models."""
        return Residency(self.models, self._look, self.idle, lambda: self.now, self.turn)

    async def _look(self, own: Mapping[int, int]) -> Space:
        await trio.lowlevel.checkpoint()
        return Space([Room(CARD, self.free_mib)], 64 * GIB)

    def loaded(self) -> set[str]:
        """Names of those that are ready."""
        return {one.name for one in self.models if one.ready}


async def settle() -> None:
    """Until nobody has anything to do."""
    await trio.testing.wait_all_tasks_blocked()


def ask(residency: Residency, of: Model) -> None:
    """A query comes."""
    gate(of).queued += 1
    if gate(of).is_open:
        gate(of).open()
    residency.poke()


def answered(residency: Residency, of: Model) -> None:
    """All its queries are answered."""
    gate(of).busy = 0
    residency.poke()


async def test_models_that_fit_together_are_all_loaded(nursery: trio.Nursery) -> None:
    world = World([model("a", 8), model("b", 8)])
    await nursery.start(world.residency().run)
    assert world.loaded() == {"a", "b"} and all(gate(one).is_open for one in world.models)
    nursery.cancel_scope.cancel()


async def test_models_that_do_not_fit_together_take_turns(nursery: trio.Nursery) -> None:
    a, b = model("a", 16), model("b", 16)
    world = World([a, b])
    residency = world.residency()
    await nursery.start(residency.run)
    assert world.loaded() == {"b"} and engine(a).places == [CARD.uuid]  # each was loaded once
    ask(residency, a)
    await settle()
    assert world.loaded() == {"a"} and gate(a).busy == 1 and engine(b).pid is None
    nursery.cancel_scope.cancel()


async def test_one_may_come_later_and_is_told_how_it_goes_on(nursery: trio.Nursery) -> None:
    a, b, c = model("a", 16), model("b", 16), model("c", 40)
    world = World([a])
    residency = world.residency()
    await nursery.start(residency.run)
    told: list[tuple[Step, str]] = []
    for late in (b, c):
        late.tell = lambda step, message: told.append((step, message))
        residency.add(late)
        world.models.append(late)
        await settle()
    assert [step for step, _ in told if _ != "for its turn to be loaded"] == [
        Step.WAITING,
        Step.LOADING,
        Step.READY,
        Step.FAILED,
    ]
    assert "for the room of a" in told[1][1] and "does not fit" in told[-1][1]
    assert world.loaded() == {"b"} and residency.models == (a, b, c)
    nursery.cancel_scope.cancel()


async def test_one_that_leaves_may_end_what_it_has_begun(nursery: trio.Nursery) -> None:
    a, b = model("a", 8), model("b", 8)
    world = World([a, b])
    residency = world.residency()
    await nursery.start(residency.run)
    ask(residency, a)
    nursery.start_soon(residency.remove, a, 60.0)
    await settle()
    assert engine(a).pid and residency.models == (a, b)
    answered(residency, a)
    await settle()
    assert engine(a).pid is None and residency.models == (b,) and world.loaded() == {"b"}
    nursery.cancel_scope.cancel()


async def test_one_that_leaves_while_it_is_loaded_is_not_waited_for(nursery: trio.Nursery) -> None:
    a, b = model("a", 8), model("b", 8)
    engine(b).slow = trio.Event()
    residency = World([a]).residency()
    await nursery.start(residency.run)
    residency.add(b)
    await settle()
    with trio.fail_after(5):
        await residency.remove(b, 60.0)
    assert residency.models == (a,) and engine(b).pid is None
    ask(residency, a)
    await settle()
    assert gate(a).busy == 1  # the others go on
    nursery.cancel_scope.cancel()


async def test_one_that_answers_is_not_unloaded_and_its_newcomers_wait(nursery: trio.Nursery) -> None:
    a, b = model("a", 16), model("b", 16)
    world = World([a, b])
    residency = world.residency()
    await nursery.start(residency.run)
    ask(residency, b)
    ask(residency, a)
    await settle()
    assert world.loaded() == {"b"} and gate(b).is_open  # its turn
    world.now += 31
    residency.poke()
    await settle()
    assert world.loaded() == {"b"} and not gate(b).is_open
    ask(residency, b)
    answered(residency, b)
    await settle()
    assert world.loaded() == {"a"} and gate(b).queued == 1
    answered(residency, a)
    await settle()
    assert world.loaded() == {"b"}  # and back: who waited is served
    nursery.cancel_scope.cancel()


async def test_the_least_recently_used_leaves_and_a_pinned_one_stays(nursery: trio.Nursery) -> None:
    pinned, old, young, new = model("pin", 7, pinned=True), model("old", 7), model("young", 7), model("new", 7)
    world = World([pinned, old, young, new])
    residency = world.residency()
    await nursery.start(residency.run)
    assert world.loaded() == {"pin", "young", "new"}
    for one in (new, young):
        world.now += 1
        ask(residency, one)
        answered(residency, one)
    ask(residency, old)
    await settle()
    assert world.loaded() == {"pin", "young", "old"}
    nursery.cancel_scope.cancel()


async def test_what_does_not_fit_is_told_with_the_numbers_and_tried_again_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    big = model("big", 30)
    world = World([big])
    residency = world.residency()
    await nursery.start(residency.run)
    ask(residency, big)
    await trio.sleep(1)
    assert "does not fit" in gate(big).refused[0] and "24576 MiB" in gate(big).refused[0]
    world.free_mib = 40 * GIB
    ask(residency, big)
    await trio.sleep(1)
    assert len(gate(big).refused) == 2 and not big.ready  # not yet
    world.now += 31
    ask(residency, big)
    await trio.sleep(1)
    assert big.ready and not big.problem
    nursery.cancel_scope.cancel()


async def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(nursery: trio.Nursery) -> None:
    bad, good = model("bad", 1), model("good", 1)
    engine(bad).fail = "bad cannot be loaded: no tokenizer"
    world = World([bad, good])
    await nursery.start(world.residency().run)
    assert world.loaded() == {"good"} and bad.problem == "bad cannot be loaded: no tokenizer"
    assert bad.placement is None
    nursery.cancel_scope.cancel()


async def test_idle_models_are_unloaded_and_come_back_when_asked(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    one, pinned = model("one", 1), model("pinned", 1, pinned=True)
    world = World([one, pinned], idle=60)
    residency = world.residency()
    await nursery.start(residency.run)
    ask(residency, one)
    world.now += 90
    await trio.sleep(10)
    assert one.ready  # it answers
    answered(residency, one)
    world.now += 59
    await trio.sleep(10)
    assert not one.ready  # since it was last seen at work
    assert pinned.ready
    ask(residency, one)
    await trio.sleep(1)
    assert one.ready
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("loading", [False, True])
async def test_the_owner_comes_first(nursery: trio.Nursery, loading: bool) -> None:
    one, other = model("one", 8), model("other", 8)
    world = World([one, other])
    residency = world.residency()
    if loading:
        engine(other).slow = trio.Event()
        nursery.start_soon(residency.run)
        await settle()
    else:
        await nursery.start(residency.run)
        ask(residency, one)
    await residency.suspend()
    assert world.loaded() == set() and engine(one).pid is None and engine(other).pid is None
    assert not gate(one).is_open and one.placement is None and other.placement is None
    gate(one).busy = 0
    ask(residency, one)
    await settle()
    assert world.loaded() == set()  # nothing comes back before its time
    engine(other).slow = None
    await residency.resume()
    await settle()
    assert world.loaded() == {"one", "other"} and gate(one).busy == 1
    nursery.cancel_scope.cancel()


async def test_a_node_may_be_suspended_before_it_has_begun(nursery: trio.Nursery) -> None:
    one = model("one", 8)
    world = World([one])
    residency = world.residency()
    await residency.suspend()
    await nursery.start(residency.run)
    assert world.loaded() == set()
    await residency.resume()
    await settle()
    assert world.loaded() == {"one"}
    nursery.cancel_scope.cancel()
