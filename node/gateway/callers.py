"""Who asks: an address, and a key, nobody in particular, or the operator.

Rule: pure. An address is the connection's own; what a header says of it counts only if a trusted proxy wrote it. A
header of anybody else lessens what a request may do, and never adds to it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from node.gateway.keys import ApiKey
from node.log_context import ANONYMOUS
from protocol.ids import NodeId, parse_peer_id

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"  # where there is no address, as on a socket of this machine's files
HOME_BITS = 64  # of an IPv6 address: what one household is given, and may take any address of


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request comes from."""

    text: str
    local: bool  # this machine, and no proxy between

    @property
    def group(self) -> str:
        """What limits count together: an IPv4 address, or a /64 of IPv6."""
        address = parse_address(self.text)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(address), HOME_BITS), strict=False))
        return self.text

    @property
    def counted(self) -> str:
        """The same; "" for this machine, whose own programs are not held apart."""
        return "" if self.local else self.group


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Made once for a request or a socket; what it may do is looked up again at each query."""

    address: Address
    key: ApiKey | None = None
    operator: bool = False

    @property
    def client(self) -> str:
        """Whose queries these are, where a client may have only so many, and only it may go on with them: a key's id,
        the operator, an address; "" for whoever asks from this machine without a key."""
        if self.key is not None:
            return self.key.id
        return "operator" if self.operator else "" if self.address.local else self.address.group

    @property
    def payer(self) -> NodeId | None:
        """The sub-account that pays; None: this node's own."""
        return parse_peer_id(self.key.account) if self.key is not None and self.key.account else None

    @property
    def name(self) -> str:
        """What the log calls it: a key's name, never the key."""
        if self.operator:
            return "operator"
        return f"key {self.key.name}" if self.key is not None else ANONYMOUS

    @property
    def anonymous(self) -> bool:
        """True for one who showed nothing that is known here."""
        return self.key is None and not self.operator


def client_address(
    peer: str, own: str, forwarded: Sequence[str], trusted: Sequence[Network], *, marked: bool
) -> Address:
    """`peer` and `own` are the two ends of the connection, `forwarded` what X-Forwarded-For says (oldest first);
    `marked`: some header says that the request was handed on."""
    address = parse_address(peer)
    if address is None:
        return Address(UNKNOWN, local=False)
    if not (marked and _within(address, trusted)):  # programs of a proxy's own machine are not handed on
        here = address.is_loopback or address == parse_address(own)
        return Address(str(address), here and not marked)
    for text in reversed(forwarded):
        further = parse_address(_without_port(text.strip()))
        if further is None:
            break  # nothing before what cannot be read is to be believed
        address = further
        if not _within(address, trusted):
            break
    return Address(str(address), local=False)


def parse_address(text: str) -> IPAddress | None:
    """An address as it is compared: without zone, and IPv4 as IPv4. None if it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_within(text: str, networks: Sequence[Network]) -> bool:
    """True if this is an address of one of them."""
    address = parse_address(text)
    return address is not None and _within(address, networks)


def _within(address: IPAddress, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _without_port(text: str) -> str:
    """Some proxies write 192.0.2.1:4711 and [2001:db8::1]:4711."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
