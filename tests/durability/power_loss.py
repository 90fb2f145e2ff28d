"""Takes the power from the processes of a small federation at random moments, by simulation.

Rule: each process runs under a recorder of all that it does to its files. After its SIGKILL its folder is made what a
power loss at that moment may have left (see `disk_model`), then the same look as after a kill must find every claim.

    python tests/durability/power_loss.py --losses 200 --witnesses 4 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.durability.blows import Life
from tests.durability.disk_model import KEEPS, Disk
from tests.durability.kill_ledger import Killer, Tally, run
from tests.durability.small_world import SmallWorld
from tests.durability.stores import STORES

COMPILERS = ("cc", "gcc", "clang")
SOURCE = Path(__file__).with_name("disk_recorder.c")


class NoRecorder(Exception):
    """This machine cannot have a recorder; the message says why."""


class RecorderBroken(Exception):
    """The recorder does not compile; the message is the compiler's."""


def build_recorder(folder: Path) -> Path:
    """The recorder as a shared library in `folder`. Raises `NoRecorder` or `RecorderBroken`."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or not sys.platform.startswith("linux"):
        raise NoRecorder("needs Linux and a C compiler")
    target = folder / "disk_recorder.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(target), str(SOURCE), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise RecorderBroken(built.stderr)
    return target


def recorded(recorder: Path, home: Path, record: Path) -> dict[str, str]:
    """The environment of a process whose recorder writes to `record` what is done to `home`."""
    return {"LD_PRELOAD": str(recorder), "MTOR_DISK_ROOT": str(home), "MTOR_DISK_RECORD": str(record)}


def lose_power(disk: Disk, chance: random.Random, journal: bool | None) -> str:
    """What a loss may leave of a folder is left of it; which kind of loss it was. `journal`: see `Losses`."""
    kind = chance.choice(sorted(KEEPS))
    any_sync = chance.random() < 0.5 if journal is None else journal
    disk.leave(disk.power_loss(chance, KEEPS[kind], journal=any_sync))
    return f"{kind}; names with {'any file' if any_sync else 'their folder'}"


@dataclass
class Losses:
    """How power is lost, and what was."""

    recorder: Path
    journal: bool | None = None  # the sync of any file makes all names durable; None: now this, now that
    kinds: Counter[str] = field(default_factory=Counter)
    unsynced_bytes: int = 0  # that were at risk


class PowerCut(Killer):
    """Kills, after which the folders lose what a power loss may take."""

    def __init__(self, losses: Losses, world: SmallWorld, chance: random.Random, tally: Tally) -> None:
        super().__init__(world, chance, tally)
        self.losses = losses
        self.disks: dict[str, Disk] = {}

    def start(self, name: str) -> Life:
        """A process under the recorder."""
        home, record = self.world.home(name), self.world.folder / f"{name}.record"
        home.mkdir(exist_ok=True)
        record.unlink(missing_ok=True)
        self.disks[name] = Disk(home)
        return Life(self.world, name, recorded(self.losses.recorder, home, record))

    def killed(self, name: str) -> None:
        """The process is gone; now its disk loses power."""
        disk = self.disks.pop(name)
        disk.replay(self.world.folder / f"{name}.record")
        for difference in disk.differences():
            self.claims.problem(f"the recorder missed something of {name}: {difference}")
        self.losses.kinds[lose_power(disk, self.chance, self.losses.journal)] += 1
        self.losses.unsynced_bytes += disk.unsynced_bytes


def lose(
    root: Path, moments: int, seed: int, store: str = "real", journal: bool | None = None, witnesses: int = 1
) -> tuple[Tally, Losses]:
    """At least `moments` moments of power loss. Raises `NoRecorder`."""
    root.mkdir(parents=True, exist_ok=True)
    losses = Losses(build_recorder(root), journal)
    return run(root, moments, seed, store, partial(PowerCut, losses), witnesses), losses


def main() -> int:
    """Run and print the summary; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=200)
    parser.add_argument("--witnesses", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=sorted(STORES), default="real", help="others are wrong and must be found")
    parser.add_argument(
        "--names", choices=("any", "folder"), help="which syncs make names durable; default: both kinds"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the worlds, left as they are")
    options = parser.parse_args()
    journal = None if options.names is None else options.names == "any"
    with tempfile.TemporaryDirectory(prefix="mtor-") as folder:
        where = options.keep or Path(folder)
        tally, losses = lose(where, options.losses, options.seed, options.store, journal, options.witnesses)
    print(json.dumps(tally.as_json() | {"left": dict(losses.kinds), "unsynced_bytes": losses.unsynced_bytes}, indent=1))
    return 1 if tally.problems or tally.underpaid else 0


if __name__ == "__main__":
    sys.exit(main())
