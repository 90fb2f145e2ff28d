"""One encoding for each message, and only that one: random messages, random bytes, wrong types, bounds."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import params
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.errors import CODES, ErrorCode, LocalProtocolError, Malformed, Refused
from protocol.ids import ChannelId, NodeId, QueryId, RealmId
from protocol.messages import (
    NUMBERS,
    REGISTRY,
    Accept,
    Between,
    Cancel,
    ChatRequest,
    Chunk,
    Genesis,
    Grant,
    Length,
    Message,
    Offer,
    Query,
    Settled,
    Turn,
    message,
)

# --- strategies from the annotations -----------------------------------------------------------------


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values within the bounds of a field's annotation; long strings are kept short."""
    bounds: Any = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[:2]
    if is_dataclass(hint):
        return records(hint)
    if get_origin(hint) is tuple:
        element = values(get_args(hint)[0])
        return st.lists(element, min_size=bounds.low, max_size=min(bounds.high, bounds.low + 3)).map(tuple)
    return scalars(getattr(hint, "__supertype__", hint), bounds)


def scalars(base: type, bounds: Between | Length) -> st.SearchStrategy[Any]:
    if isinstance(bounds, Between):
        edges = st.sampled_from([bounds.low, bounds.high])
        return edges | st.integers(bounds.low, bounds.high)
    if base is bytes:
        return st.binary(min_size=bounds.low, max_size=min(bounds.high, bounds.low + 40))
    text = st.text(min_size=bounds.low, max_size=max(bounds.low, min(bounds.high // 4, 40)))
    return text.filter(lambda value: bounds.low <= len(value.encode()) <= bounds.high)


def records(cls: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in fields(cls)})


MESSAGES = st.one_of([records(cls) for cls in REGISTRY.values()])
PLAIN = st.recursive(
    st.integers(0, 2**53)
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=70)
    | st.text(max_size=40)
    | st.none()
    | st.booleans()
    | st.floats(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


# --- there and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda cls: cls.__name__)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_decoding_gives_back_what_was_encoded(cls: type[Message], data: st.DataObject) -> None:
    original = data.draw(records(cls))
    encoded = encode(original)
    assert decode(encoded) == original
    assert decode_as(cls, encoded) == original
    assert encode(decode(encoded)) == encoded


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.data())
def test_a_changed_byte_is_malformed_or_another_message(original: Message, data: st.DataObject) -> None:
    encoded = bytearray(encode(original))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(bytes(encoded))
    except Malformed:
        return
    assert changed != original
    assert encode(changed) == encoded


@given(st.binary(max_size=120))
def test_any_bytes_are_one_message_or_malformed(data: bytes) -> None:
    try:
        decoded = decode(data)
    except Malformed:
        return
    assert encode(decoded) == data


@settings(max_examples=300)
@given(st.sampled_from(sorted(REGISTRY)), st.lists(PLAIN, max_size=8))
def test_any_values_are_one_message_or_malformed(number: int, plain: list[Any]) -> None:
    data = msgpack.packb([number, *plain], use_bin_type=True)
    try:
        decoded = decode(data)
    except Malformed:
        return
    assert encode(decoded) == data


@given(MESSAGES)
def test_a_byte_more_or_less_is_malformed(original: Message) -> None:
    encoded = encode(original)
    for damaged in (encoded + b"\0", encoded[:-1], encoded + encoded):
        with pytest.raises(Malformed):
            decode(damaged)


# --- exact types and bounds --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, 1.0, None, "1", b"1", [1], {"a": 1}, -1, 2**53])
def test_an_integer_is_an_integer_within_its_bounds(value: Any) -> None:
    with pytest.raises(Malformed):
        decode(msgpack.packb([NUMBERS[Settled], value], use_bin_type=True))
    with pytest.raises(LocalProtocolError):
        encode(Settled(value))


@pytest.mark.parametrize("value", [1, b"a", None, ["a"], "\ud800"])
def test_a_string_is_valid_utf8(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        encode(Chunk(0, 0, value))


def test_lone_surrogates_do_not_come_in() -> None:
    with pytest.raises(Malformed):
        decode(b"\x94\x25\x00\x00\xa3\xed\xa0\x80")


@pytest.mark.parametrize("value", [1, "a", b"a", None, (1,), ("a", 1), (b"a",), ("",)])
def test_an_array_holds_what_it_should(value: Any) -> None:
    request = ChatRequest((Turn("user", "a"),), 0, 0, 0, 0, 1_000, 0, 0, 0, ())
    with pytest.raises(LocalProtocolError):
        encode(replace(request, stop=value))


def test_a_record_is_an_array_of_its_fields() -> None:
    request = ChatRequest((Turn("user", "a"),), 0, 0, 0, 0, 1_000, 0, 0, 0, ())
    plain = msgpack.unpackb(encode(request))
    for turn in ("user", ["user"], ["user", "a", "b"]):
        plain[1] = [turn]
        with pytest.raises(Malformed):
            decode(msgpack.packb(plain, use_bin_type=True))


def test_lengths_of_strings_are_counted_in_bytes() -> None:
    genesis = Genesis("ä" * 32, 0, (bytes(32),), 0, (bytes(32),), 0, 0)  # type: ignore[arg-type]  # plain bytes do
    assert decode(encode(genesis)) == genesis
    with pytest.raises(LocalProtocolError, match="65"):
        encode(replace(genesis, name="ä" * 32 + "a"))


def test_a_name_beyond_its_bound_stays_here() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Offer(bytes(31), 0, 0, 0, (), (), ()))  # type: ignore[arg-type]  # 31 bytes on purpose


def test_a_big_integer_is_the_callers_error() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Settled(2**70))


def test_true_is_not_message_1() -> None:
    encoded = encode(Grant(NodeId(bytes(32)), 0, bytes(32), NodeId(bytes(32)), 1, 0))
    with pytest.raises(Malformed):
        decode(encoded[:1] + b"\xc3" + encoded[2:])


# --- the door ----------------------------------------------------------------------------------------


def test_the_limit_counts_the_whole_message() -> None:
    encoded = encode(Accept(1, 2))
    assert decode(encoded, len(encoded)) == Accept(1, 2)
    with pytest.raises(Malformed, match="limit"):
        decode(encoded, len(encoded) - 1)


def test_another_message_than_expected_is_malformed() -> None:
    with pytest.raises(Malformed, match="expected Accept, got Cancel"):
        decode_as(Accept, encode(Cancel()))


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 100, 500, 5_000, 100_000])
def test_deep_nesting_is_malformed_and_nothing_worse(depth: int) -> None:
    with pytest.raises(Malformed):
        decode(b"\x91" * depth + b"\x90", params.MAX_FRAME_BYTES)


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\x80", b"\xc0", b"\x01", b"\x91\xa1a", b"\x91\xc3", b"\x91\x00", b"\xc1"]
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


