"""A second implementation of the wire, made from the chapters alone.

Rule: nothing of `protocol/` is imported, and no MessagePack library. Messages, bounds and legal moves are read out of
the Markdown tables; what remains is written by the text of the chapters: here 01, 02 and 04, in `stranger_…` the
others. If this passes the vectors, the chapters suffice, as far as these vectors go.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

import chapters
import edwards
import stranger_units

Json = Any

DOMAIN = b"mtor/1\0"


class Malformed(Exception):
    """Chapter 02."""


class BadSignature(Exception):
    """Chapter 01."""


class IllegalMove(Exception):
    """Chapter 04."""


LIMITS = {row[0]: row[1] for row in chapters.all_rows("07-registries.md", "## Limits and times")}
TABLES = {table.name: table for table in chapters.message_tables()}
NAMES = {int(table.number): table.name for table in TABLES.values() if table.number != "record"}
MAX_DEPTH = chapters.number(LIMITS["MAX_DEPTH"])


# --- chapter 02: values ------------------------------------------------------------------------------


def pack(value: Json) -> bytes:
    """A value in its one encoding."""
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, bytes):
        return _header(len(value), [(1, 0xC4), (2, 0xC5), (4, 0xC6)]) + value
    if isinstance(value, str):
        encoded = value.encode()
        short = bytes([0xA0 | len(encoded)]) if len(encoded) < 32 else b""
        return (short or _header(len(encoded), [(1, 0xD9), (2, 0xDA), (4, 0xDB)])) + encoded
    short = bytes([0x90 | len(value)]) if len(value) < 16 else b""
    return (short or _header(len(value), [(2, 0xDC), (4, 0xDD)])) + b"".join(map(pack, value))


def _pack_int(value: int) -> bytes:
    if value < 0:
        return _pack_negative(value)
    return bytes([value]) if value < 128 else _header(value, [(1, 0xCC), (2, 0xCD), (4, 0xCE), (8, 0xCF)])


def _pack_negative(value: int) -> bytes:
    if value >= -32:
        return bytes([256 + value])
    size, byte = next(
        form for form in ((1, 0xD0), (2, 0xD1), (4, 0xD2), (8, 0xD3)) if value >= -(128 << 8 * (form[0] - 1))
    )
    return bytes([byte]) + value.to_bytes(size, "big", signed=True)


def _header(number: int, forms: list[tuple[int, int]]) -> bytes:
    size, byte = next(form for form in forms if number < 256 ** form[0])
    return bytes([byte]) + number.to_bytes(size, "big")


class Unpacker:
    """Reads one value; anything that the subset does not have is malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def whole(self) -> Json:
        """The one value that the data is."""
        value = self._value(MAX_DEPTH)
        if self._at != len(self._data):
            raise Malformed("something behind it")
        return value

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise Malformed("cut short")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _value(self, depth: int) -> Json:
        first = self._number(1)
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if 0xD0 <= first < 0xD4:
            size = 1 << first - 0xD0
            return int.from_bytes(self._take(size), "big", signed=True)
        if 0x90 <= first < 0xA0:
            return self._array(first & 0x0F, depth)
        if 0xA0 <= first < 0xC0:
            return self._text(first & 0x1F)
        for base, read in ((0xCC, self._number), (0xC4, self._bytes), (0xD9, self._long_text)):
            if base <= first < base + (4 if base == 0xCC else 3):
                return read(1 << first - base)
        if first in (0xDC, 0xDD):
            return self._array(self._number(2 << first - 0xDC), depth)
        raise Malformed("a type that does not occur")

    def _bytes(self, size: int) -> bytes:
        return self._take(self._number(size))

    def _long_text(self, size: int) -> str:
        return self._text(self._number(size))

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise Malformed("not UTF-8") from None

    def _array(self, length: int, depth: int) -> list[Json]:
        if depth == 0:
            raise Malformed("too deep")
        return [self._value(depth - 1) for _ in range(length)]


# --- chapter 02: messages, by the tables -------------------------------------------------------------


def decode(data: bytes, limit: int) -> dict[str, Json]:
    """Bytes -> the JSON of a message."""
    if len(data) > limit:
        raise Malformed("too long")
    plain = Unpacker(data).whole()
    if not isinstance(plain, list) or not plain or type(plain[0]) is not int or plain[0] not in NAMES:
        raise Malformed("no message")
    if pack(plain) != data:
        raise Malformed("not canonical")
    name = NAMES[plain[0]]
    return {"type": name, **_record(name, plain[1:])}


def encode(message: dict[str, Json]) -> bytes:
    """The JSON of a message -> bytes."""
    table = TABLES[message["type"]]
    return pack([int(table.number), *_plain_record(table.name, message)])


