"""What a power loss leaves of LevelDB's bookkeeping: an edit of the manifest that was not finished.

Rule: each folder is put together from what LevelDB itself wrote, before and after it moved a log into a table.
"""

from __future__ import annotations

import random
import shutil
import struct
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from node.leveldb_log import batches, masked_checksum
from node.store import LevelStore, StoreDamaged

SMALLEST_BUFFER = 64 * 1024
TABLES = 2  # before the one whose edit is not finished


class Flushed(NamedTuple):
    """A ledger just before a write that began a new table, and after it; the writes that were acknowledged."""

    before: Path
    after: Path
    writes: int

    def mixed(self, folder: Path) -> Path:
        """As the disk is between the two, in `folder`: the edit is there, the old log too, the table's name is not."""
        shutil.copytree(self.before, folder)
        for path in [_manifest(self.after), *self.after.glob("*.log")]:
            shutil.copy(path, folder)
        return folder


def _manifest(folder: Path) -> Path:
    return folder / (folder / "CURRENT").read_text().strip()


def _value(number: int) -> bytes:
    return random.Random(number).randbytes(3_000)


def _tables(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.ldb")}


@pytest.fixture(scope="module")
def flushed(tmp_path_factory: pytest.TempPathFactory) -> Flushed:
    root = tmp_path_factory.mktemp("flushed")
    folder, before, after, writes = root / "ledger", root / "before", root / "after", 0
    store = LevelStore(folder, write_buffer_bytes=SMALLEST_BUFFER)
    while True:
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(folder, before)
        writes += 1
        store.write({b"%05d" % writes: _value(writes)})
        if len(set(folder.glob("*.log")) - {folder / path.name for path in before.glob("*.log")}):
            _wait_for_table(folder, before)
            if len(_tables(before)) >= TABLES:
                break
    shutil.copytree(folder, after)
    store.close()
    return Flushed(before, after, writes)


def _wait_for_table(folder: Path, before: Path) -> None:
    """LevelDB moves the old log into a table beside our writes, then takes it away."""
    while any((folder / path.name).exists() for path in before.glob("*.log")):
        time.sleep(0.01)


def _last_edit(manifest: Path) -> tuple[int, int]:
    """Where it begins and ends."""
    *_, before, last = [end for end, _ in batches(manifest.read_bytes())]
    return before, last


def _looks_untouched(folder: Path, writes: int) -> bool:
    store = LevelStore(folder)
    try:
        numbers = range(1, writes + 1)
        return not store.damaged and all(store.get(b"%05d" % number) == _value(number) for number in numbers)
    finally:
        store.close()


def test_an_edit_whose_table_has_no_name_yet_is_taken_back(flushed: Flushed, tmp_path: Path) -> None:
    folder = flushed.mixed(tmp_path / "ledger")
    assert _tables(flushed.after) - _tables(folder)
    assert _looks_untouched(folder, flushed.writes)
    assert _looks_untouched(folder, flushed.writes)


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("tail", ["cut off", "zeros", "other bytes"])
@pytest.mark.parametrize("named", [True, False])
def test_a_torn_edit_is_taken_back(flushed: Flushed, tmp_path: Path, part: float, tail: str, named: bool) -> None:
    folder = flushed.mixed(tmp_path / "ledger")
    if named:
        for name in _tables(flushed.after):
            shutil.copy(flushed.after / name, folder)
    manifest = _manifest(folder)
    start, end = _last_edit(manifest)
    kept = int(start + part * (end - start))
    left = {"cut off": b"", "zeros": bytes(end - kept), "other bytes": b"\x5a" * (end - kept)}
    manifest.write_bytes(manifest.read_bytes()[:kept] + left[tail])
    assert _looks_untouched(folder, flushed.writes)


def _is_left_alone(folder: Path) -> bool:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("LO")}
    with pytest.raises(StoreDamaged, match="Move that folder away"):
        LevelStore(folder)
    return all((folder / name).read_bytes() == content for name, content in before.items())


def test_an_edit_is_not_taken_back_once_its_log_is_gone(flushed: Flushed, tmp_path: Path) -> None:
    folder = flushed.mixed(tmp_path / "ledger")
    for path in flushed.before.glob("*.log"):
        (folder / path.name).unlink()
    assert _is_left_alone(folder)


def test_a_lost_table_of_an_earlier_edit_is_damage(flushed: Flushed, tmp_path: Path) -> None:
    folder = flushed.mixed(tmp_path / "ledger")
    (folder / min(_tables(folder))).unlink()
    assert _is_left_alone(folder)


def test_a_fault_in_an_earlier_edit_is_damage(flushed: Flushed, tmp_path: Path) -> None:
    folder = flushed.mixed(tmp_path / "ledger")
    manifest = _manifest(folder)
    content = bytearray(manifest.read_bytes())
    content[_last_edit(manifest)[0] - 3] ^= 0xFF
    manifest.write_bytes(content)
    assert _is_left_alone(folder)


def test_an_edit_of_a_later_leveldb_is_left_to_it(flushed: Flushed, tmp_path: Path) -> None:
    """A tag that nobody knows today, in a record without a fault."""
    folder = flushed.mixed(tmp_path / "ledger")
    manifest = _manifest(folder)
    start, _ = _last_edit(manifest)
    content = manifest.read_bytes()
    kind_and_data = b"\x01\x63\x01"
    record = struct.pack("<IH", masked_checksum(kind_and_data), len(kind_and_data) - 1) + kind_and_data
    manifest.write_bytes(content[:start] + record + content[start:])
    assert _is_left_alone(folder)


@pytest.mark.parametrize("current", ["MANIFEST-999999\n", "nothing\n", "MANIFEST-\0\n", ""])
def test_a_current_that_names_no_manifest_is_damage(flushed: Flushed, tmp_path: Path, current: str) -> None:
    folder = tmp_path / "ledger"
    shutil.copytree(flushed.after, folder)
    (folder / "CURRENT").write_text(current)
    assert _is_left_alone(folder)
