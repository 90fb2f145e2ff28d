"""The doctor: each thing that is wrong is found, stands with its fix, and nothing is changed by looking."""

import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from packaging.requirements import Requirement
from safetensors.numpy import save_file

import cli
from node import doctor
from node.cards import Card
from node.config import GatewaySection, NodeConfig, NodeSection
from node.doctor import Finding, examine
from node.fake_cards import FakeCards
from node.gateway.keys import ApiKeys
from node.identity import KEY_FILE, load_or_create_identity
from node.models import ModelStore
from node.operations import Json
from protocol.ids import NodeId, peer_id
from tests.node.gateway_world import gateway_world

CARD = Card(0, "GPU-1", "RTX 4090", 24_564, 20_000, 89, "580")
PEER = peer_id(NodeId(bytes(32)))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder as `mtor` makes it, with a configuration whose ports are any that are free."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("MTOR_MODELS", str(tmp_path / "models"))
    (folder / "realms.yml").write_text("gateway: {port: 0}\nnode: {listen: [/ip4/0.0.0.0/tcp/0]}\n")
    return folder


def levels(findings: Iterable[Finding], about: str) -> list[str]:
    """How grave what was found about something is."""
    return [finding.level for finding in findings if finding.about == about]


def bad(findings: Iterable[Finding]) -> list[Finding]:
    """What must be mended; each with its fix."""
    found = [finding for finding in findings if finding.level == "bad"]
    assert all(finding.fix for finding in found)
    return found


@contextmanager
def listener() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- the whole of it -----------------------------------------------------------------------------------


def test_a_fresh_machine_has_nothing_to_mend(data: Path) -> None:
    before = sorted(data.iterdir())
    findings = examine(data)
    assert bad(findings) == [] and sorted(data.iterdir()) == before
    assert levels(findings, "configuration") == ["ok"] and levels(findings, "identity") == ["note"]
    assert levels(findings, "node") == levels(findings, "models") == levels(findings, "bootstrap") == ["note"]


def test_the_exit_code_says_whether_there_is_something_to_mend(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--data", str(data)]) == cli.OK
    assert "ok    configuration: " in capsys.readouterr().out
    (data / "realms.yml").write_text("gatway: {}\n")
    assert cli.main(["doctor", "--data", str(data)]) == cli.FAILED
    out = capsys.readouterr().out
    assert "did you mean gateway?" in out and "      → correct it; `mtor config check`" in out
    assert cli.main(["doctor", "--data", str(data), "--json"]) == cli.FAILED
    rows = json.loads(capsys.readouterr().out)
    assert [row["about"] for row in rows if row["level"] == "bad"] == ["configuration"]
    assert all(set(row) == {"level", "about", "found", "fix"} for row in rows)


# --- the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("trio>=0.1", ""),
        ("trio>=900", "the node needs >=900"),
        ("no-such-package", "no-such-package is not installed"),
        ("no-such-package; sys_platform == 'plan9'", ""),
        ("no-such-package; extra == 'dev'", ""),
    ],
)
def test_packages_are_compared_with_what_is_asked_for(requirement: str, problem: str) -> None:
    found = doctor._package_problem(Requirement(requirement))
    assert problem in found and bool(found) == bool(problem)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_what_others_could_read_is_found_and_left_as_it_is(data: Path) -> None:
    load_or_create_identity(data)
    assert levels(examine(data), "identity") == ["ok"]
    (data / KEY_FILE).chmod(0o644)
    data.chmod(0o755)
    fixes = [finding.fix for finding in bad(examine(data))]
    assert fixes == [f"chmod 700 {data}", f"chmod 600 {data / KEY_FILE}"]
    assert (data / KEY_FILE).stat().st_mode & 0o777 == 0o644 and data.stat().st_mode & 0o777 == 0o755


def test_a_damaged_identity_is_found(data: Path) -> None:
    load_or_create_identity(data)
    (data / KEY_FILE).write_text("no key")
    [finding] = bad(examine(data))
    assert finding.about == "identity" and "copy" in finding.fix


def test_a_clock_that_was_set_back_is_found(data: Path) -> None:
    assert list(doctor._clock(data)) == []
    future = 10_000_000_000
    os.utime(data / "realms.yml", (future, future))
    [finding] = doctor._clock(data)
    assert finding.level == "bad" and "set the clock" in finding.fix


