"""What the classifier's 1,000 kinds are called, and which of them a word means.

Rule: a word means exactly the kinds that carry it, or those of a family ("dog": 118 breeds) that is listed here; a word
that means none is said to be unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Kinds that one everyday word covers. The first word is the family's name."""

    words: tuple[str, ...]
    kinds: frozenset[int]

    @property
    def name(self) -> str:
        """The everyday word."""
        return self.words[0]


@dataclass(frozen=True, slots=True)
class Guess:
    """What a picture may show."""

    name: str
    share: float  # 0 … 1
    closest: str = ""  # the family's likeliest kind, where `name` is a family


def _family(words: str, *ranges: int | tuple[int, int]) -> Family:
    """`ranges` are kinds, or (first, last)."""
    spans = [(each, each) if isinstance(each, int) else each for each in ranges]
    return Family(tuple(words.split()), frozenset(kind for first, last in spans for kind in range(first, last + 1)))


# Numbers are ImageNet-1k's. Larger families stand before those that they hold.
FAMILIES = (
    _family("animal", (0, 50), (52, 68), (70, 397)),
    _family("vehicle", 403, 404, 405, 407, 408, 436, 444, 468, 511, 555, 569, 609, 627, (654, 654), 656, 661, 665, 670),
    _family("fish", (0, 6), (389, 397)),
    _family("bird", (7, 24), (80, 100), (127, 146)),
    _family("frog toad", (30, 32)),
    _family("turtle tortoise", (33, 37)),
    _family("lizard", (38, 48)),
    _family("crocodile alligator", 49, 50),
    _family("snake", (52, 68)),
    _family("spider", (72, 77)),
    _family("dog puppy", (151, 268)),
    _family("wolf", (269, 271)),
    _family("fox", (277, 280)),
    _family("cat kitten", (281, 285)),
    _family("bear", (294, 297)),
    _family("beetle", (300, 307)),
    _family("butterfly", (321, 326)),
    _family("insect", (300, 326)),
    _family("rabbit bunny", (330, 332)),
    _family("monkey", (370, 382)),
    _family("ape", (365, 369)),
    _family("elephant", 385, 386),
    _family("whale", 147, 148),
    _family("crab", (118, 121)),
    _family("plane airplane aeroplane aircraft", 404, 895),
    _family("car automobile", 407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    _family("truck lorry", 555, 569, 675, 717, 864, 867),
    _family("bus", 654, 779, 874),
    _family("bicycle bike", 444, 671),
    _family("motorcycle motorbike scooter", 665, 670),
    _family("train locomotive", 466, 547, 565, 705, 820, 829),
    _family("boat", 472, 484, 554, 576, 625, 724, 780, 814, 871, 914),
    _family("ship", 403, 510, 628, 724, 780, 833),
    _family("computer", 527, 590, 620, 681),
    _family("phone telephone", 487, 528, 707),
    _family("clock", 409, 530, 892),
    _family("watch", 531),
    _family("guitar", 402, 546),
    _family("cup mug", 504, 968),
    _family("bottle", 440, 720, 737, 898, 901, 907),
    _family("ball", 429, 430, 522, 574, 722, 768, 805, 852, 890),
    _family("bridge", 821, 839, 888),
    _family("chair", 423, 559, 765, 857),
    _family("hat", 439, 452, 515, 808),
    _family("shoe", 502, 514, 630, 770, 774),
    _family("fruit", (948, 957)),
    _family("vegetable", (936, 946)),
    _family("apple", 948),
    _family("mushroom fungus", 947, (991, 997)),
    _family("flower", (984, 986)),
)

LEAST_FAMILY = 0.15  # share
LARGE = 20  # kinds: few people know each of them, so that the family is told first

PEOPLE = frozenset(
    ("person", "people", "human", "man", "men", "woman", "women", "child", "children", "boy", "girl", "face")
)
SMALL_WORDS = frozenset(
    ("a", "an", "the", "any", "some", "my", "your", "his", "her", "its", "their", "this", "that", "of", "anything")
)


def normalise(phrase: str) -> str:
    """Lower case, without articles and the plural's s: "The Cats?" is "cat"."""
    words = [word for word in re.findall(r"[a-z0-9'-]+", phrase.lower()) if word not in SMALL_WORDS]
    return " ".join([*words[:-1], _singular(words[-1])]) if words else ""


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(s|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) else word


def means(thing: str, labels: Sequence[str]) -> frozenset[int]:
    """The kinds that a normalised word means; none if it is unknown."""
    if not thing:
        return frozenset()
    family = next((family for family in FAMILIES if thing in family.words), None)
    if family is not None:
        return family.kinds
    pattern = re.compile(rf"\b{re.escape(thing)}(s|es)?\b")
    return frozenset(kind for kind, label in enumerate(labels) if pattern.search(label.lower()))


def guesses(shares: Sequence[float], labels: Sequence[str], most: int) -> list[Guess]:
    """The likeliest names, families before kinds where a family has clearly more than its likeliest kind."""
    found = [_of_family(family, shares, labels) for family in FAMILIES[2:]]
    candidates = [guess for guess in found if guess is not None] + _of_kinds(shares, labels)
    named: list[Guess] = []
    taken: set[str] = set()
    for guess in sorted(candidates, key=lambda guess: -guess.share):
        if guess.name not in taken and guess.closest not in taken:
            named.append(guess)
            taken |= {guess.name, guess.closest, *_members(guess.name, labels)} - {""}
    return named[:most]


def total(kinds: Iterable[int], shares: Sequence[float]) -> float:
    """The share of some kinds together."""
    return sum(shares[kind] for kind in kinds)


def likeliest(kinds: Iterable[int], shares: Sequence[float]) -> int:
    """The kind that has the most. `kinds` is not empty."""
    return max(kinds, key=lambda kind: shares[kind])


def _of_family(family: Family, shares: Sequence[float], labels: Sequence[str]) -> Guess | None:
    """None where the family says no more than its likeliest kind, or is a sum of crumbs."""
    whole, best = total(family.kinds, shares), likeliest(family.kinds, shares)
    if whole < LEAST_FAMILY or (whole < 1.15 * shares[best] and len(family.kinds) < LARGE):
        return None
    return Guess(family.name, whole, labels[best])


def _of_kinds(shares: Sequence[float], labels: Sequence[str]) -> list[Guess]:
    together: dict[str, float] = {}
    for share, label in zip(shares, labels, strict=True):  # two names stand twice
        together[label] = together.get(label, 0.0) + share
    return [Guess(label, share) for label, share in together.items()]


def _members(name: str, labels: Sequence[str]) -> set[str]:
    return {labels[kind] for family in FAMILIES if family.name == name for kind in family.kinds}
