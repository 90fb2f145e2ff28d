"""`realms.yml`: taken whole, or refused with place, name and a way out."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from node.config import NodeConfig
from node.config_file import ConfigError, load_config

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
        ("$CHAT", "another", 2),
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
    ("realms:\n  - {realm: $IMAGE, model: m}\n", "realms.yml:2:6: $IMAGE: this version serves $CHAT only"),
    ("realms:\n  - model: m\n  - model: m\n", "realms.yml:3:5: m serves $CHAT twice; raise its slots"),
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
    assert "MTOR_ variable" in wrong_name and "did you mean port?" in wrong_name
    assert "MTOR_ variable" in refusal(tmp_path, "", {"MTOR_GATEWAY__PORT": "many"})
    assert "MTOR_NODE__NAME" in refusal(tmp_path, "", {"MTOR_NODE__NAME": "[not closed"})
