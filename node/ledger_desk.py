"""Every question that a ledger answers, and who answers it.

Rule: one request, one answer; a rule that says no is a Rejected. The same table serves peers and this node itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from node.checkpoint_keeper import CheckpointKeeper
from node.earnings import Earnings
from node.epoch_change import EpochChange
from node.evidence_keeper import EvidenceKeeper
from node.ledger_pages import LedgerPages
from node.replica import Replica
from node.witness import Witness, rejected
from protocol.errors import ErrorCode, ProtocolError, Refused
from protocol.ids import NodeId
from protocol.ledger.checkpoints import is_decision, record_id
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Reader, View
from protocol.messages import (
    Commit,
    FetchCertificates,
    FetchEpoch,
    FetchEvidence,
    FetchGenesis,
    FetchHead,
    FetchIds,
    FetchRecords,
    FetchSnapshot,
    FetchStanding,
    FetchState,
    GenesisAnswer,
    Join,
    Message,
    Pay,
    Propose,
    Rejected,
    RequestVote,
    Settled,
    StoreCertificate,
    Stored,
)

Handler = Callable[[NodeId, Any], Awaitable[Message]]


class LedgerDesk:
    """Answers peers."""

    def __init__(
        self,
        federation: Federation,
        store: Reader,
        witness: Witness,
        replica: Replica,
        pages: LedgerPages,
        checkpoints: CheckpointKeeper,
        epochs: EpochChange,
        evidence: EvidenceKeeper,
        earnings: Earnings,
    ) -> None:
        self._federation = federation
        self._store = store
        self._witness = witness
        self._replica = replica
        self._checkpoints = checkpoints
        self._earnings = earnings

        async def reads(read: Callable[[Any], Message], request: Message) -> Message:
            return read(request)

        def reading(read: Callable[[Any], Message]) -> Handler:
            return lambda _, request: reads(read, request)

        def signing(handle: Handler) -> Handler:
            async def handled(peer: NodeId, request: Message) -> Message:
                await replica.ready_to_sign()
                return await handle(peer, request)

            return handled

        self._handlers: dict[type[Message], Handler] = {
            RequestVote: signing(lambda _, request: witness.vote(request)),
            StoreCertificate: signing(self._store_record),
            FetchHead: reading(witness.head),
            FetchCertificates: reading(pages.certificates),
            FetchIds: reading(pages.ids),
            FetchRecords: reading(pages.records),
            FetchEpoch: lambda _, request: pages.epoch_ids(request),
            FetchState: lambda _, request: pages.state(request),
            FetchGenesis: reading(lambda _: GenesisAnswer(federation.body)),
            FetchSnapshot: lambda _, request: epochs.snapshot_ids(request),
            FetchStanding: reading(epochs.standing),
            FetchEvidence: reading(evidence.fetch),
            Join: signing(lambda peer, request: epochs.join(request, peer)),
            Propose: signing(lambda peer, request: epochs.propose(request, peer)),
            Commit: signing(lambda peer, request: epochs.commit(request, peer)),
            Pay: self._voucher,
        }

    async def answer(self, peer: NodeId, request: Message) -> Message:
        """The answer to a peer's request; a Rejected where a rule says no."""
        handler = self._handlers.get(type(request))
        if handler is None:
            return Rejected(int(ErrorCode.MALFORMED), f"a {type(request).__name__} is no request to a ledger")
        try:
            return await handler(peer, request)
        except Refused as refusal:
            return rejected(refusal)
        except ProtocolError as error:
            return rejected(Refused(ErrorCode.MALFORMED, str(error)))

    async def _store_record(self, peer: NodeId, request: StoreCertificate) -> Message:
        """A certificate, or the decision that ends an epoch. Raises `Refused`."""
        if not is_decision(request.certificate):
            return await self._witness.store(request)
        await self._checkpoints.adopt(request.certificate, self._replica.source(peer))
        view = View(self._store)
        position = view.position(record_id(request.certificate))
        return Stored(0 if position is None else position, view.epoch)

    async def _voucher(self, peer: NodeId, pay: Pay) -> Message:
        return Settled(await self._earnings.hear_voucher(pay, peer))
