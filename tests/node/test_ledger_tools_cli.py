"""`mtor ledger …` from the terminal: explanations, files, proofs, audits; what goes wrong names its fix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import cli
from node.federation import install_genesis, ledger_folder
from node.ledger_export import FIRST_LINE, exported
from node.ledger_operations import LedgerOperations
from node.operations import Json
from node.store import LevelStore
from protocol.framing import FrameReader
from protocol.ids import peer_id
from protocol.ledger.genesis import Federation
from protocol.ledger.state import View, account_key
from tests.node.gateway_world import gateway_world
from tests.node.test_cli import grant
from tests.node.test_cli_terminal import Terminal
from tests.node.test_ledger_tools import ALICE, BOB, end_epoch, query, whole_file
from tests.node.witnesses import CREDITS, begun, world_of

Mtor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mtor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mtor:
    """Runs `mtor` with a data folder of the test's own: exit code, output, errors."""
    monkeypatch.delenv("MTOR_DEBUG", raising=False)
    monkeypatch.setenv("MTOR_DATA", str(tmp_path / "data"))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def made(count: int, path: Path, prune: bool = False) -> Federation:
    """A federation with two settled channels and an open one, each in its epoch, exported into `path`."""

    async def program() -> tuple[Federation, bytes]:
        async with world_of(count) as world:
            alice, bob = await begun(world, keep_epochs=1 if prune else 0)
            for tokens in (10, 20):
                await query(alice, bob, ALICE, BOB, tokens)
                await bob.close_idle(0)
                await end_epoch(world)
            await query(alice, bob, ALICE, BOB, 30)
            await alice.sync()
            store = world.stores[ALICE.node]
            return world.federation, b"".join(exported(world.federation, store, lambda done, total: None))

    federation, content = trio.run(program)
    path.write_bytes(content)
    return federation


@pytest.fixture
def member(tmp_path: Path, mtor: Mtor) -> Iterator[Federation]:
    """A data folder that belongs to a federation of four, its ledger imported."""
    federation = made(4, tmp_path / "export")
    mtor("id")  # makes the folder
    install_genesis(tmp_path / "data", federation)
    code, out, err = mtor("ledger", "import", tmp_path / "export")
    assert code == 0 and "records were new, 0 were here already" in out and "2 epochs ended by it" in out
    assert "importing" in err
    yield federation


def answer(mtor: Mtor, *arguments: object, code: int = 0) -> Json:
    """The JSON that a command prints, and nothing else."""
    got, out, err = mtor("ledger", *arguments, "--json")
    assert (got, err) == (code, ""), (got, out, err)
    found: Json = json.loads(out)
    return found


# --- explanations -------------------------------------------------------------------------------------


