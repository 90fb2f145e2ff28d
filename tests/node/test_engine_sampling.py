"""The next token: penalties, temperature, top-k, top-p and seeds."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from node.engines.requests import chat_request
from node.engines.sampling import Sampler, SamplingParameters
from protocol.messages import ChatRequest

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
SIZE = len(LOGITS)


def sampler(request: ChatRequest, prompt: list[int] | None = None, answered: list[int] | None = None) -> Sampler:
    return Sampler(SamplingParameters.of(request), SIZE, prompt or [], answered or [])


def draw(request: ChatRequest, times: int = 4_000) -> Counter[int]:
    """How often each token is the first of an answer."""
    return Counter(sampler(dataclasses.replace(request, seed=seed + 1)).choose(LOGITS) for seed in range(times))


def test_temperature_zero_takes_the_best() -> None:
    assert sampler(chat_request("x")).choose(LOGITS) == 0


def test_frequencies_are_those_of_the_softmax() -> None:
    counts = draw(chat_request("x", temperature=1_000))
    expected = torch.softmax(LOGITS, 0)
    for token in range(SIZE):
        assert counts[token] / 4_000 == pytest.approx(float(expected[token]), abs=0.03)


def test_a_high_temperature_flattens() -> None:
    cool, warm = draw(chat_request("x", temperature=500)), draw(chat_request("x", temperature=2_000))
    assert cool[0] > warm[0] and cool[5] < warm[5]


def test_top_k_keeps_k() -> None:
    assert set(draw(chat_request("x", temperature=2_000, top_k=2))) == {0, 1}


def test_top_p_keeps_the_fewest_that_hold_the_share() -> None:
    first, second, *_ = torch.softmax(LOGITS, 0).tolist()
    just_over_one = int(1_000 * first) + 1
    assert set(draw(chat_request("x", temperature=1_000, top_p=just_over_one))) == {0, 1}
    assert set(draw(chat_request("x", temperature=1_000, top_p=int(1_000 * (first + second)) - 1))) == {0, 1}
    assert set(draw(chat_request("x", temperature=1_000, top_p=1))) == {0}
    assert set(draw(chat_request("x", temperature=1_000, top_p=0))) == {0}


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    first, second, *_ = torch.softmax(LOGITS, 0).tolist()
    share = int(1_000 * first / (first + second))
    assert set(draw(chat_request("x", temperature=1_000, top_k=2, top_p=share - 5))) == {0}
    assert set(draw(chat_request("x", temperature=1_000, top_k=2, top_p=share + 5))) == {0, 1}


def test_top_p_over_a_large_flat_vocabulary_needs_more_than_the_few_best() -> None:
    flat = torch.zeros(5_000)
    seen = {
        Sampler(
            SamplingParameters.of(chat_request("x", temperature=1_000, top_p=900, seed=seed)), 5_000, [], []
        ).choose(flat)
        for seed in range(1, 1_001)
    }
    assert len(seen) > 800


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    request = chat_request("x", repetition_penalty=3_000)
    assert sampler(request, prompt=[0]).choose(LOGITS) == 1
    assert sampler(request, answered=[0]).choose(LOGITS) == 1
    chosen = sampler(request)
    assert [chosen.choose(LOGITS) for _ in range(2)] == [0, 1]


def test_a_repetition_penalty_pushes_negative_scores_down() -> None:
    logits = torch.tensor([-1.0, -1.5, -9.0, -9.0, -9.0, -9.0])
    assert sampler(chat_request("x", repetition_penalty=2_000), prompt=[0]).choose(logits) == 1


def test_frequency_counts_every_use_of_the_answer_and_presence_only_the_first() -> None:
    often = chat_request("x", frequency_penalty=2_000 + 400)
    once = chat_request("x", presence_penalty=2_000 + 400)
    assert sampler(often, answered=[0, 0, 0]).choose(LOGITS) == 1
    assert sampler(once, answered=[0, 0, 0]).choose(LOGITS) == 0
    assert sampler(often, prompt=[0, 0, 0]).choose(LOGITS) == 0


def answer(request: ChatRequest, length: int, answered: list[int] | None = None) -> list[int]:
    chosen = sampler(request, answered=answered)
    return [chosen.choose(LOGITS) for _ in range(length)]


def test_a_seed_repeats_and_another_differs() -> None:
    first = chat_request("x", temperature=1_000, seed=11)
    assert answer(first, 40) == answer(first, 40)
    assert answer(first, 40) != answer(chat_request("x", temperature=1_000, seed=12), 40)


def test_no_seed_is_a_new_one_each_time() -> None:
    request = chat_request("x", temperature=1_000)
    assert answer(request, 60) != answer(request, 60)


def test_a_continuation_draws_what_the_whole_answer_would_have() -> None:
    request = chat_request("x", temperature=1_000, frequency_penalty=2_300, seed=5)
    whole = answer(request, 30)
    assert answer(request, 18, answered=whole[:12]) == whole[12:]
