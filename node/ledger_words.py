"""What the ledger's explanations say to people.

Rule: words follow from the numbers of the JSON beside them, and say nothing that is not in it. Accounts are named by
the end of their peer id; the whole id stands in the JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from node.journal import Json, sentence
from protocol.pricing import format_credits

PARTS = {
    "opening": "was there when epoch {epoch} began; what was before is forgotten here",
    "granted": "granted by the issuer",
    "issued": "granted to others, as the issuer",
    "moved": "moved between accounts of one owner",
    "earned": "earned by settled channels",
    "spent": "paid by settled channels",
    "held": "locked in open channels",
    "returned": "came back whole from holds that expired",
    "promised": "promised in open channels, not settled yet",
}


def why_lines(why: Json) -> list[str]:
    """A balance as a sum, a line a part."""
    who = "Your account" if why["own"] else "The account"
    told = [f"{who} {tail(why['account'])} has {format_credits(why['balance'])} to spend. It comes from:"]
    opening = why["opening"]
    if opening["epoch"]:
        told.append(_summand(opening["balance"] + opening["held"], PARTS["opening"].format(**opening)))
    told += [_summand(part["amount"], _part(part, why)) for part in why["parts"]]
    if len(told) == 1:
        told.append("  nothing: no order of this ledger names it")
    told.append(_summand(why["sum"], "in all", "="))
    told += ["It adds up."] if why["adds_up"] else [f"It does NOT add up: {problem}." for problem in why["missing"]]
    return told


def _summand(amount: int, what: str, sign: str = "") -> str:
    return f"  {sign or ('-' if amount < 0 else '+')} {format_credits(amount if sign else abs(amount)):>16}  {what}"


def _part(part: Json, why: Json) -> str:
    name, lines = part["part"], part["lines"]
    secret = "how much, only payer and worker know"
    more = {
        "held": f"{format_credits(why['owed'])} of it promised by vouchers" if why["own"] else "",
        "promised": f"{format_credits(why['pending'])} by vouchers" if why["own"] else secret,
        "returned": f"{format_credits(part.get('locked', 0))} had been locked",
    }.get(name)
    return f"{PARTS[name]} ({lines:,} {'line' if lines == 1 else 'lines'}{'; ' + more if more else ''})"


def line_words(line: Json) -> str:
    """One line of the sum: who, when, how many, at which price."""
    if line["part"] == "opening":
        return PARTS["opening"].format(**line)
    other = tail(line["counterparty"])
    if "channel" not in line:
        return f"{PARTS[line['part']]}: {other}, order {line['id'][:12]}"
    counted = _counted(line) if line["units_in"] or line["units_out"] else "nothing counted"
    quote = f", quote {line['quote'][:12]}" if line["quote"] else ""
    queries = f", {line['receipts_count']} receipts here" if line["receipts_count"] else ""
    doubt = "" if line["adds_up"] else "; it does NOT add up"
    return f"{PARTS[line['part']]}: {other}, channel {line['id'][:12]}, {counted}{quote}{queries}{doubt}"


def explained(found: Json) -> str:
    """What one id stands for, in a sentence or two."""
    return _EXPLAINED[found["kind"]](found)


def receipt_words(receipt: Json) -> str:
    """One query of a channel."""
    proof = receipt["voucher"]
    signed = {True: "signed by the payer", False: "NOT signed by the payer", None: "its channel is not here"}
    proven = f"; voucher of {format_credits(proof['cumulative'])} in all, {signed[proof['signed']]}" if proof else ""
    doubt = "" if receipt["adds_up"] else "; it does NOT add up"
    return f"{when(receipt['time_ms'])}  {_receipt(receipt)} Receipt {receipt['id'][:12]}{proven}{doubt}"


def when(time_ms: int | None) -> str:
    """A moment in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ms / 1_000)) if time_ms else "not known here"


def tail(account: str) -> str:
    """The end of a peer id, which tells accounts apart on a screen."""
    return f"…{account[-8:]}" if account else ""


def _counted(channel: Json) -> str:
    return (
        f"{channel['units_in']:,} prompt tokens x {format_credits(channel['price_in'])} per 1,000 + "
        f"{channel['units_out']:,} output tokens x {format_credits(channel['price_out'])} per 1,000 = "
        f"{format_credits(channel['promised'])}"
    )


def _channel(found: Json) -> str:
    payer, payee = (_party(found, role) for role in ("payer", "payee"))
    promised, back = format_credits(found["promised"]), format_credits(found["hold"] - found["paid"])
    ends = {
        "open": f"The channel is open; {promised} are promised so far, as far as is known here.",
        "closed": f"The channel is settled: {_counted(found)}; {back} came back.",
        "refunded": "The hold expired and came back whole.",
    }
    return f"{payer} locked {format_credits(found['hold'])} for {payee}. {ends[found['status']]}"


def _party(found: Json, role: str) -> str:
    named = tail(found[role])
    return named if found["role"] != role else f"You ({named})" if role == "payer" else f"you ({named})"


def _receipt(found: Json) -> str:
    return sentence(found | {"kind": "query"})


def _grant(found: Json) -> str:
    issued, cap = (format_credits(found[name]) for name in ("issued_in_all", "issuer_cap"))
    return (
        f"The issuer {tail(found['from'])} granted {format_credits(found['amount'])} to {tail(found['to'])}. "
        f"It has issued {issued} of the {cap} that the federation lets it issue."
    )


def _move(found: Json) -> str:
    moved = f"{format_credits(found['amount'])} from {tail(found['from'])} to {tail(found['to'])}"
    return f"The owner of both accounts moved {moved}."


def _attach(found: Json) -> str:
    return f"The account {tail(found['account'])} belongs to {tail(found['owner'])}, for ever; both signed it."


def _recovery(found: Json) -> str:
    return f"The key {tail(found['key'])} may change the key of account {tail(found['account'])}."


def _rotate(found: Json) -> str:
    return f"Orders of account {tail(found['account'])} are signed by the key {tail(found['key'])} from here on."


def _checkpoint(found: Json) -> str:
    return (
        f"Epoch {found['epoch']} began at {when(found['time_ms'])}: {found['orders']:,} orders of epoch "
        f"{found['epoch'] - 1} count for good. {found['commits']} of {found['witnesses']} witnesses committed to it."
    )


def _void(found: Json) -> str:
    return (
        f"An epoch change made this {found['entry']} void: too few witnesses had stored it when the epoch ended. It "
        "counts for nothing, and nothing was taken."
    )


def _forgotten(found: Json) -> str:
    told = sentence(found | {"kind": found["entry"]})
    return f"{told} The ledger's records of it were pruned here; this is the journal's."


_EXPLAINED: dict[str, Callable[[Json], str]] = {
    "channel": _channel,
    "receipt": _receipt,
    "grant": _grant,
    "move": _move,
    "attach": _attach,
    "recovery": _recovery,
    "rotate": _rotate,
    "checkpoint": _checkpoint,
    "void": _void,
    "forgotten": _forgotten,
}
