"""Which addresses are everybody's: what a node may connect to because a stranger named it.

Rule: pure. An address counts as public only if nothing is known against it; forms that carry another address inside
(mapped, translated, tunnelled) are none, whatever is inside.
"""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

GLOBAL_6 = ipaddress.IPv6Network("2000::/3")  # all that is assigned to be routed; the rest is for special ends
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # of providers' own translation; some clouds keep metadata there
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata at an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4's relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID and other special ends
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)


def is_public(address: IPAddress) -> bool:
    """True if it is no house's, no machine's and no provider's own."""
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_6:
        return False  # also ::ffff:…, 64:ff9b::…, fc00::…, fe80::…, ff00::…
    if not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in NOT_PUBLIC)
