"""A ledger as one file: what it is made of, and whether it is whole.

Rule: the file is a line that names the format, then frames (varint length, bytes) of encoded messages: the Genesis;
where the beginning was pruned, the StateLeaves that the kept part builds on; then every record of the log in its order
(Certificate or Decision). The last frame begins with a zero byte, which no message does, and holds the number of
records and the sha256 of everything before it. Nothing is believed for being in the file. It is read and written in
pieces, never as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from node.paging import fitting
from node.store import Snapshot
from protocol import params
from protocol.codec import encode, is_a
from protocol.errors import Malformed, ProtocolError
from protocol.framing import FrameReader, frame
from protocol.ids import FederationId
from protocol.ledger.checkpoints import leaves
from protocol.ledger.genesis import Federation, open_genesis
from protocol.ledger.state import Base, View
from protocol.messages import Certificate, Decision, StateLeaves

FIRST_LINE = b"MTOR ledger export 1\n"
PIECE_BYTES = 64 * 1024

_END = b"\0"
_COUNT_BYTES = 8

Tell = Callable[[int, int], None]  # (done, of)


class ExportError(Exception):
    """The file cannot be used; the message names the fix."""


# --- writing ------------------------------------------------------------------------------------------


def exported(federation: Federation, stored: Snapshot, tell: Tell) -> Iterator[bytes]:
    """The file, in pieces. `tell` hears how many places of the log are done."""
    digest, count = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal count
        yield FIRST_LINE
        yield frame(federation.body)
        yield from map(frame, _beginning(stored))
        for record in _records(stored, tell):
            count += 1
            yield frame(record)

    for piece in _joined(pieces()):
        digest.update(piece)
        yield piece
    yield frame(_END + count.to_bytes(_COUNT_BYTES, "big") + digest.digest())


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth writing."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _beginning(stored: Snapshot) -> Iterator[bytes]:
    """The state from which the kept part of the ledger begins; nothing if nothing was pruned."""
    view = View(stored)
    if view.first_epoch == 0:
        return
    identity = view.checkpoint(view.first_epoch) or b""
    decision, position = view.record(identity), view.position(identity)
    assert decision is not None and position is not None  # pruning keeps them
    found = leaves(Base(stored, view.first_epoch))
    start = 0
    while start < len(found):
        page = fitting(found[start : start + params.MAX_CERTIFICATES])
        yield encode(StateLeaves(decision, position, start, len(found), page))
        start += len(page)


def _records(stored: Snapshot, tell: Tell) -> Iterator[bytes]:
    """The log; places that an epoch change made void hold nothing."""
    view = View(stored)
    first, length = view.log_first, view.log_length
    for position in range(first, length):
        record = view.logged(position)
        if record is not None:
            yield record
        if position % 1_024 == 0:
            tell(position - first, length - first)
    tell(length - first, length - first)


# --- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file that was found whole."""

    path: Path
    federation: Federation
    records: int
    size: int

    def frames(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(place, message) from a place on, as this gave it before. Raises `ExportError` if the file changed."""
        for place, payload in _frames(self.path, start):
            if payload.startswith(_END):
                return
            yield place, payload


def open_export(path: Path, expected: FederationId | None = None, tell: Tell = lambda done, of: None) -> ExportFile:
    """Look through a whole file: is it one, is all of it there, whose ledger is it. Raises `ExportError`."""
    size = _size(path)
    genesis, count, digest, hashed = b"", 0, hashlib.sha256(FIRST_LINE), len(FIRST_LINE)
    for place, payload in _frames(path, 0):
        if payload.startswith(_END):
            if payload != _END + count.to_bytes(_COUNT_BYTES, "big") + digest.digest():
                raise ExportError(f"{path} was damaged: its content is not what was written; export it again")
            if hashed + len(frame(payload)) != size:
                raise ExportError(f"{path} goes on behind its end; export it again")
            federation = _federation(path, genesis, expected)
            return ExportFile(path, federation, count, size)
        genesis = genesis or payload
        count += is_a(Certificate, payload) or is_a(Decision, payload)
        whole = frame(payload)
        digest.update(whole)
        hashed += len(whole)
        tell(place, size)
    raise ExportError(f"{path} ends too early: only a part of the export is there; copy or export it again")


def _federation(path: Path, genesis: bytes, expected: FederationId | None) -> Federation:
    try:
        federation = open_genesis(genesis)
    except ProtocolError as error:
        raise ExportError(f"{path} does not begin with a genesis: {error}") from None
    if expected is not None and federation.id != expected:
        raise ExportError(
            f"{path} is the ledger of federation {federation.genesis.name} ({federation.id.hex()[:16]}…), not of "
            f"{expected.hex()[:16]}…; join that one first (`mtor federation join`), or choose its folder with --data"
        )
    return federation


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from None


def _frames(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(place, payload) of each frame that is whole."""
    reader, place = FrameReader(), start or len(FIRST_LINE)
    try:
        with path.open("rb") as file:
            if file.read(len(FIRST_LINE)) != FIRST_LINE:
                raise ExportError(f"{path} is no export of a ledger; one is made by `mtor ledger export FILE`")
            file.seek(place)
            while piece := file.read(PIECE_BYTES):
                reader.receive_data(piece)
                while (payload := reader.next_frame()) is not None:
                    yield place, payload
                    place += len(frame(payload))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from None
    except Malformed as error:
        raise ExportError(f"{path} was damaged: {error}; export it again") from None
