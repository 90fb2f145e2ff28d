"""Walks through all states of a model.

Rule: breadth first, so that the first broken state found is one of those that the fewest steps lead to. A model says
how it begins, what can happen next, and what is wrong with a state; it knows nothing of how it is walked.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

State = TypeVar("State", bound=Hashable)
Local = TypeVar("Local", bound="Ordered")


class Ordered(Hashable, Protocol):
    """What one witness is: comparable, so that a group of witnesses has one canonical order."""

    def __lt__(self, other: Any, /) -> bool: ...


class Model(Protocol[State]):
    """A system as a graph of states."""

    def initial(self) -> State:
        """Where it begins."""
        ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """Everything that can happen next, in words, and what is then."""
        ...

    def broken(self, state: State) -> str:
        """Which property does not hold here; empty if all do."""
        ...


class BoundTooSmall(Exception):
    """There are more states than were allowed: nothing is known about the rest."""


@dataclass(frozen=True, slots=True)
class Result(Generic[State]):
    """What a walk found. `trace` leads to the broken state, and is empty if there is none."""

    states: int
    depth: int
    broken: str
    trace: tuple[str, ...]
    last: State | None


def explore(model: Model[State], limit: int) -> Result[State]:
    """Walk until a property breaks or every state is known. Raises `BoundTooSmall` at more than `limit` states."""
    start = model.initial()
    parents: dict[State, State | None] = {start: None}
    layer, depth = [start], 0
    while layer:
        for state in layer:
            broken = model.broken(state)
            if broken:
                return Result(len(parents), depth, broken, tuple(_trace(model, parents, state)), state)
        layer = list(_next_layer(model, parents, layer))
        depth += bool(layer)
        if len(parents) > limit:
            raise BoundTooSmall(f"more than {limit} states")
    return Result(len(parents), depth, "", (), None)


def _next_layer(model: Model[State], parents: dict[State, State | None], layer: Iterable[State]) -> Iterator[State]:
    for state in layer:
        for _, following in model.steps(state):
            if following not in parents:
                parents[following] = state
                yield following


def _trace(model: Model[State], parents: dict[State, State | None], state: State) -> list[str]:
    """The steps to `state`. Words are not kept while walking, but found again."""
    words: list[str] = []
    before = parents[state]
    while before is not None:
        words.append(next(word for word, following in model.steps(before) if following == state))
        state, before = before, parents[before]
    return words[::-1]


def distinct(group: tuple[Local, ...]) -> Iterator[Local]:
    """The different members of a sorted group: what one of two equal witnesses can do, the other can."""
    previous: Local | None = None
    for member in group:
        if member != previous:
            yield member
        previous = member


def replaced(group: tuple[Local, ...], old: Local, new: Local) -> tuple[Local, ...]:
    """A sorted group in which one witness has changed. Witnesses have no names: only how many are how counts."""
    changed = list(group)
    changed.remove(old)
    insort(changed, new)
    return tuple(changed)
