"""What the operator does to the ledger of a running node: settle, grant, sub-accounts, keys, the end of an epoch.

Rule: everything goes through the bookkeeper, and has happened when the answer comes. Secrets come in and are never
given out. Accounts are peer ids, or the names of this node's sub-accounts.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict

import trio

from node.bookkeeper import Bookkeeper
from node.ledger_service import LedgerService
from node.operations import Json, Method, OperationFailed
from protocol.errors import ProtocolError, Refused
from protocol.ids import NO_HASH, NodeId, parse_peer_id, peer_id
from protocol.messages import FetchStanding, Standing
from protocol.params import SIGNATURE_BYTES
from protocol.pricing import format_credits, parse_credits
from protocol.signing import SEED_BYTES, Signer

STATUS_SECONDS = 5.0  # for the witnesses to say where they stand


class LedgerActions:
    """The methods that change the ledger, and those that ask its witnesses."""

    def __init__(self, bookkeeper: Bookkeeper, service: LedgerService) -> None:
        self._bookkeeper = bookkeeper
        self._service = service
        self.methods: dict[str, Method] = {
            "ledger.settle": self.settle,
            "ledger.accounts": self.accounts,
            "ledger.account.create": self.create_account,
            "ledger.account.consent": self.consent,
            "ledger.account.attach": self.attach,
            "ledger.move": self.move,
            "ledger.recovery": self.recovery,
            "ledger.recover": self.recover,
            "ledger.rotate": self.rotate,
            "ledger.epoch.status": self.epoch_status,
            "ledger.epoch.propose": self.epoch_propose,
            "ledger.epoch.accept": self.epoch_accept,
            "federation.grant": self.grant,
        }

    # --- credits -------------------------------------------------------------------------------------

    async def settle(self) -> Json:
        """Bring workers what they may have missed, close channels that owe this node, fetch what is new."""
        undelivered = await self._service.deliver_vouchers()
        closed = await self._bookkeeper.close_idle(0)
        await self._bookkeeper.sync()
        return {"closed": closed, "undelivered": undelivered}

    async def grant(self, to: str, credits: str) -> Json:
        """Issue credits to a node."""
        if not self._bookkeeper.is_issuer:
            raise OperationFailed(
                "this node holds no issuer key; run the grant on the node that created the federation"
            )
        amount = parse_credits(credits)
        entry = await self._bookkeeper.grant(self._account(to), amount)
        return {"to": to, "amount": amount, "amount_text": format_credits(amount), "id": entry}

    async def move(self, to: str, credits: str, source: str = "") -> Json:
        """Move credits between accounts of one owner; `all` of them if that is asked."""
        amount = 0 if credits == "all" else parse_credits(credits)
        if not amount and credits != "all":
            raise OperationFailed("the amount is 0; say how many credits, or all")
        account = self._account(source) if source else self._bookkeeper.wallet.main
        before = (await self._bookkeeper.balance(account)).balance
        entry = await self._bookkeeper.accounts.move(account, self._account(to), amount)
        moved = amount or before
        return {
            "from": peer_id(account),
            "to": peer_id(self._account(to)),
            "amount": moved,
            "amount_text": format_credits(moved),
            "id": entry,
        }

    # --- accounts ------------------------------------------------------------------------------------

    async def accounts(self) -> Json:
        """The accounts that this node signs for, the main one first."""
        wallet = self._bookkeeper.wallet
        return {"accounts": [await self._shown(account, wallet.name(account)) for account in wallet]}

    async def _shown(self, account: NodeId, name: str) -> Json:
        balance = await self._bookkeeper.balance(account)
        standing = self._bookkeeper.standing(account)
        recovery = standing.recovery_at(standing.next_sequence)
        return {
            "account": peer_id(account),
            "name": name,
            "main": account == self._bookkeeper.wallet.main,
            "owner": "" if standing.owner == NO_HASH else peer_id(NodeId(standing.owner)),
            "recovery": "" if recovery is None else peer_id(recovery),
            "key_changes": len(standing.rotations),
            **asdict(balance),
            "balance_text": format_credits(balance.balance),
            "held_text": format_credits(balance.held),
        }

    async def create_account(self, name: str, credits: str = "0") -> Json:
        """A sub-account whose key is kept here, with credits moved to it: what it holds is what it can spend."""
        amount = parse_credits(credits)
        account = await self._bookkeeper.accounts.create(name, secrets.token_bytes(SEED_BYTES))
        if amount:
            await self._bookkeeper.accounts.move(self._bookkeeper.wallet.main, account, amount)
        return await self._shown(account, name)

    async def consent(self, account: str) -> Json:
        """What the owner of another node needs to make its account a sub-account of this one."""
        device = parse_peer_id(account)
        return {
            "account": account,
            "owner": peer_id(self._bookkeeper.wallet.main),
            "consent": self._bookkeeper.accounts.consent(device).hex(),
        }

    async def attach(self, owner: str, consent: str) -> Json:
        """Make this node's account a sub-account of `owner`, for ever."""
        signature = _from_hex(consent, SIGNATURE_BYTES, "a consent, from `mtor ledger account consent` there,")
        entry = await self._bookkeeper.accounts.join_owner(parse_peer_id(owner), signature)
        return {"account": peer_id(self._bookkeeper.wallet.main), "owner": owner, "id": entry}

    # --- keys ----------------------------------------------------------------------------------------

    async def recovery(self, key: str, account: str = "") -> Json:
        """Name the key (a peer id) that may replace this account's key."""
        named = parse_peer_id(key)
        entry = await self._bookkeeper.accounts.name_recovery(self._account(account), named)
        return {"account": peer_id(self._account(account)), "recovery": key, "id": entry}

    async def rotate(self, account: str) -> Json:
        """Sign for a sub-account with a new key, kept here, from now on."""
        named = self._account(account)
        entry = await self._bookkeeper.accounts.rotate(named, secrets.token_bytes(SEED_BYTES))
        return {"account": peer_id(named), "id": entry}

    async def recover(self, account: str, seed: str, name: str = "") -> Json:
        """Take over an account by the secret of its recovery key, and move what it has to this node's account."""
        lost = parse_peer_id(account)
        recovery = Signer.from_seed(_from_hex(seed, SEED_BYTES, "a recovery key's secret"))
        books = self._bookkeeper
        entry = await books.accounts.recover(lost, recovery, name or f"recovered-{account[-8:]}")
        found = await books.balance(lost)
        if found.balance:
            await books.accounts.move(lost, books.wallet.main, 0)
        return {
            "account": account,
            "id": entry,
            "amount": found.balance,
            "amount_text": format_credits(found.balance),
            "held": found.held,
            "held_text": format_credits(found.held),
        }

    # --- epochs --------------------------------------------------------------------------------------

    async def epoch_status(self) -> Json:
        """Where this node and the witnesses stand."""
        facts = asdict(self._bookkeeper.epochs.status())
        rows: dict[int, Json] = {}

        async def ask(index: int, witness: NodeId) -> None:
            own = witness == self._bookkeeper.node
            row: Json = {"witness": peer_id(witness), "own": own, "epoch": None, "standing": ""}
            rows[index] = row | {"problem": f"no answer within {STATUS_SECONDS:.0f} s"}
            try:
                found = await self._bookkeeper.ask_witness(index, FetchStanding(), Standing)
                rows[index] = row | {"epoch": found.epoch, "standing": _words(found), "problem": ""}
            except Refused as refusal:
                rows[index] = row | {"problem": refusal.message}

        with trio.move_on_after(STATUS_SECONDS):
            async with trio.open_nursery() as nursery:
                for index, witness in enumerate(self._bookkeeper.genesis.witnesses):
                    nursery.start_soon(ask, index, witness)
        return facts | {"quorum": self._bookkeeper.quorum, "witnesses": [rows[index] for index in sorted(rows)]}

    async def epoch_propose(self, after_restore: bool = False) -> Json:
        """End the epoch now: freeze, agree on what happened in it, begin the next. Every witness has to be due or to
        have accepted."""
        books = self._bookkeeper
        if after_restore and not books.genesis.faults:
            restored = await books.restore()
        else:
            restored = 0
        return {"epoch": await books.epochs.end(after_restore=after_restore), "restored": restored}

    async def epoch_accept(self) -> Json:
        """Agree that the epoch in force may end before its time, once another witness proposes it."""
        return {"epoch": await self._bookkeeper.epochs.accept()}

    def _account(self, text: str) -> NodeId:
        """An account by its name here or its peer id; the main one if none is named. Raises `OperationFailed`."""
        wallet = self._bookkeeper.wallet
        if text in ("", "self"):
            return wallet.main
        named = wallet.named(text)
        if named is not None:
            return named
        try:
            return parse_peer_id(text)
        except ProtocolError as error:
            raise OperationFailed(
                f"{text!r} is no account: a peer id, a name from `mtor ledger account list`, or self ({error})"
            ) from None


def _words(found: Standing) -> str:
    if found.abstaining:
        return "was set back, and signs nothing until the epoch ends"
    if found.frozen:
        return "frozen: the epoch is being ended"
    return "would end the epoch" if found.willing else "votes"


def _from_hex(text: str, length: int, what: str) -> bytes:
    try:
        data = bytes.fromhex(text.strip())
    except ValueError:
        data = b""
    if len(data) != length:
        raise OperationFailed(f"{what} is {2 * length} hexadecimal digits")
    return data
