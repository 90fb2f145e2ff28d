"""One source of knowledge about the owner, as a type.

Rule: a sense looks and says; it decides nothing. What it cannot see it calls unknown, with the reason, and it never
raises: the guard has to go on whatever a driver, a desktop or a clock does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Says(Enum):
    """What a sense makes of what it sees."""

    PAUSE = "pause"  # the owner needs the machine
    QUIET = "quiet"
    UNKNOWN = "unknown"  # it cannot be told


@dataclass(frozen=True, slots=True)
class Reading:
    """One look."""

    says: Says
    why: str = ""  # in words: what was seen, or why nothing could be
    until_ms: int | None = None  # wall clock, Unix milliseconds: when this ends, if it is known
    at_once: bool = False  # once it ends nothing needs to be waited for: it was set, not seen


QUIET = Reading(Says.QUIET)


class Sense(Protocol):
    """One source."""

    @property
    def name(self) -> str:
        """In `mtor status` and in the settings."""

    def read(self) -> Reading:
        """A look, now. May block for some milliseconds. Does not raise."""


@dataclass
class FakeSense:
    """A sense that says what it was told."""

    name: str = "fake"
    reading: Reading = field(default_factory=lambda: QUIET)

    def read(self) -> Reading:
        """See `Sense`."""
        return self.reading

    def say_pause(self, why: str = "game.exe runs") -> None:
        """The owner needs the machine."""
        self.reading = Reading(Says.PAUSE, why)

    def say_quiet(self) -> None:
        """Nothing to be seen."""
        self.reading = QUIET
