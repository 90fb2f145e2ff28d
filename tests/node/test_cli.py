"""The command line: exit codes, one sentence for what is wrong, and what it can do while no node runs."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
import trio.lowlevel

import cli
from node.answers import Delta, Question
from node.bookkeeper import Bookkeeper
from node.commands.nodes import serving_row
from node.commands.screen import printable
from node.federation import ledger_folder, load_genesis, load_issuer
from node.gateway.wishes import MtorWishes
from node.identity import load_or_create_identity
from node.ledger_peers import LedgerPeers, PeerUnreachable
from node.paths import exclusive
from node.store import LevelStore
from node.version import VERSION
from protocol.errors import ErrorCode
from protocol.ids import NodeId, parse_peer_id, peer_id
from protocol.messages import Message
from tests.node.gateway_world import MODEL, ROUTED, WORKER, Emit, World, events, failing, gateway_world, saying

Mtor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mtor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mtor:
    """Runs `mtor` here, with a data folder of the test's own: exit code, output, errors."""
    for name in ("MTOR_DEBUG", "MTOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTOR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTOR_MODELS", str(tmp_path / "models"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def data(tmp_path: Path) -> Path:
    """The data folder that `mtor` uses."""
    return tmp_path / "data"


# --- the program itself --------------------------------------------------------------------------------


def test_version_is_quick_because_it_loads_nothing_heavy() -> None:
    program = (
        "import cli, json, sys; code = cli.main(['version', '--json']); "
        "print(json.dumps([code, [name for name in sys.argv[1:] if name in sys.modules]]))"
    )
    heavy = ["torch", "transformers", "libp2p", "aiohttp", "trio", "pydantic", "yaml", "plyvel"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    *version, last = done.stdout.splitlines()
    assert json.loads("".join(version)) == {"version": VERSION} and json.loads(last) == [0, []]


@pytest.mark.parametrize("verb", ["status", "keys list", "id", "ask hello"])
def test_small_verbs_load_neither_torch_nor_libp2p(tmp_path: Path, verb: str) -> None:
    program = "import cli, sys; cli.main(sys.argv[1:]); sys.exit(any(m in sys.modules for m in ('torch', 'libp2p')))"
    command = [sys.executable, "-c", program, *verb.split(), "--data", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_without_a_verb_it_helps(mtor: Mtor) -> None:
    code, out, _ = mtor()
    assert code == cli.USAGE and "exit codes" in out


@pytest.mark.parametrize("arguments", [["nonsense"], ["ledger"], ["ask"], ["up", "--port", "many"], ["up", "--nope"]])
def test_wrong_usage_is_2(mtor: Mtor, arguments: list[str]) -> None:
    code, _, err = mtor(*arguments)
    assert code == cli.USAGE and "usage: mtor" in err


VERBS = "up open stop status peers realms id ask chat models ledger federation keys config doctor demo version"


def test_every_verb_has_help_and_code_behind_it(mtor: Mtor) -> None:
    from importlib import import_module

    for verb in VERBS.split():
        assert mtor(verb, "--help")[0] == 0
    for run in _runs(cli._parser()):
        module, _, function = run.partition(":")
        assert callable(getattr(import_module(f"node.commands.{module}"), function)), run


def _runs(parser: Any) -> list[str]:
    """The `run` of every verb, through all groups."""
    own = [parser.get_default("run")] if parser.get_default("run") else []
    groups = [action.choices.values() for action in parser._actions if isinstance(action.choices, dict)]
    return own + [run for group in groups for verb in group for run in _runs(verb)]


def test_an_error_that_is_not_ours_says_where_to_look(
    mtor: Mtor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data(tmp_path).mkdir()
    (data(tmp_path) / "api_keys").mkdir()  # a folder where a file belongs
    code, out, err = mtor("keys", "list")
    assert code == cli.FAILED and out == "" and err.startswith("mtor: IsADirectoryError") and "MTOR_DEBUG=1" in err
    monkeypatch.setenv("MTOR_DEBUG", "1")
    with pytest.raises(IsADirectoryError):
        mtor("keys", "list")


def test_a_data_folder_that_cannot_be_is_told(mtor: Mtor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = mtor("id", "--data", str(tmp_path / "file" / "data"))
    assert code == cli.FAILED and "--data" in err and "MTOR_DEBUG" not in err


# --- configuration -------------------------------------------------------------------------------------


def test_config_check(mtor: Mtor, tmp_path: Path) -> None:
    code, out, _ = mtor("config", "check")
    assert code == 0 and "does not exist" in out
    file = data(tmp_path) / "realms.yml"
    file.write_text("realms:\n  - model: smollm2-135m\n")
    assert mtor("config", "check")[:2] == (0, f"{file}: no mistakes; 1 models to serve\n")
    assert json.loads(mtor("config", "check", "--json")[1]) == {
        "ok": True,
        "file": str(file),
        "exists": True,
        "realms": 1,
    }
    file.write_text("gateway:\n  prot: 1\nlog:\n  level: loud\n")
    code, out, err = mtor("config", "check")
    assert code == cli.USAGE and out == ""
    assert f"{file}:2:3: gateway.prot" in err and "did you mean port?" in err and f"{file}:4:3: log.level" in err


def test_config_show_puts_everything_together(mtor: Mtor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.yml"
    other.write_text("gateway: {port: 9107}\n")
    monkeypatch.setenv("MTOR_NODE__NAME", "attic")
    shown = json.loads(mtor("config", "show", "--config", str(other), "--json")[1])
    assert shown["gateway"]["port"] == 9107 and shown["node"]["name"] == "attic"
    as_yaml = mtor("config", "show", "--config", str(other))[1]
    copy = tmp_path / "copy.yml"
    copy.write_text(as_yaml)
    assert json.loads(mtor("config", "show", "--config", str(copy), "--json")[1]) == shown
    assert f"  # {other}:1:11\n  port: 9107\n" in as_yaml and "  # MTOR_NODE__NAME\n  name: attic\n" in as_yaml
    assert as_yaml.count("#") == 2  # what is a default says nothing


@pytest.mark.parametrize("verb", ["up", "config check", "config show"])
def test_a_file_that_was_named_must_be_there(mtor: Mtor, verb: str) -> None:
    code, out, err = mtor(*verb.split(), "--config", "nowhere.yml")
    assert code == cli.USAGE and out == "" and "nowhere.yml does not exist" in err


def test_models_of_a_realm_with_no_legal_name_are_refused(mtor: Mtor) -> None:
    code, _, err = mtor("up", "--model", "m", "--realm", "VISION")
    assert code == cli.USAGE and "the command line: 'VISION' is not a realm" in err


def test_up_refuses_a_wrong_configuration(mtor: Mtor, tmp_path: Path) -> None:
    data(tmp_path).mkdir()
    (data(tmp_path) / "realms.yml").write_text("gatway: {}\n")
    code, _, err = mtor("up")
    assert code == cli.USAGE and "did you mean gateway?" in err
    (data(tmp_path) / "realms.yml").unlink()
    code, _, err = mtor("up", "--port", "70000")
    assert code == cli.USAGE and "gateway.port" in err


# --- no node running -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["status", "peers", "realms", "stop", "ask hello", "ledger settle", "federation grant x 1"],
)
def test_without_a_node_it_is_3_and_says_how_to_start_one(mtor: Mtor, command: str) -> None:
    code, out, err = mtor(*command.split())
    assert code == cli.NO_NODE and out == "" and "mtor up" in err


def test_files_of_a_dead_node_are_recognised(mtor: Mtor, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    data(tmp_path).mkdir()
    (data(tmp_path) / "gateway.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": child.pid}))
    (data(tmp_path) / "admin.token").write_text("token")
    code, _, err = mtor("status")
    assert code == cli.NO_NODE and f"process {child.pid}" in err
    (data(tmp_path) / "gateway.json").write_text("{")
    assert mtor("status")[0] == cli.NO_NODE


def test_a_dead_nodes_process_id_may_be_another_programs_by_now(mtor: Mtor, tmp_path: Path) -> None:
    mtor("federation", "create", "garden")
    (data(tmp_path) / "gateway.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}))
    (data(tmp_path) / "admin.token").write_text("token")
    assert mtor("ledger", "balance")[0] == 0
    assert mtor("ledger", "settle")[0] == cli.NO_NODE


def test_id_is_made_once_and_private(mtor: Mtor, tmp_path: Path) -> None:
    code, first, _ = mtor("id")
    assert code == 0 and mtor("id")[1] == first
    shown = json.loads(mtor("id", "--json")[1])
    assert shown["node"] == first.strip() and parse_peer_id(shown["node"]).hex() == shown["public_key"]
    assert mtor("id", "--data", str(tmp_path / "second"))[1] != first
    assert stat.S_IMODE(data(tmp_path).stat().st_mode) == 0o700


def test_keys_are_made_listed_and_revoked(mtor: Mtor) -> None:
    code, key, _ = mtor("keys", "create", "laptop")
    assert code == 0 and key.startswith("mtor-")
    code, listed, _ = mtor("keys", "list")
    assert "laptop" in listed and key.strip() not in listed
    [row] = json.loads(mtor("keys", "list", "--json")[1])
    assert row["name"] == "laptop" and row["account"] == "" and row["scopes"] == ["all"] and "sha256" not in row
    assert mtor("keys", "revoke", row["id"])[0] == 0
    code, _, err = mtor("keys", "revoke", row["id"])
    assert code == cli.FAILED and "mtor keys list" in err
    assert json.loads(mtor("keys", "list", "--json")[1]) == []


def test_models_can_be_listed_and_removed(mtor: Mtor, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(mtor("models", "list", "--json")[1])}
    assert rows[MODEL]["installed"] is False and rows[MODEL]["licence"] == "Apache-2.0"
    assert MODEL in mtor("models", "list")[1]
    code, _, err = mtor("models", "rm", MODEL)
    assert code == cli.FAILED and MODEL in err
    code, _, err = mtor("models", "pull", "gpt-9")
    assert code == cli.FAILED and MODEL in err


# --- federations and the ledger, from the files --------------------------------------------------------


def test_a_federation_is_founded_shown_and_joined(mtor: Mtor, tmp_path: Path) -> None:
    code, out, _ = mtor("federation", "create", "garden")
    assert code == 0 and "garden" in out
    founder = mtor("id")[1].strip()
    genesis = tmp_path / "garden.genesis"
    code, out, _ = mtor("federation", "show", "--export", str(genesis))
    assert code == 0 and "witness and issuer" in out and genesis.stat().st_size > 0
    shown = json.loads(mtor("federation", "show", "--json")[1])
    assert shown["name"] == "garden" and shown["witnesses"] == [founder]

    member = ["--data", str(tmp_path / "member")]
    code, out, _ = mtor("federation", "join", str(genesis), *member)
    assert code == 0 and shown["id"] in out and mtor("id", *member)[1].strip() in out
    joined = json.loads(mtor("federation", "show", "--json", *member)[1])
    assert joined["id"] == shown["id"] and not joined["witness"] and not joined["issuer"]


def test_joining_another_federation_keeps_the_one_before(mtor: Mtor, tmp_path: Path) -> None:
    mtor("federation", "create", "home")
    mtor("federation", "create", "garden", "--data", str(tmp_path / "other"))
    file = tmp_path / "garden.genesis"
    mtor("federation", "show", "--export", str(file), "--data", str(tmp_path / "other"))
    code, out, _ = mtor("federation", "join", str(file))
    assert code == 0 and "home is kept" in out
    assert json.loads(mtor("federation", "show", "--json")[1])["name"] == "garden"


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "is no file"), ("zz@/ip4/127.0.0.1/tcp/1", "64 hex digits"), ("garbage", "")],
)
def test_joining_what_is_no_federation_fails_and_changes_nothing(
    mtor: Mtor, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "garbage").write_bytes(b"garbage")
    mtor("federation", "create", "home")
    code, _, err = mtor("federation", "join", str(tmp_path / source) if source == "garbage" else source)
    assert code == cli.FAILED and said in err and "MTOR_DEBUG" not in err
    assert json.loads(mtor("federation", "show", "--json")[1])["name"] == "home"


class NoWitness(LedgerPeers):
    """The founder is its own witness and asks nobody."""

    async def ask(self, node: NodeId, request: Message, expected: object) -> NoReturn:
        """Nobody answers."""
        raise PeerUnreachable("there is none")

    def connected(self) -> list[NodeId]:
        return []


def grant(folder: Path, amount: int, to: NodeId | None = None) -> str:
    """Issue credits, to the founder if nobody is named, as a running node would."""

    async def program() -> str:
        federation, identity = load_genesis(folder), load_or_create_identity(folder)
        assert federation is not None
        issuer = load_issuer(folder, federation)
        store = LevelStore(ledger_folder(folder, federation))
        books = Bookkeeper(store, identity.signer, federation, issuer, lambda: 1_800_000_000_000, NoWitness())
        async with trio.open_nursery() as nursery:
            await nursery.start(books.run)
            order = await books.grant(to or identity.node, amount)
            nursery.cancel_scope.cancel()
        return order

    return trio.run(program)


def test_the_ledger_is_read_while_no_node_runs(mtor: Mtor, tmp_path: Path) -> None:
    assert "mtor up" in mtor("ledger", "balance")[2]  # nothing there yet
    mtor("federation", "create", "garden")
    assert "nothing has moved yet" in mtor("ledger", "history")[1]
    order = grant(data(tmp_path), 5_000_000)
    assert json.loads(mtor("ledger", "balance", "--json")[1])["balance"] == 5_000_000
    assert mtor("id")[1].strip() in mtor("ledger", "balance")[1]
    [entry] = json.loads(mtor("ledger", "history", "--json")[1])
    assert entry["id"].startswith(order[:12]) and entry["amount"] == 5_000_000
    assert order[:12] in mtor("ledger", "history")[1]
    assert json.loads(mtor("ledger", "show", order[:8], "--json")[1])["kind"] == entry["kind"]
    assert mtor("ledger", "show", order)[0] == 0
    code, out, _ = mtor("ledger", "verify", "--signatures")
    assert code == 0 and out.startswith("verified: 1 certificates (links, sums and signatures)") and "sum 0" in out
    other = peer_id(WORKER)
    assert json.loads(mtor("ledger", "balance", other, "--json")[1])["balance"] == 0
    code, _, err = mtor("ledger", "show", "ffffff")
    assert code == cli.FAILED and "ffffff" in err and "MTOR_DEBUG" not in err
    code, _, err = mtor("ledger", "balance", "nobody")
    assert code == cli.FAILED and "nobody" in err and "MTOR_DEBUG" not in err


def test_a_federation_with_dealings_is_not_left_by_accident(mtor: Mtor, tmp_path: Path) -> None:
    mtor("federation", "create", "garden")
    mtor("federation", "create", "elsewhere", "--data", str(tmp_path / "other"))
    file = tmp_path / "elsewhere.genesis"
    mtor("federation", "show", "--export", str(file), "--data", str(tmp_path / "other"))
    garden = tmp_path / "garden.genesis"
    mtor("federation", "show", "--export", str(garden))
    grant(data(tmp_path), 5_000_000)  # the founder alone: nobody would miss it
    assert mtor("federation", "join", str(file))[0] == 0 and mtor("federation", "join", str(garden))[0] == 0
    grant(data(tmp_path), 7_000_000, WORKER)  # somebody else has credits here now
    for command in (["join", str(file)], ["create", "third"]):
        code, out, err = mtor("federation", *command)
        assert code == cli.FAILED and out == "" and "garden" in err and "--force" in err and "settle" in err
        assert json.loads(mtor("federation", "show", "--json")[1])["name"] == "garden"
    assert mtor("federation", "join", str(garden))[0] == 0  # the same one again is no change
    code, out, _ = mtor("federation", "join", str(file), "--force")
    assert code == 0 and "garden is kept" in out
    assert mtor("federation", "join", str(garden))[0] == 0  # back again, with everything
    assert json.loads(mtor("ledger", "balance", peer_id(WORKER), "--json")[1])["balance"] == 7_000_000


def test_a_folder_serves_one_process_at_a_time(mtor: Mtor, tmp_path: Path) -> None:
    mtor("federation", "create", "garden")
    with exclusive(data(tmp_path)):
        for command in (["up", "--port", "0"], ["federation", "create", "x"], ["ledger", "balance"]):
            code, _, err = mtor(*command)
            assert code == cli.FAILED and "runs on" in err and "mtor stop" in err, command
    assert mtor("ledger", "balance")[0] == 0


SERVING = {"realm": "$CHAT", "model": MODEL, "requests": ["chat"], "ready": True, "unloaded": False, "device": "cpu"}
SERVING |= {"slots": 2, "busy": 1, "queued": 0, "tokens_per_second": 12.34}


@pytest.mark.parametrize(
    ("changes", "paused", "busy", "speed"),
    [
        ({}, False, "1/2", "12.3"),
        ({"requests": ["imagine"], "tokens_per_second": 298_282.9}, False, "1/2", "-"),
        ({"requests": ["speak"]}, False, "1/2", "-"),
        ({"ready": False}, False, "loading", "12.3"),
        ({"ready": False, "unloaded": True}, False, "unloaded", "12.3"),
        ({"ready": False, "unloaded": True}, True, "paused", "12.3"),
        ({"ready": False}, True, "paused", "12.3"),
    ],
)
def test_status_says_what_a_model_does(changes: dict[str, Any], paused: bool, busy: str, speed: str) -> None:
    assert serving_row(SERVING | changes, paused=paused) == ("$CHAT", MODEL, "cpu", busy, "0", speed)


# --- with a node running -------------------------------------------------------------------------------


async def with_node(world: World, mtor: Mtor, *arguments: str) -> tuple[int, str, str]:
    """`mtor` in a thread, beside the gateway that it asks."""
    return await trio.to_thread.run_sync(mtor, *arguments, "--data", str(world.data))


async def test_ask_prints_the_answer_and_the_bill_apart(mtor: Mtor, tmp_path: Path) -> None:
    async with gateway_world(tmp_path, saying("Par", "is\x1b[2J")) as world:
        code, out, err = await with_node(
            world, mtor, "ask", "capital of France?", "--system", "be brief", "--seed", "4"
        )
        assert (code, out) == (0, "Paris\ufffd[2J\n")  # a worker's text does not clear the screen
        assert "7 + 3 units" in err and "ab" * 6 in err
        code, out, err = await with_node(world, mtor, "ask", "again", "--json", "--min-vram", "8000")
        assert json.loads(out)["text"] == "Paris\x1b[2J" and json.loads(out)["units_out"] == 3 and err == ""
        first, second = world.answers.asked
        assert [turn.text for turn in first.request.turns] == ["be brief", "capital of France?"]
        assert first.request.seed == 4 and second.requirements.min_vram_mib == 8000


async def test_all_wishes_reach_the_node_and_stand_in_the_quickstart(mtor: Mtor, tmp_path: Path) -> None:
    flags = [
        "--max-price-in",
        "7",
        "--max-price",
        "9",
        "--min-context",
        "2048",
        "--deadline",
        "1.5",
        "--device",
        "cpu",
        "--min-vram",
        "3",
    ]
    async with gateway_world(tmp_path, saying("Paris")) as world:
        assert (await with_node(world, mtor, "ask", "capital?", *flags, "--worker", peer_id(WORKER)))[0] == 0
        [asked] = world.answers.asked
        wanted = asked.requirements
        assert (wanted.max_price_in, wanted.max_price_out, wanted.min_context_tokens) == (7, 9, 2_048)
        assert (wanted.device_kind, wanted.min_vram_mib, wanted.worker) == ("cpu", 3, peer_id(WORKER))
        assert asked.deadline_ms == 1_500
        code, _, err = await with_node(world, mtor, "ask", "capital?", "--deadline", "-1")
        assert code == cli.USAGE and "--deadline -1" in err
    text = (Path(cli.__file__).parent / "docs" / "quickstart.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `--")]
    assert {field.strip().strip("`") for _, field in rows[1:]} == set(MtorWishes.model_fields)
    said = mtor("imagine", "--help")[1]
    assert all(flag.strip().strip("`") in said for flag, _ in rows)


async def test_silence_is_told_beside_the_output(mtor: Mtor, tmp_path: Path) -> None:
    sound = tmp_path / "silence.wav"
    sound.write_bytes(b"RIFF")
    async with gateway_world(tmp_path, saying("")) as world:
        code, out, err = await with_node(world, mtor, "transcribe", str(sound))
        assert (code, out) == (0, "") and err.startswith("nothing was heard\n")
        code, out, err = await with_node(world, mtor, "transcribe", str(sound), "--json")
        assert json.loads(out)["text"] == "" and err == ""
        world.answers.script = saying("WEBVTT\n\n")
        code, out, err = await with_node(world, mtor, "transcribe", str(sound), "--timestamps")
        assert (code, out, err) == (0, "WEBVTT\n\n", "nothing was heard\n")
        world.answers.script = saying("Hello.")
        code, out, err = await with_node(world, mtor, "transcribe", str(sound))
        assert (code, out) == (0, "Hello.\n") and "nothing" not in err


@pytest.mark.parametrize("verb", ["imagine", "say"])
def test_an_empty_text_is_wrong_usage(mtor: Mtor, verb: str) -> None:
    for text in ("", " \n"):
        code, out, err = mtor(verb, text)
        assert (code, out) == (cli.USAGE, "") and err.startswith("mtor: the text is empty")


async def test_a_refusal_is_4_also_in_mid_answer(mtor: Mtor, tmp_path: Path) -> None:
    async with gateway_world(tmp_path, failing(ErrorCode.NO_PEER, "nobody serves that")) as world:
        code, out, err = await with_node(world, mtor, "ask", "hello")
        assert (code, out) == (cli.REFUSED, "") and "nobody serves that" in err
        world.answers.script = failing(ErrorCode.WORKER_LOST, "it vanished", after=("Hal",))
        code, out, err = await with_node(world, mtor, "ask", "hello")
        assert (code, out) == (cli.REFUSED, "Hal\n") and "it vanished" in err
        code, _, err = await with_node(world, mtor, "ledger", "show", "abcdef")
        assert code == cli.REFUSED and "there is no such entry" in err


async def test_operations_go_to_the_running_node(mtor: Mtor, tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        code, out, _ = await with_node(world, mtor, "ledger", "balance", "someone", "--json")
        assert code == 0 and json.loads(out) == {"name": "ledger.balance", "arguments": {"account": "someone"}}
        assert (await with_node(world, mtor, "stop"))[:2] == (0, "stopping\n")
        (tmp_path / "admin.token").write_text("wrong")
        code, _, err = await with_node(world, mtor, "stop")
        assert code == cli.REFUSED and "admin.token" in err


async def test_a_node_that_ends_in_mid_answer_is_told(mtor: Mtor, tmp_path: Path) -> None:
    async def half(question: Question, emit: Emit) -> None:
        await events(ROUTED, Delta("half"))(question, emit)
        await trio.sleep_forever()

    async with gateway_world(tmp_path, half) as world:
        ended: list[tuple[int, str, str]] = []

        async def ask() -> None:
            with trio.CancelScope(shield=True):
                ended.append(await with_node(world, mtor, "ask", "hello"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while world.answers.emitted < 2:
                await trio.sleep(0.01)
            world.stop()
    code, out, err = ended[0]
    assert (code, out) == (cli.REFUSED, "half\n") and "stopping" in err


def test_a_node_that_is_killed_in_mid_answer_is_told(mtor: Mtor, tmp_path: Path) -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for sent, code in ((b"", cli.NO_NODE), (head + b"%x\r\n%s\r\n" % (len(chunk), chunk), cli.REFUSED)):
        with socket.create_server(("127.0.0.1", 0)) as server:
            data(tmp_path).mkdir(exist_ok=True)
            address = {"url": f"http://127.0.0.1:{server.getsockname()[1]}", "pid": os.getpid()}
            (data(tmp_path) / "gateway.json").write_text(json.dumps(address))
            (data(tmp_path) / "admin.token").write_text("token")
            killed = threading.Thread(target=_answer_and_die, args=(server, sent))
            killed.start()
            got, out, err = mtor("ask", "hello")
            killed.join()
        assert got == code and out == ("half\n" if sent else "") and "MTOR_DEBUG" not in err


def _answer_and_die(server: socket.socket, sent: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        request = b""
        while b'"stream": true' not in request:
            request += connection.recv(65_536)
        connection.sendall(sent)


def test_text_of_peers_moves_no_cursor() -> None:
    assert printable("a\x1b[2Jb\x07\n\tc\u202e…é") == "a\ufffd[2Jb\ufffd\n\tc\ufffd…é"
