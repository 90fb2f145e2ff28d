"""API keys: made here, shown once, kept as hashes.

Rule: a key is 256 random bits, so a plain sha256 keeps it (there is nothing to guess that slow hashing would slow), and
it is compared in constant time. The file has mode 0600 and is replaced whole. It is the truth: whoever changes it, a
running node goes by what it says at the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from node.paths import in_turn
from node.private_files import write_private
from protocol.errors import ProtocolError
from protocol.ids import parse_peer_id, realm_id
from protocol.pricing import parse_credits

KEYS_FILE = "api_keys"
LOCK_FILE = "api_keys.lock"
PREFIX = "mtor-"
ALL, MODELS = "all", "models"  # scopes, beside realms' names

LONGEST_NAME = 64
DAY = 86_400
MOST_DAYS = 36_500


class KeysError(Exception):
    """The keys file cannot be used, or a key cannot be made so; the message names the fix."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key may do. 0: no limit, never."""

    scopes: tuple[str, ...] = (ALL,)  # realms; "models": may only see what there is
    expires: int = 0  # Unix seconds
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    monthly_micro: int = 0  # µcredits in a calendar month, UTC

    def __post_init__(self) -> None:
        """Raises `KeysError`."""
        for scope in self.scopes:
            if scope not in (ALL, MODELS):
                _check_realm(scope)
        if not self.scopes:
            raise KeysError(f"a key without a scope is good for nothing; leave scopes out, which means {ALL}")
        for number in (self.expires, self.requests_per_minute, self.tokens_per_minute, self.monthly_micro):
            if number < 0:
                raise KeysError("a limit is a number from 1 on; leave it out for none")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as it is kept."""

    id: str  # first characters of the hash: what `mtor keys list` shows and `revoke` takes
    name: str
    sha256: str = field(repr=False)
    created: int  # Unix seconds
    account: str = ""  # the sub-account (a peer id) that pays for its queries; "": this node's own
    terms: Terms = Terms()

    def may_ask(self, realm: str) -> bool:
        """True if its scopes hold this realm."""
        return ALL in self.terms.scopes or realm in self.terms.scopes

    def expired(self, now: float) -> bool:
        """True from its last second on."""
        return 0 < self.terms.expires <= now


class ApiKeys:
    """The keys of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEYS_FILE
        self._lock = folder / LOCK_FILE
        self._seen: tuple[int, int, int] | None = None
        self._known: list[ApiKey] = []

    def all(self) -> list[ApiKey]:
        """All keys, as the file has them now. Raises `KeysError`."""
        if not self._path.exists():
            return []
        try:
            entries: list[dict[str, Any]] = json.loads(self._path.read_text())
            if not isinstance(entries, list):
                raise KeysError("it holds no list")
            return [_read(entry) for entry in entries]
        except (ValueError, TypeError, KeyError, AttributeError, KeysError, ProtocolError) as error:
            raise KeysError(f"{self._path} is damaged ({error}); remove it and create new keys") from None

    def create(self, name: str, account: str = "", terms: Terms = Terms()) -> str:
        """A new key, to be shown once; `account` pays for its queries. Raises `KeysError`."""
        self.check_name(name)
        key = PREFIX + secrets.token_urlsafe(32)
        digest = _digest(key)
        made = ApiKey(key_id(key), name, digest, int(time.time()), account, terms)
        with in_turn(self._lock):
            self._write([*self.all(), made])
        return key

    @staticmethod
    def check_name(name: str) -> None:
        """Raises `KeysError` if no key can be called so."""
        if not (name.strip() and len(name) <= LONGEST_NAME and name.isprintable()):
            raise KeysError(f"a key's name says whose it is, in 1 to {LONGEST_NAME} printable characters")

    def revoke(self, key_id: str) -> ApiKey:
        """Remove a key by its id. Raises `KeysError`."""
        with in_turn(self._lock):
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
        """The key that `key` is; None if it is none of them. Raises `KeysError`."""
        digest = _digest(key)
        matches = [known for known in self.known() if hmac.compare_digest(digest, known.sha256)]  # not to the first
        return matches[0] if matches else None

    def current(self, key_id: str) -> ApiKey | None:
        """The key of this id as it is now; None once it is revoked. Raises `KeysError`."""
        return next((known for known in self.known() if known.id == key_id), None)

    def known(self) -> list[ApiKey]:
        """All keys; the file is read again only when it is another than the one that was read. Raises `KeysError`."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._seen, self._known = None, []
            return self._known
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._seen:
            self._known, self._seen = self.all(), stamp
        return self._known

    def _write(self, keys: list[ApiKey]) -> None:
        write_private(self._path, json.dumps([_written(key) for key in keys], indent=1))


def terms(
    scopes: Sequence[str] | None,
    expires_days: int | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    monthly_credits: str | int | float | None,
) -> Terms:
    """What a key is to be good for, as an operator says it. Raises `KeysError` or `LocalProtocolError`."""
    if not 0 <= (expires_days or 0) <= MOST_DAYS:
        raise KeysError(f"a key expires after 1 to {MOST_DAYS} days; leave it out for never")
    return Terms(
        scopes=tuple(dict.fromkeys(scopes)) if scopes else Terms().scopes,
        expires=int(time.time()) + expires_days * DAY if expires_days else 0,
        requests_per_minute=requests_per_minute or 0,
        tokens_per_minute=tokens_per_minute or 0,
        monthly_micro=parse_credits(str(monthly_credits)) if monthly_credits else 0,
    )


def key_id(key: str) -> str:
    """The id of a key."""
    return _digest(key)[:12]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _check_realm(scope: str) -> None:
    try:
        realm_id(scope)
    except ProtocolError:
        raise KeysError(f"{scope!r} is no scope; write {ALL}, {MODELS} or a realm like $CHAT") from None


def _read(entry: Mapping[str, Any]) -> ApiKey:
    """An entry of the file, also of one that an older version wrote. Raises what says that it is damaged."""
    own = {name: entry[name] for name in ("id", "name", "sha256", "created")}
    terms = {each.name: entry[each.name] for each in fields(Terms) if each.name in entry}
    if "scopes" in terms:
        terms["scopes"] = tuple(terms["scopes"])
    account = entry.get("account", "")
    if account:
        parse_peer_id(account)
    return ApiKey(**own, account=account, terms=Terms(**terms))


def _written(key: ApiKey) -> dict[str, Any]:
    entry = asdict(key)
    terms: dict[str, Any] = entry.pop("terms")
    return entry | terms
