"""`mtor ask` and `mtor chat`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.commands.client import Json, NodeClient, NodeRefused, UsageError
from node.commands.screen import StatusLine, print_json, printable, waiting_words
from node.paths import data_folder

HISTORY_FILE = "chat_history"
HISTORY_LINES = 1_000
MOST_SECONDS = 86_400  # what is less but too much for the node, it says itself


def ask(options: argparse.Namespace) -> int:
    """One question."""
    text = sys.stdin.read() if options.text == "-" else options.text
    client = NodeClient(data_folder(options.data))
    turns = [*_system(options), {"role": "user", "content": _content(text, options.image)}]
    answer, facts = _converse(client, options, turns)
    if options.json:
        print_json({"text": answer, **facts})
    else:
        print()
        print_bill(facts)
    return 0


def chat(options: argparse.Namespace) -> int:
    """A conversation until /quit or the end of the input."""
    data = data_folder(options.data)
    client = NodeClient(data)
    with _history(data / HISTORY_FILE):
        turns = _system(options)
        while (line := _read_line()) is not None:
            command = line.strip()
            if command == "/quit":
                break
            if command == "/reset":
                turns = _system(options)
                print("(a new conversation)")
            elif command:
                turns = _turn(client, options, turns, line)
    return 0


@contextmanager
def _history(path: Path) -> Iterator[None]:
    """Lines that were typed come back with the arrow keys, also next time, however this time ends."""
    try:
        import readline
    except ImportError:  # Windows: lines are typed without a history
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.touch(mode=0o600)
            readline.set_history_length(HISTORY_LINES)
            readline.write_history_file(path)


def _turn(client: NodeClient, options: argparse.Namespace, turns: list[Json], line: str) -> list[Json]:
    """One question in a conversation. Ctrl-C stops the answer, not the program; an error keeps the conversation."""
    asked = [*turns, {"role": "user", "content": line}]
    try:
        answer, facts = _converse(client, options, asked)
    except KeyboardInterrupt:
        print("\n(stopped)")
        return turns
    except NodeRefused as error:
        print(f"mtor: {error}", file=sys.stderr)
        return turns
    print()
    print_bill(facts)
    return [*asked, {"role": "assistant", "content": answer}]


def _converse(client: NodeClient, options: argparse.Namespace, turns: list[Json]) -> tuple[str, Json]:
    """The answer's text, and the node's facts about it."""
    parts: list[str] = []
    facts: Json = {}
    with _Shown(hidden=options.json) as shown:
        for chunk in client.chat(_body(options, turns)):
            about = chunk.get("mtor", {})
            facts = about if "shares" in about else facts
            shown.wait(about)
            for choice in chunk["choices"]:
                text = choice["delta"].get("content") or ""
                parts.append(text)
                shown.text(text)
    return "".join(parts), facts


class _Shown:
    """An answer on the screen, and what it waits for. With --json neither is shown: the text comes at the end."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._line = StatusLine()
        self._in_line = False  # the answer stands in the middle of a line

    def __enter__(self) -> _Shown:
        """See the class."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is said of a broken answer begins a line of its own."""
        self._line.clear()
        if kind is not None and not issubclass(kind, KeyboardInterrupt):  # the terminal writes ^C there
            self._end_line()

    def text(self, text: str) -> None:
        """The next piece of the answer."""
        if text and not self._hidden:
            self._line.clear()
            print(printable(text), end="", flush=True)
            self._in_line = not text.endswith("\n")

    def wait(self, standing: Json) -> None:
        """Where the query stands, if a chunk says so."""
        words = "" if self._hidden else waiting_words(standing)
        if words:
            if self._line.seen and sys.stdout.isatty():  # elsewhere the answer is no part of the screen
                self._end_line()
            self._line.show(words)

    def _end_line(self) -> None:
        if self._in_line:
            print(flush=True)
        self._in_line = False


def _content(text: str, pictures: list[Path]) -> str | list[Json]:
    """A message's content: the text alone, or with the pictures that it is about."""
    from node.commands.making import read_media

    if not pictures:
        return text
    shown = [base64.b64encode(read_media(path)).decode() for path in pictures]
    urls = [{"type": "image_url", "image_url": {"url": f"data:image/*;base64,{data}"}} for data in shown]
    return [{"type": "text", "text": text}, *urls]


def _body(options: argparse.Namespace, turns: list[Json]) -> Json:
    return given(
        model=options.model,
        messages=turns,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        mtor=wishes(options),
    )


def given(**fields: Any) -> Json:
    """The fields that were said."""
    return {name: value for name, value in fields.items() if value not in (None, {}, "")}


def wishes(options: argparse.Namespace, *, as_text: bool = False) -> Any:
    """The `mtor` object of a request, from the flags that all asking verbs have."""
    said = given(
        realm=options.realm,
        worker=options.worker,
        min_vram_mib=options.min_vram,
        device=options.device,
        max_price_in=options.max_price_in,
        max_price_out=options.max_price,
        min_context_tokens=options.min_context,
        deadline_ms=None if options.deadline is None else _milliseconds(options.deadline),
    )
    return json.dumps(said) if as_text and said else said


def _milliseconds(seconds: float) -> int:
    """Raises `UsageError`."""
    if not 0 < seconds < MOST_SECONDS:
        raise UsageError(f"--deadline {seconds:g}: write seconds, more than 0 and less than {MOST_SECONDS}")
    return round(seconds * 1_000)


def _system(options: argparse.Namespace) -> list[Json]:
    return [{"role": "system", "content": options.system}] if options.system else []


def _read_line() -> str | None:
    try:
        return input("› " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return None


def print_bill(facts: Json) -> None:
    """Who answered and what it cost, on standard error so that answers can be piped."""
    from protocol.pricing import format_credits

    for share in facts.get("shares", []):
        cost = {"own": "own node", "free": "free lane"}.get(share["lane"]) or format_credits(share["amount"])
        receipt = f", receipt {share['receipt'][:12]}" if share["receipt"] else ""
        counts = f"{share['units_in']} + {share['units_out']} units"
        print(f"  [{share['model']} at …{share['worker'][-8:]}: {counts}, {cost}{receipt}]", file=sys.stderr)
