"""The ledger: settled queries a second for each witness, a large ledger checked, and what it all takes in bytes.

Rule: what the machine can do at best (Ed25519 verifications on one core, synced appends on this disk) is measured in
the same run, before and after, so that every figure has its limit beside it. Processor time is told beside the clock's:
on a machine that does other work the clock says little.

    python bench/ledger.py [--witnesses 1 4] [--queries 1 10 100] [--channels 960] [--requests 800] [--vouchers 400]
                           [--certificates 100000] [--epochs 4] [--cache FOLDER] [--json FILE]

`--certificates 1000000` is the run that the documentation quotes: some minutes, 1 GB of disk and of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio
from ledger_archive import Checked, Plan, checked, made, peak_mib, sizes, start_seconds
from ledger_orders import key
from ledger_query import waits
from ledger_witnesses import LANES, Settled, settled

from protocol.ids import FederationId
from protocol.signing import verify

VERIFICATIONS = 5_000
APPENDS = 2_000
APPEND_BYTES = 300  # about one certificate
RECEIPTS = 1_000_000  # what the checks are scaled to, in words


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine can do, a second."""

    verifications: float  # on one core, of its own time
    signatures: float
    syncs: float  # fdatasync after an append, one after the other


def limits(folder: Path) -> Limits:
    """Measured now."""
    signer, federation = key("limit"), FederationId(bytes(32))
    body = bytes([0x9A, 2]) + bytes(155)  # as long as a hold
    signature = signer.sign(federation, body)
    began = time.process_time()
    for _ in range(VERIFICATIONS):
        verify(signer.node, federation, body, signature)
    verified = time.process_time() - began
    for _ in range(VERIFICATIONS):
        signer.sign(federation, body)
    signed = time.process_time() - began - verified
    return Limits(VERIFICATIONS / verified, VERIFICATIONS / signed, APPENDS / _sync_seconds(folder))


