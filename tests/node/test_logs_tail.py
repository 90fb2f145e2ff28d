"""Reading logs back: `logs.tail`, `mtor logs`, rotated files, following, and strangers' control codes."""

import io
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import cli
from node.commands.logs import _Shower
from node.config import LogSection
from node.log_context import query_named
from node.log_files import BLOCK_BYTES, LONGEST_LINE, Part, Wish, last_records, log_files, read_line
from node.log_operations import FOLLOWED_LINES, MOST_FOLLOWERS, LogOperations
from node.logs import log_folder, start_logging
from node.operations import Json, OperationFailed, dispatch_stream
from tests.node.gateway_world import World, gateway_world, until

pytestmark = pytest.mark.usefixtures("loggers_as_before")

QUERY, OTHER = "ab" * 16, "cd" * 16
log = logging.getLogger("mtor.x")


def begin(data: Path, **section: Any) -> None:
    """Log into a folder; the terminal gets nothing."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()
    start_logging(LogSection.model_validate({"level": "debug"} | section), data)
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]


async def tail(data: Path, **arguments: Any) -> list[Json]:
    """What `logs.tail` emits without following."""
    came: list[Json] = []

    async def emit(record: Json) -> None:
        came.append(record)

    await dispatch_stream(LogOperations(data).streams, "logs.tail", arguments, emit)
    assert came.pop() == {"done": True}
    return came


def messages(records: list[Json]) -> list[str]:
    return [record["message"] for record in records]


@pytest.mark.parametrize("style", ["text", "json"])
async def test_lines_come_back_as_they_were_written(tmp_path: Path, style: str) -> None:
    begin(tmp_path, format=style)
    log.info("plain")
    with query_named(QUERY):
        log.debug("of a query")
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("broken")
    log.warning("query %s is not in the books", OTHER)
    first, second, third, fourth = await tail(tmp_path)
    assert first["message"] == "plain" and first["level"] == "info" and first["logger"] == "mtor.x"
    assert first["time"].endswith("Z") and "query" not in first and "trace" not in first
    assert second["message"] == "of a query" and second["query"] == QUERY
    assert third["query"] == QUERY and "ValueError: why" in third["trace"] and "Traceback" in third["trace"]
    assert fourth["query"] == OTHER and fourth["message"].startswith("query")
    assert messages(await tail(tmp_path, lines=2)) == ["broken", fourth["message"]]
    assert messages(await tail(tmp_path, level="warning")) == ["broken", fourth["message"]]
    assert messages(await tail(tmp_path, query=QUERY[:4], lines=1)) == ["broken"]
    assert await tail(tmp_path, lines=0) == []


def test_both_formats_tell_the_same_time(tmp_path: Path) -> None:
    moments = []
    for style in ("text", "json"):
        begin(tmp_path / style, format=style)
        record = logging.LogRecord("mtor.x", logging.INFO, "", 0, "at a time", (), None)
        record.created, record.msecs = 1_700_000_000.5, 500.0
        logging.getLogger().handle(record)
        [line] = (log_folder(tmp_path / style) / "node.log").read_text().splitlines()
        read = read_line(line)
        assert read is not None
        moments.append(read["time"])
    assert moments == ["2023-11-14T22:13:20.500Z"] * 2


async def test_rotated_files_are_read_in_order_and_no_further_than_needed(tmp_path: Path) -> None:
    begin(tmp_path, max_bytes=10_000, files=3)
    for number in range(1_000):
        log.info("line %d", number)
    files = log_files(tmp_path)
    assert [path.name for path in files] == ["node.log", "node.log.1", "node.log.2", "node.log.3"]
    lines = messages(await tail(tmp_path, lines=10_000))
    assert 300 < len(lines) < 1_000 and lines == [f"line {number}" for number in range(1_000 - len(lines), 1_000)]
    for old in files[1:]:
        old.unlink()
        old.mkdir()  # cannot be read: nothing tries, where the newest has enough
    assert messages(await tail(tmp_path, lines=3)) == ["line 997", "line 998", "line 999"]


class CountedFile(io.BytesIO):
    """Knows how much was read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_a_long_file_is_read_from_its_end_alone() -> None:
    line = b"2026-01-02 03:04:05,006 INFO    mtor.x           %d\n"
    whole = b"".join(line % number for number in range(100_000))
    file = CountedFile(whole)
    records = last_records([Part(file, len(whole))], Wish(), 10)
    assert messages(records) == [str(number) for number in range(99_990, 100_000)]
    assert file.taken <= BLOCK_BYTES
    everything = last_records([Part(file, len(whole))], Wish(), 10**6)
    assert messages(everything) == [str(number) for number in range(100_000)]  # none is cut where blocks meet


