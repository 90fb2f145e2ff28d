"""TLS by an own certificate: what clients see, how `mtor` knows its node, and what is refused before it listens."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import ipaddress
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.commands.client import NodeClient, NoNode
from node.config import GatewaySection
from node.gateway.http import Gateway, GatewayError
from node.gateway.keys import ApiKeys
from node.gateway.tls import Tls, link_host
from tests.node.gateway_world import (
    HANG_SECONDS,
    ScriptedAnswers,
    ScriptedFacts,
    ScriptedOperations,
    World,
    gateway_world,
    saying,
)

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def write_pair(
    folder: Path, *names: str, begins: Any = NOW - DAY, ends: Any = NOW + 90 * DAY, stem: str = "tls"
) -> Path:
    """STEM.pem and STEM.key; the path of the first."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a node")])
    maker = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    maker = maker.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)
    if names:
        said = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        maker = maker.add_extension(x509.SubjectAlternativeName(said), critical=False)
    made = maker.sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / f"{stem}.pem").write_bytes(made.public_bytes(pem))
    (folder / f"{stem}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / f"{stem}.pem"


@asynccontextmanager
async def secure_world(folder: Path, *names: str, **section: Any) -> AsyncIterator[World]:
    certificate = write_pair(folder, *(names or ("ai.example.org",)))
    files = {"tls_certificate": certificate, "tls_key": certificate.with_suffix(".key")}
    data = folder / "data"
    data.mkdir()
    if section.get("host"):
        ApiKeys(data).create("somebody")
    async with gateway_world(data, saying("Hel", "lo"), **files, **section) as world:
        yield world


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "tls.pem"))


def get(world: World, path: str, context: ssl.SSLContext, **headers: str) -> http.client.HTTPResponse:
    """A request of a client that knows the node as ai.example.org."""
    line = http.client.HTTPConnection("127.0.0.1", world.port, timeout=HANG_SECONDS)
    line.connect()
    try:
        line.sock = context.wrap_socket(line.sock, server_hostname="ai.example.org")
        line.request("GET", path, headers={"Host": "ai.example.org"} | headers)
        answer = line.getresponse()
        answer.read()
        return answer
    finally:
        line.close()


# --- clients -------------------------------------------------------------------------------------------


async def test_mtor_knows_its_node_by_its_certificate(tmp_path: Path) -> None:
    async with secure_world(tmp_path) as world:
        assert world.url.startswith("https://127.0.0.1:")
        client = NodeClient(world.data)
        answer = await trio.to_thread.run_sync(client.call, "status")
        assert answer["name"] == "status"
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        chunks = await trio.to_thread.run_sync(lambda: list(client.chat(body)))
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "Hello"


async def test_mtor_does_not_speak_to_another(tmp_path: Path) -> None:
    """Whoever took the port shows a certificate of his own, also one for the same name."""
    (tmp_path / "a").mkdir()
    async with secure_world(tmp_path / "a") as world:
        facts = json.loads((world.data / "gateway.json").read_text())
        facts["tls"]["certificate"] = write_pair(tmp_path, "ai.example.org").read_text()
        (world.data / "gateway.json").write_text(json.dumps(facts))
        with pytest.raises(NoNode, match=r"CERTIFICATE_VERIFY_FAILED"):
            await trio.to_thread.run_sync(NodeClient(world.data).call, "status")


async def test_the_certificates_names_are_answered_and_no_others(tmp_path: Path) -> None:
    async with secure_world(tmp_path) as world:
        context = trusting(tmp_path)
        answer = await trio.to_thread.run_sync(lambda: get(world, "/healthz", context))
        assert answer.status == 200 and "Strict-Transport-Security" not in answer.headers  # loopback's own
        rebound = await trio.to_thread.run_sync(lambda: get(world, "/healthz", context, Host="evil.example"))
        assert rebound.status == 403


async def test_a_page_without_tls_is_none_of_a_node_with_it(tmp_path: Path) -> None:
    async with secure_world(tmp_path) as world:
        context = trusting(tmp_path)
        for origin, status in (("https://ai.example.org", 200), ("http://ai.example.org", 403), ("null", 403)):
            answer = await trio.to_thread.run_sync(
                lambda origin=origin: get(world, "/v1/models", context, Origin=origin)
            )
            assert answer.status == status, origin


async def test_from_elsewhere_browsers_are_told_to_stay_with_tls(tmp_path: Path) -> None:
    async with secure_world(tmp_path, host="0.0.0.0") as world:
        answer = await trio.to_thread.run_sync(lambda: get(world, "/healthz", trusting(tmp_path)))
        assert "max-age=" in answer.headers["Strict-Transport-Security"]
        here = await trio.to_thread.run_sync(lambda: get(world, "/healthz", trusting(tmp_path), Host="localhost"))
        assert here.status == 200 and "Strict-Transport-Security" not in here.headers


