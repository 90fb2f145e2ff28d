"""Limits as they are reckoned: buckets, addresses, months, waits. Time is a number here."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import GatewaySection
from node.gateway.callers import Address, Caller, client_address
from node.gateway.failures import ApiError
from node.gateway.key_usage import KeyUsage
from node.gateway.keys import ApiKey, Terms
from node.gateway.limits import (
    CONCURRENT_RETRY_MS,
    WRONG_KEYS_PER_MINUTE,
    Bucket,
    Buckets,
    Limits,
    duration,
    in_words,
    month_ends,
)

NOW = 1_796_000_000.0  # 2026-11-30, 10:13:20 UTC
HERE = Address("127.0.0.1", local=True)
FAR = Address("198.51.100.7", local=False)

sizes = st.integers(1, 10_000)
pauses = st.floats(0, 500)


# --- buckets -------------------------------------------------------------------------------------------


@given(sizes, st.lists(pauses, max_size=60))
def test_no_more_is_let_in_than_the_bucket_holds_and_time_brings(most: int, waits: list[float]) -> None:
    bucket, now, taken = Bucket(most, 60, NOW), NOW, 0
    for pause in waits:
        now += pause
        while not bucket.wait(now) and taken <= most + 200:
            bucket.take(1, now)
            taken += 1
        assert taken <= most + (now - NOW) * most / 60 + 0.001


@given(sizes, st.floats(1, 50_000), pauses)
def test_who_waits_as_long_as_told_is_let_in_and_no_earlier(most: int, amount: float, pause: float) -> None:
    bucket = Bucket(most, 60, NOW)
    bucket.take(amount, NOW)
    wait = bucket.wait(NOW + pause)
    told = -(-wait * 1_000 // 1) / 1_000  # in whole milliseconds, as a header says it
    assert bucket.wait(NOW + pause + told) == 0
    if wait > 0.01:
        early = Bucket(most, 60, NOW)
        early.take(amount, NOW)
        assert early.wait(NOW + pause + wait * 0.99) > 0


@given(sizes, st.floats(0, 50_000), pauses)
def test_it_is_full_again_when_it_says_so_and_never_more_than_full(most: int, amount: float, pause: float) -> None:
    bucket = Bucket(most, 60, NOW)
    bucket.take(amount, NOW)
    reset = bucket.reset(NOW)
    assert bucket.level(NOW + reset) == pytest.approx(most)
    assert bucket.level(NOW + reset + pause) <= most


@given(st.lists(st.floats(-10_000, 0), min_size=1))
def test_a_clock_set_back_brings_nothing(steps: list[float]) -> None:
    bucket, now = Bucket(10, 60, NOW), NOW
    bucket.take(10, now)
    for step in steps:
        now += step
        assert bucket.level(now) == 0
    assert bucket.level(now + 6) == pytest.approx(1)  # and from there on it goes on


def test_the_one_that_was_not_used_for_longest_is_forgotten() -> None:
    buckets = Buckets(100)
    for number in range(10_000):
        buckets.get((str(number),), 5, 60, NOW).take(1, NOW)
        kept = buckets.get(("busy",), 5, 60, NOW)
        kept.take(number == 0, NOW)
        assert len(buckets) <= 100
    assert buckets.get(("busy",), 5, 60, NOW).level(NOW) == 4 and buckets.get(("7",), 5, 60, NOW).level(NOW) == 5
    assert buckets.get(("busy",), 9, 60, NOW).level(NOW) == 9  # of another size: another limit


# --- what is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0011, "2ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (3_630.5, "1h0m30.5s")],
)
def test_durations_look_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.floats(0.01, 40 * 86_400))
def test_waits_in_words_are_never_too_short(seconds: float) -> None:
    number, unit = in_words(seconds).split()
    told = float(number) * {"s": 1, "min": 60, "h": 3_600, "days": 86_400}[unit]
    assert told >= seconds * 0.999_999 and told <= seconds * 1.6 + 0.1


def test_months_end_where_the_next_begins() -> None:
    assert month_ends(NOW) == 1_796_083_200  # 2026-12-01, 0:00 UTC
    assert month_ends(1_796_083_200) - 1_796_083_200 == 31 * 86_400  # from its first second on
    assert month_ends(1_798_761_599) == 1_798_761_600  # the last second of a year
    assert month_ends(1_709_164_800) == 1_709_251_200  # 2024-02-29


# --- addresses -----------------------------------------------------------------------------------------

PROXIES = [ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        ("198.51.100.7", "203.0.113.5", "198.51.100.7"),  # it may say what it likes
        ("127.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("127.0.0.1", "192.0.2.1, 203.0.113.5", "203.0.113.5"),  # what it wrote there itself does not count
        ("127.0.0.1", "192.0.2.1, 203.0.113.5, 10.1.2.3", "203.0.113.5"),
        ("127.0.0.1", "10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("127.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
        ("127.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("127.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("127.0.0.1", "203.0.113.5, nonsense", "127.0.0.1"),
        ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("", "203.0.113.5", "unknown"),
    ],
)
def test_only_a_trusted_proxy_says_who_asks(peer: str, forwarded: str, address: str) -> None:
    found = client_address(peer, "", forwarded.split(","), PROXIES, marked=bool(forwarded))
    assert found == Address(address, local=False)


def test_this_machine_is_known_by_loopback_or_by_both_ends_being_the_same() -> None:
    for peer, own, local in (
        ("127.0.0.1", "127.0.0.1", True),
        ("127.9.9.9", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::", True),
        ("192.168.1.7", "192.168.1.7", True),
        ("192.168.1.8", "192.168.1.7", False),
    ):
        assert client_address(peer, own, [], [], marked=False).local is local, peer
        assert client_address(peer, own, [], PROXIES, marked=False).local is local, peer  # beside a proxy, not by it
        assert client_address(peer, own, ["127.0.0.1"], [], marked=True).local is False, peer


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_household_of_ipv6_is_one_and_ipv4_addresses_are_not(low: int, other: int) -> None:
    prefix = 0x2001_0DB8_0000_0001 << 64
    first, second = (Address(str(ipaddress.IPv6Address(prefix + each)), False).group for each in (low, other))
    assert first == second == "2001:db8:0:1::/64"
    assert Address("192.0.2.1", False).group != Address("192.0.2.2", False).group


# --- limits --------------------------------------------------------------------------------------------


def limits(folder: Path, **section: object) -> tuple[Limits, KeyUsage]:
    """Limits with these settings, and what they go by."""
    usage = KeyUsage(folder)
    return Limits(GatewaySection.model_validate(section), usage), usage


def key(**terms: int) -> Caller:
    """One who asks with a key of these terms."""
    return Caller(HERE, ApiKey("abc", "laptop", "", 0, "", Terms(**terms)))


def refused(found: Limits, caller: Caller, now: float = NOW) -> ApiError:
    with pytest.raises(ApiError) as error:
        found.admit(caller, now)
    assert error.value.status == 429
    return error.value


def test_a_key_has_its_requests_and_gets_one_back_at_a_time(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    caller = key(requests_per_minute=4)
    for _ in range(4):
        found.admit(caller, NOW)
    error = refused(found, caller)
    assert error.code == "requests_per_minute" and error.retry_ms == 15_000
    assert "'laptop' may have 4 requests a minute" in error.message and "--requests" in error.message
    assert error.headers()["Retry-After"] == "15" and error.headers()["x-ratelimit-remaining-requests"] == "0"
    refused(found, caller, NOW + 14.9)
    found.admit(caller, NOW + 15)
    refused(found, caller, NOW + 15)


def test_tokens_are_counted_afterwards_and_may_go_below_nothing(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    caller = key(tokens_per_minute=600)
    found.admit(caller, NOW)
    found.charge(caller, 900, NOW)
    error = refused(found, caller)
    assert error.code == "tokens_per_minute" and error.retry_ms == 30_100  # 300 below, and one to begin with
    found.admit(caller, NOW + 30.1)


def test_what_is_refused_costs_nothing(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    caller = key(requests_per_minute=2, tokens_per_minute=60)
    found.charge(caller, 60, NOW)
    for _ in range(100):
        refused(found, caller)
    assert found.headers(caller, NOW)["x-ratelimit-remaining-requests"] == "2"


def test_the_longest_of_several_waits_is_told(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    caller = key(requests_per_minute=1, tokens_per_minute=60)
    found.admit(caller, NOW)
    found.charge(caller, 30, NOW)
    assert refused(found, caller).code == "requests_per_minute"
    found.charge(caller, 1_000, NOW)
    error = refused(found, caller)
    assert error.code == "tokens_per_minute"
    found.admit(caller, NOW + error.retry_ms / 1_000)


def test_a_month_is_spent_and_the_next_begins_at_nothing(tmp_path: Path) -> None:
    found, usage = limits(tmp_path)
    caller = key(monthly_micro=1_000_000)
    usage.charge("abc", 999_999, NOW)
    found.admit(caller, NOW)
    usage.charge("abc", 500, NOW)
    error = refused(found, caller)
    assert error.code == "monthly_credits" and error.type == "insufficient_quota"
    assert error.retry_ms == 83_200_000 and error.headers()["x-should-retry"] == "false"
    assert "1 cr a month" in error.message and "--month" in error.message and "24 h" in error.message
    found.admit(caller, NOW + 83_200)
    assert usage.spent("abc", NOW + 83_200) == 0 and usage.spent("abc", NOW) == 1_000_499


def test_who_has_no_key_shares_a_day(tmp_path: Path) -> None:
    found, _ = limits(tmp_path, anonymous_tokens_per_day=100, anonymous_total_tokens_per_day=250)
    callers = [Caller(Address(f"198.51.100.{number}", local=False)) for number in range(4)]
    found.charge(callers[0], 100, NOW)
    error = refused(found, callers[0])
    assert error.code == "anonymous_quota" and "gateway.anonymous_tokens_per_day" in error.message
    assert error.retry_ms == 864_000 and "API key" in error.message
    found.admit(callers[1], NOW)
    for caller in callers[1:3]:
        found.charge(caller, 75, NOW)
    error = refused(found, callers[3])  # who had nothing yet
    assert error.code == "anonymous_quota" and "anonymous_total_tokens_per_day" in error.message
    found.admit(Caller(HERE), NOW)
    found.admit(Caller(FAR, operator=True), NOW)
    found.admit(key(), NOW)


def test_this_machine_is_spared_unless_its_owner_wants_it_otherwise(tmp_path: Path) -> None:
    section = {"anonymous_requests_per_minute": 1, "address_requests_per_minute": 1, "address_concurrent": 1}
    spared, _ = limits(tmp_path, **section)
    for _ in range(50):
        spared.arrived(HERE, NOW)
        spared.admit(Caller(HERE), NOW)
    held, _ = limits(tmp_path, limit_loopback=True, **section)
    held.arrived(HERE, NOW)
    with pytest.raises(ApiError, match=r"gateway\.address_requests_per_minute") as error:
        held.arrived(HERE, NOW)
    assert error.value.code == "address_limit" and error.value.retry_ms == 60_000
    held.admit(Caller(HERE), NOW)
    held.left(Caller(HERE))
    assert refused(held, Caller(HERE)).code == "requests_per_minute"


def test_an_address_has_so_many_queries_at_once_with_keys_or_without(tmp_path: Path) -> None:
    found, _ = limits(tmp_path, address_concurrent=2)
    known = Caller(FAR, key().key)
    found.admit(known, NOW)
    found.admit(Caller(FAR), NOW)
    error = refused(found, known)
    assert error.code == "address_limit" and error.retry_ms == CONCURRENT_RETRY_MS
    found.admit(Caller(Address("198.51.100.8", local=False)), NOW)
    found.left(known)
    found.admit(known, NOW)


def test_guesses_are_counted_by_address(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    for _ in range(WRONG_KEYS_PER_MINUTE):
        found.wrong_key(FAR, NOW)
    with pytest.raises(ApiError) as error:
        found.wrong_key(FAR, NOW)
    assert error.value.code == "address_limit" and error.value.retry_ms == 3_000
    found.wrong_key(HERE, NOW)
    found.wrong_key(FAR, NOW + 3)


def test_without_a_limit_there_is_no_header(tmp_path: Path) -> None:
    found, _ = limits(tmp_path)
    assert found.headers(key(), NOW) == {} and found.headers(Caller(HERE), NOW) == {}
    assert set(found.headers(key(tokens_per_minute=5), NOW)) == {
        f"x-ratelimit-{word}-tokens" for word in ("limit", "remaining", "reset")
    }


# --- what keys have spent ------------------------------------------------------------------------------


def test_what_keys_spent_is_there_after_a_restart_for_keys_that_are(tmp_path: Path) -> None:
    usage = KeyUsage(tmp_path)
    assert usage.unsaved(None) == ""
    usage.charge("kept", 5, NOW)
    usage.charge("kept", 7, NOW)
    usage.charge("gone", 9, NOW)
    usage.used("kept", NOW)
    text = usage.unsaved(frozenset({"kept"}))
    usage.write(text)
    assert usage.unsaved(None) == "" and "gone" not in text
    again = KeyUsage(tmp_path)
    assert again.spent("kept", NOW) == 12 and again.spent("gone", NOW) == 0
    assert NOW - 3_600 < again.last_used("kept") <= NOW and again.last_used("kept") % 3_600 == 0
    again.used("kept", NOW)
    assert again.unsaved(None) == ""  # the same hour is nothing to write


def test_a_clock_that_was_wrong_for_a_while_loses_no_month(tmp_path: Path) -> None:
    usage = KeyUsage(tmp_path)
    for now in (NOW, 0.0, NOW + 900 * 86_400, NOW):
        usage.charge("abc", 5, now)
    usage.write(usage.unsaved(None))
    assert KeyUsage(tmp_path).spent("abc", NOW) == 10


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"months": 3}', '{"months": {"2026-11": {"a": "x"}}, "last_used": {}}']
)
def test_a_damaged_file_of_counts_is_begun_again(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key_usage.json").write_text(text)
    usage = KeyUsage(tmp_path)
    assert usage.spent("a", NOW) == 0 and "counted from 0" in caplog.text
    usage.charge("a", 1, NOW)
    usage.write(usage.unsaved(None))
    assert KeyUsage(tmp_path).spent("a", NOW) == 1


def test_a_file_that_cannot_be_written_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key_usage.json").mkdir()
    usage = KeyUsage(tmp_path)
    usage.charge("a", 1, NOW)
    usage.write(usage.unsaved(None))
    assert "cannot be written" in caplog.text
    (tmp_path / "key_usage.json").rmdir()
    usage.write(usage.unsaved(None))
    assert KeyUsage(tmp_path).spent("a", NOW) == 1