def test_a_line_without_an_end_is_bounded() -> None:
    head = b"2026-01-02 03:04:05,006 INFO    mtor.x           "
    whole = head + b"x" * (5 * LONGEST_LINE) + b"\n" + head + b"short"
    [first, second] = last_records([Part(io.BytesIO(whole), len(whole))], Wish(), 5)
    assert len(first["message"]) <= 2 * LONGEST_LINE and second["message"] == "short"


NOT_OURS = ["", "{", "{}", '{"time": 1}', "[1]", '{"time":"t","level":"odd","logger":"l","message":"m"}', "2026-99-99"]


@pytest.mark.parametrize("line", [*NOT_OURS, "9999-99-99 99:99:99,999 INFO x y", '{"a":' * 5_000])
def test_what_is_no_line_of_ours_is_none(line: str) -> None:
    assert read_line(line) is None


@pytest.mark.parametrize("wrong", [{"lines": -1}, {"lines": 10_001}, {"level": "loud"}, {"query": "xyz"}, {"q": 1}])
async def test_wrong_wishes_are_refused(tmp_path: Path, wrong: Json) -> None:
    with pytest.raises(OperationFailed, match=r"logs\.tail takes"):
        await tail(tmp_path, **wrong)


# --- following -----------------------------------------------------------------------------------------


class Following:
    """A task that follows."""

    def __init__(self, operations: LogOperations, **arguments: Any) -> None:
        self.came: list[Json] = []
        self.scope = trio.CancelScope()
        self.gate = trio.Event()  # until it is set, nothing is taken after the first
        self._operations = operations
        self._arguments = arguments

    async def run(self) -> None:
        async def emit(record: Json) -> None:
            self.came.append(record)
            await self.gate.wait()

        with self.scope:
            await dispatch_stream(self._operations.streams, "logs.tail", {"follow": True} | self._arguments, emit)


async def test_following_goes_on_where_the_files_end(tmp_path: Path) -> None:
    begin(tmp_path, max_bytes=10_000, files=2)
    for number in range(20):
        log.info("before %d", number)
    following = Following(LogOperations(tmp_path), lines=5)
    following.gate.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(following.run)
        await until(lambda: len(following.came) == 5)
        handlers = len(logging.getLogger().handlers)
        for number in range(300):  # some rotations
            await trio.to_thread.run_sync(partial(log.info, "after %d", number))
        await until(lambda: len(following.came) == 305)
        following.scope.cancel()
    wanted = [f"before {number}" for number in range(15, 20)] + [f"after {number}" for number in range(300)]
    assert messages(following.came) == wanted
    assert len(logging.getLogger().handlers) == handlers - 1  # it left nothing behind


async def test_following_can_be_choosy(tmp_path: Path) -> None:
    begin(tmp_path)
    following = Following(LogOperations(tmp_path), lines=0, level="info", query=QUERY)
    following.gate.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(following.run)
        await until(lambda: len(logging.getLogger().handlers) == 2)
        with query_named(QUERY):
            log.debug("too small")
            log.info("wanted")
        with query_named(OTHER):
            log.error("another's")
        log.error("nobody's")
        with query_named(QUERY):
            log.error("wanted too")
        await until(lambda: len(following.came) == 2)
        following.scope.cancel()
    assert messages(following.came) == ["wanted", "wanted too"]


