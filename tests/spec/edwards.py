"""Just enough arithmetic on edwards25519 to make signatures that a verifier must refuse.

Rule: for test vectors only. It is slow, leaks its secrets through timing, and signs with fixed nonces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

Point = tuple[int, int]
Extended = tuple[int, int, int, int]

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
NEUTRAL: Point = (0, 1)
NONCE = 12_345


def small_order_encodings() -> list[bytes]:
    """All 14 encodings, canonical or not, of the eight points whose order divides 8."""
    canonical = sorted({point[1] for point in _torsion()})
    return [_spell(y, sign) for y in [*canonical, P, P + 1] for sign in (0, 1)]


def not_a_point() -> bytes:
    """32 bytes that decode to no point of the curve."""
    return next(_spell(y, 0) for y in range(2, 100) if _x_of(y) is None)


def plus_order(scalar: bytes) -> bytes:
    """The scalar plus the group's order: the same value, another spelling."""
    return (int.from_bytes(scalar, "little") + ORDER).to_bytes(32, "little")


def sign_raw(seed: bytes, message: bytes) -> bytes:
    """An ordinary signature of exactly these bytes, with a fixed nonce."""
    return _sign(seed, message, encode(times(NONCE, BASE)), NONCE)


def sign_with_torsion(seed: bytes, message: bytes) -> bytes:
    """A signature whose R has a component of order 8."""
    return _sign(seed, message, encode(add(times(NONCE, BASE), _torsion()[1])), NONCE)


def sign_with_neutral_r(seed: bytes, message: bytes) -> bytes:
    """A signature whose R is the neutral element: it satisfies the equation, and gives the key away."""
    return _sign(seed, message, encode(NEUTRAL), 0)


def mixed_key_signature(seed: bytes, message: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """(key, signature): the key is a good one plus a point of order 8, the signature satisfies the equation under it.

    The nonce is chosen so that the challenge is a multiple of 8, which makes the point of order 8 vanish.
    """
    secret = _secret(seed)
    key = encode(add(times(secret, BASE), _torsion()[1]))
    for nonce in range(1, 1_000):
        r = encode(times(nonce, BASE))
        challenge = _challenge(r, key, message(key))
        if challenge % 8 == 0:
            return key, r + ((nonce + challenge * secret) % ORDER).to_bytes(32, "little")
    raise AssertionError("one in eight nonces does it")


def forge(key: bytes, message: bytes) -> bytes:
    """A signature under a small-order key that satisfies the equation, made without any private key."""
    point = _decode(key)
    for nonce in range(1, 10_000):
        r = encode(times(nonce, BASE))
        if times(_challenge(r, key, message), point) == NEUTRAL:
            return r + nonce.to_bytes(32, "little")
    raise AssertionError("one in eight nonces does it")


def _sign(seed: bytes, message: bytes, r: bytes, nonce: int) -> bytes:
    secret = _secret(seed)
    challenge = _challenge(r, encode(times(secret, BASE)), message)
    return r + ((nonce + challenge * secret) % ORDER).to_bytes(32, "little")


def _secret(seed: bytes) -> int:
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    return scalar & (2**254 - 8) | 2**254


def _challenge(r: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % ORDER


def add(left: Point, right: Point) -> Point:
    (x1, y1), (x2, y2) = left, right
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P) % P,
    )


def times(scalar: int, point: Point) -> Point:
    """The point added to itself; in coordinates (X : Y : Z : T) of RFC 8032, which need one division at the end."""
    result, doubled = (0, 1, 1, 0), (*point, 1, point[0] * point[1] % P)
    while scalar:
        if scalar & 1:
            result = _add_extended(result, doubled)
        doubled = _add_extended(doubled, doubled)
        scalar >>= 1
    inverse = pow(result[2], P - 2, P)
    return result[0] * inverse % P, result[1] * inverse % P


def _add_extended(left: Extended, right: Extended) -> Extended:
    a = (left[1] - left[0]) * (right[1] - right[0]) % P
    b = (left[1] + left[0]) * (right[1] + right[0]) % P
    c, d = 2 * D * left[3] * right[3] % P, 2 * left[2] * right[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _x_of(y: int) -> int | None:
    """The even x of a y, or None if no point has it."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return x if x % 2 == 0 else P - x


def encode(point: Point) -> bytes:
    return _spell(point[1], point[0] & 1)


def _spell(y: int, sign: int) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def decode_canonical(key: bytes) -> Point | None:
    """The point that a key spells in its one canonical way, or None."""
    number = int.from_bytes(key, "little")
    y, sign = number & (2**255 - 1), number >> 255
    x = _x_of(y) if y < P else None
    if x is None or (x == 0 and sign):
        return None
    return (P - x if sign else x, y)


def _decode(key: bytes) -> Point:
    """As a lax verifier decodes: y is taken modulo P, and x = 0 may carry a sign."""
    number = int.from_bytes(key, "little")
    y, sign = (number & (2**255 - 1)) % P, number >> 255
    x = _x_of(y)
    assert x is not None
    return (P - x) % P if x & 1 != sign else x, y


def _base() -> Point:
    y = 4 * pow(5, P - 2, P) % P
    x = _x_of(y)
    assert x is not None
    return x, y


def _torsion() -> list[Point]:
    """The eight points of small order, as multiples of one of order 8."""
    y = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
    x = _x_of(y)
    assert x is not None
    return [times(multiple, (x, y)) for multiple in range(8)]


BASE = _base()
