"""`mtor ledger export|import|prove`, and `mtor ledger verify FILE`.

Rule: a file appears under its name when it is whole and on the disk. What checks a file needs neither a node nor a data
folder, and makes none.
"""

from __future__ import annotations

import argparse
import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from node.commands.asking_node import call, stream
from node.commands.client import Json, UsageError
from node.commands.ledger import OK, WRONG, demanded, print_report
from node.commands.screen import print_json, printable, progress_shown
from node.ledger_export import FIRST_LINE, ExportError, ExportFile, open_export
from node.ledger_proving import proven_json
from node.nurseries import one_error
from node.private_files import sync_folder
from protocol.errors import ErrorCode, Refused
from protocol.ids import FederationId
from protocol.ledger.proofs import check_proof
from protocol.params import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from node.ledger_import import Imported


def export(options: argparse.Namespace) -> int:
    """Write the ledger into one file."""
    last: Json = {}
    with written(options.file, options.force) as file, progress_shown() as shown:

        def take(progress: Json) -> None:
            if "data" in progress:
                file.write(base64.b64decode(progress["data"]))
            elif progress.get("done"):
                last.update(progress)
            elif not options.json:
                shown(progress)

        stream(options, "ledger.export", {}, take)
    whole = open_export(options.file)
    facts = {"file": str(options.file), "federation": last["federation"], "records": whole.records, "bytes": whole.size}
    if options.json:
        print_json(facts)
    else:
        print(f"{options.file}: {whole.records:,} records, {whole.size:,} bytes; check it with `mtor ledger verify`")
    return OK


def bring_in(options: argparse.Namespace) -> int:
    """Take in what is new in an exported ledger; 1 if records were refused."""
    last: Json = {}
    with progress_shown() as shown:

        def take(progress: Json) -> None:
            if progress.get("done"):
                last.update(progress)
            elif not options.json:
                shown(progress)

        stream(options, "ledger.import", {"file": str(readable(options.file).resolve())}, take)
    facts = {name: value for name, value in last.items() if name not in ("step", "done", "done_bytes", "total_bytes")}
    if options.json:
        print_json(facts)
    else:
        _print_imported(facts)
    return WRONG if facts["refused"] else OK


def _print_imported(facts: Json) -> None:
    print(f"{facts['fresh']:,} records were new, {facts['known']:,} were here already")
    if facts["began_anew"]:
        print("the ledger begins anew with the state of a checkpoint: what was before it is not in the file")
    elif facts["epochs"]:
        print(f"{facts['epochs']:,} epochs ended by it")
    if facts["closed"]:
        print(f"{facts['closed']:,} are of epochs that have ended here, and not in their checkpoints: void or pruned")
    if facts["waiting"]:
        print(
            f"{facts['waiting']:,} build on what is not here: import a newer export, or let the node read its witnesses"
        )
    if facts["refused"]:
        print(f"{facts['refused']:,} were refused; the rest was taken:")
    for problem in facts["problems"]:
        print(f"! {printable(problem)}")


def prove(options: argparse.Namespace) -> int:
    """Write a proof for somebody without a node."""
    facts = call(options, "ledger.prove", {"subject": options.subject, "state": options.state})
    proof = bytes.fromhex(facts["proof"])
    with written(options.file, options.force) as file:
        file.write(proof)
    shown = proven_json(check_proof(proof, FederationId(bytes.fromhex(facts["federation"]))))
    if options.json:
        print_json(shown | {"file": str(options.file)})
        return OK
    print(f"{options.file}: {len(proof):,} bytes; anybody checks it with")
    print(f"  mtor ledger verify {options.file} --federation {facts['federation']}")
    if facts.get("asked", facts.get("id")) != facts.get("id"):
        print("it shows the order that settled the channel, with the hold inside")
    for line in shown["means"]:
        print(printable(line))
    return OK


# --- checking a file ----------------------------------------------------------------------------------


