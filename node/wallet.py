"""The accounts that this node signs for, and the keys it has for them.

Rule: one account has one writer, which is this process. The main account is the node's own; the others are its
sub-accounts. An account's key can change, so the ledger says which of the keys here is in force. A key is in the file
before any order names it, and is never removed: vouchers and closes of before stay valid with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from node.private_files import write_private
from protocol.errors import ErrorCode, ProtocolError, Refused
from protocol.ids import NodeId, parse_peer_id, peer_id, short
from protocol.ledger.families import current_key
from protocol.ledger.state import View
from protocol.signing import Signer

MAX_NAME = 64  # characters


class WalletError(Exception):
    """The file of keys cannot be used; the message names the fix."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the file: a key for an account."""

    account: str  # peer id
    name: str
    seed: str  # hex; secret. "": the node's own key


class Wallet:
    """Signers by account. `path` is where further keys are kept; None keeps them in memory."""

    def __init__(self, main: Signer, path: Path | None = None) -> None:
        """Raises `WalletError`."""
        self.main = main.node
        self._path = path
        self._entries: list[_Entry] = []
        self._signers: dict[NodeId, list[Signer]] = {main.node: [main]}
        self._names: dict[NodeId, str] = {}
        self._load()

    def add(self, account: NodeId, name: str, seed: bytes = b"") -> Signer:
        """Keep a key for an account, its own or a new one, before it is used; without `seed` the node's own key.

        Raises `OSError`, `Refused` for a bad name.
        """
        if account != self.main and not (0 < len(name) <= MAX_NAME and name.isprintable()):
            raise Refused(ErrorCode.INVALID_REQUEST, f"an account's name is 1 to {MAX_NAME} printable characters")
        entry = _Entry(peer_id(account), name, seed.hex())
        if self._path is not None:
            rows = [asdict(known) for known in (*self._entries, entry)]
            write_private(self._path, json.dumps(rows, indent=1))
        return self._take(entry)

    def signer(self, account: NodeId, view: View) -> Signer:
        """Who signs the account's next order. Raises `Refused` (INVALID_REQUEST)."""
        key = current_key(view, account)
        found = next((signer for signer in self._signers.get(account, ()) if signer.node == key), None)
        if found is None:
            why = "its key was changed elsewhere" if account in self else "it is another node's"
            raise Refused(ErrorCode.INVALID_REQUEST, f"this node does not sign for account {short(account)}: {why}")
        return found

    def name(self, account: NodeId) -> str:
        """What its owner calls it; "" for the main account and others'."""
        return self._names.get(account, "")

    def named(self, name: str) -> NodeId | None:
        """The account with that name."""
        return next((account for account, known in self._names.items() if known == name), None)

    def __contains__(self, account: object) -> bool:
        return account in self._signers

    def __iter__(self) -> Iterator[NodeId]:
        return iter(tuple(self._signers))

    def _take(self, entry: _Entry) -> Signer:
        account = parse_peer_id(entry.account)
        signer = Signer.from_seed(bytes.fromhex(entry.seed)) if entry.seed else self._signers[self.main][0]
        self._entries.append(entry)
        self._signers.setdefault(account, []).append(signer)
        if account != self.main:
            self._names[account] = entry.name
        return signer

    def _load(self) -> None:
        if self._path is None or not self._path.exists():
            return
        try:
            for row in json.loads(self._path.read_text()):
                self._take(_Entry(**row))
        except (OSError, ValueError, TypeError, ProtocolError) as error:
            raise WalletError(
                f"{self._path} cannot be read ({error}); put your copy of it back: it holds the keys of sub-accounts"
            ) from None
