"""From tokens to text that may be sent: whole code points, no part of a stop string.

Rule: what was handed out is never taken back. Text that could still become a stop string, or half a code point, is
held until it is decided; the pieces put together are exactly the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no whole code point yet
CONTEXT_TOKENS = 6  # decoded again before the new ones, because spaces depend on what stands before

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Incremental decoding. `context` is the end of the prompt, which is not handed out."""

    def __init__(self, decode: Decode, context: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(context[-CONTEXT_TOKENS:])
        self._start = 0  # from here on ids are decoded
        self._shown = len(self._ids)  # up to here their text was handed out

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a code point is cut."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith(REPLACEMENT) or len(after) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end. A cut code point is dropped, so that a continuation can write it whole."""
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        self._shown = len(self._ids)
        return after[len(before) :].rstrip(REPLACEMENT)


class StopFilter:
    """Cuts an answer at the first stop string, however its pieces fall."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far may be handed out. After a stop string: nothing, and `stopped` is True."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = self._undecided()
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released

    def flush(self) -> str:
        """The answer is over: what was held is no stop string."""
        released, self._held = self._held, ""
        return "" if self.stopped else released

    def _undecided(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[len(self._held) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
