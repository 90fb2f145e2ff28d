"""What is wrong or odd in a federation, in words: what each finding means, and what it does not prove.

Rule: "wrong" is what no honest program does, and can be shown; "odd" breaks no rule and may have a good reason. Names
are keys, never people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from heapq import nlargest

from node.journal import Json
from protocol.ids import NodeId, parse_peer_id, peer_id
from protocol.ledger.families import related
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Account, Base, Channel, Iterable, View
from protocol.pricing import format_credits

TOP = 10  # findings of one kind
MAX_FLOWS = 5_000  # largest payments between two accounts among which circles of three are looked for
NEAR_CAP_PERCENT = 90
NEWCOMER_PERCENT = 10  # of what the whole epoch earned
MIN_CERTIFICATES = 20  # before a witness's silence is worth a word

WRONG, ODD = "wrong", "odd"


def findings(federation: Federation, reader: Iterable, audit: Json, votes: Counter[int]) -> list[Json]:
    """All findings, what is wrong first. `votes`: of each witness, in the certificates of the epoch in force."""
    found = [
        *_broken(audit),
        *_evidence(audit),
        *_supply(audit),
        *_overdue(audit),
        *_silent(federation, audit, votes),
        *_circles(reader),
        *_alone(View(reader), audit),
        *_newcomers(reader),
    ]
    return sorted(found, key=lambda finding: finding["level"] != WRONG)


def _finding(level: str, what: str, text: str, means: str, does_not_prove: str, **more: object) -> Json:
    return {"level": level, "what": what, "text": text, "means": means, "does_not_prove": does_not_prove, **more}


# --- what no honest program does ----------------------------------------------------------------------


def _broken(audit: Json) -> Iterator[Json]:
    for invariant in audit["invariants"]:
        if invariant["result"] == "FAIL":
            yield _finding(
                WRONG,
                "invariant",
                f"{invariant['invariant']} is broken ({invariant['what']}): {'; '.join(invariant['problems'])}",
                "This copy of the ledger is not what the federation's rules make. Do not pay or get paid with it; "
                "export it, and compare it with another member's.",
                "Who did it: a disk, a program, or more witnesses than the federation can stand.",
                invariant=invariant["invariant"],
            )


def _evidence(audit: Json) -> Iterator[Json]:
    for proof in audit["evidence"]["equivocations"]:
        account, epoch = proof["account"], proof["epoch"]
        yield _finding(
            WRONG,
            "equivocation",
            f"Account {account} signed two orders with one number in epoch {epoch}.",
            "It tried to spend the same credits twice, or its key is used by two programs. Witnesses vote for none of "
            "its orders until that epoch has ended.",
            "That anybody lost anything: at most one of the two could be certified. Nor that its owner meant it: a "
            "restored backup does the same.",
            account=account,
        )
    for witness in audit["evidence"]["double_votes"]:
        yield _finding(
            WRONG,
            "double_vote",
            f"Witness {witness} voted for two orders with one number.",
            "It is one of the faults that the federation can stand. Its owner should say what happened; the others "
            "should think about going on with it.",
            "That an order was certified twice: that takes more such witnesses. Nor that it was meant: a witness whose "
            "disk was set back may do it.",
            witness=witness,
        )


# --- what may have a good reason ----------------------------------------------------------------------


def _supply(audit: Json) -> Iterator[Json]:
    for issuer in audit["supply"]["issuers"]:
        if issuer["granted"] * 100 >= issuer["cap"] * NEAR_CAP_PERCENT:
            yield _finding(
                ODD,
                "supply",
                f"Issuer {issuer['issuer']} has granted {format_credits(issuer['granted'])} of the "
                f"{format_credits(issuer['cap'])} that it may.",
                "It can hardly grant any more: newcomers will have to earn.",
                "That it granted to the wrong accounts: whom an issuer gives credits is its policy.",
                issuer=issuer["issuer"],
            )


def _overdue(audit: Json) -> Iterator[Json]:
    channels = audit["channels"]
    if channels["open_past_expiry"]:
        yield _finding(
            ODD,
            "expired_channels",
            f"{channels['open_past_expiry']:,} channels with {format_credits(channels['held_past_expiry'])} are open "
            "though they have expired.",
            "These credits are locked until their workers settle or an epoch ends: with one witness soon by itself, "
            "with several at the next change of epochs.",
            "That a worker vanished: it may still settle until then.",
            channels=[entry["channel"] for entry in channels["longest_past_expiry"]],
        )


def _silent(federation: Federation, audit: Json, votes: Counter[int]) -> Iterator[Json]:
    seen = audit["certificates_in_epoch"]
    if federation.single or seen < MIN_CERTIFICATES:
        return
    for index, witness in enumerate(federation.genesis.witnesses):
        if not votes[index]:
            yield _finding(
                ODD,
                "silent_witness",
                f"Witness {peer_id(witness)} voted for none of the {seen:,} orders of epoch {audit['epoch']}.",
                f"It may be away, or abstain after it was set back. The federation goes on while {federation.quorum} "
                "vote; `mtor ledger epoch status` asks it.",
                "That it is away: a certificate holds the first votes that came, and a slow witness's are not among "
                "them.",
                witness=peer_id(witness),
            )


def _alone(view: View, audit: Json) -> Iterator[Json]:
    for pair in audit["channels"]["only_with_one_another"]:
        first, second = pair["accounts"]
        if related(view, parse_peer_id(first), parse_peer_id(second)):  # an owner and its sub-account say so openly
            continue
        yield _finding(
            ODD,
            "pair",
            f"{first} and {second} trade with one another alone ({format_credits(pair['paid'])}).",
            "They may be one owner's. That gains nothing: work mints no credits, so what one of them earned the other "
            "has paid.",
            "That they are: in a small federation everybody has few to trade with.",
            accounts=pair["accounts"],
        )


def _newcomers(reader: Iterable) -> Iterator[Json]:
    """Accounts that the last checkpoint does not know, and that earned much since."""
    epoch = View(reader).epoch
    if epoch == 0:
        return
    before = View(Base(reader, epoch))
    total = 0
    fresh: list[tuple[int, bytes]] = []
    for key, value in reader.iterate(b"a"):
        known = before.account(key[1:])
        earned = Account.decode(value).earned - known.earned
        total += earned
        if earned and not known.known:
            fresh = nlargest(TOP, [*fresh, (earned, key[1:])])
    for earned, account in fresh:
        if earned * 100 >= total * NEWCOMER_PERCENT:
            yield _finding(
                ODD,
                "newcomer",
                f"Account {peer_id(NodeId(account))} is new since epoch {epoch} began, and has earned "
                f"{format_credits(earned)}, {earned * 100 // total} % of what all have earned since.",
                "A good new worker looks like that; so does somebody who comes back under a new key to leave a bad "
                "name behind. A new key starts with nothing, so nothing is gained by that but the name.",
                "That it had another key before: the ledger knows keys, not people.",
                account=peer_id(NodeId(account)),
            )


# --- who gets back what it paid -----------------------------------------------------------------------

Flows = dict[tuple[bytes, bytes], int]
Circle = tuple[bytes, ...]


def _circles(reader: Iterable) -> Iterator[Json]:
    flows: Counter[tuple[bytes, bytes]] = Counter()
    for _, value in reader.iterate(b"c"):
        channel = Channel.decode(value)
        if channel.paid:
            flows[bytes(channel.payer), bytes(channel.payee)] += channel.paid
    found = ((amount, circle) for circle in (*_pairs(flows), *_threes(flows)) if (amount := _round(flows, circle)))
    for amount, circle in nlargest(TOP, found):
        names = [peer_id(NodeId(account)) for account in circle]
        yield _finding(
            ODD,
            "circle",
            f"{format_credits(amount)} went round: {' → '.join((*names, names[0]))}.",
            "Everyone here got back what it paid. Accounts of one owner can do so to look busy; it mints nothing, and "
            "nobody's balance is higher for it.",
            "Any of that: two nodes that serve different models, and ask one another, look the same.",
            accounts=names,
            amount=amount,
        )


def _pairs(flows: Flows) -> Iterator[Circle]:
    return ((payer, payee) for payer, payee in flows if payer < payee and (payee, payer) in flows)


def _threes(flows: Flows) -> Iterator[Circle]:
    """Among the largest flows; each circle once, from its smallest account on."""
    paying: dict[bytes, list[bytes]] = {}
    for payer, payee in nlargest(MAX_FLOWS, flows, key=_amount(flows)):
        paying.setdefault(payer, []).append(payee)
    for first, seconds in paying.items():
        for second in seconds:
            for third in paying.get(second, ()):
                if first < min(second, third) and second != third and (third, first) in flows:
                    yield (first, second, third)


def _amount(flows: Flows) -> Callable[[tuple[bytes, bytes]], int]:
    return lambda flow: flows[flow]


def _round(flows: Flows, circle: Circle) -> int:
    """How much went all the way round; 0 if the way back is less than half of the way there."""
    legs = [flows[leg] for leg in zip(circle, (*circle[1:], circle[0]), strict=True)]
    return min(legs) if min(legs) * 2 >= max(legs) else 0
