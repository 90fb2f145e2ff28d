"""Ed25519 over exact bytes.

Rule: what is signed is `"mtor/1\\0" || number || federation id || body`, so a signature for one kind of
message or one federation is worth nothing for another. Verification is libsodium's: S is reduced, R and the
key are canonical and not of small order. (Some libraries load the 14 small-order keys, under which anybody
can sign; `check_public_key` refuses them wherever a key enters.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

from protocol.codec import decode_as, encode
from protocol.errors import BadSignature, Malformed
from protocol.ids import FederationId, NodeId
from protocol.messages import Envelope
from protocol.params import KEY_BYTES, MAX_FRAME_BYTES, SIGNATURE_BYTES, SIGNING_DOMAIN

SEED_BYTES = 32
KEYS_REMEMBERED = 8_192


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """A private key that signs for one node. `seed` is 32 secret bytes; it is never printed."""

    node: NodeId
    _secret: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> Signer:
        """The signer of a 32-byte Ed25519 seed."""
        public, secret = crypto_sign_seed_keypair(seed)
        return cls(NodeId(public), secret)

    def sign(self, federation: FederationId, body: bytes) -> bytes:
        """64 bytes: the signature of an encoded message for one federation."""
        return crypto_sign(signed_bytes(federation, body), self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Signer({self.node.hex()[:8]}…)"


def signed_bytes(federation: FederationId, body: bytes) -> bytes:
    """The exact bytes that a signature covers. `body` begins with its array header and number."""
    return SIGNING_DOMAIN + bytes([message_number(body)]) + federation + body


def message_number(body: bytes) -> int:
    """The number of an encoded message. All arrays here are short, all numbers below 128."""
    if len(body) < 2 or not 0x91 <= body[0] <= 0x9F or body[1] > 0x7F:
        raise Malformed("the body is not an encoded message")
    return body[1]


def check_public_key(key: bytes) -> NodeId:
    """`key` as a node id. Raises `BadSignature` for a key that is not a point of the prime-order group."""
    return _checked_key(bytes(key))


@lru_cache(KEYS_REMEMBERED)  # the check costs as much as most of a verification; only keys that passed are remembered
def _checked_key(key: bytes) -> NodeId:
    if len(key) != KEY_BYTES or not crypto_core_ed25519_is_valid_point(key):
        raise BadSignature("not a usable Ed25519 public key")
    return NodeId(key)


def verify(key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
    """Raises `BadSignature` unless `signature` is `key`'s over `body` for `federation`."""
    check_public_key(key)
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"a signature is {SIGNATURE_BYTES} bytes")
    try:
        crypto_sign_open(signature + signed_bytes(federation, body), key)
    except BadSignatureError:
        raise BadSignature("the signature does not verify") from None


def seal(signer: Signer, federation: FederationId, body: bytes) -> bytes:
    """An encoded `Envelope` around an encoded message."""
    return encode(Envelope(signer.node, federation, body, signer.sign(federation, body)))


def open_envelope(data: bytes, limit: int = MAX_FRAME_BYTES) -> Envelope:
    """The envelope in `data`, its signature verified. Raises `Malformed` or `BadSignature`."""
    envelope = decode_as(Envelope, data, limit)
    verify(envelope.signer, envelope.federation, envelope.body, envelope.signature)
    return envelope
