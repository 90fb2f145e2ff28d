"""What a node does with a gossiped offer.

Rule: the first rule that applies decides. [REJECT] is for what no honest forwarder would pass on, [IGNORE] for
what honest nodes send by accident; the labels are those of `spec/03-offers.md`. `now_ms` and what is known come
in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocol import params
from protocol.errors import ProtocolError
from protocol.offers import KnownOffer, is_newer, open_offer


class Verdict(Enum):
    """What to do with a gossiped message."""

    ACCEPT = "accept"  # take in and forward
    IGNORE = "ignore"  # neither, and nobody's fault
    REJECT = "reject"  # neither, and the peer that forwarded it broke a rule


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the label of the rule that gave it, and the offer if it is accepted."""

    verdict: Verdict
    rule: str
    offer: KnownOffer | None = None


RULES: dict[str, tuple[Verdict, str]] = {
    "O1": (Verdict.REJECT, "the envelope is longer than MAX_OFFER_BYTES"),
    "O2": (Verdict.REJECT, "it is not a canonical envelope around a canonical, signed, self-consistent offer"),
    "O3": (Verdict.IGNORE, "it is issued more than CLOCK_SKEW in the future"),
    "O4": (Verdict.IGNORE, "it has expired"),
    "O5": (Verdict.IGNORE, "its sequence is not above the known one"),
    "O6": (Verdict.IGNORE, "it comes less than OFFER_MIN_INTERVAL after the known one was issued"),
    "O7": (Verdict.ACCEPT, "otherwise"),
}


def judge_offer(sealed: bytes, known: KnownOffer | None, now_ms: int) -> Judgement:
    """Apply the rules O1-O7. `known` is the newest offer of the same node, if the caller has one."""
    if len(sealed) > params.MAX_OFFER_BYTES:
        return _by("O1")
    try:
        candidate = open_offer(sealed)
    except ProtocolError:
        return _by("O2")
    return judge_opened(candidate, known, now_ms)


def judge_opened(candidate: KnownOffer, known: KnownOffer | None, now_ms: int) -> Judgement:
    """Rules O3-O7: those that need the clock and what is known."""
    if candidate.offer.issued_ms > now_ms + params.CLOCK_SKEW:
        return _by("O3")
    if candidate.expired(now_ms):
        return _by("O4")
    if known is not None and not is_newer(candidate.offer, known.offer):
        return _by("O5")
    if known is not None and candidate.offer.issued_ms < known.offer.issued_ms + params.OFFER_MIN_INTERVAL:
        return _by("O6")
    return Judgement(Verdict.ACCEPT, "O7", candidate)


def _by(rule: str) -> Judgement:
    return Judgement(RULES[rule][0], rule)
