"""What was computed for the beginnings of prompts and answers, kept for others that begin alike.

Rule: a part is found by the very tokens that it holds and by all that stand before it, never by a hash alone; so
conversations share what they have in common and nothing else. Bytes are bounded, and what was used longest ago goes
first: a part is always touched before the one that it follows, so that the end of a conversation goes before its
beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PART_TOKENS = 16

Key = tuple[int, tuple[int, ...]]  # the number of the part before, and this part's tokens
BEGINNING = 0


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    content: Any


class PrefixCache:
    """`content` of `PART_TOKENS` tokens each. `part_bytes` is the size of one; a `most_bytes` of 0 keeps nothing."""

    def __init__(self, most_bytes: int, part_bytes: int) -> None:
        self._most = most_bytes // part_bytes if part_bytes else 0
        self._parts: OrderedDict[Key, _Part] = OrderedDict()  # the one used longest ago first
        self._numbers = BEGINNING

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, ids: Sequence[int]) -> list[Any]:
        """The content of the parts that `ids` begins with, in order."""
        keys = self._known(ids)
        self._touch(keys)
        return [self._parts[key].content for key in keys]

    def keep(self, ids: Sequence[int], save: Callable[[int, int], Any]) -> None:
        """Keep what is not there yet of `ids`; `save` copies the content from a token to another."""
        keys = self._known(ids)
        end = min(len(ids) // PART_TOKENS, self._most)
        for index in range(len(keys), end):
            before = self._parts[keys[-1]].number if keys else BEGINNING
            start = index * PART_TOKENS
            key = (before, tuple(ids[start : start + PART_TOKENS]))
            self._numbers += 1
            self._parts[key] = _Part(self._numbers, save(start, start + PART_TOKENS))
            keys.append(key)
        self._touch(keys)
        while len(self._parts) > self._most:
            self._parts.popitem(last=False)

    def _known(self, ids: Sequence[int]) -> list[Key]:
        keys, before = list[Key](), BEGINNING
        for start in range(0, len(ids) - PART_TOKENS + 1, PART_TOKENS):
            key = (before, tuple(ids[start : start + PART_TOKENS]))
            if key not in self._parts:
                break
            keys.append(key)
            before = self._parts[key].number
        return keys

    def _touch(self, keys: Sequence[Key]) -> None:
        for key in reversed(keys):
            self._parts.move_to_end(key)
