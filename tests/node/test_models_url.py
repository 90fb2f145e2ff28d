"""Models by an address: cut off and gone on with, lied to, archives that want out of their folder."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio

from node.models import ModelError, ModelStore, PullWish
from node.models.sources import archive as archive_module
from node.models.sources import download as download_module
from node.models.sources import url as url_module
from node.models.sources.download import Wanted, download, speed
from tests.node.model_server import World, serving
from tests.node.model_world import CONFIG, Steps, left_over, weights

DATA = bytes(range(256)) * 2_000
NO_PAUSES = (0.0, 0.0, 0.0)


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as world:
        world.files["/model.bin"] = DATA
        yield world


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def wanted(world: World, kept: Path, path: str = "/model.bin", data: bytes = DATA) -> Wanted:
    return Wanted(world.url + path, sha256(data).hexdigest(), kept)


def content(path: Path) -> bytes:
    return path.read_bytes()


def fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def list_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- downloads -----------------------------------------------------------------------------------------


async def test_a_file_comes_whole_with_its_progress(world: World, kept: Path) -> None:
    steps = Steps()
    assert content(await download(wanted(world, kept), steps)) == DATA
    last = [step for step in steps.seen if step["step"] == "fetch"][-1]
    assert (last["done_bytes"], last["total_bytes"]) == (len(DATA), len(DATA))
    assert list_of(kept.parent) == ["kept"]


async def test_a_dropped_connection_is_gone_on_with(world: World, kept: Path) -> None:
    world.drop_after = [100_000, 50_000]
    steps = Steps()
    await download(wanted(world, kept), steps, NO_PAUSES)
    assert content(kept) == DATA
    assert world.ranges("/model.bin") == [None, "bytes=100000-", "bytes=150000-"]
    assert "the connection ended after 100,000 of 512,000 bytes" in str(steps.seen)


async def test_what_came_before_is_gone_on_with_by_a_later_pull(world: World, kept: Path) -> None:
    world.drop_after = [100_000] + [0] * 4
    with pytest.raises(ModelError, match="What has come is kept; pull again to go on"):
        await download(wanted(world, kept), Steps(), NO_PAUSES)
    assert content(kept) == DATA[:100_000]
    await download(wanted(world, kept), Steps(), NO_PAUSES)
    assert content(kept) == DATA
    assert world.ranges("/model.bin")[-1] == "bytes=100000-"


async def test_another_file_at_the_address_begins_anew(world: World, kept: Path) -> None:
    world.drop_after = [100_000]
    new = bytes(reversed(DATA))

    async def replace_file(step: dict[str, Any]) -> None:
        if step["step"] == "fetch again":
            world.files["/model.bin"], world.tag = new, '"two"'

    await download(wanted(world, kept, data=new), replace_file, NO_PAUSES)
    assert content(kept) == new


async def test_a_server_without_ranges_sends_it_all_again(world: World, kept: Path) -> None:
    world.drop_after, world.no_ranges = [100_000], True
    await download(wanted(world, kept), Steps(), NO_PAUSES)
    assert content(kept) == DATA


async def test_a_spoilt_beginning_is_fetched_once_more(world: World, kept: Path) -> None:
    fill(kept, b"\0" * 100_000)
    await download(wanted(world, kept), Steps(), NO_PAUSES)
    assert content(kept) == DATA
    assert world.ranges("/model.bin") == ["bytes=100000-", None]


async def test_too_much_of_a_beginning_is_fetched_once_more(world: World, kept: Path) -> None:
    fill(kept, DATA + b"more")
    await download(wanted(world, kept), Steps(), NO_PAUSES)
    assert content(kept) == DATA


async def test_a_wrong_digest_is_refused_and_not_kept(world: World, kept: Path) -> None:
    with pytest.raises(ModelError, match="has another digest than " + "0" * 64):
        await download(Wanted(f"{world.url}/model.bin?key=secret", "0" * 64, kept), Steps(), NO_PAUSES)
    assert list_of(kept.parent) == [] and world.ranges("/model.bin") == [None]


async def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_not(world: World, kept: Path) -> None:
    world.statuses = [503, 429]
    await download(wanted(world, kept), Steps(), NO_PAUSES)
    with pytest.raises(ModelError, match="the server says 404"):
        await download(wanted(world, kept.with_name("other"), "/nothing"), Steps(), NO_PAUSES)
    world.statuses = [500] * 9
    with pytest.raises(ModelError, match="the server says 500"):
        await download(wanted(world, kept.with_name("third")), Steps(), NO_PAUSES)


async def test_redirects_are_followed_a_few_times_and_only_by_http(world: World, kept: Path) -> None:
    world.redirects = {"/here": "/there", "/there": "/model.bin", "/loop": "/loop", "/out": "ftp://127.0.0.1/x"}
    await download(wanted(world, kept, "/here"), Steps(), NO_PAUSES)
    for path, said in (("/out", "redirects to ftp"), ("/loop", "302")):
        with pytest.raises(ModelError, match=said):
            await download(wanted(world, kept.with_name("other"), path), Steps(), NO_PAUSES)


async def test_no_more_is_taken_than_there_is_room_for(
    world: World, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "SPARE_BYTES", 10**18)
    with pytest.raises(ModelError, match="512,000 bytes, and there is too little room"):
        await download(wanted(world, kept), Steps(), NO_PAUSES)
    world.no_length = True  # then it is noticed on the way
    with pytest.raises(ModelError, match="more than it announced, or than there is room for"):
        await download(wanted(world, kept), Steps(), NO_PAUSES)


def test_speed_and_time_left() -> None:
    assert speed(10.0, 0, 500, 1_500, 15.0) == {"bytes_per_second": 100, "seconds_left": 10}
    assert speed(10.0, 500, 500, 1_500, 15.0) == {}
    assert speed(10.0, 0, 500, 0, 15.0) == {"bytes_per_second": 100}


KILLED = """
import sys, trio
from pathlib import Path
from node.models import ModelStore, PullWish

