"""The `Cards` port over NVML, the management library that comes with NVIDIA's driver.

Rule: every failure of NVML means "no such fact": no driver, a driver being updated, a card that fell off the bus, a
question that this card or Windows does not answer. Nothing here raises and nothing here changes a card.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pynvml

from node.cards import Card, CardProcess, Use, visible

log = logging.getLogger("mtor.cards")

Fact = TypeVar("Fact")

RETRY_SECONDS = 60.0  # a driver may be installed or come back while the node runs
FIRST_NAMESPACE = 0xEFFFFFFC  # the inode of the machine's own process ids (PROC_PID_INIT_INO of Linux)
LOOK_BACK_MICROSECONDS = 2_000_000  # of the samples of a process's work


class NvmlCards:
    """See `Cards`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = False
        self._tried_at: float | None = None
        self._why_not = ""

    @property
    def about(self) -> str:
        """See `Cards`."""
        with self._lock:
            self._begin()
            return "the NVIDIA driver" if self._ready else f"no NVIDIA driver answers ({self._why_not})"

    def cards(self) -> tuple[Card, ...]:
        """See `Cards`."""
        with self._lock:
            if not self._begin():
                return ()
            count = _fact(pynvml.nvmlDeviceGetCount) or 0
            found = [card for index in range(count) if (card := self._card(index)) is not None]
            if count and not found:
                self._end()  # after an update of the driver only a new beginning helps
        return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))

    def processes(self, card: Card) -> tuple[CardProcess, ...] | None:
        """See `Cards`."""
        with self._lock:
            handle = self._handle(card)
            if handle is None:
                return None
            compute = _fact(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
            graphics = _fact(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
            busy = _busy(handle)
        if compute is None and graphics is None:
            return None
        found: dict[int, CardProcess] = {}
        uses: tuple[tuple[Use, Any], ...] = (("compute", compute), ("graphics", graphics))
        for use, entries in uses:  # graphics last: who draws and computes is a drawing program
            for entry in entries or ():
                pid = int(entry.pid)
                mib = None if entry.usedGpuMemory is None else int(entry.usedGpuMemory) >> 20
                found[pid] = CardProcess(pid, process_name(pid), mib, use, busy.get(pid))
        return tuple(found.values())

    def utilisation(self, card: Card) -> int | None:
        """See `Cards`."""
        with self._lock:
            handle = self._handle(card)
            rates = None if handle is None else _fact(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        return None if rates is None else int(rates.gpu)

    def _begin(self) -> bool:
        """Load the library, or try again after a while. The lock is held."""
        now = time.monotonic()
        if self._ready or (self._tried_at is not None and now - self._tried_at < RETRY_SECONDS):
            return self._ready
        self._tried_at = now
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError, AttributeError) as error:  # the latter two: a library that is damaged
            self._why_not = str(error)
            return False
        self._ready = True
        return True

    def _end(self) -> None:
        _fact(pynvml.nvmlShutdown)
        self._ready, self._tried_at = False, None

    def _handle(self, card: Card) -> Any:
        if not self._begin():
            return None
        return _fact(lambda: pynvml.nvmlDeviceGetHandleByUUID(card.uuid.encode()))

    def _card(self, index: int) -> Card | None:
        handle = _fact(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
        memory = None if handle is None else _fact(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        uuid = _text(_fact(lambda: pynvml.nvmlDeviceGetUUID(handle)))
        if memory is None or not uuid:
            return None
        major, minor = _fact(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle)) or (0, 0)
        return Card(
            index=index,
            uuid=uuid,
            name=_text(_fact(lambda: pynvml.nvmlDeviceGetName(handle))) or "NVIDIA card",
            vram_mib=int(memory.total) >> 20,
            free_mib=int(memory.free) >> 20,
            compute_capability=int(major) * 10 + int(minor),
            driver=_text(_fact(pynvml.nvmlSystemGetDriverVersion)),
        )


def process_name(pid: int) -> str:
    """What a process is called; "" if it is not to be seen from here: gone, or in a container, where the same number
    is another process."""
    if _contained():
        return ""
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, OSError, ValueError):
        return ""


@cache
def _contained() -> bool:
    """Has this process a numbering of its own? The driver tells the machine's numbers."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino != FIRST_NAMESPACE
    except OSError:
        return False  # no Linux


def _busy(handle: Any) -> dict[int, int]:
    """Percent of the card's time of late by process, as far as the card says."""
    since = int(time.time() * 1_000_000) - LOOK_BACK_MICROSECONDS
    samples = _fact(lambda: pynvml.nvmlDeviceGetProcessUtilization(handle, since))
    latest: dict[int, tuple[int, int]] = {}
    for pid, at, percent in _samples(samples):
        latest[pid] = max(latest.get(pid, (0, 0)), (at, percent))
    return {pid: percent for pid, (_, percent) in latest.items()}


def _samples(samples: Any) -> Iterator[tuple[int, int, int]]:
    for sample in samples or ():
        yield int(sample.pid), int(sample.timeStamp), int(sample.smUtil)


def _fact(ask: Callable[[], Fact]) -> Fact | None:
    """The answer of NVML, None if it has none."""
    try:
        return ask()
    except (pynvml.NVMLError, OSError, AttributeError, ValueError) as error:
        log.debug("NVML: %s", error)
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