def _record(name: str, plain: Json) -> dict[str, Json]:
    rows = TABLES[name].rows
    if not isinstance(plain, list) or len(plain) != len(rows):
        raise Malformed(f"not a {name}")
    return {field: _field(kind, bounds, value) for (field, kind, bounds), value in zip(rows, plain, strict=True)}


def _field(kind: str, bounds: str, value: Json) -> Json:
    if kind.startswith("["):
        outer, _, inner = bounds.partition(", each ")
        _check(isinstance(value, list) and _within(len(value), outer))
        return [_field(kind[1:-1], inner, element) for element in value]
    if kind in TABLES:
        return _record(kind, value)
    _check(type(value) is {"int": int, "bin": bytes, "str": str}[kind])
    _check(_within(value if kind == "int" else len(value.encode() if kind == "str" else value), bounds))
    return value.hex() if kind == "bin" else value


def _within(number: int, bounds: str) -> bool:
    ends = re.sub(" (byte|element)s?$", "", bounds).split(" … ")
    return chapters.number(ends[0]) <= number <= chapters.number(ends[-1])


def _check(good: bool) -> None:
    if not good:
        raise Malformed("not by the table")


def _plain_record(name: str, record: dict[str, Json]) -> list[Json]:
    return [_plain(kind, record[field]) for field, kind, _ in TABLES[name].rows]


def _plain(kind: str, value: Json) -> Json:
    if kind.startswith("["):
        return [_plain(kind[1:-1], element) for element in value]
    if kind in TABLES:
        return _plain_record(kind, value)
    return bytes.fromhex(value) if kind == "bin" else value


# --- chapter 02: frames ------------------------------------------------------------------------------


def frames(data: bytes, limit: int) -> tuple[list[bytes], int]:
    """(whole frames, bytes left over)."""
    found: list[bytes] = []
    while True:
        match = re.match(rb"[\x80-\xff]{0,3}[\x00-\x7f]", data)
        if match is None:
            if len(data) >= 4:
                raise Malformed("a length of more than four bytes")
            return found, len(data)
        length = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(match[0]))
        if length > limit or (len(match[0]) > 1 and match[0][-1] == 0):
            raise Malformed("a length that is too large or too long")
        if len(data) < match.end() + length:
            return found, len(data)
        found.append(data[match.end() : match.end() + length])
        data = data[match.end() + length :]


# --- chapter 01: signatures --------------------------------------------------------------------------


def signed(federation: bytes, body: bytes) -> bytes:
    """What a signature covers."""
    return DOMAIN + body[1:2] + federation + body


def verify(key: bytes, federation: bytes, body: bytes, signature: bytes) -> None:
    """The verifier rule, steps 1 to 4."""
    if len(key) != 32 or len(signature) != 64:
        raise BadSignature("length")
    point = edwards.decode_canonical(key)
    if point is None or point == edwards.NEUTRAL or edwards.times(edwards.ORDER, point) != edwards.NEUTRAL:
        raise BadSignature("step 1")
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    if s >= edwards.ORDER:
        raise BadSignature("step 2")
    if r in edwards.small_order_encodings():
        raise BadSignature("step 3")
    challenge = int.from_bytes(hashlib.sha512(r + key + signed(federation, body)).digest(), "little") % edwards.ORDER
    minus = (edwards.P - point[0], point[1])
    if edwards.encode(edwards.add(edwards.times(s, edwards.BASE), edwards.times(challenge, minus))) != r:
        raise BadSignature("step 4")


# --- chapter 04: conversations -----------------------------------------------------------------------

MOVES = {row[:3]: row[3] for row in chapters.table_after("04-query.md", "## The legal moves")}


