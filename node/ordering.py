"""Orders from signature to certificate, and the replica that they end up in.

Rule: an account's orders are made one after the other, by this node alone. An order is stored before it is sent and
sent again until its fate is known. The replica is a prefix of the witness's log: an own order is stored at the witness
first and then fetched from there, so every replica applies the same orders in the same sequence.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from node.ledger_writer import LedgerWriter
from node.store import Store
from node.witness import Witness
from node.witness_port import WitnessPort, WitnessUnreachable
from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ledger.certificates import certify, check_vote
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder, check_order
from protocol.ledger.state import Draft, View
from protocol.messages import (
    Certificates,
    FetchCertificates,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from protocol.signing import Signer

log = logging.getLogger("mtor.ledger")

APPLIED_AT_ONCE = 32  # fetched certificates in one commit: signatures to check between two turns of other tasks
WITNESS_RETRY = 5 * params.SECONDS

_PENDING = b"m:pending:"  # + account: its order that was signed and is not yet known to be applied


class Ordering:
    """Makes orders for the keys of one node, and follows the witness's log."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        witness: Witness,
        witnesses: WitnessPort,
        node_signer: Signer,
    ) -> None:
        self._federation = federation
        self._store = store
        self._writer = writer
        self._witness = witness
        self._witnesses = witnesses
        self._own_index = federation.witness_index(node_signer.node)
        self._turns = trio.Lock()
        self._syncing = trio.Lock()
        self._head_known = self.is_only_witness

    @property
    def is_only_witness(self) -> bool:
        """True if this node's log is the federation's."""
        return self._federation.single and self._own_index is not None

    @asynccontextmanager
    async def turn(self, owner: Signer) -> AsyncIterator[View]:
        """Have the account to oneself, its true head known and no order of before in flight. Raises `Refused`."""
        async with self._turns:
            await self._ready_to_order(owner)
            yield View(self._store)

    async def _ready_to_order(self, owner: Signer) -> None:
        """Know the account's true head, and finish the order that an earlier life left behind."""
        if not self._head_known:
            await self.sync()
            self._head_known = True
        stored = self._store.get(_PENDING + owner.node)
        if stored is not None:
            pending = decode_as(RequestVote, stored)
            try:
                await self.submit(pending.body, pending.signature)
            except Refused as refusal:
                if refusal.code is ErrorCode.OVERLOADED:
                    raise
                log.warning("an order of an earlier run was refused and is dropped: %s", refusal)
            await self._forget_pending(owner)

    async def order(self, owner: Signer, body: bytes) -> None:
        """Sign an account's next order, store it, and have it certified and applied. Raises `Refused`."""
        request = RequestVote(body, owner.sign(self._federation.id, body))
        check_order(self._federation, View(self._store), request.body, request.signature)
        await self._writer.commit(lambda draft: draft.update({_PENDING + owner.node: encode(request)}))
        try:
            await self.submit(request.body, request.signature)
        except Refused as refusal:
            if refusal.code is not ErrorCode.OVERLOADED:
                await self._forget_pending(owner)
                self._head_known = self.is_only_witness
            raise
        await self._forget_pending(owner)

    async def _forget_pending(self, owner: Signer) -> None:
        await self._writer.commit(lambda draft: draft.update({_PENDING + owner.node: None}))

    async def submit(self, body: bytes, signature: bytes) -> None:
        """Votes, certificate, stored by a quorum, applied here. Raises `Refused`."""
        checked = check_order(self._federation, View(self._store), body, signature)
        if View(self._store).certificate(checked.hash) is not None:
            return
        certificate = certify(checked, await self._collect_votes(checked))
        await self._store_at_witnesses(certificate)
        if not self._federation.single:
            await self._writer.commit(lambda draft: self._witness.apply(draft, certificate))
        await self.sync()

    async def _collect_votes(self, checked: CheckedOrder) -> list[WitnessSignature]:
        request = RequestVote(checked.body, checked.signature)
        votes: list[WitnessSignature] = []
        failure = _unreachable("no witness was asked")
        for index in range(len(self._federation.genesis.witnesses)):
            try:
                answer = await self._ask_vote(index, request)
                vote = WitnessSignature(index, answer.signature)
                check_vote(self._federation, View(self._store), checked, vote)
                votes.append(vote)
            except Refused as refusal:
                failure = refusal
            if len(votes) == self._federation.quorum:
                return votes
        raise failure

    async def _ask_vote(self, index: int, request: RequestVote) -> Voted:
        try:
            own = index == self._own_index
            answer = await (self._witness.vote(request) if own else self._witnesses.vote(index, request))
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    async def _store_at_witnesses(self, certificate: bytes) -> None:
        request, stored = StoreCertificate(certificate), 0
        failure = _unreachable("no witness was asked")
        for index in range(len(self._federation.genesis.witnesses)):
            try:
                await self._ask_store(index, request)
                stored += 1
            except Refused as refusal:
                failure = refusal
        if stored < self._federation.quorum:
            raise failure

    async def _ask_store(self, index: int, request: StoreCertificate) -> Stored:
        try:
            own = index == self._own_index
            answer = await (self._witness.store(request) if own else self._witnesses.store(index, request))
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    # --- the replica ---------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Fetch what is new in the witness's log and apply it in its order. Raises `Refused`."""
        if self.is_only_witness:
            return
        async with self._syncing:
            while await self._fetch_some():
                pass

    async def _fetch_some(self) -> bool:
        """Apply the next part of the log. True if there is more."""
        known = View(self._store).log_length
        start = max(0, known - 1)  # the last one that is known here too: the logs must agree on it
        answer = await self._ask_log(FetchCertificates(start, params.MAX_CERTIFICATES))
        if known:
            self._check_same_log(answer, known)
        fresh = answer.certificates[known - start :]
        for first in range(0, len(fresh), APPLIED_AT_ONCE):
            await self._writer.commit(partial(self._apply_all, fresh[first : first + APPLIED_AT_ONCE]))
        return bool(fresh) and View(self._store).log_length < answer.total

    def _check_same_log(self, answer: Certificates, known: int) -> None:
        mine = View(self._store).logged(known - 1)
        if answer.total < known or not answer.certificates or answer.certificates[0] != mine:
            raise Refused(
                ErrorCode.INTERNAL,
                f"the witness's log ({answer.total} certificates) does not contain certificate {known - 1} of this "
                "node's: the witness was set back or has forked its log. Nothing was signed; ask its operator",
            )

    def _apply_all(self, certificates: tuple[bytes, ...], draft: Draft) -> None:
        for certificate in certificates:
            self._witness.apply(draft, certificate)

    async def _ask_log(self, request: FetchCertificates) -> Certificates:
        try:
            answer = await self._witnesses.fetch(0, request)
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    async def looked(self) -> bool:
        """Fetch what is new. False if the witness could not be asked."""
        try:
            await self.sync()
        except Refused as refusal:
            log.info("going on with what is known: %s", refusal)
            return False
        return True


def _refused(answer: Rejected) -> Refused:
    """A witness's refusal as an exception; a code that this version does not know counts as INTERNAL."""
    known = {int(code) for code in ErrorCode}
    return Refused(ErrorCode(answer.code) if answer.code in known else ErrorCode.INTERNAL, answer.reason)


def _unreachable(why: str) -> Refused:
    return Refused(
        ErrorCode.OVERLOADED,
        f"the federation's witness cannot be reached ({why}); open channels go on, new ones must wait",
        WITNESS_RETRY,
    )
