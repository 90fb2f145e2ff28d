"""Pictures that are named and not sent: off unless allowed, and then no way into the house."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from node.gateway.failures import ApiError
from node.gateway.fetching import Fetcher, Rules
from node.gateway.public_addresses import IPAddress, is_public
from protocol.params import MAX_INPUT_BYTES
from tests.node.gateway_world import gateway_world

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(64)


def naming(*addresses: str) -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": parts}]}).encode()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "192.88.99.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::8.8.8.8",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378::1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "3fff::1",
        "100::1",
    ],
)
def test_an_address_of_a_house_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_an_address_of_the_internet_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Names(AbstractResolver):
    """Names and what they stand for at each look."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.looked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        """See aiohttp."""
        self.looked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        addresses = self.names[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """See aiohttp."""


class Site:
    """A server on this machine, at addresses that this test calls public."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.port = 0
        self.names = Names(site_test=["127.0.0.1"], inner_test=["127.0.0.2"])

    def url(self, path: str, host: str = "site.test") -> str:
        return f"http://{host}:{self.port}{path}"

    def fetcher(self, seconds: float = 20.0) -> Fetcher:
        def public(address: IPAddress) -> bool:
            return str(address) == "127.0.0.1"

        return Fetcher(Rules(public, frozenset({self.port}), lambda: self.names, seconds))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        match request.path.split("/")[1:]:
            case ["picture"]:
                return web.Response(body=PNG, content_type="image/png")
            case ["again", count]:
                where = f"/again/{int(count) - 1}" if int(count) else "/picture"
                return web.Response(status=302, headers={"Location": where})
            case ["to", *_]:
                return web.Response(status=302, headers={"Location": request.query["where"]})
            case ["page"]:
                return web.Response(text="<html>", content_type="text/html")
            case ["lie"]:
                return web.Response(body=b"root:x:0:0", content_type="image/png")
            case ["endless"]:
                return await self._endless(request, 0)
            case ["slow"]:
                return await self._endless(request, 60)
            case ["squeezed"]:
                return web.Response(body=PNG, content_type="image/png", headers={"Content-Encoding": "br"})
        return web.Response(status=404)

    async def _endless(self, request: web.Request, pause: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(PNG + bytes(1_000_000))
            await asyncio.sleep(pause)


async def with_site(work: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        site = Site()
        runner = web.ServerRunner(web.Server(site.answer), shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 0).start()
        site.port = runner.addresses[0][1]
        try:
            async with asyncio.timeout(60):
                await work(site)
        finally:
            await runner.cleanup()

    await trio.to_thread.run_sync(lambda: asyncio.run(main()))


async def why_not(fetcher: Fetcher, address: str) -> str:
    with pytest.raises(ApiError) as caught:
        await fetcher.inlined(naming(address))
    assert caught.value.code in ("unfetchable_picture", "picture_too_large")
    return caught.value.message


async def test_a_picture_is_put_in_place_of_its_address() -> None:
    async def work(site: Site) -> None:
        data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        body = json.loads(await site.fetcher().inlined(naming(site.url("/picture"), data, site.url("/picture"))))
        shown = [part["image_url"]["url"] for part in body["messages"][0]["content"]]
        assert shown == [data] * 3 and len(site.seen) == 1
        sent = site.seen[0].headers
        assert "Cookie" not in sent and "Authorization" not in sent and sent["Accept"] == "image/*"

    await with_site(work)


async def test_redirects_are_followed_three_times_and_checked_each_time() -> None:
    async def work(site: Site) -> None:
        fetcher = site.fetcher()
        assert b"data:image/png" in await fetcher.inlined(naming(site.url("/again/2")))
        assert "more than 3 times" in await why_not(fetcher, site.url("/again/3"))
        before = len(site.seen)
        for where, reason in (
            (site.url("/picture", "inner.test"), "not a public one"),
            (f"http://127.0.0.2:{site.port}/picture", "not a public one"),
            ("http://site.test:22/", "usual ports"),
            (f"http://user:word@site.test:{site.port}/picture", "a name or a password"),
            ("file:///etc/passwd", "http:// or https://"),
            ("gopher://site.test/", "http:// or https://"),
        ):
            assert reason in await why_not(fetcher, f"{site.url('/to')}?where={where}"), where
        assert {request.path for request in site.seen[before:]} == {"/to"}

    await with_site(work)


async def test_addresses_of_the_house_are_not_connected_to_however_they_are_written() -> None:
    async def work(site: Site) -> None:
        fetcher = site.fetcher()
        site.names.names["0x7f.2"] = ["127.0.0.2"]  # as the system's resolver reads it
        for host in (
            "127.0.0.2",
            "0x7f.2",
            "inner.test",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "0.0.0.0",
        ):
            assert "not a public one" in await why_not(fetcher, site.url("/picture", host)), host
        assert site.seen == []

    await with_site(work)


async def test_a_name_that_changes_its_mind_is_checked_where_it_is_connected() -> None:
    """Public at the first look, inside at the second: the redirect's target is the same name."""

    async def work(site: Site) -> None:
        site.names.names["site.test"] = ["127.0.0.1", "127.0.0.2"]
        message = await why_not(site.fetcher(), site.url("/again/1"))
        assert "not a public one" in message and [request.path for request in site.seen] == ["/again/1"]

    await with_site(work)


async def test_what_is_no_picture_is_not_taken() -> None:
    async def work(site: Site) -> None:
        fetcher = site.fetcher()
        for path, reason in (
            ("/page", "says that it is no picture"),
            ("/lie", "no picture that is known here"),
            ("/squeezed", "compressed"),
            ("/nothing", "answered 404"),
            ("/endless", f"at most {MAX_INPUT_BYTES} bytes"),
        ):
            assert reason in await why_not(fetcher, site.url(path)), path
        assert "did not come within" in await why_not(site.fetcher(seconds=0.3), site.url("/slow"))
        assert "127.0.0" not in await why_not(fetcher, "http://nobody.test:1/" + "x")

    await with_site(work)


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(site: Site) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.2:1")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.2:1")
        assert b"data:image/png" in await site.fetcher().inlined(naming(site.url("/picture")))

    await with_site(work)


async def test_bodies_without_addresses_are_left_as_they_are() -> None:
    async def work(site: Site) -> None:
        for body in (b"{", b'["http://"]', b'{"messages":"http://"}', b"[" * 100_000 + b"http", naming("data:,")):
            assert await site.fetcher().inlined(body) is body

    await with_site(work)


async def test_nothing_is_fetched_unless_it_is_allowed(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.ask("POST", "/v1/chat/completions", naming("http://127.0.0.1:9/a.png"))
        assert reply.status == 400 and "fetches no addresses" in reply.error["message"]


async def test_what_is_allowed_ends_at_this_machine(tmp_path: Path) -> None:
    """The rules that are in force over HTTP: this machine's own port 80 is none of a client's."""
    async with gateway_world(tmp_path, fetch_pictures=True) as world:
        for address in ("http://127.0.0.1/a.png", "http://localhost/a.png", f"http://127.0.0.1:{world.port}/"):
            reply = await world.ask("POST", "/v1/chat/completions", naming(address))
            assert reply.status == 400 and reply.error["code"] == "unfetchable_picture", address
        assert world.answers.asked == []
