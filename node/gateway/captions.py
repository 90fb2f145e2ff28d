"""WebVTT, as workers write it, into what clients ask for.

Rule: a worker's text is a stranger's: what is no cue is left out, nothing is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

TIMING = re.compile(r"(?:(\d{2,3}):)?([0-5]\d):([0-5]\d)\.(\d{3}) --> (?:(\d{2,3}):)?([0-5]\d):([0-5]\d)\.(\d{3}).*")


@dataclass(frozen=True, slots=True)
class Cue:
    """A piece of text and its time, in ms."""

    start: int
    end: int
    text: str


def cues(webvtt: str) -> list[Cue]:
    """The cues of a WebVTT text."""
    return list(_cues(webvtt))


def _cues(webvtt: str) -> Iterator[Cue]:
    for block in re.split(r"\n\s*\n", webvtt.replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        for index, line in enumerate(lines):
            timing = TIMING.fullmatch(line.strip())
            if timing is not None:
                text = " ".join(each.strip() for each in lines[index + 1 :]).strip()
                yield Cue(_milliseconds(timing.groups()[:4]), _milliseconds(timing.groups()[4:]), text)
                break


def _milliseconds(parts: tuple[str | None, ...]) -> int:
    hours, minutes, seconds, rest = (int(part or 0) for part in parts)
    return ((hours * 60 + minutes) * 60 + seconds) * 1_000 + rest


def seconds_of(milliseconds: int) -> float:
    """As JSON has it."""
    return milliseconds / 1_000


def subrip(webvtt: str) -> str:
    """The same as SubRip (.srt)."""
    return "\n".join(
        f"{number}\n{_stamp(cue.start)} --> {_stamp(cue.end)}\n{cue.text}\n"
        for number, cue in enumerate(cues(webvtt), start=1)
    )


def _stamp(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1_000)
    return f"{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rest:03}"
