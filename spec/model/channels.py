"""One channel over several epochs: its Close, its refund, and a witness that was set back.

The worker signs two Closes, A and B (again the worst that it can do). They name no epoch, and a witness's vote for
one binds it for ever. A checkpoint may refund a channel that is open after the union: when the hold has expired is
left to chance. A Close that a witness holds and that the union lacks is void; if its channel is still open, that
witness *may* apply it again in the next epoch. Witnesses lag: one may still store and acknowledge in an epoch that
others have left.

A Close is final by 2f+1 acknowledgements of one epoch. A witness may be set back, to this epoch or an earlier one. It
then gives no votes, stores and snapshots until it has left the last epoch in which it signed anything: where its disk
says that it is does not tell. And because votes for Closes outlive epochs, it never again votes for the settlement of
a channel that existed then (`silent_for_ever`). Without the one or the other, see the mutants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from .explorer import distinct, replaced
from .orders import NAMES, A, B

OPEN, REFUNDED = 0, 4  # besides A and B: what the channel is after a decision
OUTCOMES = {
    OPEN: "leaves the channel open",
    A: "holds Close A",
    B: "holds Close B",
    REFUNDED: "refunds the channel",
}
NO_SNAPSHOT = -1


class Witness(NamedTuple):
    """A correct witness. Sets of Closes are bit masks; `acknowledged` has two bits for each epoch."""

    epoch: int = 0
    signed: int = 0
    remembered: int = 0
    held: int = 0  # in its log of its epoch
    snapshot: int = NO_SNAPSHOT  # what it signed when it froze in this epoch
    acknowledged: int = 0
    silent: int = 0  # the epoch in which it takes part again; 0: it was never set back

    @property
    def abstains(self) -> bool:
        """True if it was set back, and knows too little of this epoch."""
        return self.epoch < self.silent

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}", f"voted {NAMES[self.signed]}", f"holds {NAMES[self.held]}"]
        parts += ["frozen"] * (self.snapshot != NO_SNAPSHOT) + ["set back"] * (self.silent > 0)
        return f"({', '.join(parts)})"


class State(NamedTuple):
    """All witnesses, and what the channel became at each decision."""

    group: tuple[Witness, ...]
    outcomes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The federation, and how its correct witnesses behave. Other than default is a mutant."""

    faults: int = 1
    changes: int = 2  # of epochs
    epochs_mixed: bool = False  # acknowledgements count together, whatever epoch they name
    applies_again: tuple[bool, ...] = (False, True)  # what may become of a void Close
    looks_before: bool = True  # whether its channel is still open
    votes_lapse: bool = False  # a vote for a Close is void after its epoch, like one for an account's order
    refunds_held: bool = False  # a checkpoint refunds a channel although the union holds its Close
    set_backs: int = 0  # how many correct witnesses may be set back, besides the Byzantine ones
    silent_long: bool = True  # until it has left the epoch in which it was, not the one to which it was set back
    silent_for_ever: bool = True  # about the channel


