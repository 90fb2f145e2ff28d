"""Double-spend attempts against a federation of four processes, one of them Byzantine.

Rule: attackers with keys of their own bypass the bookkeeper, the Byzantine witness helps them, honest payers and
workers go on with their business. No attempt may succeed: never two certificates for one number, never an order of an
ended epoch, never a worker unpaid. Afterwards all honest ledgers verify with signatures and agree.

    python -m tests.durability.byzantine --attempts 1000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from protocol.ids import peer_id
from tests.durability.attacks import KINDS, Attacker, Judge
from tests.durability.blows import Life
from tests.durability.books import hastened
from tests.durability.claims import Claims, look
from tests.durability.small_world import ISSUER, SmallWorld
from tests.durability.wire import LineBroken

SPEED = 10  # a hold's hour passes in six minutes
ATTACKERS = 6
EPOCH_SECONDS = 8.0
FOR_EVER = 1e6
TELL_SECONDS = 30.0
WITNESSES = 4
SETTLE_SECONDS = 1.0  # after the last attempt


@dataclass
class Battle:
    """What happened."""

    attempts: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)  # to attackers
    successes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of honest nodes
    underpaid: list[str] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)  # by honest nodes
    refusals: Counter[str] = field(default_factory=Counter)
    proofs: dict[str, int] = field(default_factory=dict)  # that each witness knew of
    everywhere: int = 0  # proofs that all honest witnesses knew of
    convicted: list[str] = field(default_factory=list)  # Byzantine witnesses of whose double votes all knew
    epochs: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """No attempt succeeded, no honest node lost anything."""
        return not (self.successes or self.problems or self.underpaid)


@hastened()
def run(
    root: Path,
    attempts: int,
    seed: int,
    *,
    liars: int = 1,
    careless: bool = False,
    stop: bool = False,
    kinds: Sequence[str] = tuple(KINDS),
) -> Battle:
    """So many attempts. `stop`: at the first success, and nothing is looked at then; in an epoch that does not end, for
    with too many faults it might never."""
    began, chance = time.monotonic(), random.Random(seed)
    given = {"liars": liars, "careless": careless, "epoch_seconds": FOR_EVER if stop else EPOCH_SECONDS}
    world = SmallWorld.create(root / "world", SPEED, "real", seed, WITNESSES, **given)
    judge, claims = Judge(world.federation, WITNESSES - liars), Claims(world.federation.quorum, liars)
    lives = {name: Life(world, name, module=_module(world, name)) for name in world.processes}
    try:
        for life in lives.values():
            life.wait_ready()
        trio.run(_attack, world, judge, attempts, chance, stop, kinds)
        time.sleep(SETTLE_SECONDS)
    finally:
        ended = [name for name, life in lives.items() if not life.kill()]
    for name in ended:
        claims.problem(f"{name} ended by itself: {lives[name].errors.read_text(errors='replace')[-800:]}")
    for name, life in lives.items():
        if name in world.honest or name not in world.witnesses:
            life.tell(claims)
    if not (stop and judge.successes):
        trio.run(look, world, claims, chance, True)
    return _battle(judge, claims, world, time.monotonic() - began)


def _module(world: SmallWorld, name: str) -> str:
    byzantine = name in world.witnesses and name not in world.honest
    return "tests.durability.liar" if byzantine else "tests.durability.books"


async def _attack(
    world: SmallWorld, judge: Judge, attempts: int, chance: random.Random, stop: bool, kinds: Sequence[str]
) -> None:
    def left() -> bool:
        return judge.attempts.total() < attempts and not (stop and judge.successes)

    async def attack(number: int) -> None:
        attacker = Attacker(world, judge, number, random.Random(chance.random()), kinds)
        while left():
            try:
                await attacker.attack(left)
            except LineBroken:
                continue

    async def tell() -> None:
        while True:
            await trio.sleep(TELL_SECONDS)
            print(f"{judge.attempts.total()} attempts, {len(judge.successes)} successes", file=sys.stderr)

    async with trio.open_nursery() as telling:
        telling.start_soon(tell)
        async with trio.open_nursery() as nursery:
            for number in range(ATTACKERS):
                nursery.start_soon(attack, number)
        telling.cancel_scope.cancel()


def _battle(judge: Judge, claims: Claims, world: SmallWorld, seconds: float) -> Battle:
    known = [claims.proofs[name] for name in world.honest]
    for name in (*world.names, ISSUER):
        if any(_names(proofs, world, name) for proofs in known):
            claims.problem(f"there is a proof against {name}, who is honest")
    return Battle(
        judge.attempts,
        judge.given,
        judge.successes,
        claims.problems,
        claims.underpaid,
        claims.heard,
        claims.refusals,
        {name: len(claims.proofs[name]) for name in world.honest},
        len(set.intersection(*known)),
        [name for name in world.witnesses if all(_names(proofs, world, name) for proofs in known)],
        max(claims.epochs.values(), default=0),
        round(seconds, 1),
    )


def _names(proofs: set[str], world: SmallWorld, name: str) -> bool:
    return any(proof.endswith(peer_id(world.signers[name].node)) for proof in proofs)


def main() -> int:
    """Run and print the summary; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--liars", type=int, default=1, help="more than one must be found")
    parser.add_argument("--careless", action="store_true", help="an honest witness votes twice; must be found")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="mtor-") as folder:
        battle = run(Path(folder), options.attempts, options.seed, liars=options.liars, careless=options.careless)
    shown: dict[str, Any] = battle.__dict__
    print(json.dumps({key: dict(value) if isinstance(value, Counter) else value for key, value in shown.items()}))
    return 0 if battle.sound else 1


if __name__ == "__main__":
    sys.exit(main())
