"""The ledger under random use: honest and stale orders, equivocation, replays, any order of delivery.

The invariants are those of spec/05-ledger.md, as far as one witness can break them.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.codec import decode, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.state import Account, Channel
from protocol.messages import Certificate, Grant, Hold
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, ISSUER, Mapping, Order, World

PEOPLE = (ALICE, BOB, CAROL)
people = st.integers(0, len(PEOPLE) - 1)

# What a witness may answer to an order that was made from a stale or wrong view.
HONEST_REFUSALS = {
    ErrorCode.EQUIVOCATION,
    ErrorCode.BAD_SEQUENCE,
    ErrorCode.INSUFFICIENT_FUNDS,
    ErrorCode.SUPPLY_CAP,
    ErrorCode.CHANNEL_CLOSED,
    ErrorCode.BAD_VOUCHER,
    ErrorCode.EXPIRED,
    ErrorCode.INVALID_REQUEST,
}


class LedgerMachine(RuleBasedStateMachine):
    """One witness, a replica that hears certificates in any order, and owners who try everything."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.replica = World()
        self.orders: list[Order] = []  # everything that was ever signed
        self.certificates: list[bytes] = []
        self.voted: dict[tuple[bytes, int], bytes] = {}  # (object, version) -> order
        for person in PEOPLE:
            self._submit(self.world.grant(person.node, 1_000_000))

    # --- what owners do ---

    @rule(to=people, amount=st.integers(1, 4_000_000))
    def grant(self, to: int, amount: int) -> None:
        self._submit(self.world.grant(PEOPLE[to].node, amount))

    @rule(payer=people, payee=people, amount=st.integers(1, 1_500_000))
    def hold(self, payer: int, payee: int, amount: int) -> None:
        self._submit(self.world.hold(PEOPLE[payer], PEOPLE[payee].node, amount))

    @rule(payer=people, payee=people, amounts=st.tuples(st.integers(1, 900), st.integers(901, 1_900)))
    def two_holds_with_one_number(self, payer: int, payee: int, amounts: tuple[int, int]) -> None:
        for order in [self.world.hold(PEOPLE[payer], PEOPLE[payee].node, amount) for amount in amounts]:
            self._submit(order)

    @rule(which=st.integers(0, 99), units_in=st.integers(0, 900_000), units_out=st.integers(0, 300_000))
    def close(self, which: int, units_in: int, units_out: int) -> None:
        channel = self._channel(which)
        if channel is None:
            return
        state = self.world.channel(channel)
        payer, payee = (next(person for person in PEOPLE if person.node == key) for key in (state.payer, state.payee))
        voucher = self.world.voucher(payer, channel, units_in, units_out)
        self._submit(self.world.close(payee, channel, voucher))

    @rule(which=st.integers(0, 99))
    def refund(self, which: int) -> None:
        channel = self._channel(which)
        if channel is not None:
            self._submit(self.world.refund(channel))

    @rule(which=st.integers(0, 999))
    def again(self, which: int) -> None:
        self._submit(self.orders[which % len(self.orders)])

    @rule(hours=st.integers(1, 2))
    def time_passes(self, hours: int) -> None:
        self.world.now += hours * HOUR

    # --- delivery ---

    @rule(which=st.integers(0, 999))
    def deliver(self, which: int) -> None:
        self._deliver(self.certificates[which % len(self.certificates)])

    @rule(which=st.integers(0, 999))
    def a_repeated_certificate_changes_nothing(self, which: int) -> None:
        before = dict(self.world.state.values)
        assert self.world.apply(self.certificates[which % len(self.certificates)]).repeated
        assert self.world.state.values == before

    @precondition(lambda self: len(self.certificates) > 3)
    @rule(order=st.randoms(use_true_random=False))
    def any_order_of_delivery_converges(self, order: object) -> None:
        """I6."""
        late = World()
        left = list(self.certificates)
        order.shuffle(left)  # type: ignore[attr-defined]
        while left:
            refused = [certificate for certificate in left if not _applied(late, certificate)]
            assert len(refused) < len(left), "no certificate can be applied, and some are left"
            left = refused
        assert _derived(late.state) == _derived(self.world.state)

    # --- invariants ---

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        """I1, at the witness and at a replica that has heard a part."""
        for world in (self.world, self.replica):
            balances = [Account.decode(value).balance for _, value in world.state.iterate(b"a")]
            channels = [Channel.decode(value) for _, value in world.state.iterate(b"c")]
            assert sum(balances) + sum(channel.amount for channel in channels if channel.open) == 0

    @invariant()
    def nobody_is_below_the_floor(self) -> None:
        """I2."""
        for key, value in self.world.state.iterate(b"a"):
            floor = -FEDERATION.genesis.supply_cap if key[1:] == ISSUER.node else 0
            assert Account.decode(value).balance >= floor

    @invariant()
    def chains_are_dense_and_linked(self) -> None:
        """I3, I4: one order for each number, each naming the one before it."""
        for who in (ISSUER, *PEOPLE):
            account = self.world.view.account(who.node)
            head = World().view.account(who.node).head
            for sequence in range(account.next_sequence):
                stored = self.world.view.record(self.world.view.order_at(who.node, sequence) or b"")
                assert stored is not None
                order = decode(decode_as(Certificate, stored).body)
                assert isinstance(order, Grant | Hold)
                assert (order.sequence, order.previous) == (sequence, head)
                head = self.world.view.order_at(who.node, sequence)
            assert account.head == head

    @invariant()
    def a_paid_channel_paid_no_more_than_its_hold(self) -> None:
        """I5."""
        for _, value in self.world.state.iterate(b"c"):
            channel = Channel.decode(value)
            assert 0 <= channel.paid <= channel.amount

    def teardown(self) -> None:
        """The audit agrees, and every certificate is its own canonical encoding (I9)."""
        report = self.world.audit(signatures=True)
        assert report.verified, report.problems
        for certificate in self.certificates:
            assert encode(decode(certificate)) == certificate

    # --- helpers ---

    def _submit(self, order: Order) -> None:
        """Ask for a vote, and apply at once what got one. I8: one order for each (object, version)."""
        self.orders.append(order)
        try:
            certificate = self.world.certificate(order)
        except Refused as refusal:
            assert refusal.code in HONEST_REFUSALS, refusal
            return
        checked = self.world.check(order)
        assert self.voted.setdefault((checked.object, checked.version), checked.hash) == checked.hash
        if not self.world.apply(certificate).repeated:
            self.certificates.append(certificate)

    def _deliver(self, certificate: bytes) -> None:
        before = dict(self.replica.state.values)
        if not _applied(self.replica, certificate):
            assert self.replica.state.values == before

    def _channel(self, which: int) -> bytes | None:
        channels = [key[1:] for key, _ in self.world.state.iterate(b"c")]
        return channels[which % len(channels)] if channels else None


def _applied(world: World, certificate: bytes) -> bool:
    """False if it came too early; anything else that fails is an error."""
    try:
        world.apply(certificate)
    except MissingPredecessor:
        return False
    return True


def _derived(state: Mapping) -> dict[bytes, bytes]:
    """What must be the same everywhere; the order of the log is each node's own."""
    same = {key: value for key, value in state.values.items() if key[:1] in b"abc"}
    return same | {key: value[8:] for key, value in state.values.items() if key[:1] == b"r"}


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
