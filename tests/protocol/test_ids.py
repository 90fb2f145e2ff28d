"""Names: node ids, peer ids, realms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from protocol.errors import Malformed
from protocol.ids import BUILT_IN_REALMS, NodeId, node_id, parse_peer_id, peer_id, realm_id, short
from protocol.params import MAX_NAME_BYTES

KEYS = st.binary(min_size=32, max_size=32)


@given(KEYS)
def test_a_peer_id_is_a_spelling_of_the_key(key: bytes) -> None:
    assert parse_peer_id(peer_id(NodeId(key))) == key


@given(KEYS)
def test_a_peer_id_begins_as_libp2p_writes_it(key: bytes) -> None:
    assert peer_id(NodeId(key)).startswith("12D3KooW")


@given(KEYS)
def test_the_short_name_is_the_end_of_the_peer_id(key: bytes) -> None:
    assert peer_id(NodeId(key)).endswith(short(NodeId(key)))
    assert len(short(NodeId(key))) == 8


def test_peer_ids_agree_with_libp2p() -> None:
    key = bytes.fromhex("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")
    assert peer_id(NodeId(key)) == str(ID.from_pubkey(Ed25519PublicKey.from_bytes(key)))


@given(st.text(max_size=60))
def test_any_text_is_a_peer_id_or_malformed(text: str) -> None:
    try:
        node = parse_peer_id(text)
    except Malformed:
        return
    assert peer_id(node) == text


@pytest.mark.parametrize("text", ["", "1", "12D3KooW", "0OIl", "Qm" + "a" * 44, "1" * 38])
def test_what_is_no_peer_id(text: str) -> None:
    with pytest.raises(Malformed):
        parse_peer_id(text)


def test_a_long_text_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Malformed, match="shorter"):
        parse_peer_id("z" * (MAX_NAME_BYTES + 1))


def test_base58_keeps_leading_zero_bytes_apart() -> None:
    spelled = peer_id(NodeId(bytes(32)))
    with pytest.raises(Malformed):
        parse_peer_id("1" + spelled)
    with pytest.raises(Malformed):
        parse_peer_id(spelled[1:])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_node_id_has_32_bytes(length: int) -> None:
    with pytest.raises(Malformed, match=str(length)):
        node_id(bytes(length))


def test_a_node_id_is_bytes_whatever_it_was_made_of() -> None:
    assert type(node_id(bytearray(32))) is bytes  # type: ignore[arg-type]  # what a caller may have by mistake


@pytest.mark.parametrize("name", [*BUILT_IN_REALMS, "$X", "$GPT_2", "$4K", "$_", "$" + "A" * (MAX_NAME_BYTES - 1)])
def test_legal_realms(name: str) -> None:
    assert realm_id(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "$", "CHAT", "$chat", "$Chat", "$CH-AT", "$CHAT ", " $CHAT", "$$A", "$Ä", "$\u0663", "$A\n", "$" + "A" * 128],
)
def test_illegal_realms(name: str) -> None:
    with pytest.raises(Malformed):
        realm_id(name)


@given(st.text(max_size=20))
def test_a_realm_is_dollar_and_capitals(text: str) -> None:
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
    legal = len(text) > 1 and text[0] == "$" and set(text[1:]) <= alphabet
    try:
        realm_id(text)
    except Malformed:
        assert not legal
    else:
        assert legal
