"""The witness's side: votes, certificates, heads, refunds.

Rule: a vote leaves this machine only after its lock is on the disk, and a certificate is acknowledged only after it is.
Where one vote is a quorum the certificate is applied together with the lock, so an owner that lost its memory finds its
order in the log instead of a lock it cannot see. A witness that meets a vote of its own that it does not remember was
set back: it abstains until the epoch ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.journal import Journal
from node.ledger_writer import LedgerWriter
from node.store import Store
from protocol import params
from protocol.codec import body_hash, decode, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId
from protocol.ledger.certificates import Transition, apply, certify, open_certificate
from protocol.ledger.epochs import role
from protocol.ledger.evidence import Proof, conflicts, equivocation, open_proof
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import (
    AccountOrder,
    CheckedOrder,
    MissingPredecessor,
    Order,
    Settlement,
    check_order,
    voted_object,
)
from protocol.ledger.state import ABSTAIN, Draft, Verify, View, lock_key, open_channels, u64
from protocol.ledger.votes import Moment, decide, lock_in_force
from protocol.messages import (
    FetchHead,
    Head,
    Refund,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from protocol.signing import Signer

log = logging.getLogger("mtor.ledger")

Found = Callable[[Proof], None]


class Witness:
    """Votes and acknowledges for the ledger in one store; applies certificates for every node."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        signer: Signer,
        journal: Journal,
        clock: Callable[[], int],
        verify: Verify,
        lacking: Callable[[], None],
        found: Found,
    ) -> None:
        """`lacking` is told when something is asked that builds on what is not here; `found` of a proof."""
        self._federation = federation
        self._store = store
        self._writer = writer
        self._signer = signer
        self._journal = journal
        self._clock = clock
        self._verify = verify
        self._lacking = lacking
        self._found = found
        self._index = federation.witness_index(signer.node)

    async def vote(self, request: RequestVote) -> Voted:
        """This witness's vote, synced before it is returned. Raises `Refused`."""
        try:
            return await self._writer.commit(lambda draft: self._vote(draft, request))
        except Refused as refusal:
            self._note(refusal)
            if refusal.code is ErrorCode.EQUIVOCATION:
                await self._report(request)
            raise

    async def store(self, request: StoreCertificate) -> Stored:
        """Apply a certificate, synced before the answer. Raises `Refused`."""
        self._check_witness()
        try:
            stored = await self._writer.commit(lambda draft: self._acknowledge(draft, request.certificate))
        except Refused as refusal:
            self._note(refusal)
            raise
        if View(self._store).abstaining:  # what it was told is kept, and counts as nobody's word
            raise Refused(
                ErrorCode.ABSTAINING, "this witness's storage was set back; it acknowledges nothing in this epoch"
            )
        return stored

    def head(self, request: FetchHead) -> Head:
        """How an account stands here, and the order that this witness has voted for beyond that."""
        view = View(self._store)
        account = view.account(request.account)
        lock = view.lock(request.account, account.next_sequence)
        if lock is None or lock.epoch != view.epoch:
            return Head(view.epoch, account.next_sequence, account.head, b"", b"")
        return Head(view.epoch, account.next_sequence, account.head, lock.body, lock.signature)

    async def refund(self, channel: ChannelId) -> None:
        """Return an expired hold to its payer, as the only witness. Raises `Refused`: CHANNEL_CLOSED, EQUIVOCATION if
        a close was first."""
        body = encode(Refund(self._signer.node, channel, self._clock()))
        request = RequestVote(body, self._signer.sign(self._federation.id, body))
        await self._writer.commit(lambda draft: self._vote(draft, request))

    def expired(self) -> list[ChannelId]:
        """Open channels whose time is over. Walks the open ones: call it from a worker thread."""
        now = self._clock()
        return [channel for channel, state in open_channels(self._store.snapshot()) if state.expiry_ms <= now]

    def apply(self, draft: Draft, certificate: bytes) -> Transition:
        """Apply a certificate to a draft, and write down what concerns this node's owner. Raises `Refused`."""
        view = View(draft, self._verify)
        if role(view) is not None and view.position(_order_id(certificate)) is None:
            # What it signed that it has must stay what it has, until the decision.
            raise MissingPredecessor(ErrorCode.EPOCH_CHANGING, "the federation changes epochs; try again soon")
        transition = apply(self._federation, view, certificate)
        draft.update(transition.puts)
        if transition.checked is not None:
            self._check_memory(draft, transition.checked, certificate)
            self._journal.record_order(draft, transition.checked, self._clock())
        return transition

    def _acknowledge(self, draft: Draft, certificate: bytes) -> Stored:
        return Stored(self.apply(draft, certificate).position, View(draft).epoch)

    def _check_memory(self, draft: Draft, checked: CheckedOrder, certificate: bytes) -> None:
        view = View(draft)
        if _voted_for(view, checked.order, checked.hash):
            return
        if not view.abstaining and self.forgot(view, certificate):
            log.error("this witness's storage was set back: it abstains until epoch %d ends", view.epoch)
            draft.update({ABSTAIN: u64(view.epoch)})

    def forgot(self, view: View, certificate: bytes) -> bool:
        """True if the certificate has a vote of this witness that it does not remember: its storage was set back. Not
        for channels about which it is silent: that it may have voted there it knows since it was set back."""
        if self._index is None:
            return False
        found = open_certificate(certificate)
        if all(vote.witness != self._index for vote in found.votes):
            return False
        order = decode(found.body)
        assert isinstance(order, AccountOrder | Settlement)
        if isinstance(order, Settlement) and view.may_have_settled(order.channel):
            return False
        return not _voted_for(view, order, body_hash(found.body))

    def _vote(self, draft: Draft, request: RequestVote) -> Voted:
        self._check_witness()
        assert self._index is not None
        view = View(draft, self._verify)
        checked = check_order(self._federation, view, request.body, request.signature)
        moment = Moment(self._clock(), role(view) is not None)
        lock = decide(self._federation, view, checked, moment, self._signer)
        draft.update({lock_key(checked.object, checked.version): lock.encode()})
        if self._federation.quorum == 1:
            self.apply(draft, certify(checked, [WitnessSignature(self._index, lock.vote)]))
        return Voted(self._index, lock.vote)

    async def _report(self, request: RequestVote) -> None:
        """An order against a lock of ours: two signatures of one owner, which is a proof."""
        try:
            proof = await self._writer.commit(lambda draft: self._prove(draft, request))
        except Refused as refusal:
            log.debug("no proof: %s", refusal)
            return
        if proof is not None:
            self._found(proof)

    def _prove(self, draft: Draft, request: RequestVote) -> Proof | None:
        view = View(draft, self._verify)
        checked = check_order(self._federation, view, request.body, request.signature)
        lock = lock_in_force(view, checked.object, checked.version, checked.order)
        if lock is None or not conflicts(lock, checked):
            return None
        proof = open_proof(self._federation, view, equivocation(lock, checked))
        puts = proof.puts(view)
        draft.update(puts)
        return proof if puts else None

    def _check_witness(self) -> None:
        if self._index is None:
            raise Refused(ErrorCode.NOT_A_WITNESS, "genesis does not name this node as a witness")

    def _note(self, refusal: Refused) -> None:
        if isinstance(refusal, MissingPredecessor) or refusal.code is ErrorCode.INSUFFICIENT_FUNDS:
            self._lacking()


def _voted_for(view: View, order: Order, identity: bytes) -> bool:
    """True if this witness remembers that it voted for the order."""
    lock = lock_in_force(view, *voted_object(order), order)
    return lock is not None and lock.order == identity


def _order_id(certificate: bytes) -> bytes:
    return body_hash(open_certificate(certificate).body)


def rejected(refusal: Refused) -> Rejected:
    """A refusal as the wire says it."""
    reason = refusal.message.encode()[: params.MAX_REASON_BYTES].decode(errors="ignore")
    return Rejected(int(refusal.code), reason)
