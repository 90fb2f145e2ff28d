"""The directory: what gets in, what is handed out, what experience does."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from node.directory import MAX_KNOWN_NODES, UNREACHABLE_PAUSE_MS, Directory
from node.network import Verdict
from protocol.ids import CHAT, NodeId
from protocol.offers import KnownOffer
from protocol.routing import BREAKER_FAILURES, Requirements
from protocol.signing import Signer
from tests.protocol.conftest import NOW, make_offer, model_offer  # noqa: F401

Make = Callable[..., KnownOffer]
LOCAL = Signer.from_seed(b"\xee" * 32).node


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def candidates(directory: Directory, without: frozenset[NodeId] = frozenset()) -> list[NodeId]:
    return [candidate.node for candidate in directory.rank(CHAT, Requirements(), b"", without).candidates]


def test_an_offer_enters_once_and_leaves_when_it_expires(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    directory = Directory(LOCAL, clock)
    known = make_offer(1, model_offer())
    assert directory.take_in(known.sealed) is Verdict.ACCEPT
    assert directory.take_in(known.sealed) is Verdict.IGNORE
    assert directory.known(known.node) == known and list(directory.addresses(known.node)) == ["/ip4/127.0.0.1/tcp/1"]
    clock.now = known.offer.expires_ms
    assert directory.offers() == () and directory.known(known.node) is None and candidates(directory) == []


def test_what_is_refused(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    blocked = make_offer(2)
    directory = Directory(LOCAL, clock, frozenset({blocked.node}))
    assert directory.take_in(b"junk") is Verdict.REJECT
    assert directory.take_in(blocked.sealed) is Verdict.IGNORE
    assert directory.take_in(make_offer(0xEE).sealed) is Verdict.IGNORE  # our own, come back to us
    assert directory.offers() == ()


def test_a_flood_of_newcomers_does_not_evict_the_known(
    make_offer: Make,  # noqa: F811
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.directory.MAX_KNOWN_NODES", 2)
    assert MAX_KNOWN_NODES > 1_000
    directory = Directory(LOCAL, clock)
    verdicts = [directory.take_in(make_offer(number).sealed) for number in (1, 2, 3)]
    assert verdicts == [Verdict.ACCEPT, Verdict.ACCEPT, Verdict.IGNORE]
    newer = make_offer(1, sequence=NOW + 1, issued=NOW + 5_000)
    assert directory.take_in(newer.sealed) is Verdict.ACCEPT  # the known may still renew


def test_failures_open_the_breaker_and_a_new_connection_closes_it(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    directory = Directory(LOCAL, clock)
    known = make_offer(1, model_offer())
    directory.take_in(known.sealed)
    for _ in range(BREAKER_FAILURES):
        assert candidates(directory) == [known.node]
        directory.failed(known.node, "tiny")
    assert candidates(directory) == []
    directory.recovered(known.node)
    assert candidates(directory) == [known.node]


def test_unreachable_and_refused_pause_a_worker(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    directory = Directory(LOCAL, clock)
    known = make_offer(1, model_offer())
    directory.take_in(known.sealed)
    directory.unreachable(known.node, "tiny")
    assert candidates(directory) == []
    clock.now += UNREACHABLE_PAUSE_MS
    assert candidates(directory) == [known.node]
    directory.refused(known.node, "tiny", 500)
    assert candidates(directory) == []
    clock.now += 500
    assert candidates(directory) == [known.node] and directory.experience(known.node, "tiny").failures == 1
    directory.succeeded(known.node, "tiny", 100, 20)
    assert directory.experience(known.node, "tiny").successes == 1


def test_own_queries_in_flight_are_counted(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    directory = Directory(LOCAL, clock)
    one, two = make_offer(1, model_offer()), make_offer(2, model_offer())
    directory.take_in(one.sealed)
    directory.take_in(two.sealed)
    first = candidates(directory)[0]
    with directory.asking(first), directory.asking(first), directory.asking(first):
        assert candidates(directory)[0] != first
    assert candidates(directory)[0] == first
    assert candidates(directory, frozenset({first})) != [first]


async def test_a_change_wakes_the_waiting(make_offer: Make, clock: Clock) -> None:  # noqa: F811
    directory = Directory(LOCAL, clock)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.wait_changed)
            await trio.testing.wait_all_tasks_blocked()
            directory.set_own(make_offer(0xEE))
