"""`realms.yml`: taken whole, or refused with place, name and a way out."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from node.config import NodeConfig, RealmSection
from node.config_file import ConfigError, load_config, read_config

EXAMPLE = Path(__file__).parents[2] / "realms.example.yml"

WHOLE = """\
node:
  name: attic
  listen: [/ip4/0.0.0.0/tcp/9101, /ip6/::/tcp/9101]
gateway:
  port: 9100
  allowed_hosts:
    - mtor.lan
realms:
  - realm: $CHAT
    model: smollm2-135m
    slots: 4
  - model: another
log: {level: debug}
"""


def load(tmp_path: Path, text: str | bytes, environment: dict[str, str] | None = None, **overrides: Any) -> NodeConfig:
    """The configuration of a file with this text."""
    path = tmp_path / "realms.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, environment or {}, overrides)


def refusal(tmp_path: Path, text: str | bytes, environment: dict[str, str] | None = None) -> str:
    """What is said about it, from the file's name on."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text, environment)
    return str(refused.value).replace(f"{tmp_path}/", "")


def test_a_whole_file(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE)
    assert config.node.name == "attic" and config.node.listen == ("/ip4/0.0.0.0/tcp/9101", "/ip6/::/tcp/9101")
    assert config.gateway.port == 9100 and config.gateway.host == "127.0.0.1"
    assert [(realm.realm, realm.model, realm.slots) for realm in config.realms] == [
        ("$CHAT", "smollm2-135m", 4),
        ("", "another", 2),
    ]
    assert config.log.level == "debug"


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == NodeConfig()


def test_a_section_whose_lines_are_all_comments_means_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "gateway:\n  # port: 9100\nrealms:\n") == NodeConfig()


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "realms.yml", {}) == NodeConfig()


def test_every_setting_is_described() -> None:
    def undescribed(model: type[BaseModel], at: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += undescribed(kind, f"{at}{name}.")
            elif not field.description and not at.startswith("log."):
                found.append(f"{at}{name}")
        return found

    assert undescribed(NodeConfig, "") == ["realms"]  # its own keys are described in RealmSection


# --- mistakes, with their place ------------------------------------------------------------------------

MISTAKES = [
    ("gatway:\n  port: 1\n", "realms.yml:1:1: gatway is not a setting; did you mean gateway?"),
    ("gateway:\n  prot: 1\n", "realms.yml:2:3: gateway.prot is not a setting; did you mean port?"),
    ("realms:\n  - model: m\n    slotz: 1\n", "realms.yml:3:5: realms.0.slotz is not a setting; did you mean slots?"),
    ("log:\n  qqq: 1\n", "realms.yml:2:3: log.qqq is not a setting; known here: files, format, level, max_bytes"),
    ("gateway:\n\n  port: 70000\n", "realms.yml:3:3: gateway.port: Input should be less than or equal to 65535"),
    ("gateway: 9000\n", "realms.yml:1:1: gateway: Input should be a valid dictionary or instance of GatewaySection"),
    ("realms:\n  - slots: 2\n", "realms.yml:2:5: realms.0.model is missing"),
    ("realms:\n  - realm: CHAT\n    model: m\n", "realms.yml:2:5: "),
    ("realms:\n  - {model: m, engine: torch}\n", "realms.yml:2:16: realms.0.engine: Input should be 'auto', "),
    ("backup:\n  $POETRY: [CHAT]\n", "realms.yml:2:3: 'CHAT' is not a realm; write one like $CHAT"),
    ("realms:\n  - model: m\n  - model: m\n", "realms.yml:3:5: m serves its realm twice; raise its slots"),
    ("node:\n  listen: ['0.0.0.0:9001']\n", "realms.yml:2:12: '0.0.0.0:9001' is not an address like /ip4/"),
    ("node:\n  announce:\n    - /ip4/1.2.3.4/udp/1\n", "realms.yml:3:7: '/ip4/1.2.3.4/udp/1' is not an address"),
    ("blocked_peers:\n  - nobody\n", "realms.yml:2:5: "),
    ("gateway:\n  port: 1\ngateway:\n  port: 2\n", "realms.yml:3:1: gateway stands here a second time; keep one"),
    ("gateway: {port: 1, port: 2}\n", "realms.yml:1:20: port stands here a second time; keep one"),
    ("gateway:\n  port: [1\n", "realms.yml:3:1: not valid YAML: "),
    ("gateway:\n\tport: 1\n", "realms.yml:2:1: not valid YAML: found character '\\t'"),
    ("- gateway\n", "realms.yml:1:1: the file is a mapping"),
    ("just text\n", "realms.yml:1:1: the file is a mapping"),
    ("a: 1\n---\nb: 2\n", "realms.yml:2:1: not valid YAML: but found another document"),
    ("node:\n  name: !python/object x\n", "realms.yml:2:9: not valid YAML: could not determine a constructor"),
    ("node:\n  name: 2024-13-45\n", "realms.yml:2:9: not valid YAML: "),
    ("node: &a\n  name: *a\n", "realms.yml: nested too deeply, or an alias"),
    ("node: " + "[" * 2_000, "realms.yml: nested too deeply"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text[:24].split("\n")[0] for text, _ in MISTAKES])
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(said), message
    assert len(message) > len("realms.yml:2:5: ")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "gateway:\n  port: -1\nlog:\n  level: loud\nnoise: 1\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["realms.yml:2:3", "realms.yml:4:3", "realms.yml:5:1"]


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"name: \x00\n"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, text: bytes) -> None:
    assert refusal(tmp_path, text).startswith("realms.yml")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