def test_a_full_disk_is_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_SPACE_BYTES", 1 << 62)
    assert [finding.about for finding in bad(doctor._folder(data))] == ["data folder"]


def use_of(cards: list[Card], usable: int, torch_cuda: str | None) -> list[Finding]:
    """What is said of cards that the driver and torch see."""
    return list(doctor._use_of(cards, "no NVIDIA driver answers", usable, "2.13.0", torch_cuda))


def test_a_card_that_torch_does_not_see_has_a_reason() -> None:
    assert [finding.level for finding in use_of([], 0, "13.0")] == ["note"]
    assert use_of([CARD], 1, "13.0") == []
    [cpu_build] = use_of([CARD], 0, None)
    assert cpu_build.level == "bad" and "CPU build" in cpu_build.found and "CUDA build" in cpu_build.fix
    [old_driver] = use_of([CARD], 0, "13.0")
    assert old_driver.level == "bad" and "driver 580" in old_driver.found and "CUDA 13.0" in old_driver.fix
    [unmanaged] = use_of([], 1, "13.0")
    assert unmanaged.level == "bad" and "nvidia-smi" in unmanaged.fix


def test_declared_cards_are_named_as_such_and_a_wrong_declaration_is_found(data: Path) -> None:
    (data / "cards.json").write_text('{"cards": [{"name": "RTX 4090", "vram_mib": 24564}]}')
    with (data / "realms.yml").open("a") as file:
        file.write("hardware: {declared: cards.json}\n")
    [finding] = [finding for finding in examine(data) if finding.about == "card"]
    assert finding.level == "note" and finding.found.startswith("RTX 4090 (declared), 24564 of 24564 MiB free")
    (data / "cards.json").write_text("{}")
    [finding] = [finding for finding in bad(examine(data)) if finding.about == "card"]
    assert "does not declare cards" in finding.found


# --- models --------------------------------------------------------------------------------------------


def test_models_that_are_not_there_are_found(data: Path, tmp_path: Path) -> None:
    (data / "realms.yml").write_text("gateway: {port: 0}\nrealms: [{model: smollm2-135m}, {model: ./mine}]\n")
    found = [finding for finding in bad(examine(data)) if finding.about == "model"]
    assert [finding.fix.split(";")[0] for finding in found] == [
        "mtor models pull smollm2-135m",
        "correct `model` in realms.yml",
    ]
    assert str(data / "mine") in found[1].found


def model_findings(tmp_path: Path, device: str, cards: list[Card], running: bool = False) -> list[Finding]:
    """What is said of a model of 3 MiB, which takes 759 of a card: most of that is CUDA's."""
    model = tmp_path / "mine"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    save_file({"weight": np.zeros(3 << 20, dtype=np.uint8)}, model / "model.safetensors")
    config = NodeConfig.model_validate({"realms": [{"model": str(model), "device": device}]})
    return list(doctor._models(ModelStore(tmp_path / "models"), config, FakeCards(cards), running))


def test_a_model_has_to_fit_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 << 30))
    full = replace(CARD, free_mib=900)
    assert bad(model_findings(tmp_path, "auto", [full, CARD])) == []  # one of them has room
    notes = [finding for finding in model_findings(tmp_path, "auto", [full]) if finding.level == "note"]
    assert "no card holds it" in notes[0].found and "on the CPU" in notes[0].found
    [finding] = bad(model_findings(tmp_path, "cuda", [full]))
    assert "does not fit: it takes 759 MiB" in finding.found and "RTX 4090) has 388 MiB" in finding.found
    assert finding.fix.startswith("device: auto, which would take the CPU; or ending what else uses RTX 4090")
    assert bad(model_findings(tmp_path, "cpu", [full])) == []
    assert bad(model_findings(tmp_path, "cuda", [full], running=True)) == []  # it is what fills the card
    assert bad(model_findings(tmp_path, "auto", [])) == []
    [finding] = bad(model_findings(tmp_path, "cuda", []))
    assert "this machine has none" in finding.found


# --- the node and its ports ----------------------------------------------------------------------------


def test_a_port_that_another_program_has_is_found_with_its_name(data: Path) -> None:
    with listener() as port, listener() as other:
        listen = (f"/ip4/127.0.0.1/tcp/{other}", "/dns4/localhost/tcp/1")
        config = NodeConfig(gateway=GatewaySection(port=port), node=NodeSection(listen=listen))
        first, second = bad(doctor._ports(config))
    assert f"{port} is used by " in first.found and f"(process {os.getpid()})" in first.found
    assert "gateway.port" in first.fix and str(other) in second.found and "node.listen" in second.fix
    assert bad(doctor._ports(config)) == []


