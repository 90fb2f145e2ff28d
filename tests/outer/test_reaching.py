"""Which addresses are asked, where a redirect may lead, and when a server that was down is asked again."""

from __future__ import annotations

import ipaddress
import itertools
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from node.engines.outer.health import Health
from node.engines.outer.http import (
    LOOPBACK,
    Access,
    BadStatus,
    NotAllowed,
    NotConnected,
    OuterError,
    OuterHttp,
    is_allowed,
)
from node.engines.outer.sse import EventReader
from node.engines.port import Finished
from node.engines.requests import chat_request
from tests.outer.world import RunningServer, answer, model_of, running, text_of, until

ASKED = chat_request("hello", max_tokens=3)


@asynccontextmanager
async def http(url: str, *allowed: str, key: str = "") -> AsyncIterator[OuterHttp]:
    networks = tuple(ipaddress.ip_network(each) for each in allowed) or LOOPBACK
    made = OuterHttp(Access(url, networks, key, first_pause_seconds=0.01))
    try:
        yield made
    finally:
        await made.aclose()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("::", False),
    ],
)
def test_loopback_alone_is_allowed_at_first(address: str, expected: bool) -> None:
    assert is_allowed(address, LOOPBACK) is expected


@pytest.mark.parametrize("host", ["10.0.0.1", "[::ffff:10.0.0.1]", "0.0.0.0", "167772161", "0x0a.1"])
async def test_other_addresses_are_refused_with_the_remedy(host: str) -> None:
    async with http(f"http://{host}:1/v1") as client:
        with pytest.raises(NotAllowed) as refused:
            await client.fetch("GET", "/models")
    assert "add " in refused.value.detail and "workers.allowed" in refused.value.detail
    assert "10.0" not in refused.value.message


