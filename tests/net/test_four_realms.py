"""One question to each realm through a peer with no model of its own, by the command line and by HTTP.

Rule: real models, and what comes back is looked at as a person would: the picture shows the colour of what was asked
for, the sign is read, and what was said is understood.
"""

import base64
import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from node.demo import ALL_REALMS, EARS_MODEL, MODEL, OTHER_MODELS, PICTURE_MODEL, SENTENCE, SIGN, VOICE_MODEL
from node.engines.sign import sign
from node.local_federation import NodeProcess, local_federation, wait_models

CLI_SECONDS = 90


def words(text: str) -> set[str]:
    return {word.strip(".,!?:“”").lower() for word in text.split()}


def red_in_the_middle(png: bytes) -> bool:
    """True if the middle of the picture is much more red than green or blue."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    width, height = image.size
    middle = image.crop((width // 3, height // 3, 2 * width // 3, 2 * height // 3)).resize((1, 1))
    red, green, blue = middle.getpixel((0, 0))  # type: ignore[misc]
    return bool(red > green + 60 and red > blue + 60)


def mtor(gateway: NodeProcess, verb: str, *arguments: str) -> dict[str, Any]:
    """A verb's JSON, from a process of its own."""
    command = [sys.executable, "-m", "cli", verb, "--data", str(gateway.folder), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLI_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert [share["lane"] for share in answer["shares"]] == ["paid"], answer
    return answer


def post(gateway: NodeProcess, path: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(
        f"{gateway.client.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=CLI_SECONDS) as response:
        data: bytes = response.read()
    return data


@pytest.mark.net
@pytest.mark.model
@pytest.mark.slow
def test_each_realm_through_a_peer_without_models(tmp_path: Path) -> None:
    with local_federation(tmp_path / "nodes", ["worker"], ALL_REALMS) as nodes:
        gateway = nodes[0]
        wait_models(gateway, (MODEL, *OTHER_MODELS))
        by_command_line(gateway, tmp_path)
        by_http(gateway)
        for node in (nodes[1], gateway, nodes[1], gateway):
            node.client.call("ledger.settle")
        report = gateway.client.call("ledger.verify", {"signatures": True})
        assert report["verified"] and report["sum_micro"] == 0


def by_command_line(gateway: NodeProcess, folder: Path) -> None:
    asked = ["What is the capital of France? Answer in one sentence.", "--temperature", "0", "--max-tokens", "40"]
    assert "Paris" in mtor(gateway, "ask", *asked)["text"]
    picture = folder / "apple.png"
    mtor(gateway, "imagine", "red apple", "--size", "128x128", "--seed", "7", "--out", str(picture))
    assert red_in_the_middle(picture.read_bytes())
    (folder / "sign.png").write_bytes(sign(SIGN))
    assert SIGN in mtor(gateway, "ask", "What does it say?", "--image", str(folder / "sign.png"))["text"]
    sound = folder / "sentence.wav"
    mtor(gateway, "say", SENTENCE, "--out", str(sound))
    heard = mtor(gateway, "transcribe", str(sound))["text"]
    assert len(words(heard) & words(SENTENCE)) >= 0.7 * len(words(SENTENCE)), heard


def by_http(gateway: NodeProcess) -> None:
    chat: dict[str, Any] = {"model": "auto", "temperature": 0, "max_tokens": 40}
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    assert (
        "Paris"
        in json.loads(post(gateway, "/v1/chat/completions", chat | {"messages": [question]}))["choices"][0]["message"][
            "content"
        ]
    )
    asked = {"model": PICTURE_MODEL, "prompt": "red apple", "size": "128x128", "seed": 7}
    made = json.loads(post(gateway, "/v1/images/generations", asked))
    assert red_in_the_middle(base64.b64decode(made["data"][0]["b64_json"]))
    url = f"data:image/png;base64,{base64.b64encode(sign(SIGN)).decode()}"
    shown = [{"type": "text", "text": "What does it say?"}, {"type": "image_url", "image_url": {"url": url}}]
    seen = json.loads(post(gateway, "/v1/chat/completions", chat | {"messages": [{"role": "user", "content": shown}]}))
    assert SIGN in seen["choices"][0]["message"]["content"]
    sound = post(gateway, "/v1/audio/speech", {"model": VOICE_MODEL, "input": SENTENCE})
    heard = gateway.client.form("/v1/audio/transcriptions", {"model": EARS_MODEL}, "sentence.wav", sound)
    assert len(words(json.loads(heard)["text"]) & words(SENTENCE)) >= 0.7 * len(words(SENTENCE))
