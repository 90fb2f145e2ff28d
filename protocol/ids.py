"""Names for the things that nodes talk about.

Rule: an identifier is made and parsed here and nowhere else. A node's id *is* its Ed25519 public key;
the libp2p peer id is a spelling of the same 32 bytes, and so is the ledger account.
"""

from __future__ import annotations

from typing import NewType

from protocol.errors import Malformed
from protocol.params import KEY_BYTES, MAX_NAME_BYTES

NodeId = NewType("NodeId", bytes)  # 32 bytes, Ed25519 public key; also the ledger account
RealmId = NewType("RealmId", str)  # "$CHAT"
QueryId = NewType("QueryId", bytes)  # 16 random bytes, chosen by the requester
FederationId = NewType("FederationId", bytes)  # sha256 of the genesis body
ChannelId = NewType("ChannelId", bytes)  # sha256 of the hold's body
Credits = NewType("Credits", int)  # integer µcredits

CHAT = RealmId("$CHAT")
VISION = RealmId("$VISION")
IMAGINE = RealmId("$IMAGINE")
SPEECH = RealmId("$SPEECH")
BUILT_IN_REALMS = (CHAT, VISION, IMAGINE, SPEECH)

NO_HASH = bytes(32)  # "none" where a 32-byte hash or channel id stands

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # identity multihash of a protobuf Ed25519 key


def node_id(raw: bytes) -> NodeId:
    """`raw` as a node id. Raises `Malformed` unless it is 32 bytes."""
    if len(raw) != KEY_BYTES:
        raise Malformed(f"a node id is {KEY_BYTES} bytes, not {len(raw)}")
    return NodeId(bytes(raw))


def peer_id(node: NodeId) -> str:
    """The libp2p spelling of a node id: base58, begins with `12D3KooW`."""
    return _base58_encode(_PEER_ID_PREFIX + node)


def parse_peer_id(text: str) -> NodeId:
    """The inverse of `peer_id`. Raises `Malformed` for anything but an Ed25519 peer id."""
    raw = _base58_decode(text)
    if len(raw) != len(_PEER_ID_PREFIX) + KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise Malformed(f"{text!r} is not an Ed25519 peer id; one begins with 12D3KooW")
    return NodeId(raw[len(_PEER_ID_PREFIX) :])


def short(node: NodeId) -> str:
    """Eight characters that tell nodes apart on a screen; never used to decide anything."""
    return peer_id(node)[-8:]


def realm_id(text: str) -> RealmId:
    """`text` as a realm id: `$` and capital letters, digits or `_`. Raises `Malformed`."""
    name = text[1:]
    legal = text.startswith("$") and name.replace("_", "A").isalnum() and name.isascii() and name == name.upper()
    if not legal or len(text) > MAX_NAME_BYTES:
        raise Malformed(f"{text!r} is not a realm; write one like $CHAT")
    return RealmId(text)


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def _base58_decode(text: str) -> bytes:
    if len(text) > MAX_NAME_BYTES:
        raise Malformed("a peer id is shorter than that")
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise Malformed(f"{character!r} is not a base58 character")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
