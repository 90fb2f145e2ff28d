"""Steps of a network that are recorded once and played again: on a card, to launch hundreds of small kernels one by one
takes longer than they do.

Rule: what is played is what was recorded, on the very storage it was recorded with. So a step may read its inputs and
that storage, and nothing of Python's that may differ the next time; and a recording whose storage was replaced is never
played again. A step is recorded when it keeps coming, since recording takes as long as many steps. Where that fails,
steps are computed as before.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]
Step = Callable[..., torch.Tensor]
Played = Callable[[Tensors], torch.Tensor]  # inputs of the same shapes -> a result that is the caller's to keep
Record = Callable[[Step, Tensors], Played]  # computes the step at least once

MOST_RECORDINGS = 24  # each holds some MiB of the card
SEEN_BEFORE = 8  # times, until it is recorded: a number of answers that changes at once is not worth it
MOST_COUNTED = 256  # kinds of step
WARM_UP_STEPS = 2  # in which libraries set up what they may not while they are recorded


@dataclass(frozen=True, slots=True)
class _Recording:
    played: Played
    storage: tuple[weakref.ref[torch.Tensor], ...]  # weak: what the network gave up must be free for others

    def stands_on(self, storage: Tensors) -> bool:
        return all(known() is part for known, part in zip(self.storage, storage, strict=True))


class Recorder:
    """The recordings of one network; those that were played longest ago go first."""

    def __init__(self, record: Record) -> None:
        self.failed = False
        self._record = record
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    @property
    def recordings(self) -> int:
        """How many are kept."""
        return len(self._recordings)

    def play(self, kind: Hashable, step: Step, inputs: Tensors, storage: Tensors) -> torch.Tensor | None:
        """`step(*inputs)`, from its recording; None if there is none (yet). Steps of one `kind` differ in their inputs
        and their `storage` alone, and may be computed again with the same inputs."""
        if self.failed:
            return None
        try:
            played = self._known(kind, storage) or self._recorded(kind, step, inputs, storage)
            return played(inputs) if played is not None else None
        except Exception as error:
            self._give_up(error)
            return None

    def _known(self, kind: Hashable, storage: Tensors) -> Played | None:
        found = self._recordings.get(kind)
        if found is None:
            return None
        if not found.stands_on(storage):
            del self._recordings[kind]
            return None
        self._recordings.move_to_end(kind)
        return found.played

    def _recorded(self, kind: Hashable, step: Step, inputs: Tensors, storage: Tensors) -> Played | None:
        seen = self._seen.pop(kind, 0)
        if seen < SEEN_BEFORE:
            self._seen[kind] = seen + 1
            if len(self._seen) > MOST_COUNTED:
                self._seen.popitem(last=False)
            return None
        if len(self._recordings) >= MOST_RECORDINGS:
            self._recordings.popitem(last=False)
        made = self._record(step, inputs)
        self._recordings[kind] = _Recording(made, tuple(weakref.ref(part) for part in storage))
        return made

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        self._recordings.clear()
        print(f"steps are not recorded: {type(error).__name__}", file=sys.stderr, flush=True)


class CardRecorder:
    """Records CUDA graphs, whose passing values share memory: only one of them is played at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, inputs: Tensors) -> Played:
        """See `Record`."""
        own = [part.clone() for part in inputs]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_STEPS):
                step(*own)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = step(*own)

        def played(inputs: Tensors) -> torch.Tensor:
            for mine, given in zip(own, inputs, strict=True):
                mine.copy_(given)
            graph.replay()
            return result.clone()

        return played
