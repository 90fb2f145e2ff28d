"""Logs: where they go, how they look, and what never gets into them."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from node.answers import Delta, Question
from node.config import LogSection
from node.engines.fake import FakeEngine
from node.engines.port import EngineError, Piece
from node.gateway.keys import ApiKeys
from node.logs import LOG_FILE, log_folder, start_logging
from protocol.errors import ErrorCode
from protocol.ids import CHAT, QueryId
from protocol.messages import ChatRequest, Turn
from protocol.routing import Requirements
from protocol.signing import Signer
from tests.node.gateway_world import ROUTED, Emit, World, events, failing, gateway_world, until
from tests.node.gateways import two_gateways

pytestmark = pytest.mark.usefixtures("loggers_as_before")

QUERY_ID = QueryId(bytes(range(16)))
PROMPT, ANSWER = "a-prompt-of-mine", "an-answer-of-the-model"


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


# --- following a query ---------------------------------------------------------------------------------

ABOUT_QUERIES = ("mtor.query", "mtor.router", "mtor.requester", "mtor.worker")


def read_json(data: Path) -> list[dict[str, Any]]:
    """The log's records."""
    return [json.loads(line) for line in lines(data)]


async def test_every_line_of_a_query_has_its_id_on_both_nodes(tmp_path: Path) -> None:
    start_logging(LogSection(level="debug", format="json"), tmp_path)
    async with two_gateways(tmp_path) as (federation, asker, _):
        reply = await asker.chat(max_tokens=3)
        federation.workers[0].worker.pause(1_000)
        refused = await asker.chat()
    records = [record for record in read_json(tmp_path) if record["logger"] in ABOUT_QUERIES]
    assert {record.get("query") for record in records} == {each.headers["x-mtor-query"] for each in (reply, refused)}
    said = [record["message"] for record in records if record["query"] == reply.headers["x-mtor-query"]]
    assert [message.split(" ")[0] for message in said] == ["asked", "taken", "routed", "served", "attempt", "answered:"]
    assert said[0] == "asked by anonymous: $CHAT, any model"
    assert "own-model" in said[1] and "own-model" in said[2] and "completed" in said[3] and "µcr" in said[5]
    said = [record["message"] for record in records if record["query"] == refused.headers["x-mtor-query"]]
    assert said[1].startswith("refused to ") and "the owner of this node needs the machine" in said[1]
    assert "refused: paused" in said[2] and said[-1].startswith("not answered: paused")
    assert {record["level"] for record in records if record["logger"] != "mtor.router"} == {"info"}
    assert [record["level"] for record in records if record["logger"] == "mtor.router"] == ["debug", "info"]


async def test_a_failover_is_told_with_its_reason(tmp_path: Path) -> None:
    start_logging(LogSection(format="json"), tmp_path)
    engine = FakeEngine("own-model", crash_after=2)

    async def recover() -> None:
        await until(lambda: any("engine_failed" in line for line in lines(tmp_path)))
        engine.crash_after = None

    async with two_gateways(tmp_path, engine) as (_, asker, _served), trio.open_nursery() as nursery:
        nursery.start_soon(recover)
        reply = await asker.chat()
    said = [(record["logger"], record["message"]) for record in read_json(tmp_path)]
    assert any(logger == "mtor.router" and message.endswith("engine_failed") for logger, message in said)
    assert any(logger == "mtor.worker" and "engine_failed, " in message for logger, message in said)
    assert sum(message.startswith("routed to") for _, message in said) > 1 and said[-1][1].startswith("answered: ")
    assert {record["query"] for record in read_json(tmp_path) if "engine_failed" in record["message"]} == {
        reply.headers["x-mtor-query"]
    }