def _sync_seconds(folder: Path) -> float:
    path = folder / "appended"
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(APPENDS):
            file.write(bytes(APPEND_BYTES))
            os.fdatasync(file.fileno())
        seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def machine(folder: Path) -> dict[str, Any]:
    """Where this ran."""
    cpu = next((line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if "model name" in line), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "disk": _file_system(folder),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _file_system(folder: Path) -> str:
    """The kind of file system that `folder` lies on."""
    mounts = [line.split() for line in _lines(Path("/proc/mounts"))]
    holding = [(len(mount[1]), mount[2]) for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(holding, default=(0, "unknown"))[1]


# --- the three parts -----------------------------------------------------------------------------------------


def settle(root: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Settled queries: a row for each number of witnesses and of queries a channel."""
    rows = []
    for witnesses in options.witnesses:
        for queries in options.queries:
            before = limits(root)
            with tempfile.TemporaryDirectory(dir=root) as folder:
                run = settled(Path(folder), witnesses, queries, max(LANES, options.channels))
            after = limits(root)
            rows.append(_settled_row(run, before, after))
            _say(_settled_line(rows[-1]))
    return rows


def _settled_row(run: Settled, before: Limits, after: Limits) -> dict[str, Any]:
    orders = 2 * run.channels
    return {
        "witnesses": run.witnesses,
        "queries_a_channel": run.queries_a_channel,
        "channels": run.channels,
        "queries_a_second": run.queries / run.seconds,
        "orders_a_second": orders / run.seconds,
        "queries_a_core_second": run.queries / run.witness_cpu_seconds,
        "orders_a_core_second": orders / run.witness_cpu_seconds,
        "core_ms_a_channel": run.witness_cpu_seconds / run.channels * 1_000,
        "requests_a_channel": run.requests / run.channels / run.witnesses,
        "wire_bytes_a_query": (run.bytes_sent + run.bytes_received) / run.queries,
        "disk_bytes_a_query": run.disk_bytes / run.queries,
        "verifications_a_second": (before.verifications + after.verifications) / 2,
        "syncs_a_second": (before.syncs + after.syncs) / 2,
    }


def wait(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the two parties of a query wait for."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        row: dict[str, Any] = trio.run(waits, Path(folder), options.vouchers, max(2, options.vouchers // 4)).told()
    _say(
        f"a voucher signed, checked and stored on both sides: {row['voucher_median_ms']:.1f} ms "
        f"(99th percentile {row['voucher_p99_ms']:.1f}); hold, voucher, close, all stored and read back: "
        f"{row['channel_median_ms']:.1f} ms (99th percentile {row['channel_p99_ms']:.1f})"
    )
    return row


def over_libp2p(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the real way adds to each request."""
    from ledger_over_libp2p import asked  # not above: the processes that verify import this file, and libp2p is large

    with tempfile.TemporaryDirectory(dir=root) as folder:
        run = asked(Path(folder), options.requests)
    row = {
        "requests": run.requests,
        "requests_a_second": run.requests / run.seconds,
        "core_ms_a_request": run.witness_cpu_seconds / run.requests * 1_000,
    }
    _say(
        f"over libp2p: {row['requests_a_second']:,.0f} of the cheapest requests a second, each "
        f"{row['core_ms_a_request']:.2f} ms of the witness's core"
    )
    return row


def check(cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A large ledger: made, checked, started with."""
    plan = Plan(options.certificates, 1, options.epochs + 1)
    _say(f"\n{plan.certificates:,} certificates of {plan.epochs - 1} ended epochs and the one in force, one witness")
    folder = made(plan, cache, os.cpu_count() or 1)
    size, before = sizes(plan, folder), limits(cache)
    links = checked(plan, folder, signatures=False)
    here = peak_mib()
    signed = checked(plan, folder, signatures=True)
    after = limits(cache)
    rows = {
        "limits": {"before": asdict(before), "after": asdict(after)},
        "links": _checked_row(links),
        "signatures": _checked_row(signed),
        "signatures_a_certificate": SIGNATURES_A_CERTIFICATE,
        "signature_limit_seconds": _limit_seconds(before, after),
        "start_seconds": start_seconds(plan, folder),
        "peak_mib": {"links": here, "signatures": peak_mib()},
        "sizes": asdict(size),
        "certificate_bytes": {count: _certificate_sizes(count, cache) for count in (1, 4)},
    }
    _say_checked(rows)
    return rows


SIGNATURES_A_CERTIFICATE = 2.5  # with one witness: an owner's and a vote, and every other one has a voucher's


def _limit_seconds(before: Limits, after: Limits) -> float:
    """The signatures of 1,000,000 certificates, and nothing else, on all cores."""
    a_second = (before.verifications + after.verifications) / 2 * (os.cpu_count() or 1)
    return RECEIPTS * SIGNATURES_A_CERTIFICATE / a_second


def _checked_row(run: Checked) -> dict[str, Any]:
    return {
        "certificates": run.report.certificates,
        "seconds": run.seconds,
        "core_seconds": run.core_seconds,
        "seconds_for_a_million": RECEIPTS / run.per_second,
        "core_seconds_for_a_million": RECEIPTS * run.core_seconds / run.report.certificates,
        "certificates_a_second": run.per_second,
    }


def _certificate_sizes(witnesses: int, cache: Path) -> dict[str, int]:
    """A channel's certificates and an epoch's checkpoint with its decision."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        plan = Plan(0, witnesses, 2)
        found = sizes(plan, made(plan, Path(folder), 1))
    return {"hold": found.hold, "close": found.close, "voucher": found.voucher, "checkpoint": found.checkpoint}


# --- telling --------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, flush=True)


def _settled_line(row: dict[str, Any]) -> str:
    return (
        f"{row['witnesses']:>9} {row['queries_a_channel']:>13} {row['queries_a_core_second']:>12,.0f}"
        f" {row['orders_a_core_second']:>11,.0f} {row['queries_a_second']:>11,.0f} {row['orders_a_second']:>10,.0f}"
        f" {row['wire_bytes_a_query']:>11,.0f} {row['disk_bytes_a_query']:>11,.0f}"
        f" {row['verifications_a_second']:>9,.0f} {row['syncs_a_second']:>8,.0f}"
    )


HEAD = (
    "settled   (a core: of one witness's own processor time; the clock: all witnesses and owners share this machine)\n"
    "witnesses queries/chan. queries/core orders/core queries/clk orders/clk wire B/qry. disk B/qry. verify/s   sync/s"
)


def _say_checked(rows: dict[str, Any]) -> None:
    for name in ("links", "signatures"):
        row = rows[name]
        _say(
            f"{name:<11} {row['certificates']:>9,} certificates in {row['seconds']:7.1f} s, "
            f"{row['certificates_a_second']:>8,.0f} a second, {row['seconds_for_a_million']:6.1f} s for 1,000,000 "
            f"({row['core_seconds_for_a_million']:.1f} s of all cores together; "
            f"memory at most {rows['peak_mib'][name]:,.0f} MiB)"
        )
    found = rows["sizes"]
    _say(
        f"the signatures alone, on {os.cpu_count()} cores without anything else: "
        f"{rows['signature_limit_seconds']:.1f} s for 1,000,000 certificates\n"
        f"start from the last checkpoint: {rows['start_seconds']:.2f} s\n"
        f"database {found['database'] / 2**20:,.1f} MiB, {found['database'] / found['log_certificates']:,.0f} B a "
        f"certificate; a checkpoint's state {found['state']:,} B for {found['accounts']:,} accounts\n"
        + "\n".join(
            f"{count} witness{'es' if count > 1 else ''}: "
            + ", ".join(f"{name} {size} B" for name, size in found.items())
            for count, found in rows["certificate_bytes"].items()
        )
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--witnesses", type=int, nargs="*", default=[1, 4], help="none: leave that part out")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 10, 100], help="in one channel")
    parser.add_argument("--channels", type=int, default=960, help="settled in each run")
    parser.add_argument("--requests", type=int, default=800, help="over libp2p; 0: none")
    parser.add_argument("--vouchers", type=int, default=400, help="waited for; 0: none")
    parser.add_argument("--certificates", type=int, default=100_000, help="of the ledger that is checked; 0: none")
    parser.add_argument("--epochs", type=int, default=4, help="ended ones in it")
    parser.add_argument("--cache", type=Path, help="keep the ledger that is checked in this folder")
    parser.add_argument("--json", type=Path, help="write everything there")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mtor-bench-"))
    try:
        cache = options.cache or root
        cache.mkdir(parents=True, exist_ok=True)
        facts = machine(root)
        _say("  ".join(f"{name}: {value}" for name, value in facts.items()))
        _say(f"\n{HEAD}" if options.witnesses else "")
        rows: dict[str, Any] = {"machine": facts, "settled": settle(root, options)}
        if options.requests:
            rows["libp2p"] = over_libp2p(root, options)
        if options.vouchers:
            rows["waits"] = wait(root, options)
        if options.certificates:
            rows["checked"] = check(cache, options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
