"""What the bookkeeper needs of the federation's witnesses, as a type.

Rule: an answer is the witness's own word, still to be checked; no answer in time is `WitnessUnreachable`.
"""

from __future__ import annotations

from typing import Protocol

from protocol.messages import (
    Certificates,
    FetchCertificates,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
)


class WitnessUnreachable(Exception):
    """No answer from a witness. The message says which and why."""


class WitnessPort(Protocol):
    """The witnesses by their index in genesis. Every call ends within the implementation's own time-out."""

    async def vote(self, index: int, request: RequestVote) -> Voted | Rejected:
        """Ask for a vote. Raises `WitnessUnreachable`."""

    async def store(self, index: int, request: StoreCertificate) -> Stored | Rejected:
        """Hand a certificate over. Raises `WitnessUnreachable`."""

    async def fetch(self, index: int, request: FetchCertificates) -> Certificates | Rejected:
        """A part of its log. Raises `WitnessUnreachable`."""
