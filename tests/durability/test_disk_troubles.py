"""A disk that is full, a folder that may not be written, a folder that another process has.

Rule: each is said in one message that names the fix; nothing acknowledged is lost, and the federation goes on without
the witness that it happens to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from node.bookkeeper import Bookkeeper
from node.memory_store import MemoryStore
from node.nurseries import one_error
from node.store import LevelStore, StoreFailed, StoreLocked
from node.witness_memory import WitnessMemory
from protocol.errors import ErrorCode, Refused
from protocol.ledger.state import View
from protocol.messages import Message, Rejected, RequestVote, StoreCertificate, Stored, Voted
from tests.node.witnesses import World, world_of
from tests.protocol.ledger_world import ALICE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits and rights of POSIX")

ROOM = 60_000  # bytes that a file may have
ROOT = Path(__file__).parents[2]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond `ROOM` meanwhile."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def has(store: LevelStore, orders: list[str]) -> bool:
    return all(View(store).record(bytes.fromhex(order)) is not None for order in orders)


async def test_the_only_witness_s_disk_is_full(tmp_path: Path) -> None:
    async with world_of(1) as world:
        store = LevelStore(tmp_path / "ledger")
        witness = await world.start(world.witnesses[0], store)
        acknowledged: list[str] = []
        with full_disk(), pytest.raises(Refused, match="Make room on the disk") as refusal:
            while True:
                acknowledged.append(await witness.grant(ALICE.node, 1_000))
        assert refusal.value.code is ErrorCode.INTERNAL and "b'" not in refusal.value.message
        assert len(acknowledged) > 10
        with pytest.raises(Refused, match="start the node again"):
            await witness.grant(ALICE.node, 1_000)  # there is room now, but who knows what lies at the log's end
        await witness.keep_house()

        witness, store = await _again(world, tmp_path, 0)
        assert has(store, acknowledged)
        assert len(acknowledged) * 1_000 == (await witness.balance(ALICE.node)).balance
        await witness.grant(ALICE.node, 1_000)


async def test_three_witnesses_go_on_while_the_fourth_s_disk_is_full(tmp_path: Path) -> None:
    async with world_of(4) as world:
        for witness in world.witnesses[:3]:
            await world.start(witness)
        full = await world.start(world.witnesses[3], LevelStore(tmp_path / "ledger"))
        granted: list[str] = []
        with full_disk():
            with pytest.raises(Refused, match="Make room on the disk"):
                while True:
                    granted.append(await world.first.grant(ALICE.node, 1_000))
                    await full.sync()
            first = len(granted)
            granted += [await world.first.grant(ALICE.node, 1_000) for _ in range(3)]
            await full.keep_house()
            for request in _newest_questions(world):
                assert isinstance(await full.answer(world.first.node, request), Rejected)
        assert first > 10

        full, store = await _again(world, tmp_path, 3)
        await full.sync()
        assert has(store, granted) and not View(store).abstaining
        last = await world.first.grant(ALICE.node, 1_000)
        answers = [await full.answer(world.first.node, request) for request in _newest_questions(world)]
        assert [type(answer) for answer in answers] == [Voted, Stored] and has(store, [last])


def _newest_questions(world: World) -> list[Message]:
    """The last request for a vote, and the last to store."""
    kinds = (RequestVote, StoreCertificate)
    return [next(asked for _, _, asked in reversed(world.asked) if isinstance(asked, kind)) for kind in kinds]


async def _again(world: World, folder: Path, number: int) -> tuple[Bookkeeper, LevelStore]:
    """The witness is started anew; its ledger is checked with all signatures."""
    world.stop(world.witnesses[number])
    while True:
        try:
            store = LevelStore(folder / "ledger")
            break
        except StoreLocked:
            await trio.sleep(0.01)  # it is being closed
    assert store.damaged == ""
    witness = await world.start(world.witnesses[number], store)
    report = await witness.verify(signatures=True)
    assert report.verified and report.sum_micro == 0
    return witness, store


@pytest.mark.parametrize("epochs", [0, 1])
async def test_a_witness_that_cannot_note_its_epoch_stops_before_it_signs(tmp_path: Path, epochs: int) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(StoreFailed, match="cannot note the epoch"), one_error():
        async with world_of(1) as world:
            if epochs == 0:
                gone.write_text("a file where a folder should be")
            witness = await world.start(world.witnesses[0], memory=WitnessMemory(gone / "signed"))
            shutil.rmtree(gone)
            gone.write_text("a file where a folder should be")
            await witness.epochs.end()
            raise AssertionError("it went on")


READ_ONLY = """
import os, sys
from pathlib import Path
from node.store import LevelStore, StoreError
os.chdir(sys.argv[1])  # before, as whoever started this may go there
if not os.geteuid():
    os.seteuid(65_534)  # to root nothing is read-only
try:
    LevelStore(Path("ledger")).write({b"key": b"value"})
except StoreError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("files", [0o444, 0o666])
def test_a_ledger_that_may_not_be_written_is_not_taken_for_one_in_use(tmp_path: Path, files: int) -> None:
    store = LevelStore(tmp_path / "ledger")
    store.write({b"key": b"value"})
    store.close()
    for path in (tmp_path / "ledger").iterdir():
        path.chmod(files)
    with read_only(tmp_path, tmp_path / "ledger"):
        ended = _python("-c", READ_ONLY, str(tmp_path))
    assert ended.stdout.startswith("StoreError the ledger in ledger cannot be") and "Permission denied" in ended.stdout
    store = LevelStore(tmp_path / "ledger")
    assert store.get(b"key") == b"value" and store.damaged == ""
    store.close()


def test_a_new_ledger_where_nothing_may_be_written(tmp_path: Path) -> None:
    with read_only(tmp_path):
        ended = _python("-c", READ_ONLY, str(tmp_path))
    assert ended.stdout.startswith("StoreError the ledger in ledger cannot be opened") and not ended.stderr


UP = """
import os, sys
from pathlib import Path
from node import paths
os.chdir(sys.argv[1])
if not os.geteuid():
    os.seteuid(65_534)
try:
    with paths.exclusive(Path("data")):
        print("it is ours")
except paths.DataFolderError as error:
    print(error)
"""


def test_a_data_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with read_only(tmp_path, tmp_path / "data"):
        ended = _python("-c", UP, str(tmp_path))
    assert ended.stdout == (
        "data cannot be written: Permission denied; make it writable, or choose another with --data\n"
    )


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


async def test_a_second_witness_on_the_same_folder(tmp_path: Path) -> None:
    async with world_of(1) as world:
        await world.start(world.witnesses[0], LevelStore(tmp_path / "ledger"))
        code = f"from node.store import *\nfrom pathlib import Path\nLevelStore(Path({str(tmp_path / 'ledger')!r}))"
        command = [sys.executable, "-c", code]
        ended = await trio.run_process(command, cwd=ROOT, check=False, capture_stderr=True)
        assert b"StoreLocked: another process has the ledger" in ended.stderr and b"stop that node" in ended.stderr
        await world.first.grant(ALICE.node, 1_000)  # the first one is not disturbed


class FullStore(MemoryStore):
    """It can be read."""

    def write(self, batch: Mapping[bytes, bytes | None], *, sync: bool = True) -> None:
        """No."""
        raise StoreFailed("the disk is full. Make room on the disk")


async def test_a_disk_that_is_full_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="Make room"), one_error():
        async with world_of(1) as world:
            await world.start(world.witnesses[0], FullStore())