class Channels:
    """The model. See the module."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.byzantine = rules.faults
        self.correct = 2 * rules.faults + 1
        self.quorum = 2 * rules.faults + 1

    def initial(self) -> State:
        """The channel is open; its hold is final."""
        return State((Witness(),) * self.correct)

    def broken(self, state: State) -> str:
        """One certificate for a channel (I3); a final Close is in the merge (I7), never refunded; settled once."""
        if self._certified(state, A) and self._certified(state, B):
            return "two certificates for one channel"
        for close in (A, B):
            for epoch in self._final_since(state, close):
                if epoch < len(state.outcomes) and state.outcomes[epoch] not in (close, OPEN):
                    return f"Close {NAMES[close]} is final in epoch {epoch}, and the channel was settled otherwise"
                if epoch < len(state.outcomes) and state.outcomes[epoch] == OPEN:
                    return f"Close {NAMES[close]} is final in epoch {epoch}, and not in the merge"
        for witness in state.group:
            if witness.held and self._outcome(state, witness.epoch - 1) != OPEN:
                return f"a channel that a checkpoint settled is settled again: {witness}"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """What a witness does, or a decision."""
        for witness in distinct(state.group):
            for word, changed in self._local(state, witness):
                yield f"{witness} {word}", state._replace(group=replaced(state.group, witness, changed))
        epoch = len(state.outcomes)
        if epoch < self.rules.changes and self._outcome(state, epoch - 1) == OPEN:
            for outcome in self._decisions(state, epoch):
                words = f"decision: the checkpoint after epoch {epoch} {OUTCOMES[outcome]}"
                yield words, state._replace(outcomes=(*state.outcomes, outcome))

    def _local(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        is_open = self._outcome(state, witness.epoch - 1) == OPEN
        if is_open and witness.snapshot == NO_SNAPSHOT and not witness.abstains:
            yield from self._votes(state, witness)
            yield from self._stores(state, witness)
            if witness.epoch < self.rules.changes:
                yield "freezes", witness._replace(snapshot=witness.held)
        if is_open and witness.epoch < len(state.outcomes):
            yield from self._adopts(state, witness)
        if not witness.silent and sum(one.silent > 0 for one in state.group) < self.rules.set_backs:
            yield from self._set_back(witness)

    def _set_back(self, witness: Witness) -> Iterator[tuple[str, Witness]]:
        for epoch in range(witness.epoch + 1):
            silent = 1 + (witness.epoch if self.rules.silent_long else epoch)
            snapshot = witness.snapshot if epoch == witness.epoch else NO_SNAPSHOT  # it is in the world
            changed = witness._replace(epoch=epoch, remembered=0, held=0, snapshot=snapshot, silent=silent)
            yield f"is set back to epoch {epoch}", changed

    def _votes(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        if witness.remembered or witness.held or (witness.silent and self.rules.silent_for_ever):
            return
        for close in (A, B):
            # A and B are alike: the first vote of all is for A.
            if close == A or any(one.signed for one in state.group):
                yield (
                    f"votes for Close {NAMES[close]}",
                    witness._replace(signed=witness.signed | close, remembered=close),
                )

    def _stores(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        for close in (A, B):
            if not witness.held and self._certified(state, close):
                yield f"stores and acknowledges Close {NAMES[close]}", self._holding(witness, close)

    def _adopts(self, state: State, witness: Witness) -> Iterator[tuple[str, Witness]]:
        outcome = self._outcome(state, witness.epoch)
        remembered = 0 if self.rules.votes_lapse else witness.remembered
        following = witness._replace(epoch=witness.epoch + 1, remembered=remembered, held=0, snapshot=NO_SNAPSHOT)
        void = witness.held & ~outcome
        may_apply = void and (outcome == OPEN or not self.rules.looks_before)
        for again in self.rules.applies_again if may_apply else (False,):
            if again:
                yield f"adopts the decision, and applies Close {NAMES[void]} again", self._holding(following, void)
            else:
                yield "adopts the decision", following

    @staticmethod
    def _holding(witness: Witness, close: int) -> Witness:
        acknowledged = witness.acknowledged | close << 2 * witness.epoch
        return witness._replace(held=close, acknowledged=acknowledged)

    def _decisions(self, state: State, epoch: int) -> set[int]:
        """What the snapshots of 2f+1 witnesses, up to f of them Byzantine, can make of an open channel."""
        snapshots = [one.snapshot for one in state.group if one.epoch == epoch and one.snapshot != NO_SNAPSHOT]
        certified = [close for close in (A, B) if self._certified(state, close)]
        found = set()
        for lies in range(self.byzantine + 1):
            for chosen in combinations(snapshots, self.quorum - lies):
                for invented in (0, *certified) if lies else (0,):
                    closes = {*chosen, invented} - {0}
                    found |= closes or {OPEN, REFUNDED}
                    found |= {REFUNDED} if self.rules.refunds_held else set()
        return found

    def _outcome(self, state: State, epoch: int) -> int:
        """What the channel is after the decision that ended an epoch."""
        return state.outcomes[epoch] if 0 <= epoch < len(state.outcomes) else OPEN

    def _certified(self, state: State, close: int) -> bool:
        return sum(bool(witness.signed & close) for witness in state.group) + self.byzantine >= self.quorum

    def _final_since(self, state: State, close: int) -> Iterator[int]:
        """The epochs of which a quorum has acknowledged a Close."""
        masks = [witness.acknowledged for witness in state.group]
        for epoch in range(self.rules.changes + 1):
            if self.rules.epochs_mixed:
                until = sum(3 << 2 * earlier for earlier in range(epoch + 1))
                votes = sum(bool(mask & until & (0b010101 * close)) for mask in masks)
            else:
                votes = sum(bool(mask >> 2 * epoch & close) for mask in masks)
            if votes + self.byzantine >= self.quorum:
                yield epoch
                if self.rules.epochs_mixed:
                    return
