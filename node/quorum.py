"""Asking the witnesses: all at once, until enough have agreed.

Rule: no witness is waited for once a quorum has answered, so that f of them may be dead, slow or lying. An answer is
checked before it counts. If no quorum can come about any more, what at least f+1 of them say is the reason; less could
be a lie.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from node.ledger_peers import LedgerPeers, PeerUnreachable
from protocol import params
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId, short
from protocol.ledger.genesis import Federation
from protocol.messages import Message, Rejected

log = logging.getLogger("mtor.ledger")

RETRY = 5 * params.SECONDS
PASSING = (ErrorCode.OVERLOADED, ErrorCode.EPOCH_CHANGING, ErrorCode.ABSTAINING)  # says nothing about the request

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")
Local = Callable[[Message], Awaitable[Message]]


def refused(answer: Rejected) -> Refused:
    """A peer's refusal as an exception; a code that this version does not know counts as INTERNAL."""
    known = {int(code) for code in ErrorCode}
    return Refused(ErrorCode(answer.code) if answer.code in known else ErrorCode.INTERNAL, answer.reason)


async def ask_peer(peers: LedgerPeers, node: NodeId, request: Message, expected: type[Answer], name: str) -> Answer:
    """One question to a node that is called `name` here. Raises `Refused`: its own word, or OVERLOADED if it does not
    answer."""
    try:
        answer = await peers.ask(node, request, expected)
    except PeerUnreachable as error:
        raise Refused(ErrorCode.OVERLOADED, f"{name}: {error}", RETRY) from None
    if isinstance(answer, Rejected):
        raise refused(answer)
    return answer


class Quorum:
    """The federation's witnesses as one. `local` answers where this node is one of them."""

    def __init__(self, federation: Federation, own: NodeId, peers: LedgerPeers, local: Local) -> None:
        self._federation = federation
        self._own = own
        self._peers = peers
        self._local = local

    @property
    def witnesses(self) -> tuple[NodeId, ...]:
        """In the order of genesis."""
        return self._federation.genesis.witnesses

    async def ask(self, index: int, request: Message, expected: type[Answer]) -> Answer:
        """One witness. Raises `Refused`: its own word, or OVERLOADED if it does not answer."""
        witness = self.witnesses[index]
        if witness != self._own:
            return await ask_peer(self._peers, witness, request, expected, f"witness {short(witness)}")
        answer = await self._local(request)
        if isinstance(answer, Rejected):
            raise refused(answer)
        assert isinstance(answer, expected)  # this program's own word
        return answer

    async def gather(
        self,
        one: Callable[[int], Awaitable[Result]],
        what: str,
        kind: Callable[[Result], object] = lambda result: None,
    ) -> dict[int, Result]:
        """`one(index)` for all witnesses at once, until a quorum has given results of one `kind`; those are returned.

        Raises `Refused` if that cannot be had.
        """
        results: dict[int, Result] = {}
        failures: dict[int, Refused] = {}

        async def ask_one(index: int) -> None:
            try:
                results[index] = await one(index)
            except Refused as refusal:
                failures[index] = refusal
            if len(_largest(results, kind)) >= self._federation.quorum or self._hopeless(failures):
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index in range(len(self.witnesses)):
                nursery.start_soon(ask_one, index)
        agreed = _largest(results, kind)
        if len(agreed) < self._federation.quorum:
            raise self._failure(len(agreed), failures, what)
        return agreed

    def _hopeless(self, failures: dict[int, Refused]) -> bool:
        """True if so many said no for the same reason that one of them is honest, and no quorum is left."""
        left = len(self.witnesses) - len(failures)
        return left < self._federation.quorum and self._common(failures) is not None

    def _common(self, failures: dict[int, Refused]) -> Refused | None:
        """A reason that at least f+1 witnesses give, so that an honest one does."""
        codes = Counter(failure.code for failure in failures.values() if failure.code not in PASSING)
        likely = codes.most_common(1)
        if not likely or likely[0][1] <= self._federation.genesis.faults:
            return None
        return next(failure for failure in failures.values() if failure.code is likely[0][0])

    def _failure(self, succeeded: int, failures: dict[int, Refused], what: str) -> Refused:
        common = self._common(failures)
        if common is not None:
            return common
        reasons = "; ".join(failure.message for failure in list(failures.values())[:3])
        count = len(self.witnesses)
        who = "the federation's witness" if count == 1 else f"{succeeded} of the federation's {count} witnesses"
        need = "cannot be reached" if count == 1 else f"{what}, {self._federation.quorum} are needed"
        return Refused(
            ErrorCode.OVERLOADED, f"{who} {need} ({reasons}); open channels go on, new ones must wait", RETRY
        )


def _largest(results: dict[int, Result], kind: Callable[[Result], object]) -> dict[int, Result]:
    """The results of the kind that most witnesses gave."""
    kinds = Counter(kind(result) for result in results.values())
    most = kinds.most_common(1)
    return {index: result for index, result in results.items() if kind(result) == most[0][0]}
