"""Until the gateway has its own: `/mtor/unlock` and the operations to come. Goes away with them."""

from __future__ import annotations

import secrets

from aiohttp import web

from node import operations
from node.gateway.failures import ApiError
from node.gateway.guards import bearer
from node.gateway.http import Gateway

LATER = ["keys.list", "keys.create", "keys.revoke", "limits.show", "page.link", "serving.stop", "workers.list"]
LATER += ["config.show", "config.set", "peers.block", "peers.unblock", "peers.blocked"]


class InterimGateway(Gateway):
    """The gateway with what its colleagues make at this moment."""

    def _app(self) -> web.Application:
        for name in LATER:
            operations.OPERATIONS.setdefault(name, "")
        for name in ("serving.start", "logs.tail"):
            operations.STREAMED.setdefault(name, "")
        self.codes: set[str] = set()
        self.sessions: set[str] = set()
        checked = self._guards.check

        def check(request: web.Request) -> None:
            if request.path == "/mtor/unlock" or bearer(request) in self.sessions:
                return
            checked(request)

        self._guards.check = check  # type: ignore[method-assign]
        app = super()._app()
        app.router.add_post("/mtor/unlock", self._unlock)
        return app

    async def _unlock(self, request: web.Request) -> web.Response:
        code = (await request.json()).get("code")
        if code not in self.codes:
            raise ApiError(401, "this code is not known or was used; type mtor open again", code="bad_code")
        self.codes.discard(code)
        token = secrets.token_urlsafe(16)
        self.sessions.add(token)
        return web.json_response({"token": token})


def new_code(gateway: InterimGateway) -> str:
    """A code that unlocks once."""
    code = secrets.token_urlsafe(8)
    gateway.codes.add(code)
    return code
