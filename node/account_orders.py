"""What this node's owner does with accounts: grants, sub-accounts, moves, recovery and new keys.

Rule: each order is made in the account's turn, on its true head, and is final when the method returns. A key is kept
before the order that names it is signed.
"""

from __future__ import annotations

from collections.abc import Callable

from node.ordering import Ordering
from node.replica import Replica
from node.store import Store
from node.wallet import Wallet
from protocol.codec import body_hash, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, FederationId, NodeId, short
from protocol.ledger.families import related
from protocol.ledger.state import Account, View
from protocol.messages import Attach, Consent, Grant, Message, Move, Recovery, Rotate
from protocol.pricing import format_credits
from protocol.signing import Signer

MakeOrder = Callable[[Account, int], Message]  # from the account's standing and the epoch

_PENDING = (
    "This order is signed and goes out again before the account's next one: look at `mtor ledger history` before you "
    "repeat it, or it is done twice"
)


class AccountOrders:
    """The owner's orders beside holds."""

    def __init__(
        self,
        federation: FederationId,
        store: Store,
        ordering: Ordering,
        replica: Replica,
        wallet: Wallet,
        issuer: Signer | None,
    ) -> None:
        self._federation = federation
        self._store = store
        self._ordering = ordering
        self._replica = replica
        self._wallet = wallet
        self._issuer = issuer

    # --- the issuer ----------------------------------------------------------------------------------

    async def grant(self, to: NodeId, amount: int, *, only_first: bool = False) -> str:
        """Give credits out of nothing, as the issuer. The order's id in hex; "" if it was to be the first and others
        were before. Raises `Refused`."""
        issuer = self._issuer
        if issuer is None:
            raise Refused(ErrorCode.NOT_ISSUER, "this node holds no issuer's key of this federation")
        async with self._ordering.turn(issuer.node, issuer) as view:
            account = view.account(issuer.node)
            if only_first and account.next_sequence > 0:
                return ""
            grant = Grant(issuer.node, account.next_sequence, account.head, to, amount, view.epoch)
            return await self._finish(issuer.node, issuer, grant)

    # --- sub-accounts --------------------------------------------------------------------------------

    async def create(self, name: str, seed: bytes) -> NodeId:
        """A sub-account of the main account, with a key of this node. Raises `Refused`."""
        await self._replica.sync()
        view, begun = View(self._store), self._wallet.named(name)
        if begun is not None and view.account(begun).owner != NO_HASH:
            raise Refused(ErrorCode.INVALID_REQUEST, f"there is an account {name!r} already; choose another name")
        if not view.account(self._wallet.main).known:
            raise Refused(ErrorCode.INVALID_REQUEST, "an owner of sub-accounts has credits; ask the issuer for some")
        account = begun or self._wallet.add(Signer.from_seed(seed).node, name, seed).node
        await self._attach(account, self._wallet.main, self.consent(account))
        return account

    def consent(self, account: NodeId) -> bytes:
        """The main account's word that `account` may be its sub-account: 64 bytes, of use to that account alone."""
        owner = self._wallet.signer(self._wallet.main, View(self._store))
        return owner.sign(self._federation, encode(Consent(account, self._wallet.main)))

    async def join_owner(self, owner: NodeId, consent: bytes) -> str:
        """Make this node's own account, as its first order, a sub-account of another's. The order's id in hex.

        Raises `Refused`.
        """
        return await self._attach(self._wallet.main, owner, consent)

    async def _attach(self, account: NodeId, owner: NodeId, consent: bytes) -> str:
        def attach(standing: Account, epoch: int) -> Message:
            if standing.owner == owner:
                raise Refused(ErrorCode.INVALID_REQUEST, "it is that account's sub-account already")
            if standing.owner != NO_HASH or standing.next_sequence:
                raise Refused(
                    ErrorCode.INVALID_REQUEST, "an account is attached by its first order, and this one has made some"
                )
            return Attach(account, 0, standing.head, owner, consent, epoch)

        return await self._order(account, attach)

    async def move(self, source: NodeId, to: NodeId, amount: int) -> str:
        """Credits from one account of an owner to another; 0 moves all. The order's id in hex. Raises `Refused`."""

        def move(standing: Account, epoch: int) -> Message:
            moved = amount or standing.balance
            if standing.balance < max(moved, 1):
                raise Refused(
                    ErrorCode.INSUFFICIENT_FUNDS, f"the account has {format_credits(standing.balance)} free to move"
                )
            if not related(View(self._store), source, to):
                raise Refused(
                    ErrorCode.NOT_RELATED,
                    f"{short(to)} is not an account of the same owner; others are paid for their answers only",
                )
            return Move(source, standing.next_sequence, standing.head, to, moved, epoch)

        return await self._order(source, move)

    # --- keys ----------------------------------------------------------------------------------------

    async def name_recovery(self, account: NodeId, key: NodeId) -> str:
        """Name the key that may replace the account's key if that is lost. The order's id in hex. Raises `Refused`."""

        def recovery(standing: Account, epoch: int) -> Message:
            if standing.recovery_at(standing.next_sequence) is not None:
                raise Refused(
                    ErrorCode.INVALID_REQUEST, "the account has a recovery key already; only that one can name another"
                )
            return Recovery(account, standing.next_sequence, standing.head, key, epoch)

        return await self._order(account, recovery)

    async def rotate(self, account: NodeId, seed: bytes) -> str:
        """Sign a sub-account's orders with a new key from now on. The order's id in hex. Raises `Refused`."""
        if account == self._wallet.main:
            raise Refused(
                ErrorCode.INVALID_REQUEST,
                "this node's own key is its name on the network: make a recovery key (`mtor ledger recovery-key`), and "
                "take the account over from a new data folder (`mtor ledger recover`)",
            )
        signer = self._wallet.signer(account, View(self._store))
        fresh = self._wallet.add(account, self._wallet.name(account), seed)
        return await self._rotate(account, signer, fresh)

    async def recover(self, account: NodeId, recovery: Signer, name: str) -> str:
        """Take over an account by its recovery key: this node's own key signs for it from now on, and its credits can
        be moved to this node's account. The order's id in hex. Raises `Refused`."""
        await self._replica.sync()
        standing = View(self._store).account(account)
        if standing.recovery_at(standing.next_sequence) != recovery.node:
            raise Refused(ErrorCode.INVALID_REQUEST, f"this is not the recovery key of account {short(account)}")
        fresh = self._wallet.add(account, name)
        return await self._rotate(account, recovery, fresh)

    async def _rotate(self, account: NodeId, by: Signer, fresh: Signer) -> str:
        consent = fresh.sign(self._federation, encode(Consent(account, fresh.node)))

        def rotate(standing: Account, epoch: int) -> Message:
            return Rotate(account, standing.next_sequence, standing.head, fresh.node, consent, epoch)

        return await self._order(account, rotate, by)

    async def _order(self, account: NodeId, make: MakeOrder, by: Signer | None = None) -> str:
        signer = by or self._wallet.signer(account, View(self._store))
        async with self._ordering.turn(account, signer) as view:
            return await self._finish(account, signer, make(view.account(account), view.epoch))

    async def _finish(self, account: NodeId, signer: Signer, order: Message) -> str:
        """The order's id in hex, once it is final. Raises `Refused`."""
        body = encode(order)
        try:
            await self._ordering.order(account, signer, body)
        except Refused as refusal:
            if not self._ordering.is_pending(account):
                raise
            raise Refused(refusal.code, f"{refusal.message}. {_PENDING}", refusal.retry_after_ms) from refusal
        return body_hash(body).hex()
