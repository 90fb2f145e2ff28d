"""Signatures checked later, in batches, by whoever has the cores for it.

Rule: a check that takes signatures for good without looking counts only if every one that it took was good; then it
went exactly as it would have gone with each of them checked on the spot. Where one was not, the check is made again,
knowing which ones are wrong. So the result is always that of the check on the spot, and so is the record it names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from typing import Protocol, TypeVar

from protocol.ids import FederationId, NodeId
from protocol.ledger.state import Verify
from protocol.signing import verify

BATCH = 256  # signatures handed over at once
ATTEMPTS = 4  # an account has few keys; whoever needs more is checked on the spot
MAX_WRONG = 10_000  # remembered at most: more than that is no ledger

Question = tuple[NodeId, FederationId, bytes, bytes]  # key, federation, body, signature
Result = TypeVar("Result")


class Checker(Protocol):
    """Checks batches elsewhere."""

    def take(self, batch: list[Question]) -> None:
        """Check these; may wait until there is room."""

    def wrong(self) -> Collection[Question]:
        """Those of all batches since the last call that are not good. Waits for them."""


class Assumed:
    """In place of `protocol.signing.verify`: good unless known to be wrong, and handed over."""

    def __init__(self, take: Callable[[list[Question]], None], wrong: Set[Question], check: Verify = verify) -> None:
        self._take = take
        self._wrong = wrong
        self._check = check
        self._batch: list[Question] = []

    def __call__(self, key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
        """Raises `BadSignature` for those that are known to be wrong."""
        question = (key, federation, body, signature)
        if question in self._wrong:
            self._check(*question)
        self._batch.append(question)
        if len(self._batch) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand over what is left."""
        if self._batch:
            self._take(self._batch)
            self._batch = []


def as_if_checked(run: Callable[[Verify], Result], checker: Checker, check: Verify = verify) -> Result:
    """What `run(check)` gives, its signatures checked by `checker`. `run` gives the same for the same answers, and
    never raises for a signature."""
    wrong: set[Question] = set()
    for _ in range(ATTEMPTS):
        assumed = Assumed(checker.take, wrong, check)
        result = run(assumed)
        assumed.flush()
        found = checker.wrong()
        if not found:
            return result
        wrong.update(found)
        if len(wrong) > MAX_WRONG:
            break
    return run(check)