async def test_the_gateways_own_lines_carry_the_query_too(tmp_path: Path) -> None:
    async def bug(question: Question, emit: Emit) -> None:
        logging.getLogger("mtor.x").info("on the other side of the bridge")
        raise ZeroDivisionError

    start_logging(LogSection(format="json"), tmp_path)
    async with gateway_world(tmp_path, events(ROUTED, Delta(ANSWER))) as world:
        await world.chat(stream=True)
        world.answers.script = bug
        await world.chat()
    records = read_json(tmp_path)
    ids = [asked.query_id.hex() for asked in world.answers.asked]
    assert [record["query"] for record in records if record["logger"] == "mtor.x"] == [ids[1]]
    assert all(record.get("query") in ids for record in records if record["logger"] == "mtor.query")


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("my-request_1.2:3/4+5=", "my-request_1.2:3/4+5="),
        ("with space <script> \xff", "withspacescript"),
        ("x" * 5_000, "x" * 128),
        ("<>", None),
        (None, None),
    ],
)
async def test_a_clients_own_name_for_its_request_is_kept_and_cleaned(
    tmp_path: Path, sent: str | None, echoed: str | None
) -> None:
    async with gateway_world(tmp_path) as world:
        headers = {} if sent is None else {"x-request-id": sent}
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        failing_body = body | {"temperature": "hot"}
        whole = await world.ask("POST", "/v1/chat/completions", body, headers)
        stream = await world.ask("POST", "/v1/chat/completions", body | {"stream": True}, headers)
        wrong = await world.ask("POST", "/v1/chat/completions", failing_body, headers)
        world.answers.script = failing(ErrorCode.NO_PEER)
        failed = await world.ask("POST", "/v1/chat/completions", body, headers)
    ids = [asked.query_id.hex() for asked in world.answers.asked]
    for reply, query in zip((whole, stream, failed), ids, strict=True):
        assert reply.headers["x-mtor-query"] == query
        assert reply.headers["x-request-id"] == (echoed or query)
    assert wrong.status == 400 and wrong.headers.get("x-request-id") == echoed and "x-mtor-query" not in wrong.headers


async def test_who_asked_is_told_by_name_and_never_by_key(tmp_path: Path) -> None:
    start_logging(LogSection(level="debug"), tmp_path)
    key = ApiKeys(tmp_path).create("laptop")
    async with gateway_world(tmp_path) as world:
        for bearer in (key, world.token, "sk-of-another-service"):
            headers = {"Authorization": f"Bearer {bearer}", "x-request-id": "r1"}
            message = [{"role": "user", "content": "hi"}]
            await world.ask("POST", "/v1/chat/completions", {"model": "auto", "messages": message}, headers)
        token = world.token
    asked = [found[1] for line in lines(tmp_path) if (found := re.search(r"asked by (.*?):", line))]
    assert asked == ["key laptop, request r1", "operator, request r1", "anonymous, request r1"]
    text = "\n".join(lines(tmp_path))
    assert "POST /v1/chat/completions 200 in " in text  # the access line
    assert not any(secret in text for secret in (key, token, "sk-of-another-service"))


class Gossip(FakeEngine):
    """An engine whose errors repeat what it was asked."""

    def generate(self, request: Any, prefix: str, inputs: Any = ()) -> Any:
        """Fails with the prompt in the message."""
        raise EngineError(ErrorCode.INVALID_REQUEST, f"cannot answer {request.turns[0].text}")


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("engine", [FakeEngine("m"), Gossip("m")], ids=["answers", "repeats"])
async def test_words_and_keys_of_queries_are_in_no_log_of_any_node(
    tmp_path: Path, style: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.router.DISCOVERY_SECONDS", 0.1)
    start_logging(LogSection.model_validate({"level": "debug", "format": style}), tmp_path)
    async with two_gateways(tmp_path, engine) as (_, asker, served):
        key = ApiKeys(asker.data).create("laptop")
        for world in (asker, served):
            await ask_everything(world, key)
        token = asker.token
    text = "\n".join(lines(tmp_path))
    assert "asked by key laptop" in text and "alpha0" not in text  # the fake engine's first word
    assert not any(secret in text for secret in (PROMPT, key, token))


async def ask_everything(world: World, key: str) -> None:
    """Queries with marker words in all places where people write."""
    bearer = {"Authorization": f"Bearer {key}"}
    chat = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    bodies: list[Any] = [
        chat,
        chat | {"stream": True},
        chat | {"messages": [{"role": "system", "content": PROMPT}, *chat["messages"]], "stop": [PROMPT]},
        chat | {"messages": [{"role": PROMPT, "content": PROMPT}]},
        chat | {"temperature": PROMPT},
        chat | {"tools": [{"type": "function", "function": {"name": PROMPT}}], "user": PROMPT},
        chat | {"mtor": {"realm": PROMPT, "worker": PROMPT}},
        PROMPT.encode(),
    ]
    for body in bodies:
        await world.ask("POST", "/v1/chat/completions", body, bearer)
    await world.ask("POST", "/v1/images/generations", {"prompt": PROMPT}, bearer)
    await world.ask("POST", "/v1/audio/speech", {"input": PROMPT, "voice": PROMPT}, bearer)
    await world.ask("GET", f"/{PROMPT}?q={PROMPT}", headers=bearer | {"Cookie": PROMPT, "User-Agent": PROMPT})
    await world.ask("GET", f"/v1/models/{PROMPT}", headers={"x-api-key": key})
    await world.ask("POST", f"/mtor/v1/{PROMPT}", {"text": PROMPT}, bearer)
