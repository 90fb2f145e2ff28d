"""API keys: made here, shown once, kept as hashes.

Rule: a key is 256 random bits, so a plain sha256 keeps it (there is nothing to guess that slow hashing would slow), and
it is compared in constant time. The file has mode 0600 and is replaced whole.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

KEYS_FILE = "api_keys"
PREFIX = "mtor-"


class KeysError(Exception):
    """The keys file cannot be used; the message names the fix."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as it is kept."""

    id: str  # first characters of the hash: what `mtor keys list` shows and `revoke` takes
    name: str
    sha256: str
    created: int  # Unix seconds


class ApiKeys:
    """The keys of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEYS_FILE

    def all(self) -> list[ApiKey]:
        """All keys. Raises `KeysError`."""
        if not self._path.exists():
            return []
        try:
            return [ApiKey(**entry) for entry in json.loads(self._path.read_text())]
        except (ValueError, TypeError) as error:
            raise KeysError(f"{self._path} is damaged ({error}); remove it and create new keys") from None

    def create(self, name: str) -> str:
        """A new key, to be shown once."""
        key = PREFIX + secrets.token_urlsafe(32)
        digest = _digest(key)
        self._write([*self.all(), ApiKey(digest[:12], name, digest, int(time.time()))])
        return key

    def revoke(self, key_id: str) -> ApiKey:
        """Remove a key by its id. Raises `KeysError`."""
        keys = self.all()
        found = [key for key in keys if key.id == key_id]
        if not found:
            raise KeysError(f"there is no key {key_id!r}; `mtor keys list` shows them")
        self._write([key for key in keys if key.id != key_id])
        return found[0]

    def accepts(self, key: str) -> bool:
        """True if `key` is one of them."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known.sha256) for known in self.all()]  # all, so that time tells nothing
        return any(matches)

    def _write(self, keys: list[ApiKey]) -> None:
        write_private(self._path, json.dumps([asdict(key) for key in keys], indent=1))


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner can read, from its first byte on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
