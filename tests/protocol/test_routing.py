"""Ranking, its explanations, and what experience does to it."""

from collections import Counter
from collections.abc import Callable

import pytest

from protocol import params
from protocol.ids import CHAT, IMAGINE, VISION, NodeId, RealmId, peer_id
from protocol.messages import NUMBERS, ChatRequest, Device, SpeakRequest, VisionRequest
from protocol.offers import KnownOffer
from protocol.routing import (
    BREAKER_FAILURES,
    BREAKER_FIRST_MS,
    BREAKER_MOST_MS,
    Experience,
    Knowledge,
    Requirements,
    after_failure,
    after_refusal,
    after_success,
    explain_no_peer,
    lacks_features,
    rank,
)
from protocol.signing import Signer
from tests.protocol.conftest import NOW, model_offer

Make = Callable[..., KnownOffer]
LOCAL = Signer.from_seed(b"\xee" * 32).node
CUDA = Device("cuda", "RTX 4090", 24_000, 89)


def order(*offers: KnownOffer, wanted: Requirements | None = None, knowledge: Knowledge | None = None) -> list[bytes]:
    ranking = rank(CHAT, wanted or Requirements(), offers, knowledge or Knowledge(LOCAL), NOW, b"tie")
    return [candidate.node for candidate in ranking.candidates]


def test_a_faster_claim_wins_until_there_is_experience(make_offer: Make) -> None:
    slow = make_offer(1, model_offer(tokens_per_second=10_000))
    fast = make_offer(2, model_offer(tokens_per_second=40_000))
    assert order(slow, fast) == [fast.node, slow.node]
    measured = {(fast.node, "tiny"): Experience(5, 0, 0, 900, 5.0), (slow.node, "tiny"): Experience(5, 0, 0, 300, 30.0)}
    assert order(slow, fast, knowledge=Knowledge(LOCAL, measured)) == [slow.node, fast.node]


def test_a_boast_is_worth_no_more_than_the_cap(make_offer: Make) -> None:
    boast = make_offer(1, model_offer(tokens_per_second=1_000_000))
    modest = make_offer(2, model_offer(tokens_per_second=50_000, price_out=0))
    assert order(boast, modest)[0] == modest.node


def test_load_price_and_failures_count(make_offer: Make) -> None:
    idle, busy = make_offer(1, model_offer()), make_offer(2, model_offer(busy=2, queued=3))
    assert order(busy, idle) == [idle.node, busy.node]
    cheap, dear = make_offer(1, model_offer(price_out=10)), make_offer(2, model_offer(price_out=30_000))
    assert order(dear, cheap) == [cheap.node, dear.node]
    flaky = Knowledge(LOCAL, {(idle.node, "tiny"): Experience(1, 2, 1)})
    assert order(idle, make_offer(3, model_offer()), knowledge=flaky)[1] == idle.node
    crowded = Knowledge(LOCAL, in_flight={idle.node: 8})
    assert order(idle, make_offer(3, model_offer()), knowledge=crowded)[1] == idle.node


def test_queries_are_spread_before_anybody_is_full(make_offer: Make) -> None:
    """Offers are seconds old: who waits for a worker to be full meets those who fill it meanwhile."""
    offers = [make_offer(number, model_offer(slots=64)) for number in (1, 2, 3)]
    asked: Counter[NodeId] = Counter()
    for query in range(96):
        ranking = rank(CHAT, Requirements(), offers, Knowledge(LOCAL, in_flight=asked), NOW, bytes([query]))
        asked[ranking.candidates[0].node] += 1
    assert sorted(asked.values()) == [32, 32, 32]


def test_a_much_faster_worker_is_asked_even_when_it_is_half_full(make_offer: Make) -> None:
    slow, fast = make_offer(1, model_offer(tokens_per_second=10_000)), make_offer(2, model_offer(slots=8, busy=4))
    speeds = {slow.node: 10.0, fast.node: 90.0}
    measured = {(node, "tiny"): Experience(9, 0, 0, 300, speed) for node, speed in speeds.items()}
    assert order(slow, fast, knowledge=Knowledge(LOCAL, measured))[0] == fast.node


def test_the_own_node_is_a_candidate_without_a_price(make_offer: Make) -> None:
    own, other = make_offer(0xEE, model_offer(price_out=9_000)), make_offer(2, model_offer(price_out=9_000))
    assert order(other, own, wanted=Requirements(max_price_out=1)) == [LOCAL]
    assert order(other, own)[0] == LOCAL


