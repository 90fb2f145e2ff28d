"""How much a client may ask: requests and tokens in a time, credits in a month, queries at once.

Rule: pure: `now` (Unix seconds) is an argument. Limits on rates are token buckets: full at first, refilled evenly.
What is refused costs nothing. A query is let in while there is room, and its tokens are counted when they are known,
so a bucket may fall below empty; then the wait grows. Memory is bounded: who was not seen for longest is forgotten.
"""

from __future__ import annotations

import calendar
import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from node.config import GatewaySection
from node.gateway.callers import Address, Caller
from node.gateway.failures import ApiError
from protocol.pricing import format_credits

MINUTE, DAY = 60, 86_400
ADDRESSES_KEPT = 10_000
KEYS_KEPT = 10_000
WRONG_KEYS_PER_MINUTE = 20  # from one address
CONCURRENT_RETRY_MS = 1_000  # nobody knows when another answer ends
PATIENT_SECONDS = 60  # longer waits are not worth a client's automatic retries
ALMOST = 1e-6  # of a request or token: what rounding may take away

Unit = Literal["requests", "tokens"]
QUOTA, RATE = "insufficient_quota", "rate_limit_error"  # OpenAI's types


class Spent(Protocol):
    """Who knows what a key has cost."""

    def spent(self, key_id: str, now: float) -> int:
        """µcredits in the calendar month of `now`."""


