"""The game guard: what pauses the node, what does not, and when it comes back."""

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio

from node.cards import Card, CardProcess
from node.fake_cards import FakeCards
from node.gameguard import MOST_RETRY_MS, GameGuard
from node.guard import x11
from node.guard.battery import BatterySense
from node.guard.by_hand import PAUSE_FILE, ByHand
from node.guard.decision import BLIND_MS, Decision, decide, overrule
from node.guard.full_screen import FullScreenSense
from node.guard.names import named_in
from node.guard.on_card import ENGINE_MODULE, CardLimits, CardSense
from node.guard.programs import FRESHENED, ProgramsSense
from node.guard.schedule import ScheduleError, ScheduleSense, parse_hours
from node.guard.sense import QUIET, FakeSense, Reading, Says
from node.guard.x11 import CannotTell, FrontWindow

RESUME_MS = 10_000
GAME = Reading(Says.PAUSE, "game.exe runs")
BLIND = Reading(Says.UNKNOWN, "no answer")
SET = Reading(Says.PAUSE, "paused by hand", at_once=True)


# --- the decision ----------------------------------------------------------------------------------------


def story(*looks: tuple[int, dict[str, Reading]]) -> list[bool]:
    """Paused or not after each look at (seconds, readings)."""
    decision, told = Decision(), []
    for seconds, readings in looks:
        decision = decide(decision, readings, 1_000_000 + seconds * 1_000, RESUME_MS)
        told.append(decision.paused)
    return told


@pytest.mark.parametrize(
    ("looks", "paused"),
    [
        pytest.param([(0, {"a": QUIET}), (1, {"a": GAME})], [False, True], id="one sense is enough, at once"),
        pytest.param(
            [(0, {"a": GAME}), (1, {"a": QUIET}), (10, {"a": QUIET}), (11, {"a": QUIET})],
            [True, True, True, False],
            id="resume after a quiet time",
        ),
        pytest.param(
            [(0, {"a": GAME}), (1, {"a": QUIET}), (8, {"a": GAME}), (9, {"a": QUIET}), (18, {"a": QUIET})],
            [True, True, True, True, True],
            id="a loading screen begins the quiet time anew",
        ),
        pytest.param([(0, {"a": BLIND}), (1, {"a": BLIND})], [False, False], id="a blind sense alone pauses nobody"),
        pytest.param(
            [(0, {"a": GAME}), (5, {"a": BLIND}), (59, {"a": BLIND}), (60, {"a": BLIND}), (70, {"a": BLIND})],
            [True, True, True, True, False],
            id="a sense that goes blind is believed for a minute, then for the quiet time",
        ),
        pytest.param(
            [(0, {"a": GAME, "b": QUIET}), (1, {"a": QUIET, "b": GAME}), (30, {"a": QUIET, "b": GAME})],
            [True, True, True],
            id="another sense takes over",
        ),
        pytest.param([(0, {"a": SET}), (1, {"a": QUIET})], [True, False], id="what was set ends at once"),
        pytest.param(
            [(0, {"a": SET, "b": GAME}), (1, {"a": QUIET, "b": QUIET}), (11, {"a": QUIET, "b": QUIET})],
            [True, True, False],
            id="but not what was seen beside it",
        ),
        pytest.param(
            [(0, {"a": GAME}), (1, {"a": QUIET}), (2, {"a": QUIET, "b": SET}), (3, {"a": QUIET, "b": QUIET})],
            [True, True, True, False],
            id="nor is a pause by hand lengthened by what was seen before",
        ),
        pytest.param([(0, {"a": GAME}), (1, {}), (11, {})], [True, True, False], id="a sense that is gone is quiet"),
    ],
)
def test_decisions(looks: list[tuple[int, dict[str, Reading]]], paused: list[bool]) -> None:
    assert BLIND_MS == 60_000  # the table's 60 seconds
    assert story(*looks) == paused


