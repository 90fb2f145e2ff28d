"""`mtor ledger balance|history|show|why|verify|audit|settle`.

Rule: a balance leads to its receipts in at most three commands: `why`, `why --lines`, `why ID`.
"""

from __future__ import annotations

import argparse

from node.commands.asking_node import call, stream
from node.commands.client import Json, UsageError
from node.commands.screen import print_facts, print_json, print_table, printable, progress_shown, strong
from node.ledger_words import PARTS, line_words, receipt_words, tail, when, why_lines
from protocol.ids import FederationId
from protocol.params import HASH_BYTES
from protocol.pricing import format_credits

OK, WRONG = 0, 1

_HEX = frozenset("0123456789abcdefABCDEF")


def balance(options: argparse.Namespace) -> int:
    """What an account has."""
    facts = call(options, "ledger.balance", {"account": options.account})
    if options.json:
        print_json(facts)
        return OK
    print_facts(
        {
            "account": facts["account"],
            "available": facts["balance_text"],
            "held in channels": f"{facts['held_text']} ({facts['owed_text']} of it promised to workers)",
            "earned": facts["earned_text"],
            "spent": facts["spent_text"],
            "pending": f"{facts['pending_text']} (promised to it, not settled)",
        }
    )
    return OK


def history(options: argparse.Namespace) -> int:
    """What moved."""
    entries = call(options, "ledger.history", {"limit": options.limit, "before": options.before})["entries"]
    if options.json:
        print_json(entries)
        return OK
    if not entries:
        print("nothing has moved yet")
        return OK
    print_table(
        ("when", "what", "amount", "with", "id"),
        [
            (
                when(entry["time_ms"]),
                f"{entry['kind']} (void)" if "void_ms" in entry else entry["kind"],
                format_credits(entry["amount"]),
                tail(entry["counterparty"]),
                entry["id"][:12],
            )
            for entry in entries
        ],
    )
    return OK


# --- explanations -------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> int:
    """Explain one entry."""
    return _explain(options, options.id)


def why(options: argparse.Namespace) -> int:
    """Where a balance comes from, or what an id stands for; 1 if something does not add up."""
    if _is_id(options.subject):
        return _explain(options, options.subject)
    found = call(options, "ledger.why", {"account": options.subject, "by": options.by, "limit": options.limit})
    if options.json:
        if options.lines:
            found["lines"] = _lines(options)
        print_json(found)
    else:
        _print_why(found)
        if options.lines:
            _print_lines(_lines(options))
    return OK if found["adds_up"] else WRONG


def _is_id(text: str) -> bool:
    """True for what may be the beginning of an id; a peer id has other letters."""
    return bool(text) and set(text) <= _HEX


def _lines(options: argparse.Namespace) -> list[Json]:
    lines: list[Json] = []
    stream(options, "ledger.lines", {"account": options.subject}, lambda part: lines.extend(part["lines"]))
    return lines


def _print_why(found: Json) -> None:
    for line in why_lines(found):
        print(printable(line))
    if not found["groups"]:
        return
    print(f"\n{strong('by ' + found['by'])}")
    name = found["by"]
    print_table(
        (name, "in all", "how", "lines", "queries", "last"),
        [
            (
                printable(tail(group[name]) if name == "counterparty" else group[name]),
                format_credits(group["amount"]),
                _how(group),
                f"{group['lines']:,}",
                f"{group['queries']:,}" if group["queries"] else "",
                when(group["last_ms"]) if group["last_ms"] else "",
            )
            for group in found["groups"]
        ],
    )
    if found["groups_left_out"]:
        print(f"… and {found['groups_left_out']:,} more; --limit shows them")


def _how(group: Json) -> str:
    """The parts of a group that moved something."""
    moved = {part: group[part] for part in PARTS if group.get(part)}
    return ", ".join(f"{part} {format_credits(amount)}" for part, amount in moved.items())


def _print_lines(lines: list[Json]) -> None:
    print(f"\n{strong('every line, oldest first')}")
    print_table(
        ("when", "amount", "so far", "what"),
        [
            (
                when(line["time_ms"]) if line.get("time_ms") else f"epoch {line['epoch']}",
                format_credits(line["amount"]),
                format_credits(line["balance"]),
                printable(line_words(line)),
            )
            for line in lines
        ],
    )


def _explain(options: argparse.Namespace, identity: str) -> int:
    found = call(options, "ledger.show", {"id": identity})
    if options.json:
        print_json(found)
        return _adds_up(found)
    print(printable(found["sentence"]))
    print_facts({name: printable(str(value)) for name, value in _facts(found).items()})
    receipts = found.get("receipts", [])
    if receipts:
        print(f"\n{strong('receipts of this channel on this node')}")
    for receipt in receipts:
        print(printable(receipt_words(receipt)))
    if found.get("receipts_left_out"):
        print(f"… and {found['receipts_left_out']:,} more")
    if _adds_up(found) != OK:
        print("! it does NOT add up: the counts times the prices, the voucher and what was paid differ")
    return _adds_up(found)


def _adds_up(found: Json) -> int:
    return OK if found.get("adds_up", True) else WRONG


def _facts(found: Json) -> Json:
    """What stands beside the sentence."""
    facts: Json = {"kind": found["kind"], "id": found["id"]}
    for name, title in (("time_ms", "when"), ("opened_ms", "opened"), ("settled_ms", "settled")):
        if found.get(name):
            facts[title] = when(found[name])
    for name in ("from", "to", "account", "owner", "key", "payer", "payee", "counterparty"):
        if found.get(name):
            facts[name] = found[name]
    if found["kind"] == "channel":
        facts |= _channel_facts(found)
    if found.get("quote") and set(found["quote"]) != {"0"}:
        facts["quote"] = f"{found['quote'][:16]}… by {tail(found['quote_by'])}"
    for title, order in (("ordered", found.get("order")), ("settlement", found.get("settlement"))):
        if order:
            facts[title] = _placed(order)
    if found.get("voucher"):
        facts["voucher"] = f"{format_credits(found['voucher']['cumulative'])} in all over the channel"
    for name in ("channel", "query", "outcome"):
        if found.get(name) and found[name] != found["id"]:
            facts[name] = found[name]
    return facts


