"""Where a model fits, decided before it is loaded.

Rule: pure. A model goes where it fits without moving others, to the card with the most room left; then where others
take turns with it, least recently used first and pinned ones never; then to the CPU, which is said aloud; and if
nothing holds it, the numbers are told together with the nearest thing that would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from node.cards import Card, Room
from node.needs import Need

SHORTEST_CONTEXT = 2_048  # tokens: below this a conversation is no use
COMFORTABLE_CONTEXT = 8_192  # below this others are moved out of the way first
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is loaded, or being loaded."""

    model: str
    mib: int  # as it was planned
    place: str  # a card's uuid, or CPU
    used_at: float  # when it last began or ended an answer; any clock, the same for all
    idle: bool = True
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes. `unload` leave first, in this order. `said` is for the log."""

    model: str
    card: Card | None  # None: the CPU
    mib: int
    slots: int
    context: int
    unload: tuple[str, ...]
    said: str

    @property
    def place(self) -> str:
        """A card's uuid, or CPU."""
        return self.card.uuid if self.card else CPU


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """There is no room. The message has the numbers; each of `nearest` would help."""

    model: str
    needed_mib: int
    room_mib: int  # the most that any place could give
    message: str
    nearest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """What there is: the cards with what they hold for us, and the memory that the CPU's models may have together."""

    rooms: Sequence[Room]
    cpu_mib: int
    reserve_mib: int = 0  # of each card, left to the screen and to others


def plan(need: Need, space: Space, loaded: Sequence[Resident]) -> Placement | DoesNotFit:
    """A place for `need` beside, or instead of, what is loaded."""
    others = [resident for resident in loaded if resident.model != need.model]
    cards = [] if need.device == "cpu" else _ways(need, space, others)
    found = _best(need, cards)
    if found is None and need.device != "cuda":
        found = _best(need, list(_ways_on(None, space.cpu_mib, others)))
    if found is None:
        return _refusal(need, space, others)
    return _placement(*found, why_cpu=_why_cpu(need, space) if cards else "")


# --- the ways --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Way:
    """A place once some models have left it."""

    card: Card | None
    free_mib: int
    unload: tuple[str, ...]


def _ways(need: Need, space: Space, others: Sequence[Resident]) -> list[_Way]:
    """Fewest unloaded first, then most room."""
    ways = [way for room in space.rooms for way in _ways_on(room.card, room.total_mib - space.reserve_mib, others)]
    return sorted(ways, key=lambda way: (len(way.unload), -way.free_mib, way.card.index if way.card else 0))


def _ways_on(card: Card | None, total_mib: int, others: Sequence[Resident]) -> Iterator[_Way]:
    place = card.uuid if card else CPU
    here = [resident for resident in others if resident.place == place]
    free = total_mib - sum(resident.mib for resident in here)
    leaving: list[str] = []
    yield _Way(card, free, ())
    for resident in sorted((r for r in here if not r.pinned), key=lambda r: (not r.idle, r.used_at)):
        leaving.append(resident.model)
        free += resident.mib
        yield _Way(card, free, tuple(leaving))


def _best(need: Need, ways: Sequence[_Way]) -> tuple[Need, _Way] | None:
    """The first way that holds it with a comfortable context; failing that, with a short one."""
    for floor in _floors(need):
        for way in ways:
            fitting = _as_long_as_fits(need.on(way.card), way.free_mib, floor)
            if fitting is not None:
                return fitting, way
    return None


def _floors(need: Need) -> list[int]:
    if need.context_fixed:
        return [need.context]
    return sorted({min(need.context, COMFORTABLE_CONTEXT), min(need.context, SHORTEST_CONTEXT)}, reverse=True)


def _as_long_as_fits(need: Need, free_mib: int, shortest: int) -> Need | None:
    for context in _contexts(need.context, shortest):
        shorter = replace(need, context=context)
        if shorter.mib <= free_mib:
            return shorter
    return None


