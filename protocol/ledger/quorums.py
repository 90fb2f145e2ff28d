"""What a quorum of witnesses has signed.

Rule: 2f+1 witnesses of genesis, each once and in ascending order, so that one set has one encoding; all signed the same
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from protocol.errors import ErrorCode, Refused
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import as_refusal
from protocol.ledger.state import View
from protocol.messages import WitnessSignature


def check_quorum(
    federation: Federation, view: View, body: bytes, given: Iterable[WitnessSignature], what: str = "witnesses"
) -> None:
    """A quorum of distinct witnesses signed `body`. Raises `Refused` (BAD_QUORUM, NOT_A_WITNESS, BAD_SIGNATURE)."""
    listed = tuple(given)
    check_witnesses(federation, [signature.witness for signature in listed], what)
    for signature in listed:
        check_signature(federation, view, signature.witness, body, signature.signature)


def check_witnesses(federation: Federation, indexes: Sequence[int], what: str = "witnesses") -> None:
    """Enough witnesses, in their order. Raises `Refused` (BAD_QUORUM)."""
    if any(later <= earlier for earlier, later in pairwise(indexes)):
        raise Refused(ErrorCode.BAD_QUORUM, "witnesses stand in ascending order, each once")
    if len(indexes) < federation.quorum:
        raise Refused(ErrorCode.BAD_QUORUM, f"{len(indexes)} {what}, a quorum is {federation.quorum}")


def check_signature(federation: Federation, view: View, witness: int, body: bytes, signature: bytes) -> None:
    """One witness signed `body`. Raises `Refused` (NOT_A_WITNESS, BAD_SIGNATURE)."""
    with as_refusal():
        view.verify(federation.witness(witness), federation.id, body, signature)
