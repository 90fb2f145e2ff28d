"""What holds of all routes: HEAD and OPTIONS, pages of other sites, what is not there."""

from pathlib import Path

from node.gateway.keys import ApiKeys
from node.gateway.ports import ModelFacts
from tests.node.gateway_world import MODEL, gateway_world

PAGE = "https://page.example"


async def test_head_is_get_without_a_body(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        for path in ("/", "/healthz", "/readyz", "/v1/models", f"/v1/models/{MODEL}", "/api/tags", "/openapi.json"):
            seen, asked = await world.ask("GET", path), await world.ask("HEAD", path)
            assert asked.status == seen.status == 200 and asked.body == b""
            assert asked.headers["content-type"] == seen.headers["content-type"]


async def test_options_tell_what_may_be_done(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        models = await world.ask("OPTIONS", "/v1/models")
        assert models.status == 204 and models.headers["allow"] == "GET, HEAD, OPTIONS" and models.body == b""
        assert (await world.ask("OPTIONS", "/v1/chat/completions")).headers["allow"] == "OPTIONS, POST"
        assert "access-control-allow-origin" not in models.headers
        missing = await world.ask("OPTIONS", "/v1/nothing")
        assert missing.status == 404 and missing.error["code"] == "not_found"


async def test_an_allowed_page_may_ask_and_read(tmp_path: Path) -> None:
    key = ApiKeys(tmp_path).create("page")
    allowed = {"Origin": PAGE}
    async with gateway_world(tmp_path, allowed_origins=[PAGE], host="0.0.0.0") as world:
        before = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-title"}
        first = await world.ask("OPTIONS", "/v1/chat/completions", headers=allowed | before)
        assert first.status == 204 and first.headers["access-control-allow-origin"] == PAGE
        assert first.headers["access-control-allow-headers"] == "authorization,x-title"
        assert "POST" in first.headers["access-control-allow-methods"]
        refused = await world.ask("GET", "/v1/models", headers=allowed)
        assert refused.status == 401 and refused.headers["access-control-allow-origin"] == PAGE  # it may read why
        known = allowed | {"Authorization": f"Bearer {key}"}
        hello = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        streamed = await world.ask("POST", "/v1/chat/completions", hello, known)
        assert streamed.text == "Hello" and streamed.headers["access-control-allow-origin"] == PAGE
        assert "x-mtor-query" in streamed.headers["access-control-expose-headers"]
        other = await world.ask("OPTIONS", "/v1/models", headers={"Origin": "https://other.example"})
        assert other.status == 403 and "access-control-allow-origin" not in other.headers


async def test_what_is_not_there_is_said_in_the_familys_shape(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        assert "/openapi.json" in (await world.ask("GET", "/v1/fine_tuning/jobs")).error["message"]
        assert set((await world.ask("POST", "/api/nothing")).json) == {"error"}
        embedding = await world.ask("POST", "/v1/embeddings", {"model": "auto", "input": "x"})
        assert embedding.status == 404 and embedding.error["code"] == "no_embeddings"


async def test_models_tell_what_they_can_and_cost(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        world.facts.offered = [ModelFacts("$CHAT", MODEL, 2, 8192, ("chat", "tools"), 1_000, 3_000)]
        row = (await world.ask("GET", "/v1/models", headers={"Authorization": "Bearer any"})).json["data"][0]
        assert row["mtor"]["features"] == ["chat", "tools"]
        assert (row["mtor"]["price_in"], row["mtor"]["price_out"]) == (1_000, 3_000)