def test_the_owner_overrules_what_asks_now_and_only_that() -> None:
    playing = decide(Decision(), {"a": GAME, "b": QUIET}, 1_000, RESUME_MS)
    freed = decide(overrule(playing), {"a": GAME, "b": QUIET}, 2_000, RESUME_MS)
    assert not freed.paused and freed.overruled == {"a"}
    assert not decide(freed, {"a": BLIND, "b": QUIET}, 3_000, RESUME_MS).paused
    assert decide(freed, {"a": GAME, "b": GAME}, 3_000, RESUME_MS).paused
    ended = decide(freed, {"a": QUIET, "b": QUIET}, 4_000, RESUME_MS)
    assert ended.overruled == frozenset() and decide(ended, {"a": GAME}, 5_000, RESUME_MS).paused


def test_the_end_of_a_pause_is_known_if_all_that_ask_know_it() -> None:
    until = Reading(Says.PAUSE, "the schedule", until_ms=5)
    assert decide(Decision(), {"a": until, "b": Reading(Says.PAUSE, "", 9)}, 0, 0).until_ms == 9
    assert decide(Decision(), {"a": until, "b": GAME}, 0, 0).until_ms is None
    assert Decision().until_ms is None


# --- the schedule ----------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("hours", "at", "end"),
    [
        ("18:00-23:00 mon-fri", "2026-11-23 18:00", "2026-11-23 23:00"),
        ("18:00-23:00 mon-fri", "2026-11-23 17:59", None),
        ("18:00-23:00 mon-fri", "2026-11-23 23:00", None),
        ("18:00-23:00 mon-fri", "2026-11-28 20:00", None),  # a Saturday
        ("18:00-23:00", "2026-11-28 20:00", "2026-11-28 23:00"),
        ("22:00-02:00 fri", "2026-11-27 23:30", "2026-11-28 02:00"),
        ("22:00-02:00 fri", "2026-11-28 01:59", "2026-11-28 02:00"),  # still Friday's
        ("22:00-02:00 fri", "2026-11-27 01:00", None),  # Thursday's, which is not the owner's
        ("22:00-02:00 sun", "2026-11-23 01:00", "2026-11-23 02:00"),  # over the end of the week
        ("00:00-24:00 sat,sun", "2026-11-28 12:00", "2026-11-29 00:00"),
        ("09:00-09:00 sat", "2026-11-29 08:59", "2026-11-29 09:00"),  # a whole day
        ("8:00-12:00 sat-mon", "2026-11-23 08:30", "2026-11-23 12:00"),
        ("01:00-03:30 daily", "2026-03-29 03:10", "2026-03-29 03:30"),  # 02:00 to 03:00 did not come that day
        ("02:15-02:45", "2026-03-29 03:00", None),  # nor did this
    ],
)
def test_hours(hours: str, at: str, end: str | None) -> None:
    wall = datetime.fromisoformat(at).replace(tzinfo=BERLIN)
    reading = ScheduleSense([parse_hours(hours)], lambda: wall).read()
    assert (reading.says is Says.PAUSE) == (end is not None)
    if end is not None:
        assert reading.until_ms == datetime.fromisoformat(end).replace(tzinfo=BERLIN).timestamp() * 1_000


def test_the_hour_that_comes_twice_is_the_owners_twice() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    for fold, minutes_left in ((0, 75), (1, 15)):
        wall = first.replace(fold=fold)
        reading = ScheduleSense([parse_hours("02:00-02:45")], lambda wall=wall: wall).read()  # type: ignore[misc]
        assert reading.until_ms == round((wall.timestamp() + minutes_left * 60) * 1_000)


def test_the_end_on_this_machines_clock_is_its_own_time_zones() -> None:
    now = datetime.now().astimezone().replace(hour=12, minute=0, second=0, microsecond=0)
    reading = ScheduleSense([parse_hours("11:00-13:00")], lambda: now).read()
    assert reading.until_ms == round((now + timedelta(hours=1)).timestamp() * 1_000)
    assert ScheduleSense([parse_hours("00:00-24:00")]).read().says is Says.PAUSE  # the real clock


