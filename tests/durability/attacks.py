"""Attempts to spend twice, or what is not there, by people with keys of their own who bypass the bookkeeper.

Rule: an attacker knows everything, asks every witness for everything in any order, has the Byzantine one's help, and
brings what it gets to honest workers. The judge counts what was given to it: votes, certificates, acknowledgements,
service. It needs no luck to find a success: two certified orders with one number are one, whatever became of them.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import trio

from node.ledger_peers import PeerUnreachable
from protocol.codec import body_hash, decode, encode
from protocol.errors import BadSignature
from protocol.ids import ChannelId, NodeId
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, Settlement, voted_object
from protocol.ledger.state import first_head
from protocol.messages import (
    Certificate,
    Close,
    DoubleVote,
    Evidence,
    FetchStanding,
    Grant,
    Hold,
    Message,
    Move,
    Pay,
    Refund,
    RequestVote,
    Standing,
    StoreCertificate,
    Stored,
    Vote,
    Voted,
    Voucher,
    WitnessSignature,
)
from protocol.params import HOURS
from protocol.signing import Signer, verify
from tests.durability.books import GRANT
from tests.durability.small_world import WORKERS, SmallWorld
from tests.durability.wire import LineBroken, RemotePeers, connect
from tests.protocol.ledger_world import signer

AMOUNT = GRANT * 4 // 5  # of a hold: one fits, two do not
PRICES, TRANSCRIPT = (1_000, 3_000), b"t" * 32  # as the workers want it
UNITS = 1_000  # tokens that an attacker lets a worker serve: 4,000 µcredits
CALM_SECONDS = 0.3  # between two tries of something that the federation is too busy for
PATIENCE_SECONDS = 1.0
TRIES = 40
OLD_KEPT = 50

Votes = dict[int, WitnessSignature]


@dataclass
class Judge:
    """What the attackers were given."""

    federation: Federation
    honest: int  # witnesses with a lower index
    votes: defaultdict[tuple[int, bytes, int, int], dict[bytes, bytes]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    certified: defaultdict[tuple[bytes, int, int], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    served: defaultdict[tuple[bytes, int, int], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    double_votes: list[bytes] = field(default_factory=list)  # proofs against witnesses, for whoever wants them
    attempts: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    successes: list[str] = field(default_factory=list)

    def success(self, text: str) -> None:
        """An attacker got what nobody may get."""
        print(f"SUCCESS: {text}", file=sys.stderr)
        self.successes.append(text)

    def vote(self, index: int, request: RequestVote, voted: Voted) -> WitnessSignature | None:
        """Note a witness's vote; None if it is none."""
        object_id, version, _ = key = place_of(request.body)
        vote = encode(Vote(body_hash(request.body), version, object_id))
        try:
            verify(NodeId(self.federation.genesis.witnesses[index]), self.federation.id, vote, voted.signature)
        except BadSignature:
            return None
        self.given["votes"] += 1
        known = self.votes[index, *key]
        known[request.body] = voted.signature
        if index < self.honest and len(known) > 1:
            self.success(f"witness {index} voted for two orders with number {version} of {object_id.hex()[:12]}")
        if len(known) == 2:
            (first, first_vote), (second, second_vote) = known.items()
            self.double_votes.append(encode(DoubleVote(index, first, first_vote, second, second_vote)))
        return WitnessSignature(index, voted.signature)

    def certificate(self, request: RequestVote, votes: Votes) -> bytes | None:
        """The certificate, if there are votes of a quorum."""
        if len(votes) < self.federation.quorum:
            return None
        self._note(self.certified, "certified", request.body)
        chosen = [votes[index] for index in sorted(votes)][: self.federation.quorum]
        return encode(Certificate(request.body, request.signature, tuple(chosen)))

    def service(self, body: bytes) -> None:
        """A worker took a voucher for a hold."""
        self._note(self.served, "served", body)

    def _note(self, known: defaultdict[tuple[bytes, int, int], set[bytes]], what: str, body: bytes) -> None:
        self.given[what] += 1
        key = place_of(body)
        known[key].add(body_hash(body))
        if len(known[key]) > 1:
            self.success(f"two orders with number {key[1]} of {key[0].hex()[:12]} in epoch {key[2]} were {what}")