async def test_a_slow_reader_misses_lines_and_is_told(tmp_path: Path) -> None:
    begin(tmp_path)
    following = Following(LogOperations(tmp_path), lines=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(following.run)
        await until(lambda: len(logging.getLogger().handlers) == 2)
        log.info("first")
        await until(lambda: len(following.came) == 1)
        for number in range(FOLLOWED_LINES + 50):
            log.info("line %d", number)
        following.gate.set()
        await until(lambda: len(following.came) == 1 + FOLLOWED_LINES)
        following.scope.cancel()
    assert messages(following.came)[1] == "(50 lines before this one were missed) line 50"


async def test_followers_are_bounded(tmp_path: Path) -> None:
    begin(tmp_path)
    operations = LogOperations(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(MOST_FOLLOWERS):
            nursery.start_soon(Following(operations).run)
        await until(lambda: len(logging.getLogger().handlers) == 1 + MOST_FOLLOWERS)
        with pytest.raises(OperationFailed, match="end one of them"):
            await Following(operations).run()
        nursery.cancel_scope.cancel()


def with_logs(world: World) -> None:
    """The gateway's operator answers `logs.tail` as a node does."""
    streams = LogOperations(world.data).streams
    world.operations.stream = partial(dispatch_stream, streams)  # type: ignore[method-assign]


async def test_a_client_that_leaves_ends_its_following(tmp_path: Path) -> None:
    begin(tmp_path)
    async with gateway_world(tmp_path) as world:
        with_logs(world)
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        head = f"POST /mtor/v1/logs.tail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.token}\r\n"
        await client.send_all(head.encode() + b'Content-Length: 15\r\n\r\n{"follow":true}')
        await until(lambda: len(logging.getLogger().handlers) == 2)
        log.info("something")
        received = b""
        while b"something" not in received:
            received += await client.receive_some(65_536)
        await client.aclose()
        await until(lambda: len(logging.getLogger().handlers) == 1)


# --- mtor logs -----------------------------------------------------------------------------------------

Mtor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mtor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mtor:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main((*arguments, "--data", str(tmp_path)))
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


async def test_the_same_lines_with_a_node_and_without(tmp_path: Path, mtor: Mtor) -> None:
    begin(tmp_path)
    with query_named(QUERY):
        log.info("of a query")
        log.warning("and more")
    log.info("of none")
    wishes = [(), ("--lines", "1"), ("--query", QUERY.upper()), ("--level", "warning", "--json"), ("--lines", "0")]
    without = [mtor("logs", *wish) for wish in wishes]
    async with gateway_world(tmp_path) as world:
        with_logs(world)
        logging.getLogger("mtor").setLevel(logging.CRITICAL)  # what the gateway says of these calls
        there = [await trio.to_thread.run_sync(mtor, "logs", *wish) for wish in wishes]
    assert without == there and [code for code, _, _ in there] == [0] * len(wishes)
    assert [len(out.splitlines()) for _, out, _ in there] == [3, 1, 2, 1, 0]
    assert f"INFO    mtor.x           of a query (query {QUERY})" in there[2][1]
    assert json.loads(there[3][1])["query"] == QUERY


def test_a_folder_without_logs_says_how_to_get_some(mtor: Mtor) -> None:
    code, _, said = mtor("logs")
    assert code == cli.NO_NODE and "mtor up" in said


@pytest.mark.parametrize("wrong", [("--query", "xyz"), ("--query", "ab"), ("--lines", "-1"), ("--lines", "10001")])
def test_wrong_wishes_are_wrong_usage(mtor: Mtor, wrong: tuple[str, str]) -> None:
    code, out, said = mtor("logs", *wrong)
    assert code == cli.USAGE and said and not out


NASTY = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\nINFO mtor.x forged"


@pytest.mark.parametrize("style", ["text", "json"])
def test_strangers_words_send_no_control_codes_and_forge_no_line(
    tmp_path: Path, mtor: Mtor, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(LogSection.model_validate({"format": style}), tmp_path)
    log.info("the worker said: %s", NASTY)
    written = (log_folder(tmp_path) / "node.log").read_text() + capsys.readouterr().err
    code, out, _ = mtor("logs")
    assert code == 0 and "evil" in out
    for text in (written, out):
        assert not any(bad in text for bad in ("\x1b", "\x07", "\x9b", "\u202e"))
    assert len(written.splitlines()) == 2  # one in the file, one on the terminal


def test_a_hostile_file_is_shown_without_its_codes(tmp_path: Path, mtor: Mtor) -> None:
    folder = log_folder(tmp_path)
    folder.mkdir()
    record = {"time": "t", "level": "info", "logger": NASTY, "message": NASTY, "query": NASTY, "trace": NASTY}
    (folder / "node.log").write_text(json.dumps(record) + "\n\x1b[31mno line of ours\n")
    code, out, _ = mtor("logs")
    assert code == 0 and "evil" in out and "\x1b" not in out and "\x9b" not in out


def test_levels_have_colours_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    record = {"time": "2026", "level": "error", "logger": "mtor.x", "message": "bad"}
    assert "\x1b" not in _Shower(False)._line(record)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert _Shower(False)._line(record).startswith("\x1b[31m2026 ERROR")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in _Shower(False)._line(record)


def test_after_a_reconnection_nothing_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    def line(moment: int, message: str) -> Json:
        return {"time": f"2026-01-01T00:00:0{moment}.000Z", "level": "info", "logger": "x", "message": message}

    show = _Shower(False)
    show.resume()
    for record in (line(1, "a"), line(2, "b"), line(2, "c"), line(1, "late"), line(2, "b")):
        show(record)
    show.resume()
    for record in (line(1, "a"), line(2, "b"), line(2, "c"), line(2, "new"), line(3, "d"), line(1, "late as well")):
        show(record)
    shown = [text.split()[-1] for text in capsys.readouterr().out.splitlines()]
    assert shown == ["a", "b", "c", "late", "b", "new", "d", "well"]
