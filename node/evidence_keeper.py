"""Proofs of misbehaviour: kept, handed on, shown.

Rule: a proof is checked before it is kept or forwarded, kept once, and needs nobody's word. An account that equivocated
gets no votes from this node until the epoch ends.
"""

from __future__ import annotations

import logging
from typing import Any

from node.ledger_writer import LedgerWriter
from node.store import Store
from protocol import params
from protocol.codec import decode_as, encode, is_a
from protocol.errors import ErrorCode, ProtocolError, Refused
from protocol.gossip import Verdict
from protocol.ids import NodeId, peer_id, short
from protocol.ledger.evidence import Proof, open_proof
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.state import Draft, Verify, View, split_number
from protocol.messages import Equivocation, Evidence, FetchEvidence

log = logging.getLogger("mtor.ledger")

WAITING = 32  # proofs found here that wait to be gossiped


class EvidenceKeeper:
    """One node's proofs."""

    def __init__(self, federation: Federation, store: Store, writer: LedgerWriter, verify: Verify) -> None:
        self._federation = federation
        self._store = store
        self._writer = writer
        self._verify = verify
        self._to_tell: list[bytes] = []

    def found(self, proof: Proof) -> None:
        """A proof that this node made and stored: others are to hear of it."""
        log.warning("%s", described(proof))
        self._tell(proof.record)

    def _tell(self, record: bytes) -> None:
        if len(self._to_tell) < WAITING:
            self._to_tell.append(record)

    def to_tell(self) -> list[bytes]:
        """Gossip messages that are to be published; each is handed out once."""
        records, self._to_tell = self._to_tell, []
        return [encode(Evidence(1, (record,))) for record in records]

    def judge(self, data: bytes) -> Verdict:
        """What to do with a gossiped proof: forward it if it is true and new here."""
        try:
            message = decode_as(Evidence, data, params.MAX_EVIDENCE_BYTES + params.HASH_BYTES)
        except ProtocolError:
            return Verdict.REJECT
        if len(message.records) != 1:
            return Verdict.REJECT
        try:
            proof = self._open(message.records[0])
        except Refused as refusal:
            return Verdict.IGNORE if _depends_on_the_ledger(message.records[0], refusal) else Verdict.REJECT
        return Verdict.ACCEPT if proof.puts(View(self._store)) else Verdict.IGNORE

    async def take(self, record: bytes) -> bool:
        """Keep a proof. False if it was known or counts for nothing. Raises `Refused`."""
        proof = self._open(record)

        def decide(draft: Draft) -> bool:
            puts = proof.puts(View(draft))
            draft.update(puts)
            return bool(puts)

        fresh = await self._writer.commit(decide)
        if fresh:
            log.warning("%s", described(proof))
        return fresh

    async def take_all(self, evidence: Evidence) -> None:
        """Keep what a peer knows; what is not true is left out."""
        for record in evidence.records:
            try:
                await self.take(record)
            except Refused as refusal:
                log.debug("no proof: %s", refusal)

    def _open(self, record: bytes) -> Proof:
        return open_proof(self._federation, View(self._store, self._verify), record)

    def fetch(self, request: FetchEvidence) -> Evidence:
        """What is known here, as much as fits."""
        records = [record for _, _, _, record in self._stored()]
        return Evidence(len(records), tuple(records[request.start : request.start + request.limit]))

    def listed(self) -> list[dict[str, Any]]:
        """What is known here, for people."""
        shown = []
        for kind, subject, epoch, record in self._stored():
            who = peer_id(NodeId(subject) if kind == b"e" else self._federation.witness(subject[0]))
            what = "two orders with one number" if kind == b"e" else "two votes for one number"
            shown.append({"who": who, "signed": what, "epoch": epoch, "proof": record.hex()})
        return shown

    def _stored(self) -> list[tuple[bytes, bytes, int, bytes]]:
        """Kind, subject, epoch and proof of those that count now."""
        now = View(self._store).epoch
        pairs = [(kind, *pair) for kind in (b"e", b"w") for pair in self._store.iterate(kind)]
        proofs = [(kind, key[1:], *split_number(value)) for kind, key, value in pairs]
        return [proof for proof in proofs if proof[0] == b"w" or proof[2] == now]


def _depends_on_the_ledger(record: bytes, refusal: Refused) -> bool:
    """True if the proof may be good for whoever forwarded it: its ledger may know more than this one, or less."""
    unknown_key = refusal.code is ErrorCode.BAD_SIGNATURE and is_a(Equivocation, record)
    return isinstance(refusal, MissingPredecessor) or refusal.code is ErrorCode.CHANNEL_CLOSED or unknown_key


def described(proof: Proof) -> str:
    """A sentence for the log."""
    if proof.account is None:
        return f"witness {proof.witness} voted for two orders with one number; the proof is kept"
    return (
        f"account {short(proof.account)} signed two orders with one number: it gets no votes until epoch "
        f"{proof.epoch} ends; the proof is kept"
    )