def _contexts(longest: int, shortest: int) -> Iterator[int]:
    """The whole, then powers of two down to `shortest`."""
    yield longest
    power = 1 << max(0, longest - 1).bit_length()
    while (power := power // 2) > shortest:
        if power < longest:
            yield power
    if shortest < longest:
        yield shortest


# --- in words --------------------------------------------------------------------------------------------


def _placement(need: Need, way: _Way, why_cpu: str) -> Placement:
    where = f"on card {way.card.index} ({way.card.name})" if way.card else "on the CPU"
    said = f"{need.model} goes {where}: {need.explain()}; {way.free_mib} MiB are free"
    said += f" once {', '.join(way.unload)} left" if way.unload else ""
    said += f"; {why_cpu}" if why_cpu and way.card is None else ""
    return Placement(need.model, way.card, need.mib, need.slots, need.context, way.unload, said)


def _why_cpu(need: Need, space: Space) -> str:
    room = max(space.rooms, key=lambda room: room.total_mib, default=None)
    if room is None:
        return ""
    smallest = _smallest(need.on(room.card))
    return f"no card holds it ({smallest.mib} MiB at least, {room.total_mib - space.reserve_mib} MiB for us at most)"


def _smallest(need: Need) -> Need:
    return need if need.context_fixed else replace(need, context=min(need.context, SHORTEST_CONTEXT))


def _refusal(need: Need, space: Space, others: Sequence[Resident]) -> DoesNotFit:
    places = [_Way(room.card, room.total_mib - space.reserve_mib, ()) for room in space.rooms]
    places = [] if need.device == "cpu" else places
    places += [] if need.device == "cuda" else [_Way(None, space.cpu_mib, ())]
    if not places:
        message = f"{need.model} is to run on a card, and this machine has none that the driver knows"
        return DoesNotFit(need.model, need.on(None).mib, 0, message, tuple(_elsewhere(need, space)))
    widest = max(places, key=lambda way: way.free_mib)
    smallest = _smallest(need.on(widest.card))
    where = f"card {widest.card.index} ({widest.card.name})" if widest.card else "the CPU's memory"
    pinned = sum(r.mib for r in others if r.pinned and r.place == (widest.card.uuid if widest.card else CPU))
    room = max(0, widest.free_mib - pinned)
    message = f"{need.model} does not fit: it takes {smallest.explain()}; {where} has {room} MiB for it"
    nearest = [*_smaller(smallest, room), *_elsewhere(need, space), *_less_beside(smallest, widest, room, others)]
    return DoesNotFit(need.model, smallest.mib, room, message, tuple(nearest))


def _smaller(need: Need, room_mib: int) -> Iterator[str]:
    """What of the wish could be less."""
    fewer = [slots for slots in range(need.slots - 1, 0, -1) if replace(need, slots=slots).mib <= room_mib]
    if fewer:
        yield f"slots: {fewer[0]}"
    if need.context_fixed:
        shorter = _as_long_as_fits(need, room_mib, min(need.context, SHORTEST_CONTEXT))
        if shorter is not None:
            yield f"context: {shorter.context}"
    halved = replace(need, wished="bf16")
    if halved.mib < need.mib and halved.mib <= room_mib:
        yield "arithmetic: bf16"


def _elsewhere(need: Need, space: Space) -> Iterator[str]:
    """Another device than the one that was asked for."""
    if need.device == "cuda" and _smallest(need.on(None)).mib <= space.cpu_mib:
        yield "device: auto, which would take the CPU"
    if need.device == "cpu":
        roomy = [room for room in space.rooms if _smallest(need.on(room.card)).mib <= room.total_mib]
        if roomy:
            yield f"device: auto, which would take {roomy[0].card.name}"


def _less_beside(need: Need, widest: _Way, room_mib: int, others: Sequence[Resident]) -> Iterator[str]:
    """Less of what is there already."""
    pinned = [resident.model for resident in others if resident.pinned]
    if room_mib < need.mib <= widest.free_mib and pinned:
        yield f"pinned: false for {', '.join(pinned)}"
    card = widest.card
    if card is not None and widest.free_mib < need.mib <= card.vram_mib:
        yield f"ending what else uses {card.name} ({card.vram_mib - widest.free_mib} MiB)"