class Bucket:
    """Room for `most` at once, refilled evenly in `seconds`."""

    def __init__(self, most: int, seconds: int, now: float) -> None:
        self.most = most
        self.seconds = seconds
        self._level = float(most)
        self._at = now

    def level(self, now: float) -> float:
        """What there is; below 0 after more was taken than there was. A clock set back refills nothing."""
        refilled = max(0.0, now - self._at) * self.most / self.seconds
        self._level = min(float(self.most), self._level + refilled)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take, whether it is there or not."""
        self._level = self.level(now) - amount

    def wait(self, now: float) -> float:
        """Seconds until one may be taken; 0 if it may now."""
        return self._until(1 - ALMOST, now)

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        return self._until(self.most, now)

    def _until(self, level: float, now: float) -> float:
        return max(0.0, level - self.level(now)) * self.seconds / self.most


class Buckets:
    """The buckets of many, by name; the one that was not used for longest goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buckets: OrderedDict[tuple[str, ...], Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, name: tuple[str, ...], most: int, seconds: int, now: float) -> Bucket:
        """The bucket of this name; a new one if there is none of this size."""
        bucket = self._buckets.get(name)
        if bucket is None or (bucket.most, bucket.seconds) != (most, seconds):
            bucket = self._buckets[name] = Bucket(most, seconds, now)
        self._buckets.move_to_end(name)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit that holds for a caller."""

    owner: tuple[str, ...]  # whose bucket
    unit: Unit
    most: int
    seconds: int
    code: str
    said: str  # who may do how much
    fix: str


class Limits:
    """All limits of one gateway, and how far each caller is from them."""

    def __init__(self, config: GatewaySection, usage: Spent) -> None:
        self._config = config
        self._usage = usage
        self._of_keys = Buckets(2 * KEYS_KEPT)
        self._of_addresses = Buckets(4 * ADDRESSES_KEPT)
        self._of_all = Buckets(1)
        self._wrong = Buckets(ADDRESSES_KEPT)
        self._running: dict[str, int] = {}  # of addresses with a query; those are bounded

    # --- requests ------------------------------------------------------------------------------------

    def arrived(self, address: Address, now: float) -> None:
        """Count one request, whatever it asks. Raises `ApiError` (429)."""
        most = self._config.address_requests_per_minute
        if not most or self._spared(address):
            return
        bucket = self._of_addresses.get((address.group, "all"), most, MINUTE, now)
        if wait := bucket.wait(now):
            said = f"{address.group} may send {most} requests a minute and has sent them"
            raise _refusal("address_limit", said, wait, "gateway.address_requests_per_minute sets it")
        bucket.take(1, now)

    def wrong_key(self, address: Address, now: float) -> None:
        """Count a key, token or code that is none. Raises `ApiError` (429) if there were too many."""
        bucket = self._wrong.get((address.group,), WRONG_KEYS_PER_MINUTE, MINUTE, now)
        if wait := bucket.wait(now):
            said = f"too many wrong keys, tokens or codes came from {address.group}"
            raise _refusal("address_limit", said, wait, "check what your client sends; a right key is always taken")
        bucket.take(1, now)

    # --- queries -------------------------------------------------------------------------------------

    def admit(self, caller: Caller, now: float) -> None:
        """Count one query that begins; `left` has to follow. Raises `ApiError` (429)."""
        self._check_concurrent(caller.address)
        self._check_month(caller, now)
        rules = self._rules(caller)
        waits = [(self._bucket(rule, now).wait(now), rule) for rule in rules]
        wait, rule = max(waits, key=lambda each: each[0], default=(0.0, None))
        if rule is not None and wait:
            raise _refusal(rule.code, rule.said, wait, rule.fix, self.headers(caller, now))
        for rule in rules:
            if rule.unit == "requests":
                self._bucket(rule, now).take(1, now)
        self._count(caller.address, 1)

    def left(self, caller: Caller) -> None:
        """A query that was admitted has ended."""
        self._count(caller.address, -1)

    def charge(self, caller: Caller, tokens: int, now: float) -> None:
        """Count what a query took."""
        for rule in self._rules(caller):
            if rule.unit == "tokens":
                self._bucket(rule, now).take(tokens, now)

    def headers(self, caller: Caller, now: float) -> dict[str, str]:
        """OpenAI's headers, of the limit of each kind that is nearest; none where there is no limit."""
        nearest: dict[Unit, tuple[float, Bucket]] = {}
        for rule in self._rules(caller):
            bucket = self._bucket(rule, now)
            if rule.unit not in nearest or bucket.level(now) < nearest[rule.unit][0]:
                nearest[rule.unit] = bucket.level(now), bucket
        found: dict[str, str] = {}
        for unit, (level, bucket) in nearest.items():
            found[f"x-ratelimit-limit-{unit}"] = str(bucket.most)
            found[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(level + ALMOST)))
            found[f"x-ratelimit-reset-{unit}"] = duration(bucket.reset(now))
        return found

    # --- which limits hold ---------------------------------------------------------------------------

    def _spared(self, address: Address) -> bool:
        """This machine's own programs are its owner's."""
        return address.local and not self._config.limit_loopback

    def _rules(self, caller: Caller) -> tuple[Rule, ...]:
        if caller.key is not None:
            return tuple(rule for rule in _rules_of_key(caller) if rule.most)
        if caller.operator or self._spared(caller.address):
            return ()
        return tuple(rule for rule in self._rules_of_anonymous(caller.address) if rule.most)

    def _rules_of_anonymous(self, address: Address) -> Iterable[Rule]:
        config, group = self._config, address.group
        fix = "send an API key (`mtor keys create NAME` at the node makes one), or have its operator raise gateway."
        limits: tuple[tuple[str, Unit, int, int, str], ...] = (
            ("requests_per_minute", "requests", config.anonymous_requests_per_minute, MINUTE, "requests_per_minute"),
            ("tokens_per_minute", "tokens", config.anonymous_tokens_per_minute, MINUTE, "tokens_per_minute"),
            ("tokens_per_day", "tokens", config.anonymous_tokens_per_day, DAY, "anonymous_quota"),
        )
        for name, unit, most, seconds, code in limits:
            said = f"{group}, without a key, may have {most} {name.replace('_per_', ' a ')} and has had them"
            yield Rule((group, name), unit, most, seconds, code, said, f"{fix}anonymous_{name}")
        most = config.anonymous_total_tokens_per_day
        said = f"all who ask without a key may have {most} tokens a day together and have had them"
        fix += "anonymous_total_tokens_per_day"
        yield Rule(("everybody",), "tokens", most, DAY, "anonymous_quota", said, fix)

    def _bucket(self, rule: Rule, now: float) -> Bucket:
        buckets = {"key": self._of_keys, "everybody": self._of_all}.get(rule.owner[0], self._of_addresses)
        return buckets.get(rule.owner, rule.most, rule.seconds, now)

    # --- at once, and in a month ---------------------------------------------------------------------

    def _check_concurrent(self, address: Address) -> None:
        most = self._config.address_concurrent
        if not most or self._spared(address) or self._running.get(address.group, 0) < most:
            return
        message = (
            f"{most} queries of {address.group} are being answered, which is as many as one address may have "
            "(gateway.address_concurrent sets it); wait for one to end"
        )
        raise ApiError(429, message, type=RATE, code="address_limit", retry_ms=CONCURRENT_RETRY_MS)

    def _count(self, address: Address, change: int) -> None:
        running = self._running.get(address.group, 0) + change
        if running > 0:
            self._running[address.group] = running
        else:
            self._running.pop(address.group, None)

    def _check_month(self, caller: Caller, now: float) -> None:
        key = caller.key
        if key is None or not key.terms.monthly_micro or self._usage.spent(key.id, now) < key.terms.monthly_micro:
            return
        said = f"the key {key.name!r} may spend {format_credits(key.terms.monthly_micro)} a month and has spent them"
        fix = "`mtor keys create NAME --month CREDITS` at the node makes a key with another limit"
        raise _refusal("monthly_credits", said, month_ends(now) - now, fix, self.headers(caller, now))


