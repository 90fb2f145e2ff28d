"""Recorded steps: what is played is what would be computed, whatever joined, left, grew or was given back meanwhile.

There is no card here. The stand-in records a step as the operations that it made, with every number that Python put in
frozen, as a CUDA graph has it; a step that needs to look at a value in between cannot be recorded by either.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from node.engines import recorded_steps
from node.engines.network_choice import record as recorded_if_right
from node.engines.packed_network import PackedNetwork
from node.engines.plain_network import PlainNetwork
from node.engines.recorded_steps import SEEN_BEFORE, Played, Recorder, Step, Tensors
from tests.node.test_engine_networks import likeness, llama, logits, random_ids

OFTEN = SEEN_BEFORE + 3


class Tracing:
    """Records the operations of a step."""

    def __init__(self) -> None:
        self.steps = 0
        self.played = 0

    def __call__(self, step: Step, inputs: Tensors) -> Played:
        self.steps += 1
        traced: Any = make_fx(step)(*inputs)

        def played(inputs: Tensors) -> torch.Tensor:
            self.played += 1
            result: torch.Tensor = traced(*inputs)
            return result

        return played


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


def test_a_recorded_step_gives_what_the_step_gives(tracing: Tracing) -> None:
    """Answers of random lengths on several shelves; each step with some of them, some leave and others come."""
    drawn, model = random.Random(3), llama(num_hidden_layers=1)
    recorded, plain = pair = PackedNetwork(model, "fp32"), PackedNetwork(model, "fp32")
    recorded.record(Recorder(tracing))
    told: dict[int, tuple[Any, Any]] = {}
    for step in range(80):
        if step % 40 == 0:  # a few leave, a few come: storage grows and is used by others
            for key in drawn.sample(sorted(told), len(told) // 2):
                for network, memory in zip(pair, told.pop(key), strict=True):
                    network.free(memory)
            for _ in range(drawn.randint(2, 4)):
                ids = random_ids(drawn.choice([3, 60, 250, 300]), step)
                memories = recorded.new_memory(), plain.new_memory()
                for network, memory in zip(pair, memories, strict=True):
                    network.read(ids, memory)
                told[len(told) + 100 * step] = memories
        chosen = sorted(told) if step % 5 else drawn.sample(sorted(told), drawn.randint(1, len(told)))
        tokens = [drawn.randrange(320) for _ in chosen]
        rows = [
            network.write(tokens, [told[key][place] for key in chosen]).float() for place, network in enumerate(pair)
        ]
        for one, other in zip(*rows, strict=True):
            assert likeness(one, other) > 0.999_99
    assert tracing.played > 20 and tracing.steps >= 2


def test_a_result_is_the_callers_to_keep(tracing: Tracing) -> None:
    """Not necessarily for the stand-in, but nothing here may rely on the opposite."""
    network = PackedNetwork(llama(), "fp32")
    network.record(Recorder(tracing))
    memory = network.new_memory()
    network.read([1, 2, 3], memory)
    ids = [1, 2, 3]
    for token in random_ids(OFTEN, 1):
        last = network.write([token], [memory])[0]
        ids.append(token)
    assert tracing.played == 3
    assert likeness(last, logits(PackedNetwork(llama(), "fp32"), ids, [len(ids)])) > 0.999_99


# --- the recorder itself ---------------------------------------------------------------------------------


def doubled(counted: list[int]) -> Step:
    def step(values: torch.Tensor) -> torch.Tensor:
        counted.append(1)
        return values * 2

    return step


def test_what_comes_seldom_is_not_recorded(tracing: Tracing) -> None:
    recorder, storage = Recorder(tracing), [torch.zeros(2)]
    for _ in range(SEEN_BEFORE):
        assert recorder.play("rare", doubled([]), [torch.ones(1)], storage) is None
    assert tracing.steps == 0
    result = recorder.play("rare", doubled([]), [torch.full((1,), 4.0)], storage)
    assert result is not None and result.item() == 8.0 and tracing.steps == 1


def record(recorder: Recorder, kind: str, storage: list[torch.Tensor]) -> None:
    for _ in range(SEEN_BEFORE + 1):
        recorder.play(kind, doubled([]), [torch.ones(1)], storage)


def test_a_recording_is_not_played_on_other_storage_and_does_not_keep_the_old(tracing: Tracing) -> None:
    recorder, storage = Recorder(tracing), [torch.zeros(2)]
    record(recorder, "kind", storage)
    assert recorder.recordings == 1
    storage[0] = torch.zeros(2)  # the only other hold on the first one would be the recording's
    assert recorder.play("kind", doubled([]), [torch.ones(1)], storage) is None
    assert recorder.recordings == 0
    record(recorder, "kind", storage)
    assert recorder.recordings == 1 and tracing.steps == 2


def test_recordings_are_bounded_and_the_longest_unused_goes(tracing: Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_steps, "MOST_RECORDINGS", 2)
    recorder, storage = Recorder(tracing), [torch.zeros(2)]
    for kind in ("first", "second", "first", "third"):
        record(recorder, kind, storage)
    assert recorder.recordings == 2
    assert recorder.play("first", doubled([]), [torch.ones(1)], storage) is not None
    assert recorder.play("second", doubled([]), [torch.ones(1)], storage) is None


def test_kinds_that_never_come_again_are_forgotten(tracing: Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_steps, "MOST_COUNTED", 3)
    recorder = Recorder(tracing)
    for kind in range(100):
        recorder.play(kind, doubled([]), [torch.ones(1)], [])
    assert len(recorder._seen) == 3


def test_where_recording_fails_steps_are_computed_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    def cannot(step: Step, inputs: Tensors) -> Played:
        raise RuntimeError("operation not permitted when stream is capturing")

    network, plain = PackedNetwork(llama(), "fp32"), PackedNetwork(llama(), "fp32")
    recorder = Recorder(cannot)
    network.record(recorder)
    memories = network.new_memory(), plain.new_memory()
    for one, memory in zip((network, plain), memories, strict=True):
        one.read([1, 2], memory)
    for token in range(OFTEN):
        rows = [one.write([token], [memory])[0] for one, memory in zip((network, plain), memories, strict=True)]
        assert torch.equal(*rows)
    assert recorder.failed and capsys.readouterr().err == "steps are not recorded: RuntimeError\n"


def test_a_step_that_looks_at_a_value_cannot_be_recorded(tracing: Tracing) -> None:
    """The stand-in finds what a card would refuse."""

    def step(values: torch.Tensor) -> torch.Tensor:
        return values[: int(values.sum().item())]

    with pytest.raises(Exception, match=r"data-dependent|item"):
        tracing(step, [torch.ones(3)])


# --- at the start of a model on a card -------------------------------------------------------------------


def test_what_is_recorded_right_is_kept(tracing: Tracing, capsys: pytest.CaptureFixture[str]) -> None:
    model = llama(num_hidden_layers=1)
    network = PackedNetwork(model, "bf16")
    recorded_if_right(network, PlainNetwork(model), lambda: tracing)
    assert network._recorder is not None and tracing.steps == 2 and tracing.played >= 4
    assert not capsys.readouterr().err and network.memories == 0


def test_what_is_played_wrong_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    def frozen(step: Step, inputs: Tensors) -> Played:
        """Plays the result of its first inputs, as a recording does in which a number of Python's was frozen."""
        result = step(*inputs)
        return lambda inputs: result

    model = llama(num_hidden_layers=1)
    network = PackedNetwork(model, "bf16")
    recorded_if_right(network, PlainNetwork(model), lambda: frozen)
    assert network._recorder is None
    assert capsys.readouterr().err == "steps are not recorded: played they would differ\n"


def test_a_machine_that_cannot_record_goes_on_without(capsys: pytest.CaptureFixture[str]) -> None:
    model = llama(num_hidden_layers=1)
    network = PackedNetwork(model, "bf16")
    recorded_if_right(network, PlainNetwork(model), torch.cuda.graph_pool_handle)  # type: ignore[arg-type]
    assert network._recorder is None and "steps are not recorded: " in capsys.readouterr().err