# --- environment and flags -----------------------------------------------------------------------------


def test_environment_goes_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    text = "gateway: {port: 1, host: localhost}\nnode: {name: attic}\n"
    environment = {"MTOR_GATEWAY__PORT": "2", "MTOR_NODE__GOSSIP": "false", "MTOR_LOG__LEVEL": "error"}
    config = load(tmp_path, text, environment, gateway={"port": 3}, log={"format": "json"})
    assert (config.gateway.port, config.gateway.host) == (3, "localhost")
    assert config.node.name == "attic" and config.node.gossip is False
    assert (config.log.level, config.log.format) == ("error", "json")
    assert load(tmp_path, text, environment).gateway.port == 2


def test_lists_in_the_environment_are_yaml(tmp_path: Path) -> None:
    config = load(
        tmp_path, "", {"MTOR_NODE__LISTEN": "[/ip4/127.0.0.1/tcp/0]", "MTOR_GATEWAY__ALLOWED_HOSTS": "[a, b]"}
    )
    assert config.node.listen == ("/ip4/127.0.0.1/tcp/0",) and config.gateway.allowed_hosts == ("a", "b")


def test_a_list_of_flags_replaces_the_files(tmp_path: Path) -> None:
    assert [r.model for r in load(tmp_path, WHOLE, realms=[{"model": "third"}]).realms] == ["third"]


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    others = {"MTOR_DATA": "/x", "MTOR_MODELS": "/y", "MTOR_DEBUG": "1", "MTOR_SOMETHING": "z", "GATEWAY__PORT": "1"}
    assert load(tmp_path, "", others) == NodeConfig()


def test_a_mistake_in_the_environment_is_told_as_such(tmp_path: Path) -> None:
    wrong_name = refusal(tmp_path, "", {"MTOR_GATEWAY__PROT": "1"})
    assert wrong_name == "MTOR_GATEWAY__PROT: gateway.prot is not a setting; did you mean port?"
    wrong_section = refusal(tmp_path, "", {"MTOR_GATWAY__PORT": "1"})
    assert wrong_section == "MTOR_GATWAY__PORT: gatway is not a setting; did you mean gateway?"
    assert "MTOR_NODE__NAME" in refusal(tmp_path, "", {"MTOR_NODE__NAME": "[not closed"})


def test_who_sets_a_wrong_value_is_blamed_for_it(tmp_path: Path) -> None:
    right = "gateway:\n  port: 1\nnode:\n  listen: [/ip4/127.0.0.1/tcp/1]\n"
    assert refusal(tmp_path, right, {"MTOR_GATEWAY__PORT": "many"}).startswith("MTOR_GATEWAY__PORT: gateway.port: ")
    assert refusal(tmp_path, right, {"MTOR_NODE__LISTEN": "[x]"}).startswith("MTOR_NODE__LISTEN: 'x' is not an")
    with pytest.raises(ConfigError, match=r"^the command line: gateway\.port: "):
        load(tmp_path, right, {"MTOR_GATEWAY__PORT": "2"}, gateway={"port": 70_000})
    with pytest.raises(ConfigError, match=r"^the command line: m serves its realm twice"):
        load(tmp_path, right, realms=[{"model": "m"}, {"model": "m"}])
    with pytest.raises(ConfigError, match=r"realms\.yml:2:3: gateway\.port"):
        load(tmp_path, "gateway:\n  port: many\n", node={"name": "attic"})


