"""What keys have spent in a month, and when each was used.

Rule: counted in memory, on the disk a few seconds later and at the node's end: a crash forgets seconds of it, a restart
nothing. The file has mode 0600 and knows keys by their ids alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.gateway.keys import ApiKey
from node.private_files import write_private
from protocol.pricing import format_credits

log = logging.getLogger("mtor.gateway")

USAGE_FILE = "key_usage.json"
LAST_USED_STEP = 3_600  # seconds: enough to see which key nobody needs any more
MONTHS_KEPT = 3  # also after a clock that was wrong for a while


class KeyUsage:
    """The counts of one data folder. Entered by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / USAGE_FILE
        self._months: dict[str, dict[str, int]] = {}  # month -> key's id -> µcredits
        self._last_used: dict[str, int] = {}
        self._changed = False
        self._load()

    def spent(self, key_id: str, now: float) -> int:
        """µcredits in the calendar month (UTC) of `now`."""
        return self._months.get(month(now), {}).get(key_id, 0)

    def last_used(self, key_id: str) -> int:
        """Unix seconds, to the hour; 0: never."""
        return self._last_used.get(key_id, 0)

    def charge(self, key_id: str, micro: int, now: float) -> None:
        """Count what a query of a key cost."""
        if micro:
            spent = self._months.setdefault(month(now), {})
            spent[key_id] = spent.get(key_id, 0) + micro
            self._changed = True

    def used(self, key_id: str, now: float) -> None:
        """Note that a key asks."""
        hour = int(now) // LAST_USED_STEP * LAST_USED_STEP
        if self._last_used.get(key_id) != hour:
            self._last_used[key_id] = hour
            self._changed = True

    def unsaved(self, known: frozenset[str] | None) -> str:
        """What the file should say, of the keys that there are (None: of all); "" if it says so already."""
        if not self._changed:
            return ""
        self._months = {name: _only(self._months[name], known) for name in sorted(self._months)[-MONTHS_KEPT:]}
        self._last_used = _only(self._last_used, known)
        self._changed = False
        return json.dumps({"months": self._months, "last_used": self._last_used}, indent=1)

    def write(self, text: str) -> None:
        """Onto the disk; what cannot be written now is tried again with the next change."""
        try:
            write_private(self._path, text)
        except OSError as error:
            self._changed = True
            log.warning("%s cannot be written (%s): make room, or a restart forgets what keys spent", self._path, error)

    def _load(self) -> None:
        try:
            kept = json.loads(self._path.read_text())
            months = {str(name): _counts(spent) for name, spent in kept["months"].items()}
            last_used = _counts(kept["last_used"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s is damaged (%s): what keys spent this month is counted from 0 again", self._path, error)
            return
        self._months, self._last_used = months, last_used


def key_facts(key: ApiKey, usage: KeyUsage, now: float) -> dict[str, Any]:
    """What may be told of a key. Amounts are texts and µcredits; times are Unix seconds; 0 and "": no limit, never."""
    terms, spent = key.terms, usage.spent(key.id, now)
    return {
        "id": key.id,
        "name": key.name,
        "created": key.created,
        "expires": terms.expires,
        "expired": key.expired(now),
        "scopes": list(terms.scopes),
        "requests_per_minute": terms.requests_per_minute,
        "tokens_per_minute": terms.tokens_per_minute,
        "monthly_credits": format_credits(terms.monthly_micro) if terms.monthly_micro else "",
        "monthly_micro": terms.monthly_micro,
        "spent_this_month": format_credits(spent),
        "spent_micro": spent,
        "account": key.account,
        "last_used": usage.last_used(key.id),
    }


def month(now: float) -> str:
    """The calendar month of a Unix time, UTC: 2026-11."""
    return time.strftime("%Y-%m", time.gmtime(now))


def _only(counts: Mapping[str, int], known: frozenset[str] | None) -> dict[str, int]:
    return {name: count for name, count in counts.items() if known is None or name in known}


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in found.items()}
