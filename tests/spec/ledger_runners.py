"""Runs the ledger's cases of `spec/vectors/`: the kinds that chapters 05, 09 and 10 describe.

Rule: as in `runners`: nothing is repaired, nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from vector_json import from_json, to_json

from node.ledger_export import ExportError, open_export
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ids import NO_HASH, ChannelId, FederationId, NodeId
from protocol.ledger import certificates, checkpoints, epochs, evidence, families, genesis, merkle, proofs, votes
from protocol.ledger.channels import check_pay, no_voucher, open_voucher
from protocol.ledger.checkpoints import Union
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import check_order
from protocol.ledger.state import ABSTAIN, Base, Channel, Draft, Nothing, View, lock_key, u64
from protocol.messages import (
    Commit,
    Decision,
    FetchStanding,
    Hold,
    Join,
    Joined,
    Message,
    Pay,
    Propose,
    Snapshot,
    StateLeaves,
)
from protocol.pricing import channel_cost
from protocol.signing import Signer

Json = Any


def pricing(given: dict[str, Json]) -> Json:
    """Counts and prices -> µcredits."""
    names = ("units_in", "units_out", "price_in", "price_out")
    return {"amount": channel_cost(*(given[name] for name in names))}


def federation(given: dict[str, Json]) -> Json:
    """A genesis -> its id and quorum."""
    opened = genesis.open_genesis(bytes.fromhex(given["genesis"]))
    return {"federation": opened.id.hex(), "quorum": opened.quorum}


def voucher(given: dict[str, Json]) -> Json:
    """A voucher on a hold, after an earlier one -> its amount."""
    hold = decode_as(Hold, bytes.fromhex(given["hold"]))
    channel = ChannelId(bytes.fromhex(given["channel"]))
    earlier = open_voucher(bytes.fromhex(given["earlier"])) if given["earlier"] else no_voucher(channel)
    pay = Pay(bytes.fromhex(given["voucher"]), bytes.fromhex(given["signature"]))
    federation_id = FederationId(bytes.fromhex(given["federation"]))
    taken = check_pay(federation_id, channel, Channel.opened(hold), earlier, pay, View(Nothing()))
    return {"cumulative": taken.cumulative}


# --- a replica ----------------------------------------------------------------------------------------


def _opened(given: dict[str, Json]) -> Federation:
    return genesis.open_genesis(bytes.fromhex(given["genesis"]))


def _replica(given: dict[str, Json]) -> tuple[Federation, Draft]:
    """What `log` makes of nothing."""
    opened, draft = _opened(given), Draft(Nothing())
    for record in given["log"]:
        _take(opened, draft, bytes.fromhex(record))
    return opened, draft


def _take(opened: Federation, draft: Draft, record: bytes) -> None:
    if checkpoints.is_decision(record):
        epochs.open_decision(opened, View(draft), record)
        draft.update(checkpoints.adopt(opened, draft, record, checkpoints.epoch_orders(draft)).puts)
    else:
        draft.update(certificates.apply(opened, View(draft), record).puts)


def _union(records: Iterable[str]) -> Union:
    encoded = [bytes.fromhex(record) for record in records]
    return Union({checkpoints.record_id(record): record for record in encoded})


def _leaves(state: Draft) -> list[str]:
    return [leaf.hex() for leaf in checkpoints.leaves(state)]


def _hex(ids: Iterable[bytes]) -> list[str]:
    return sorted(identity.hex() for identity in ids)


def vote(given: dict[str, Json]) -> Json:
    """An order, at a witness -> its vote."""
    opened, draft = _opened(given), Draft(Nothing())
    witness = Signer.from_seed(bytes.fromhex(given["witness_seed"]))
    for place in range(len(given["log"]) + 1):
        for before in given["voted"]:
            if before["at"] == place:
                _vote(opened, draft, before, votes.Moment(given["now_ms"]), witness)
        for set_back in given["set_back"]:
            if set_back["at"] == place:
                draft.update({ABSTAIN: u64(set_back["until"])})
        if place < len(given["log"]):
            _take(opened, draft, bytes.fromhex(given["log"][place]))
    for proof in given["proofs"]:
        _prove(opened, draft, proof)
    return _vote(opened, draft, given, votes.Moment(given["now_ms"], given["frozen"] == 1), witness)


def _vote(opened: Federation, draft: Draft, order: dict[str, Json], moment: votes.Moment, witness: Signer) -> Json:
    checked = check_order(opened, View(draft), bytes.fromhex(order["body"]), bytes.fromhex(order["signature"]))
    lock = votes.decide(opened, View(draft), checked, moment, witness)
    draft.update({lock_key(checked.object, checked.version): lock.encode()})
    return {
        "order": checked.hash.hex(),
        "object": checked.object.hex(),
        "version": checked.version,
        "vote": lock.vote.hex(),
    }


def apply(given: dict[str, Json]) -> Json:
    """A certificate, after a log -> the state."""
    opened, draft = _replica(given)
    transition = certificates.apply(opened, View(draft), bytes.fromhex(given["certificate"]))
    draft.update(transition.puts)
    return {
        "repeated": int(transition.repeated),
        "position": transition.position,
        "leaves": _leaves(draft),
        "settled": _settled(draft),
    }


def _settled(draft: Draft) -> dict[str, Json]:
    found = {}
    for key, value in draft.iterate(b"c"):
        channel = Channel.decode(value)
        if not channel.open:
            found[key[1:].hex()] = [channel.status.name.lower(), channel.paid]
    return found


# --- the end of an epoch ------------------------------------------------------------------------------


def merkle_root(given: dict[str, Json]) -> Json:
    """Leaves -> their root."""
    return {"root": merkle.root([bytes.fromhex(leaf) for leaf in given["leaves"]]).hex()}


def merkle_path(given: dict[str, Json]) -> Json:
    """A leaf and its neighbours -> the root that they lead to."""
    neighbours = tuple(bytes.fromhex(neighbour) for neighbour in given["neighbours"])
    root = merkle.climb(bytes.fromhex(given["leaf"]), merkle.Path(given["index"], given["count"], neighbours))
    if root is None:
        raise Refused(ErrorCode.MALFORMED, "not the shape of a path")
    return {"root": root.hex()}


def checkpoint(given: dict[str, Json]) -> Json:
    """A union, after a log -> what its checkpoint says."""
    opened, draft = _replica(given)
    union, epoch = _union(given["union"]), View(draft).epoch
    state = checkpoints.merged(opened, Base(draft, epoch), union, epoch)
    checkpoints.check_signatures(opened, View(state), union)
    result = checkpoints.outcome(opened, draft, union, given["time_ms"])
    return {
        "count": result.count,
        "orders": result.orders.hex(),
        "state": result.state.hex(),
        "refunded": _hex(result.refunded),
        "leaves": _leaves(result.draft),
    }


def decision(given: dict[str, Json]) -> Json:
    """A decision -> its checkpoint."""
    opened, found = epochs.open_decision(_opened(given), View(Nothing()), bytes.fromhex(given["decision"]))
    return {"id": body_hash(opened.body).hex(), "checkpoint": to_json(found)}


def adopt(given: dict[str, Json]) -> Json:
    """A decision and its union, after a log -> the next epoch."""
    opened, draft = _replica(given)
    record = bytes.fromhex(given["decision"])
    epochs.open_decision(opened, View(draft), record)
    adoption = checkpoints.adopt(opened, draft, record, _union(given["union"]))
    draft.update(adoption.puts)
    return {
        "epoch": View(draft).epoch,
        "void": _hex(identity for identity in adoption.void.certificates if View(draft).record(identity) is None),
        "missing": _hex(adoption.missing.certificates),
        "refunded": _hex(adoption.refunded),
        "leaves": _leaves(draft),
    }


def witness(given: dict[str, Json]) -> Json:
    """What a coordinator asks of a witness, one message after the other -> the last answer, and what is kept."""
    opened, draft = _replica(given)
    seat = epochs.Seat(opened, Signer.from_seed(bytes.fromhex(given["witness_seed"])), given["witness"])
    if given["abstaining"]:
        draft.update({ABSTAIN: u64(View(draft).epoch)})
    *earlier, last = given["steps"]
    try:
        for step in earlier:
            _step(seat, draft, step)
    except Refused as refusal:
        raise AssertionError(f"only the last step may be refused: {refusal}") from refusal
    answer = _step(seat, draft, last)
    kept = epochs.role(View(draft)) or epochs.Role(Snapshot(0, NO_HASH, 0, NO_HASH), 0)
    return {
        "answer": to_json(answer),
        "promised": kept.promised,
        "balloted": kept.balloted,
        "ballot": kept.ballot.hex(),
        "prepared": kept.prepared,
        "checkpoint": kept.checkpoint.hex(),
    }


def _step(seat: epochs.Seat, draft: Draft, step: dict[str, Json]) -> Message:
    request = from_json(step["message"])
    if isinstance(request, FetchStanding):
        agreed = step["agreed"] == 1
        return epochs.standing(seat.federation, View(draft), step["now_ms"], agreed=agreed)
    assert isinstance(request, Join | Propose | Commit)
    answer, puts = _answer(seat, draft, step, request)
    draft.update(puts)
    return answer


def _answer(
    seat: epochs.Seat, draft: Draft, step: dict[str, Json], request: Join | Propose | Commit
) -> tuple[Message, certificates.Puts]:
    coordinator = step["coordinator"]
    if isinstance(request, Join):
        return epochs.join(seat, draft, request, coordinator, willing=step["willing"] == 1)
    if isinstance(request, Commit):
        return epochs.commit(seat, View(draft), request, coordinator)
    result = None
    if epochs.needs_union(request):
        time_ms = epochs.open_checkpoint(request.checkpoint).time_ms
        result = checkpoints.outcome(seat.federation, draft, _union(step["union"]), time_ms)
    return epochs.prepare(seat, View(draft), request, coordinator, step["now_ms"], result)


def joined(given: dict[str, Json]) -> Json:
    """A witness's answer to a Join, after a log -> nothing, if the coordinator may count it."""
    opened, draft = _replica(given)
    answer, request = from_json(given["joined"]), from_json(given["join"])
    assert isinstance(answer, Joined) and isinstance(request, Join)
    epochs.check_joined(opened, View(draft), answer, request)
    return {}


