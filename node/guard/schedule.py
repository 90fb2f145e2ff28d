"""Hours that are the owner's: `18:00-23:00 mon-fri`.

Rule: a schedule means what the clock on the wall shows. An hour that summer time skips is skipped, one that comes
twice belongs to the owner twice. Hours that begin before midnight and end after it belong to the day they begin on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo

from node.guard.sense import QUIET, Reading, Says

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
FULL_DAY = 24 * 60  # minutes

_HOURS = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})(?:\s+(.+))?")


class ScheduleError(ValueError):
    """A schedule cannot be read; the message shows how one looks."""


@dataclass(frozen=True, slots=True)
class Hours:
    """From `begin` for `length` minutes, on each of `days` (0 is Monday)."""

    begin: int  # minutes after midnight
    length: int
    days: frozenset[int]
    text: str

    def end_at(self, wall: datetime) -> datetime | None:
        """When these hours end (wall time), if `wall` lies in them."""
        for day in (wall.date(), wall.date() - timedelta(days=1)):
            begin = datetime.combine(day, time()) + timedelta(minutes=self.begin)
            end = begin + timedelta(minutes=self.length)
            if day.weekday() in self.days and begin <= wall.replace(tzinfo=None) < end:
                return end
        return None


def parse_hours(text: str) -> Hours:
    """`18:00-23:00 mon-fri`, `22:00-02:00 fri,sat`, `00:00-24:00 sun`, `9:00-17:00`. Raises `ScheduleError`."""
    found = _HOURS.fullmatch(text.strip().lower())
    if found is None:
        raise ScheduleError(f"{text!r} is no schedule; write 18:00-23:00 mon-fri, or 22:00-02:00 for every day")
    begin, end = _minutes(text, found[1], found[2]), _minutes(text, found[3], found[4])
    if begin >= FULL_DAY:
        raise ScheduleError(f"{text!r}: hours begin at 23:59 at the latest")
    length = (end - begin) % FULL_DAY or FULL_DAY
    return Hours(begin, length, frozenset(_days(text, found[5] or "")), text)


def _minutes(text: str, hours: str, minutes: str) -> int:
    whole = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or whole > FULL_DAY:
        raise ScheduleError(f"{text!r}: {hours}:{minutes} is no time of the day")
    return whole


def _days(text: str, said: str) -> Iterator[int]:
    if said.strip() in ("", "daily"):
        yield from EVERY_DAY
        return
    for part in said.split(","):
        first, _, last = part.strip().partition("-")
        begin, end = _day(text, first), _day(text, last or first)
        yield from ((begin + step) % 7 for step in range((end - begin) % 7 + 1))


def _day(text: str, name: str) -> int:
    if name.strip() not in DAYS:
        raise ScheduleError(f"{text!r}: {name.strip() or 'nothing'} is no day; days are {', '.join(DAYS)}")
    return DAYS.index(name.strip())


def local_now() -> datetime:
    """The wall clock of this machine. Its zone is asked for anew each time: a laptop travels."""
    return datetime.now().astimezone()


class ScheduleSense:
    """See `Sense`."""

    name = "schedule"

    def __init__(self, hours: Sequence[Hours], now: Callable[[], datetime] = local_now) -> None:
        """`now` gives an aware datetime in the owner's zone."""
        self._hours = hours
        self._now = now

    def read(self) -> Reading:
        """See `Sense`."""
        now = self._now()
        ends = [(end, hours.text) for hours in self._hours if (end := hours.end_at(now)) is not None]
        if not ends:
            return QUIET
        end, text = max(ends)
        until = round(_instant(end, now).timestamp() * 1_000)
        return Reading(Says.PAUSE, f"the schedule keeps {text} for the owner", until, at_once=True)


def _instant(wall: datetime, now: datetime) -> datetime:
    """A wall time after `now` as a moment. In a fold it is the later one: the hours last until the clock has shown
    their end for the last time."""
    zone: tzinfo | None = now.tzinfo if hasattr(now.tzinfo, "key") else None  # a zone with rules, not a bare offset
    return wall.replace(tzinfo=zone, fold=1) if zone else wall.replace(fold=1).astimezone()
