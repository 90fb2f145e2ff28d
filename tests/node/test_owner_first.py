"""A whole node in its process steps aside for a game and comes back, seen from outside."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from node.commands import owner
from node.commands.owner import UsageError, guard_words, parse_duration
from node.engines.tiny import make_tiny_model
from node.federation import create_federation, install_genesis
from node.guard.by_hand import PAUSE_FILE
from node.local_federation import SETTINGS, NodeProcess, wait_credits, wait_offers

CARD: dict[str, Any] = {"name": "RTX 4090", "vram_mib": 24_564}
GAME = {"pid": 4_711, "name": "game.exe", "mib": 9_000}
LONG_TOKENS = 400
ASIDE_SECONDS = 3.0  # the promise

REALMS = """\
realms:
  - realm: $CHAT
    model: {model}
    threads: 1
    slots: 1
    arithmetic: fp32
    window: 1  # a voucher for every token: slow enough to be watched
hardware: {{declared: {cards}}}
guard: {{resume_after_seconds: 1}}
"""


@dataclass
class Machine:
    """A node and the file that declares its card."""

    node: NodeProcess
    cards: Path

    def play(self, *games: dict[str, Any]) -> None:
        """Programs start on the card, or end."""
        self.cards.write_text(json.dumps({"cards": [CARD | {"processes": list(games)}]}))

    def status(self) -> dict[str, Any]:
        """Of the node."""
        return self.node.client.call("status")

    def engines(self) -> list[int]:
        """Process ids of its models."""
        assert self.node.process is not None
        children = psutil.Process(self.node.process.pid).children()
        return [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def serves(self) -> bool:
        """Does a model answer?"""
        return any(row["ready"] for row in self.status()["serving"])


def machine(root: Path, name: str) -> Machine:
    """A node that is not started yet."""
    node = NodeProcess(name, root / name)
    node.folder.mkdir()
    made = Machine(node, root / f"{name}.json")
    made.play()
    settings = SETTINGS.format(name=name) + REALMS.format(model=root / "tiny", cards=made.cards)
    (node.folder / "realms.yml").write_text(settings)
    return made


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for what should come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two nodes with a model each. The first one is paused from its start, by its owner's word of another day."""
    make_tiny_model(tmp_path / "tiny")
    asking, playing = machine(tmp_path, "asking"), machine(tmp_path, "playing")
    (asking.node.folder / PAUSE_FILE).write_text('{"until_ms": null}')
    install_genesis(playing.node.folder, create_federation(asking.node.folder, "home", []))
    try:
        asking.node.start()
        asking.node.wait_ready()
        playing.node.bootstrap = asking.status()["addresses"][0]
        playing.node.start()
        playing.node.wait_ready()
        wait_offers(asking.node, [playing.node])
        wait_credits(asking.node)
        yield asking, playing
    finally:
        for one in (asking, playing):
            one.node.stop()


def test_a_game_takes_the_card_and_the_running_answer_goes_on_elsewhere(machines: tuple[Machine, Machine]) -> None:
    asking, playing = machines
    before = asking.status()
    assert before["guard"]["paused"] and before["serving"] == [] and asking.engines() == []
    engines, said, seconds = playing.engines(), "", 0.0
    assert playing.status()["serving"][0]["device_name"] == "RTX 4090 (declared)" and engines
    for chunk in asking.node.client.chat(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "go on"}],
            "max_tokens": LONG_TOKENS,
            "temperature": 0,
        }
    ):
        said += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
        if said and not seconds:
            assert not asking.node.client.call("resume", {})["paused"]
            playing.play(GAME)
            seconds = _seconds_until_gone(engines)
    assert 0 < seconds < ASIDE_SECONDS
    assert len(said) == LONG_TOKENS  # a letter a token: nothing is missing, nothing came twice
    status = playing.status()
    assert status["guard"]["paused"] and "game.exe" in status["problems"][0] and playing.engines() == []
    assert asking.serves()  # which went on where the other stopped
    playing.play()
    until(lambda: bool(playing.engines()))  # by itself
    assert not playing.status()["guard"]["paused"]
    facts = asking.node.client.call("hardware")
    assert facts["models"][0]["where"] == "RTX 4090 (declared)" and facts["models"][0]["fits"]["fits"]
    state = asking.node.client.call("pause", {"seconds": 3_600})
    assert asking.engines() == [] and guard_words(state).startswith("paused until ")


def _seconds_until_gone(processes: list[int]) -> float:
    began = time.monotonic()
    until(lambda: not any(map(psutil.pid_exists, processes)))
    return time.monotonic() - began


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2_700), ("2h", 7_200), ("1h30m", 5_400), ("3d", 259_200)]
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2 h", "h", "-1h", "0s", "400d", "2h later", "9999999s"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"45m, 2h|from a second to a year"):
        parse_duration(text)


STATE: dict[str, Any] = {
    "paused": True,
    "why": "game.exe runs",
    "until_ms": None,
    "resumes_in_seconds": None,
    "overruled": [],
}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (STATE, "paused: game.exe runs"),
        (STATE | {"resumes_in_seconds": 12}, "paused; serves again in 12 s of quiet"),
        (STATE | {"paused": False}, "serving"),
        (STATE | {"paused": False, "overruled": ["card"]}, "serving (ignoring for now: card)"),
    ],
)
def test_the_guard_in_words(state: dict[str, Any], words: str) -> None:
    assert guard_words(state) == words


def test_hardware_is_told_without_a_node_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cli

    monkeypatch.setenv("MTOR_MODELS", str(tmp_path / "models"))
    card = CARD | {"processes": [GAME, {"pid": 5, "name": "Xorg", "mib": 50}], "utilisation": 90}
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [card]}))
    make_tiny_model(tmp_path / "tiny")
    settings = "realms: [{model: ./tiny, device: cuda, context: 100}]\nhardware: {declared: cards.json}\n"
    (tmp_path / "realms.yml").write_text(settings)
    assert cli.main(["hardware", "--data", str(tmp_path)]) == cli.OK
    out = capsys.readouterr().out
    assert "0: RTX 4090 (declared), 15514 of 24564 MiB free, 90 % busy, compute capability 8.9" in out
    assert "4711 game.exe (graphics, 9000 MiB): another" in out and "5 Xorg (graphics, 50 MiB): desktop" in out
    assert "no node is running" in out and "not loaded" in out and "100" in out
    (tmp_path / "cards.json").write_text('{"cards": [{"name": "GT 710", "vram_mib": 512}]}')
    assert cli.main(["hardware", "--data", str(tmp_path)]) == cli.OK
    out = capsys.readouterr().out
    assert "does not fit" in out and "→ device: auto, which would take the CPU" in out
    assert cli.main(["pause", "--data", str(tmp_path)]) == cli.NO_NODE
    assert cli.main(["pause", "--for", "soon", "--data", str(tmp_path)]) == cli.USAGE
    assert owner.UNITS["h"] == 3_600