@pytest.mark.parametrize("text", ["", "18-23", "25:00-26:00", "18:60-19:00", "24:00-02:00", "18:00-23:00 monday", "x"])
def test_what_is_no_schedule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ScheduleError, match=r"18:00-23:00|no time of the day|days are|23:59"):
        parse_hours(text)


# --- battery, names, programs ----------------------------------------------------------------------------


@dataclass
class Charge:
    """As psutil tells of a battery."""

    percent: float
    power_plugged: bool | None


@pytest.mark.parametrize(
    ("charge", "says"),
    [
        (None, Says.QUIET),
        (Charge(50, True), Says.QUIET),
        (Charge(50, None), Says.QUIET),
        (Charge(50, False), Says.PAUSE),
    ],
)
def test_battery(charge: Charge | None, says: Says) -> None:
    assert BatterySense(lambda: charge).read().says is says


def test_a_battery_that_cannot_be_read_is_unknown() -> None:
    def broken() -> None:
        raise OSError("acpi")

    assert BatterySense(broken).read() == Reading(Says.UNKNOWN, "the battery does not answer: OSError")
    assert BatterySense().read().says in Says  # this machine's


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("Game.exe", "game", True),
        ("game", "GAME.EXE", True),
        ("game2", "game", False),
        ("game2", "game*", True),
        ("Cyberpunk2077.e", "Cyberpunk2077.exe", True),  # as Linux cuts it
        ("Cyberpunk2077.e", "Cyberpunk", False),
        ("gam", "game", False),
        ("", "game", False),
    ],
)
def test_names(name: str, pattern: str, fits: bool) -> None:
    assert named_in(name, [pattern]) == fits


@dataclass
class Processes:
    """A system's processes, and how often it was asked for a name."""

    names: dict[int, str]
    asked: int = 0

    def pids(self) -> list[int]:
        """Those that live."""
        return list(self.names)

    def name(self, pid: int) -> str:
        """What one is called."""
        self.asked += 1
        return self.names.get(pid, "")


def test_listed_programs_are_seen_when_they_start_rename_themselves_and_end() -> None:
    system = Processes({1: "init", 2: "shell"})
    sense = ProgramsSense(["game", "factorio"], system.pids, system.name)
    assert sense.read() == QUIET
    system.names[3] = "launcher"
    assert sense.read() == QUIET
    system.names[3] = "factorio"  # the same process, another program
    assert sense.read() == Reading(Says.PAUSE, "factorio is running")
    del system.names[3]
    assert sense.read() == QUIET
    system.names[2] = "game"  # an old id that was given again
    assert any(sense.read().says is Says.PAUSE for _ in range(FRESHENED + 5))


def test_names_are_asked_for_rarely() -> None:
    system = Processes({pid: f"program{pid}" for pid in range(300)})
    sense = ProgramsSense(["game"], system.pids, system.name)
    for _ in range(40):
        sense.read()
    before = system.asked
    for _ in range(FRESHENED):
        sense.read()
    assert system.asked - before == 300  # each once in that time


def test_the_real_processes_can_be_read_and_a_failing_system_is_unknown() -> None:
    assert ProgramsSense(["python*", "pytest*"]).read().says is Says.PAUSE

    def broken() -> Sequence[int]:
        raise OSError

    assert ProgramsSense(["x"], broken).read().says is Says.UNKNOWN


# --- the card --------------------------------------------------------------------------------------------

CARD = Card(0, "GPU-1", "RTX 4090", 24_564, 24_000, 89, "580")
OURS = 77


