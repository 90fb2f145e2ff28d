"""`mtor models`: what a person at a terminal and a program read, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest

import cli
from node.commands import models as commands
from node.models import ModelStore
from tests.node.model_server import COMMIT, REPO, World, serving
from tests.node.model_world import model_folder, weights

Mtor = Callable[..., tuple[int, str, str]]
GGUF = b"GGUF\xff\xff\xff\xff" + bytes(600_000)  # of a version that nobody reads


@pytest.fixture
def mtor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mtor:
    """Runs `mtor models` here: exit code, output, errors."""
    monkeypatch.delenv("MTOR_DEBUG", raising=False)
    monkeypatch.setenv("MTOR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTOR_MODELS", str(tmp_path / "models"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(("models", *arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with serving() as world:
        monkeypatch.setenv("HF_ENDPOINT", world.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        world.card = {"license": "mit"}
        world.repo = {"README.md": b"# Small\n", "config.json": b"{}", "model.safetensors": weights()}
        world.files["/mine.gguf"] = GGUF
        yield world


def test_a_model_of_the_operators_from_add_to_rm(mtor: Mtor, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", readme="---\nlicense: mit\n---\n# Mine, all mine\n")
    code, out, _ = mtor("add", str(folder))
    assert code == 0 and "mine is a model for $CHAT (torch-chat)" in out and str(folder) in out
    row = next(row for row in json.loads(mtor("list", "--json")[1]) if row["name"] == "mine")
    assert row["installed"] and row["linked"] and row["fetch_bytes"] == 0 and row["bytes"] > 0
    listed = next(line for line in mtor("list")[1].splitlines() if line.startswith("mine"))
    assert "linked" in listed and "mit" in listed
    _, out, _ = mtor("show", "mine")
    assert "# Mine, all mine" in out and "context tokens" in out and "model.safetensors" in out
    assert json.loads(mtor("show", "mine", "--json")[1])["licence"] == "mit"
    code, out, _ = mtor("verify")
    assert code == 0 and "mine: 4 files are as they were stored" in out
    (folder / "tokenizer.json").write_text("[1]")
    code, out, _ = mtor("verify", "mine")
    assert code == 1 and "tokenizer.json has 3 bytes instead of 2" in out
    [checked] = json.loads(mtor("verify", "mine", "--json")[1])
    assert checked["wrong"] == ["tokenizer.json has 3 bytes instead of 2"]
    assert mtor("rm", "mine")[0] == 0 and (folder / "model.safetensors").exists()
    code, _, err = mtor("show", "mine")
    assert code == cli.FAILED and "there is no model 'mine'" in err


def test_what_is_builtin_says_so(mtor: Mtor) -> None:
    for verb, said in (("rm", "cannot be removed"), ("pull", "nothing to pull")):
        code, _, err = mtor(verb, "emoji-64")
        assert code == cli.FAILED and "comes with mtor" in err and said in err


def test_an_address_needs_a_digest_and_what_it_gives_is_checked(mtor: Mtor, world: World) -> None:
    code, _, err = mtor("pull", f"{world.url}/mine.gguf")
    assert code == cli.FAILED and "--sha256" in err
    code, _, err = mtor("pull", f"{world.url}/mine.gguf", "--sha256", "0" * 64)
    assert code == cli.FAILED and "another digest" in err
    code, _, err = mtor("pull", f"{world.url}/mine.gguf", "--sha256", sha256(GGUF).hexdigest())
    assert code == cli.FAILED and "weights.gguf cannot be used" in err


def test_a_hubs_model_is_agreed_to(mtor: Mtor, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = mtor("pull", f"hf:{REPO}")
    assert code == cli.FAILED and "--yes" in err
    assert COMMIT in out and "mit" in out and "# Small" in out
    monkeypatch.setattr(commands.sys, "stdin", Typing("n\n"))
    code, _, err = mtor("pull", f"hf:{REPO}")
    assert code == cli.FAILED and "nothing was fetched" in err and world.ranges("/model.safetensors") == []
    monkeypatch.setattr(commands.sys, "stdin", Typing("y\n"))
    code, out, _ = mtor("pull", f"hf:{REPO}", "--name", "small")
    assert code == 0 and "mtor up --model small" in out
    assert next(row for row in json.loads(mtor("list", "--json")[1]) if row["name"] == "small")["licence"] == "mit"


class Typing:
    """Standard input with somebody at it."""

    def __init__(self, line: str) -> None:
        self._line = line

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._line

    def fileno(self) -> NoReturn:
        raise OSError("no descriptor")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_a_pull_and_keeps_what_has_come(world: World, tmp_path: Path) -> None:
    world.drop_after = [200_000] + [0] * 20  # then it waits to try again
    folders = {"MTOR_DATA": str(tmp_path / "data"), "MTOR_MODELS": str(tmp_path / "models")}
    command = [sys.executable, "-m", "cli", "models", "pull", f"{world.url}/mine.gguf"]
    command += ["--sha256", sha256(GGUF).hexdigest()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | folders) as process:
        assert process.stderr is not None
        assert any("fetch again" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in rest
    store = ModelStore(tmp_path / "models")
    assert store.disk_use()["partial_bytes"] >= 200_000 and not list(store.root.glob(".pulling-*"))


SLOW_CONVERTER = """
import time
from pathlib import Path
def convert(sources, folder):
    Path({marker!r}).touch()
    time.sleep(60)
"""
PULL = """
import sys
from node.models.sources import url
url.GGUF_CONVERTER = "slow_converter:convert"
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a group of processes")
def test_ctrl_c_ends_a_pull_that_converts(world: World, tmp_path: Path) -> None:
    gguf = world.files["/mine.gguf"] = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
    (tmp_path / "slow_converter.py").write_text(SLOW_CONVERTER.format(marker=str(tmp_path / "converting")))
    search = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parent)])
    folders = {"MTOR_DATA": str(tmp_path / "data"), "MTOR_MODELS": str(tmp_path / "models"), "PYTHONPATH": search}
    command = [sys.executable, "-c", PULL, "models", "pull", f"{world.url}/mine.gguf"]
    command += ["--sha256", sha256(gguf).hexdigest()]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | folders, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "converting").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, rest = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in rest
    assert not list((tmp_path / "models").glob(".pulling-*"))


def test_only_ctrl_c_itself_is_quiet(mtor: Mtor, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*errors: BaseException) -> None:
        def pull(options: object) -> NoReturn:
            raise BaseExceptionGroup("of tasks", errors)

        monkeypatch.setattr(commands, "pull", pull)

    stop(KeyboardInterrupt(), BaseExceptionGroup("inside", [KeyboardInterrupt()]))
    assert mtor("pull", "small") == (cli.STOPPED, "", "")
    stop(KeyboardInterrupt(), ValueError("a real one"))
    with pytest.raises(BaseExceptionGroup, match="of tasks"):
        mtor("pull", "small")