def test_a_balance_leads_to_its_receipts(mtor: Mtor, member: Federation) -> None:
    alice = peer_id(ALICE.node)
    code, out, _ = mtor("ledger", "why", alice, "--lines")
    assert code == 0 and "It adds up." in out and "granted by the issuer (1 line)" in out
    assert "by counterparty" in out and "paid by settled channels" in out and "every line, oldest first" in out
    why = answer(mtor, "why", alice, "--lines")
    assert why["adds_up"] and why["sum"] == why["balance"] == CREDITS - 130 - 160 - 2_000_000
    assert [line["part"] for line in why["lines"]] == ["granted", "spent", "spent", "held"]
    assert why["lines"][-1]["balance"] == why["balance"]
    channel = why["lines"][1]["id"]
    code, out, _ = mtor("ledger", "why", channel[:10])
    assert code == 0 and "is settled: 100 prompt tokens" in out and "settlement" in out and "votes of" in out
    assert mtor("ledger", "show", channel)[1] == out
    assert answer(mtor, "show", channel)["paid"] == 130
    code, out, _ = mtor("ledger", "why", alice, "--by", "day")
    assert code == 0 and "by day" in out
    code, out, _ = mtor("ledger", "why", alice, "--limit", "1")
    assert "1 more; --limit shows them" in out
    code, out, _ = mtor("ledger", "balance", alice)
    for word in ("available", "held in channels", "2 cr", "earned", "spent", "0.00029 cr", "pending"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["why", "nobody"], cli.FAILED, "12D3KooW"),
        (["why", "ffffffffff"], cli.FAILED, "mtor ledger history"),
        (["why", "abc"], cli.FAILED, "at least 6"),
        (["why", "--by", "moon"], cli.USAGE, "counterparty"),
        (["why", "--limit", "0"], cli.FAILED, "at least 1"),
        (["prove", "ffffffffff", "proof"], cli.FAILED, "mtor ledger history"),
        (["export", "no/such/folder/file"], cli.USAGE, "cannot be written"),
        (["export", "."], cli.USAGE, "exists"),
        (["import", "nothing"], cli.USAGE, "cannot be read"),
        (["import", "."], cli.USAGE, "is a folder"),
        (["verify", "nothing"], cli.USAGE, "cannot be read"),
        (["verify", "--federation", "short"], cli.USAGE, "64 hex digits"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(
    mtor: Mtor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    mtor("federation", "create", "garden")
    grant(tmp_path / "data", 5)
    got, out, err = mtor("ledger", *arguments)
    assert (got, out) == (code, "") and said in err and "MTOR_DEBUG" not in err and "Traceback" not in err
    assert not list(tmp_path.glob("*.part"))


# --- export and import --------------------------------------------------------------------------------


def test_an_exported_ledger_is_the_same_again(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    file = tmp_path / "again"
    facts = answer(mtor, "export", file)
    assert facts["records"] > 6 and facts["federation"] == member.id.hex() and facts["bytes"] == file.stat().st_size
    assert file.read_bytes() == (tmp_path / "export").read_bytes()
    code, out, err = mtor("ledger", "export", file)
    assert (code, out) == (cli.USAGE, "") and "--force" in err
    assert mtor("ledger", "export", file, "--force")[0] == 0
    assert answer(mtor, "import", file)["fresh"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "data", "export"]
    code, out, _ = mtor("ledger", "verify", "--signatures", "--federation", member.id.hex())
    assert code == 0 and out.startswith("verified: ")
    code, out, _ = mtor("ledger", "verify", "--federation", "ab" * 32)
    assert code == 1 and "another federation" in out


def test_a_ledger_of_another_federation_is_not_taken(mtor: Mtor, tmp_path: Path) -> None:
    made(1, tmp_path / "export")
    mtor("federation", "create", "garden")
    code, out, err = mtor("ledger", "import", tmp_path / "export")
    assert (code, out) == (cli.FAILED, "") and "federation several" in err and "federation join" in err
    (tmp_path / "cut").write_bytes((tmp_path / "export").read_bytes()[:-9])
    code, _, err = mtor("ledger", "import", tmp_path / "cut")
    assert code == cli.FAILED and "ends too early" in err


@pytest.mark.parametrize("prune", [False, True])
def test_an_export_is_verified_without_a_node_or_a_data_folder(mtor: Mtor, tmp_path: Path, prune: bool) -> None:
    federation = made(4, tmp_path / "export", prune)
    code, out, _ = mtor("ledger", "verify", tmp_path / "export")
    assert code == 0 and "verified: " in out and "several" in out and federation.id.hex() in out
    report = answer(mtor, "verify", tmp_path / "export", "--federation", federation.id.hex())
    assert report["verified"] and report["sum_micro"] == 0 and report["since_epoch"] == (1 if prune else 0)
    code, out, _ = mtor("ledger", "verify", tmp_path / "export", "--federation", "ab" * 32)
    assert code == 1 and "NOT TRUE" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_an_export_with_a_gap_is_not_true(mtor: Mtor, tmp_path: Path) -> None:
    federation = made(4, tmp_path / "export")
    reader = FrameReader()
    reader.receive_data((tmp_path / "export").read_bytes()[len(FIRST_LINE) :])
    frames = list(iter(reader.next_frame, None))
    (tmp_path / "gap").write_bytes(whole_file(federation.body, *frames[2:-1]))  # without the grant
    code, out, _ = mtor("ledger", "verify", tmp_path / "gap")
    assert code == 1 and "NOT TRUE" in out and "does not hold the" in out
    forged = frames[-2][:-1] + bytes([frames[-2][-1] ^ 1])
    (tmp_path / "end").write_bytes(whole_file(federation.body, *frames[1:-2], forged))
    report = answer(mtor, "verify", tmp_path / "end", code=1)
    assert not report["verified"] and "signature" in report["problems"][0]


# --- proofs -------------------------------------------------------------------------------------------


def test_a_proof_is_checked_by_somebody_without_a_node(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    code, out, _ = mtor("ledger", "prove", peer_id(ALICE.node), proof)
    assert code == 0 and f"mtor ledger verify {proof} --federation {member.id.hex()}" in out
    elsewhere = ("--data", tmp_path / "elsewhere")
    code, out, _ = mtor("ledger", "verify", proof, *elsewhere)
    assert code == 0 and f"proven for federation several {member.id.hex()}" in out
    assert "4.99971 cr to spend" in out and "3 of the federation's 4 witnesses committed" in out
    assert "anybody can found one" in out and "What is so today" in out
    code, out, _ = mtor("ledger", "verify", proof, "--federation", member.id.hex(), *elsewhere)
    assert code == 0 and "anybody can found one" not in out
    code, out, _ = mtor("ledger", "verify", proof, "--federation", "ab" * 32, *elsewhere)
    assert code == 1 and "of another federation" in out
    assert not (tmp_path / "elsewhere").exists()
    shown = answer(mtor, "verify", proof, "--federation", member.id.hex(), *elsewhere)
    assert shown["proven"] and shown["demanded"] and shown["what"] == "account"
    assert shown["account"] == peer_id(ALICE.node)
    assert mtor("ledger", "prove", peer_id(ALICE.node), proof)[0] == cli.USAGE  # it exists


def test_a_receipt_is_proven(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    why = answer(mtor, "why", peer_id(ALICE.node), "--lines")
    proof = tmp_path / "receipt"
    code, out, _ = mtor("ledger", "prove", why["lines"][1]["id"][:12], proof)
    assert code == 0 and "it shows the order that settled the channel" in out
    code, out, _ = mtor("ledger", "verify", proof)
    assert code == 0 and "0.00013 cr of 2 cr held, for 100 prompt tokens" in out and "count for good" in out
    running = tmp_path / "running"
    assert answer(mtor, "prove", why["lines"][-1]["id"], running)["final"] is False
    code, out, _ = mtor("ledger", "verify", running)
    assert code == 0 and "That it counts for good" in out and "Ask for this proof again" in out


@pytest.mark.parametrize("content", [b"", b"hello", b"\x98\x51", b"x" * 2_000])
def test_what_is_no_proof_is_not_true(mtor: Mtor, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    code, out, _ = mtor("ledger", "verify", tmp_path / "file")
    assert code == 1 and "is not a proof" in out and "mtor ledger prove" in out
    assert answer(mtor, "verify", tmp_path / "file", code=1)["proven"] is False


def test_a_forged_proof_is_not_true(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    mtor("ledger", "prove", peer_id(ALICE.node), proof)
    data = proof.read_bytes()
    proof.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, _ = mtor("ledger", "verify", proof)
    assert code == 1 and "proves nothing" in out
    (tmp_path / "large").write_bytes(bytes(1 << 21))
    code, _, err = mtor("ledger", "verify", tmp_path / "large")
    assert code == cli.USAGE and "neither a proof" in err


# --- audit --------------------------------------------------------------------------------------------


def test_what_was_refused_or_waits_is_said(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    reader = FrameReader()
    reader.receive_data((tmp_path / "export").read_bytes()[len(FIRST_LINE) :])
    frames = list(iter(reader.next_frame, None))
    install_genesis(tmp_path / "other", member)
    (tmp_path / "bad").write_bytes(whole_file(member.body, frames[1][:-1] + bytes([frames[1][-1] ^ 1]), frames[2]))
    code, out, _ = mtor("ledger", "import", tmp_path / "bad", "--data", tmp_path / "other")
    assert code == 1 and "1 were refused" in out and "! the record at byte" in out and "1 build on what is not" in out


def test_a_pruned_ledger_begins_anew_from_the_terminal(mtor: Mtor, tmp_path: Path) -> None:
    federation = made(4, tmp_path / "export", prune=True)
    install_genesis(tmp_path / "data", federation)
    code, out, _ = mtor("ledger", "import", tmp_path / "export")
    assert code == 0 and "begins anew with the state of a checkpoint" in out
    code, out, _ = mtor("ledger", "why", peer_id(ALICE.node))
    assert code == 0 and "was there when epoch 1 began" in out
    code, out, _ = mtor("ledger", "verify")
    assert code == 0 and "since epoch 1" in out
    (kind,) = {entry["kind"] for entry in json.loads(mtor("ledger", "history", "--json")[1])}
    assert kind == "checkpoint" and "checkpoint" in mtor("ledger", "history")[1]


def test_books_that_are_not_true_are_1(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    store = LevelStore(ledger_folder(tmp_path / "data", member))
    standing = View(store).account(ALICE.node)
    store.write({account_key(ALICE.node): replace(standing, balance=standing.balance + 1).encode()})
    store.close()
    for command, said in (("verify", "NOT TRUE"), ("audit", "WRONG: I1"), ("why", "does NOT add up")):
        code, out, _ = mtor("ledger", command, *((peer_id(ALICE.node),) if command == "why" else ()))
        assert code == 1 and said in out, command


def test_an_audit_from_the_terminal(mtor: Mtor, member: Federation) -> None:
    code, out, _ = mtor("ledger", "audit", "--signatures")
    assert code == 0 and "PASS" in out and "FAIL" not in out and "It does not prove:" in out
    assert "of its 1,000,000 cr" in out
    audit = answer(mtor, "audit")
    assert audit["passed"] and audit["sum_micro"] == 0 and audit["findings"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals of this kind")
def test_long_work_has_a_bar_that_counts(mtor: Mtor, member: Federation, tmp_path: Path) -> None:
    with Terminal(cli.__file__, "ledger", "verify", "--data", str(tmp_path / "data")) as terminal:
        terminal.until("8 of 8")
        terminal.until("verified: ")
        assert terminal.end() == 0 and "verifying" in terminal.screen


# --- with a node running ------------------------------------------------------------------------------


async def test_a_running_node_answers_the_same(mtor: Mtor, tmp_path: Path) -> None:
    async with world_of(1) as ledgers:
        alice, bob = await begun(ledgers)
        channel = await query(alice, bob, ALICE, BOB)
        await bob.close_idle(0)
        await alice.sync()
        async with gateway_world(tmp_path) as world:
            asked = LedgerOperations(alice, ALICE.node)
            world.operations.call = asked.call  # type: ignore[method-assign]
            world.operations.stream = asked.stream  # type: ignore[method-assign]

            async def run(*arguments: object) -> tuple[int, str, str]:
                return await trio.to_thread.run_sync(mtor, "ledger", *arguments, "--data", world.data)

            code, out, _ = await run("why", "--lines")
            assert code == 0 and "It adds up." in out and "Your account" in out and "1 receipts here" in out
            code, out, _ = await run("show", channel)
            assert code == 0 and "receipts of this channel" in out and "signed by the payer" in out
            code, out, _ = await run("verify", "--signatures")
            assert code == 0 and out.startswith("verified: 3 certificates (links, sums and signatures)")
            assert (await run("export", tmp_path / "export"))[0] == 0
            code, out, _ = await run("import", tmp_path / "export")
            assert code == 0 and "0 records were new, 3 were here already" in out
            (tmp_path / "bad").write_bytes(b"bad")
            code, _, err = await run("import", tmp_path / "bad")
            assert code == cli.REFUSED and "is no export" in err
            code, out, _ = await run("audit")
            assert code == 0 and "granted" in out
