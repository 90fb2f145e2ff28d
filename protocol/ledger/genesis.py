"""The federation's constitution.

Rule: a federation is its genesis body, and its id is that body's hash. n = 3f+1 distinct witnesses; a quorum is
2f+1 of them; issuers are other keys than witnesses, and each may issue its equal share of the supply cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ids import FederationId, NodeId
from protocol.messages import Genesis
from protocol.signing import check_public_key


@dataclass(frozen=True, slots=True)
class Federation:
    """A checked genesis with what follows from it."""

    id: FederationId
    genesis: Genesis
    body: bytes

    @property
    def quorum(self) -> int:
        """How many witnesses make a certificate: 2f+1."""
        return 2 * self.genesis.faults + 1

    @property
    def single(self) -> bool:
        """True with one witness: its log is the order in which everything happened."""
        return len(self.genesis.witnesses) == 1

    def witness_index(self, node: NodeId) -> int | None:
        """The node's place among the witnesses, None if it is none."""
        return _index(self.genesis.witnesses, node)

    def is_issuer(self, account: NodeId) -> bool:
        """True if the account may grant."""
        return account in self.genesis.issuers

    def floor(self, account: NodeId) -> int:
        """The lowest balance that the account may ever have, µcredits."""
        return -(self.genesis.supply_cap // len(self.genesis.issuers)) if self.is_issuer(account) else 0

    def witness(self, index: int) -> NodeId:
        """The witness at `index`. Raises `Refused` (NOT_A_WITNESS)."""
        if index >= len(self.genesis.witnesses):
            raise Refused(ErrorCode.NOT_A_WITNESS, f"genesis names {len(self.genesis.witnesses)} witnesses")
        return self.genesis.witnesses[index]


def create(
    name: str,
    created_ms: int,
    witnesses: Sequence[NodeId],
    issuers: Sequence[NodeId],
    *,
    supply_cap: int = params.DEFAULT_SUPPLY_CAP,
    epoch_length_ms: int = params.EPOCH_LENGTH,
) -> Federation:
    """A new federation. Raises `LocalProtocolError` for bounds, `Malformed` or `BadSignature` for broken rules."""
    faults = (len(witnesses) - 1) // 3
    genesis = Genesis(name, created_ms, tuple(witnesses), faults, tuple(issuers), supply_cap, epoch_length_ms)
    return open_genesis(encode(genesis))


def open_genesis(body: bytes, expected: FederationId | None = None) -> Federation:
    """The federation of a genesis body. Raises `Malformed`, `BadSignature`, or `Refused` (WRONG_FEDERATION)."""
    genesis = decode_as(Genesis, body, params.MAX_RECORD_BYTES)
    federation = FederationId(body_hash(body))
    if expected is not None and federation != expected:
        raise Refused(ErrorCode.WRONG_FEDERATION, f"genesis {federation.hex()[:16]}…, not {expected.hex()[:16]}…")
    _check(genesis)
    return Federation(federation, genesis, body)


def _check(genesis: Genesis) -> None:
    if len(genesis.witnesses) != 3 * genesis.faults + 1:
        raise Malformed(f"{len(genesis.witnesses)} witnesses; to stand {genesis.faults} faults it takes 3f+1")
    keys = (*genesis.witnesses, *genesis.issuers)
    if len(set(keys)) != len(keys):
        raise Malformed("witnesses and issuers are different keys, each named once")
    for key in keys:
        check_public_key(key)
    if genesis.supply_cap == 0 or genesis.epoch_length_ms == 0:
        raise Malformed("supply cap and epoch length are above 0")


def _index(keys: Sequence[NodeId], key: NodeId) -> int | None:
    return keys.index(key) if key in keys else None
