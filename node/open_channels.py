"""This node's open channels, paying and paid: a list beside the ledger that saves walking it.

Rule: the ledger decides, this list only says where to look. It hears of every write after it is on the disk.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from protocol.codec import decode_as
from protocol.ids import ChannelId, NodeId
from protocol.ledger.channels import no_voucher, open_voucher
from protocol.ledger.state import Channel, Reader, voucher_key
from protocol.messages import Pay, Voucher


class OpenChannels:
    """The open channels of one node's accounts, and when each was last used in this life (ms; 0: not yet)."""

    def __init__(self, accounts: Container[NodeId]) -> None:
        self._accounts = accounts
        self._used_ms: dict[ChannelId, int] = {}
        self.states: dict[ChannelId, Channel] = {}

    def note(self, written: Mapping[bytes, bytes | None]) -> None:
        """Take in what was written to the ledger."""
        for key, value in written.items():
            if key[:1] != b"c":
                continue
            channel, state = ChannelId(key[1:]), None if value is None else Channel.decode(value)
            if state is not None and state.open and (state.payer in self._accounts or state.payee in self._accounts):
                self.states[channel] = state
            else:
                self.states.pop(channel, None)
                self._used_ms.pop(channel, None)

    def use(self, channel: ChannelId, now_ms: int) -> None:
        """It was used now; with 0, nobody knows how it stands."""
        if channel in self.states:
            self._used_ms[channel] = now_ms

    def idle_ms(self, channel: ChannelId, now_ms: int) -> int:
        """How long it was not used."""
        return now_ms - self._used_ms.get(channel, 0)


def last_voucher(reader: Reader, channel: ChannelId) -> Voucher:
    """The best voucher of a channel; before the first, one over nothing."""
    stored = reader.get(voucher_key(channel))
    return no_voucher(channel) if stored is None else open_voucher(decode_as(Pay, stored).voucher)
