"""Run the checks, say what they came to, exit with 1 if anything is unexpected: `python -m spec.model [--short]`."""

from __future__ import annotations

import sys
import time

from .suite import Verdict, judge, suite


def main(arguments: list[str]) -> int:
    """Walk through all checks, or all but the long ones."""
    begun = time.monotonic()
    chosen = [check for check in suite() if not (check.long and "--short" in arguments)]
    unexpected = 0
    for check in chosen:
        started = time.monotonic()
        verdict = judge(check)
        unexpected += not verdict.expected
        _print(verdict, time.monotonic() - started)
    print(f"{len(chosen)} checks, {unexpected} unexpected, {time.monotonic() - begun:.0f} s")
    return 1 if unexpected else 0


def _print(verdict: Verdict, seconds: float) -> None:
    result = verdict.result
    word = "broken" if result.broken else "holds"
    surprise = "" if verdict.expected else "   <-- UNEXPECTED"
    print(f"{verdict.check.name}: {word}{surprise}")
    print(f"    {result.states} states, {result.depth} steps deep, {seconds:.1f} s")
    for number, words in enumerate(result.trace, 1):
        print(f"    {number:2}. {words}")
    if result.broken:
        print(f"    =>  {result.broken}", flush=True)


sys.exit(main(sys.argv[1:]))
