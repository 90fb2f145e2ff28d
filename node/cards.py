"""The graphics cards of this machine, as types, and what can be worked out from them alone.

Rule: what cannot be known is None and never a guess: a driver that says nothing, a card that vanished, memory that
Windows keeps to itself. Nobody above this file knows NVML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

CardKind = Literal["cuda", "mps"]
Use = Literal["compute", "graphics"]


@dataclass(frozen=True, slots=True)
class Card:
    """One card as it is now."""

    index: int  # the driver's number
    uuid: str
    name: str
    vram_mib: int
    free_mib: int  # what no process has; ours count as use
    compute_capability: int  # tenths: 89 is 8.9; 0 where there is no such thing
    driver: str
    kind: CardKind = "cuda"
    declared: bool = False  # written down by somebody, not found


@dataclass(frozen=True, slots=True)
class CardProcess:
    """A process that has work or memory on a card."""

    pid: int
    name: str  # "" if it cannot be told
    mib: int | None  # None where the driver does not say (Windows)
    use: Use
    busy_percent: int | None = None  # its share of the card's time of late


class Cards(Protocol):
    """The machine's cards. Calls may block for some milliseconds, longer under a sick driver; none raises."""

    @property
    def about(self) -> str:
        """Where the facts come from, or why there are none, in words."""

    def cards(self) -> tuple[Card, ...]:
        """Every card that this process may use, as it is now."""

    def processes(self, card: Card) -> tuple[CardProcess, ...] | None:
        """Who is on the card, one entry a process; None if it cannot be told."""

    def utilisation(self, card: Card) -> int | None:
        """Percent of the last moments in which the card worked; None if it cannot be told."""


@dataclass(frozen=True, slots=True)
class Room:
    """A card, and how much of it the node's models may have together."""

    card: Card
    total_mib: int  # what is free now and what our own processes have already


def rooms(cards: Cards, own: Mapping[int, int]) -> tuple[Room, ...]:
    """The cards with what they hold for us. `own` maps our engines' process ids to the MiB planned for each, which
    stands in where the driver does not say what they take."""
    return tuple(Room(card, card.free_mib + _ours(cards.processes(card), own)) for card in cards.cards())


def _ours(processes: Sequence[CardProcess] | None, own: Mapping[int, int]) -> int:
    mine = [process for process in processes or () if process.pid in own]
    return sum(own[process.pid] if process.mib is None else process.mib for process in mine)


def visible(cards: Sequence[Card], variable: str | None) -> tuple[Card, ...]:
    """Those that CUDA_VISIBLE_DEVICES lets this process use, by the rule of CUDA: numbers and (starts of) uuids up to
    the first that names no card. None: all of them."""
    if variable is None:
        return tuple(cards)
    chosen: list[Card] = []
    for word in (part.strip() for part in variable.split(",")):
        named = [card for card in cards if word and (word == str(card.index) or card.uuid.startswith(word))]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen.append(named[0])
    return tuple(chosen)
