"""A process that does nothing but write to a store: `python -m tests.durability.store_writer FOLDER STORE`.

Rule: batches follow from their numbers, so that what must be there is known to whoever looks afterwards.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from tests.durability.stores import STORES

LAST = b"last"


def batch_of(number: int) -> dict[bytes, bytes]:
    """A batch: 1 to 20 values, together up to 80 KB, sometimes the size of a page or of a block of LevelDB's log."""
    chance = random.Random(number)
    most = chance.choice((40, 300, 1_500, 4_096))
    values = {b"%09d.%02d" % (number, part): chance.randbytes(most) for part in range(chance.randint(1, 20))}
    return values | {LAST: b"%d" % number}


def write_on(folder: Path, kind: str) -> None:
    """Write batches until killed, and say each number after its write returned."""
    store = STORES[kind](folder)
    number = int(store.get(LAST) or 0)
    os.write(1, b"ready\n")
    while True:
        number += 1
        store.write(batch_of(number))
        os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    write_on(Path(sys.argv[1]), sys.argv[2])
