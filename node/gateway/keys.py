"""API keys: made here, shown once, kept as hashes.

Rule: a key is 256 random bits, so a plain sha256 keeps it (there is nothing to guess that slow hashing would slow), and
it is compared in constant time. The file has mode 0600 and is replaced whole.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from node.private_files import write_private

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
    account: str = ""  # the sub-account (a peer id) that pays for its queries; "": this node's own


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

    def create(self, name: str, account: str = "") -> str:
        """A new key, to be shown once; `account` pays for its queries."""
        key = PREFIX + secrets.token_urlsafe(32)
        digest = _digest(key)
        self._write([*self.all(), ApiKey(digest[:12], name, digest, int(time.time()), account)])
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
        return self.find(key) is not None

    def find(self, key: str) -> ApiKey | None:
        """The key that `key` is; None if it is none of them."""
        digest = _digest(key)
        matches = [known for known in self.all() if hmac.compare_digest(digest, known.sha256)]  # not only to the first
        return matches[0] if matches else None

    def _write(self, keys: list[ApiKey]) -> None:
        write_private(self._path, json.dumps([asdict(key) for key in keys], indent=1))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