class Conversation:
    """The table of legal moves and the twelve rules below it."""

    def __init__(self) -> None:
        self.state = "START"
        self.units_in = self.units_out = 0
        self.delivered = b""
        self.answer = stranger_units.Answer()
        self._query_moved: dict[str, Json] = {}
        self._request: dict[str, Json] | None = None
        self._parts = self._inputs = self._missing = 0
        self._begun = False
        self._call = 0  # bytes of the last call's arguments

    def move(self, by: str, message: dict[str, Json]) -> None:
        """One message of either side."""
        following = MOVES.get((self.state, by, message["type"]))
        if following is None:
            raise IllegalMove("not in the table")
        rule = getattr(self, f"_{message['type'].lower()}", None)
        if rule is not None:
            rule(message)
        self.state = following

    def _query(self, query: dict[str, Json]) -> None:
        self._query_moved = query
        try:
            payload = decode(bytes.fromhex(query["payload"]), chapters.number(LIMITS["MAX_FRAME_BYTES"]))
        except Malformed:
            return
        if payload["type"] in stranger_units.REQUESTS:
            self._request = payload
            self._missing = sum(one["size"] for one in payload.get("media", []))

    def _input(self, part: dict[str, Json]) -> None:
        self._missing -= len(part["data"]) // 2
        self._require(part["index"] == self._inputs and self._missing >= 0)
        self._inputs += 1

    def _begin(self, begin: dict[str, Json]) -> None:
        self._require(self._request is not None and not self._missing and not self._begun)
        self._require(begin["units_in"] <= stranger_units.most_in(self._query_moved, self._request or {}))
        self._begun, self.units_in = True, begin["units_in"]

    def _chunk(self, chunk: dict[str, Json]) -> None:
        self._require(not (chunk["text"] and self.answer.calls))
        self._part(chunk, chunk["text"].encode(), "")

    def _likelychunk(self, chunk: dict[str, Json]) -> None:
        wishes = stranger_units.wishes(self._request or {})
        self._require(wishes["logprobs"] == 1)
        self._require(all(len(token["likeliest"]) <= wishes["likeliest"] for token in chunk["tokens"]))
        self._chunk(chunk)

    def _called(self, called: dict[str, Json]) -> None:
        wishes, begins = stranger_units.wishes(self._request or {}), called["name"] != ""
        self._require(not begins or called["name"] in [tool["name"] for tool in wishes["tools"]])
        most = 1 if wishes["one_call"] else chapters.number(LIMITS["MAX_CALLS"])
        self._require(self.answer.calls < most if begins else bool(self.answer.calls and called["arguments"]))
        self._call = (0 if begins else self._call) + len(called["arguments"].encode())
        self._require(self._call <= chapters.number(LIMITS["MAX_ARGUMENTS_BYTES"]))
        self.answer = replace(self.answer, calls=self.answer.calls + begins)
        self._part(called, (called["name"] + called["arguments"]).encode(), "")

    def _output(self, output: dict[str, Json]) -> None:
        self._part(output, bytes.fromhex(output["data"]), output["media_type"])

    def _part(self, part: dict[str, Json], content: bytes, media_type: str) -> None:
        request = self._request
        self._require(request is not None and self._begun and part["index"] == self._parts)
        assert request is not None
        answer = self.answer
        if content:
            counted_whole = request["type"] == "ImagineRequest" and self.units_out > 0
            self._require(answer.may_go_on_with(request, media_type) and not counted_whole)
            answer = answer.with_more(len(content), media_type)
        self._require(answer.data <= chapters.number(LIMITS["MAX_OUTPUT_BYTES"]))
        self._require(self.units_out <= part["units_out"] <= answer.most_out(request))
        self._parts, self.units_out, self.answer = self._parts + 1, part["units_out"], answer
        self.delivered += content

    def _done(self, done: dict[str, Json]) -> None:
        named = (done["units_in"], done["units_out"], done["digest"])
        self._require(named == (self.units_in, self.units_out, hashlib.sha256(self.delivered).hexdigest()))
        self._require(done["finish"] != "tool_calls" or self.answer.calls > 0)

    def _require(self, good: bool) -> None:
        if not good:
            raise IllegalMove("not as delivered")


# --- the vectors' kinds ------------------------------------------------------------------------------


def _encoding(given: dict[str, Json]) -> Json:
    return {"hex": encode(given["message"]).hex()}


def _decoding(given: dict[str, Json]) -> Json:
    return decode(bytes.fromhex(given["hex"]), given["limit"])


def _framing(given: dict[str, Json]) -> Json:
    found, left = frames(bytes.fromhex("".join(given["pieces"])), given["limit"])
    return {"frames": [payload.hex() for payload in found], "buffered": left}


def _verifying(given: dict[str, Json]) -> Json:
    verify(*(bytes.fromhex(given[name]) for name in ("key", "federation", "body", "signature")))
    return {}


def _envelope(given: dict[str, Json]) -> Json:
    envelope = decode(bytes.fromhex(given["hex"]), given["limit"])
    if envelope["type"] != "Envelope":
        raise Malformed("another message")
    fields = {name: envelope[name] for name in ("signer", "federation", "body", "signature")}
    if not re.match("9[1-9a-f][0-7]", fields["body"]):
        raise Malformed("the body is no message")
    verify(*(bytes.fromhex(fields[name]) for name in ("signer", "federation", "body", "signature")))
    return {name: fields[name] for name in ("signer", "federation", "body")}


def _exchange(given: dict[str, Json]) -> Json:
    conversation = Conversation()
    for move in given["moves"]:
        conversation.move(move["by"], move["message"])
    return {
        "state": conversation.state,
        "units_in": conversation.units_in,
        "units_out": conversation.units_out,
        "digest": hashlib.sha256(conversation.delivered).hexdigest(),
    }


RUNNERS = {
    "encoding": _encoding,
    "decoding": _decoding,
    "framing": _framing,
    "verifying": _verifying,
    "envelope": _envelope,
    "exchange": _exchange,
}
