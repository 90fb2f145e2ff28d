"""The command line on a terminal: tables that fit, bars, a conversation, and Ctrl-C."""

import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import trio

import cli
from node.answers import Delta, Progressed, Question, Routed, Waiting
from node.commands.screen import progress_shown, waiting_words
from protocol.ids import peer_id
from tests.node.gateway_world import (
    HANG_SECONDS,
    MODEL,
    ROUTED,
    WORKER,
    Emit,
    Script,
    completed,
    events,
    gateway_world,
    saying,
    until,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals of this kind")
BOLD = "\x1b[1m"
CTRL_C = object()


class Terminal:
    """A program on a pseudo terminal. As a context it leaves nothing behind."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._ours, theirs = os.openpty()
        plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=plain | {"TERM": "xterm", "COLUMNS": "80"} | environment,
        )
        os.close(theirs)
        self._shown = b""

    @property
    def screen(self) -> str:
        """All since the last `clear`. Bytes are put together first: a character may come in parts."""
        return self._shown.decode(errors="replace")

    def clear(self) -> None:
        """Forget what was shown."""
        self._shown = b""

    def __enter__(self) -> Self:
        """See the class."""
        return self

    def __exit__(self, *_: object) -> None:
        """See the class."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)

    def until(self, text: str) -> None:
        """Read until `text` is there."""
        while text not in self.screen:
            assert self._read(), f"it ended, and {text!r} did not come: {self.screen!r}"

    def type(self, what: str | object) -> None:
        """Type a text, or Ctrl-C."""
        if isinstance(what, str):
            os.write(self._ours, what.encode())
        else:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self._process.wait(HANG_SECONDS)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], HANG_SECONDS)[0]:
            raise AssertionError(f"nothing comes any more; the screen has {self.screen!r}")
        try:
            self._shown += os.read(self._ours, 65_536)
        except OSError:  # Linux says so when the program has ended
            return False
        return True


def screen_of(*command: str, **environment: str) -> str:
    """What a program that needs no typing shows."""
    with Terminal(*command, **environment) as terminal:
        assert terminal.end() == 0, terminal.screen
        return terminal.screen


# --- tables and bars -----------------------------------------------------------------------------------


def models_list(tmp_path: Path, **environment: str) -> str:
    """`mtor models list` on a terminal."""
    folders = {"MTOR_DATA": str(tmp_path), "MTOR_MODELS": str(tmp_path)}
    return screen_of("-m", "cli", "models", "list", **(folders | environment))


def test_tables_fit_the_terminal(tmp_path: Path) -> None:
    screen = models_list(tmp_path, COLUMNS="60")
    assert BOLD in screen and "smollm2-135m" in screen
    assert max(len(line) for line in screen.replace(BOLD, "").replace("\x1b[0m", "").splitlines()) <= 60