def reporting(*problems: str) -> Callable[[str, Json], Awaitable[Json]]:
    """A node's own report."""

    async def call(name: str, arguments: Json) -> Json:
        assert name == "status"
        return {"uptime_seconds": 5, "peers": 2, "problems": problems}

    return call


async def about_node(data: Path) -> tuple[Json | None, list[Finding]]:
    """What the doctor says of the node that runs on `data`."""
    return await trio.to_thread.run_sync(doctor._node, data)


async def test_a_running_node_is_asked_how_it_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway_world(data) as world:
        monkeypatch.setattr(world.operations, "call", reporting())
        status, [finding] = await about_node(data)
        assert status and finding.level == "ok" and "5 s with 2 peers" in finding.found
        world.facts.ready = (False, "no connected peer offers a model yet")
        status, findings = await about_node(data)
        assert status and [finding.level for finding in findings] == ["ok", "note"]
        assert "no connected peer offers a model yet" in findings[1].found
        monkeypatch.setattr(world.operations, "call", reporting("no bootstrap peer can be reached"))
        _, findings = await about_node(data)
        [finding] = bad(findings)
        assert "no bootstrap peer" in finding.found and "node.log" in finding.fix


async def test_what_the_command_line_gave_the_running_node_is_asked_of_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status: Json = {"uptime_seconds": 5, "peers": 2, "problems": [], "serving": [{"model": "tiny"}]}
    status["bootstrap"] = {"known": 1, "reachable": 1}

    async def call(name: str, arguments: Json) -> Json:
        return status

    async with gateway_world(data) as world:
        monkeypatch.setattr(world.operations, "call", call)
        findings = await trio.to_thread.run_sync(examine, data)
        assert levels(findings, "models") == levels(findings, "bootstrap") == ["ok"]
        assert any("serves tiny" in finding.found for finding in findings)
        status["bootstrap"]["reachable"] = 0
        status["serving"] = []
        findings = await trio.to_thread.run_sync(examine, data)
        assert levels(findings, "models") == ["note"] and levels(findings, "bootstrap") == ["bad"]


def test_a_node_that_hangs_is_told_from_one_that_is_gone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NODE_SECONDS", 0.2)
    (data / "admin.token").write_text("token")
    with listener() as port:  # takes the connection, and says nothing
        (data / "gateway.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()}))
        status, [finding] = doctor._node(data)
        assert status == {} and finding.level == "bad" and "hangs" in finding.found
    status, [finding] = doctor._node(data)
    assert status is None and finding.level == "note"


def test_a_gateway_that_others_reach_needs_keys(data: Path) -> None:
    open_to_all = NodeConfig(gateway=GatewaySection(host="0.0.0.0"))
    [finding] = doctor._gateway(data, open_to_all)
    assert finding.fix == "mtor keys create NAME"
    ApiKeys(data).create("laptop")
    [finding] = doctor._gateway(data, open_to_all)
    assert finding.fix == "" and "1 exist" in finding.found
    (data / "api_keys").write_text("{")
    assert len(bad(doctor._gateway(data, open_to_all))) == 1
    assert list(doctor._gateway(data, NodeConfig())) == []


# --- the network ---------------------------------------------------------------------------------------


def test_a_node_that_only_this_machine_reaches_is_told() -> None:
    here = NodeConfig(node=NodeSection(listen=("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1")))
    assert levels(doctor._listening(here), "listening") == ["note"]
    both = NodeConfig(node=NodeSection(listen=("/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1")))
    assert list(doctor._listening(both)) == []


def test_bootstrap_peers_are_dialled(tmp_path: Path) -> None:
    peers = tmp_path / "peers.txt"
    config = NodeConfig(node=NodeSection(bootstrap=peers))
    with listener() as port:
        with listener() as gone:
            pass
        peers.write_text("".join(f"/ip4/127.0.0.1/tcp/{number}/p2p/{PEER}\n" for number in (port, gone)))
        reached, lost = doctor._joining(config, {})
    assert reached.level == "ok" and str(port) in reached.found
    assert lost.level == "bad" and str(gone) in lost.found and "firewall" in lost.fix
    peers.write_text("nonsense\n")
    [finding] = doctor._joining(config, {})
    assert finding.level == "bad" and "line 1" in finding.found
