"""The second implementation's names, offers and queries: chapters 01, 03, 04 and 07, from their text alone.

Rule: as in `stranger`: nothing of `protocol/` is imported.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import stranger
import stranger_units
from stranger import BadSignature, Malformed
from stranger_ledger import Message, limit, require, sign, usable

Json = Any

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PEER_ID = bytes.fromhex("002408011220")


class NotAnOffer(Exception):
    """O2."""


# --- names -------------------------------------------------------------------------------------------


def node_of(peer_id: str) -> str:
    """The key that a peer id spells."""
    number = 0
    for character in peer_id:
        if character not in BASE58:
            raise Malformed("not base58")
        number = number * 58 + BASE58.index(character)
    zeros = len(peer_id) - len(peer_id.lstrip("1"))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(raw) != 38 or raw[:6] != PEER_ID:
        raise Malformed("another kind of id")
    return raw[6:].hex()


def is_realm(name: str) -> bool:
    """Chapter 07: `$`, then capital letters, digits and `_`; 2 … 128 bytes."""
    return re.fullmatch(r"\$[A-Z0-9_]{1,127}", name) is not None


def _peer_id(given: dict[str, Json]) -> Json:
    return {"node": node_of(given["peer_id"])}


def _realm(given: dict[str, Json]) -> Json:
    if not is_realm(given["realm"]):
        raise Malformed("no realm")
    return {}


def _signing(given: dict[str, Json]) -> Json:
    body = given["body"]
    if re.match("9[1-9a-f][0-7]", body) is None:
        raise Malformed("the body is no message")
    signed = stranger.signed(bytes.fromhex(given["federation"]), bytes.fromhex(body))
    key = stranger.edwards.encode(stranger.edwards.times(_secret(given["seed"]), stranger.edwards.BASE))
    return {"key": key.hex(), "signed": signed.hex(), "signature": sign(given["seed"], given["federation"], body)}


def _secret(seed: str) -> int:
    scalar = int.from_bytes(hashlib.sha512(bytes.fromhex(seed)).digest()[:32], "little")
    return scalar & (2**254 - 8) | 2**254


# --- offers ------------------------------------------------------------------------------------------


def open_offer(sealed: str) -> Message:
    """The offer in an envelope, or O2."""
    try:
        envelope = stranger.decode(bytes.fromhex(sealed), limit("MAX_OFFER_BYTES"))
        if envelope["type"] != "Envelope":
            raise Malformed("no envelope")
        offer = stranger.decode(bytes.fromhex(envelope["body"]), limit("MAX_OFFER_BYTES"))
        stranger.verify(*(bytes.fromhex(envelope[name]) for name in ("signer", "federation", "body", "signature")))
    except (Malformed, BadSignature):
        raise NotAnOffer from None
    if offer["type"] != "Offer" or not _consistent(offer, envelope["signer"]):
        raise NotAnOffer
    return offer


def _consistent(offer: Message, signer: str) -> bool:
    lives = offer["expires_ms"] - offer["issued_ms"]
    served = [(model["realm"], model["model"]) for model in offer["models"]]
    legal = len(set(served)) == len(served) and all(is_realm(realm) for realm, _ in served)
    return offer["node"] == signer and usable(signer) and legal and 0 < lives <= limit("MAX_OFFER_LIFETIME")


def _offer(given: dict[str, Json]) -> Json:
    rule = _rule(given)
    verdict = {"O1": "reject", "O2": "reject", "O7": "accept"}.get(rule, "ignore")
    return {"verdict": verdict, "rule": rule}


def _rule(given: dict[str, Json]) -> str:
    if len(given["sealed"]) // 2 > limit("MAX_OFFER_BYTES"):
        return "O1"
    try:
        offer = open_offer(given["sealed"])
    except NotAnOffer:
        return "O2"
    known = open_offer(given["known"]) if given["known"] else None
    if offer["issued_ms"] > given["now_ms"] + limit("CLOCK_SKEW"):
        return "O3"
    if offer["expires_ms"] <= given["now_ms"]:
        return "O4"
    if known is not None and offer["sequence"] <= known["sequence"]:
        return "O5"
    if known is not None and offer["issued_ms"] < known["issued_ms"] + limit("OFFER_MIN_INTERVAL"):
        return "O6"
    return "O7"


def _sequence(key: str, value: str) -> int | None:
    """Of the offer in a valid record; None if it is not valid under the key."""
    try:
        offer = open_offer(value)
        return int(offer["sequence"]) if key == f"/mtor/{key[6:]}" and node_of(key[6:]) == offer["node"] else None
    except (NotAnOffer, Malformed):
        return None


def _record(given: dict[str, Json]) -> Json:
    return {"valid": _sequence(given["key"], given["value"]) is not None}


def _newest_record(given: dict[str, Json]) -> Json:
    sequences = [-1 if (found := _sequence(given["key"], value)) is None else found for value in given["values"]]
    return {"index": sequences.index(max(sequences))}


# --- queries -----------------------------------------------------------------------------------------


def _query(given: dict[str, Json]) -> Json:
    query = given["query"]
    require(all(feature % 2 for feature in query["features"]), "UNSUPPORTED_FEATURE")
    require(bool(query["prefix"]) or query["prefix_tokens"] == 0, "INVALID_REQUEST")
    request = _request(query["payload"])
    require(_good(request), "INVALID_REQUEST")
    require(not query["prefix"] or request["type"] in stranger_units.CONVERSATIONS, "INVALID_REQUEST")
    sizes = [media["size"] for media in request.get("media", [])]
    require(sum(sizes) <= limit("MAX_INPUT_BYTES"), "INVALID_REQUEST")
    return {
        "paid": query["channel"] != "00" * 32,
        "request": int(stranger.TABLES[request["type"]].number),
        "features": stranger_units.features(request),
        "input_bytes": sum(sizes),
        "most_units_in": stranger_units.most_in(query, request),
        "most_units_out": stranger_units.most_out(request, given["offered"]),
    }


def _request(payload: str) -> Message:
    try:
        request = stranger.decode(bytes.fromhex(payload), limit("MAX_FRAME_BYTES"))
    except Malformed:
        request = {"type": ""}
    require(request["type"] in stranger_units.REQUESTS, "INVALID_REQUEST")
    return request


def _good(request: Message) -> bool:
    """The check table's rules for each kind."""
    if request["type"] in stranger_units.CONVERSATIONS:
        return _good_conversation(request, request["turns"])
    if request["type"] == "TranscribeRequest":
        return bool(request["media"][0]["kind"] == "audio")
    return bool((request["prompt"] if request["type"] == "ImagineRequest" else request["text"]).strip())


def _good_conversation(request: Message, turns: Json) -> bool:
    roles = [turn["role"] for turn in turns]
    if not set(roles) <= {"system", "user", "assistant", "tool"} or roles[-1] == "assistant":
        return False
    if not stranger_units.good_wishes(request):
        return False
    if request["type"] == "ChatRequest":
        return any(turn["text"].strip() for turn in turns)
    shown = request["media"]
    return all(one["kind"] == "image" and roles[one["turn"] : one["turn"] + 1] == ["user"] for one in shown)


def _transcript(given: dict[str, Json]) -> Json:
    numbers = b"".join(given[name].to_bytes(8, "big") for name in ("units_in", "units_out"))
    previous, query_id, digest = (bytes.fromhex(given[name]) for name in ("previous", "query_id", "digest"))
    covered = b"mtor/transcript/1\0" + previous + query_id + numbers + digest
    return {"transcript": hashlib.sha256(covered).hexdigest()}


RUNNERS = {
    "peer_id": _peer_id,
    "realm": _realm,
    "signing": _signing,
    "offer": _offer,
    "record": _record,
    "newest_record": _newest_record,
    "query": _query,
    "transcript": _transcript,
}
