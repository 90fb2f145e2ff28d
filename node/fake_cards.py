"""Cards that somebody declared: for tests, and for machines that have none.

Rule: a declared card says that it is declared wherever it is named. The file is read again when it changes, so that
a program can "start" on a card while a node runs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.cards import Card, CardProcess

log = logging.getLogger("mtor.cards")


class CardsFileError(Exception):
    """The file of declared cards cannot be used; the message says why."""


@dataclass
class FakeCards:
    """See `Cards`: whatever it was told. Change the fields as the story goes."""

    found: list[Card] = field(default_factory=list)
    running: dict[str, list[CardProcess]] = field(default_factory=dict)  # by the card's uuid; none: not to be told
    busy: dict[str, int] = field(default_factory=dict)  # percent, by the card's uuid
    about: str = "a test"

    def cards(self) -> tuple[Card, ...]:
        """See `Cards`."""
        return tuple(replace(card, free_mib=max(0, card.free_mib - self._taken(card))) for card in self.found)

    def processes(self, card: Card) -> tuple[CardProcess, ...] | None:
        """See `Cards`."""
        return tuple(self.running[card.uuid]) if card.uuid in self.running else None

    def utilisation(self, card: Card) -> int | None:
        """See `Cards`."""
        return self.busy.get(card.uuid)

    def _taken(self, card: Card) -> int:
        return sum(process.mib or 0 for process in self.running.get(card.uuid, ()))


class _Process(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pid: int = Field(ge=1)
    name: str = ""
    mib: int | None = Field(None, ge=0)
    use: Literal["compute", "graphics"] = "graphics"
    busy_percent: int | None = Field(None, ge=0, le=100)


class _Card(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=80)
    vram_mib: int = Field(ge=1)
    free_mib: int | None = Field(None, ge=0)  # without the processes below; all of it if it is not said
    compute_capability: int = Field(89, ge=0)
    kind: Literal["cuda", "mps"] = "cuda"
    utilisation: int | None = Field(None, ge=0, le=100)
    processes: list[_Process] = Field(default_factory=list)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cards: list[_Card]


class DeclaredCards:
    """See `Cards`: what stands in a JSON file, as it stands there now."""

    def __init__(self, path: Path) -> None:
        """Raises `CardsFileError`."""
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._now = _read(path)
        log.warning("the cards of this machine are declared in %s, not found", path)

    @property
    def about(self) -> str:
        """See `Cards`."""
        return f"declared in {self._path}"

    def cards(self) -> tuple[Card, ...]:
        """See `Cards`."""
        self._look()
        return self._now.cards()

    def processes(self, card: Card) -> tuple[CardProcess, ...] | None:
        """See `Cards`."""
        self._look()
        return self._now.processes(card)

    def utilisation(self, card: Card) -> int | None:
        """See `Cards`."""
        self._look()
        return self._now.utilisation(card)

    def _look(self) -> None:
        """Take in a changed file; one that is half written, or wrong, changes nothing yet."""
        try:
            facts = self._path.stat()
            stamp = (facts.st_mtime_ns, facts.st_size)
            if stamp != self._stamp:
                self._now, self._stamp = _read(self._path), stamp
        except (OSError, CardsFileError) as error:
            log.debug("declared cards: %s", error)


def _read(path: Path) -> FakeCards:
    try:
        declared = _File.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        first = str(error).splitlines()[0] if isinstance(error, OSError) else _first(error)
        raise CardsFileError(f"hardware.declared: {path} does not declare cards: {first}") from None
    fake = FakeCards(about=f"declared in {path}")
    for index, card in enumerate(declared.cards):
        uuid = f"declared-{index}"
        free = card.vram_mib if card.free_mib is None else card.free_mib
        fake.found.append(
            Card(
                index=index,
                uuid=uuid,
                name=f"{card.name} (declared)",
                vram_mib=card.vram_mib,
                free_mib=free,
                compute_capability=card.compute_capability,
                driver="",
                kind=card.kind,
                declared=True,
            )
        )
        fake.running[uuid] = [CardProcess(p.pid, p.name, p.mib, p.use, p.busy_percent) for p in card.processes]
        if card.utilisation is not None:
            fake.busy[uuid] = card.utilisation
    return fake


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    one = error.errors()[0]
    return f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"