def place_of(body: bytes) -> tuple[bytes, int, int]:
    """For what an honest witness votes once: object, version, and the epoch (0 for a settlement: its vote lasts)."""
    order = decode(body)
    assert isinstance(order, AccountOrder | Settlement)
    object_id, version = voted_object(order)
    return object_id, version, order.epoch if isinstance(order, AccountOrder) else 0


@dataclass
class Old:
    """A certificate that was never used, for later."""

    payer: Signer
    hold: RequestVote
    certificate: bytes
    epoch: int


class Attacker:
    """One who tries one thing after the other."""

    def __init__(
        self, world: SmallWorld, judge: Judge, number: int, chance: random.Random, kinds: Sequence[str]
    ) -> None:
        self.world = world
        self.judge = judge
        self.chance = chance
        self.kinds = kinds
        self.number = number
        self.name = f"attacker {number}"
        sockets = {signer(name).node: world.socket(name) for name in world.witnesses}
        self.nodes = list(sockets)
        self.peers = RemotePeers(signer(self.name).node, sockets)
        self.made = 0
        self.old: list[Old] = []

    async def attack(self, left: Callable[[], bool]) -> None:
        """Attempt after attempt, while there are any left."""
        while left():
            kind = self.chance.choice(self.kinds)
            if await KINDS[kind](self):
                self.judge.attempts[kind] += 1
            await self._betray()

    async def _betray(self) -> None:
        """What proves that the Byzantine witness voted twice goes to one of the others."""
        if self.judge.double_votes:
            message = encode(Evidence(1, (self.chance.choice(self.judge.double_votes),)))
            async with connect(self.world.socket(self.chance.choice(self.world.honest))) as line:
                await line.ask({"gossip": message.hex()})

    # --- what everybody can do ---

    async def account(self) -> Signer:
        """A new one that was granted `GRANT` once."""
        for _ in range(TRIES):
            self.made += 1  # a grant whose answer was lost may still come: never ask twice for one account
            owner = signer(f"{self.name}, account {self.made}")
            try:
                async with connect(self.world.socket("witness-0")) as line:
                    if (await line.ask({"grant": owner.node.hex()})).get("granted"):
                        return owner
            except LineBroken:
                pass
            await trio.sleep(CALM_SECONDS)
        raise LineBroken("no credits to be had")

    async def epoch(self) -> int:
        """The one in force at most honest witnesses."""
        for _ in range(TRIES):
            known = Counter[int]()
            for node in self.nodes[: self.judge.honest]:
                try:
                    answer = await self.peers.ask(node, FetchStanding(), Standing)
                except PeerUnreachable:
                    continue
                if isinstance(answer, Standing):
                    known[answer.epoch] += 1
            if known:
                return known.most_common(1)[0][0]
            await trio.sleep(CALM_SECONDS)
        raise LineBroken("no witness answers")

    def request(self, owner: Signer, order: Message) -> RequestVote:
        """An order and its owner's signature."""
        body = encode(order)
        return RequestVote(body, owner.sign(self.world.federation.id, body))

    def hold(self, payer: Signer, payee: NodeId, epoch: int, amount: int = AMOUNT) -> Hold:
        """An account's first order."""
        expiry = self.world.now_ms() + HOURS
        quote = self.chance.randbytes(32)
        return Hold(payer.node, 0, first_head(payer.node), payee, amount, *PRICES, expiry, quote, epoch)

    def pay(self, payer: Signer, channel: bytes, units: int) -> Pay:
        """A voucher."""
        amount = units * sum(PRICES) // 1_000
        voucher = encode(Voucher(ChannelId(channel), amount, units, units, TRANSCRIPT))
        return Pay(voucher, payer.sign(self.world.federation.id, voucher))

    async def votes(self, request: RequestVote, indexes: Iterable[int]) -> Votes:
        """Votes of these witnesses, in whatever order they come."""
        found: Votes = {}

        async def ask(index: int) -> None:
            try:
                answer = await self.peers.ask(self.nodes[index], request, Voted)
            except PeerUnreachable:
                return
            vote = self.judge.vote(index, request, answer) if isinstance(answer, Voted) else None
            if vote is not None:
                found[index] = vote

        await self._at_once(ask, indexes)
        return found

    async def certificate(self, request: RequestVote, votes: Votes | None = None) -> bytes | None:
        """All are asked, again while the epoch changes or they have not heard of everything."""
        found = votes or {}
        for _ in range(4):
            missing = [index for index in range(len(self.nodes)) if index not in found]
            found |= await self.votes(request, missing)
            certificate = self.judge.certificate(request, found)
            if certificate is not None:
                return certificate
            await trio.sleep(CALM_SECONDS / 2)
        return None

    async def store(self, certificate: bytes, indexes: Iterable[int]) -> dict[int, int]:
        """Which honest witnesses say that they stored it, and in which epoch."""
        stored: dict[int, int] = {}

        async def ask(index: int) -> None:
            try:
                answer = await self.peers.ask(self.nodes[index], StoreCertificate(certificate), Stored)
            except PeerUnreachable:
                return
            if isinstance(answer, Stored) and index < self.judge.honest:
                stored[index] = answer.epoch

        await self._at_once(ask, indexes)
        return stored

    async def _at_once(self, ask: Callable[[int], Awaitable[None]], indexes: Iterable[int]) -> None:
        """Ask witnesses; nobody waits long for a silent one."""
        with trio.move_on_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for index in indexes:
                    nursery.start_soon(ask, index)

    async def spend(self, payer: Signer, request: RequestVote) -> bool:
        """Have the hold's worker serve, and give it a voucher. True if it took that."""
        order = decode(request.body)
        assert isinstance(order, Hold)
        worker = next(name for name in WORKERS if signer(name).node == order.payee)
        channel = body_hash(request.body)
        try:
            async with connect(self.world.socket("workers")) as line:
                greeting = {"worker": worker, "channel": channel.hex(), "payer": payer.node.hex(), "do": "query"}
                if "counts" not in await line.ask(greeting):
                    return False
                pay = self.pay(payer, channel, UNITS)
                voucher = {"voucher": pay.voucher.hex(), "signature": pay.signature.hex(), "counts": [UNITS, UNITS]}
                taken = "cumulative" in await line.ask(voucher)
                await line.send({"end": True})
        except LineBroken:
            return False
        if taken:
            self.judge.service(request.body)
        return taken

    def some(self) -> list[int]:
        """Some witnesses."""
        return self.chance.sample(range(len(self.nodes)), self.chance.randint(1, len(self.nodes)))

    def two_workers(self) -> list[NodeId]:
        """In any order."""
        return [signer(name).node for name in self.chance.sample(WORKERS, 2)]

    # --- attempts; each returns whether it was one ---

    async def split(self) -> bool:
        """Two holds with one number, each to some honest witnesses and to all others; both are brought to workers."""
        payer, epoch = await self.account(), await self.epoch()
        holds = [self.request(payer, self.hold(payer, worker, epoch)) for worker in self.two_workers()]
        honest = list(range(self.judge.honest))
        self.chance.shuffle(honest)
        cut = self.chance.randint(1, len(honest) - 1) if len(honest) > 1 else 1
        others = range(self.judge.honest, len(self.nodes))
        parts = ([*honest[:cut], *others], [*honest[cut:], *others])

        async def use(hold: RequestVote, indexes: list[int]) -> None:
            await trio.sleep(self.chance.uniform(0.0, 0.02))
            certificate = await self.certificate(hold, await self.votes(hold, indexes))
            if certificate is not None:
                await self.store(certificate, self.some())
                await self.spend(payer, hold)

        async with trio.open_nursery() as nursery:
            for hold, part in zip(holds, parts, strict=True):
                nursery.start_soon(use, hold, part)
        return True

    async def race(self) -> bool:
        """Two holds with one number to everybody at the same time, brought to workers before anybody stored them."""
        payer, epoch = await self.account(), await self.epoch()
        holds = [self.request(payer, self.hold(payer, worker, epoch)) for worker in self.two_workers()]

        async def use(hold: RequestVote) -> None:
            certificate = await self.certificate(hold)
            if certificate is not None:
                await self.store(certificate, [self.chance.randrange(len(self.nodes))])
                await self.spend(payer, hold)

        async with trio.open_nursery() as nursery:
            for hold in holds:
                nursery.start_soon(use, hold)
        return True

    async def replay(self) -> bool:
        """A certificate of an earlier epoch, kept back; its number is used again; then the old one is brought."""
        epoch = await self.epoch()
        ripe = [old for old in self.old if old.epoch < epoch]
        if not ripe:
            await self._keep_back(epoch)
            return False
        old = self.chance.choice(ripe)
        self.old.remove(old)
        worker = next(node for node in self.two_workers() if node != decode(old.hold.body).payee)  # type: ignore[attr-defined]
        fresh = self.request(old.payer, self.hold(old.payer, worker, epoch))
        certificate = await self.certificate(fresh)
        first = certificate is not None and await self.spend(old.payer, fresh)
        for index, stored in (await self.store(old.certificate, range(len(self.nodes)))).items():
            if stored != old.epoch:  # one that has not heard of the end of its epoch yet keeps it until then
                self.judge.success(f"witness {index} stored an order of epoch {old.epoch} in epoch {stored}")
        if await self.spend(old.payer, old.hold):
            self.judge.success(f"a hold of epoch {old.epoch} was served in epoch {epoch}; its number's next: {first}")
        return True

    async def _keep_back(self, epoch: int) -> None:
        if len(self.old) < OLD_KEPT:
            payer = await self.account()
            hold = self.request(payer, self.hold(payer, signer(WORKERS[0]).node, epoch))
            certificate = await self.certificate(hold)
            if certificate is not None:
                self.old.append(Old(payer, hold, certificate, epoch))

    async def overdraft(self) -> bool:
        """A hold above the balance, or a second one behind the first."""
        payer, epoch = await self.account(), await self.epoch()
        hold = self.hold(payer, self.two_workers()[0], epoch, GRANT + 1)
        if self.chance.random() < 0.5:
            first = self.request(payer, replace(hold, amount=AMOUNT))
            certificate = await self.certificate(first)
            if certificate is not None:
                await self.store(certificate, self.some())
            hold = replace(hold, sequence=1, previous=body_hash(first.body), amount=AMOUNT)
        await self._illegal(payer, hold, "a hold above the balance")
        return True

    async def _illegal(self, owner: Signer, order: Message, what: str) -> None:
        """An order for which no honest witness may vote; the others' votes are filled up with invented ones."""
        request = self.request(owner, order)
        votes = await self.votes(request, range(len(self.nodes)))
        for index in votes:
            if index < self.judge.honest:
                self.judge.success(f"witness {index} voted for {what}")
        await self._forge(request, votes, what)
        if isinstance(order, Hold) and order.payee in {signer(name).node for name in WORKERS}:
            payer = owner if owner.node == order.payer else signer("nobody")
            if await self.spend(payer, request):
                self.judge.success(f"{what} was served")

    async def _forge(self, request: RequestVote, votes: Votes, what: str) -> None:
        """A certificate from what there is: too few votes, one vote several times, under other names, by chance."""
        signatures = [vote.signature for vote in votes.values()] or [self.chance.randbytes(64)]
        own = list(votes.values())
        filled = [WitnessSignature(index, self.chance.choice(signatures)) for index in range(len(self.nodes))]
        tries = [filled, own * 3, own, [*own, *filled][: self.world.federation.quorum]]
        listed = tuple(self.chance.choice([votes for votes in tries if votes]))[: len(self.nodes)]
        certificate = encode(Certificate(request.body, request.signature, listed))
        for index in await self.store(certificate, range(len(self.nodes))):
            self.judge.success(f"witness {index} stored {what}")

    async def _channel(self) -> tuple[Signer, Signer, bytes] | None:
        """A hold of one attacker for another, stored by all."""
        payer, payee, epoch = await self.account(), signer(f"{self.name}'s friend"), await self.epoch()
        request = self.request(payer, self.hold(payer, payee.node, epoch))
        certificate = await self.certificate(request)
        if certificate is None or not await self.store(certificate, range(len(self.nodes))):
            return None
        return payer, payee, body_hash(request.body)

    async def two_closes(self) -> bool:
        """One channel settled by two vouchers, at different witnesses."""
        opened = await self._channel()
        if opened is None:
            return False
        payer, payee, channel = opened
        pays = [self.pay(payer, channel, units) for units in self.chance.sample(range(1, 200_000), 2)]
        closes = [self.request(payee, Close(ChannelId(channel), pay.voucher, pay.signature)) for pay in pays]

        async def use(close: RequestVote, indexes: list[int]) -> None:
            certificate = await self.certificate(close, await self.votes(close, indexes))
            if certificate is not None:
                await self.store(certificate, self.some())

        async with trio.open_nursery() as nursery:
            for close in closes:
                nursery.start_soon(use, close, self.some())
        return True

    async def forged_voucher(self) -> bool:
        """A channel settled by a voucher that its payer never signed, or above what it holds, or by a stranger."""
        opened = await self._channel()
        if opened is None:
            return False
        payer, payee, channel = opened
        stranger = signer("stranger")
        by_payer, by_payee = self.pay(payer, channel, 5), self.pay(payee, channel, 100_000)
        too_much = self.pay(payer, channel, AMOUNT)
        owner, pay = self.chance.choice([(payee, by_payee), (payee, too_much), (stranger, by_payer)])
        await self._illegal(owner, Close(ChannelId(channel), pay.voucher, pay.signature), "a close with a bad voucher")
        return True

    async def move(self) -> bool:
        """Credits to an account that is not the owner's."""
        payer, epoch = await self.account(), await self.epoch()
        to = self.chance.choice([signer(f"{self.name}'s friend").node, *self.two_workers()])
        move = Move(payer.node, 0, first_head(payer.node), to, AMOUNT, epoch)
        await self._illegal(payer, move, "a move to a stranger")
        return True

    async def impostor(self) -> bool:
        """Orders of others: a grant, a hold of somebody else's credits, a refund."""
        payer, epoch = await self.account(), await self.epoch()
        stranger = signer("stranger")
        hold = self.hold(payer, self.two_workers()[0], epoch)
        channel = ChannelId(self.chance.randbytes(32))
        grant = Grant(stranger.node, 0, first_head(stranger.node), payer.node, AMOUNT, epoch)
        orders = [hold, grant, Refund(stranger.node, channel, self.world.now_ms())]
        await self._illegal(stranger, self.chance.choice(orders), "an order of a stranger")
        return True


KINDS: dict[str, Callable[[Attacker], Awaitable[bool]]] = {
    "split": Attacker.split,
    "race": Attacker.race,
    "replay": Attacker.replay,
    "overdraft": Attacker.overdraft,
    "two closes": Attacker.two_closes,
    "forged voucher": Attacker.forged_voucher,
    "move": Attacker.move,
    "impostor": Attacker.impostor,
}