def _rules_of_key(caller: Caller) -> Iterable[Rule]:
    key = caller.key
    assert key is not None
    limits: tuple[tuple[Unit, int], ...] = (
        ("requests", key.terms.requests_per_minute),
        ("tokens", key.terms.tokens_per_minute),
    )
    for unit, most in limits:
        said = f"the key {key.name!r} may have {most} {unit} a minute and has had them"
        fix = f"`mtor keys create NAME --{unit} N` at the node makes a key with another limit"
        yield Rule(("key", key.id, unit), unit, most, MINUTE, f"{unit}_per_minute", said, fix)


def _refusal(code: str, said: str, wait: float, fix: str, more: dict[str, str] | None = None) -> ApiError:
    kind = QUOTA if code in ("monthly_credits", "anonymous_quota") else RATE
    headers = (more or {}) | ({"x-should-retry": "false"} if wait > PATIENT_SECONDS else {})
    retry_ms = max(1, math.ceil(wait * 1_000))
    message = f"{said}; the next is free in {in_words(wait)}. To change that: {fix}"
    return ApiError(429, message, type=kind, code=code, retry_ms=retry_ms, headers=headers)


def month_ends(now: float) -> int:
    """Unix seconds of the beginning of the next calendar month, UTC."""
    today = time.gmtime(now)
    year, month = divmod(today.tm_year * 12 + today.tm_mon, 12)
    return calendar.timegm((year, month + 1, 1, 0, 0, 0))


def duration(seconds: float) -> str:
    """As OpenAI's headers say it: 120ms, 1.5s, 6m0s, 1h0m30s."""
    milliseconds = math.ceil(seconds * 1_000 - ALMOST)
    if milliseconds < 1_000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or hours else "") + f"{rest / 1_000:g}s"


def in_words(seconds: float) -> str:
    """For people: 0.4 s, 12 s, 3 min, 5 h, 12 days; never less than it takes."""
    if seconds < 10:
        return f"{math.ceil(seconds * 10) / 10:g} s"
    for size, name, most in ((1, "s", 120), (60, "min", 120), (3_600, "h", 48)):
        if seconds <= size * most:
            return f"{math.ceil(seconds / size)} {name}"
    return f"{math.ceil(seconds / DAY)} days"