def test_equals_are_spread_by_the_query(make_offer: Make) -> None:
    offers = [make_offer(number, model_offer()) for number in range(1, 9)]
    firsts = {
        rank(CHAT, Requirements(), offers, Knowledge(LOCAL), NOW, bytes([tie])).candidates[0].node for tie in range(64)
    }
    assert len(firsts) > 3


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (Requirements(model="other"), "model other"),
        (Requirements(min_vram_mib=8_000), "8000 MiB of VRAM"),
        (Requirements(device_kind="cuda"), "device cuda"),
        (Requirements(min_context_tokens=100_000), "100000 tokens of context"),
        (Requirements(max_price_in=1), "price in"),
        (Requirements(max_price_out=1), "price out"),
        (Requirements(worker=peer_id(LOCAL)), "worker"),
        (Requirements(request=NUMBERS[VisionRequest]), "vision requests"),
        (Requirements(request=95), "95 requests"),
    ],
)
def test_the_requirement_that_failed_is_named(make_offer: Make, wanted: Requirements, named: str) -> None:
    ranking = rank(CHAT, wanted, [make_offer(1, model_offer())], Knowledge(LOCAL), NOW)
    assert not ranking.candidates
    assert named in explain_no_peer(CHAT, wanted, ranking) and "tiny" in explain_no_peer(CHAT, wanted, ranking)


def test_a_fitting_card_meets_the_requirements(make_offer: Make) -> None:
    wanted = Requirements("tiny", 16_000, "cuda", 1_000, 3_000, 2_048, peer_id(make_offer(1).node))
    assert order(make_offer(1, model_offer(device=CUDA)), make_offer(2, model_offer()), wanted=wanted) == [
        make_offer(1).node
    ]


def test_only_models_that_take_the_request_are_asked(make_offer: Make) -> None:
    both = make_offer(1, model_offer(requests=(NUMBERS[ChatRequest], NUMBERS[VisionRequest])))
    talks = make_offer(2, model_offer(tokens_per_second=50_000))
    assert order(talks, both, wanted=Requirements(request=NUMBERS[VisionRequest])) == [both.node]
    assert set(order(talks, both, wanted=Requirements(request=NUMBERS[ChatRequest]))) == {both.node, talks.node}
    wanted = Requirements(request=NUMBERS[SpeakRequest])
    ranking = rank(CHAT, wanted, [both], Knowledge(LOCAL), NOW)
    assert "tiny takes chat, vision" in explain_no_peer(CHAT, wanted, ranking)


def test_expired_paused_and_avoided_are_left_out(make_offer: Make) -> None:
    expired = make_offer(1, model_offer(), issued=NOW - 60_000, sequence=1)
    paused = make_offer(2, model_offer(slots=0))
    broken = make_offer(3, model_offer())
    knowledge = Knowledge(LOCAL, {(broken.node, "tiny"): Experience(avoid_until_ms=NOW + 1)})
    ranking = rank(CHAT, Requirements(), [expired, paused, broken], knowledge, NOW)
    assert not ranking.candidates and len(ranking.unfit) == 3
    assert ranking.avoided
    assert not rank(CHAT, Requirements(), [expired, paused], knowledge, NOW).avoided


def test_nobody_at_all_and_many_unfit_are_explained(make_offer: Make) -> None:
    nobody = rank(VISION, Requirements(), [], Knowledge(LOCAL), NOW)
    assert "no peer offers $VISION" in explain_no_peer(VISION, Requirements(), nobody)
    wanted = Requirements(device_kind="mps")
    many = rank(CHAT, wanted, [make_offer(n, model_offer()) for n in range(1, 9)], Knowledge(LOCAL), NOW)
    assert "and 2 more" in explain_no_peer(CHAT, wanted, many)


