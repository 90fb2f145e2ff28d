"""LiteLLM as a client library against the gateway."""

import json
import os
import subprocess
import sys
from pathlib import Path

import trio

from tests.interop.answering import any_realm
from tests.node.gateway_world import MODEL, gateway_world

CLIENT = Path(__file__).parent / "litellm_client.py"
SECONDS = 150  # more than this is a hang: its import alone takes many
ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}  # it fetches a list of prices otherwise


async def test_everything_that_a_program_asks(tmp_path: Path) -> None:
    async with gateway_world(tmp_path, any_realm) as world:
        command = [sys.executable, str(CLIENT), world.url, MODEL]

        def run() -> subprocess.CompletedProcess[str]:
            environment = os.environ | ALONE
            return subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=tmp_path, env=environment
            )

        done = await trio.to_thread.run_sync(run)
    assert done.returncode == 0, done.stderr[-4_000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"] == ["Hello", 10] and told["streamed"] == told["responses"] == told["ollama"] == "Hello"
    assert "no realm of this federation makes embeddings" in told["embedding"] and "temperature" in told["wrong"]
