"""Strangers' text on screens and in logs.

Rule: what comes from outside never moves a cursor, changes a title, turns the direction of a line or begins a new one
that looks like ours.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with its control characters replaced, line breaks and tabs left."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def one_line(text: str) -> str:
    """The text on one line: a line break is shown as the two characters that stand for it in most languages."""
    return text if text.isprintable() else printable(text.replace("\n", "\\n").replace("\t", " "))
