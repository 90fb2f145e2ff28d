"""What the operator may ask of the gateway itself: keys, limits, a link to its page.

Rule: `GATEWAY_OPERATIONS` is the list. They run on the gateway's loop, which owns that state; what the node knows is
asked of the node. A key is shown once, when it is made; what is told of it later cannot be turned back into it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from pydantic import Field

from node.config import GatewaySection
from node.gateway.key_usage import KeyUsage, key_facts
from node.gateway.keys import ApiKeys, KeysError, key_id, terms
from node.operations import GATEWAY_OPERATIONS, Json, Method, OperationFailed, dispatch
from node.paths import DataFolderError

Count = Annotated[int, Field(ge=0, le=1 << 40)]
NodeCall = Callable[[str, Json], Awaitable[Json]]


class AccessOperations:
    """The gateway's own operations."""

    def __init__(
        self,
        config: GatewaySection,
        keys: ApiKeys,
        usage: Callable[[], KeyUsage],
        page_link: Callable[[], str],
        ask_node: NodeCall,
    ) -> None:
        """`usage` gives the counts of now; `ask_node` runs an operation of the node's."""
        self._config = config
        self._keys = keys
        self._usage = usage
        self._page_link = page_link
        self._ask_node = ask_node
        self._methods: dict[str, Method] = {
            "keys.list": self.list_keys,
            "keys.create": self.create_key,
            "keys.revoke": self.revoke_key,
            "limits.show": self.show_limits,
            "page.link": self.link_page,
        }
        assert self._methods.keys() == GATEWAY_OPERATIONS.keys()

    async def call(self, name: str, arguments: Json) -> Json:
        """Run one operation. Raises `OperationFailed`."""
        try:
            return await dispatch(self._methods, name, arguments)
        except (KeysError, DataFolderError, OSError) as error:
            raise OperationFailed(str(error)) from None

    async def list_keys(self) -> Json:
        """All keys, without themselves."""
        usage, now = self._usage(), time.time()
        return {"keys": [key_facts(key, usage, now) for key in self._keys.all()]}

    async def create_key(
        self,
        name: str,
        scopes: list[str] | None = None,
        expires_days: int | None = None,
        requests_per_minute: Count | None = None,
        tokens_per_minute: Count | None = None,
        monthly_credits: str | int | float | None = None,
        account: str = "",
    ) -> Json:
        """A new key, which is shown here and never again."""
        wanted = terms(scopes, expires_days, requests_per_minute, tokens_per_minute, monthly_credits)
        payer = await self._account(account) if account else ""
        key = await asyncio.to_thread(self._keys.create, name, payer, wanted)
        made = next(each for each in self._keys.all() if each.id == key_id(key))
        return {"key": key} | key_facts(made, self._usage(), time.time())

    async def _account(self, wanted: str) -> str:
        """The peer id of one of this node's sub-accounts. Raises `OperationFailed`."""
        rows: list[Json] = (await self._ask_node("ledger.accounts", {}))["accounts"]
        for row in rows:
            if wanted in (row["name"], row["account"]) and not row["main"]:
                return str(row["account"])
        raise OperationFailed(f"there is no sub-account {wanted!r}; see `mtor ledger account list`")

    async def revoke_key(self, id: str) -> Json:
        """Remove a key; its next query is refused."""
        revoked = await asyncio.to_thread(self._keys.revoke, id)
        return {"revoked": revoked.id}

    async def show_limits(self) -> Json:
        """What is in force."""
        config, usage, now = self._config, self._usage(), time.time()
        settings = config.model_dump(mode="json")
        names = ("admin", "trusted_proxies", "limit_loopback", "max_concurrent", "max_body_bytes")
        limits: Json = {name: settings[name] for name in names}
        for part in ("anonymous", "address"):
            limits[part] = {
                name.removeprefix(f"{part}_"): value for name, value in settings.items() if name.startswith(f"{part}_")
            }
        limits["anonymous"]["who"] = config.anonymous
        limits["keys"] = [key_facts(key, usage, now) for key in self._keys.all()]
        return {"limits": limits}

    async def link_page(self) -> Json:
        """A link that opens the page as the operator's, once."""
        return {"url": self._page_link()}