def on_card(*processes: CardProcess, busy: int = 0, ours: bool = True, ignore: Sequence[str] = ()) -> Reading:
    """What the sense says in its second look."""
    cards = FakeCards([CARD], {CARD.uuid: list(processes)}, {CARD.uuid: busy})
    sense = CardSense(cards, lambda: {OURS}, CardLimits(ignore=ignore), lambda card: ours)
    sense.read()
    return sense.read()


@pytest.mark.parametrize(
    ("process", "pauses"),
    [
        (CardProcess(5, "game.exe", 3_000, "graphics"), True),
        (CardProcess(5, "game.exe", None, "graphics"), True),  # Windows says no memory
        (CardProcess(5, "blender", 300, "compute"), True),
        (CardProcess(5, "ollama", 200, "compute"), False),
        (CardProcess(5, "python", None, "compute"), False),
        (CardProcess(5, "clock", 100, "graphics"), False),
        (CardProcess(5, "clock", 100, "graphics", 80), True),  # small, and works the card hard
        (CardProcess(5, "gnome-shell", 900, "graphics"), False),
        (CardProcess(5, "dwm.exe", None, "graphics", 90), False),
        (CardProcess(5, "firefox", 2_000, "graphics"), False),
        (CardProcess(OURS, "python3", 9_000, "compute", 99), False),
        (CardProcess(5, "", 9_000, "compute"), False),  # of another container
        (CardProcess(5, "MyTool", 900, "graphics"), False),  # on the owner's list
    ],
)
def test_who_counts_on_a_card(process: CardProcess, pauses: bool) -> None:
    assert (on_card(process, ignore=["mytool"]).says is Says.PAUSE) == pauses


def test_another_nodes_engine_on_the_card_is_no_game() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", ENGINE_MODULE], stdin=subprocess.PIPE) as engine:
        assert on_card(CardProcess(engine.pid, "python3", 9_000, "compute", 90)) == QUIET
        engine.communicate(b"\n")
    assert on_card(CardProcess(engine.pid, "python3", 9_000, "compute", 90)).says is Says.PAUSE  # it is gone


def test_a_card_busy_with_what_nobody_lists() -> None:
    assert on_card(busy=95, ours=False).says is Says.PAUSE
    assert on_card(busy=95, ours=True) == QUIET
    assert on_card(busy=30, ours=False) == QUIET
    cards = FakeCards([CARD], {CARD.uuid: []}, {CARD.uuid: 95})
    assert CardSense(cards, set, CardLimits(), lambda card: False).read() == QUIET  # one look is not enough


def test_a_card_that_does_not_say_who_uses_it_and_no_card_at_all_are_unknown() -> None:
    silent = CardSense(FakeCards([CARD]), set, CardLimits(), lambda card: True).read()
    assert silent == Reading(Says.UNKNOWN, "RTX 4090 does not say who uses it, not to this process")
    assert on_card(CardProcess(5, "", 9_000, "compute")) == silent  # seen from a container
    assert on_card(CardProcess(OURS, "", 9_000, "compute"), CardProcess(5, "", 10, "graphics")) == QUIET
    none = CardSense(FakeCards(about="no driver"), set, CardLimits(), lambda card: True).read()
    assert none == Reading(Says.UNKNOWN, "no card to look at: no driver")


# --- the screen ------------------------------------------------------------------------------------------


def test_full_screen() -> None:
    assert FullScreenSense(look=lambda: FrontWindow(False, 1)).read() == QUIET
    assert FullScreenSense(look=lambda: FrontWindow(True, 0)).read() == Reading(Says.PAUSE, "a window fills the screen")
    this = FullScreenSense(ignore=["python*", "pytest*"], look=lambda: FrontWindow(True, 1 << 22 | 1))
    assert this.read().says is Says.PAUSE  # a process that is gone has no name to ignore

    def blind() -> FrontWindow:
        raise CannotTell("no screen is known here")

    assert FullScreenSense(look=blind).read() == Reading(Says.UNKNOWN, "no screen is known here")