def verify_file(options: argparse.Namespace) -> int:
    """Check a proof or an export; 1 if it is not true."""
    path, expected = readable(options.file), demanded(options)
    with path.open("rb") as file:
        if file.read(len(FIRST_LINE)) == FIRST_LINE:
            return _verify_export(options, path, expected)
    if path.stat().st_size > MAX_FRAME_BYTES:
        raise UsageError(f"{path} is neither a proof (`mtor ledger prove`) nor an export (`mtor ledger export`)")
    try:
        proven = check_proof(path.read_bytes(), expected)
    except Refused as refusal:
        return _not_true(options, _why_not(path, refusal))
    shown = proven_json(proven)
    if options.json:
        print_json(shown | {"demanded": expected is not None})
        return OK
    print(printable(f"proven for federation {shown['federation_name']} {shown['federation']}:"))
    for line in shown["means"]:
        print(f"  {printable(line)}")
    print("not proven:")
    for line in shown["does_not_prove"][expected is not None :]:  # the first is about the federation
        print(f"  {printable(line)}")
    return OK


def _why_not(path: Path, refusal: Refused) -> str:
    if refusal.code is ErrorCode.MALFORMED:
        return f"{path} is not a proof: {refusal.message}. One is made by `mtor ledger prove`"
    if refusal.code is ErrorCode.WRONG_FEDERATION:
        return f"{path} is of another federation: {refusal.message}"
    return f"{path} proves nothing: {refusal.message}"


def _not_true(options: argparse.Namespace, why: str) -> int:
    if options.json:
        print_json({"proven": False, "why": why})
    else:
        print(f"NOT TRUE: {printable(why)}")
    return WRONG


def _verify_export(options: argparse.Namespace, path: Path, expected: FederationId | None) -> int:
    """Make the whole ledger anew in a folder that goes again, every signature checked."""
    import trio

    with progress_shown() as shown:
        try:
            file = open_export(path, expected)
            with one_error():
                imported, report = trio.run(_replay, file, None if options.json else shown)
        except (ExportError, Refused) as error:
            return _not_true(options, str(error))
    left = imported.refused + imported.waiting + imported.closed
    problems = [*report["problems"], *imported.problems]
    if left and not imported.problems:
        problems.append(f"{left:,} records do not follow from the others")
    report |= {
        "verified": report["verified"] and not left,
        "problems": problems,
        "federation": file.federation.id.hex(),
        "federation_name": file.federation.genesis.name,
    }
    if not options.json:
        print(printable(f"an export of federation {report['federation_name']} {report['federation']}"))
    return print_report(options, report, signatures=True)


async def _replay(file: ExportFile, shown: Any) -> tuple[Imported, Json]:
    from node.bookkeeper import Bookkeeper
    from node.clock import now_ms
    from node.commands.offline import Nobody
    from node.store import LevelStore
    from protocol.signing import SEED_BYTES, Signer

    async def tell(imported: Imported) -> None:
        if shown is not None:
            shown({"step": "checking", "done_bytes": imported.done_bytes, "total_bytes": imported.total_bytes})

    with TemporaryDirectory(prefix="mtor-verify-") as folder:
        reader = Signer.from_seed(os.urandom(SEED_BYTES))
        store = LevelStore(Path(folder) / "ledger")
        bookkeeper = Bookkeeper(store, reader, file.federation, None, now_ms, Nobody())
        async with bookkeeper.opened():
            imported = await bookkeeper.bring_in(file, tell)
            report = asdict(await bookkeeper.verify())
    return imported, report


# --- files --------------------------------------------------------------------------------------------


def readable(path: Path) -> Path:
    """A file that can be read. Raises `UsageError`."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return path


@contextmanager
def written(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """A new file: it has its name when it is whole and on the disk, and leaves nothing if it fails."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists; choose another name, or --force to replace it")
    fresh = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)
