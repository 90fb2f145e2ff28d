"""Which federation this node belongs to: files in its data folder.

Rule: a node always has a federation. Before it joins one it has a home federation of its own, with itself as witness
and issuer, so that everything works with no set-up. Each federation has its own ledger folder, so joining another one
loses nothing. The issuer's key is not the node's key.

    federation/genesis      the genesis body
    federation/issuer.key   the issuer's seed, mode 0600; only where the federation was created
    ledgers/<id>/           one federation's ledger
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from node.identity import load_or_create_identity, load_or_create_key
from protocol import params
from protocol.errors import ProtocolError
from protocol.ledger.genesis import Federation, create, open_genesis
from protocol.signing import Signer

HOME_GRANT = 9_000 * params.MICRO  # what the creator of a federation starts with

MAX_NAME_BYTES = 64  # of a federation, in UTF-8


class FederationError(Exception):
    """The federation's files cannot be used. The message names the fix."""


def create_federation(data_folder: Path, name: str, *, now_ms: int | None = None) -> Federation:
    """A new federation with this folder's node as its only witness, installed here.

    `now_ms` is the present, if not given. Raises `IdentityError`, `LocalProtocolError` for a bad name.
    """
    witness = load_or_create_identity(data_folder).node
    issuer = load_or_create_key(issuer_key_path(data_folder))
    created = now_ms if now_ms is not None else time.time_ns() // 1_000_000
    federation = create(name, created, [witness], [issuer.node])
    install_genesis(data_folder, federation)
    return federation


def load_genesis(data_folder: Path) -> Federation | None:
    """The federation that this node belongs to; None before the first start. Raises `FederationError`."""
    path = genesis_path(data_folder)
    if not path.exists():
        return None
    try:
        return open_genesis(path.read_bytes())
    except (OSError, ProtocolError) as error:
        raise FederationError(
            f"{path} is not a genesis ({error}); get it again from a member of the federation"
        ) from None


def home_federation(data_folder: Path, name: str) -> Federation:
    """The federation of this node, created at its first start and named after it. Raises `FederationError`."""
    return load_genesis(data_folder) or create_federation(data_folder, _fitting(name) or "home")


def install_genesis(data_folder: Path, federation: Federation) -> None:
    """Make the node a member. The genesis before it is kept beside it; its ledger stays where it is."""
    path = genesis_path(data_folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    if before == federation.body:
        return
    if before:
        path.rename(path.with_name(f"genesis.before-{federation.id.hex()[:8]}"))
    fresh = path.with_name("genesis.new")
    with fresh.open("wb") as file:
        file.write(federation.body)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def load_issuer(data_folder: Path, federation: Federation) -> Signer | None:
    """The issuer's signer, if this folder holds a key that the federation names."""
    path = issuer_key_path(data_folder)
    issuer = load_or_create_key(path) if path.exists() else None
    return issuer if issuer is not None and federation.is_issuer(issuer.node) else None


def genesis_path(data_folder: Path) -> Path:
    """The genesis file: what a member gives to a new one."""
    return data_folder / "federation" / "genesis"


def issuer_key_path(data_folder: Path) -> Path:
    """The issuer's key file."""
    return data_folder / "federation" / "issuer.key"


def ledger_folder(data_folder: Path, federation: Federation) -> Path:
    """Where this federation's ledger lies."""
    return data_folder / "ledgers" / federation.id.hex()[:16]


def _fitting(name: str) -> str:
    """As much of a petname as a federation's name can hold."""
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