@pytest.mark.parametrize("wish", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_wants_no_colour_gets_none(tmp_path: Path, wish: dict[str, str]) -> None:
    assert "\x1b[" not in models_list(tmp_path, **wish)


WORK = """
from node.commands.screen import progress_shown
with progress_shown() as show:
    show({"step": "fetch", "done_bytes": 0, "total_bytes": 93_000_000})
    show({"step": "fetch", "done_bytes": 46_000_000, "total_bytes": 93_000_000})
    show({"step": "convert [bold]", "done_bytes": 0, "total_bytes": 0})
"""


def test_long_work_has_a_bar() -> None:
    screen = screen_of("-c", WORK)
    assert "fetch" in screen and "of 93 MB" in screen and "convert [bold]" in screen and "━" in screen


def test_long_work_elsewhere_has_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_shown() as show:
        for done in (0, 0, 50, 93):
            show({"step": "fetch", "done_bytes": done, "total_bytes": 93})
        show({"step": "wait", "message": "another process is pulling", "done_bytes": 0, "total_bytes": 0})
    said = capsys.readouterr()
    assert said.out == "" and said.err == "fetch\nwait another process is pulling\n"


# --- waiting -------------------------------------------------------------------------------------------

QUEUED = Routed(WORKER, MODEL, 1, 3, 7_600)
PAUSED = Waiting("the owner of this node needs the machine", 10_000)
TAKEN_AWAY = "\r\x1b[K"


async def shown_of(data: Path, script: Script, *command: str, **environment: str) -> str:
    """What a verb that asks shows on a terminal."""
    async with gateway_world(data, script):
        asked = ("-m", "cli", *command, "--data", str(data))
        return await trio.to_thread.run_sync(lambda: screen_of(*asked, **environment))


async def test_the_place_in_the_queue_is_shown_until_the_answer_begins(tmp_path: Path) -> None:
    place = f"waiting: 3rd in the queue of …{peer_id(WORKER)[-8:]}, some 8 s"
    script = events(QUEUED, ROUTED, Delta("Par"), PAUSED, ROUTED, Delta("is"), completed())
    screen = await shown_of(tmp_path, script, "ask", "capital?", COLUMNS="200")
    assert f"{TAKEN_AWAY}{place}{TAKEN_AWAY}" in screen and f"{TAKEN_AWAY}Par\r\n{TAKEN_AWAY}waiting for" in screen
    assert "the owner of this node needs the machine, back in 10 s" in screen and f"{TAKEN_AWAY}is" in screen
    plain = await shown_of(tmp_path, script, "ask", "capital?", TERM="dumb")
    assert f"{place}\r\n" in plain and "\x1b" not in plain
    assert "waiting" not in await shown_of(tmp_path, script, "ask", "capital?", "--json")


async def test_a_picture_that_waits_says_so_before_its_bar(tmp_path: Path) -> None:
    script = events(QUEUED, ROUTED, Progressed(1, 4, b""), completed())
    screen = await shown_of(tmp_path, script, "imagine", "a cat", "--out", str(tmp_path / "cat.png"))
    assert screen.index("3rd in the queue") < screen.index("paint") and "1 of 4" in screen


@pytest.mark.parametrize(
    ("place", "word"), [(1, "1st"), (2, "2nd"), (11, "11th"), (13, "13th"), (22, "22nd"), (30, "30th")]
)
def test_places_are_counted_in_words(place: int, word: str) -> None:
    assert f": {word} in the queue of …" in waiting_words({"worker": "12D3Koo", "queue_position": place, "wait_ms": 0})


# --- a conversation ------------------------------------------------------------------------------------


async def talk(data: Path, lines: Sequence[tuple[str, str | object]]) -> int:
    """`mtor chat`: after each text on the screen, type something."""

    def here() -> int:
        with Terminal("-m", "cli", "chat", "--data", str(data), TERM="dumb") as terminal:
            for expected, typed in lines:
                terminal.until(expected)
                terminal.clear()
                terminal.type(typed)
            return terminal.end()

    return await trio.to_thread.run_sync(here)


async def test_a_conversation_remembers_until_it_is_reset(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is")) as world:
        lines = [("›", "capital?\n"), ("receipt", "and now\n"), ("receipt", "/reset\n"), ("new conv", "again\n")]
        code = await talk(tmp_path, [*lines, ("receipt", "/quit\n")])
        assert code == 0
        asked = [[turn.text for turn in question.request.turns] for question in world.answers.asked]
        assert asked == [["capital?"], ["capital?", "Paris", "and now"], ["again"]]
    history = tmp_path / "chat_history"
    assert "and now" in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600


async def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    async def endless(question: Question, emit: Emit) -> None:
        await events(ROUTED, Delta("once upon a time"))(question, emit)
        await trio.sleep_forever()

    story: list[tuple[str, str | object]] = [("›", "a story\n"), ("upon a time", CTRL_C), ("(stopped)", "more\n")]
    async with gateway_world(tmp_path, endless) as world:
        code = await talk(tmp_path, [*story, ("upon a time", CTRL_C), ("(stopped)", "/quit\n")])
        assert code == 0
        await until(lambda: world.answers.cancelled == 2)  # the node stops working too
        assert [len(question.request.turns) for question in world.answers.asked] == [1, 1]


async def test_what_was_typed_is_kept_when_the_node_goes_away(tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with gateway_world(tmp_path):
            terminal = stack.enter_context(Terminal("-m", "cli", "chat", "--data", str(tmp_path), TERM="dumb"))
            await trio.to_thread.run_sync(terminal.until, "›")
        terminal.type("are you there\n")  # the node is gone
        assert await trio.to_thread.run_sync(terminal.end) == cli.NO_NODE
    assert "are you there" in (tmp_path / "chat_history").read_text()
