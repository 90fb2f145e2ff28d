"""The federation of the durability tests: witnesses, payers, workers, each with a LevelDB folder of its own.

Rule: everything follows from the folder and `world.json` in it, so a process that starts again, and the parent that
checks, see the same world. Time runs `speed` times as fast as outside, so holds expire within a test.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from node.bookkeeper import Bookkeeper, Settings
from node.ledger_peers import LedgerPeers
from node.witness_memory import WitnessMemory
from protocol.ledger import genesis
from protocol.ledger.genesis import Federation
from protocol.signing import Signer
from tests.durability.stores import STORES
from tests.protocol.ledger_world import signer

ISSUER = "durable issuer"
PAYERS = ("payer-0", "payer-1")
WORKERS = ("worker-0", "worker-1")

BEGINNING = 1_800_000_000_000  # Unix ms
HOLD = 60_000  # µcredits; used up by a few queries


@dataclass(frozen=True)
class SmallWorld:
    """Where the world lies and how it runs."""

    folder: Path
    begun: float  # seconds, of this machine
    speed: int
    store: str  # a key of `STORES`
    seed: int
    count: int = 1  # witnesses
    liars: int = 0  # the last of them are Byzantine
    epoch_seconds: float = 1.2  # between two moments at which a witness's operator agrees to an epoch's end, on average
    careless: bool = False  # wrong: the first witness votes twice for one number

    @classmethod
    def create(cls, folder: Path, speed: int, store: str, seed: int, count: int = 1, **more: Any) -> SmallWorld:
        """A new one in an empty folder."""
        folder.mkdir(parents=True)
        facts: dict[str, Any] = {
            "begun": time.time(),
            "speed": speed,
            "store": store,
            "seed": seed,
            "count": count,
        } | more
        world = cls(folder, **facts)
        (folder / "world.json").write_text(json.dumps(facts))
        return world

    @classmethod
    def open(cls, folder: Path) -> SmallWorld:
        """The one that lies there."""
        return cls(folder, **json.loads((folder / "world.json").read_text()))

    @property
    def witnesses(self) -> tuple[str, ...]:
        """In the order of genesis. The first has the issuer's key."""
        return tuple(f"witness-{index}" for index in range(self.count))

    @property
    def honest(self) -> tuple[str, ...]:
        """The witnesses that are not Byzantine."""
        return self.witnesses[: self.count - self.liars]

    @property
    def names(self) -> tuple[str, ...]:
        """All honest bookkeepers."""
        return (*self.honest, *PAYERS, *WORKERS)

    @property
    def processes(self) -> dict[str, tuple[str, ...]]:
        """The bookkeepers of each process."""
        return {witness: (witness,) for witness in self.witnesses} | {"payers": PAYERS, "workers": WORKERS}

    @cached_property
    def federation(self) -> Federation:
        """One issuer."""
        nodes = [signer(name).node for name in self.witnesses]
        return genesis.create("durability", BEGINNING, nodes, [signer(ISSUER).node])

    @cached_property
    def signers(self) -> dict[str, Signer]:
        """All keys."""
        return {name: signer(name) for name in (*self.witnesses, *self.names, ISSUER)}

    def now_ms(self) -> int:
        """The world's time."""
        return BEGINNING + int((time.time() - self.begun) * 1_000 * self.speed)

    def socket(self, process: str) -> Path:
        """Where a process listens."""
        return self.folder / f"{process}.socket"

    def home(self, process: str) -> Path:
        """All that a process writes to."""
        return self.folder / process

    def ledger(self, name: str) -> Path:
        """One bookkeeper's LevelDB folder."""
        process = next(process for process, names in self.processes.items() if name in names)
        return self.home(process) / name

    def bookkeeper(self, name: str, peers: LedgerPeers, *, as_intended: bool = False) -> Bookkeeper:
        """One bookkeeper. `as_intended`: on the real store, whatever the world says."""
        folder = self.ledger(name)
        return Bookkeeper(
            STORES["real" if as_intended else self.store](folder),
            self.signers[name],
            self.federation,
            self.signers[ISSUER] if name == self.witnesses[0] else None,
            self.now_ms,
            peers,
            Settings(hold=HOLD),
            memory=WitnessMemory(folder.with_name(f"{name}.signed")),
        )
