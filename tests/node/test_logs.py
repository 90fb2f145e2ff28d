"""Logs: where they go, how they look, and what never gets into them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.answers import Delta, Question
from node.config import LogSection
from node.engines.port import Piece
from node.gateway.keys import ApiKeys
from node.logs import LOG_FILE, QUIET, log_folder, start_logging
from protocol.errors import ErrorCode
from protocol.ids import CHAT, QueryId
from protocol.messages import ChatRequest, Turn
from protocol.routing import Requirements
from protocol.signing import Signer
from tests.node.gateway_world import ROUTED, Emit, events, failing, gateway_world

QUERY_ID = QueryId(bytes(range(16)))
PROMPT, ANSWER = "a-prompt-of-mine", "an-answer-of-the-model"


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """`start_logging` takes the process's loggers; give them back, with their files closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("mtor", *QUIET)}
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(data: Path) -> list[str]:
    """What is in the log file."""
    return (log_folder(data) / LOG_FILE).read_text().splitlines()


def test_text_lines_have_level_and_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(LogSection(), tmp_path)
    logging.getLogger("mtor.ledger").info("opened %d accounts", 3)
    logging.getLogger("mtor.ledger").debug("not at this level")
    [line] = lines(tmp_path)
    assert "INFO" in line and "mtor.ledger" in line and line.endswith("opened 3 accounts")
    assert capsys.readouterr().err.strip() == line  # the terminal shows the same


def test_json_lines_are_json_with_the_trace(tmp_path: Path) -> None:
    start_logging(LogSection(format="json"), tmp_path)
    log = logging.getLogger("mtor.gateway")
    log.warning("größer\nthan a line")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in lines(tmp_path))
    assert first["message"] == "größer\nthan a line" and first["level"] == "warning"
    assert first["logger"] == "mtor.gateway" and first["time"].endswith("Z") and "trace" not in first
    assert "ValueError: why" in second["trace"]


def test_the_level_is_ours_and_libraries_are_quiet(tmp_path: Path) -> None:
    start_logging(LogSection(level="debug"), tmp_path)
    logging.getLogger("mtor.x").debug("shown")
    for name in ("libp2p", "libp2p.transport", "aiohttp.server", "multiaddr"):
        logging.getLogger(name).error("noise")
    logging.getLogger("asyncio").warning("from another library")
    assert [line.split(maxsplit=4)[-1] for line in lines(tmp_path)] == ["shown", "from another library"]


def test_files_are_rotated_and_bounded(tmp_path: Path) -> None:
    start_logging(LogSection(max_bytes=10_000, files=2), tmp_path)
    for number in range(2_000):
        logging.getLogger("mtor.x").info("line %d", number)
    files = sorted(path.name for path in log_folder(tmp_path).iterdir())
    assert files == ["node.log", "node.log.1", "node.log.2"]
    assert all(path.stat().st_size <= 10_000 for path in log_folder(tmp_path).iterdir())
    assert lines(tmp_path)[-1].endswith("line 1999")


def test_starting_twice_writes_each_line_once(tmp_path: Path) -> None:
    start_logging(LogSection(), tmp_path)
    first = list(logging.getLogger().handlers)
    start_logging(LogSection(), tmp_path)
    for handler in first:
        handler.close()
    logging.getLogger("mtor.x").info("once")
    assert len(lines(tmp_path)) == 1


def test_json_lines_name_the_query(tmp_path: Path) -> None:
    start_logging(LogSection(format="json"), tmp_path)
    log = logging.getLogger("mtor.router")
    log.info("query %s attempt %d at %s: stop", QUERY_ID.hex(), 1, "12345678")
    log.info("query ended: %s", "no such thing")
    first, second = (json.loads(line) for line in lines(tmp_path))
    assert first["query"] == QUERY_ID.hex() and "query" not in second


REQUEST = ChatRequest((Turn("user", PROMPT),), 1, 0, 1_000, 0, 1_000, 2_000, 2_000, 0, ())
SEED = bytes(range(32))
CARELESS: list[tuple[Any, ...]] = [
    ("%r", REQUEST),
    ("%s", REQUEST.turns[0]),
    ("%s", REQUEST.turns),
    ("%s", {"request": REQUEST}),
    ("%(request)s", {"request": REQUEST}),
    ("%s", Question(QUERY_ID, CHAT, REQUEST, Requirements())),
    ("%s and %s", 1, Delta(PROMPT)),
    (Delta(PROMPT),),
    ("%s", Piece(PROMPT, 1)),
    ("%r", SEED),
    ("%s", [bytearray(SEED)]),
    ("%s", Signer.from_seed(SEED)),
]


@pytest.mark.parametrize("said", CARELESS, ids=[str(number) for number in range(len(CARELESS))])
@pytest.mark.parametrize("style", ["text", "json"])
def test_what_a_bug_hands_to_a_logger_is_taken_out(
    tmp_path: Path, style: str, said: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(LogSection.model_validate({"format": style}), tmp_path)
    logging.getLogger("mtor.x").warning(*said)
    [line] = lines(tmp_path)
    assert "<" in line and capsys.readouterr().err.strip() == line  # the type's name stands there
    for secret in (PROMPT, repr(SEED)[2:-1], repr(SEED)[10:30], SEED.hex()):
        assert secret not in line


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_is_added_to_a_record_is_not_written(tmp_path: Path, style: str) -> None:
    start_logging(LogSection.model_validate({"format": style}), tmp_path)
    logging.getLogger("mtor.x").warning("hello", extra={"prompt": PROMPT, "api_key": PROMPT})
    [line] = lines(tmp_path)
    assert "hello" in line and PROMPT not in line


async def test_what_people_write_is_in_no_log(tmp_path: Path) -> None:
    async def bug(question: Question, emit: Emit) -> None:
        await events(ROUTED, Delta(ANSWER))(question, emit)
        raise ZeroDivisionError("division by zero")

    start_logging(LogSection(level="debug"), tmp_path)
    key = ApiKeys(tmp_path).create("laptop")
    message = [{"role": "user", "content": PROMPT}]
    async with gateway_world(tmp_path) as world:
        for script in (bug, failing(ErrorCode.WORKER_LOST, after=(ANSWER,)), events(Delta(ANSWER))):
            world.answers.script = script
            for stream in (False, True):
                await world.chat(messages=message, stream=stream)
        await world.chat(messages=message, temperature="hot")
        await world.ask("POST", "/v1/chat/completions", PROMPT.encode(), {"Authorization": f"Bearer {key}"})
        token = world.token
    text = "\n".join(lines(tmp_path))
    assert "division by zero" in text  # the bugs are there
    assert not any(secret in text for secret in (PROMPT, ANSWER, key, token))
