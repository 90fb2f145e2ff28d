"""Kills the processes of a small federation at random moments, and looks whether anything acknowledged is lost.

Rule: after every kill all stores are opened as a node opens them, every claim ever made in this world is checked, and
the next life goes on from that state.

    python tests/durability/kill_ledger.py --kills 200 --witnesses 4 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.durability.blows import Life
from tests.durability.books import hastened
from tests.durability.claims import Claims, look
from tests.durability.small_world import SmallWorld
from tests.durability.stores import STORES

KILLS_IN_A_WORLD = 16  # then a new one: every look replays the world's whole log
SPEED = 100  # a hold's hour passes in 36 seconds
EARLY = 0.15  # of the kills fall into a start
START_SECONDS = 0.8
BUSY_SECONDS = 0.7
BUSY_SECONDS_OF_MORE = 1.5


@dataclass
class Tally:
    """What happened."""

    kills: int = 0  # moments at which one or more processes were killed
    processes: Counter[str] = field(default_factory=Counter)  # killed
    acknowledged: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    certificates: int = 0
    problems: list[str] = field(default_factory=list)
    underpaid: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, claims: Claims) -> None:
        """A world is over."""
        self.acknowledged += claims.heard
        self.refusals += claims.refusals
        self.certificates += max(map(len, claims.logs.values()), default=0)
        self.underpaid += claims.underpaid

    def as_json(self) -> dict[str, Any]:
        """A summary."""
        shown = dict(self.__dict__)
        return shown | {name: dict(value) for name, value in shown.items() if isinstance(value, Counter)}


class Killer:
    """Lives and deaths of one world."""

    def __init__(self, world: SmallWorld, chance: random.Random, tally: Tally) -> None:
        self.world = world
        self.chance = chance
        self.tally = tally
        self.claims = Claims(world.federation.quorum)
        self.names = list(world.processes)
        self.lives: dict[str, Life] = {}
        self.busy = BUSY_SECONDS if world.count == 1 else BUSY_SECONDS_OF_MORE  # they share the machine

    def round(self) -> None:
        """A life of the federation: some are killed, perhaps started again, in the end all are; then a look."""
        self._start(self.names)
        early = self.chance.random() < EARLY
        if not early:
            for life in self.lives.values():
                life.wait_ready()
        time.sleep(self.chance.uniform(0.0, START_SECONDS if early else self.busy))
        victims = [name for name in self.names if self.chance.random() < 0.7] or self.names
        self._kill(victims)
        if self.lives:
            self._survivors(victims)
        trio.run(look, self.world, self.claims, self.chance)

    def _survivors(self, victims: list[str]) -> None:
        time.sleep(self.chance.uniform(0.0, 0.3))
        if self.chance.random() < 0.5:
            self._start(victims)
            time.sleep(self.chance.uniform(0.0, START_SECONDS + self.busy))
        self._kill(list(self.lives))

    def _start(self, names: list[str]) -> None:
        for name in names:
            self.lives[name] = self.start(name)

    def start(self, name: str) -> Life:
        """A process."""
        return Life(self.world, name)

    def _kill(self, names: list[str]) -> None:
        self.tally.kills += 1
        for name in names:
            life = self.lives.pop(name)
            if not life.kill():
                self.claims.problem(f"{name} ended by itself: {life.errors.read_text(errors='replace')[-800:]}")
            life.tell(self.claims)
            self.tally.processes[name] += 1
            self.killed(name)

    def killed(self, name: str) -> None:
        """After the end of a process, before anything looks at its files."""

    def end(self) -> None:
        """Leave no process."""
        for life in self.lives.values():
            life.kill()


MakeKiller = Callable[[SmallWorld, random.Random, Tally], Killer]


@hastened()
def run(
    root: Path, kills: int, seed: int, store: str = "real", killer: MakeKiller = Killer, witnesses: int = 1
) -> Tally:
    """At least `kills` kills."""
    tally, chance, began = Tally(), random.Random(seed), time.monotonic()
    number = 0
    while tally.kills < kills:
        world = SmallWorld.create(root / f"world-{number}", SPEED, store, seed, witnesses)
        number += 1
        until = min(kills, tally.kills + KILLS_IN_A_WORLD)
        play = killer(world, chance, tally)
        try:
            while tally.kills < until and not play.claims.problems:
                play.round()
            trio.run(look, world, play.claims, chance, True)
        finally:
            play.end()
        tally.add(play.claims)
        tally.problems += [f"{world.folder.name}: {problem}" for problem in play.claims.problems]
        print(
            f"{tally.kills} kills, {tally.acknowledged.total()} said, problems {len(tally.problems)}", file=sys.stderr
        )
        if play.claims.problems:
            break
    tally.seconds = round(time.monotonic() - began, 1)
    return tally


def main() -> int:
    """Run and print the summary; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--witnesses", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=sorted(STORES), default="real", help="others are wrong and must be found")
    parser.add_argument("--keep", type=Path, help="a folder for the worlds, left as they are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtor-") as folder:
        tally = run(
            options.keep or Path(folder), options.kills, options.seed, options.store, witnesses=options.witnesses
        )
    print(json.dumps(tally.as_json(), indent=1))
    return 1 if tally.problems or tally.underpaid else 0


if __name__ == "__main__":
    sys.exit(main())
