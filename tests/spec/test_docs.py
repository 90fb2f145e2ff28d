"""What the documentation tells people to type exists: verbs, flags, settings, folders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import cli
from node.config import NodeConfig

ROOT = Path(__file__).parents[2]
TEXTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("quickstart.md", "game-guard.md", "hardware.md", "workers.md")),
    ROOT / "CONTRIBUTING.md",
]


def blocks(*languages: str) -> list[str]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [match for text in TEXTS for match in fence.findall(text.read_text(encoding="utf-8"))]
    return [block for language, block in found if language in languages]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("mtor ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert cli._parser().parse_args(shlex.split(command, comments=True)[1:]).run


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_setting_exists(block: str) -> None:
    NodeConfig.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`mtor ([^`]+)`", "".join(map(Path.read_text, TEXTS))))))
def test_every_command_in_a_sentence_is_one(verb: str) -> None:
    words = ["abcdef" if word == "ID" else word for word in shlex.split(verb)]
    assert cli._parser().parse_args(words).run


def test_every_make_target_exists() -> None:
    named = set(re.findall(r"^make (\w+)", "".join(blocks("", "sh")), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_folder_of_the_readme_exists() -> None:
    named = re.findall(r"^\| `([\w./]+)` \|", TEXTS[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
