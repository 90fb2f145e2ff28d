"""The cards of a machine: what NVML says, what it does not, and cards that are declared."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from node import nvml_cards
from node.cards import Card, CardProcess, Cards, rooms, visible
from node.fake_cards import CardsFileError, DeclaredCards, FakeCards
from node.nvml_cards import NvmlCards

GIB = 1_024
HERE = os.getpid()
CARD = Card(0, "GPU-a1", "RTX 4090", 24_564, 20_000, 89, "580")
OTHER = Card(1, "GPU-b2", "RTX 3060", 12_288, 12_000, 86, "580")


# --- NVML ------------------------------------------------------------------------------------------------


@dataclass
class FakeNvml:
    """NVML's calls over one made-up card. `broken` names calls that fail."""

    broken: set[str] = field(default_factory=set)
    memory_of_processes: int | None = 3 << 30
    began: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for the library."""
        calls = {name: getattr(self, name) for name in dir(self) if name.startswith("nvml")}
        for name, call in calls.items():
            monkeypatch.setattr(nvml_cards.pynvml, name, self._or_fail(name, call))

    def _or_fail(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if name in self.broken:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return call(*arguments)

        return run

    def nvmlInit(self) -> None:
        self.began += 1

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        assert uuid == b"GPU-a1"
        return "handle"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return "GPU-a1"

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # bytes in old versions, text in new ones
        return b"RTX 4090"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=24_564 << 20, free=20_000 << 20)

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        return 8, 9

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=42, memory=7)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=HERE, usedGpuMemory=self.memory_of_processes)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=(1 << 22) + 1, usedGpuMemory=1 << 20)]  # of another namespace

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[Any]:
        old, new = (SimpleNamespace(pid=HERE, timeStamp=at, smUtil=percent) for at, percent in ((1, 5), (2, 61)))
        return [new, old]


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml().install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml_cards, "_contained", lambda: False)
    cards: Cards = NvmlCards()
    assert cards.cards() == (CARD,) and cards.about == "the NVIDIA driver"
    mine, strange = cards.processes(CARD) or ()
    assert (mine.pid, mine.mib, mine.use, mine.busy_percent) == (HERE, 3_072, "compute", 61) and mine.name
    assert strange == CardProcess((1 << 22) + 1, "", 1, "graphics", None)
    assert cards.utilisation(CARD) == 42


def test_in_a_container_the_drivers_numbers_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml().install(monkeypatch)
    monkeypatch.setattr(nvml_cards, "_contained", lambda: True)
    assert [process.name for process in NvmlCards().processes(CARD) or ()] == ["", ""]


SAY_NOTHING: list[tuple[set[str], tuple[int, bool, bool]]] = [
    # the calls that fail; then (cards, are processes known, is utilisation known)
    ({"nvmlInit"}, (0, False, False)),
    ({"nvmlDeviceGetCount"}, (0, True, True)),
    ({"nvmlDeviceGetHandleByIndex"}, (0, True, True)),
    ({"nvmlDeviceGetMemoryInfo"}, (0, True, True)),
    ({"nvmlDeviceGetUUID"}, (0, True, True)),
    ({"nvmlDeviceGetHandleByUUID"}, (1, False, False)),
    ({"nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"}, (1, False, True)),
    ({"nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetProcessUtilization"}, (1, True, True)),
    ({"nvmlDeviceGetUtilizationRates"}, (1, True, False)),
    ({"nvmlDeviceGetName", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCudaComputeCapability"}, (1, True, True)),
]


@pytest.mark.parametrize(("broken", "known"), SAY_NOTHING)
def test_what_fails_is_no_fact_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, broken: set[str], known: tuple[int, bool, bool]
) -> None:
    FakeNvml(broken).install(monkeypatch)
    cards = NvmlCards()
    told = len(cards.cards()), cards.processes(CARD) is not None, cards.utilisation(CARD) is not None
    assert told == known and cards.about


def test_windows_keeps_the_memory_of_processes_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(memory_of_processes=None).install(monkeypatch)
    processes = NvmlCards().processes(CARD)
    assert processes is not None and processes[0].mib is None


def test_a_driver_that_is_not_there_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, now = FakeNvml({"nvmlInit"}), [100.0]
    nvml.install(monkeypatch)
    monkeypatch.setattr(nvml_cards.time, "monotonic", lambda: now[0])
    cards = NvmlCards()
    assert cards.cards() == () and "no NVIDIA driver answers" in cards.about
    nvml.broken.clear()
    assert cards.cards() == ()
    now[0] += nvml_cards.RETRY_SECONDS
    assert len(cards.cards()) == 1


def test_after_the_driver_was_replaced_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    nvml.install(monkeypatch)
    cards = NvmlCards()
    assert cards.cards()
    nvml.broken.add("nvmlDeviceGetMemoryInfo")
    assert cards.cards() == ()
    nvml.broken.clear()
    assert cards.cards() and nvml.began == 2


@pytest.mark.parametrize("error", [OSError("cannot open"), AttributeError("no symbol")])
def test_a_damaged_library_is_no_driver(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(nvml_cards.pynvml, "nvmlInit", broken)
    assert NvmlCards().cards() == ()


def test_on_this_machine_nothing_raises() -> None:
    cards = NvmlCards()
    assert cards.about
    for card in cards.cards():
        assert card.vram_mib >= card.free_mib > 0 and cards.processes(card) is not None


# --- what follows from them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, [CARD, OTHER]),
        ("", []),
        ("-1", []),
        ("1", [OTHER]),
        ("1,0", [OTHER, CARD]),
        ("GPU-b", [OTHER]),
        ("GPU-", []),  # names two
        ("0,7,1", [CARD]),  # CUDA stops at the first that is none
        ("0,0", [CARD]),
        (" 0 , 1 ", [CARD, OTHER]),
    ],
)
def test_which_cards_this_process_may_use(variable: str | None, seen: list[Card]) -> None:
    assert visible([CARD, OTHER], variable) == tuple(seen)


def test_what_a_card_holds_for_us_is_what_is_free_and_what_we_have() -> None:
    cards = FakeCards(
        [CARD], {CARD.uuid: [CardProcess(7, "python", 3_000, "compute"), CardProcess(8, "game", 1_000, "graphics")]}
    )
    assert [room.total_mib for room in rooms(cards, {7: 2_500})] == [20_000 - 4_000 + 3_000]
    assert [room.total_mib for room in rooms(cards, {})] == [16_000]
    silent = FakeCards([CARD], {CARD.uuid: [CardProcess(7, "python", None, "compute")]})
    assert [room.total_mib for room in rooms(silent, {7: 2_500})] == [22_500]  # as it was planned


# --- declared cards --------------------------------------------------------------------------------------


def test_declared_cards_say_so_and_change_with_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cards.json"
    card: dict[str, Any] = {"name": "RTX 4090", "vram_mib": 24_564, "utilisation": 97}
    file.write_text(json.dumps({"cards": [card]}))
    cards: Cards = DeclaredCards(file)
    assert "declared" in caplog.text and "declared in" in cards.about
    (found,) = cards.cards()
    assert (found.name, found.free_mib, found.compute_capability, found.declared) == (
        "RTX 4090 (declared)",
        24_564,
        89,
        True,
    )
    assert cards.processes(found) == () and cards.utilisation(found) == 97
    card["processes"] = [{"pid": 4_711, "name": "game.exe", "mib": 4_000}]
    file.write_text(json.dumps({"cards": [card]}))
    assert cards.processes(found) == (CardProcess(4_711, "game.exe", 4_000, "graphics"),)
    assert cards.cards()[0].free_mib == 20_564
    file.write_text('{"cards": [')  # half written
    assert cards.processes(found) != ()
    file.unlink()
    assert cards.cards()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cards": [{"name": "x"}]}', '{"cards": [{"name": "x", "vram_mib": 1, "vrm": 2}]}']
)
def test_a_file_that_declares_no_cards_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cards.json").write_text(text)
    with pytest.raises(CardsFileError, match=r"hardware\.declared: .*does not declare cards"):
        DeclaredCards(tmp_path / "cards.json")
    with pytest.raises(CardsFileError, match="No such file"):
        DeclaredCards(tmp_path / "none.json")
