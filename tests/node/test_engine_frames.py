"""What an engine's process may say: an event within the limits, or `Malformed` and nothing else."""

from __future__ import annotations

from typing import Any, cast

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.config import RealmSection
from node.engines.child import MOST_REASON, _reason
from node.engines.frames import READERS, read_broken, read_frame, read_loaded
from node.engines.process import EngineStartError, ModelFolder, ProcessEngine, _Child
from node.scheduler import Scheduler
from node.services import ModelService
from protocol.codec import encode
from protocol.errors import Malformed
from protocol.ids import NodeId
from protocol.messages import Offer
from protocol.params import MAX_CHUNK_BYTES, MAX_INTEGER

Frame = tuple[Any, ...]

DEVICE = ["cuda", "a card", 24_576, 89, 0, "570.1"]
WHOLE: tuple[Frame, ...] = (
    ("loaded", 512, DEVICE, 900, [32], [1, 3]),
    ("broken", "no such file"),
    ("alive",),
    ("prompted", 1, 5),
    ("piece", 1, "text", 2, [[b"te", 5, [[b"te", 5], [b"x", 9]]], [b"xt", 0, []]]),
    ("call", 1, "clock", "{}", 3),
    ("data", 1, "image/png", b"bytes", 1),
    ("step", 1, 3, 20, b""),
    ("finished", 1, "stop", 5, 2),
    ("failed", 1, 1, "why"),
)
NAMES = tuple(str(frame[0]) for frame in WHOLE)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@st.composite
def nearly(draw: st.DrawFn) -> Frame:
    """A good frame with one value in it, or in a list of it, that is something else."""
    name, *fields = draw(st.sampled_from([frame for frame in WHOLE if len(frame) > 1]))
    index = draw(st.integers(0, len(fields) - 1))
    if isinstance(fields[index], list) and draw(st.booleans()):
        inner = [*fields[index]]
        inner[draw(st.integers(0, len(inner) - 1))] = draw(values)
        fields[index] = inner
    else:
        fields[index] = draw(values)
    return (name, *fields)


frames = st.builds(lambda name, rest: (name, *rest), st.sampled_from(NAMES), st.lists(values, max_size=7)) | nearly()


def engine() -> ProcessEngine:
    return ProcessEngine(ModelFolder("tiny", cast(Any, None), bytes(32)))


def take(engine: ProcessEngine, child: _Child, frame: Frame) -> None:
    engine._take(child, *read_frame(msgpack.packb(frame)), trio.TASK_STATUS_IGNORED)


def test_every_frame_has_a_reader_here() -> None:
    assert {"loaded", "broken", "alive", *READERS} == set(NAMES)
    for frame in WHOLE[2:]:
        take(engine(), _Child(cast(Any, None), loaded=True), frame)


@given(frames, st.booleans())
def test_whatever_comes_is_taken_or_malformed(frame: Frame, loaded: bool) -> None:
    told, child = engine(), _Child(cast(Any, None), loaded=loaded)
    try:
        take(told, child, frame)
    except Malformed:
        return
    except EngineStartError:
        assert frame[0] == "broken" and not loaded
        return
    if frame[0] == "loaded":
        encode(offer(told))


def test_the_largest_that_is_taken_fits_into_an_offer() -> None:
    told = engine()
    device = ["x" * 16, "x" * 128, MAX_INTEGER, 1_000, MAX_INTEGER, "x" * 32]
    take(told, _Child(cast(Any, None)), ("loaded", 16_000_000, device, MAX_INTEGER, [32] * 8, [1, 2, 3, 4]))
    encode(offer(told))


def offer(engine: ProcessEngine) -> Offer:
    """What others are told of it."""
    section = RealmSection.model_validate({"realm": "$CHAT", "model": "tiny"})
    model = ModelService(section, engine, Scheduler(1, 1)).offer(free=False)
    return Offer(NodeId(bytes(32)), 1, 1, 2, (), (model,), ())


LOADED = [512, DEVICE, 900, [32], [3, 1]]


def test_what_a_process_says_of_itself_is_read_as_it_is() -> None:
    said = read_loaded(LOADED)
    assert (said.context_tokens, said.device.kind, said.memory_mib, said.requests) == (512, "cuda", 900, (32,))
    assert said.features == (1, 3)
    assert read_broken(["no such file"]) == "no such file"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        (0, -1),
        (0, True),
        (0, 16_000_001),
        (1, None),
        (1, ["cuda", "a card", 24_576, 89]),
        (1, ["", *DEVICE[1:]]),
        (1, ["x" * 17, *DEVICE[1:]]),
        (1, ["cuda", "x" * 129, *DEVICE[2:]]),
        (1, ["cuda", "a card", -1, *DEVICE[3:]]),
        (1, ["cuda", "a card", 1, 1_001, 0, ""]),
        (1, [*DEVICE[:4], 0.5, ""]),
        (1, [*DEVICE[:5], "x" * 33]),
        (2, MAX_INTEGER + 1),
        (3, []),
        (3, [32] * 9),
        (3, [1]),
        (3, [[32]]),
        (3, {"32": 1}),
    ],
)
def test_every_field_of_a_loaded_frame_has_its_bounds(field: int, wrong: Any) -> None:
    fields = [*LOADED]
    fields[field] = wrong
    with pytest.raises(Malformed):
        read_loaded(fields)


@pytest.mark.parametrize("features", [None, "1", [0], [5], [True], [b"1"]])
def test_features_are_known_ones(features: Any) -> None:
    with pytest.raises(Malformed):
        read_loaded([*LOADED[:4], features])


@pytest.mark.parametrize("fields", [[], [7], ["a", "b"], [None], ["x" * (MAX_CHUNK_BYTES + 1)]])
def test_a_broken_frame_says_why_in_one_text(fields: list[Any]) -> None:
    with pytest.raises(Malformed):
        read_broken(fields)


@pytest.mark.parametrize("error", [ValueError("x" * 10**6), OSError("no \udcff"), ValueError("\U0001f600" * 10**5)])
def test_a_childs_own_reason_always_fits(error: Exception) -> None:
    name, fields = read_frame(msgpack.packb(("broken", _reason(error))))
    assert name == "broken" and 0 < len(read_broken(fields)) <= MOST_REASON
