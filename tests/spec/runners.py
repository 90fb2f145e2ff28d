"""Runs a case of `spec/vectors/` against the code: one function for each kind, input in, result out.

Rule: a runner calls the code and nothing else; it neither repairs its input nor judges the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger_runners import LEDGER_RUNNERS
from vector_json import from_json, to_json

from protocol import exchange, requests
from protocol.codec import decode, encode
from protocol.errors import ProtocolError, Refused
from protocol.framing import FrameReader
from protocol.gossip import judge_offer
from protocol.ids import FederationId, NodeId, QueryId, node_id, parse_peer_id, peer_id, realm_id
from protocol.ledger.orders import MissingPredecessor
from protocol.messages import Query
from protocol.offers import newest_record, open_offer, record_valid
from protocol.signing import Signer, open_envelope, signed_bytes, verify
from protocol.wishes import features_needed

Json = Any
Runner = Callable[[dict[str, Json]], Json]


def outcome(runner: Runner, given: dict[str, Json]) -> dict[str, Json]:
    """`{"expect": result}` or `{"error": name}`, as a case writes it."""
    try:
        return {"expect": runner(given)}
    except MissingPredecessor as refusal:
        return {"error": f"missing {refusal.code.name}"}
    except Refused as refusal:
        return {"error": refusal.code.name}
    except ProtocolError as error:
        return {"error": type(error).__name__}


def encoding(given: dict[str, Json]) -> Json:
    """JSON -> bytes, and back again."""
    message = from_json(given["message"])
    encoded = encode(message)
    assert decode(encoded) == message
    return {"hex": encoded.hex()}


def decoding(given: dict[str, Json]) -> Json:
    """Bytes -> JSON."""
    return to_json(decode(bytes.fromhex(given["hex"]), given["limit"]))


def framing(given: dict[str, Json]) -> Json:
    """Pieces of a stream -> frames."""
    reader = FrameReader(given["limit"])
    frames: list[str] = []
    for piece in given["pieces"]:
        reader.receive_data(bytes.fromhex(piece))
        while (payload := reader.next_frame()) is not None:
            frames.append(payload.hex())
    return {"frames": frames, "buffered": reader.buffered}


def signing(given: dict[str, Json]) -> Json:
    """Seed, federation and body -> key, signed bytes and signature."""
    signer = Signer.from_seed(bytes.fromhex(given["seed"]))
    federation, body = FederationId(bytes.fromhex(given["federation"])), bytes.fromhex(given["body"])
    signature = signer.sign(federation, body)
    verify(signer.node, federation, body, signature)
    return {
        "key": signer.node.hex(),
        "signed": signed_bytes(federation, body).hex(),
        "signature": signature.hex(),
    }


def verifying(given: dict[str, Json]) -> Json:
    """A signature -> nothing, if it is valid."""
    key, federation, body, signature = (
        bytes.fromhex(given[name]) for name in ("key", "federation", "body", "signature")
    )
    verify(NodeId(key), FederationId(federation), body, signature)
    return {}


def envelope(given: dict[str, Json]) -> Json:
    """Bytes -> what a verified envelope holds."""
    opened = open_envelope(bytes.fromhex(given["hex"]), given["limit"])
    return {"signer": opened.signer.hex(), "federation": opened.federation.hex(), "body": opened.body.hex()}


def peer_ids(given: dict[str, Json]) -> Json:
    """Peer id -> node id, and back again."""
    node = node_id(parse_peer_id(given["peer_id"]))
    assert peer_id(node) == given["peer_id"]
    return {"node": node.hex()}


def realms(given: dict[str, Json]) -> Json:
    """A realm's name -> nothing, if it is legal."""
    realm_id(given["realm"])
    return {}


def offers(given: dict[str, Json]) -> Json:
    """A gossiped offer -> verdict and rule."""
    known = open_offer(bytes.fromhex(given["known"])) if given["known"] else None
    judgement = judge_offer(bytes.fromhex(given["sealed"]), known, given["now_ms"])
    return {"verdict": judgement.verdict.value, "rule": judgement.rule}


def records(given: dict[str, Json]) -> Json:
    """A DHT record -> whether it may be stored."""
    return {"valid": record_valid(given["key"], bytes.fromhex(given["value"]))}


def newest_records(given: dict[str, Json]) -> Json:
    """DHT records -> the index of the one to keep."""
    return {"index": newest_record(given["key"], [bytes.fromhex(value) for value in given["values"]])}


def exchanges(given: dict[str, Json]) -> Json:
    """A sequence of messages as one side sees it -> where its conversation stands."""
    conversation = exchange.Conversation(exchange.Role(given["view"]))
    *earlier, last = given["moves"]
    try:
        for move in earlier:
            _feed(conversation, move)
    except ProtocolError as error:
        raise AssertionError(f"only the last move may be illegal: {error}") from error
    _feed(conversation, last)
    return {
        "state": conversation.state.name,
        "units_in": conversation.units_in,
        "units_out": conversation.units_out,
        "digest": conversation.delivered.digest.hex(),
    }


def _feed(conversation: exchange.Conversation, move: dict[str, Json]) -> None:
    message = from_json(move["message"])
    feed = conversation.sent if move["by"] == conversation.role.value else conversation.received
    feed(message)


def queries(given: dict[str, Json]) -> Json:
    """A query with its payload -> whether it is paid, what belongs to it, and the most that both sides may count."""
    query = from_json(given["query"])
    assert isinstance(query, Query)
    exchange.check_query(query)
    request = requests.read_request(query)
    requests.check_request(request, query.prefix)
    return {
        "paid": exchange.is_paid(query),
        "request": requests.request_number(request),
        "features": list(features_needed(request)),
        "input_bytes": requests.input_bytes(request),
        "most_units_in": requests.most_units_in(query, request),
        "most_units_out": requests.most_units_out(request, given["offered"]),
    }


def transcripts(given: dict[str, Json]) -> Json:
    """The transcript that a voucher names."""
    delivered = exchange.Delivered(given["units_in"], given["units_out"], bytes.fromhex(given["digest"]))
    query_id = QueryId(bytes.fromhex(given["query_id"]))
    transcript = exchange.transcript_hash(bytes.fromhex(given["previous"]), query_id, delivered)
    return {"transcript": transcript.hex()}


RUNNERS: dict[str, Runner] = {
    "encoding": encoding,
    "decoding": decoding,
    "framing": framing,
    "signing": signing,
    "verifying": verifying,
    "envelope": envelope,
    "peer_id": peer_ids,
    "realm": realms,
    "offer": offers,
    "record": records,
    "newest_record": newest_records,
    "exchange": exchanges,
    "query": queries,
    "transcript": transcripts,
    **LEDGER_RUNNERS,
}
