"""Signatures: bound to number, federation and bytes; weak keys are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import decode_as, encode
from protocol.errors import BadSignature, Malformed
from protocol.ids import FederationId, NodeId
from protocol.messages import NUMBERS, Accept, Cancel, Envelope, Message, Settled
from protocol.params import SIGNING_DOMAIN
from protocol.signing import (
    Signer,
    check_public_key,
    message_number,
    open_envelope,
    seal,
    signed_bytes,
    verify,
)

ALICE, BOB = Signer.from_seed(bytes([1]) * 32), Signer.from_seed(bytes([2]) * 32)
FEDERATION, OTHER = FederationId(bytes([15]) * 32), FederationId(bytes([16]) * 32)
BODY = encode(Settled(26))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(0, 2**53 - 1))
def test_what_is_signed_verifies(seed: bytes, federation: bytes, amount: int) -> None:
    signer, body = Signer.from_seed(seed), encode(Settled(amount))
    verify(signer.node, FederationId(federation), body, signer.sign(FederationId(federation), body))


@given(st.integers(0, 511))
def test_no_bit_of_a_signature_may_change(bit: int) -> None:
    signature = bytearray(ALICE.sign(FEDERATION, BODY))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        verify(ALICE.node, FEDERATION, BODY, bytes(signature))


def test_a_signature_is_for_one_federation() -> None:
    with pytest.raises(BadSignature):
        verify(ALICE.node, OTHER, BODY, ALICE.sign(FEDERATION, BODY))


def test_a_signature_is_by_one_key() -> None:
    with pytest.raises(BadSignature):
        verify(BOB.node, FEDERATION, BODY, ALICE.sign(FEDERATION, BODY))


def test_a_signature_is_for_one_body() -> None:
    with pytest.raises(BadSignature):
        verify(ALICE.node, FEDERATION, encode(Settled(27)), ALICE.sign(FEDERATION, BODY))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_has_64_bytes(length: int) -> None:
    with pytest.raises(BadSignature, match="64"):
        verify(ALICE.node, FEDERATION, BODY, bytes(length))


def test_the_signed_bytes_name_domain_number_and_federation() -> None:
    assert signed_bytes(FEDERATION, BODY) == SIGNING_DOMAIN + b"\x2a" + FEDERATION + BODY


@pytest.mark.parametrize(
    "body", [b"", b"\x92", b"\x90\x01", b"\xa1\x01", b"\xdc\x00\x01", b"\x92\x80", b"\x92\xcc\x80"]
)
def test_only_messages_are_signed(body: bytes) -> None:
    with pytest.raises(Malformed):
        message_number(body)
    with pytest.raises(Malformed):
        ALICE.sign(FEDERATION, body)


@pytest.mark.parametrize("message", [Cancel(), Accept(1, 2), Settled(3)], ids=lambda message: type(message).__name__)
def test_the_number_of_a_body_is_its_messages(message: Message) -> None:
    assert message_number(encode(message)) == NUMBERS[type(message)]


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(key: bytes) -> None:
    with pytest.raises(BadSignature):
        check_public_key(key)


# The 14 encodings of points whose order divides 8, written out: spec/01-identity.md.
_Y8A = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc"
_Y8B = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03"
SMALL_ORDER = [
    "00" * 32, "00" * 31 + "80", "01" + "00" * 31, "01" + "00" * 30 + "80",
    "ec" + "ff" * 30 + "7f", "ec" + "ff" * 31, _Y8A + "05", _Y8A + "85", _Y8B + "7a", _Y8B + "fa",
    "ed" + "ff" * 30 + "7f", "ed" + "ff" * 31, "ee" + "ff" * 30 + "7f", "ee" + "ff" * 31,
]  # fmt: skip


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_small_order_keys_are_refused(key: str) -> None:
    with pytest.raises(BadSignature):
        check_public_key(bytes.fromhex(key))


def test_a_good_key_is_a_node_id() -> None:
    assert check_public_key(bytes(ALICE.node)) == ALICE.node


def test_an_envelope_opens_to_what_was_sealed() -> None:
    envelope = open_envelope(seal(ALICE, FEDERATION, BODY))
    assert (envelope.signer, envelope.federation, envelope.body) == (ALICE.node, FEDERATION, BODY)


@given(st.integers(0, 8 * len(seal(ALICE, FEDERATION, BODY)) - 1))
def test_no_bit_of_an_envelope_may_change(bit: int) -> None:
    sealed = bytearray(seal(ALICE, FEDERATION, BODY))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Malformed, BadSignature)):
        open_envelope(bytes(sealed))


def test_an_envelope_has_a_limit() -> None:
    sealed = seal(ALICE, FEDERATION, BODY)
    assert open_envelope(sealed, len(sealed)).body == BODY
    with pytest.raises(Malformed):
        open_envelope(sealed, len(sealed) - 1)


def test_an_envelope_names_its_signer() -> None:
    envelope = decode_as(Envelope, seal(ALICE, FEDERATION, BODY))
    stolen = Envelope(NodeId(BOB.node), envelope.federation, envelope.body, envelope.signature)
    with pytest.raises(BadSignature):
        open_envelope(encode(stolen))


def test_a_signer_does_not_print_its_secret() -> None:
    assert ALICE._secret.hex()[:8] not in repr(ALICE)
    assert repr(ALICE) == f"Signer({ALICE.node.hex()[:8]}…)"
