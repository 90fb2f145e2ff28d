"""What CI and a newcomer's machine rest on: no skip passes unseen in CI, and the preflight names what is missing."""

import os
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREFLIGHT = ROOT / "scripts" / "preflight.py"
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the conftest needs no plugin, and to load them takes most of the time
PASSING = "def test_passes():\n    assert True\n"
SKIPS = {
    "a test": 'import pytest\n@pytest.mark.skip("no network")\ndef test_skipped():\n    pass\n',
    "within a test": 'import pytest\ndef test_skipped():\n    pytest.skip("no network")\n',
    "a whole file": 'import pytest\npytest.skip("no network", allow_module_level=True)\n',
    "a missing package": 'import pytest\npytest.importorskip("no_such_package", reason="no network")\n',
}


def pytest_of(folder: Path, text: str, ci: str) -> subprocess.CompletedProcess[str]:
    """A session of its own with this project's conftest, one passing test, and `text`."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_passing.py").write_text(PASSING)
    (folder / "test_one.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"CI": ci} | BARE)


@pytest.mark.parametrize("text", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_the_run_in_ci(tmp_path: Path, text: str) -> None:
    done = pytest_of(tmp_path, text, "true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "skipped in CI: " in done.stdout and "no network" in done.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    assert pytest_of(tmp_path, SKIPS["a whole file"], "").returncode == 0


def test_what_no_ci_machine_has_may_be_skipped(tmp_path: Path) -> None:
    assert pytest_of(tmp_path, SKIPS["a test"].replace("no network", "needs a CUDA card"), "true").returncode == 0


# --- before anything is installed ----------------------------------------------------------------------


def preflight(tools: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    """The preflight on a machine whose programs are those in `tools`."""
    environment = {"PATH": str(tools), "CC": compiler}
    return subprocess.run([sys.executable, PREFLIGHT], capture_output=True, text=True, check=False, env=environment)


def tool(folder: Path, name: str, script: str) -> Path:
    """A program that does what `script` says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


MACHINES = {
    "apt-get": "sudo apt-get install -y gcc python",
    "dnf": "sudo dnf install -y gcc python3-devel gmp-devel",
    "brew": "brew install gmp",
}


@pytest.mark.parametrize("packager", MACHINES)
def test_a_machine_without_headers_is_told_the_command(tmp_path: Path, packager: str) -> None:
    tool(tmp_path, packager, "exit 0")
    compiler = tool(tmp_path, "compiler", "echo 'probe.c:2:10: fatal error: gmp.h: No such file' >&2; exit 1")
    done = preflight(tmp_path, str(compiler))
    assert done.returncode == 1 and "missing for the build of one dependency: gmp.h" in done.stderr
    assert MACHINES[packager] in done.stderr


def test_a_machine_without_a_compiler_is_told(tmp_path: Path) -> None:
    done = preflight(tmp_path, "")
    assert done.returncode == 1 and "there is no C compiler" in done.stderr


def test_a_machine_that_has_everything_goes_on(tmp_path: Path) -> None:
    done = preflight(tmp_path, str(tool(tmp_path, "compiler", "exit 0")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0)])
def test_another_python_is_named_with_the_way_out(version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = runpy.run_path(str(PREFLIGHT))["_version_problem"]
    monkeypatch.setattr(sys, "version_info", version)
    assert ".".join(map(str, version)) in problem() and "make PYTHON=" in problem()
