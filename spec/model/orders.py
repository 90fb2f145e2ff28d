"""Votes, certificates, stores, freezing and the merge, for one number of one account.

The owner signs two orders, A and B, with one number (the worst that it can do; a third adds nothing). A correct
witness votes once, stores an order that has a certificate unless it has frozen, acknowledges what it stored, and
signs a snapshot of what it holds when it freezes. The Byzantine ones vote for both, acknowledge everything, and give
any snapshot, or none. A decision takes the union of any 2f+1 snapshots; witnesses that did not freeze go on for as
long as they like.

An account's order names its epoch, so what happens after the adoption of the decision cannot concern A or B: nobody
stores them any more. (Acknowledgements of two epochs therefore only matter for settlements: `channels`.)

A witness may also be *set back*: its disk shows an earlier state, while what it signed is in the world. `channels`
has the same for what holds over several epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from .explorer import distinct, replaced

A, B = 1, 2
NAMES = ("nothing", "A", "B", "A and B")
UNDECIDED = -1
NO_SNAPSHOT = -1

SOUND, ABSTAINS, UNAWARE = 0, 1, 2  # has its memory; was set back and knows; was set back and does not know


class Witness(NamedTuple):
    """A correct witness. Sets of orders are bit masks."""

    signed: int = 0  # votes that left
    remembered: int = 0  # votes that it knows of
    held: int = 0
    acknowledged: int = 0
    snapshot: int = NO_SNAPSHOT  # what it signed when it froze
    frozen: bool = False
    memory: int = SOUND

    def __str__(self) -> str:
        parts = [f"voted {NAMES[self.signed]}", f"holds {NAMES[self.held]}"]
        parts += ["frozen"] * self.frozen + ["set back"] * (self.memory != SOUND)
        return f"({', '.join(parts)})"


class State(NamedTuple):
    """All witnesses, and what the decision's union holds."""

    group: tuple[Witness, ...]
    decision: int = UNDECIDED


@dataclass(frozen=True, slots=True)
class Rules:
    """The federation, and how its correct witnesses behave. Other than default is a mutant."""

    faults: int = 1
    byzantine: int | None = None  # None: as many as may be bad
    quorum: int | None = None  # None: 2f+1
    votes_once: bool = True
    stores_frozen: bool = False
    final_when_certified: bool = False
    set_backs: int = 0  # how many correct witnesses may be set back, besides the Byzantine ones
    after_set_back: int = ABSTAINS
    must_end: bool = True  # silent Byzantine witnesses and those that abstain leave a quorum of snapshots
    notices: bool = False  # an unaware witness abstains once it meets a vote of its own that it does not remember


class Orders:
    """The model. See the module."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.witnesses = 3 * rules.faults + 1
        self.byzantine = rules.faults if rules.byzantine is None else rules.byzantine
        self.quorum = 2 * rules.faults + 1 if rules.quorum is None else rules.quorum

    def initial(self) -> State:
        """Nobody has seen an order."""
        return State((Witness(),) * (self.witnesses - self.byzantine))

    def broken(self, state: State) -> str:
        """At most one certificate for a number (I3); what is final is in the merge (I7)."""
        if self._certified(state, A) and self._certified(state, B):
            return "two certificates for one number"
        if state.decision != UNDECIDED:
            for order in (A, B):
                if self._final(state, order) and not state.decision & order:
                    return f"{NAMES[order]} is final, and not in the merge"
        elif self.rules.must_end and self._able(state) < self.quorum:
            return "no quorum is left that could end the epoch"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """What a witness does, or the decision."""
        for witness in distinct(state.group):
            for word, changed in self._local(state, witness):
                yield f"{witness} {word}", state._replace(group=replaced(state.group, witness, changed))
        if state.decision == UNDECIDED:
            for union in self._unions(state):
                yield f"decision: the union holds {NAMES[union]}", state._replace(decision=union)

    def _local(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        if witness.memory != ABSTAINS:
            if not witness.frozen:
                yield from self._votes(state, witness)
                yield "freezes", witness._replace(frozen=True, snapshot=witness.held)
            if not witness.frozen or self.rules.stores_frozen:
                yield from self._stores(state, witness)
        if witness.memory == SOUND and self._set_back(state) < self.rules.set_backs:
            yield (
                "is set back",
                witness._replace(remembered=0, held=0, frozen=False, memory=self.rules.after_set_back),
            )

    def _votes(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        for order in (A, B):
            # A and B are alike: the first vote of all is for A.
            first = order == A or any(one.signed for one in state.group)
            free = not witness.remembered or not self.rules.votes_once
            if first and free and not witness.remembered & order:
                changed = witness._replace(signed=witness.signed | order, remembered=witness.remembered | order)
                yield f"votes for {NAMES[order]}", changed

    def _stores(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        for order in (A, B):
            if witness.held & order or not self._certified(state, order):
                continue
            if self.rules.notices and witness.signed & ~witness.remembered & order:
                yield f"meets its own vote for {NAMES[order]}, and abstains", witness._replace(memory=ABSTAINS)
            else:
                acknowledged = witness.acknowledged | order
                changed = witness._replace(held=witness.held | order, acknowledged=acknowledged)
                yield f"stores and acknowledges {NAMES[order]}", changed

    def _unions(self, state: State) -> set[int]:
        """What the snapshots of 2f+1 witnesses, up to f of them Byzantine, can make."""
        snapshots = [witness.snapshot for witness in state.group if witness.snapshot != NO_SNAPSHOT]
        found = set()
        for lies in range(self.byzantine + 1):
            for chosen in combinations(snapshots, self.quorum - lies):
                for invented in self._certified_sets(state) if lies else (0,):
                    union = invented
                    for snapshot in chosen:
                        union |= snapshot
                    found.add(union)
        return found

    def _certified_sets(self, state: State) -> list[int]:
        possible = sum(order for order in (A, B) if self._certified(state, order))
        return [chosen for chosen in (0, A, B, A | B) if not chosen & ~possible]

    def _certified(self, state: State, order: int) -> bool:
        return sum(bool(witness.signed & order) for witness in state.group) + self.byzantine >= self.quorum

    def _final(self, state: State, order: int) -> bool:
        if self.rules.final_when_certified:
            return self._certified(state, order)
        acknowledged = sum(bool(witness.acknowledged & order) for witness in state.group)
        return acknowledged + self.byzantine >= self.quorum

    @staticmethod
    def _able(state: State) -> int:
        """Correct witnesses whose snapshot there is, or may be."""
        return sum(witness.memory != ABSTAINS or witness.snapshot != NO_SNAPSHOT for witness in state.group)

    @staticmethod
    def _set_back(state: State) -> int:
        return sum(witness.memory != SOUND for witness in state.group)