@pytest.mark.parametrize("header", ["dd7fffffff", "dbffffffff", "c6ffffffff", "dfffffffff", "c9ffffffff01"])
def test_a_claimed_length_allocates_nothing(header: str) -> None:
    with pytest.raises(Malformed):
        decode(bytes.fromhex(header))


@pytest.mark.parametrize("long_form", ["9322cc0100", "932201cc00", "dc0003220000", "dd00000003220000"])
def test_long_forms_are_malformed(long_form: str) -> None:
    with pytest.raises(Malformed, match="canonical"):
        decode(bytes.fromhex(long_form))


def test_the_hash_of_a_body_is_its_sha256() -> None:
    assert body_hash(b"").hex().startswith("e3b0c442")


# --- the registry and the codes ----------------------------------------------------------------------


def test_a_number_belongs_to_one_message() -> None:
    with pytest.raises(ValueError, match="belongs to Grant"):
        message(1)(Cancel)


def test_numbers_and_messages_are_one_to_one() -> None:
    assert {number: cls for cls, number in NUMBERS.items()} == REGISTRY
    assert all(0 < number < 128 for number in REGISTRY)


def test_an_array_header_of_one_byte_suffices_for_every_signed_message() -> None:
    """`signing.message_number` reads a body's second byte."""
    assert all(len(fields(cls)) < 15 for cls in REGISTRY.values())  # type: ignore[arg-type]  # all are dataclasses


def test_every_code_has_a_meaning() -> None:
    assert set(CODES) == set(ErrorCode)
    assert {meaning.fault for meaning in CODES.values()} == {"requester", "worker", "nobody"}


def test_a_refusal_says_its_code_and_why() -> None:
    refusal = Refused(ErrorCode.OVERLOADED, "the queue is full", 1_500)
    assert str(refusal) == "overloaded: the queue is full"
    assert (refusal.code, refusal.retry_after_ms) == (ErrorCode.OVERLOADED, 1_500)


def test_realm_fields_are_strings_on_the_wire() -> None:
    assert RealmId("$CHAT") in msgpack.unpackb(encode(_query_in("$CHAT")))


def _query_in(realm: str) -> Message:
    return Query(QueryId(bytes(16)), RealmId(realm), "", 1, ChannelId(bytes(32)), b"\x91\x27", "", 0, ())
