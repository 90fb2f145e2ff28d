"""The second implementation's reader of proofs and exports: chapter 11, from its text alone.

Rule: as in `stranger`: nothing of `protocol/` is imported.
"""

from __future__ import annotations

import hashlib
from typing import Any

import stranger
from stranger import BadSignature, Malformed
from stranger_epochs import adopt, begin_from, climb, open_decision
from stranger_ledger import (
    Channel,
    Checked,
    Federation,
    Ledger,
    Message,
    Refused,
    Rules,
    State,
    opened,
    require,
    sha256,
)

Json = Any


def shown_by(data: str, expected: str) -> dict[str, Json]:
    """What the bytes of a LedgerProof show; `expected` is a federation id, or empty."""
    proof, federation = _opened(data, expected)
    leaf = opened(proof["leaf"])
    identity, checkpoint = open_decision(federation, proof["decision"]) if proof["decision"] else ("", None)
    committers = [one["witness"] for one in opened(proof["decision"])["commits"]] if checkpoint else []
    shown = {"federation": federation.id, "checkpoint": identity, "committers": committers}
    if leaf["type"] in ("AccountState", "ChannelState"):
        require(checkpoint is not None and not proof["hold"], "MALFORMED")
        assert checkpoint is not None
        _check_path(proof, proof["leaf"], checkpoint["state"])
        return {**shown, "leaf": leaf}
    return {**shown, **_order(federation, proof, checkpoint)}


def _opened(data: str, expected: str) -> tuple[Message, Federation]:
    try:
        proof = stranger.decode(bytes.fromhex(data), stranger.chapters.number(stranger.LIMITS["MAX_FRAME_BYTES"]))
        require(proof["type"] == "LedgerProof", "MALFORMED")
        require(expected in ("", sha256(proof["genesis"])), "WRONG_FEDERATION")
        return proof, Federation(proof["genesis"])
    except Malformed:
        raise Refused("MALFORMED") from None
    except BadSignature:
        raise Refused("BAD_SIGNATURE") from None


def _check_path(proof: Message, leaf: str, root: str) -> None:
    require(climb(leaf, proof["index"], proof["count"], proof["neighbours"]) == root, "BAD_QUORUM")


def _order(federation: Federation, proof: Message, checkpoint: Message | None) -> dict[str, Json]:
    certificate, state = opened(proof["leaf"], "Certificate"), State()
    if proof["hold"]:
        state.channels[sha256(proof["hold"])] = Channel(opened(proof["hold"], "Hold"))
    body, signature = certificate["body"], certificate["signature"]
    checked = Rules(federation, state, trusting=True).check(body, signature)
    require(not (proof["hold"] and checked.numbered), "MALFORMED")
    federation.check_quorum(certificate["votes"], checked.vote)
    if checkpoint is None:
        require((proof["index"], proof["count"], proof["neighbours"]) == (0, 0, []), "MALFORMED")
    else:
        _check_path(proof, checked.id, checkpoint["orders"])
        require(not checked.numbered or checked.order["epoch"] + 1 == checkpoint["epoch"], "STALE_EPOCH")
    voters = [vote["witness"] for vote in certificate["votes"]]
    return {"order": checked.id, "voters": voters, "signed": int(_signed(federation, state, checked, signature))}


def _signed(federation: Federation, state: State, checked: Checked, signature: str) -> bool:
    try:
        Rules(federation, state).check(checked.body, signature)
    except Refused:
        return False
    return True


# --- exports -----------------------------------------------------------------------------------------

FIRST_LINE = b"MTOR ledger export 1\n"
MAX_FRAME_BYTES = stranger.chapters.number(stranger.LIMITS["MAX_FRAME_BYTES"])


def _payloads(data: bytes) -> list[bytes]:
    """The frames of a whole file but the last."""
    if not data.startswith(FIRST_LINE):
        raise Malformed("another first line")
    found, left = stranger.frames(data[len(FIRST_LINE) :], MAX_FRAME_BYTES)
    ends = [place for place, payload in enumerate(found) if payload[:1] == b"\0"]
    if left or ends != [len(found) - 1]:
        raise Malformed("cut off, or something behind the end")
    records = sum(payload[1] in (6, 15) for payload in found[:-1])
    hashed = data[: -len(found[-1]) - 1]  # its length is one byte
    if found[-1] != b"\0" + records.to_bytes(8, "big") + hashlib.sha256(hashed).digest():
        raise Malformed("damaged")
    return found[:-1]


def ledger_of(data: str) -> tuple[Ledger, int]:
    """The ledger that an export makes of nothing, and how many records it holds."""
    genesis, *payloads = _payloads(bytes.fromhex(data))
    ledger, segment, leaves, records = Ledger(Federation(genesis.hex())), dict[str, str](), list[str](), 0
    for payload in payloads:
        message, record = stranger.decode(payload, MAX_FRAME_BYTES), payload.hex()
        kind = message["type"]
        records += kind != "StateLeaves"
        if kind == "StateLeaves":
            leaves += message["leaves"]
            if len(leaves) == message["total"]:
                ledger = begin_from(ledger.federation, message["decision"], leaves, message["position"])
        elif kind == "Decision":
            adopt(ledger, record, segment)
            segment = {}
        else:
            segment[sha256(message["body"])] = record
    for record in segment.values():
        ledger.apply(record)
    return ledger, records
