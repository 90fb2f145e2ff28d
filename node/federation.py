"""Which federation this node belongs to: files in its data folder.

Rule: a node always has a federation. Before it joins one it has a home federation of its own, with itself as witness
and issuer, so that everything works with no set-up. Each federation has its own ledger folder, so joining another one
loses nothing. The issuer's key is not the node's key.

    federation/genesis      the genesis body
    federation/issuer.key   the issuer's seed, mode 0600; only where the federation was created
    federation/witnessed-…  up to which epoch this node signed as a witness
    ledgers/<id>/           one federation's ledger
    accounts.json           keys of sub-accounts, mode 0600
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from node import clock
from node.identity import load_or_create_identity, load_or_create_key
from protocol import params
from protocol.errors import ProtocolError
from protocol.ids import NodeId, peer_id
from protocol.ledger.genesis import Federation, create, open_genesis
from protocol.signing import Signer

HOME_GRANT = 9_000 * params.MICRO  # what the creator of a federation starts with

WITNESS_SETTINGS = """\
# A witness of a federation: it keeps the ledger, and serves no model.
node:
  name: witness-{name}
  listen: [/ip4/0.0.0.0/tcp/{port}]
  bootstrap: bootstrap_peers.txt
gateway:
  port: 0   # any free one; `mtor status --data` finds it
realms: []
"""

MAX_NAME_BYTES = 64  # of a federation, in UTF-8


class FederationError(Exception):
    """The federation's files cannot be used. The message names the fix."""


def create_federation(
    data_folder: Path, name: str, others: Sequence[NodeId] = (), *, now_ms: int | None = None
) -> Federation:
    """A new federation whose witnesses are this folder's node and `others`, installed here; this folder has its issuer.

    `now_ms` is the present, if not given. Raises `IdentityError`, `FederationError` for a number of witnesses that is
    not 3f+1 or one that is named twice, `LocalProtocolError` for a bad name.
    """
    witnesses = (load_or_create_identity(data_folder).node, *others)
    _check_witnesses(witnesses)
    issuer = load_or_create_key(issuer_key_path(data_folder))
    created = now_ms if now_ms is not None else clock.now_ms()
    federation = create(name, created, witnesses, [issuer.node])
    install_genesis(data_folder, federation)
    return federation


def _check_witnesses(witnesses: Sequence[NodeId]) -> None:
    count = len(witnesses)
    if count % 3 != 1 or count > params.MAX_WITNESSES:
        raise FederationError(
            f"{count} witnesses; it takes 1, or 4 so that one of them may fail or lie, or 7 so that two may"
            + (f", and so on up to {params.MAX_WITNESSES}" if params.MAX_WITNESSES > 7 else "")
        )
    twice = [peer_id(node) for node in set(witnesses) if witnesses.count(node) > 1]
    if twice:
        raise FederationError(f"{twice[0]} is named twice as a witness; each is another node (this one is the first)")


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


def prepare_witness(data_folder: Path, federation: Federation, port: int, bootstrap: str) -> None:
    """A data folder for a further witness: a member that serves nothing, listens on `port` and joins by `bootstrap`.

    A realms.yml that is there already stays as it is.
    """
    install_genesis(data_folder, federation)
    peers, settings = data_folder / "bootstrap_peers.txt", data_folder / "realms.yml"
    peers.write_text(f"# whom this witness joins by, an address a line\n{bootstrap}\n")
    if not settings.exists():
        settings.write_text(WITNESS_SETTINGS.format(name=data_folder.name, port=port))


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


def memory_path(data_folder: Path, federation: Federation) -> Path:
    """Where a witness keeps up to which epoch it has signed; outside of the ledger's folder."""
    return data_folder / "federation" / f"witnessed-{federation.id.hex()[:16]}"


def accounts_path(data_folder: Path) -> Path:
    """The keys of sub-accounts, and of accounts whose key was changed."""
    return data_folder / "accounts.json"


def ledger_folder(data_folder: Path, federation: Federation) -> Path:
    """Where this federation's ledger lies."""
    return data_folder / "ledgers" / federation.id.hex()[:16]


def _fitting(name: str) -> str:
    """As much of a petname as a federation's name can hold."""
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
