"""The machine as the configuration lets the node see it: cards, memory, and the senses of the game guard.

Rule: here it is decided who looks; nothing is decided from what is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import psutil
import trio

from node.cards import Card, CardProcess, Cards, rooms
from node.config import GuardSection, HardwareSection
from node.fake_cards import DeclaredCards
from node.fit import Space
from node.guard.battery import BatterySense
from node.guard.full_screen import FullScreenSense
from node.guard.on_card import CardLimits, CardSense, names_nobody
from node.guard.programs import ProgramsSense
from node.guard.schedule import ScheduleSense, parse_hours
from node.guard.sense import Sense
from node.nvml_cards import NvmlCards
from node.operations import Json

MIB = 1 << 20
CPU_RESERVE_MIB = 1_024  # of the machine's memory, left to everything else


def open_cards(section: HardwareSection) -> Cards:
    """The machine's cards, or those that are declared. Raises `CardsFileError`."""
    return DeclaredCards(section.declared) if section.declared else NvmlCards()


def open_senses(
    section: GuardSection,
    cards: Cards,
    own: Callable[[], Collection[int]],
    ours: Callable[[Card], bool],
    servers: Sequence[str] = (),
) -> list[Sense]:
    """What the guard looks with. `own`: process ids of the engines; `ours`: has the node a model on this card?
    `servers`: programs on the cards that work for this node, and so do not count."""
    if not section.enabled:
        return []
    limits = CardLimits(
        section.compute_mib, section.graphics_mib, section.busy_percent, (*section.ignore_programs, *servers)
    )
    senses: list[tuple[bool, Callable[[], Sense]]] = [
        (section.card, lambda: CardSense(cards, own, limits, ours)),
        (bool(section.programs), lambda: ProgramsSense(section.programs)),
        (section.full_screen, lambda: FullScreenSense(section.ignore_programs)),
        (section.battery, BatterySense),
        (bool(section.pause), lambda: ScheduleSense([parse_hours(hours) for hours in section.pause])),
    ]
    return [make() for wanted, make in senses if wanted]


def look_at(cards: Cards, reserve_mib: int, own: Mapping[int, int]) -> Space:
    """What there is for our models. `own` maps process ids of our engines to the MiB planned for each. Blocks."""
    available = psutil.virtual_memory().available // MIB - CPU_RESERVE_MIB
    mine = sum(_resident_mib(pid) for pid in own)  # what they have already they may keep
    return Space(rooms(cards, own), max(0, available + mine), reserve_mib)


async def look(cards: Cards, reserve_mib: int, own: Mapping[int, int]) -> Space:
    """`look_at`, while the node goes on."""
    return await trio.to_thread.run_sync(look_at, cards, reserve_mib, dict(own))


def describe(cards: Cards, own: Collection[int]) -> list[Json]:
    """The cards and who is on them, for the operator. Blocks."""
    return [_described(cards, card, own) for card in cards.cards()]


def _described(cards: Cards, card: Card, own: Collection[int]) -> Json:
    processes = cards.processes(card)
    return {
        "index": card.index,
        "uuid": card.uuid,
        "name": card.name,
        "kind": card.kind,
        "declared": card.declared,
        "vram_mib": card.vram_mib,
        "free_mib": card.free_mib,
        "compute_capability": card.compute_capability,
        "driver": card.driver,
        "utilisation": cards.utilisation(card),
        "processes": None if processes is None else [_process(process, own) for process in processes],
    }


def _process(process: CardProcess, own: Collection[int]) -> Json:
    whose = "this node" if process.pid in own else "desktop" if names_nobody(process.name) else "another"
    return {"pid": process.pid, "name": process.name, "mib": process.mib, "use": process.use, "whose": whose}


def _resident_mib(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) // MIB
    except (psutil.Error, OSError, ValueError):
        return 0
