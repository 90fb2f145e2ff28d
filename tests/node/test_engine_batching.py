"""Many answers at once: they join, wait, fail and leave without touching each other."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engines.packed_network import PackedNetwork
from node.engines.port import EngineError, EngineEvent, Finished, Piece
from node.engines.prefix_cache import PART_TOKENS
from node.engines.requests import chat_request
from node.engines.shelves import KEPT_BYTES
from node.engines.tiny import CONTEXT_TOKENS, make_tiny_model
from node.engines.torch_chat import FEWEST_PROMPT_TOKENS, PROMPT_TOKENS, PROMPT_TOKENS_BESIDE, ChatBatch, ChatModel
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest

PLENTY = 10**6
Events = dict[int, list[EngineEvent | EngineError]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> ChatModel:
    """In fp32, where rounding is too small to change a word, however many answers are computed together."""
    return ChatModel(folder, "cpu", 1, "fp32")


@pytest.fixture
def unused(folder: Path) -> ChatModel:
    """In the arithmetic of the models that come with the node, and without anybody else's memories."""
    return ChatModel(folder, "cpu", 1, "packed")


def run(batch: ChatBatch, events: Events | None = None) -> Events:
    """Until nothing can be done; events by query."""
    gathered: Events = {} if events is None else events
    while batch.runnable:
        for key, event in batch.step():
            gathered.setdefault(key, []).append(event)
    return gathered