ATOMS = {"_NET_ACTIVE_WINDOW": 101, "_NET_WM_STATE": 102, "_NET_WM_STATE_FULLSCREEN": 103, "_NET_WM_PID": 104}
ROOT, WINDOW, PID = 0x1F4, 0x600007, 4_711


@dataclass
class FakeDisplay:
    """A display server that knows one window; it speaks X11 as the protocol's text has it."""

    states: tuple[int, ...] = (103,)
    window: int = WINDOW
    gone: bool = False  # the window vanished since it was named
    cookie: bytes = b""
    keys: list[bytes] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        """One connection."""
        line, _ = listener.accept()
        with line, suppress(OSError, struct.error):
            head = line.recv(12, socket.MSG_WAITALL)
            name_size, key_size = struct.unpack_from("<HH", head, 6)
            line.recv(name_size + -name_size % 4, socket.MSG_WAITALL)
            self.keys.append(line.recv(key_size + -key_size % 4, socket.MSG_WAITALL)[:key_size])
            vendor, formats = b"Fake", bytes(8)
            body = bytes(16) + struct.pack("<HHBB", len(vendor), 65_535, 1, 1) + bytes(10)
            body += vendor + formats + struct.pack("<I", ROOT) + bytes(36)
            allowed = self.keys[-1] == self.cookie
            line.sendall(struct.pack("<BxHHH", int(allowed), 11, 0, len(body) // 4) + body)
            for _ in count():
                head = line.recv(4, socket.MSG_WAITALL)
                rest = line.recv(struct.unpack_from("<H", head, 2)[0] * 4 - 4, socket.MSG_WAITALL)
                line.sendall(bytes([22]) + bytes(31))  # an event that nobody asked for
                line.sendall(self._answer(head[0], rest))

    def _answer(self, opcode: int, rest: bytes) -> bytes:
        if opcode == x11.INTERN_ATOM:
            size = struct.unpack_from("<H", rest)[0]
            atom = ATOMS.get(rest[4 : 4 + size].decode(), 0)
            return struct.pack("<BxHII", 1, 0, 0, atom) + bytes(20)
        window, wanted = struct.unpack_from("<II", rest)
        if window == WINDOW and self.gone:
            return bytes(32)  # an error
        values: tuple[int, ...] = {(ROOT, 101): (self.window,), (WINDOW, 102): self.states, (WINDOW, 104): (PID,)}.get(
            (window, wanted), ()
        )
        head = struct.pack("<BBHIIII", 1, 32 if values else 0, 0, len(values), 6, 0, len(values)) + bytes(12)
        return head + struct.pack(f"<{len(values)}I", *values)


@contextmanager
def display(fake: FakeDisplay, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[dict[str, str]]:
    """A listening display server, and an environment that names it."""
    path = folder / "X9"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setattr(x11, "_dial", lambda line, number: line.connect(str(path)))
        server = threading.Thread(target=fake.serve, args=(listener,))
        server.start()
        try:
            yield {"DISPLAY": ":9", "XAUTHORITY": str(folder / "keys")}
        finally:
            server.join()


@pytest.mark.parametrize(
    ("fake", "front"),
    [
        (FakeDisplay(), FrontWindow(True, PID)),
        (FakeDisplay(states=(7,)), FrontWindow(False, PID)),
        (FakeDisplay(states=()), FrontWindow(False, PID)),
        (FakeDisplay(window=0), FrontWindow(False, 0)),
        (FakeDisplay(gone=True), FrontWindow(False, 0)),
    ],
)
def test_the_window_in_front(
    fake: FakeDisplay, front: FrontWindow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with display(fake, monkeypatch, tmp_path) as environment:
        assert x11.front_window(environment) == front


def test_the_display_gets_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def entry(number: bytes, key: bytes) -> bytes:
        fields = (b"host", number, x11.COOKIE, key)
        return b"\1\0" + b"".join(struct.pack(">H", len(part)) + part for part in fields)

    fake = FakeDisplay(cookie=b"k" * 16)
    (tmp_path / "keys").write_bytes(entry(b"8", b"other" * 3) + entry(b"9", b"k" * 16))
    with display(fake, monkeypatch, tmp_path) as environment:
        assert x11.front_window(environment).full_screen
    assert fake.keys == [b"k" * 16]


def test_a_display_that_refuses_or_hangs_up_cannot_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with display(FakeDisplay(cookie=b"secret"), monkeypatch, tmp_path) as environment:
        with pytest.raises(CannotTell, match="does not let this process in"):
            x11.front_window(environment)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "no screen is known here"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "Wayland"),
        ({"DISPLAY": "far.example:0"}, "not on this machine"),
        ({"DISPLAY": ":64999"}, "does not answer"),
    ],
)
def test_no_display_cannot_tell(environment: dict[str, str], why: str) -> None:
    with pytest.raises(CannotTell, match=why):
        x11.front_window(environment)


# --- by hand ---------------------------------------------------------------------------------------------


def test_a_pause_by_hand_survives_a_restart_and_a_timed_one_ends(tmp_path: Path) -> None:
    now = [1_000]
    hand = ByHand(tmp_path, lambda: now[0])
    assert hand.read() == QUIET and not hand.resume()
    hand.pause(2_000)
    again = ByHand(tmp_path, lambda: now[0])
    assert again.read() == Reading(Says.PAUSE, "paused by hand", 3_000, at_once=True)
    now[0] = 3_000
    assert again.read() == QUIET
    hand.pause(None)
    assert ByHand(tmp_path, lambda: now[0]).read().until_ms is None
    assert hand.resume() and ByHand(tmp_path, lambda: now[0]).read() == QUIET


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"until_ms": "soon"}', '{"until_ms": true}', "\0"])
def test_a_damaged_pause_holds_until_the_owner_resumes(tmp_path: Path, text: str) -> None:
    (tmp_path / PAUSE_FILE).write_text(text)
    hand = ByHand(tmp_path, lambda: 0)
    assert hand.read().says is Says.PAUSE and "mtor resume" in hand.read().why
    assert hand.resume() and hand.read() == QUIET


