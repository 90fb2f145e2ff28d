"""Takes the power from a process that does nothing but write to a store, by simulation.

Rule: batches follow from their numbers, so what is found after a loss is known in advance: every batch whose write
returned, whole; of the one that was under way everything or nothing; no report of damage, for nothing was damaged.

    python tests/durability/store_loss.py --losses 500 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from node.store import Store, StoreError
from tests.durability.disk_model import Disk
from tests.durability.power_loss import build_recorder, lose_power, recorded
from tests.durability.store_writer import LAST, batch_of
from tests.durability.stores import STORES

ROOT = Path(__file__).parents[2]
BUSY_SECONDS = 0.15
LOSSES_IN_A_FOLDER = 25
OLDER_LOOKED_AT = 300  # batches of earlier lives, at each look


@dataclass
class Found:
    """What happened."""

    losses: int = 0
    acknowledged: int = 0  # batches
    lost: list[int] = field(default_factory=list)  # acknowledged batches that are not there, or not whole
    partial: list[int] = field(default_factory=list)  # batches under way of which some is there
    alarms: list[str] = field(default_factory=list)  # damage reported where there is none
    kinds: Counter[str] = field(default_factory=Counter)
    unsynced_bytes: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing halved, no false alarm."""
        return not (self.lost or self.partial or self.alarms)


def run(root: Path, losses: int, seed: int, kind: str = "real", journal: bool | None = None) -> Found:
    """`losses` losses. Raises `NoRecorder`."""
    found, chance, began = Found(), random.Random(seed), time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    recorder = build_recorder(root)
    while found.losses < losses and (found.sound or kind == "real"):
        if found.losses % LOSSES_IN_A_FOLDER == 0:
            shutil.rmtree(root / "home", ignore_errors=True)
            (root / "home").mkdir()
            acknowledged = 0
        acknowledged = max(acknowledged, _life(root, recorder, chance, found, kind, journal))
        _look(root / "home" / "ledger", acknowledged, chance, found)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def _life(root: Path, recorder: Path, chance: random.Random, found: Found, kind: str, journal: bool | None) -> int:
    """A process from its start to the loss of its power. The last number that it acknowledged."""
    home, record = root / "home", root / "record"
    record.unlink(missing_ok=True)
    disk = Disk(home)
    environment = os.environ | recorded(recorder, home, record)
    command = [sys.executable, "-m", "tests.durability.store_writer", str(home / "ledger"), kind]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if chance.random() > 0.1:
        process.stdout.readline()
    time.sleep(chance.uniform(0.0, BUSY_SECONDS))
    process.kill()
    lines = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    process.wait()
    process.stdout.close()
    disk.replay(record)
    found.alarms += disk.differences()
    found.kinds[lose_power(disk, chance, journal)] += 1
    found.unsynced_bytes += disk.unsynced_bytes
    found.losses += 1
    numbers = [int(line) for line in lines if line[:1].isdigit()]
    found.acknowledged += len(numbers)
    return max(numbers, default=0)


def _look(folder: Path, acknowledged: int, chance: random.Random, found: Found) -> None:
    try:
        store = STORES["real"](folder)
    except StoreError as error:
        found.alarms.append(str(error))
        shutil.rmtree(folder, ignore_errors=True)
        return
    if store.damaged:
        found.alarms.append(store.damaged)
    last = int(store.get(LAST) or 0)
    older = chance.sample(range(1, acknowledged + 1), min(OLDER_LOOKED_AT, acknowledged))
    newest = range(max(1, acknowledged - OLDER_LOOKED_AT), acknowledged + 1)
    found.lost += [number for number in {*older, *newest} if number > last or not _is_whole(store, number)]
    found.partial += [number for number in range(acknowledged + 1, last + 1) if not _is_whole(store, number)]
    found.partial += [number for number in range(last + 1, last + 3) if _is_any(store, number)]
    store.close()


def _is_whole(store: Store, number: int) -> bool:
    return all(store.get(key) == value for key, value in batch_of(number).items() if key != LAST)


def _is_any(store: Store, number: int) -> bool:
    return any(store.get(key) is not None for key in batch_of(number) if key != LAST)


def main() -> int:
    """Run and print the summary; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=sorted(STORES), default="real", help="others are wrong and must be found")
    parser.add_argument("--names", choices=("any", "folder"), help="whose sync makes names durable; default: either")
    options = parser.parse_args()
    journal = None if options.names is None else options.names == "any"
    with tempfile.TemporaryDirectory(prefix="mtor-") as folder:
        found = run(Path(folder), options.losses, options.seed, options.store, journal)
    print(json.dumps(found.__dict__ | {"kinds": dict(found.kinds)}, indent=1))
    return 0 if found.sound else 1


if __name__ == "__main__":
    sys.exit(main())