def text(events: list[EngineEvent | EngineError]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def ask(batch: ChatBatch, requests: Mapping[int, ChatRequest], grant: int = PLENTY) -> None:
    for key, request in requests.items():
        batch.begin(key, request, "")
        batch.grant(key, grant)


def alone(model: ChatModel, request: ChatRequest) -> str:
    batch = ChatBatch(model, 1, prefix_cache_bytes=0)
    ask(batch, {0: request})
    return text(run(batch)[0])


def mixed(count: int) -> dict[int, ChatRequest]:
    """Greedy and drawn answers of several lengths."""
    words = ("one", "two " * 20, "three " * 50, "four")
    return {
        key: chat_request(
            words[key % 4] + str(key),
            max_tokens=10 + 3 * key,
            temperature=700 * (key % 2),
            repetition_penalty=1_000 + 100 * (key % 3),
            top_p=900,
            seed=key + 1,
        )
        for key in range(count)
    }


def held(model: ChatModel) -> int:
    """Memories of answers."""
    assert isinstance(model.network, PackedNetwork)
    return model.network.memories


# --- together ---------------------------------------------------------------------------------------------


def test_answers_together_are_those_of_each_alone(tiny: ChatModel) -> None:
    requests = mixed(12)
    batch = ChatBatch(tiny, 8)
    ask(batch, requests)
    events = run(batch)
    assert {key: text(events[key]) for key in requests} == {key: alone(tiny, each) for key, each in requests.items()}
    assert all(isinstance(events[key][-1], Finished) for key in requests)


def test_a_step_gives_one_token_to_each(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 4)
    ask(batch, {key: chat_request("hi", max_tokens=50) for key in range(4)}, grant=0)
    run(batch)
    for key in range(4):
        batch.grant(key, 50)
    for count in range(1, 4):
        events = batch.step()
        assert [(key, event.units_out) for key, event in events if isinstance(event, Piece)] == [
            (key, count) for key in range(4)
        ]


def test_a_query_joins_while_others_run(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 4)
    ask(batch, {0: chat_request("first", max_tokens=40)})
    early: Events = {}
    for _ in range(6):
        for key, event in batch.step():
            early.setdefault(key, []).append(event)
    ask(batch, {1: chat_request("second", max_tokens=10)})
    events = run(batch, early)
    assert text(events[0]) == alone(tiny, chat_request("first", max_tokens=40))
    assert text(events[1]) == alone(tiny, chat_request("second", max_tokens=10))


def test_a_long_prompt_is_read_between_the_tokens_of_others(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 2)
    ask(batch, {0: chat_request("hi", max_tokens=100)}, grant=100)
    while not any(isinstance(event, Piece) for _, event in batch.step()):
        pass
    prompt = batch.begin(1, chat_request("x" * 400, max_tokens=5), "").units_in
    batch.grant(1, 5)
    steps: list[set[int]] = []
    while not any(1 in step for step in steps):
        steps.append({key for key, event in batch.step() if isinstance(event, Piece)})
    parts = -(-prompt // PROMPT_TOKENS_BESIDE)
    assert len(steps) >= 2 * parts - 1
    assert sum(0 in step for step in steps) >= parts - 1


def test_the_oldest_have_the_slots(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 2)
    ask(batch, {key: chat_request("hi", max_tokens=5) for key in range(5)})
    order = [key for _ in range(100) for key, event in batch.step() if isinstance(event, Finished)]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order.index(4) > order.index(1) and order.index(3) > order.index(0)


# --- grants and cancels -----------------------------------------------------------------------------------


def test_who_waits_for_a_grant_keeps_its_place_and_its_words(tiny: ChatModel) -> None:
    requests = mixed(6)
    batch = ChatBatch(tiny, 8)
    ask(batch, requests, grant=1)
    drawn, events = random.Random(3), run(batch)
    granted = dict.fromkeys(requests, 1)
    while any(not isinstance(events[key][-1], Finished) for key in requests):
        key = drawn.choice(list(requests))
        granted[key] += drawn.randint(1, 5)
        batch.grant(key, granted[key])
        run(batch, events)
        for key in requests:
            assert max((e.units_out for e in events[key] if isinstance(e, Piece)), default=0) <= granted[key]
    assert {key: text(events[key]) for key in requests} == {key: alone(tiny, each) for key, each in requests.items()}


def test_a_cancel_is_heard_at_the_next_step_and_disturbs_nobody(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 4)
    request = chat_request("stay", max_tokens=30)
    ask(batch, {0: request, 1: chat_request("go", max_tokens=400), 2: chat_request("y" * 300)})
    early: Events = {}
    for _ in range(8):
        for key, event in batch.step():
            early.setdefault(key, []).append(event)
    batch.cancel(1)
    batch.cancel(2)
    batch.cancel(7)
    ended = {key: event for key, event in batch.step() if isinstance(event, Finished)}
    assert {key: event.finish for key, event in ended.items()} == {1: "cancelled", 2: "cancelled"}
    assert text(run(batch, early)[0])[-20:] == alone(tiny, request)[-20:]


def test_a_hundred_random_cancels_leak_nothing(unused: ChatModel) -> None:
    batch, drawn, ended = ChatBatch(unused, 6), random.Random(9), list[int]()
    most = 0
    for key in range(100):
        batch.begin(key, chat_request("z" * drawn.randint(1, 300), max_tokens=60), "")
        batch.grant(key, drawn.randint(0, 60))
        for _ in range(drawn.randint(0, 6)):
            ended += [each for each, event in batch.step() if isinstance(event, Finished)]
        batch.cancel(drawn.randint(0, key))
        most = max(most, held(unused))
    for key in range(100):
        batch.cancel(key)
    ended += [key for key, found in run(batch).items() if isinstance(found[-1], Finished)]
    assert sorted(ended) == list(range(100))
    assert most > 0 == held(unused) and not batch._sequences


def test_a_thousand_short_queries_leave_no_more_than_the_prefix_cache_may_hold(unused: ChatModel) -> None:
    part = unused.network.token_bytes * PART_TOKENS
    batch = ChatBatch(unused, 16, prefix_cache_bytes=20 * part)
    for start in range(0, 1_000, 50):
        ask(batch, {key: chat_request(f"query {key}", max_tokens=1) for key in range(start, start + 50)})
        run(batch)
    assert held(unused) == 0 and not batch._sequences
    assert isinstance(unused.network, PackedNetwork) and unused.network.bytes_held <= 2 * KEPT_BYTES
    assert len(batch._prefixes) == 20


# --- failures ---------------------------------------------------------------------------------------------


class Faulty:
    """A network that fails for one token."""

    def __init__(self, network: Any, token: int) -> None:
        self._network, self._token = network, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def write(self, tokens: list[int], memories: list[Any]) -> torch.Tensor:
        if self._token in tokens:
            raise ValueError("no such token")
        result: torch.Tensor = self._network.write(tokens, memories)
        return result


def test_a_failing_answer_costs_no_other(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = {key: chat_request(word, max_tokens=20) for key, word in enumerate(("good", "also", "fine", "well"))}
    answers = {key: alone(tiny, request) for key, request in requests.items()}
    unique = next(
        (key, letter)
        for key, answer in answers.items()
        for letter in answer[:-1]
        if not any(letter in other for index, other in answers.items() if index != key)
    )
    failing, letter = unique
    token = tiny.tokenizer.convert_tokens_to_ids(letter)
    monkeypatch.setattr(tiny, "network", Faulty(tiny.network, token))
    batch = ChatBatch(tiny, 4)
    ask(batch, requests)
    events = run(batch)
    error = events[failing][-1]
    assert isinstance(error, EngineError) and error.code is ErrorCode.ENGINE_FAILED
    for key in requests.keys() - {failing}:
        assert text(events[key]) == answers[key]
    assert not batch._sequences


def test_a_query_that_cannot_begin_leaves_nothing(tiny: ChatModel) -> None:
    batch = ChatBatch(tiny, 4)
    with pytest.raises(EngineError):
        batch.begin(0, chat_request("x" * CONTEXT_TOKENS), "")
    assert not batch.runnable and not batch._sequences


# --- what is kept of conversations ------------------------------------------------------------------------


def conversation(turns: int, closing: str) -> ChatRequest:
    texts = [word for turn in range(turns) for word in (f"question {turn} about things", f"answer {turn}")]
    return chat_request(*texts, closing, system="You are helpful and brief, and never shout.", max_tokens=12)


def test_answers_are_the_same_with_and_without_what_is_kept(tiny: ChatModel) -> None:
    requests = [conversation(turns, closing) for closing in ("so", "what now") for turns in (0, 1, 3, 2)]
    batch = ChatBatch(tiny, 4)
    for key, request in enumerate(requests):
        ask(batch, {key: request})
        assert text(run(batch)[key]) == alone(tiny, request)


def test_a_known_beginning_is_not_read_again(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = tiny.read

    def noting(ids: list[int], memory: Any) -> torch.Tensor:
        read.append(len(ids))
        return original(ids, memory)

    monkeypatch.setattr(tiny, "read", noting)
    for cache_bytes, rest in ((2**28, True), (0, False)):
        batch = ChatBatch(tiny, 4, cache_bytes)
        read.clear()
        for key in range(2):
            ask(batch, {key: conversation(1, "same system prompt, other question " + str(key))})
            run(batch)
        assert (sum(read[1:]) < read[0] / 3) == rest


def test_a_continued_answer_finds_its_own_tokens(tiny: ChatModel) -> None:
    request = conversation(1, "go on")
    batch = ChatBatch(tiny, 4)
    ask(batch, {0: request})
    first = text(run(batch)[0])
    batch.begin(1, request, first)
    batch.grant(1, 12)
    whole = alone(tiny, dataclasses.replace(request, max_tokens=24))
    assert first + text(run(batch)[1]) == whole


def test_parts_of_a_prompt_are_short_where_the_machine_is_slow(
    tiny: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of which each token of a prompt takes a tenth of a second."""
    now = [0.0]
    parts: list[int] = []
    read = tiny.network.read

    def slowly(ids: list[int], memory: Any) -> torch.Tensor:
        parts.append(len(ids))
        now[0] += 0.1 * len(ids)
        return read(ids, memory)

    monkeypatch.setattr(tiny.network, "read", slowly)
    monkeypatch.setattr("node.engines.torch_chat.time.perf_counter", lambda: now[0])
    batch = ChatBatch(tiny, 1, 0)
    batch.begin(1, chat_request("a " * 200, max_tokens=1), "")
    while batch.runnable:
        batch.step()
    assert parts[0] == PROMPT_TOKENS and set(parts[1:-1]) == {FEWEST_PROMPT_TOKENS} and len(parts) > 8
