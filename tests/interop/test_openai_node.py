"""OpenAI's own client for Node against the gateway."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.answering import PNG, any_realm
from tests.node.gateway_world import MODEL, gateway_world

HERE = Path(__file__).parent / "node"
SECONDS = 120  # more than this is a hang


async def test_everything_that_a_node_program_asks(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules" / "openai").is_dir():
        assert os.environ.get("CI") != "true", "CI runs `npm ci` in tests/interop/node; see .ci/run"
        pytest.skip("Node's client is not here; `npm ci` in tests/interop/node fetches it")
    async with gateway_world(tmp_path, any_realm) as world:
        command = [node, str(HERE / "clients.mjs"), world.url]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

        done = await trio.to_thread.run_sync(run)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["models"] == [MODEL]
    assert told["chat"] == ["Hello", 10] and told["stream"].replace("|", "") == "Hello10" and told["helper"] == "Hello"
    assert told["completion"] == told["response"] == told["final"] == told["transcript"] == "Hello"
    assert told["events"][0] == "response.created" and told["events"][-1] == "response.completed"
    assert told["speech"] == ["audio/mpeg", True] and base64.b64decode(told["image"]) == PNG
    assert told["embedding"] == {"name": "NotFoundError", "status": 404, "code": "no_embeddings", "param": "model"}
    wrong = {"name": "BadRequestError", "status": 400, "code": "invalid_value", "param": "temperature"}
    assert told["wrong"] == wrong and told["missing"]["code"] == "model_not_found"