def begin(given: dict[str, Json]) -> Json:
    """A decision and the leaves of its state, after a log, before another -> the replica that begins with them."""
    opened, draft = _replica(given)
    record = bytes.fromhex(given["decision"])
    epochs.open_decision(opened, View(draft), record)
    leaves = [bytes.fromhex(leaf) for leaf in given["leaves"]]
    draft.update(checkpoints.begin_from(draft, record, leaves, given["position"]))
    for later in given["later"]:
        _take(opened, draft, bytes.fromhex(later))
    return {"epoch": View(draft).epoch, "length": View(draft).log_length, "leaves": _leaves(draft)}


# --- files --------------------------------------------------------------------------------------------


def proof_file(given: dict[str, Json]) -> Json:
    """A LedgerProof -> what it shows."""
    expected = FederationId(bytes.fromhex(given["federation"])) if given["federation"] else None
    found = proofs.check_proof(bytes.fromhex(given["proof"]), expected)
    subject = found.subject
    shown = {
        "federation": found.federation.id.hex(),
        "checkpoint": found.agreed.id.hex() if found.agreed else "",
        "committers": list(found.agreed.committers) if found.agreed else [],
    }
    if not isinstance(subject, proofs.ProvenOrder):
        return {**shown, "leaf": to_json(subject)}
    return {
        **shown,
        "order": subject.checked.hash.hex(),
        "voters": list(subject.voters),
        "signed": int(subject.signed),
    }


