"""Model cards: the README that a model came with, as text that is safe to show.

Rule: a card is a stranger's text. Control characters and marks that reverse or hide text are taken out, and it is cut.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

CARD_LINES = 20
CARD_BYTES = 64 << 10
LINE_LENGTH = 200
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
LICENCE_LINE = re.compile(r"^license:[ \t]*([\w.+-]+)", re.MULTILINE)
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def read_card(folder: Path) -> str:
    """The first lines of a folder's README.md, or nothing. Blocks."""
    return card_text(_readme(folder))


def licence_in(folder: Path) -> str:
    """The licence that the README's first block names, or nothing. Blocks."""
    return licence_of(_readme(folder))


def card_text(readme: str) -> str:
    """The first lines of a card without its first block, its HTML comments and what does not print."""
    body = re.sub(r"<!--.*?-->", "", FRONT_MATTER.sub("", readme), flags=re.DOTALL)
    lines = [printable(line)[:LINE_LENGTH].rstrip() for line in body.splitlines()]
    return "\n".join([line for line in lines if line][:CARD_LINES])


def licence_of(readme: str) -> str:
    """The licence in a card's first block, or nothing."""
    block = FRONT_MATTER.match(readme)
    found = LICENCE_LINE.search(block.group(1)) if block else None
    return found.group(1) if found else ""


def printable(text: str) -> str:
    """Without control characters, and without marks that change the direction of text or cannot be seen."""
    return "".join(each for each in text if each == "\t" or unicodedata.category(each) not in HIDDEN)


def _readme(folder: Path) -> str:
    try:
        with (folder / "README.md").open("rb") as file:
            return file.read(CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