async def test_a_websocket_goes_by_tls(tmp_path: Path) -> None:
    async with secure_world(tmp_path, "127.0.0.1") as world:

        async def ping() -> str:
            async with aiohttp.ClientSession() as session:  # it waits for its connections' ends, not for a socket's
                socket = await session.ws_connect(f"wss://127.0.0.1:{world.port}/ws", ssl=trusting(tmp_path))
                await socket.send_str('{"type":"ping"}')
                return str((await socket.receive(HANG_SECONDS)).data)

        assert json.loads(await trio.to_thread.run_sync(lambda: asyncio.run(ping()))) == {"type": "pong"}


async def test_old_tls_and_none_at_all_are_refused(tmp_path: Path) -> None:
    async with secure_world(tmp_path) as world:
        old = trusting(tmp_path)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await trio.to_thread.run_sync(lambda: get(world, "/healthz", old))
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            await world.ask("GET", "/healthz")


async def test_a_renewed_certificate_is_shown_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    certificate = write_pair(tmp_path, "ai.example.org")
    tls = Tls(certificate, certificate.with_suffix(".key"))
    first = tls.certificate
    assert not tls.renew()
    certificate.write_text("half a fi")
    assert not tls.renew() and tls.certificate == first
    write_pair(tmp_path, "ai.example.org", "other.example.org")
    assert tls.renew() and tls.hosts == {"ai.example.org", "other.example.org"}


def test_links_lead_where_the_certificate_is_good(tmp_path: Path) -> None:
    def host(*names: str) -> str:
        path = write_pair(tmp_path, *names)
        tls = Tls(path, path.with_suffix(".key"))
        return link_host(tls.certificate, "127.0.0.1", tls.hosts)

    assert host("127.0.0.1", "ai.example.org") == "127.0.0.1"
    assert host("ai.example.org", "localhost") == "localhost"
    assert host("ai.example.org") == "ai.example.org"
    assert host("*.example.org") == "127.0.0.1"


# --- before it listens ---------------------------------------------------------------------------------


async def refused(data: Path, **section: Any) -> str:
    """Why a gateway does not start."""
    config = GatewaySection.model_validate({"port": 0} | section)
    gateway = Gateway(config, data, ScriptedAnswers(saying()), ScriptedOperations(), ScriptedFacts())
    with pytest.raises(GatewayError) as caught:
        await gateway.run()
    return str(caught.value)


async def test_what_cannot_be_used_is_told_before_it_listens(tmp_path: Path) -> None:
    good = write_pair(tmp_path, "ai.example.org")
    key, other = good.with_suffix(".key"), write_pair(tmp_path, "b.example.org", stem="other").with_suffix(".key")
    old = write_pair(tmp_path, "a.example.org", begins=NOW - 9 * DAY, ends=NOW - DAY, stem="old")
    early = write_pair(tmp_path, "a.example.org", begins=NOW + DAY, stem="early")
    nameless = write_pair(tmp_path, stem="nameless")
    locked = tmp_path / "locked.key"
    secret = serialization.BestAvailableEncryption(b"a word")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    noise = tmp_path / "noise.pem"
    noise.write_bytes(os.urandom(500))
    cases: tuple[tuple[dict[str, Path], str], ...] = (
        ({"tls_certificate": good}, "gateway.tls_key is missing"),
        ({"tls_key": key}, "gateway.tls_certificate is missing"),
        ({"tls_certificate": tmp_path / "no.pem", "tls_key": key}, "is not there (gateway.tls_certificate)"),
        ({"tls_certificate": good, "tls_key": tmp_path / "no.key"}, "is not there (gateway.tls_key)"),
        ({"tls_certificate": tmp_path, "tls_key": key}, "cannot be read"),
        ({"tls_certificate": noise, "tls_key": key}, "holds no certificate in PEM"),
        ({"tls_certificate": key, "tls_key": key}, "holds no certificate in PEM"),
        ({"tls_certificate": good, "tls_key": good}, "is damaged or no PEM"),
        ({"tls_certificate": good, "tls_key": other}, "is not the key of the certificate"),
        ({"tls_certificate": good, "tls_key": locked}, "is locked by a password"),
        ({"tls_certificate": old, "tls_key": old.with_suffix(".key")}, "expired on"),
        ({"tls_certificate": early, "tls_key": early.with_suffix(".key")}, "is good from"),
        ({"tls_certificate": nameless, "tls_key": nameless.with_suffix(".key")}, "no name or address"),
    )
    for section, message in cases:
        assert message in await refused(tmp_path, **section), message
