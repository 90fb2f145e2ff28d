"""What a witness must not forget, kept outside of its ledger: that it has signed, and up to which epoch.

Rule: written and synced before this node signs anything in an epoch. A ledger that is gone, or older than this says,
was set back: its votes are forgotten, so the witness gives no more of them in the epochs it may have signed in. Only a
backup of the whole data folder can hide that; never restore one of a witness.
"""

from __future__ import annotations

from pathlib import Path

from node.private_files import write_private
from protocol.ledger.state import ABSTAIN, Draft, View, u64

_BEGUN = b"m:witness"  # in the ledger from the first time on that this node could sign as a witness


class MemoryDamaged(Exception):
    """The file is not what was written there; the message names the fix."""


class WitnessMemory:
    """One number in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """Raises `MemoryDamaged` if the file cannot be used."""
        self._read()

    def begin(self, draft: Draft) -> bool:
        """At the start, before anything is signed: True if the ledger was set back, and abstains from now on."""
        known = self._read()
        lost = known is not None and (draft.get(_BEGUN) is None or View(draft).epoch < known)
        if lost:
            assert known is not None
            draft.update({ABSTAIN: u64(known)})
        draft.update({_BEGUN: b""})
        return lost

    def note(self, epoch: int) -> None:
        """This node is about to sign in `epoch`. Raises `OSError`."""
        known = self._read()
        if known is None or known < epoch:
            write_private(self._path, f"{epoch}\n")

    def _read(self) -> int | None:
        """The last epoch in which this node may have signed; None if it never could. Raises `MemoryDamaged`."""
        if not self._path.exists():
            return None
        text = self._path.read_text(errors="replace").strip()
        if not (text.isascii() and text.isdigit()):
            raise MemoryDamaged(
                f"{self._path} does not hold the number of an epoch; write the one there that `mtor ledger epoch "
                "status` names on another witness, and this one abstains until that epoch ends"
            )
        return int(text)
