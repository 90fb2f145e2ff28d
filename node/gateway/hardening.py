"""What every answer carries for browsers, and what no answer tells.

Rule: set where headers leave, so that no route can forget it. An answer that says nothing of its own is kept by nobody,
shown in nobody's frame, taken for nothing but what it says it is, and read by no other site's page.
"""

from __future__ import annotations

from aiohttp import web

from node.gateway.guards import LOOPBACK_NAMES, host_name

SERVER_NAME = "mtor"
USUAL = {
    "Cache-Control": "no-store",  # answers hold what people wrote
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
}
STRICT_TRANSPORT = "max-age=15552000"  # 180 days; other hosts of the domain are not this node's to speak for


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Before the headers of any answer leave."""
    response.headers["Server"] = SERVER_NAME
    for name, value in USUAL.items():
        response.headers.setdefault(name, value)


async def only_by_tls(request: web.Request, response: web.StreamResponse) -> None:
    """The same, where the gateway's own TLS is reached from elsewhere. A browser would hold all other servers of this
    machine to it, so what it calls by this machine's own names says nothing."""
    if host_name(request.headers.get("Host", "")) in LOOPBACK_NAMES:
        return
    response.headers["Strict-Transport-Security"] = STRICT_TRANSPORT
