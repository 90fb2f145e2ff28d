"""Four witnesses under random use, one of them a liar, another perhaps set back to a backup; owners that double-spend.

Orders, votes and certificates go to whoever the machine likes, in any order; epochs end in several rounds whose
coordinators die, lie or come back. The invariants are those of spec/05-ledger.md, checked after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol import params
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.ids import NO_HASH, NodeId
from protocol.ledger import epochs
from protocol.ledger.audit import verify_log
from protocol.ledger.certificates import open_certificate
from protocol.ledger.channels import open_voucher
from protocol.ledger.checkpoints import (
    Union,
    begin_from,
    epoch_orders,
    epoch_range,
    leaves,
    orders_between,
    state_root,
)
from protocol.ledger.epochs import COMMIT, PREPARE, open_checkpoint, round_of
from protocol.ledger.families import keys_of
from protocol.ledger.orders import AccountOrder, Settlement, voted_object
from protocol.ledger.pruning import prunable, prune
from protocol.ledger.state import (
    ABSTAIN,
    Account,
    Base,
    Channel,
    ChannelStatus,
    View,
    checkpoint_key,
    equivocation_key,
    u64,
)
from protocol.messages import (
    Balloted,
    Certificate,
    Checkpoint,
    Close,
    Commit,
    Consent,
    Decision,
    Propose,
    WitnessSignature,
)
from protocol.signing import Signer
from tests.protocol.federation_world import Liar, Round, WitnessNode, attempt, verify_once
from tests.protocol.ledger_world import ALICE, BOB, CAROL, HOUR, ISSUER, NOW, Mapping, Order, signer
from tests.protocol.vector_world import FOUR

DAVE, DEVICE = signer("dave"), signer("device")
PEOPLE = (ALICE, BOB, CAROL, DAVE)  # Carol signs what she likes
CAREFUL = (ALICE, DAVE, DEVICE)  # never sign two orders with one number in an epoch
NEW_KEYS = tuple(signer(f"key {index}") for index in range(3))
KEYS = {who.node: who for who in (*PEOPLE, DEVICE, ISSUER, *NEW_KEYS)}
QUORUM = FOUR.quorum

people = st.integers(0, len(PEOPLE) - 1)
others = st.sampled_from([0, 1, 3])  # than Carol
amounts = st.sampled_from([1, 7, 1_000, 60_000, 400_000])
recent = st.integers(0, 5)
most = st.sampled_from([15, 15, 15, 7, 11, 13, 14])  # witnesses, a bit for each
some = st.sampled_from([*range(1, 16), *[15, 7, 11, 13, 14] * 3])
one = st.integers(0, 3)


class FederationMachine(RuleBasedStateMachine):
    """The federation, and everything that was ever signed, as nobody in it knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.witnesses: list[WitnessNode] = [WitnessNode.number(index) for index in range(4)]
        self.liar: int | None = None
        self.now = NOW
        self.orders: list[Order] = []
        self.votes: dict[bytes, dict[int, WitnessSignature]] = {}
        self.certificates: dict[bytes, bytes] = {}
        self.certified: dict[tuple[bytes, int, int | None], bytes] = {}  # object, version, epoch -> order
        self.acknowledged: dict[tuple[bytes, int], set[int]] = {}  # order, epoch -> witnesses
        self.final: dict[bytes, int] = {}  # order -> epoch
        self.final_at: dict[tuple[bytes, int], bytes] = {}
        self.said: dict[tuple[object, ...], bytes] = {}  # what a correct witness has signed
        self.rounds: list[Round] = []
        self.proposals: list[tuple[Round, Propose]] = []
        self.commits: list[tuple[Round, Commit]] = []
        self.ballots: dict[tuple[int, int, int, bytes], dict[int, WitnessSignature]] = {}
        self.promised: dict[tuple[int, int], int] = {}  # witness, epoch -> round
        self.committed: dict[tuple[int, int], int] = {}  # witness, epoch -> round + 1
        self.decisions: dict[int, bytes] = {}  # by the epoch that they open
        self.ended_at = 0  # how many orders there were
        self.backups: dict[int, dict[bytes, bytes]] = {}
        self.set_back = False
        self.closes: dict[bytes, Order] = {}  # by channel; of honest workers
        self.pending: dict[bytes, Order] = {}  # of those who wait until an order is done or void

    @initialize(liar=st.sampled_from([None, 0, 1, 2, 3, 3]))
    def begin(self, liar: int | None) -> None:
        self.liar = liar
        if liar is not None:
            self.witnesses[liar] = Liar.number(liar)
        for who in (ALICE, BOB, CAROL, DAVE):
            self._give(self._any().grant(who.node, 1_000_000), 15, 15)

    # --- owners ---

    @rule(payer=st.sampled_from([0, 0, 3]), payee=st.sampled_from([1, 1, 2]), amount=amounts, votes=most, stored=most)
    def hold(self, payer: int, payee: int, amount: int, votes: int, stored: int) -> None:
        account = PEOPLE[payer].node

        def make(node: WitnessNode) -> Order:
            affordable = min(amount, node.view.account(account).balance)
            return node.hold_by(self._key_of(node, account), account, PEOPLE[payee].node, affordable)

        self._carefully(account, make, votes, stored)

    @rule(payee=others, amount=amounts, seen_by=one, votes=some, stored=some)
    def careless_hold(self, payee: int, amount: int, seen_by: int, votes: int, stored: int) -> None:
        """By what one witness knows of her account, perhaps not the last."""
        node = self._correct(seen_by)
        order = node.hold_by(self._key_of(node, CAROL.node), CAROL.node, PEOPLE[payee].node, amount)
        self._give(order, votes, stored)

    @rule(payee=others, amount=amounts, seen_by=one, first=some, second=some, stored=some)
    def two_holds_with_one_number(
        self, payee: int, amount: int, seen_by: int, first: int, second: int, stored: int
    ) -> None:
        for extra, votes in enumerate((first, second)):
            self.careless_hold(payee, amount + extra, seen_by, votes, stored)

    @rule(to=people, amount=amounts, votes=most, stored=some)
    def grant(self, to: int, amount: int, votes: int, stored: int) -> None:
        self._give(self._any().grant(PEOPLE[to].node, amount), votes, stored)

    @rule(amount=amounts, back=st.booleans(), stored=most)
    def device(self, amount: int, back: bool, stored: int) -> None:
        """Alice's sub-account: attached once, then credits move to it and back."""

        def attach(node: WitnessNode) -> Order:
            consent = self._key_of(node, ALICE.node).sign(FOUR.id, encode(Consent(DEVICE.node, ALICE.node)))
            return node.attach(DEVICE, ALICE, consent=consent)

        def move(node: WitnessNode) -> Order:
            return node.move(payer, to.node, amount, by=self._key_of(node, payer.node))

        payer, to = (DEVICE, ALICE) if back else (ALICE, DEVICE)
        attached = self._furthest(DEVICE.node).view.account(DEVICE.node).next_sequence > 0
        if attached:
            self._carefully(payer.node, move, 15, stored)
        else:
            self._carefully(DEVICE.node, attach, 15, stored)

    @rule(owner=st.sampled_from([0, 2]), key=st.integers(0, 2), stored=some, recovery=st.booleans())
    def change_keys(self, owner: int, key: int, stored: int, recovery: bool) -> None:
        account = PEOPLE[owner]

        def make(node: WitnessNode) -> Order:
            standing = node.view.account(account.node)
            named = standing.recovery_at(standing.next_sequence)
            by = KEYS[named] if named is not None else self._key_of(node, account.node)
            change = node.recovery(account, NEW_KEYS[key].node, by=by)
            return change if recovery else node.rotate(account, NEW_KEYS[key], by=by)

        self._carefully(account.node, make, 15, stored)

    @rule(which=recent, units_in=st.integers(0, 900), seen_by=one, votes=some, stored=some)
    def close(self, which: int, units_in: int, seen_by: int, votes: int, stored: int) -> None:
        """Carol signs as many closes as she likes; the others one, of a hold that was final when they served."""
        node = self._correct(seen_by)
        found = [key[1:] for key, value in node.state.iterate(b"c") if value and Channel.decode(value).open]
        if not found:
            return
        channel = found[which % len(found)]
        known = node.channel(channel)
        if known.payee != CAROL.node and (channel not in self.final or channel in self.closes):
            return
        voucher = node.voucher(KEYS[known.payer], channel, min(units_in, known.amount), 0)
        order = node.close(KEYS[known.payee], channel, voucher)
        if known.payee != CAROL.node:
            self.closes[channel] = order
        self._give(order, votes, stored)

    @rule(amount=amounts, units_in=st.integers(0, 900), votes=most, stored=st.sampled_from([1, 2, 4, 8, 15]))
    def hold_and_close(self, amount: int, units_in: int, votes: int, stored: int) -> None:
        """Alice holds for Bob, who closes; his close is at one witness only, perhaps."""
        self.hold(0, 1, amount, 15, 15)
        last = self.pending.get(ALICE.node)
        node = self._furthest(ALICE.node)
        known = node.view.channel(last.hash) if last is not None else None
        if last is None or known is None or not known.open or last.hash not in self.final or last.hash in self.closes:
            return
        voucher = node.voucher(KEYS[known.payer], last.hash, min(units_in, known.amount), 0)
        self.closes[last.hash] = node.close(KEYS[known.payee], last.hash, voucher)
        self._give(self.closes[last.hash], votes, stored)

    # --- delivery ---

    @precondition(lambda self: self.half_voted())
    @rule(which=recent, votes=some, stored=some)
    def ask_for_votes(self, which: int, votes: int, stored: int) -> None:
        found = self.half_voted()
        self._give(found[-1 - which % len(found)], votes, stored)

    @precondition(lambda self: self.half_stored())
    @rule(which=recent, chosen=some)
    def store(self, which: int, chosen: int) -> None:
        found = self.half_stored()
        self._store(found[-1 - which % len(found)], chosen)

    @rule(to=one)
    def hear_everything(self, to: int) -> None:
        self._catch_up(self.witnesses[to])

    @rule(fro=one, to=one)
    def gossip_of_evidence(self, fro: int, to: int) -> None:
        for _, proof in list(self.witnesses[fro].state.iterate(b"e")):
            self.witnesses[to].hear(proof[8:])

    @rule(minutes=st.sampled_from([1, 20, 60, 130]))
    def time_passes(self, minutes: int) -> None:
        """Backups are made."""
        self.backups = {node.index: dict(node.state.values) for node in self._all_correct()}
        self.now += minutes * HOUR // 60
        for node in self.witnesses:
            node.now = self.now

    # --- the end of an epoch ---

    @precondition(lambda self: self.changing())
    @rule(coordinator=one, chosen=most)
    def end_epoch(self, coordinator: int, chosen: int) -> None:
        """One round in one go; the coordinator has heard of the rounds before."""
        roles = [node.role for node in self._all_correct() if node.view.epoch == self.witnesses[coordinator].view.epoch]
        begun = self._begin_round(coordinator, max((known.promised + 1 for known in roles if known), default=0))
        propose = self._join(begun, chosen)
        if propose is not None:
            self._prepare(begun, propose, chosen)
        if self.commits and self.commits[-1][0] is begun:
            self._commit(*self.commits[-1], chosen)

    @rule(left_out=one, amount=amounts, units_in=st.integers(0, 900))
    def end_epoch_without_one(self, left_out: int, amount: int, units_in: int) -> None:
        """It alone has a close; the others end the epoch, and it follows."""
        self.hold_and_close(amount, units_in, 15, 1 << left_out)
        self.end_epoch((left_out + 1) % 4, 15 - (1 << left_out))
        self._adopt(self.witnesses[left_out])

    @precondition(lambda self: self.changing())
    @rule(coordinator=one, chosen=some)
    def begin_a_round(self, coordinator: int, chosen: int) -> None:
        self._join(self._begin_round(coordinator), chosen)

    @precondition(lambda self: self.proposals)
    @rule(which=recent, chosen=some)
    def some_prepare(self, which: int, chosen: int) -> None:
        self._prepare(*self.proposals[-1 - which % len(self.proposals)], chosen)

    @precondition(lambda self: self.commits)
    @rule(which=recent, chosen=some)
    def some_commit(self, which: int, chosen: int) -> None:
        self._commit(*self.commits[-1 - which % len(self.commits)], chosen)

    @precondition(lambda self: self.behind())
    @rule(which=one)
    def adopt(self, which: int) -> None:
        found = self.behind()
        self._adopt(found[which % len(found)])

    @precondition(lambda self: self.liar is not None)
    @rule(which=one, lie=st.integers(0, 3), hides=st.booleans(), some_orders=st.integers(0, 255))
    def another_lie(self, which: int, lie: int, hides: bool, some_orders: int) -> None:
        """What the liar's next snapshot is about: all it has, nothing, what somebody else has, anything."""
        liar = self._liar()
        mine = epoch_orders(liar.state).certificates
        chosen = {identity: data for at, (identity, data) in enumerate(mine.items()) if some_orders >> at % 8 & 1}
        lies = (None, Union({}), epoch_orders(self.witnesses[which].state), Union(chosen))
        liar.pretended, liar.hides = lies[lie], hides

    @precondition(lambda self: self.liar is not None and self.changing())
    @rule(how=st.integers(0, 6), chosen=most)
    def a_forged_proposal(self, how: int, chosen: int) -> None:
        """No correct witness ballots for what does not follow, or for something new beside what was prepared."""
        begun = self._begin_round(self._liar().index)
        propose = self._join(begun, chosen)
        if propose is None:
            return
        checkpoint = open_checkpoint(propose.checkpoint)
        bound = any(promised.prepared for promised in propose.promises)
        forged = (
            replace(checkpoint, state=bytes(32)),
            replace(checkpoint, orders=bytes(32), count=checkpoint.count + 1),
            replace(checkpoint, time_ms=self.now + params.CLOCK_SKEW + 1),
            replace(checkpoint, time_ms=max(0, self.now - params.CHECKPOINT_LAG - 1)),
            replace(checkpoint, sources=checkpoint.sources[:2]),
            replace(checkpoint, previous=bytes(32)),
            replace(checkpoint, time_ms=checkpoint.time_ms + 1) if bound else replace(checkpoint, state=bytes(32)),
        )[how]
        for node in self._chosen(chosen):
            if node.index != self.liar:
                asked = replace(propose, checkpoint=encode(forged))
                assert attempt(node.prepare, asked, self._liar().index, begun.sets) is None, "a forgery was believed"

    @precondition(lambda self: self.liar is not None and self.changing())
    @rule(first=some, second=some, commits=some)
    def two_proposals_in_one_round(self, first: int, second: int, commits: int) -> None:
        """The same promises, two checkpoints: none of the others ballots for both."""
        begun = self._begin_round(self._liar().index)
        begun.ask_to_join(self._chosen(15))
        self._note_promises(begun)
        again = Round(begun.node, begun.number, dict(begun.joined), dict(begun.sets))
        for attempted, votes in ((begun, first), (again, second)):
            propose = attempted.proposal()
            if propose is not None:
                self.proposals.append((attempted, propose))
                self._prepare(attempted, propose, votes)
            self._liar().now += 1  # so the second one has another time
        if self.commits and self.commits[-1][0] in (begun, again):
            self._commit(*self.commits[-1], commits)
        self._liar().now = self.now

    # --- backups ---

    @precondition(lambda self: self.backups)
    @rule(which=one)
    def restore(self, which: int) -> None:
        """One at a time; its memory file says up to which epoch it may have signed."""
        node = self.witnesses[which]
        if which == self.liar or which not in self.backups or any(one.view.abstaining for one in self._all_correct()):
            return
        epoch = node.view.epoch
        node.state.values = dict(self.backups[which])
        node.state.write({ABSTAIN: u64(epoch)})
        node.unions.clear()
        self.set_back = True

    # --- what happens ---

    def _any(self) -> WitnessNode:
        """The correct witness that is furthest."""
        return max(self._all_correct(), key=lambda node: (node.view.epoch, node.view.log_length))

    def _furthest(self, account: NodeId) -> WitnessNode:
        """The correct witness that knows most of an account."""
        return max(self._all_correct(), key=lambda node: (node.view.epoch, node.view.account(account).next_sequence))

    def _carefully(self, account: NodeId, make: Callable[[WitnessNode], Order], votes: int, stored: int) -> None:
        """The order before, if it is neither done nor void; else a new one."""
        node, last = self._furthest(account), self.pending.get(account)
        self.pending[account] = last if last is not None and self._waits(last, node) else make(node)
        self._give(self.pending[account], votes, stored)

    @staticmethod
    def _waits(order: Order, node: WitnessNode) -> bool:
        """Neither done nor void. Its owner remembers its epoch, even if all correct witnesses in that were set back."""
        epoch = _slot(order.body)[2]
        assert epoch is not None
        return epoch > node.view.epoch or (epoch == node.view.epoch and node.view.position(order.hash) is None)

    def _all_correct(self) -> list[WitnessNode]:
        return [node for node in self.witnesses if node.index != self.liar]

    def _correct(self, which: int) -> WitnessNode:
        correct = self._all_correct()
        return correct[which % len(correct)]

    def _liar(self) -> Liar:
        node = self.witnesses[self.liar or 0]
        assert isinstance(node, Liar)
        return node

    def _chosen(self, mask: int) -> list[WitnessNode]:
        """The liar always answers."""
        return [node for node in self.witnesses if mask >> node.index & 1 or node.index == self.liar]

    @staticmethod
    def _key_of(node: WitnessNode, account: NodeId) -> Signer:
        standing = node.view.account(account)
        return KEYS[standing.key_at(account, standing.next_sequence)]

    def behind(self) -> list[WitnessNode]:
        """Those that have a decision to adopt."""
        return [node for node in self.witnesses if node.view.epoch < len(self.decisions)]

    def changing(self) -> bool:
        """True if a witness is frozen already, or some orders were made in this epoch."""
        return len(self.orders) > self.ended_at + 8 or any(node.role is not None for node in self._all_correct())

    def half_voted(self) -> list[Order]:
        """Orders without a certificate."""
        return [order for order in self.orders if order.hash not in self.certificates]

    def half_stored(self) -> list[bytes]:
        """Certificates that some correct witness does not have."""
        correct = self._all_correct()
        return [one for one in self.certificates if any(node.view.position(one) is None for node in correct)]

    def _give(self, order: Order, votes: int, stored: int) -> None:
        """Ask for votes, and store what they make."""
        self.orders.append(order)
        self._submit(order, self._chosen(votes))
        if order.hash in self.certificates:
            self._store(order.hash, stored)

    def _submit(self, order: Order, nodes: Iterable[WitnessNode]) -> None:
        """Ask these witnesses for votes; a quorum of votes makes the certificate."""
        given = self.votes.setdefault(order.hash, {})
        for node in nodes:
            vote = attempt(node.vote, order)
            if vote is not None:
                given[node.index] = vote
                self._note_vote(node, order)
        if len(given) >= QUORUM and order.hash not in self.certificates:
            self._certify(order, list(given.values())[:QUORUM])

    def _note_vote(self, node: WitnessNode, order: Order) -> None:
        """I8: one vote for each number and epoch; for a channel one for ever."""
        if node.index != self.liar:
            key = ("vote", node.index, *_slot(order.body))
            assert self.said.setdefault(key, order.hash) == order.hash, "a correct witness voted twice"

    def _certify(self, order: Order, votes: list[WitnessSignature]) -> None:
        """I3."""
        assert self.certified.setdefault(_slot(order.body), order.hash) == order.hash, "two certificates for one number"
        certificate = Certificate(order.body, order.signature, tuple(sorted(votes, key=lambda vote: vote.witness)))
        self.certificates[order.hash] = encode(certificate)

    def _store(self, identity: bytes, mask: int) -> None:
        for node in self._chosen(mask):
            if attempt(node.store, self.certificates[identity]) is not None:
                epochs = range(len(self.decisions) + 1) if node.index == self.liar else (node.view.epoch,)
                for epoch in epochs:
                    self._acknowledged(identity, epoch, node.index)

    def _acknowledged(self, identity: bytes, epoch: int, witness: int) -> None:
        """No two final orders contradict each other, whatever their epochs."""
        known = self.acknowledged.setdefault((identity, epoch), set())
        known.add(witness)
        if len(known) >= QUORUM:
            self.final.setdefault(identity, epoch)
            order = decode(decode_as(Certificate, self.certificates[identity]).body)
            assert isinstance(order, AccountOrder | Settlement)
            assert self.final_at.setdefault(voted_object(order), identity) == identity, (
                "two final orders for one number"
            )

    def _catch_up(self, node: WitnessNode) -> None:
        """All certificates and decisions, in whatever order they can be taken."""
        while self._adopt(node):
            pass
        left = list(self.certificates)
        while left:
            waiting = [identity for identity in left if not self._hears(node, identity)]
            if len(waiting) == len(left):
                return
            left = waiting

    def _hears(self, node: WitnessNode, identity: bytes) -> bool:
        self._store(identity, 1 << node.index)
        return node.view.position(identity) is not None

    # --- rounds ---

    def _begin_round(self, coordinator: int, joined: int = 0) -> Round:
        """A correct coordinator takes a round above those that it joined or heard of; the liar any, more than once."""
        node = self.witnesses[coordinator]
        known = node.role
        after = max(joined, known.promised + 1 if known is not None else 0)
        last = max((begun.number for begun in self.rounds if begun.epoch == node.view.epoch), default=0)
        number = round_of(FOUR, coordinator, last if coordinator == self.liar else after)
        begun = Round(node, number)
        self.rounds.append(begun)
        return begun

    def _join(self, begun: Round, mask: int) -> Propose | None:
        begun.ask_to_join(self._chosen(mask))
        self._note_promises(begun)
        propose = begun.proposal()
        if propose is not None:
            self.proposals.append((begun, propose))
        return propose

    def _note_promises(self, begun: Round) -> None:
        """I12: who joined takes part in no earlier round, and tells of the highest in which it committed."""
        for index, answer in begun.joined.items():
            if index != self.liar:
                promised = self.promised.setdefault((index, begun.epoch), begun.number)
                self.promised[index, begun.epoch] = max(promised, begun.number)
                assert answer.prepared >= self.committed.get((index, begun.epoch), 0), "a commit was forgotten"

    def _prepare(self, begun: Round, propose: Propose, mask: int) -> None:
        given = [attempt(node.prepare, propose, begun.node.index, begun.sets) for node in self._chosen(mask)]
        known = self._note_ballots(PREPARE, begun, given)
        if len(known) >= QUORUM:
            ballots = tuple(known[index] for index in sorted(known))
            self.commits.append((begun, Commit(begun.number, begun.checkpoint, ballots)))

    def _commit(self, begun: Round, request: Commit, mask: int) -> None:
        given = [attempt(node.commit_to, request, begun.node.index) for node in self._chosen(mask)]
        known = self._note_ballots(COMMIT, begun, given)
        if len(known) >= QUORUM:
            self._decided(begun, epochs.decision(FOUR, begun.checkpoint, begun.number, known.values()))

    def _note_ballots(self, phase: int, begun: Round, given: Iterable[Balloted | None]) -> dict[int, WitnessSignature]:
        """I8: one ballot for each phase and round. All that are known for this checkpoint."""
        identity = body_hash(begun.checkpoint)
        known = self.ballots.setdefault((phase, begun.epoch, begun.number, identity), {})
        for ballot in begun.ballots(phase, given):
            known[ballot.witness] = ballot
            if ballot.witness != self.liar:
                key = ("ballot", ballot.witness, phase, begun.epoch, begun.number)
                assert self.said.setdefault(key, identity) == identity, "a correct witness balloted twice in a round"
                taking_part = (ballot.witness, begun.epoch)
                assert begun.number >= self.promised.get(taking_part, 0), "a promise was broken"
                if phase == COMMIT:
                    self.committed[taking_part] = max(self.committed.get(taking_part, 0), begun.number + 1)
        return known

    def _decided(self, begun: Round, decision: bytes) -> None:
        """I12."""
        self.ended_at = len(self.orders)
        known = self.decisions.setdefault(begun.epoch + 1, decision)
        assert decode_as(Decision, known).body == begun.checkpoint, "two decisions for one epoch"

    def _adopt(self, node: WitnessNode) -> bool:
        """Go over to the next epoch, if it is decided; I13."""
        decision = self.decisions.get(node.view.epoch + 1)
        if decision is None:
            return False
        checkpoint = open_checkpoint(decode_as(Decision, decision).body)
        before = self._keys(node, checkpoint.epoch - 1)
        held = [key[1:] for key, _ in node.state.iterate(b"o")]
        void, _ = node.go_over(decision, self._union(checkpoint))
        self._check_settled(node, checkpoint, held, void)
        assert state_root(Base(node.state, checkpoint.epoch)) == checkpoint.state
        after = self._keys(node, checkpoint.epoch)
        assert all(after[account][: len(keys)] == keys for account, keys in before.items()), "a key was forgotten"
        return True

    @staticmethod
    def _check_settled(node: WitnessNode, checkpoint: Checkpoint, held: list[bytes], void: Union) -> None:
        """Holds return REFUND_DELAY after they expired, and no close is lost whose channel is still there."""
        for channel in held:
            known = node.view.channel(channel)
            if known is not None and known.status is ChannelStatus.REFUNDED:
                assert known.expiry_ms + params.REFUND_DELAY <= checkpoint.time_ms, "a hold returned early"
        for certificate in void.certificates.values():
            order = decode(open_certificate(certificate).body)
            if isinstance(order, Close):
                known = node.view.channel(order.channel)
                assert known is None or not known.open, "a close was lost"

    @staticmethod
    def _keys(node: WitnessNode, epoch: int) -> dict[bytes, tuple[bytes, ...]]:
        """I14: what is known of keys and owners at the beginning of an epoch."""
        base = Base(node.state, epoch)
        found = {key[1:]: Account.decode(value) for key, value in base.iterate(b"a")}
        known = {account: keys_of(View(base), account) for account in found}
        owners = {b"owner" + account: (state.owner,) for account, state in found.items() if state.owner != NO_HASH}
        return {**known, **owners}

    def _union(self, checkpoint: Checkpoint) -> Union:
        """Some correct witness has it: in its memory, in its log, or among its ended epochs."""
        for node in self._all_correct():
            places = epoch_range(node.view, checkpoint.epoch - 1)
            ended = orders_between(node.state, *places) if places is not None else Union({})
            for union in (*node.unions.values(), epoch_orders(node.state), ended):
                if union.root == checkpoint.orders:
                    return union
        raise AssertionError("the orders of a decided epoch are nowhere to be had")

    # --- invariants ---

    @invariant()
    def nothing_is_made_or_lost_and_nobody_overdraws(self) -> None:
        """I1, I2, I5, at every correct witness, mid-epoch and after."""
        for node in self._all_correct():
            total = 0
            for key, value in node.state.iterate(b"a"):
                balance = Account.decode(value).balance
                total += balance
                assert balance >= FOUR.floor(NodeId(key[1:])), "below the floor"
            for _, value in node.state.iterate(b"c"):
                channel = Channel.decode(value)
                total += channel.amount if channel.open else 0
                assert 0 <= channel.paid <= channel.amount
            assert total == 0

    @invariant()
    def what_is_final_is_in_every_later_state(self) -> None:
        """I7."""
        for node in self._all_correct():
            epoch = node.view.epoch
            for identity, final_in in self.final.items():
                assert final_in >= epoch or node.view.position(identity) is not None, "a final order was lost"

    @invariant()
    def the_states_at_the_beginning_of_an_epoch_are_the_same(self) -> None:
        """I13, at all who are in one epoch; that it is the checkpoint's is checked when it is adopted."""
        beginnings: dict[int, dict[bytes, tuple[int, bytes]]] = {}
        for node in self._all_correct():
            epoch = node.view.epoch
            accounts = {key: Account.decode(value) for key, value in Base(node.state, epoch).iterate(b"a")}
            found = {key: (account.balance, account.head) for key, account in accounts.items()}
            assert beginnings.setdefault(epoch, found) == found, "two beginnings of one epoch"
            assert epoch <= len(self.decisions)

    @invariant()
    def nothing_can_be_proved_against_an_honest_owner(self) -> None:
        for node in self._all_correct():
            assert all(node.state.get(equivocation_key(who.node)) is None for who in CAREFUL)

    # --- the end ---

    def teardown(self) -> None:
        """The correct ones meet, end the epoch, and everybody gets what is due (I11); the audit agrees everywhere."""
        if not self.orders:  # the first rule failed
            return
        active = [node for node in self._all_correct() if not node.view.abstaining]
        if len(active) >= QUORUM:
            self._finish(active)
        for node in self._all_correct():
            self._check_audit(node.state)
        self._check_newcomer(self._any())
        self._check_pruned(self._any())
        self.nothing_is_made_or_lost_and_nobody_overdraws()
        self.what_is_final_is_in_every_later_state()

    @staticmethod
    def _check_audit(state: Mapping) -> None:
        report = verify_log(FOUR, state, signatures=True, check=verify_once)
        assert report.verified, report.problems

    def _check_newcomer(self, node: WitnessNode) -> None:
        """Somebody who begins from the last checkpoint has the same state, and goes on with the epoch's orders."""
        view, epoch, new = node.view, node.view.epoch, WitnessNode.number(0)
        identity = node.state.get(checkpoint_key(epoch)) or b""
        decision, position = view.record(identity), view.position(identity)
        if decision is None or position is None:
            return
        new.state.write(begin_from(new.state, decision, leaves(Base(node.state, epoch)), position))
        assert state_root(new.state) == state_root(Base(node.state, epoch))
        for place in range(view.epoch_start, view.log_length):
            new.apply(view.logged(place) or b"")
        assert state_root(new.state) == state_root(node.state)
        self._check_audit(new.state)

    def _check_pruned(self, node: WitnessNode) -> None:
        """What is left after pruning is a true ledger."""
        left, epoch = Mapping(), node.view.epoch
        left.values = dict(node.state.values)
        if prunable(left, epoch):
            for puts in prune(left, epoch):
                left.write(puts)
            assert View(left).first_epoch == epoch and state_root(left) == state_root(node.state)
            self._check_audit(left)

    def _finish(self, active: list[WitnessNode]) -> None:
        """The liar is silent from now on."""
        self._meet(active)
        self._end_together(active)
        paid = not (self.set_back and self.liar is not None)
        for channel, order in self.closes.items():
            self._to_the_end(order, active)
            if paid:
                self._check_paid(active, channel, order)
        node = active[0]
        if node.view.account(DAVE.node).balance > 0:
            order = node.hold(DAVE, CAROL.node, 1)
            self._to_the_end(order, active)
            assert all(one.view.position(order.hash) is not None for one in active), "an honest owner is stuck"

    def _to_the_end(self, order: Order, active: list[WitnessNode]) -> None:
        """Ask these and no others."""
        self._submit(order, active)
        if order.hash in self.certificates:
            for node in active:
                attempt(node.store, self.certificates[order.hash])

    def _meet(self, active: list[WitnessNode]) -> None:
        for node in active:
            self._catch_up(node)
        assert {node.view.epoch for node in active} == {len(self.decisions)}

    def _end_together(self, active: list[WitnessNode]) -> None:
        """Any correct coordinator brings the epoch to its end, whatever was begun."""
        joined = [node.role.promised + 1 for node in active if node.role is not None]
        begun = Round(active[-1], round_of(FOUR, active[-1].index, max(joined, default=0)))
        decision = begun.run(active)
        assert decision is not None, "the correct witnesses cannot end the epoch"
        self._decided(begun, decision)
        self._meet(active)

    def _check_paid(self, active: list[WitnessNode], channel: bytes, order: Order) -> None:
        """A worker whose hold was final is paid, unless it was late by more than REFUND_DELAY."""
        owed = open_voucher(decode_as(Close, order.body).voucher).cumulative
        for node in active:
            known = node.channel(channel)
            late = known.expiry_ms + params.REFUND_DELAY <= self.now
            assert known.status is ChannelStatus.CLOSED or late, "a worker was not paid"
            assert known.status is not ChannelStatus.CLOSED or known.paid == owed


def _slot(body: bytes) -> tuple[bytes, int, int | None]:
    """What a witness votes for once: object, number, and the epoch if it is an account's order."""
    order = decode(body)
    assert isinstance(order, AccountOrder | Settlement)
    return (*voted_object(order), order.epoch if isinstance(order, AccountOrder) else None)


TestFederationMachine = pytest.mark.slow(pytest.mark.no_cover(FederationMachine.TestCase))  # covers nothing new
TestFederationMachine.settings = settings(
    max_examples=130,
    stateful_step_count=100,
    deadline=None,
    phases=[Phase.generate],  # making a failure smaller takes minutes, and does not find it
    report_multiple_bugs=False,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
