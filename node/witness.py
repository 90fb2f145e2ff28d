"""The witness's side: votes, certificates, its log, refunds.

Rule: a vote leaves this machine only after its lock is on the disk. Where one vote is a quorum the certificate is
applied together with the lock, so an owner that lost its memory finds its order in the log instead of a lock it
cannot see.
"""

from __future__ import annotations

from collections.abc import Callable

from node.journal import Journal
from node.ledger_writer import LedgerWriter
from node.store import Store
from protocol import params
from protocol.codec import encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId
from protocol.ledger.certificates import Transition, apply, certify
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder, check_order
from protocol.ledger.state import Channel, Draft, Lock, View, lock_key
from protocol.ledger.votes import decide
from protocol.messages import (
    Certificates,
    FetchCertificates,
    Refund,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from protocol.signing import Signer

MAX_ANSWER_BYTES = params.MAX_FRAME_BYTES // 2  # certificates in one answer; the rest is asked for again


class Witness:
    """Answers for the ledger in one store. A node that is no witness still serves its log."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        signer: Signer,
        journal: Journal,
        clock: Callable[[], int],
    ) -> None:
        self._federation = federation
        self._store = store
        self._writer = writer
        self._signer = signer
        self._journal = journal
        self._clock = clock
        self._index = federation.witness_index(signer.node)

    async def vote(self, request: RequestVote) -> Voted | Rejected:
        """This witness's vote, synced before it is returned."""
        try:
            return await self._writer.commit(lambda draft: self._vote(draft, request))
        except Refused as refusal:
            return rejected(refusal)

    async def store(self, request: StoreCertificate) -> Stored | Rejected:
        """Apply a certificate, synced before the answer."""
        try:
            transition = await self._writer.commit(lambda draft: self.apply(draft, request.certificate))
        except Refused as refusal:
            return rejected(refusal)
        return Stored(transition.position)

    def fetch(self, request: FetchCertificates) -> Certificates:
        """A part of the log, as much as fits."""
        view = View(self._store)
        total = view.log_length
        chosen: list[bytes] = []
        size = 0
        for position in range(request.start, min(total, request.start + request.limit)):
            certificate = view.logged(position)
            if certificate is None or size + len(certificate) > MAX_ANSWER_BYTES:
                break
            chosen.append(certificate)
            size += len(certificate)
        return Certificates(request.start, total, tuple(chosen))

    async def refund(self, channel: ChannelId) -> None:
        """Return an expired hold to its payer. Raises `Refused`: CHANNEL_CLOSED, EQUIVOCATION if a close was first."""
        body = encode(Refund(self._signer.node, channel, self._clock()))
        request = RequestVote(body, self._signer.sign(self._federation.id, body))
        await self._writer.commit(lambda draft: self._vote(draft, request))

    def expired(self) -> list[ChannelId]:
        """Open channels whose time is over. Walks all channels: call it from a worker thread."""
        now = self._clock()
        channels = ((key, Channel.decode(value)) for key, value in self._store.snapshot().iterate(b"c"))
        return [ChannelId(key[1:]) for key, channel in channels if channel.open and channel.expiry_ms <= now]

    def apply(self, draft: Draft, certificate: bytes) -> Transition:
        """Apply a certificate to a draft, and write down what concerns this node's owner. Raises `Refused`."""
        transition = apply(self._federation, View(draft), certificate)
        if transition.insolvent and self._federation.single:
            raise Refused(ErrorCode.INSUFFICIENT_FUNDS, "the certificate takes an account below its floor")
        draft.update(transition.puts)
        if not transition.repeated:
            self._journal.record_order(draft, transition, self._clock())
        return transition

    def _vote(self, draft: Draft, request: RequestVote) -> Voted:
        if self._index is None:
            raise Refused(ErrorCode.NOT_A_WITNESS, "genesis does not name this node as a witness")
        view = View(draft)
        checked = check_order(self._federation, view, request.body, request.signature)
        lock = decide(self._federation, view, checked, self._clock(), self._signer)
        draft.update({lock_key(checked.object, checked.version): lock.encode()})
        if self._federation.quorum == 1:
            self._apply_alone(draft, checked, self._index, lock)
        return Voted(self._index, lock.vote)

    def _apply_alone(self, draft: Draft, checked: CheckedOrder, index: int, lock: Lock) -> None:
        self.apply(draft, certify(checked, [WitnessSignature(index, lock.vote)]))


def rejected(refusal: Refused) -> Rejected:
    """A refusal as the wire says it."""
    reason = refusal.message.encode()[: params.MAX_REASON_BYTES].decode(errors="ignore")
    return Rejected(int(refusal.code), reason)
