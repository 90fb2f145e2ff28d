"""The second implementation's answers to all vectors.

Rule: as in `stranger`: nothing of `protocol/` is imported.
"""

from __future__ import annotations

from typing import Any

import stranger
from stranger import BadSignature, IllegalMove, Malformed
from stranger_epochs import (
    Seat,
    adopt,
    begin_from,
    check_joined,
    climb,
    leaves,
    merkle_root,
    open_decision,
    outcome,
    replica,
    take,
    united,
)
from stranger_ledger import (
    MAX_RECORD_BYTES,
    Federation,
    Ledger,
    Refused,
    check_voucher,
    open_proof,
    opened,
    price,
    require,
    take_proof,
)
from stranger_offers import RUNNERS as OFFERS
from stranger_proofs import ledger_of, shown_by

Json = Any


def _pricing(given: dict[str, Json]) -> Json:
    return {"amount": price(given)}


def _genesis(given: dict[str, Json]) -> Json:
    federation = Federation(given["genesis"])
    return {"federation": federation.id, "quorum": federation.quorum}


def _voucher(given: dict[str, Json]) -> Json:
    voucher = stranger.decode(bytes.fromhex(given["voucher"]), MAX_RECORD_BYTES)
    if voucher["type"] != "Voucher":
        raise Malformed("no voucher")
    hold = opened(given["hold"], "Hold")
    check_voucher(voucher, given["channel"], hold)
    earlier = opened(given["earlier"], "Voucher") if given["earlier"] else {"units_in": 0, "units_out": 0}
    require(all(voucher[name] >= earlier[name] for name in ("units_in", "units_out")), "BAD_VOUCHER")
    signed = (hold["payer"], given["federation"], given["voucher"], given["signature"])
    stranger.verify(*map(bytes.fromhex, signed))
    return {"cumulative": voucher["cumulative"]}


def _merkle(given: dict[str, Json]) -> Json:
    return {"root": merkle_root(given["leaves"])}


def _merkle_path(given: dict[str, Json]) -> Json:
    root = climb(given["leaf"], given["index"], given["count"], given["neighbours"])
    if root is None:
        raise Refused("MALFORMED")
    return {"root": root}


def _vote(given: dict[str, Json]) -> Json:
    ledger = Ledger(Federation(given["genesis"]))
    for place in range(len(given["log"]) + 1):
        for before in given["voted"]:
            if before["at"] == place:
                ledger.vote(given["witness_seed"], given["now_ms"], before["body"], before["signature"])
        for set_back in given["set_back"]:
            if set_back["at"] == place:
                ledger.abstains_until = set_back["until"]
        if place < len(given["log"]):
            take(ledger, given["log"][place])
    for proof in given["proofs"]:
        take_proof(ledger, open_proof(ledger, proof))
    ledger.frozen = bool(given["frozen"])
    return ledger.vote(given["witness_seed"], given["now_ms"], given["body"], given["signature"])


def _apply(given: dict[str, Json]) -> Json:
    ledger = replica(given)
    repeated, position = ledger.apply(given["certificate"])
    settled = {
        name: [channel.status, channel.paid]
        for name, channel in sorted(ledger.state.channels.items())
        if channel.status != "open"
    }
    return {"repeated": int(repeated), "position": position, "leaves": leaves(ledger.state), "settled": settled}


def _checkpoint(given: dict[str, Json]) -> Json:
    result = outcome(replica(given), united(given["union"]), given["time_ms"])
    return {**result.summary, "refunded": result.refunded, "leaves": leaves(result.state)}


def _decision(given: dict[str, Json]) -> Json:
    identity, checkpoint = open_decision(Federation(given["genesis"]), given["decision"])
    return {"id": identity, "checkpoint": checkpoint}


def _adopt(given: dict[str, Json]) -> Json:
    ledger = replica(given)
    adoption = adopt(ledger, given["decision"], united(given["union"]))
    return {"epoch": ledger.epoch, **vars(adoption), "leaves": leaves(ledger.state)}


def _begin(given: dict[str, Json]) -> Json:
    ledger = begin_from(replica(given).federation, given["decision"], given["leaves"], given["position"])
    for record in given["later"]:
        take(ledger, record)
    return {"epoch": ledger.epoch, "length": ledger.length, "leaves": leaves(ledger.state)}


def _witness(given: dict[str, Json]) -> Json:
    ledger = replica(given)
    ledger.abstains_until = ledger.epoch if given["abstaining"] else -1
    seat = Seat(ledger, given["witness"], given["witness_seed"])
    answer = {}
    for step in given["steps"]:
        answer = seat.answer(step)
    kept = ("promised", "balloted", "ballot", "prepared", "checkpoint")
    return {"answer": answer, **{name: getattr(seat, name) for name in kept}}


def _joined(given: dict[str, Json]) -> Json:
    check_joined(replica(given), given["join"], given["joined"])
    return {}


def _evidence(given: dict[str, Json]) -> Json:
    ledger = replica(given)
    for record in given["proofs"]:
        take_proof(ledger, open_proof(ledger, record))
    proof = open_proof(ledger, given["record"])
    return {"account": proof.account or "", "witness": proof.witness, "counts": int(take_proof(ledger, proof))}


def _use(given: dict[str, Json]) -> Json:
    state, account = replica(given).state, given["account"]
    return {
        "may_use": [int(state.may_use(peer, account)) for peer in given["peers"]],
        "related": [int(state.related(peer, account)) for peer in given["peers"]],
    }


def _proof(given: dict[str, Json]) -> Json:
    return shown_by(given["proof"], given["federation"])


def _export(given: dict[str, Json]) -> Json:
    ledger, records = ledger_of(given["file"])
    known = {"federation": ledger.federation.id, "records": records, "epoch": ledger.epoch}
    return {**known, "leaves": leaves(ledger.state)}


RUNNERS = {
    **stranger.RUNNERS,
    **OFFERS,
    "pricing": _pricing,
    "ledger_genesis": _genesis,
    "ledger_voucher": _voucher,
    "merkle": _merkle,
    "merkle_path": _merkle_path,
    "ledger_vote": _vote,
    "ledger_apply": _apply,
    "ledger_checkpoint": _checkpoint,
    "ledger_decision": _decision,
    "ledger_adopt": _adopt,
    "ledger_begin": _begin,
    "ledger_witness": _witness,
    "ledger_joined": _joined,
    "ledger_evidence": _evidence,
    "ledger_use": _use,
    "ledger_proof": _proof,
    "ledger_export": _export,
}


def outcome_of(kind: str, given: dict[str, Json]) -> dict[str, Json]:
    """`{"expect": result}` or `{"error": name}`, of any kind."""
    try:
        return {"expect": RUNNERS[kind](given)}
    except Refused as refusal:
        return {"error": f"missing {refusal.code}" if refusal.missing else refusal.code}
    except (Malformed, BadSignature, IllegalMove) as error:
        return {"error": type(error).__name__}