async def test_a_name_is_held_to_what_it_stands_for(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it stands for something else the second time: each request looks anew, and asks what it looked at."""
    answers = [["127.0.0.1"], ["10.1.2.3"], ["10.1.2.3", "127.0.0.1"]]

    async def look_up(host: str, port: int, **more: object) -> list[object]:
        assert host == "gpu.lan"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers.pop(0)]

    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
    async with http(f"http://gpu.lan:{server.port}") as client:
        assert await client.fetch("GET", "/health") == {"status": "healthy"}
        with pytest.raises(NotAllowed, match="not to be asked") as refused:
            await client.fetch("GET", "/health")
        assert "gpu.lan (10.1.2.3)" in refused.value.detail
        assert await client.fetch("GET", "/health") == {"status": "healthy"}  # by the address that is allowed


async def test_the_next_address_is_taken_where_one_is_closed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(host: str, port: int, **more: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
    async with http(f"http://gpu.lan:{server.port}") as client:
        assert await client.fetch("GET", "/health", attempts=1) == {"status": "healthy"}


async def test_an_unknown_name_and_a_closed_port_are_the_same_to_strangers(server: RunningServer) -> None:
    for url in ("http://no-such-host.invalid:80", f"http://127.0.0.2:{server.port}"):
        async with http(url) as client:
            with pytest.raises(NotConnected) as failed:
                await client.fetch("GET", "/health")
            assert failed.value.message == "the worker's server cannot be reached"


async def test_a_redirect_takes_the_key_to_no_other_place(process: RunningServer, server: RunningServer) -> None:
    async with http(f"http://localhost:{server.port}", key="k3y") as client:
        # The server answers with its Host header, so the redirect leads to the same place.
        await client.fetch("POST", "/predict", body={"prompt": "x", "type": "chat"})
    keys = {each["path"]: each["key"] for each in (await server.seen())["seen"]}
    assert keys == {"/predict": "Bearer k3y", "/predict/": "Bearer k3y"}


async def test_a_user_and_password_are_sent_as_such(server: RunningServer) -> None:
    async with http(server.url, key="me:pass") as client:
        await client.fetch("GET", "/health")
    assert (await server.seen())["seen"][-1]["key"] == "Basic bWU6cGFzcw=="


async def test_proxies_of_the_environment_are_not_used(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    async with http(server.url) as client:
        assert await client.fetch("GET", "/health", attempts=1) == {"status": "healthy"}


async def test_a_status_says_its_kind_and_not_its_text(server: RunningServer) -> None:
    await server.fault("400")
    async with http(server.url) as client:
        with pytest.raises(BadStatus) as failed:
            await client.fetch("POST", "/predict", body={})
    assert failed.value.detail == "HTTP 400 some_error"


async def test_a_connection_serves_the_next_answer_too_and_a_closed_one_is_not_used(server: RunningServer) -> None:
    async with running(model_of(server)) as engine:
        for _ in range(2):
            assert isinstance((await answer(engine, ASKED))[-1], Finished)
        await server.fault("goodbye", times=1)
        assert text_of(await answer(engine, ASKED)) == "bye"
        assert len(text_of(await answer(engine, ASKED)).split()) == 3
    seen = [each["connection"] for each in (await server.seen())["seen"] if each["path"] == "/v1/chat/completions"]
    assert seen[0] == seen[1] == seen[2] != seen[3]


# --- health ---------------------------------------------------------------------------------------------


async def test_a_server_that_is_down_is_asked_less_and_less(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[float] = []
    down_until = 200.0

    async def check() -> None:
        asked.append(trio.current_time() - began)
        if asked[-1] < down_until:
            raise OuterError("down", "it is down")

    health = Health("it", check, random.Random(1))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(health.run)
        states = [(health.ready, health.problem)]
        assert 800 <= health.retry_after_ms() <= 1_200
        await trio.sleep(300)
        states.append((health.ready, health.problem))
        assert states == [(False, "it is down"), (True, "")] and health.failures == 0
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    for pause, about in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=False):
        assert 0.8 * about <= pause <= 1.2 * about
    assert len({round(pause, 6) for pause in pauses}) == len(pauses)  # never quite the same
    assert next(pause for pause, at in zip(pauses, asked, strict=False) if at >= down_until) < 20


async def test_a_check_that_hangs_is_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    health = Health("it", trio.sleep_forever)
    async with trio.open_nursery() as nursery:
        await nursery.start(health.run)
        assert not health.ready and "10 s" in health.problem
        nursery.cancel_scope.cancel()


async def test_a_suspicion_is_looked_into_once(autojump_clock: trio.testing.MockClock) -> None:
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1

    health = Health("it", check)
    async with trio.open_nursery() as nursery:
        await nursery.start(health.run)
        for _ in range(100):
            health.suspect()
        await trio.sleep(5)
        assert checks == 2
        nursery.cancel_scope.cancel()


async def test_a_model_that_is_missing_is_told_with_what_there_is(server: RunningServer) -> None:
    async with running(model_of(server, model="absent")) as engine:
        assert not engine.ready
        assert engine.problem == "it has no model absent; it has tiny-llama, tiny-vllm, tiny-plain"
    await server.fault("no models")
    async with running(model_of(server)) as engine:
        assert engine.problem == "it has no model tiny-llama; it has nothing"


async def test_a_server_without_a_list_is_taken_at_the_operators_word(server: RunningServer) -> None:
    await server.fault("models 404")
    async with running(model_of(server, model="tiny-plain")) as engine:
        assert engine.ready
    await server.fault("models 500")
    async with running(model_of(server, model="tiny-plain")) as engine:
        assert not engine.ready and engine.problem == "HTTP 500"


async def test_a_node_starts_before_its_server(server: RunningServer) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    engine = model_of(server, url=f"http://127.0.0.1:{port}/v1")
    async with running(engine):
        assert not engine.ready and "127.0.0.1" in engine.problem
        with pytest.raises(OuterError, match="down"):
            await answer(engine, ASKED)
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")

            async def relay(stream: trio.SocketStream) -> None:
                async with stream, await trio.open_tcp_stream("127.0.0.1", server.port) as behind:
                    async with trio.open_nursery() as both:
                        both.start_soon(_copy, stream, behind, both.cancel_scope)
                        both.start_soon(_copy, behind, stream, both.cancel_scope)

            nursery.start_soon(trio.serve_listeners, relay, listeners)
            await until(engine, ready=True)
            assert (await answer(engine, ASKED))[-1]
            nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope) -> None:
    async for data in source:
        await target.send_all(data)
    both.cancel()


# --- events ---------------------------------------------------------------------------------------------


STREAM = "data: one\n\n: comment\n\nevent: x\r\ndata: two\r\ndata:lines ü\r\n\r\nid: 3\rdata: three\r\rdata: cut"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_events_are_the_same_however_they_arrive(size: int) -> None:
    data, reader, found = STREAM.encode(), EventReader(), list[str]()
    for start in range(0, len(data), size):
        found += reader.feed(data[start : start + size])
    assert found == ["one", "two\nlines ü", "three"]


def test_an_event_of_many_lines_is_bounded_too() -> None:
    reader = EventReader()
    with pytest.raises(OuterError):
        for _ in range(1_000):
            list(reader.feed(b"data: " + b"x" * 1_000 + b"\n"))
