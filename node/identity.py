"""Load or create the node's key file.

Rule: the key is readable by its owner alone from its first byte on, and is never half written. A file that cannot be
read as a key is never replaced: losing an identity loses its credits, so a person decides.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.private_files import sync_folder
from protocol.ids import NodeId
from protocol.signing import Signer

log = logging.getLogger("mtor.identity")

KEY_FILE = "identity.key"
PRIVATE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class IdentityError(Exception):
    """The key file cannot be used; the message names the file and the fix."""


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Who this node is. `seed` (32 secret bytes) also gives the libp2p key pair; it is never printed."""

    signer: Signer
    seed: bytes

    @property
    def node(self) -> NodeId:
        """The public key."""
        return self.signer.node

    def __repr__(self) -> str:
        return f"Identity({self.node.hex()[:8]}…)"


def load_or_create_identity(data_folder: Path) -> Identity:
    """The identity in `data_folder`/identity.key, made at the first start. Raises `IdentityError`."""
    seed = _load_or_create(data_folder / KEY_FILE)
    return Identity(Signer.from_seed(seed), seed)


def load_or_create_key(path: Path) -> Signer:
    """The signer of the key file `path`, made if there is none (an issuer's key). Raises `IdentityError`."""
    return Signer.from_seed(_load_or_create(path))


def _load_or_create(path: Path) -> bytes:
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read or written ({error.strerror}); check the folder's owner and permissions"
        ) from error


def _create(path: Path) -> None:
    """Write a new key beside its place, synced, then link it there; whoever comes second keeps the first's."""
    path.parent.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_to_pem(Ed25519PrivateKey.generate()))
            file.flush()
            os.fsync(file.fileno())
        _place(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    log.info("made a new key in %s; keep a copy of it, it is this node's identity", path)


def _place(draft: Path, path: Path) -> None:
    """Give the draft its name unless the name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.replace(path)


def _load(path: Path) -> bytes:
    _make_private(path)
    return _from_pem(path, path.read_bytes())


def _make_private(path: Path) -> None:
    """Take the file away from group and others, and say so. Raises `IdentityError` if that is refused."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "nt" or not mode & OTHERS:
        return
    try:
        path.chmod(PRIVATE_MODE)
    except OSError as error:
        raise IdentityError(f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}") from error
    log.warning("%s could be read by others (mode %o); it is private now, but the key may be known", path, mode)


def _to_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _from_pem(path: Path, pem: bytes) -> bytes:
    """The 32-byte seed in `pem`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise _damaged(path, "it is damaged or has a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path, "it holds a key of another kind")
    return key.private_bytes_raw()


def _damaged(path: Path, what: str) -> IdentityError:
    return IdentityError(
        f"{path} is not an unencrypted PKCS8 PEM file of an Ed25519 key: {what}. "
        f"Put your copy of it back; or move it away, and a new identity (with no credits) is made at the next start"
    )