# --- the guard -------------------------------------------------------------------------------------------


@dataclass
class FakeNode:
    """What the guard makes of a node."""

    done: list[str] = field(default_factory=list)
    fail: int = 0  # so many of the next effects
    retries: list[int] = field(default_factory=list)

    async def drain(self, reason: str, retry_after_ms: int) -> None:
        """See `Aside`."""
        if self.fail:
            self.fail -= 1
            raise RuntimeError("not now")
        self.done.append(f"drain: {reason}")
        self.retries.append(retry_after_ms)

    async def resume(self) -> None:
        """See `Aside`."""
        self.done.append("resume")

    async def until(self, *done: str) -> None:
        """Wait for what should have been done by then."""
        with trio.fail_after(5):
            while self.done != list(done):
                await trio.sleep(0.005)


@dataclass
class World:
    """A guard over one sense."""

    folder: Path
    node: FakeNode = field(default_factory=FakeNode)
    sense: FakeSense = field(default_factory=FakeSense)
    now_ms: int = round(datetime(2026, 11, 23, tzinfo=UTC).timestamp() * 1_000)
    resume_after: float = 0.05

    def guard(self, *more: FakeSense) -> GameGuard:
        """Looks every few milliseconds."""
        hand = ByHand(self.folder, lambda: self.now_ms)
        return GameGuard([self.sense, *more], hand, self.node, self.resume_after, lambda: self.now_ms, 0.01)


