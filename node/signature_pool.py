"""Many signatures on all cores.

Rule: threads would wait for the interpreter's lock more than they verify (measured), so other processes verify. They
get batches and give back which are wrong; only so many batches are under way, so a ledger of any size is checked in
bounded memory. A few signatures are verified here: a process takes longer to start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

from protocol.errors import BadSignature
from protocol.ledger.assumed import Question, as_if_checked
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Iterable
from protocol.signing import verify

BATCHES_HERE = 16  # about 0.2 s
MAX_PROCESSES = 8  # one process reads the ledger, and cannot keep more busy
WAITING_A_PROCESS = 8  # batches that are checked or wait for it


class SignaturePool:
    """A `Checker` on several processes. One thread uses it."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._executor: ProcessPoolExecutor | None = None
        self._open = ExitStack()
        self._here = 0
        self._pending: deque[Future[list[Question]]] = deque()
        self._wrong: list[Question] = []

    def take(self, batch: list[Question]) -> None:
        """See `Checker`."""
        if self._here < BATCHES_HERE or self._processes < 2:
            self._here += 1
            self._wrong += check_batch(batch)
            return
        if len(self._pending) >= self._processes * WAITING_A_PROCESS:
            self._wrong += self._pending.popleft().result()
        self._pending.append(self._started().submit(check_batch, batch))

    def wrong(self) -> list[Question]:
        """See `Checker`."""
        while self._pending:
            self._wrong += self._pending.popleft().result()
        found, self._wrong = self._wrong, []
        return found

    def close(self) -> None:
        """End the processes."""
        self._open.close()

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            pool = ProcessPoolExecutor(self._processes, spawn, _leave_interrupts_to_the_parent)
            self._open.callback(pool.shutdown, cancel_futures=True)
            self._executor = pool
        return self._executor


def check_batch(batch: list[Question]) -> list[Question]:
    """Those that are wrong."""
    return [question for question in batch if not _is_good(question)]


def _is_good(question: Question) -> bool:
    try:
        verify(*question)
    except BadSignature:
        return False
    return True


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def signature_pool(processes: int = 0) -> Iterator[SignaturePool]:
    """A pool of so many processes; by default one for each core, up to MAX_PROCESSES."""
    pool = SignaturePool(processes or min(os.cpu_count() or 1, MAX_PROCESSES))
    try:
        yield pool
    finally:
        pool.close()


def verify_on_all_cores(
    federation: Federation, stored: Iterable, *, signatures: bool, from_checkpoint: bool = False, processes: int = 0
) -> Report:
    """`verify_log`, its signatures on all cores (or so many processes). Blocks."""
    if not signatures:
        return verify_log(federation, stored, signatures=False, from_checkpoint=from_checkpoint)
    with signature_pool(processes) as pool:
        return as_if_checked(
            lambda check: verify_log(federation, stored, signatures=True, from_checkpoint=from_checkpoint, check=check),
            pool,
        )
