"""Processes that are started and killed, and what they said until then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.durability.claims import Claims
from tests.durability.small_world import SmallWorld

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


class ProcessEnded(Exception):
    """A process ended by itself; the message holds what it said about it."""


@dataclass
class Life:
    """One process from start to kill."""

    world: SmallWorld
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    module: str = "tests.durability.books"

    def __post_init__(self) -> None:
        self.said: list[bytes] = []
        self.ready = threading.Event()
        self.errors = self.world.folder / f"{self.name}.errors"
        command = [sys.executable, "-m", self.module, str(self.world.folder), self.name]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | self.environment, stdout=subprocess.PIPE, stderr=errors
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            self.ready.set()
        self.ready.set()

    def wait_ready(self) -> None:
        """Return when it runs. Raises `ProcessEnded`."""
        self.ready.wait(START_SECONDS)
        if not self.said:
            self.kill()
            raise ProcessEnded(f"{self.name} did not start: {self.errors.read_text(errors='replace')[-1_500:]}")

    def kill(self) -> bool:
        """SIGKILL. False if it had ended before, which is wrong."""
        alive = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return alive

    def tell(self, claims: Claims) -> None:
        """Hand over what it said, after its end; a line that the kill cut off was not said."""
        for line in self.said:
            if line.endswith(b"\n"):
                claims.hear(json.loads(line))
