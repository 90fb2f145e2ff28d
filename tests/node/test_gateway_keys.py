"""Keys, limits and the operator's sessions over real HTTP."""

import json
import logging
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from openai import OpenAI, RateLimitError
from openai.types.chat import ChatCompletionUserMessageParam

import cli
from node.answers import Failed, Question
from node.commands import page
from node.config import LogSection
from node.gateway.key_usage import KeyUsage
from node.gateway.keys import ApiKey, ApiKeys, KeysError, Terms, key_id
from node.gateway.limits import WRONG_KEYS_PER_MINUTE
from node.gateway.sessions import CODE_SECONDS, MOST_CODES, MOST_SESSIONS, Sessions
from node.logs import start_logging
from protocol.errors import ErrorCode
from protocol.ids import peer_id
from tests.node.gateway_world import (
    ROUTED,
    SHARE,
    WORKER,
    Emit,
    Reply,
    World,
    completed,
    events,
    gateway_world,
    saying,
    until,
)

CHAT = "/v1/chat/completions"
USER: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
HELLO = {"model": "auto", "messages": [USER]}
MODELS = "/v1/models"


async def ask(world: World, key: str = "", body: Any = HELLO, path: str = CHAT, **headers: str) -> Reply:
    """A query with a key, or without one."""
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.ask("POST", path, body, shown | more)


async def look(world: World, key: str = "", **headers: str) -> int:
    """What becomes of a look at the models."""
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await world.ask("GET", MODELS, None, shown | more)).status


def made(folder: Path, **terms: Any) -> str:
    """A key of these terms."""
    return ApiKeys(folder).create("laptop", "", Terms(**terms))


async def listed(world: World) -> dict[str, Any]:
    """The one key that there is."""
    [row] = (await world.operate("keys.list")).json["keys"]
    found: dict[str, Any] = row
    return found


# --- limits of a key -----------------------------------------------------------------------------------


