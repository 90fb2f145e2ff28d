"""A stored ledger of an older program becomes one of this.

Rule: nothing that was signed or voted is changed, only how it lies on the disk. The change is one write: after it the
ledger is of the new schema, without it of the old. A ledger of a newer program is refused.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from node.journal import receipt_index
from node.store import Store
from protocol.ledger.state import Account, Channel, Puts, account_key, open_key

SCHEMA_KEY, SCHEMA = b"m:schema", b"2"

_OLD_ACCOUNT = struct.Struct(">qQ32s")
_OLD_LOCK = struct.Struct(">32s64s64s")
_FIRST_EPOCH = bytes(8)


class SchemaError(Exception):
    """The ledger was written by a newer program. The message names the fix."""


def migrate(store: Store) -> bool:
    """Bring a store to this program's schema. True if it was changed. Raises `SchemaError`, `StoreError`."""
    schema = store.get(SCHEMA_KEY)
    if schema in (None, SCHEMA):
        return False
    if schema != b"1":
        raise SchemaError(f"the ledger has schema {schema!r}, this program knows {SCHEMA!r}; use a newer one")
    changed = {**_accounts(store), **_locks(store), **_open_channels(store), **receipt_index(store)}
    store.write({**changed, SCHEMA_KEY: SCHEMA})
    return True


def _accounts(store: Store) -> Puts:
    """Schema 2 keeps owner, recovery key, totals and keys of an account."""
    earned: dict[bytes, int] = {}
    spent: dict[bytes, int] = {}
    for _, value in store.iterate(b"c"):
        channel = Channel.decode(value)
        earned[channel.payee] = earned.get(channel.payee, 0) + channel.paid
        spent[channel.payer] = spent.get(channel.payer, 0) + channel.paid
    puts: Puts = {}
    for key, value in store.iterate(b"a"):
        account = key[1:]
        balance, following, head = _OLD_ACCOUNT.unpack(value)
        fresh = replace(Account(balance, following, head), earned=earned.get(account, 0), spent=spent.get(account, 0))
        puts[account_key(account)] = fresh.encode()
    return puts


def _locks(store: Store) -> Puts:
    """Schema 2 keeps the epoch of a vote."""
    cut = _OLD_LOCK.size
    return {key: value[:cut] + _FIRST_EPOCH + value[cut:] for key, value in store.iterate(b"l")}


def _open_channels(store: Store) -> Puts:
    """Schema 2 lists the open channels."""
    return {open_key(key[1:]): b"" for key, value in store.iterate(b"c") if Channel.decode(value).open}
