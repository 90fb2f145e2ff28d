"""What every store promises: LevelDB and the one in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.memory_store import MemoryStore
from node.store import LevelStore, Store, StoreDamaged, StoreFailed, StoreLocked

PAIRS = {b"a1": b"1", b"a2": b"2", b"a3": b"", b"b\xff": b"4", b"b\xff\xff": b"5", b"c": b"6"}


@pytest.fixture(params=["level", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = LevelStore(tmp_path / "ledger") if request.param == "level" else MemoryStore()
    yield made
    made.close()


@pytest.fixture
def filled(store: Store) -> Store:
    store.write(PAIRS)
    return store


def keys(pairs: Iterator[tuple[bytes, bytes]]) -> list[bytes]:
    return [key for key, _ in pairs]


def test_what_was_written_is_read(filled: Store) -> None:
    assert {key: filled.get(key) for key in PAIRS} == PAIRS
    assert filled.get(b"a") is None
    assert filled.damaged == ""


def test_a_batch_puts_and_deletes_in_one(filled: Store) -> None:
    filled.write({b"a1": None, b"a2": b"new", b"never": None})
    assert (filled.get(b"a1"), filled.get(b"a2"), filled.get(b"never")) == (None, b"new", None)


@pytest.mark.parametrize(
    ("prefix", "start", "reverse", "expected"),
    [
        (b"", b"", False, [b"a1", b"a2", b"a3", b"b\xff", b"b\xff\xff", b"c"]),
        (b"a", b"", False, [b"a1", b"a2", b"a3"]),
        (b"a", b"a2", False, [b"a2", b"a3"]),
        (b"a", b"", True, [b"a3", b"a2", b"a1"]),
        (b"a", b"a3", True, [b"a2", b"a1"]),
        (b"a", b"a9", False, []),
        (b"b\xff", b"", False, [b"b\xff", b"b\xff\xff"]),
        (b"b\xff", b"", True, [b"b\xff\xff", b"b\xff"]),
        (b"\xff", b"", True, []),
        (b"d", b"", False, []),
    ],
)
def test_iterating(filled: Store, prefix: bytes, start: bytes, reverse: bool, expected: list[bytes]) -> None:
    assert keys(filled.iterate(prefix, start, reverse)) == expected
    assert keys(filled.snapshot().iterate(prefix, start, reverse)) == expected


def test_a_snapshot_does_not_see_later_writes(filled: Store) -> None:
    before = filled.snapshot()
    filled.write({b"a1": b"later", b"z": b"new"})
    assert (before.get(b"a1"), before.get(b"z")) == (b"1", None)
    assert b"z" not in keys(before.iterate())


def test_a_walk_is_not_disturbed_by_writes(filled: Store) -> None:
    walk = filled.iterate(b"a")
    first = next(walk)
    filled.write({b"a2": None, b"a25": b"new"})
    assert [first, *walk] == [(b"a1", b"1"), (b"a2", b"2"), (b"a3", b"")]


# --- LevelDB alone ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LevelStore(tmp_path / "ledger")
    store.write(PAIRS)
    store.close()
    return tmp_path / "ledger"


def test_it_outlives_the_process_that_wrote(folder: Path) -> None:
    store = LevelStore(folder)
    assert store.get(b"c") == b"6"
    store.close()


def test_the_folder_belongs_to_its_owner_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0


def test_a_second_process_is_told_who_has_the_folder(folder: Path) -> None:
    store = LevelStore(folder)
    code = f"from node.store import *\nfrom pathlib import Path\nLevelStore(Path({str(folder)!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "StoreLocked" in ended.stderr and "another process has the ledger" in ended.stderr
    with pytest.raises(StoreLocked):
        LevelStore(folder)
    store.close()


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def test_a_damaged_log_is_opened_and_reported(folder: Path) -> None:
    _flip(_newest(folder, "*.log"), 12)
    store = LevelStore(folder)
    assert "corrupt" in store.damaged.lower() or "checksum" in store.damaged.lower()
    store.close()


def test_a_ledger_that_cannot_be_opened_is_left_alone_and_the_fix_is_named(folder: Path) -> None:
    manifest = _newest(folder, "MANIFEST-*")
    _flip(manifest, 10)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".log" or path == manifest}
    with pytest.raises(StoreDamaged, match="Move that folder away"):
        LevelStore(folder)
    assert before == {name: (folder / name).read_bytes() for name in before}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from node.store import LevelStore, StoreFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LevelStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # no file may grow beyond this
number, failures = 0, []
while len(failures) < 3:
    try:
        store.write({b"%08d" % number: bytes(1_000)})
        print(number, flush=True)
    except StoreFailed as error:
        failures.append(str(error))
    number += 1
print(failures[-1], file=sys.stderr)
"""


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "ledger")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    acknowledged = [int(line) for line in ended.stdout.split()]
    assert "Make room on the disk" in ended.stderr
    assert len(acknowledged) > 10 and acknowledged == list(range(len(acknowledged)))
    store = LevelStore(tmp_path / "ledger")
    assert store.damaged == ""
    assert all(store.get(b"%08d" % number) == bytes(1_000) for number in acknowledged)
    store.close()


def test_after_a_failed_write_nothing_more_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LevelStore(folder)
    database = store._reader

    class Failing:
        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(database, name)  # type: ignore[no-any-return]

        def write_batch(self, **options: object) -> None:
            raise OSError("no space left on device")

    monkeypatch.setattr(store, "_reader", Failing())
    with pytest.raises(StoreFailed):
        store.write({b"x": b"1"})
    monkeypatch.undo()
    with pytest.raises(StoreFailed):
        store.write({b"y": b"1"})
    assert (store.get(b"x"), store.get(b"y")) == (None, None)
    store.close()
