"""`/v1/embeddings`: refused.

Rule: no realm makes embeddings, and a client is told so in a sentence instead of a route that is not there.
"""

from __future__ import annotations

from aiohttp import web

from node.gateway.failures import ApiError
from node.gateway.routes import Route

NO_EMBEDDINGS = "no realm of this federation makes embeddings; ask another server for them"


class EmbeddingRoutes:
    """Handlers of the embeddings route."""

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        summary = "Refused: no realm makes embeddings."
        return (Route("POST", "/v1/embeddings", self.refuse, "openai", summary, errors=(404,)),)

    async def refuse(self, request: web.Request) -> web.StreamResponse:
        """Always 404, as for a model that is not there."""
        raise ApiError(404, f"/v1/embeddings: {NO_EMBEDDINGS}", code="no_embeddings", param="model")