@pytest.mark.parametrize("name", ["MTOR_GATEWAY_PORT", "MTOR_NODE_MAX_CONNECTIONS", "MTOR_LOG_LEVEL"])
def test_a_variable_with_one_underscore_too_few_is_not_passed_over(tmp_path: Path, name: str) -> None:
    said = refusal(tmp_path, "", {name: "1"})
    assert said.startswith(f"{name} sets nothing; write {name.replace('_', '__', 2).replace('__', '_', 1)}, "), said


def test_lists_outside_the_sections_can_be_set(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE, {"MTOR_REALMS": "[{model: one}]", "MTOR_BLOCKED_PEERS": "[]"})
    assert [section.model for section in config.realms] == ["one"]
    assert refusal(tmp_path, WHOLE, {"MTOR_BLOCKED_PEERS": "[x]"}).startswith("MTOR_BLOCKED_PEERS: ")


# --- where values come from ----------------------------------------------------------------------------


def test_each_value_has_an_origin(tmp_path: Path) -> None:
    path = tmp_path / "realms.yml"
    path.write_text(WHOLE)
    _, sources = read_config(path, {"MTOR_NODE__NAME": "cellar", "MTOR_GATEWAY__PORT": "1"}, {"gateway": {"port": 2}})
    origins = {
        ("node", "name"): "MTOR_NODE__NAME",
        ("node", "listen"): f"{path}:3:3",
        ("node", "dht"): "default",
        ("gateway", "port"): "the command line",
        ("realms",): f"{path}:8:1",
        ("blocked_peers",): "default",
    }
    assert {at: sources.origin(at) for at in origins} == origins


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; correct --config"):
        load_config(tmp_path / "realms.yml", {}, must_exist=True)


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = "node: {bootstrap: peers.txt}\nrealms: [{model: smollm2-135m}, {model: ./mine}, {model: /abs/olute}]\n"
    config = load(tmp_path, text)
    assert config.node.bootstrap == tmp_path / "peers.txt"
    assert [section.model for section in config.realms] == ["smollm2-135m", str(tmp_path / "mine"), "/abs/olute"]
    monkeypatch.setenv("HOME", "/home/of")
    assert load(tmp_path, "node: {bootstrap: ~/peers.txt}\n").node.bootstrap == Path("/home/of/peers.txt")


ADDRESSES = {
    "/ip4/0.0.0.0/tcp/0": True,
    "/ip6/::1/tcp/9001": True,
    "/dns4/attic.example/tcp/65535": True,
    "/ip4/0.0.0/tcp/9001": False,
    "/ip4/::1/tcp/9001": False,
    "/ip4/0.0.0.0/tcp/65536": False,
    "/ip4/0.0.0.0/tcp/": False,
    "/ip4/0.0.0.0/tcp/9001/ws": False,
    "/dns4//tcp/9001": False,
    "/ip4/0.0.0.0/udp/9001": False,
}


@pytest.mark.parametrize(("address", "right"), ADDRESSES.items())
def test_addresses_are_read_and_not_guessed(tmp_path: Path, address: str, right: bool) -> None:
    text = f"node: {{listen: ['{address}']}}\n"
    if right:
        assert load(tmp_path, text).node.listen == (address,)
    else:
        assert f"{address!r} is not an address" in refusal(tmp_path, text)


# --- the example ---------------------------------------------------------------------------------------


def test_the_example_names_every_setting_with_its_default() -> None:
    example = load_config(EXAMPLE, {})
    assert example.model_copy(update={"realms": ()}) == NodeConfig()
    [realm] = example.realms
    assert realm == RealmSection(model=realm.model)
    named = set(re.findall(r"^[ -]*#? ?(\w+):", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    settings = {name for model in (NodeConfig, RealmSection) for name in model.model_fields}
    for field in NodeConfig.model_fields.values():
        kind = field.annotation
        settings |= set(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else set()
    assert settings <= named, settings - named


# --- hours ---------------------------------------------------------------------------------------------


def test_hours_that_cannot_be_read_are_refused_where_they_stand(tmp_path: Path) -> None:
    text = 'guard:\n  pause:\n    - "18:00-23:00 mon-fri"\n    - "18:00-23:00 monday"\n'
    assert "realms.yml:4:7: '18:00-23:00 monday': monday is no day; days are mon, tue" in refusal(tmp_path, text)
    assert load(tmp_path, "guard: {pause: [9:00-17:00]}\n").guard.pause == ("9:00-17:00",)


def test_a_file_of_declared_cards_is_relative_to_the_configuration(tmp_path: Path) -> None:
    assert load(tmp_path, "hardware: {declared: cards.json}\n").hardware.declared == tmp_path / "cards.json"