def export(given: dict[str, Json]) -> Json:
    """An export -> the ledger that it makes of nothing."""
    with NamedTemporaryFile() as file:
        file.write(bytes.fromhex(given["file"]))
        file.flush()
        try:
            whole = open_export(Path(file.name))
        except ExportError as error:
            raise Malformed(str(error)) from None
        messages = [decode(payload) for _, payload in whole.frames()][1:]
    draft, segment, leaves = Draft(Nothing()), Union({}), list[bytes]()
    for message in messages:
        record = encode(message)
        if isinstance(message, StateLeaves):
            leaves += message.leaves
            if len(leaves) == message.total:
                epochs.open_decision(whole.federation, View(draft), message.decision)
                draft.update(checkpoints.begin_from(draft, message.decision, leaves, message.position))
        elif isinstance(message, Decision):
            epochs.open_decision(whole.federation, View(draft), record)
            draft.update(checkpoints.adopt(whole.federation, draft, record, segment).puts)
            segment = Union({})
        else:
            segment = Union({**segment.certificates, checkpoints.record_id(record): record})
    for record in segment.certificates.values():
        draft.update(certificates.apply(whole.federation, View(draft), record).puts)
    return {
        "federation": whole.federation.id.hex(),
        "records": whole.records,
        "epoch": View(draft).epoch,
        "leaves": _leaves(draft),
    }


# --- evidence -----------------------------------------------------------------------------------------


def proof(given: dict[str, Json]) -> Json:
    """A proof, after a log and other proofs -> whom it is against, and whether it counts."""
    opened, draft = _replica(given)
    for record in given["proofs"]:
        _prove(opened, draft, record)
    found = evidence.open_proof(opened, View(draft), bytes.fromhex(given["record"]))
    return {
        "account": "" if found.account is None else found.account.hex(),
        "witness": found.witness,
        "counts": int(bool(found.puts(View(draft)))),
    }


def _prove(opened: Federation, draft: Draft, record: str) -> None:
    draft.update(evidence.open_proof(opened, View(draft), bytes.fromhex(record)).puts(View(draft)))


def use(given: dict[str, Json]) -> Json:
    """A peer and an account, after a log -> whether the one may ask at the cost of the other, and its relations."""
    _, draft = _replica(given)
    view, account = View(draft), bytes.fromhex(given["account"])
    peers: Sequence[str] = given["peers"]
    return {
        "may_use": [int(families.may_use(view, NodeId(bytes.fromhex(peer)), account)) for peer in peers],
        "related": [int(families.related(view, bytes.fromhex(peer), account)) for peer in peers],
    }


LEDGER_RUNNERS = {
    "pricing": pricing,
    "ledger_genesis": federation,
    "ledger_voucher": voucher,
    "ledger_vote": vote,
    "ledger_apply": apply,
    "merkle": merkle_root,
    "merkle_path": merkle_path,
    "ledger_checkpoint": checkpoint,
    "ledger_decision": decision,
    "ledger_adopt": adopt,
    "ledger_witness": witness,
    "ledger_evidence": proof,
    "ledger_use": use,
    "ledger_joined": joined,
    "ledger_begin": begin,
    "ledger_proof": proof_file,
    "ledger_export": export,
}
