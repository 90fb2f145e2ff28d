"""What an attacker tries against the gateway, and what he gets. docs/security.md has the list."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import trio

from node.answers import Delta, Question
from node.gateway import bodies, listening
from node.gateway.hardening import USUAL
from node.gateway.page import PageRoutes
from node.gateway.wishes import MOST_VALUES
from node.picture_headers import MAX_QUERY_PIXELS, PictureRefused, check_pictures, read_header
from protocol.params import MAX_INPUT_BYTES
from tests.node.gateway_world import HANG_SECONDS, ROUTED, Emit, World, completed, events, gateway_world, until
from tests.node.test_gateway_fetching import naming

CHAT = "/v1/chat/completions"
BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'


def sent(world: World, data: bytes, *, end: bool = False) -> bytes:
    """All that comes back for these bytes; `end`: the client has no more to say."""
    with closing(socket.create_connection(("127.0.0.1", world.port), HANG_SECONDS)) as line:
        line.sendall(data)
        if end:
            line.shutdown(socket.SHUT_WR)
        return drained(line)


def drained(line: socket.socket) -> bytes:
    """All that comes until the node hangs up."""
    got = b""
    while True:
        try:
            more = line.recv(65_536)
        except ConnectionError:
            return got
        if not more:
            return got
        got += more


async def answer_to(world: World, data: bytes) -> bytes:
    return await trio.to_thread.run_sync(sent, world, data)


def post(world: World, path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{world.port}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


# --- requests that are none ------------------------------------------------------------------------------


def host(world: World) -> bytes:
    return f"Host: 127.0.0.1:{world.port}\r\n".encode()


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "TLS to a port without": lambda host: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03AAAA\r\n\r\n",
    "control codes in the line": lambda host: b"GET /\x1b[31m\x07 HTTP/1.1\r\n" + host + b"\r\n",
    "control codes in a header": lambda host: b"GET / HTTP/1.1\r\nX: \x00\x1b[2J\r\n" + host + b"\r\n",
    "no Host": lambda host: b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
    "no Host, HTTP/1.0": lambda host: b"GET /v1/models HTTP/1.0\r\n\r\n",
    "two Hosts": lambda host: b"GET /v1/models HTTP/1.1\r\n" + host + b"Host: evil.example\r\n\r\n",
    "a folded header": lambda host: b"GET /v1/models HTTP/1.1\r\n" + host + b"X-A: b\r\n c\r\n\r\n",
    "a header of 200 kB": lambda host: b"GET /v1/models HTTP/1.1\r\n" + host + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    "5,000 headers": lambda host: b"GET /v1/models HTTP/1.1\r\n" + host + b"X: a\r\n" * 5_000 + b"\r\n",
    "an address of 100 kB": lambda host: b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
    "two lengths": lambda host: b"POST /v1/x HTTP/1.1\r\n" + host + b"Content-Length: 1\r\n" * 2 + b"\r\nab",
    "length and chunks": lambda host: (
        b"POST /v1/x HTTP/1.1\r\n"
        + host
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n"
        + host
        + b"\r\n"
    ),
    "unknown chunks": lambda host: b"POST /v1/x HTTP/1.1\r\n" + host + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a bare line end after a chunk's length": lambda host: (
        b"POST /v1/x HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\n{}\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_http_is_refused_once_and_leaves_nothing_in_the_log(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_world(tmp_path) as world:
        with caplog.at_level(logging.INFO):
            reply = await answer_to(world, MALFORMED[name](host(world)))
        head, _, body = reply.partition(b"\r\n\r\n")
        assert len(re.findall(rb"HTTP/1\.\d \d\d\d ", reply)) == 1 and b" 400 " in head.split(b"\r\n")[0], reply
        assert json.loads(body)["error"]["code"] in ("invalid_http", "bad_host", "invalid_body")
        assert b"Server: mtor\r\n" in head and b"aiohttp" not in reply and b"Python" not in reply
        assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []


async def test_another_site_in_an_absolute_address_changes_nothing(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        own = await answer_to(
            world, b"GET http://evil.example/healthz HTTP/1.1\r\n" + host(world) + b"Connection: close\r\n\r\n"
        )
        assert b" 200 " in own
        rebound = b"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert b"403 Forbidden" in await answer_to(world, rebound)


async def test_other_methods_and_paths_lead_nowhere(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for method in ("TRACE", "DELETE", "PUT", "PROPFIND"):
            assert (await world.ask(method, "/v1/models")).status in (404, 405)
        tricks = ("//mtor/v1/status", "/x/../mtor/v1/status", "/./mtor/v1/status", "/%6dtor/v1/status")
        for path in (*tricks, "/mtor%2fv1%2fstatus", "/MTOR/v1/status", "/v1/../mtor/v1/status"):
            assert (await world.ask("POST", path, {})).status in (401, 404), path
        files = (
            "../access.py",
            "%2e%2e/access.py",
            "..%2faccess.py",
            "%00",
            "/etc/passwd",
            "views/../main.js",
            "..\\a",
        )
        for path in files:
            assert (await world.ask("GET", f"/page/{path}")).status == 404, path
            assert (await world.ask("GET", PageRoutes().address + path)).status == 404, path
        assert (await world.ask("GET", "/v1/models/..%2f..%2fadmin.token")).status == 404


# --- what answers carry ----------------------------------------------------------------------------------


async def test_every_answer_is_guarded_and_names_no_version(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, allowed_origins=["https://chat.example"]) as world:
        asked = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        foreign, friend = {"Origin": "https://evil.example"}, {"Origin": "https://chat.example"}
        for reply in (
            await world.ask("GET", "/"),
            await world.ask("GET", PageRoutes().address + "main.js"),
            await world.ask("GET", "/v1/models"),
            await world.ask("GET", "/nothing"),
            await world.ask("GET", "/ws"),
            await world.ask("POST", CHAT, asked),
            await world.ask("POST", CHAT, asked | {"stream": True}),
            await world.ask("OPTIONS", CHAT, headers=friend),
            await world.ask("GET", "/v1/models", headers=friend),
            await world.ask("GET", "/v1/models", headers=foreign),
            await world.ask("GET", "/v1/models", headers={"Origin": "null"}),
            await world.ask("OPTIONS", "/mtor/v1/status", headers=foreign),
        ):
            assert reply.headers["server"] == "mtor"
            assert {name.lower() for name in USUAL} <= reply.headers.keys()
            assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
            assert reply.headers.get("access-control-allow-origin") in (None, "https://chat.example")
            assert "access-control-allow-credentials" not in reply.headers
        written = await world.ask("POST", CHAT, asked | {"stream": True})
        assert written.headers["cache-control"] == "no-store"


async def test_a_websocket_is_not_opened_by_another_site(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        upgrade = f"Connection: Upgrade, close\r\nUpgrade: websocket\r\n{key}".encode()
        for origin in (b"https://evil.example", b"null"):
            request = b"GET /ws HTTP/1.1\r\n" + host(world) + upgrade + b"Origin: " + origin + b"\r\n\r\n"
            assert (await answer_to(world, request)).startswith(b"HTTP/1.1 403 ")


# --- slow and many ---------------------------------------------------------------------------------------


async def test_half_a_request_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.05)
    async with gateway_world(tmp_path) as world:
        assert await answer_to(world, b"GET /v1/models HTTP/1.1\r\nHost: 127") == b""


async def test_a_client_that_does_not_read_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(listening, "LOOK_SECONDS", 0.05)

    async def endless(question: Question, emit: Emit) -> None:
        await emit(ROUTED)
        while True:
            await emit(Delta("a" * 10_000))

    async with gateway_world(tmp_path, endless) as world:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "a"}], "stream": True})
        with closing(socket.create_connection(("127.0.0.1", world.port), HANG_SECONDS)) as line:
            line.sendall(post(world, CHAT, body.encode()))
            await until(lambda: world.answers.cancelled == 1)


async def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, max_connections=3) as world:
        with ExitStack() as stack:

            def connect() -> socket.socket:
                made = stack.enter_context(closing(socket.create_connection(("127.0.0.1", world.port), HANG_SECONDS)))
                made.sendall(b"GET /healthz HTTP/1.1\r\n" + host(world))  # the end is missing: it is no idle one
                return made

            def work() -> bytes:
                busy = [connect() for _ in range(3)]
                refused = sent(world, b"")
                busy[0].sendall(b"\r\n")
                assert busy[0].recv(4_096).startswith(b"HTTP/1.1 200")
                got = sent(world, b"GET /healthz HTTP/1.1\r\n" + host(world) + b"Connection: close\r\n\r\n")
                assert got.startswith(b"HTTP/1.1 200"), "the idle one made room"
                assert drained(busy[0]) == b""
                return refused

            refused = await trio.to_thread.run_sync(work)
            assert refused.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in refused
            assert b"Retry-After: 1\r\n" in refused and b"Server: mtor\r\n" in refused


async def test_there_is_room_for_only_so_many_large_bodies(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, max_body_bytes=1_024) as world:
        with ExitStack() as stack:

            def work() -> tuple[bytes, bytes]:
                lines = []
                for _ in range(bodies.LARGEST_AT_ONCE):
                    line = stack.enter_context(closing(socket.create_connection(("127.0.0.1", world.port))))
                    line.sendall(post(world, CHAT, b"x" * 1_024)[:-1])  # all but the last byte
                    lines.append(line)
                refused = sent(world, post(world, CHAT, b"x" * 1_024))
                while b"overloaded" not in refused:  # until all of them have been read so far
                    refused = sent(world, post(world, CHAT, b"x" * 1_024))
                for line in lines:
                    line.sendall(b"x")
                    drained(line)
                return refused, sent(world, post(world, CHAT, b"x" * 1_024))

            refused, after = await trio.to_thread.run_sync(work)
            assert b" 503 " in refused and b"Retry-After" in refused and b"invalid_json" in after


async def test_an_endless_body_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "LINGER_SECONDS", 0.1)
    async with gateway_world(tmp_path, max_body_bytes=100_000) as world:
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + host(world) + b"Transfer-Encoding: chunked\r\n\r\n"
        reply = await answer_to(world, head + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 8)
        assert reply.startswith(b"HTTP/1.1 413 ")
        told = head.replace(b"Transfer-Encoding: chunked", b"Content-Length: 99999999999")
        assert (await answer_to(world, told)).startswith(b"HTTP/1.1 413 ")


async def test_compressed_bodies_are_not_taken(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for encoding, body in (
            ("gzip", gzip.compress(bytes(1 << 24))),
            ("gzip", b"no gzip"),
            ("br", BODY),
            ("x", BODY),
        ):
            reply = await answer_to(world, post(world, CHAT, body, f"Content-Encoding: {encoding}"))
            assert reply.startswith(b"HTTP/1.1 415 ") and b"unsupported_encoding" in reply
        plain = await answer_to(world, post(world, CHAT, BODY, "Content-Encoding: identity"))
        assert plain.startswith(b"HTTP/1.1 200 ") and len(world.answers.asked) == 1


async def test_json_that_is_all_structure_is_not_looked_through(tmp_path: Path) -> None:
    """Checking two million values took a minute, in which nobody else was answered."""
    async with gateway_world(tmp_path) as world:
        for content in (
            b"[" + b"1," * MOST_VALUES + b"1]",
            b"[" * 100_000,
            b'"' + b'\\",' * 300_000,
            b'"' * MOST_VALUES,
        ):
            body = BODY.replace(b'"hi"', content)
            reply = await world.ask("POST", CHAT, body)
            assert reply.status == 400 and reply.error["code"] in ("too_many_values", "invalid_json")
        text = ",[{" * 50_000
        reply = await world.chat(messages=[{"role": "user", "content": text + '\\"'}])
        assert reply.status == 200 and world.answers.asked[0].request.turns[0].text == text + '\\"'  # type: ignore[union-attr]


async def test_numbers_and_keys_that_are_not_json_are_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for field in (
            b'"temperature":NaN',
            b'"temperature":1e999',
            b'"top_p":-Infinity',
            b'"max_tokens":' + b"9" * 9_999,
        ):
            assert (await world.ask("POST", CHAT, BODY[:-1] + b"," + field + b"}")).status == 400, field
        assert world.answers.asked == []


async def test_a_form_of_many_parts_is_refused(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        kind = {"Content-Type": "multipart/form-data; boundary=B"}
        for head in (b'Content-Disposition: form-data; name="file"; filename="a"', b"X-No: name"):
            form = (b"--B\r\n" + head + b"\r\n\r\nRIFF\r\n") * 100 + b"--B--\r\n"
            reply = await world.ask("POST", "/v1/audio/transcriptions", form, kind)
            assert reply.status == 400 and "at most 32" in reply.error["message"]


# --- words in headers and logs ---------------------------------------------------------------------------


async def test_no_words_of_a_client_move_the_log_or_the_headers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_world(tmp_path) as world:
        with caplog.at_level(logging.DEBUG):
            for model in ("a\r\nX-Injected: y", "a\x1b[2J", "a\u202eb", "a\u2028b", "\x00"):
                assert (await world.chat(model=model)).status == 400, model
                assert (await world.ask("GET", "/v1/models/" + "a%0d%0aX-Injected:%20y")).status == 404
            named = {"x-request-id": "a;b<c>\td" + "e" * 500}
            reply = await world.ask("POST", CHAT, BODY, named)
        assert reply.headers["x-request-id"] == ("abcd" + "e" * 500)[:128]
        assert "x-injected" not in reply.headers
        mine = [record.getMessage() for record in caplog.records if record.name.startswith("mtor")]
        assert mine and all(line.isprintable() for line in mine)


# --- pictures --------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(20)


def showing(*pictures: bytes) -> list[dict[str, Any]]:
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    return [{"role": "user", "content": [{"type": "image_url", "image_url": url} for url in urls]}]


async def test_pictures_that_unfold_to_too_much_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, events(ROUTED, Delta("a"), completed())) as world:
        for pictures in ([png(60_000, 60_000)], [png(6_000, 6_000)] * 3, [png(0, 1)], [png(16_000, 1)]):
            reply = await world.chat(messages=showing(*pictures))
            assert reply.status == 400 and reply.error["param"] == "messages", pictures
        assert world.answers.asked == []
        assert (await world.chat(messages=showing(png(6_000, 6_000), png(6_000, 6_000)))).status == 200


def test_a_query_has_only_so_many_pixels() -> None:
    check_pictures([png(4_000, 3_000)] * 8)
    with pytest.raises(PictureRefused, match="together"):
        check_pictures([png(5_000, 5_000)] * (MAX_QUERY_PIXELS // 25_000_000 + 1))
    check_pictures([b"no picture that is known here"])  # its model may know it


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\x01", b"\xff\xe0\x00\x02", b"\x00"])
def test_a_picture_without_an_end_of_its_header_costs_little(filling: bytes) -> None:
    data = b"\xff\xd8\xff" + filling * ((MAX_INPUT_BYTES - 3) // len(filling))
    with pytest.raises(PictureRefused, match=r"parts before its size|ends within its header"):
        read_header(data)


# --- codes -----------------------------------------------------------------------------------------------


async def test_a_code_that_is_used_twice_at_once_opens_one_session(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for _ in range(5):
            code = (await world.operate("page.link")).json["url"].partition("#unlock=")[2]

            def unlock(code: str = code) -> int:
                return world.ask_here("POST", "/mtor/unlock", {"code": code}).status

            def all_at_once() -> list[int]:
                with ThreadPoolExecutor(8) as pool:
                    return sorted(each.result() for each in [pool.submit(unlock) for _ in range(8)])

            statuses = await trio.to_thread.run_sync(all_at_once)
            assert statuses[0] == 200 and set(statuses[1:]) <= {401, 429}


async def test_a_code_is_not_guessed_and_not_given_to_other_sites(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, limit_loopback=True) as world:
        statuses = [(await world.ask("POST", "/mtor/unlock", {"code": f"guess-{n}"})).status for n in range(30)]
        assert statuses[0] == 401 and statuses[-1] == 429
        huge = await world.ask("POST", "/mtor/unlock", b"[" * 100_000)
        assert huge.status == 413
        foreign = await world.ask("POST", "/mtor/unlock", {"code": "a"}, {"Origin": "https://evil.example"})
        assert foreign.status == 403


async def test_a_picture_named_in_a_chat_is_no_way_out(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, fetch_pictures=True) as world:
        for address in ("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://10.0.0.1/a.png"):
            reply = await world.ask("POST", CHAT, naming(address))
            assert reply.status == 400 and "not a public one" in reply.error["message"], reply.body