async def test_a_key_that_has_had_its_requests_is_told_when_there_are_more(tmp_path: Path) -> None:
    limited, other = made(tmp_path, requests_per_minute=2), made(tmp_path)
    async with gateway_world(tmp_path) as world:
        first = await ask(world, limited)
        assert first.status == 200 and first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        streamed = await ask(world, limited, HELLO | {"stream": True})
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0" and streamed.frames[-1] == "[DONE]"
        reply = await ask(world, limited)
        error = reply.error
        assert reply.status == 429 and (error["type"], error["code"]) == ("rate_limit_error", "requests_per_minute")
        wait = int(reply.headers["retry-after-ms"])
        assert 20_000 < wait <= 30_000 and reply.headers["retry-after"] == str(-(-wait // 1_000))
        assert reply.headers["x-ratelimit-reset-requests"].endswith("s")
        assert len(world.answers.asked) == 2
        assert (await ask(world, other)).status == (await ask(world)).status == 200
        assert not any(name.startswith("x-ratelimit") for name in (await ask(world, other)).headers)


async def test_openais_library_knows_a_limit_and_waits_as_it_is_told(tmp_path: Path) -> None:
    share = replace(SHARE, units_out=6_143)  # with the question 150 more than there are, at 100 a second
    key = made(tmp_path, tokens_per_minute=6_000)
    async with gateway_world(tmp_path, events(ROUTED, replace(completed(), shares=(share,)))) as world:

        def use() -> None:
            with OpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=0) as client:
                create = partial(client.chat.completions.create, model="auto", messages=[USER])
                client.models.list()  # the library's first call takes long
                create()
                with pytest.raises(RateLimitError) as refused:
                    create()
                assert refused.value.code == "tokens_per_minute" and "6000 tokens a minute" in refused.value.message
                assert refused.value.response.headers["retry-after"] in ("1", "2")
                client.with_options(max_retries=1).chat.completions.create(model="auto", messages=[USER])

        await trio.to_thread.run_sync(use)
        assert len(world.answers.asked) == 2


async def test_a_request_that_is_wrong_costs_nothing(tmp_path: Path) -> None:
    key = made(tmp_path, requests_per_minute=1)
    async with gateway_world(tmp_path) as world:
        assert (await ask(world, key, b"{")).status == 400
        assert (await ask(world, key)).status == 200
        assert (await ask(world, key)).status == 429
        assert await look(world, key) == 200  # looking is no query


async def test_tokens_are_those_of_the_answer(tmp_path: Path) -> None:
    key = made(tmp_path, tokens_per_minute=15)
    async with gateway_world(tmp_path) as world:
        assert (await ask(world, key)).headers["x-ratelimit-remaining-tokens"] == "5"  # 7 in and 3 out
        assert (await ask(world, key)).headers["x-ratelimit-remaining-tokens"] == "0"
        reply = await ask(world, key)
        assert reply.status == 429 and reply.error["code"] == "tokens_per_minute"


async def test_a_month_is_counted_in_what_was_charged_and_over_restarts(tmp_path: Path) -> None:
    key = made(tmp_path, monthly_micro=40)
    async with gateway_world(tmp_path) as world:
        assert [(await ask(world, key)).status for _ in range(2)] == [200, 200]
        row = await listed(world)
        assert row["spent_micro"] == 32 and row["spent_this_month"] == "0.000032 cr"
    assert stat.S_IMODE((tmp_path / "key_usage.json").stat().st_mode) == 0o600
    async with gateway_world(tmp_path) as world:
        assert [(await ask(world, key)).status for _ in range(2)] == [200, 429]
        reply = await ask(world, key)
        assert reply.error["code"] == "monthly_credits" and reply.error["type"] == "insufficient_quota"
        assert reply.headers["x-should-retry"] == "false"
    assert KeyUsage(tmp_path).spent(key_id(key), time.time()) == 48


async def test_an_answer_that_failed_is_counted_for_what_it_cost(tmp_path: Path) -> None:
    key = made(tmp_path, monthly_micro=10)
    async with gateway_world(tmp_path, events(ROUTED, Failed(ErrorCode.WORKER_LOST, "gone", 0, (SHARE,)))) as world:
        assert (await ask(world, key)).status == 502
        assert (await listed(world))["spent_micro"] == SHARE.amount
        assert (await ask(world, key)).status == 429


async def test_who_hangs_up_before_the_last_word_is_counted_too(tmp_path: Path) -> None:
    async def cut_off(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        try:
            await trio.sleep_forever()
        finally:
            assert question.charged is not None
            question.charged(SHARE)  # as the requester does when it leaves a worker

    key = made(tmp_path, tokens_per_minute=5)
    async with gateway_world(tmp_path, cut_off) as world:
        client = await trio.open_tcp_stream("127.0.0.1", world.port)
        body = json.dumps(HELLO | {"stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        await client.send_all(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: world.answers.emitted > 0)
        await client.aclose()
        await until(lambda: world.answers.cancelled == 1)
        assert (await listed(world))["spent_micro"] == SHARE.amount
        world.answers.script = saying("x")
        assert (await ask(world, key)).error["code"] == "tokens_per_minute"


async def test_the_counts_are_written_while_the_node_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.gateway.http.USAGE_SECONDS", 0.02)
    key = made(tmp_path)
    async with gateway_world(tmp_path) as world:
        await ask(world, key)
        await until(lambda: KeyUsage(tmp_path).spent(key_id(key), time.time()) == SHARE.amount)
        assert (await listed(world))["last_used"] > time.time() - 3_601


# --- scopes and ends -----------------------------------------------------------------------------------


async def test_a_key_asks_in_its_realms_alone(tmp_path: Path) -> None:
    chat, watcher, own = (made(tmp_path, scopes=scopes) for scopes in (("$CHAT",), ("models",), ("$POETRY", "$CHAT")))
    poem = HELLO | {"model": "$POETRY"}
    async with gateway_world(tmp_path) as world:
        assert (await ask(world, chat)).status == (await ask(world, own)).status == 200
        assert (await ask(world, own, poem)).status == 200
        for key, body, path in ((chat, poem, CHAT), (watcher, HELLO, CHAT)):
            reply = await ask(world, key, body, path)
            assert reply.status == 403 and reply.error["code"] == "insufficient_scope"
            assert "--scope" in reply.error["message"]
        picture = {"prompt": "an apple"}
        assert (await ask(world, chat, picture, "/v1/images/generations")).error["code"] == "insufficient_scope"
        assert (await ask(world, chat, {"input": "x"}, "/v1/audio/speech")).error["code"] == "insufficient_scope"
        assert len(world.answers.asked) == 3
        assert [await look(world, key) for key in (chat, watcher, own)] == [200, 200, 200]


async def test_a_key_ends_on_its_day_also_where_none_is_wanted(tmp_path: Path) -> None:
    over, lasting = made(tmp_path, expires=int(time.time())), made(tmp_path, expires=int(time.time()) + 900)
    for host in ("127.0.0.1", "0.0.0.0"):
        async with gateway_world(tmp_path, host=host) as world:
            assert (await ask(world, lasting)).status == 200
            reply = await ask(world, over)
            assert reply.status == 401 and reply.error["code"] == "expired_api_key"
            assert "expired on 2" in reply.error["message"]


async def test_a_running_node_goes_by_the_file_at_once(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path)
    keys.create("first")
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        for number in range(5):
            key = keys.create(f"n{number}")
            assert await look(world, key) == 200
            keys.revoke(key_id(key))
            assert await look(world, key) == 401
        (tmp_path / "api_keys").unlink()
        assert await look(world, key) == 401


def test_the_file_is_read_when_it_changed_and_not_at_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = Path.read_text

    def counted(self: Path, *arguments: Any, **named: Any) -> str:
        reads.append(self)
        return real(self, *arguments, **named)

    keys, other = ApiKeys(tmp_path), ApiKeys(tmp_path)
    first = other.create("first")
    monkeypatch.setattr(Path, "read_text", counted)
    assert all(keys.accepts(first) for _ in range(50)) and not keys.accepts("mtor-wrong")
    assert len(reads) == 1
    second = other.create("second")
    reads.clear()
    assert keys.accepts(second) and keys.accepts(first) and len(reads) == 1


def test_keys_of_older_versions_are_read_and_of_newer_ones_too(tmp_path: Path) -> None:
    key = ApiKeys(tmp_path).create("laptop", peer_id(WORKER))
    [entry] = json.loads((tmp_path / "api_keys").read_text())
    old = {name: entry[name] for name in ("id", "name", "sha256", "created")}
    newer = entry | {"id": "b" * 12, "sha256": "b" * 64, "a_setting_of_later": 1}
    (tmp_path / "api_keys").write_text(json.dumps([old, newer]))
    first, second = ApiKeys(tmp_path).all()
    assert first == ApiKey(key_id(key), "laptop", entry["sha256"], entry["created"])
    assert second.account == peer_id(WORKER) and ApiKeys(tmp_path).accepts(key)


ENTRY = '"id": "a", "name": "b", "sha256": "c", "created": 1'
MORE = ('"scopes": ["chat"]', '"account": "me"', '"expires": -1')
DAMAGED = ["{", "{}", "[3]", '[{"id": "a"}]', *(f"[{{{ENTRY}, {more}}}]" for more in MORE)]


@pytest.mark.parametrize("text", DAMAGED)
async def test_a_damaged_file_lets_nobody_in_and_is_named_in_the_log_alone(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path)
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        (tmp_path / "api_keys").write_text(text)
        reply = await ask(world, "mtor-something")
        assert reply.status == 503 and reply.error["code"] == "keys_unreadable"
        assert "api_keys" not in reply.error["message"] and "remove it and create new keys" in caplog.text


async def test_keys_made_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(trio.to_thread.run_sync, ApiKeys(tmp_path).create, f"n{number}")
    assert {key.name for key in ApiKeys(tmp_path).all()} == {f"n{number}" for number in range(20)}


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "\x1b[2J"])
def test_a_key_has_a_name_that_can_be_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="whose it is"):
        ApiKeys(tmp_path).create(name)
    assert not (tmp_path / "api_keys").exists()


# --- secrets -------------------------------------------------------------------------------------------


async def test_secrets_are_shown_once_and_are_nowhere_else(tmp_path: Path) -> None:
    before, level = list(logging.getLogger().handlers), logging.getLogger().level
    start_logging(LogSection(level="debug"), tmp_path)
    try:
        async with gateway_world(tmp_path) as world:
            made_now = (await world.operate("keys.create", {"name": "laptop"})).json
            key: str = made_now["key"]
            link = (await world.operate("page.link")).json["url"]
            code = link.partition("unlock=")[2]
            token: str = (await world.ask("POST", "/mtor/unlock", {"code": code})).json["token"]
            secrets = [key, code, token, world.token]
            for shown in [*secrets, "mtor-wrong"]:
                await ask(world, shown)
                await world.ask("POST", "/mtor/v1/status", {}, {"Authorization": f"Bearer {shown}"})
                await world.ask("POST", "/mtor/unlock", {"code": shown})
            told = [await world.operate(name) for name in ("keys.list", "limits.show")]
            told += [await world.ask("GET", path) for path in ("/metrics", "/", MODELS)]
            assert not [secret for secret in secrets for reply in told if secret in reply.body.decode()]
            assert "sha256" not in told[0].body.decode()
    finally:
        for handler in list(logging.getLogger().handlers):
            logging.getLogger().removeHandler(handler)
            handler.close()
        for handler in before:
            logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(level)
    every = await trio.to_thread.run_sync(lambda: list(tmp_path.rglob("*")))
    files = [path for path in every if path.is_file() and path.name != "admin.token"]
    assert {"api_keys", "key_usage.json", "node.log"} <= {path.name for path in files}
    for path in files:
        assert not [secret for secret in secrets if secret in path.read_text()], path


# --- without a key -------------------------------------------------------------------------------------


async def test_who_may_ask_without_a_key_is_the_operators_choice(tmp_path: Path) -> None:
    made(tmp_path)
    proxied = {"X_Forwarded_For": "198.51.100.7"}
    table = [  # anonymous, host, this machine without a key, with another's key, a stranger without, with another's
        ("auto", "127.0.0.1", 200, 200, 401, 401),
        ("auto", "0.0.0.0", 401, 401, 401, 401),
        ("nobody", "127.0.0.1", 401, 401, 401, 401),
        ("loopback", "0.0.0.0", 200, 200, 401, 401),
        ("anybody", "0.0.0.0", 200, 200, 200, 200),
    ]
    for anonymous, host, *wanted in table:
        async with gateway_world(tmp_path, anonymous=anonymous, host=host, trusted_proxies=["127.0.0.1"]) as world:
            here = [(await ask(world, key)).status for key in ("", "sk-none")]
            far = [(await ask(world, key, **proxied)).status for key in ("", "sk-none")]
            assert here + far == wanted, (anonymous, host)
    async with gateway_world(tmp_path, anonymous="anybody", host="0.0.0.0", trusted_proxies=["127.0.0.1"]) as world:
        assert (await ask(world, "mtor-mistyped", **proxied)).status == 401  # a mistake to be told of


async def test_strangers_have_their_limits_and_each_its_own(tmp_path: Path) -> None:
    section: dict[str, Any] = {"anonymous": "anybody", "trusted_proxies": ["127.0.0.1"]}
    section |= {"anonymous_requests_per_minute": 2, "anonymous_tokens_per_day": 1_000}
    async with gateway_world(tmp_path, **section) as world:
        replies = [await ask(world, X_Forwarded_For="203.0.113.1, 198.51.100.7") for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert replies[0].headers["x-ratelimit-limit-tokens"] == "1000"
        assert replies[2].error["code"] == "requests_per_minute" and "198.51.100.7" in replies[2].error["message"]
        assert (await ask(world, X_Forwarded_For="203.0.113.2, 198.51.100.7")).status == 429  # it wrote that itself
        assert (await ask(world, X_Forwarded_For="203.0.113.1, 198.51.100.8")).status == 200
        for number in range(2):
            assert (await ask(world, X_Forwarded_For=f"2001:db8::{number}")).status == 200
        assert (await ask(world, X_Forwarded_For="2001:db8::ffff")).status == 429


async def test_a_header_of_nobody_trusted_takes_rights_away_and_gives_none(tmp_path: Path) -> None:
    key = made(tmp_path)
    async with gateway_world(tmp_path) as world:
        assert (await ask(world)).status == 200
        assert (await ask(world, X_Forwarded_For="127.0.0.1")).status == 401
        assert (await ask(world, key, X_Forwarded_For="127.0.0.1")).status == 200
        assert (await ask(world, Forwarded="for=127.0.0.1")).status == 401
    async with gateway_world(tmp_path, limit_loopback=True, address_requests_per_minute=3) as world:
        got = [await look(world, key, X_Forwarded_For=f"198.51.100.{number}") for number in range(4)]
        assert got == [200, 200, 200, 429]


async def test_an_address_has_so_many_requests_whatever_it_asks(tmp_path: Path) -> None:
    key = made(tmp_path)
    section = {"limit_loopback": True, "address_requests_per_minute": 4}
    async with gateway_world(tmp_path, host="0.0.0.0", **section) as world:
        assert [await look(world, each) for each in (key, "mtor-x", "", key)] == [200, 401, 401, 200]
        reply = await ask(world, key)
        assert reply.status == 429 and reply.error["code"] == "address_limit"
        assert 14_000 < int(reply.headers["retry-after-ms"]) <= 15_000
        assert (await world.ask("GET", "/healthz")).status == 200 and (await world.operate("status")).status == 200


async def test_an_address_has_so_many_queries_at_once(tmp_path: Path) -> None:
    go_on = trio.Event()

    async def slow(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        await go_on.wait()
        await emit(completed())

    async with gateway_world(tmp_path, slow, limit_loopback=True, address_concurrent=1) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, world)
            await until(lambda: len(world.answers.asked) == 1)
            reply = await ask(world)
            assert reply.status == 429 and reply.error["code"] == "address_limit"
            assert reply.headers["retry-after"] == "1"
            go_on.set()
        assert (await ask(world)).status == 200


async def test_wrong_keys_are_counted_and_a_right_one_is_taken(tmp_path: Path) -> None:
    key = made(tmp_path)
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        guesses = [await look(world, f"mtor-{number}") for number in range(WRONG_KEYS_PER_MINUTE + 1)]
        assert guesses == [401] * WRONG_KEYS_PER_MINUTE + [429]
        assert (await world.ask("POST", "/mtor/v1/status", {}, {"Authorization": "Bearer wrong"})).status == 429
        assert (await world.ask("POST", "/mtor/unlock", {"code": "wrong"})).status == 429
        assert await look(world, key) == 200 and await look(world) == 401
        assert (await world.operate("status")).status == 200


# --- the operator --------------------------------------------------------------------------------------


async def test_the_operators_routes_are_for_this_machine_unless_opened(tmp_path: Path) -> None:
    made(tmp_path)
    for admin, status in (("loopback", 403), ("any", 200)):
        section: dict[str, Any] = {"host": "0.0.0.0", "admin": admin, "trusted_proxies": ["127.0.0.1"]}
        async with gateway_world(tmp_path, **section) as world:
            assert (await world.operate("status")).status == 200
            headers = {"Authorization": f"Bearer {world.token}", "X-Forwarded-For": "198.51.100.7"}
            far = await world.ask("POST", "/mtor/v1/status", {}, headers)
            assert far.status == status and (status == 200 or far.error["code"] == "not_local")
            asked = await world.ask("POST", CHAT, HELLO, headers)
            assert asked.status == (200 if status == 200 else 401)  # the token is no key for others


async def test_the_operators_routes_are_for_the_nodes_own_page(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, allowed_origins=("https://chat.lan",)) as world:
        own = f"http://127.0.0.1:{world.port}"
        for origin, status in ((own, 200), ("https://chat.lan", 403), ("null", 403), ("http://[", 403)):
            headers = {"Authorization": f"Bearer {world.token}", "Origin": origin}
            assert (await world.ask("POST", "/mtor/v1/status", {}, headers)).status == status, origin
            code = (await world.operate("page.link")).json["url"].partition("unlock=")[2]
            unlocked = await world.ask("POST", "/mtor/unlock", {"code": code}, {"Origin": origin})
            assert unlocked.status == status, origin


async def test_a_link_opens_one_session(tmp_path: Path) -> None:
    made(tmp_path)
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        url = (await world.operate("page.link")).json["url"]
        assert url.startswith(f"http://127.0.0.1:{world.port}/#unlock=")
        code = url.partition("unlock=")[2]
        assert len(code) >= 22  # 128 bits
        opened = await world.ask("POST", "/mtor/unlock", {"code": code})
        token = opened.json["token"]
        assert opened.status == 200 and set(opened.json) == {"token"} and opened.headers["cache-control"] == "no-store"
        again = await world.ask("POST", "/mtor/unlock", {"code": code})
        assert again.status == 401 and again.error["code"] == "bad_code" and "mtor open" in again.error["message"]
        headers = {"Authorization": f"Bearer {token}"}
        assert (await world.ask("POST", "/mtor/v1/status", {}, headers)).status == 200
        assert (await world.ask("POST", CHAT, HELLO, headers)).status == 200
        assert world.answers.asked[-1].payer is None
        for body in ({}, {"code": 3}, {"code": "ü"}, {"code": "\ud800"}, b"{", b"[]"):
            assert (await world.ask("POST", "/mtor/unlock", body)).status == 400
        assert (await world.ask("GET", "/mtor/unlock")).status == 405
    async with gateway_world(tmp_path, host="0.0.0.0") as world:
        assert (await world.ask("POST", "/mtor/v1/status", {}, headers)).status == 401  # it ended with the node


def test_codes_end_and_sessions_are_few() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    code = sessions.code()
    now[0] = CODE_SECONDS + 1
    assert sessions.unlock(code) is None
    tokens = [sessions.unlock(sessions.code()) or "" for _ in range(MOST_SESSIONS)]
    assert all(tokens) and sessions.holds(tokens[0])  # used, and so not the oldest any more
    sessions.unlock(sessions.code())
    assert sessions.holds(tokens[0]) and not sessions.holds(tokens[1]) and not sessions.holds("")
    codes = [sessions.code() for _ in range(MOST_CODES + 1)]
    assert sessions.unlock(codes[0]) is None and sessions.unlock(codes[1])


# --- operations and the command line -------------------------------------------------------------------


async def test_keys_are_made_listed_and_revoked_by_operations(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        main = {"name": "main", "account": "x", "main": True}
        world.operations.accounts = [main, {"name": "phone", "account": peer_id(WORKER), "main": False}]
        wish = {"name": "laptop", "scopes": ["$CHAT", "models", "$CHAT"], "expires_days": 3, "account": "phone"}
        wish |= {"requests_per_minute": 5, "tokens_per_minute": 900, "monthly_credits": "1.5"}
        made_now = (await world.operate("keys.create", wish)).json
        row = await listed(world)
        assert made_now == row | {"key": made_now["key"]} and made_now["key"].startswith("mtor-")
        assert row["scopes"] == ["$CHAT", "models"] and row["account"] == peer_id(WORKER)
        assert 0 <= row["expires"] - time.time() - 3 * 86_400 + 60 <= 120 and row["expired"] is False
        assert (row["requests_per_minute"], row["tokens_per_minute"]) == (5, 900)
        assert (row["monthly_credits"], row["monthly_micro"]) == ("1.5 cr", 1_500_000)
        assert (await ask(world, made_now["key"])).headers["x-ratelimit-limit-requests"] == "5"
        assert world.answers.asked[-1].payer == WORKER
        shown = (await world.operate("limits.show")).json["limits"]
        assert shown["keys"] == [await listed(world)] and shown["anonymous"]["tokens_per_day"] == 20_000
        assert shown["anonymous"]["who"] == "auto" and shown["address"]["concurrent"] == 32
        assert (await world.operate("keys.revoke", {"id": row["id"]})).json == {"revoked": row["id"]}
        assert (await world.operate("keys.list")).json == {"keys": []}


WRONG = [
    ({}, "name"),
    ({"name": ""}, "whose it is"),
    ({"name": "x", "scopes": ["CHAT"]}, "'CHAT' is no scope"),
    ({"name": "x", "scopes": "$CHAT"}, "scopes"),
    ({"name": "x", "expires_days": -1}, "1 to 36500 days"),
    ({"name": "x", "expires_days": 10**9}, "1 to 36500 days"),
    ({"name": "x", "requests_per_minute": -1}, "requests_per_minute"),
    ({"name": "x", "monthly_credits": "many"}, "not an amount of credits"),
    ({"name": "x", "account": "main"}, "no sub-account 'main'"),
    ({"name": "x", "colour": "red"}, "colour"),
]


async def test_wrong_wishes_make_no_key(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        world.operations.accounts = [{"name": "main", "account": "x", "main": True}]
        for wish, said in WRONG:
            reply = await world.operate("keys.create", wish)
            assert reply.status == 400 and said in reply.error["message"], (wish, reply.body)
        assert (await world.operate("keys.revoke", {"id": "nothing"})).error["message"].startswith("there is no key")
        assert (await world.operate("keys.list")).json == {"keys": []}
        assert "did you mean keys.list" in (await world.operate("keys.lst")).error["message"]


def test_the_command_line_makes_keys_with_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def mtor(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--data", str(tmp_path)])
        said = capsys.readouterr()
        return code, said.out, said.err

    flags = ["--scope", "$CHAT", "--scope", "models", "--requests", "5", "--tokens", "900", "--month", "1.5"]
    code, key, _ = mtor("keys", "create", "laptop", *flags, "--expires", "30")
    assert code == 0
    [kept] = ApiKeys(tmp_path).all()
    assert kept.terms == Terms(("$CHAT", "models"), kept.terms.expires, 5, 900, 1_500_000)
    assert kept.id == key_id(key.strip()) and 29 < (kept.terms.expires - time.time()) / 86_400 <= 30
    usage = KeyUsage(tmp_path)
    usage.charge(kept.id, 250_000, time.time())
    usage.write(usage.unsaved(None))
    _, shown, _ = mtor("keys", "list")
    assert "$CHAT models, 5 requests/min, 900 tokens/min, until 2" in shown and "0.25 cr of 1.5 cr" in shown
    for wrong in (["--scope", "CHAT"], ["--month", "many"], ["--requests", "-1"], ["--expires", "-1"]):
        code, out, err = mtor("keys", "create", "other", *wrong)
        assert code == cli.FAILED and out == "" and err.startswith("mtor: "), wrong
    assert len(ApiKeys(tmp_path).all()) == 1


async def test_open_hands_the_link_to_a_browser_or_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def browser(works: bool) -> Callable[[str], bool]:
        def open_(url: str) -> bool:
            opened.append(url)
            return works

        return open_

    async with gateway_world(tmp_path) as world:

        async def run(*flags: str) -> tuple[str, str]:
            capsys.readouterr()
            assert await trio.to_thread.run_sync(cli.main, ["open", *flags, "--data", str(tmp_path)]) == 0
            said = capsys.readouterr()
            return said.out, said.err

        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr("webbrowser.open", browser(True))
        out, _ = await run()
        assert "opened" in out and "unlock=" not in out and opened[0].startswith(f"{world.url}/#unlock=")
        out, err = await run("--print")
        assert out.startswith(f"{world.url}/#unlock=") and err == "" and len(opened) == 1
        monkeypatch.setattr("webbrowser.open", browser(False))
        out, err = await run()
        assert out.startswith(f"{world.url}/#unlock=") and "ten minutes" in err
        code = out.strip().partition("unlock=")[2]
        assert (await world.ask("POST", "/mtor/unlock", {"code": code})).status == 200


def test_a_browser_of_the_terminal_is_none() -> None:
    assert page.has_screen("darwin", {}) and page.has_screen("win32", {})
    assert page.has_screen("linux", {"WAYLAND_DISPLAY": "wayland-0"}) and not page.has_screen("linux", {"DISPLAY": ""})