async def progress(step):
    print(step, flush=True)

trio.run(ModelStore(Path(sys.argv[1]), {}).pull, sys.argv[2], progress, PullWish(sha256=sys.argv[3]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_pull_is_gone_on_with(world: World, tmp_path: Path) -> None:
    data = packed_zip({"config.json": b"{}", "model.safetensors": weights(100_000)})
    world.files["/small.zip"], world.drop_after = data, [200_000, 0, 0, 0]
    reference = (f"{world.url}/small.zip", sha256(data).hexdigest())
    command = [sys.executable, "-c", KILLED, str(tmp_path), *reference]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("fetch again" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    store = ModelStore(tmp_path, {})
    assert store.names() == () and store.disk_use()["partial_bytes"] >= 200_000
    world.drop_after = []
    before = len(world.asked)
    assert trio.run(store.pull, reference[0], Steps(), PullWish(sha256=reference[1])) == "small"
    assert world.ranges("/small.zip")[before:] == ["bytes=200000-"]
    assert left_over(store) == ["small"] and store.check("small").wrong == ()


# --- whole pulls ---------------------------------------------------------------------------------------


def packed_zip(files: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def packed_tar(files: dict[str, bytes], kinds: dict[str, bytes] | None = None, form: str = "w") -> bytes:
    """A tar archive. `kinds` are its members' types other than plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=form) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            info.linkname = data.decode() if name in (kinds or {}) else ""
            info.size = 0 if name in (kinds or {}) else len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WHOLE = {
    "mine/config.json": b'{"model_type": "llama", "max_position_embeddings": 512}',
    "mine/README.md": b"---\nlicense: mit\n---\n# A model\x1b]0;owned\x07 of mine\n",
    "mine/model.safetensors": weights(),
}


async def pull(world: World, tmp_path: Path, file: str, data: bytes, **wish: str) -> ModelStore:
    world.files[f"/{file}"] = data
    store = ModelStore(tmp_path / "store", {})
    await store.pull(f"{world.url}/{file}?key=1", Steps(), PullWish(sha256=sha256(data).hexdigest(), **wish))
    return store


@pytest.mark.parametrize("file", ["mine.zip", "mine.tar", "mine.tar.gz"])
async def test_an_archive_becomes_a_model(world: World, tmp_path: Path, file: str) -> None:
    data = packed_zip(WHOLE) if file.endswith("zip") else packed_tar(WHOLE, form="w:gz" if "gz" in file else "w")
    store = await pull(world, tmp_path, file, data)
    manifest, _ = store.manifest("mine")
    assert set(manifest.files) == {"config.json", "README.md", "model.safetensors"}
    assert manifest.about.licence == "mit" and manifest.context_tokens == CONFIG["max_position_embeddings"]
    assert manifest.about.source == f"{world.url}/{file} sha256:{sha256(data).hexdigest()}"
    assert store.find("mine").realm == "$CHAT" and left_over(store) == ["mine"]
    again = Steps()
    await store.pull(f"{world.url}/{file}?key=1", again, PullWish(sha256=sha256(data).hexdigest()))
    assert again.names == ["verify"]


PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "path escape": ({"../config.json": b"{}"}, "outside its folder"),
    "absolute path": ({"/tmp/config.json": b"{}"}, "outside its folder"),
    "drive": ({"c:/config.json": b"{}"}, "outside its folder"),
    "backslash": ({"..\\config.json": b"{}"}, "outside its folder"),
    "depth": ({"a/b/c/d/config.json": b"{}"}, "outside its folder"),
    "pickle by name": (WHOLE | {"mine/pytorch_model.bin": PICKLE}, "pickle 'mine/pytorch_model.bin'"),
    "program": (WHOLE | {"mine/modeling.py": b""}, "has no place"),
    "same names": (WHOLE | {"mine/CONFIG.json": b"{}"}, "two of the same name"),
    "pickle by content": (WHOLE | {"mine/model.safetensors": PICKLE}, "is a pickle, whatever its name says"),
    "zip by content": (WHOLE | {"mine/model.safetensors": packed_zip({"data.pkl": PICKLE})}, "is a zip archive"),
    "pickled tokenizer": (WHOLE | {"mine/tokenizer.model": PICKLE}, "is a pickle, whatever its name says"),
    "cut weights": (WHOLE | {"mine/model.safetensors": weights()[:-4]}, "cut off or damaged"),
    "remote code": (WHOLE | {"mine/config.json": b'{"auto_map": {"AutoModel": "x.Y"}}'}, "auto_map"),
    "no weights": ({"config.json": b"{}"}, "no safetensors"),
    "no config": ({"model.safetensors": weights()}, "no config.json"),
    "nothing": ({}, "no files"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("packed", [packed_zip, packed_tar], ids=["zip", "tar"])
async def test_bad_archives_are_refused_and_leave_nothing(world: World, tmp_path: Path, packed: Any, case: str) -> None:
    files, said = BAD[case]
    with pytest.raises(ModelError, match=said):
        await pull(world, tmp_path, "mine.zip" if packed is packed_zip else "mine.tar", packed(files))
    assert left_over(ModelStore(tmp_path / "store", {})) == []
    assert list_of(tmp_path) == ["store"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
async def test_links_and_devices_are_not_unpacked(world: World, tmp_path: Path, kind: bytes) -> None:
    files = WHOLE | {"mine/tokenizer.json": b"/etc/hostname"}
    with pytest.raises(ModelError, match="link or a device"):
        await pull(world, tmp_path, "mine.tar", packed_tar(files, {"mine/tokenizer.json": kind}))
    linked = packed_zip(files, {"mine/tokenizer.json": stat.S_IFLNK | 0o777})
    with pytest.raises(ModelError, match="link or a device"):
        await pull(world, tmp_path, "mine.zip", linked)


async def test_archives_that_are_none_or_too_large(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="archive cannot be read"):
        await pull(world, tmp_path, "mine.zip", b"no archive")
    whole = packed_tar(WHOLE, form="w:gz")
    with pytest.raises(ModelError, match="archive cannot be read"):
        await pull(world, tmp_path, "mine.tar.gz", whole[: len(whole) // 2])
    many = packed_zip({f"{number}.txt": b"" for number in range(archive_module.MOST_FILES + 1)})
    with pytest.raises(ModelError, match="more than 2000 files"):
        await pull(world, tmp_path, "many.zip", many)
    monkeypatch.setattr(archive_module, "SPARE_BYTES", 10**18)
    with pytest.raises(ModelError, match=r"unpacks to [\d,]+ bytes"):
        await pull(world, tmp_path, "mine.zip", packed_zip(WHOLE))


async def test_a_gguf_is_converted_in_a_process_of_its_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "gguf_converter.py").write_text(
        f"WEIGHTS = {weights()!r}\n"
        "def convert(sources, folder):\n"
        "    assert sources['weights.gguf'].read_bytes()[:4] == b'GGUF'\n"
        "    (folder / 'config.json').write_text('{}')\n    (folder / 'model.safetensors').write_bytes(WEIGHTS)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setattr(url_module, "GGUF_CONVERTER", "gguf_converter:convert")
    gguf = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
    store = await pull(world, tmp_path, "Mine-Q4.gguf", gguf, name="mine")
    assert store.find("mine").engine == "torch-chat"
    with pytest.raises(ModelError, match=r"weights.gguf cannot be used"):
        await pull(world, tmp_path, "Other.gguf", b"GGUF\xff\xff\xff\xff")


@pytest.mark.parametrize(
    ("reference", "digest", "said"),
    [
        ("https://example.org/x.gguf", "", "needs --sha256"),
        ("https://example.org/x.gguf", "0" * 63, "needs --sha256"),
        ("https://example.org/x.bin", "0" * 64, "neither a .gguf nor an archive"),
        ("file:///etc/x.gguf", "0" * 64, "no http or https address"),
        ("https://me:secret@example.org/x.gguf", "0" * 64, "without a password"),
        ("https://example.org/..%2F.gguf", "0" * 64, "no name for a model"),
        ("gpt-9", "", "there is no model 'gpt-9'"),
    ],
)
async def test_what_is_no_address_of_a_model(tmp_path: Path, reference: str, digest: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        await ModelStore(tmp_path, {}).pull(reference, Steps(), PullWish(sha256=digest))
