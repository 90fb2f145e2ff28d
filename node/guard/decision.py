"""Pause or serve: the guard's decision.

Rule: pure. One sense that asks for the machine pauses the node at once; it serves again only when none has asked for
a while, so that a loading screen or a restart of a game does not make it flap. A sense that goes blind is believed in
what it said last for a time, then counts as quiet: the owner is not disturbed, and the node is not lost for ever.
What was set and not seen (a schedule, `mtor pause`) ends at its minute. Times are milliseconds of a clock that never
jumps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from node.guard.sense import Reading, Says

BLIND_MS = 60_000  # how long a sense that went blind is believed


@dataclass(frozen=True, slots=True)
class Asking:
    """A sense that asks for the machine, or did a moment ago."""

    reading: Reading
    heard_ms: int  # when it last said so


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds now. `asking` by name of the sense."""

    paused: bool = False
    why: str = ""  # of the pause
    since_ms: int = 0  # of the state
    asking: Mapping[str, Asking] = field(default_factory=dict)
    overruled: frozenset[str] = frozenset()  # senses that the owner told to be ignored until they are quiet
    quiet_since_ms: int | None = None  # of a pause that nobody asks for any more

    @property
    def until_ms(self) -> int | None:
        """Wall clock: when the pause ends, if everything that asks for it says so."""
        ends = [asking.reading.until_ms for asking in self.asking.values()]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else None


def decide(before: Decision, readings: Mapping[str, Reading], now_ms: int, resume_after_ms: int) -> Decision:
    """What holds after a look."""
    overruled = before.overruled & {name for name, reading in readings.items() if reading.says is not Says.QUIET}
    heard = {name: reading for name, reading in readings.items() if name not in overruled}
    asking = {name: now for name in heard if (now := _asking(before.asking.get(name), heard[name], now_ms))}
    state = replace(before, asking=asking, overruled=overruled)
    if asking:
        return _paused(state, now_ms)
    if not before.paused:
        return state
    quiet_since = now_ms if before.quiet_since_ms is None else before.quiet_since_ms
    if _ends_at_once(before, overruled) or now_ms - quiet_since >= resume_after_ms:
        return replace(state, paused=False, why="", since_ms=now_ms, quiet_since_ms=None)
    return replace(state, quiet_since_ms=quiet_since)


def overrule(before: Decision) -> Decision:
    """The owner says: serve, whatever asks now. Each sense counts again once it was quiet."""
    return replace(before, overruled=before.overruled | before.asking.keys(), asking={}, quiet_since_ms=0)


def _asking(before: Asking | None, reading: Reading, now_ms: int) -> Asking | None:
    if reading.says is Says.PAUSE:
        return Asking(reading, now_ms)
    blind = reading.says is Says.UNKNOWN and before is not None and now_ms - before.heard_ms < BLIND_MS
    return before if blind else None


def _paused(state: Decision, now_ms: int) -> Decision:
    why = "; ".join(asking.reading.why for _, asking in sorted(state.asking.items()))
    since = state.since_ms if state.paused else now_ms
    return replace(state, paused=True, why=why, since_ms=since, quiet_since_ms=None)


def _ends_at_once(before: Decision, overruled: frozenset[str]) -> bool:
    """True if all that asked until now was set rather than seen, or is overruled."""
    seen = [a for name, a in before.asking.items() if not a.reading.at_once and name not in overruled]
    waiting = before.quiet_since_ms is not None and before.quiet_since_ms > 0
    return not seen and not waiting