async def test_a_game_comes_and_goes(tmp_path: Path, nursery: trio.Nursery) -> None:
    world = World(tmp_path)
    guard = world.guard()
    await nursery.start(guard.run)
    assert world.node.done == [] and not guard.state.paused
    world.sense.say_pause()
    await world.node.until("drain: game.exe runs")
    assert guard.state.paused and guard.state.why == "game.exe runs"
    world.sense.say_quiet()
    await world.node.until("drain: game.exe runs", "resume")
    assert not guard.state.paused and guard.state.resumes_in_seconds is None
    nursery.cancel_scope.cancel()


async def test_a_node_that_starts_beside_a_game_steps_aside_first(tmp_path: Path, nursery: trio.Nursery) -> None:
    world = World(tmp_path)
    world.sense.say_pause()
    await nursery.start(world.guard().run)
    assert world.node.done == ["drain: game.exe runs"]
    nursery.cancel_scope.cancel()


async def test_a_start_beside_a_standing_pause_says_how_to_end_it(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ByHand(tmp_path, lambda: 0).pause(None)
    await nursery.start(World(tmp_path).guard().run)
    assert "paused: paused by hand; `mtor resume` ends it" in caplog.text
    nursery.cancel_scope.cancel()


async def test_by_hand_it_is_done_when_the_call_returns(tmp_path: Path, nursery: trio.Nursery) -> None:
    world = World(tmp_path)
    guard = world.guard()
    await nursery.start(guard.run)
    state = await guard.pause(40)
    assert state.paused and state.until_ms == world.now_ms + 40_000
    assert world.node.done == ["drain: paused by hand"] and world.node.retries == [40_000]
    assert json.loads((tmp_path / PAUSE_FILE).read_text()) == {"until_ms": state.until_ms}
    assert not (await guard.resume(anyway=False)).paused
    assert world.node.done == ["drain: paused by hand", "resume"]
    await guard.pause(1)
    world.now_ms += 1_000  # its time is up: it ends by itself
    await world.node.until("drain: paused by hand", "resume", "drain: paused by hand", "resume")
    assert world.node.retries == [40_000, 1_000]
    await guard.pause(86_400)
    assert world.node.retries[-1] == MOST_RETRY_MS  # peers hear of an early return by the offer, not by waiting
    nursery.cancel_scope.cancel()


async def test_resume_ends_the_owners_pause_and_overrules_a_game_only_if_told(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    world = World(tmp_path)
    world.sense.say_pause()
    guard = world.guard()
    await nursery.start(guard.run)
    still = await guard.resume(anyway=False)
    assert still.paused and still.why == "game.exe runs"
    freed = await guard.resume(anyway=True)
    assert not freed.paused and freed.overruled == ("fake",)
    await trio.sleep(0.05)  # looks that see the game
    assert not guard.state.paused
    nursery.cancel_scope.cancel()


async def test_an_effect_that_fails_is_tried_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    world = World(tmp_path, node=FakeNode(fail=2))
    await nursery.start(world.guard().run)
    world.sense.say_pause()
    await world.node.until("drain: game.exe runs")
    nursery.cancel_scope.cancel()


@dataclass
class BrokenSense(FakeSense):
    """Raises, then hangs."""

    name: str = "broken"
    hang: threading.Event = field(default_factory=threading.Event)
    looks: int = 0

    def read(self) -> Reading:
        """Not as a sense should."""
        self.looks += 1
        if self.looks == 1:
            raise ZeroDivisionError
        self.hang.wait(5)
        return QUIET


async def test_a_sense_that_raises_or_hangs_neither_ends_nor_delays_the_guard(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    world, broken = World(tmp_path), BrokenSense()
    guard = world.guard(broken)
    await nursery.start(guard.run)
    readings = {seen.name: seen.reading for seen in guard.state.senses}
    assert readings["broken"] == Reading(Says.UNKNOWN, "it failed: ZeroDivisionError")
    with trio.fail_after(5):
        while broken.looks < 2:
            await trio.sleep(0.005)
    world.sense.say_pause()
    await world.node.until("drain: game.exe runs")
    broken.hang.set()
    nursery.cancel_scope.cancel()