def _channel_facts(found: Json) -> Json:
    facts = {
        "prompt": f"{found['units_in']:,} tokens x {format_credits(found['price_in'])} per 1,000 = "
        f"{format_credits(found['cost_in'])}",
        "output": f"{found['units_out']:,} tokens x {format_credits(found['price_out'])} per 1,000 = "
        f"{format_credits(found['cost_out'])}",
        "voucher": f"{format_credits(found['promised'])} of {format_credits(found['hold'])} held",
        "expires": when(found["expiry_ms"]),
    }
    if found["receipts_left"] is not None:
        facts["receipts"] = (
            f"{found['receipts_count']:,} with {format_credits(found['receipts_amount'])}; "
            f"{format_credits(found['receipts_left'])} of the voucher without one here"
        )
    return facts


def _placed(order: Json) -> str:
    number = f"order {order['sequence']} of the account in epoch {order['epoch']}, " if "sequence" in order else ""
    votes = f"votes of {', '.join(tail(witness) for witness in order['witnesses'])}"
    return f"{order['type']} {order['id'][:12]}: {number}place {order['position']} of this log, {votes}"


# --- the whole ledger ---------------------------------------------------------------------------------


def verify(options: argparse.Namespace) -> int:
    """Check the ledger, or a file of somebody else's; 1 if it is not true."""
    if options.file is not None:
        from node.commands.ledger_files import verify_file

        return verify_file(options)
    expected = demanded(options)
    if expected is not None and call(options, "federation.show")["id"] != expected.hex():
        print(f"NOT TRUE: this node belongs to another federation than {expected.hex()[:16]}…")
        return WRONG
    reports: list[Json] = []
    with progress_shown() as shown:

        def take(progress: Json) -> None:
            if "report" in progress:
                reports.append(progress["report"])
            elif not options.json:
                shown(progress)

        stream(options, "ledger.verifying", {"signatures": options.signatures}, take)
    return print_report(options, reports[0], options.signatures)


def demanded(options: argparse.Namespace) -> FederationId | None:
    """The federation that `--federation` names. Raises `UsageError`."""
    if not options.federation:
        return None
    try:
        federation = bytes.fromhex(options.federation)
    except ValueError:
        federation = b""
    if len(federation) != HASH_BYTES:
        raise UsageError(
            f"--federation {options.federation}: a federation's id is {2 * HASH_BYTES} hex digits, from "
            "`mtor federation show`"
        )
    return FederationId(federation)


def print_report(options: argparse.Namespace, report: Json, signatures: bool) -> int:
    """What a check has found; the exit code."""
    if options.json:
        print_json(report)
    else:
        what = "links, sums and signatures" if signatures else "links and sums"
        since = f" since epoch {report['since_epoch']}" if report["since_epoch"] else ""
        word = "verified" if report["verified"] else "NOT TRUE"
        print(
            f"{word}: {report['certificates']} certificates{since} ({what}), "
            f"{report['accounts']} accounts, {report['channels']} channels, sum {report['sum_micro']} µcr"
        )
        for problem in report["problems"]:
            print(f"! {printable(problem)}")
    return OK if report["verified"] else WRONG


def audit(options: argparse.Namespace) -> int:
    """What is wrong or odd in the federation; 1 if something is wrong."""
    found = call(options, "ledger.audit", {"signatures": options.signatures})
    wrong = any(finding["level"] == "wrong" for finding in found["findings"])
    if options.json:
        print_json(found)
    else:
        _print_audit(found)
    return WRONG if wrong else OK


def _print_audit(found: Json) -> None:
    supply, channels, accounts = found["supply"], found["channels"], found["accounts"]
    print_facts(
        {
            "federation": printable(f"{found['name']} {found['federation']}"),
            "epoch": f"{found['epoch']}, orders kept since epoch {found['first_epoch']}",
            "granted": f"{format_credits(supply['granted'])} of at most {format_credits(supply['cap'])}",
            **{
                f"  by {tail(issuer['issuer'])}": f"{format_credits(issuer['granted'])} of its "
                f"{format_credits(issuer['cap'])}"
                for issuer in supply["issuers"]
            },
            "accounts": f"{accounts['count']:,} with {format_credits(accounts['free'])} to spend",
            "channels": f"{channels['open']:,} open with {format_credits(channels['held'])}, {channels['closed']:,} "
            f"settled for {format_credits(channels['paid'])}, {channels['refunded']:,} refunded",
            "sum of all": f"{found['sum_micro']} µcr (0 is right)",
        }
    )
    print(f"\n{strong('invariants')}")
    print_table(
        ("", "what", "result", "checked"),
        [
            (check["invariant"], check["what"], check["result"], f"{check['checked']:,}" if check["checked"] else "")
            for check in found["invariants"]
        ],
    )
    if not found["findings"]:
        print("\nnothing looks wrong or odd from here")
    for finding in found["findings"]:
        print(f"\n{strong(finding['level'].upper())}: {printable(finding['text'])}")
        print(f"  It means: {printable(finding['means'])}")
        print(f"  It does not prove: {printable(finding['does_not_prove'])}")


def settle(options: argparse.Namespace) -> int:
    """Close channels now."""
    facts = call(options, "ledger.settle")
    if options.json:
        print_json(facts)
    else:
        print(f"{facts['closed']} channels settled")
    return OK
