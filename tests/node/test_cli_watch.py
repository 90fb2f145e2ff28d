"""`--watch`: drawn in place on a terminal, lines of JSON elsewhere, and a node that goes away and comes back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console

import cli
from node.commands.watched import MOST_ROWS, draw_peers, draw_realms, draw_status
from node.operations import Json
from tests.node.gateway_world import World, gateway_world
from tests.node.test_cli_terminal import CTRL_C, Terminal

NASTY = "\x1b]0;title\x07[bold]"


def status(**changes: Any) -> Json:
    """What a node answers."""
    serving = {"realm": "$CHAT", "model": "smollm2-135m", "requests": ["chat"], "ready": True, "unloaded": False}
    serving |= {"device": "cpu", "slots": 2, "busy": 1, "queued": 3, "tokens_per_second": 12.5}
    running = {"query": "ab" * 16, "side": "served", "realm": "$CHAT", "model": "smollm2-135m", "peer": "9r3ANaba"}
    guard = {"paused": False, "overruled": [], "resumes_in_seconds": None, "until_ms": None, "why": ""}
    texts = {"balance_text": "9,000 cr", "held_text": "2 cr", "pending_text": "1 cr"}
    facts: Json = {"node": "12D3KooWabcdefgh", "name": "", "version": "0.1.0", "uptime_seconds": 3_661, "peers": 4}
    facts |= {"federation": {"name": f"friends{NASTY}", "epoch": 7}, "balance": texts, "serving": [serving]}
    facts |= {"running": [running | {"state": "answering", "seconds": 1.25}], "guard": guard, "problems": ["a problem"]}
    return facts | changes


def drawn(draw: Callable[[Json], Any], facts: Json) -> str:
    """On 80 columns."""
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(draw(facts))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text and "\x07" not in text
    return text


def test_a_status_fits_80_columns_and_a_screen() -> None:
    text = drawn(draw_status, status())
    for said in (
        "…abcdefgh",
        "up 1:01:01",
        "epoch 7",
        "9,000 cr",
        "1/2",
        "12.5",
        "abababab",
        "answering",
        "! a problem",
    ):
        assert said in text, said
    assert "[bold]" in text  # a federation's name is no markup
    many = status(running=status()["running"] * 50, problems=["x " * 100] * 9)
    text = drawn(draw_status, many)
    assert f"and {50 - MOST_ROWS} more" in text and text.count("abababab") == MOST_ROWS


def test_a_node_without_anything_says_so() -> None:
    text = drawn(draw_status, status(serving=[], running=[], problems=[]))
    assert "this node serves no model" in text and "no query runs" in text
    assert "nothing is on offer" in drawn(draw_realms, {"realms": []})
    assert "no other node is known" in drawn(draw_peers, {"peers": []})


def test_peers_and_realms_are_drawn_as_text() -> None:
    offer = {"node": "12D3KooWabcdefgh", "own": False, "realm": "$CHAT", "model": NASTY, "device": "cpu"}
    offer |= {"vram_mib": 0, "busy": 0, "slots": 2, "price_in": 1, "price_out": 2, "free": True}
    assert "[bold]" in drawn(draw_realms, {"realms": [{"realm": "$CHAT", "offers": [offer]}]})
    peer = {"node": "12D3KooWabcdefgh", "connected": True, "same_federation": True, "models": [offer]}
    assert "[bold]" in drawn(draw_peers, {"peers": [peer]})


# --- over a gateway ------------------------------------------------------------------------------------


def answering(world: World) -> None:
    """The operator's side answers with a status that counts its calls."""
    calls = 0

    async def call(name: str, arguments: Json) -> Json:
        nonlocal calls
        calls += 1
        return status(name=f"call-{calls}")

    world.operations.call = call  # type: ignore[method-assign]


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals of this kind")


@posix
@pytest.mark.parametrize("leave", ["q", CTRL_C], ids=["q", "ctrl-c"])
async def test_it_is_drawn_again_until_a_key_leaves(tmp_path: Path, leave: str | object) -> None:
    def here() -> tuple[int, str]:
        with Terminal("-m", "cli", "status", "--watch", "--data", str(tmp_path)) as terminal:
            terminal.until("call-1")
            terminal.until("call-2")
            terminal.type(leave)
            return terminal.end(), terminal.screen

    async with gateway_world(tmp_path) as world:
        answering(world)
        code, screen = await trio.to_thread.run_sync(here)
    assert code == 0
    assert "\x1b[?1049h" in screen and "\x1b[?1049l" in screen  # the screen of before comes back
    assert "\x1b[?25l" in screen and screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # and the cursor


@posix
async def test_a_node_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    with Terminal("-m", "cli", "status", "--watch", "--data", str(tmp_path)) as terminal:
        async with gateway_world(tmp_path) as world:
            answering(world)
            await trio.to_thread.run_sync(terminal.until, "call-1")
        terminal.clear()
        await trio.to_thread.run_sync(terminal.until, "Waiting for it")
        terminal.clear()
        async with gateway_world(tmp_path) as world:
            answering(world)
            await trio.to_thread.run_sync(terminal.until, "call-1")
            terminal.type("q")
            assert await trio.to_thread.run_sync(terminal.end) == 0


async def test_elsewhere_it_is_a_line_of_json_a_second(tmp_path: Path) -> None:
    def here() -> tuple[list[Json], int]:
        command = [sys.executable, "-m", "cli", "status", "--watch", "--json", "--data", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            read = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            return read, process.wait()

    async with gateway_world(tmp_path) as world:
        answering(world)
        read, code = await trio.to_thread.run_sync(here)
    assert [each["name"] for each in read] == ["call-1", "call-2"] and code == 0


async def test_without_a_terminal_and_without_json_it_names_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("status", "realms", "peers"):
        assert cli.main([verb, "--watch", "--data", str(tmp_path)]) == cli.USAGE
        assert "--watch --json" in capsys.readouterr().err


def test_without_a_node_it_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--watch", "--json", "--data", str(tmp_path)]) == cli.NO_NODE
    assert "mtor up" in capsys.readouterr().err
