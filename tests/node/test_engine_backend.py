"""How simple models take turns in their process: steps, grants, cancels, and whose failure costs whom."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch

from node.engines.backend import BACKENDS, Loaded, Turns, load_batch
from node.engines.port import Data, EngineError, EngineEvent, Finished, Piece, Prompted, Step
from protocol.errors import ErrorCode
from protocol.messages import Device, ImagineRequest, SpeakRequest

PICTURE = ImagineRequest("a cat", "", 0, 0, 0, 0, 0, 0)
SPOKEN = SpeakRequest("hello", "", 1_000)


class Scripted:
    """An `Answerer` that does what a request's prompt says."""

    def __init__(self, device: str = "cpu") -> None:
        self.facts = Loaded(0, Device(device, "fake", 0, 0), 1, (ImagineRequest,))
        self.closed = 0
        self.stepped = 0

    def answer(self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        try:
            yield Prompted(0)
            for number in range(1, 4):
                self.stepped += 1
                yield None
                yield Step(number, 3)
                if request.prompt == "crash":
                    raise ValueError("a secret of the asker's")
                if request.prompt == "memory":
                    raise MemoryError
                if request.prompt == "tensor":
                    torch.empty(2**60, dtype=torch.uint8)
                if request.prompt == "refuse":
                    raise EngineError(ErrorCode.INVALID_REQUEST, "no cats")
                yield Data("image/png", b"x", number)
            if request.prompt != "mute":
                yield Finished("stop", 0, 3)
        finally:
            self.closed += 1


def picture(prompt: str = "a cat") -> ImagineRequest:
    return ImagineRequest(prompt, "", 0, 0, 0, 0, 0, 0)


def run(turns: Turns) -> dict[int, list[object]]:
    """Everything that happens until nobody can run."""
    seen: dict[int, list[object]] = {}
    while turns.runnable:
        for key, event in turns.step():
            seen.setdefault(key, []).append(event)
    return seen


def test_answers_take_turns_and_the_oldest_have_the_slots() -> None:
    turns = Turns(Scripted(), slots=2)
    for key in (1, 2, 3):
        turns.begin(key, picture(), "", [])
        turns.grant(key, 100)
    first = [key for _ in range(3) for key, _ in turns.step()]
    assert first == [1, 2, 1, 2]  # a step without an event between
    seen = run(turns)
    assert all(events[-1] == Finished("stop", 0, 3) for events in seen.values()) and len(seen) == 3


def test_nothing_is_made_beyond_the_grant() -> None:
    answerer = Scripted()
    turns = Turns(answerer, slots=2)
    turns.begin(1, picture(), "", [])
    seen = run(turns)
    assert seen == {1: [Prompted(0)]} and answerer.stepped == 0
    turns.grant(1, 1)
    turns.grant(1, 0)  # a lower one changes nothing
    assert run(turns)[1][-1] == Data("image/png", b"x", 1)
    turns.grant(1, 3 + 1)
    assert run(turns)[1][-1] == Finished("stop", 0, 3)
    assert answerer.closed == 1


def test_an_answer_that_is_as_long_as_its_grant_says_its_last_word() -> None:
    turns = Turns(Scripted(), slots=1)
    turns.begin(1, picture(), "", [])
    turns.grant(1, 3)
    assert run(turns)[1][-2:] == [Data("image/png", b"x", 3), Finished("stop", 0, 3)]


def test_what_was_made_ahead_of_the_grant_waits_for_it() -> None:
    class Hasty(Scripted):
        def answer(self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
            yield Prompted(0)
            for number in range(1, 4):
                self.stepped += 1
                yield Data("image/png", b"x", number)
            yield Finished("stop", 0, 3)

    answerer = Hasty()
    turns = Turns(answerer, slots=1)
    turns.begin(1, picture(), "", [])
    turns.grant(1, 1)
    assert run(turns)[1][-1] == Data("image/png", b"x", 1) and answerer.stepped == 2
    assert not turns.runnable
    turns.grant(1, 2)
    assert run(turns) == {1: [Data("image/png", b"x", 2)]} and answerer.stepped == 3
    turns.grant(1, 3)
    assert run(turns) == {1: [Data("image/png", b"x", 3), Finished("stop", 0, 3)]}


def test_a_cancelled_answer_ends_at_once_and_is_closed() -> None:
    answerer = Scripted()
    turns = Turns(answerer, slots=1)
    for key in (1, 2):
        turns.begin(key, picture(), "", [])
        turns.grant(key, 100)
    turns.step()
    turns.cancel(2)  # behind the slots
    turns.cancel(1)
    turns.cancel(9)
    turns.grant(9, 1)
    assert run(turns) == {1: [Finished("cancelled", 0, 0)], 2: [Finished("cancelled", 0, 0)]}
    assert answerer.closed == 1  # the other one never began


def test_one_failure_costs_one_query_and_names_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    turns = Turns(Scripted(), slots=4)
    for key, prompt in enumerate(("crash", "refuse", "mute", "a cat")):
        turns.begin(key, picture(prompt), "", [])
        turns.grant(key, 100)
    seen = run(turns)
    crashed, refused, mute = (seen[key][-1] for key in range(3))
    assert isinstance(crashed, EngineError) and crashed.code is ErrorCode.ENGINE_FAILED
    assert isinstance(refused, EngineError) and refused.message == "no cats"
    assert isinstance(mute, EngineError) and "last word" in mute.message
    assert seen[3][-1] == Finished("stop", 0, 3)
    told = capsys.readouterr().err
    assert "ValueError at " in told and "secret" not in told + crashed.message


@pytest.mark.parametrize(("prompt", "device"), [("memory", "cpu"), ("tensor", "cpu"), ("crash", "cuda")])
def test_short_memory_and_a_card_in_any_state_end_the_process(prompt: str, device: str) -> None:
    turns = Turns(Scripted(device), slots=1)
    turns.begin(1, picture(prompt), "", [])
    turns.grant(1, 100)
    with pytest.raises((MemoryError, RuntimeError, ValueError)):
        run(turns)


def test_another_kind_of_request_is_refused() -> None:
    turns = Turns(Scripted(), slots=1)
    with pytest.raises(EngineError, match="no SpeakRequest"):
        turns.begin(1, SPOKEN, "", [])  # type: ignore[arg-type]
    assert not turns.runnable


def test_a_piece_counts_like_data() -> None:
    class Writer(Scripted):
        def answer(self, request: ImagineRequest, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
            yield Prompted(5)
            yield Piece("a", 1)
            yield Piece("b", 2)
            yield Finished("stop", 5, 2)

    turns = Turns(Writer(), slots=1)
    turns.begin(1, picture(), "", [])
    turns.grant(1, 1)
    assert run(turns) == {1: [Prompted(5), Piece("a", 1)]}  # the rest waits for the grant
    turns.cancel(1)
    assert run(turns) == {1: [Finished("cancelled", 5, 1)]}


@pytest.mark.parametrize("engine", sorted(BACKENDS))
def test_every_engine_has_a_class_and_refuses_an_empty_folder(engine: str, tmp_path: Path) -> None:
    module, _, name = BACKENDS[engine].partition(":")
    assert callable(getattr(import_module(module), name))
    with pytest.raises(Exception):  # noqa: B017  # each library has its own
        load_batch(engine, tmp_path, "cpu", 1, 1, {})
