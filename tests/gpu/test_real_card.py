"""On a machine with an NVIDIA card: what NVML says of a process that takes memory, and a model that leaves no byte."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from node.cards import Card, CardProcess
from node.engines.network_choice import record
from node.engines.packed_network import PackedNetwork
from node.engines.plain_network import PlainNetwork
from node.engines.process import ModelFolder, ProcessEngine, Seat
from node.engines.recorded_steps import CardRecorder
from node.engines.tiny import make_tiny_model
from node.guard.on_card import CardLimits, CardSense
from node.guard.sense import Says
from node.nvml_cards import NvmlCards
from tests.node.test_engine_networks import llama

CARDS = NvmlCards()
pytestmark = pytest.mark.skipif(not CARDS.cards(), reason="needs a CUDA card")

TAKEN_MIB = 1_024
ASIDE_SECONDS = 3.0
USER = (
    "import sys, torch\n"
    f"memory = torch.empty({TAKEN_MIB} << 20, dtype=torch.uint8, device='cuda')\n"
    "print('ready', flush=True)\nsys.stdin.read()\n"
)


@pytest.fixture
def card() -> Card:
    """The first one."""
    return CARDS.cards()[0]


@pytest.fixture
def user() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's program on the card."""
    with subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for what should come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def of(process: subprocess.Popen[bytes], card: Card) -> CardProcess | None:
    """What the driver says of a process; None if it does not name it (a container has ids of its own)."""
    return next((one for one in CARDS.processes(card) or () if one.pid == process.pid), None)


def test_the_facts_of_a_card(card: Card) -> None:
    import torch

    facts = torch.cuda.get_device_properties(0)
    assert card.compute_capability == facts.major * 10 + facts.minor
    assert abs(card.vram_mib - facts.total_memory // 2**20) < 1_024  # the driver keeps some
    assert card.uuid.startswith("GPU-") and card.driver and CARDS.utilisation(card) is not None


def test_memory_that_another_program_takes_is_seen(card: Card, user: subprocess.Popen[bytes]) -> None:
    assert CARDS.cards()[0].free_mib <= card.free_mib - TAKEN_MIB
    seen = of(user, card)
    if seen is not None and seen.mib is not None and seen.name:
        assert seen.mib >= TAKEN_MIB and seen.use == "compute"
        sense = CardSense(CARDS, set, CardLimits(), lambda card: False)
        assert sense.read().says is Says.PAUSE
        assert CardSense(CARDS, lambda: {user.pid}, CardLimits(), lambda card: True).read().says is not Says.PAUSE


async def test_a_suspended_engine_leaves_no_memory_behind(card: Card, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny")
    engine = ProcessEngine(ModelFolder("tiny", tmp_path / "tiny", bytes(32)), "cuda", 1)
    await engine.suspend()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await engine.resume(Seat("cuda", {"CUDA_VISIBLE_DEVICES": card.uuid}))
        assert engine.info.device.kind == "cuda"
        loaded = CARDS.cards()[0].free_mib
        assert loaded < card.free_mib - 100  # CUDA's own part at least
        began = time.monotonic()
        await engine.suspend()
        await trio.to_thread.run_sync(until, lambda: CARDS.cards()[0].free_mib >= card.free_mib - 64, 10)
        assert time.monotonic() - began < ASIDE_SECONDS
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_steps_are_recorded_and_give_what_transformers_gives(arithmetic: str) -> None:
    model = llama().to("cuda")
    model = model.half() if arithmetic == "fp16" else model
    network = PackedNetwork(model, arithmetic)
    record(network, PlainNetwork(model), CardRecorder)
    assert network._recorder is not None and not network._recorder.failed
    assert network._recorder.recordings == 2  # of two answers and of three