def test_an_explanation_keeps_to_the_realm_and_says_what_does_not_fit(make_offer: Make) -> None:
    eyes = model_offer(model="eyes", realm=VISION, requests=(NUMBERS[VisionRequest],))
    offers = [make_offer(1, model_offer()), make_offer(2, eyes), make_offer(3, model_offer(slots=0))]

    def said(wanted: Requirements, realm: RealmId = CHAT) -> str:
        return explain_no_peer(realm, wanted, rank(realm, wanted, offers, Knowledge(LOCAL), NOW))

    text = said(Requirements(device_kind="mps"))
    assert "tiny runs on cpu, not mps" in text and "eyes" not in text and "VISION" not in text
    assert said(Requirements(model="gpt-9")) == "no peer offers the model gpt-9 in $CHAT; on offer there: tiny"
    assert "eyes answers pictures: add one" in said(Requirements(model="eyes"))
    assert "no peer offers the model eyes in $CHAT" in said(Requirements(model="eyes"))
    assert "eyes takes vision: it answers pictures" in said(Requirements(request=NUMBERS[ChatRequest]), VISION)
    assert "On offer elsewhere: eyes in $VISION; tiny in $CHAT" in said(Requirements(), IMAGINE)
    paused = explain_no_peer(CHAT, Requirements(), rank(CHAT, Requirements(), offers[2:], Knowledge(LOCAL), NOW))
    assert "a free slot not met" in paused and "tiny is paused by its owner" in paused


def test_the_breaker_opens_after_failures_in_a_row_and_grows() -> None:
    known = Experience()
    for _ in range(BREAKER_FAILURES - 1):
        known = after_failure(known, NOW)
    assert known.avoid_until_ms <= NOW
    known = after_failure(known, NOW)
    assert known.avoid_until_ms == NOW + BREAKER_FIRST_MS
    for _ in range(20):
        known = after_failure(known, NOW)
    assert known.avoid_until_ms == NOW + BREAKER_MOST_MS
    recovered = after_success(known, 100, 20)
    assert recovered.avoid_until_ms == 0 and recovered.consecutive_failures == 0


def test_averages_move_and_refusals_are_no_failures() -> None:
    once = after_success(Experience(), 100, 10)
    twice = after_success(once, 200, 20)
    assert (once.ttft_ms, round(twice.ttft_ms), round(twice.tokens_per_second)) == (100, 130, 13)
    refused = after_refusal(once, 10**9, NOW)
    assert refused.failures == 0 and refused.avoid_until_ms == NOW + BREAKER_MOST_MS
    assert after_refusal(refused, 1 * params.SECONDS, NOW).avoid_until_ms == refused.avoid_until_ms


def test_only_models_with_the_features_are_asked(make_offer: Make) -> None:
    plain, able = make_offer(1, model_offer()), make_offer(2, model_offer(model="big", features=(1, 3)))
    tools = Requirements(features=(1,))
    assert order(plain, able, wanted=tools) == [able.node]
    assert set(order(plain, able, wanted=Requirements())) == {plain.node, able.node}
    assert order(plain, able, wanted=Requirements(features=(1, 4))) == []


def test_what_no_model_can_do_is_told_with_what_they_can(make_offer: Make) -> None:
    plain = make_offer(1, model_offer())
    able = make_offer(2, model_offer(model="big", features=(1, 3)))
    eyes = make_offer(3, model_offer(model="eyes", requests=(NUMBERS[VisionRequest],)))

    def said(wanted: Requirements, *offers: KnownOffer) -> tuple[bool, str]:
        ranking = rank(CHAT, wanted, offers, Knowledge(LOCAL), NOW)
        return lacks_features(ranking), explain_no_peer(CHAT, wanted, ranking)

    kind = NUMBERS[ChatRequest]
    assert said(Requirements(features=(1,), request=kind), plain, eyes) == (
        True,
        "no model on offer in $CHAT calls tools; on offer: tiny answers text alone",
    )
    assert said(Requirements(features=(4,)), able) == (
        True,
        "no model on offer in $CHAT gives log probabilities; on offer: big calls tools and answers JSON by a schema, "
        "and no more",
    )
    lacks, text = said(Requirements(model="tiny", features=(1,)), plain, able)
    assert lacks and text.startswith("no tiny on offer in $CHAT calls tools; on offer: tiny answers text alone")
    assert text.endswith("Models there that can: big")


def test_a_lack_that_may_pass_is_none_of_features(make_offer: Make) -> None:
    plain, paused = make_offer(1, model_offer()), make_offer(2, model_offer(slots=0, features=(1,)))
    for offers in ([plain, paused], [paused], [], [make_offer(3, model_offer(features=(1,)))]):
        assert not lacks_features(rank(CHAT, Requirements(features=(1,)), offers, Knowledge(LOCAL), NOW))
    assert lacks_features(rank(CHAT, Requirements(features=(1,)), [plain], Knowledge(LOCAL), NOW))
