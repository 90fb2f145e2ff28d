"""`/openapi.json` against what runs: it is valid, nothing is missing in it, and answers are what it says they are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import trio
from openapi_spec_validator import validate

from node.config import GatewaySection
from node.gateway.http import Gateway
from tests.interop.answering import any_realm
from tests.node.gateway_world import ScriptedAnswers, ScriptedFacts, ScriptedOperations, gateway_world, saying

EXAMPLES = 12  # of what is made up for each route
BUDGET = 30  # seconds, after which no more is made up: a busy machine tries less
SECONDS = 150  # more than this is a hang
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


async def test_the_description_is_valid_openapi(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        reply = await world.ask("GET", "/openapi.json")
        assert reply.json["openapi"].startswith("3.1")
        validate(reply.json)


async def test_what_is_described_is_what_is_registered(tmp_path: Path) -> None:
    gateway = Gateway(GatewaySection(), tmp_path, ScriptedAnswers(saying()), ScriptedOperations(), ScriptedFacts())
    registered = {
        (route.method, route.resource.canonical)
        for route in gateway._app().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    async with gateway_world(tmp_path) as world:
        paths: dict[str, Any] = (await world.ask("GET", "/openapi.json")).json["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described == registered


async def test_every_error_is_described_with_its_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        document = (await world.ask("GET", "/openapi.json")).json
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "402", "404", "429", "502", "503", "504"} <= set(chat)
    assert all("Retry-After" in chat[status]["headers"] for status in ("429", "503"))
    shape = document["components"]["schemas"]["ErrorAnswer"]
    assert chat["404"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert shape["required"] == ["error"]


async def test_what_is_answered_is_what_is_described(tmp_path: Path) -> None:
    """Schemathesis makes up requests from the description, right ones and wrong ones, and looks at the answers."""
    async with gateway_world(tmp_path, any_realm) as world:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{world.url}/openapi.json"),
            *("--phases", "fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1", "--max-time", str(BUDGET)),
            *("--checks", ",".join(CHECKS), "--header", f"Authorization: Bearer {world.token}"),
            *("--warnings", "off", "--no-color"),
        ]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)

        with trio.CancelScope(shield=True):
            done = await trio.to_thread.run_sync(run)
        assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
        assert world.answers.asked, "no request was right enough to be asked"
