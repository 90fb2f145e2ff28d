"""`/v1/models`: what can be asked now.

Rule: OpenAI's shape; what the federation adds stands in the `mtor` object.
"""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from node.gateway.answer_shapes import ModelAnswer, ModelListAnswer
from node.gateway.bridge import Bridge
from node.gateway.failures import ApiError
from node.gateway.ports import GatewayFacts, ModelFacts
from node.gateway.routes import Answered, Route


class ModelRoutes:
    """Handlers of the model routes."""

    def __init__(self, bridge: Bridge, facts: GatewayFacts) -> None:
        self._bridge = bridge
        self._facts = facts
        self._started_at = int(time.time())

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        every, one = Answered(shape=ModelListAnswer), Answered(shape=ModelAnswer)
        path = "/v1/models/{model:.+}"
        return (
            Route("GET", "/v1/models", self.all, "openai", "All models on offer.", (every,)),
            Route("GET", path, self.one, "openai", "One model on offer.", (one,), errors=(404,)),
        )

    async def all(self, request: web.Request) -> web.StreamResponse:
        """Each model once a realm."""
        models: list[ModelFacts] = await self._bridge.call(self._facts.models)
        return web.json_response({"object": "list", "data": [self._row(model) for model in models]})

    async def one(self, request: web.Request) -> web.StreamResponse:
        """The first of its name."""
        models: list[ModelFacts] = await self._bridge.call(self._facts.models)
        return web.json_response(self._row(named(models, request.match_info["model"])))

    def _row(self, model: ModelFacts) -> dict[str, Any]:
        more = {
            "realm": model.realm,
            "workers": model.workers,
            "context_tokens": model.context_tokens,
            "features": list(model.features),
            "price_in": model.price_in,
            "price_out": model.price_out,
        }
        return {"id": model.model, "object": "model", "created": self._started_at, "owned_by": "mtor", "mtor": more}


def named(models: list[ModelFacts], wanted: str) -> ModelFacts:
    """The first model of a name. Raises `ApiError` (404)."""
    found = next((model for model in models if model.model == wanted), None)
    if found is None:
        offered = ", ".join(model.model for model in models) or "nothing now"
        raise ApiError(404, f"no peer offers the model {wanted!r}; on offer: {offered}", code="model_not_found")
    return found
