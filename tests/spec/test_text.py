"""The texts hold together: links lead somewhere, and names in capitals exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol import params
from protocol.errors import ErrorCode
from protocol.wishes import ModelFeature

ROOT = Path(__file__).parents[2]
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("spec/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
OTHER_NAMES = {"NO_HASH", "D_low", "D_high"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", [path for path in TEXTS if path.parent.name == "spec"], ids=relative)
def test_every_name_in_capitals_exists(path: Path) -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", path.read_text(encoding="utf-8")))
    known = {name for name in vars(params) if name.isupper()} | {code.name for code in ErrorCode} | OTHER_NAMES
    known |= {feature.name for feature in ModelFeature}
    assert named <= known
