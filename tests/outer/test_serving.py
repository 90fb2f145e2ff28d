"""From a line of realms.yml to a model on offer: mistakes with line and column, keys, a server that comes and goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from node.config import NodeConfig
from node.config_file import ConfigError, load_config
from node.engines.outer.serving import OuterModel, outer_engine
from node.engines.process import EngineStartError
from node.outer_workers import OuterWorkers
from node.services import Services
from protocol.errors import Refused
from protocol.ids import CHAT, IMAGINE
from protocol.messages import NUMBERS, ChatRequest, ImagineRequest, SpeakRequest, TranscribeRequest, VisionRequest
from tests.outer.world import RunningServer

GOOD = """\
workers:
  allowed: [127.0.0.1, 192.168.1.0/24]
realms:
  - realm: $CHAT
    model: meta/llama
    engine: openai
    url: http://192.168.1.7:11434/v1
    api_key_file: keys/ollama
"""


def load(tmp_path: Path, text: str) -> NodeConfig:
    path = tmp_path / "realms.yml"
    path.write_text(text)
    return load_config(path, {})


def test_a_servers_model_is_no_path_and_its_key_file_is(tmp_path: Path) -> None:
    [section] = load(tmp_path, GOOD).outer_models
    assert section.model == "meta/llama" and section.api_key_file == tmp_path / "keys/ollama"
    assert load(tmp_path, GOOD).local_models == ()


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("192.168.1.7:", "192.168.2.7:", "7:5", "is not on the list of allowed addresses; to use it, add it"),
        ("192.168.1.7:", "[::ffff:10.0.0.1]:", "7:5", "10.0.0.1 is not on the list"),
        ("http:", "ftp:", "7:5", "is not an address like http://"),
        ("11434", "114340", "7:5", "is not an address like http://"),
        ("http://", "http://me:secret@", "7:5", "a key belongs into api_key_env"),
        ("    url: http://192.168.1.7:11434/v1\n", "", "6:5", "say where it is: url: http://"),
        ("openai", "torch-chat", "7:5", "url is for the engines a1111, openai, predict"),
        ("api_key_file: keys/ollama", "api_key_file: k\n    api_key_env: K", "8:5", "keep one"),
        ("192.168.1.0/24", "192.168.1.0/33", "2:24", "not a valid IPv4 or IPv6 network"),
        ("allowed:", "alowed:", "2:3", "did you mean allowed?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, where: str, what: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, GOOD.replace(old, new))
    message = str(refused.value)
    assert f"realms.yml:{where}: " in message and what in message
    assert "secret" not in message


def model(**more: Any) -> OuterModel:
    return OuterModel(**({"engine": "openai", "realm": "$CHAT", "model": "m", "url": "http://127.0.0.1:1/v1"} | more))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"options": {"temperature": "1"}}, "openai has no option temperature; it has can, continuation, serves"),
        ({"options": {"steps": "many"}}, "the option steps is a whole number above 0"),
        ({"options": {"continuation": "yes"}}, "continuation is one of auto, prefill, flags, none"),
        ({"options": {"serves": "chat, dance"}}, "not dance"),
        ({"realm": "$SPEECH"}, "serves: transcribe"),
        ({"engine": "a1111", "options": {"serves": "chat"}}, "a1111 serves imagine"),
        ({"engine": "a1111", "options": {"guidance": "high"}}, "guidance is a number"),
        ({"key_variable": "OUTER_KEY"}, "the variable OUTER_KEY holds no key"),
        ({"key_file": Path("/no/such/file")}, "cannot be read"),
        ({"url": "http:///v1"}, "no address like"),
    ],
)
async def test_what_cannot_be_served_ends_the_start(more: dict[str, Any], what: str) -> None:
    with pytest.raises(EngineStartError, match=r"^m") as refused:
        outer_engine(model(**more), {})
    assert what in str(refused.value)


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, (ChatRequest,)),
        ({"realm": "$POETRY"}, (ChatRequest,)),
        ({"realm": "$VISION"}, (ChatRequest, VisionRequest)),
        ({"realm": "$IMAGINE"}, (ImagineRequest,)),
        ({"engine": "a1111", "realm": "$ART"}, (ImagineRequest,)),
        ({"realm": "$SPEECH", "options": {"serves": "transcribe speak"}}, (TranscribeRequest, SpeakRequest)),
    ],
)
async def test_a_realm_says_what_is_asked(more: dict[str, Any], kinds: tuple[type, ...]) -> None:
    engine = outer_engine(model(**more), {})
    assert engine.info.requests == tuple(NUMBERS[kind] for kind in kinds)


async def test_a_key_never_shows(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    engine = outer_engine(model(key_file=tmp_path / "key"), {})
    assert "s3cret" not in repr(vars(engine)) + repr(model(key_file=tmp_path / "key"))


async def test_offers_follow_the_servers(server: RunningServer, tmp_path: Path) -> None:
    text = f"""\
realms:
  - {{model: tiny-llama, engine: openai, url: "{server.url}/v1", slots: 3}}
  - {{model: dream, engine: a1111, url: "{server.url}"}}
  - {{model: absent, engine: openai, url: "{server.url}/v1"}}
"""
    services = Services(free=True)
    workers = OuterWorkers(load(tmp_path, text), {}, services)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        offers = {offer.model: offer for offer in services.offers()}
        assert {name: (offer.realm, offer.slots) for name, offer in offers.items()} == {
            "tiny-llama": (CHAT, 3),
            "dream": (IMAGINE, 2),
            "absent": (CHAT, 0),
        }
        assert offers["tiny-llama"].device.kind == "outer" and offers["tiny-llama"].context_tokens == 4_096
        [problem] = workers.problems()
        assert problem.startswith("the server of absent: it has no model absent")
        assert services.choose(CHAT, "tiny-llama", NUMBERS[ChatRequest]).engine.ready
        with pytest.raises(Refused) as refused:
            services.choose(CHAT, "absent", NUMBERS[ChatRequest])
        assert refused.value.retry_after_ms > 0 and refused.value.message == "the worker's server is down"
        nursery.cancel_scope.cancel()
