"""`/metrics`: what is counted over real queries, bounded labels, and a dashboard and alerts that name what is there."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from node.answers import Delta, Question
from node.gateway.http import UNMATCHED
from node.gateway.metrics import METRICS, render
from node.measures import MOST_SERIES, OTHER, SECONDS_BOUNDS, Figure, Measures
from protocol.errors import ErrorCode
from protocol.ids import BUILT_IN_REALMS, peer_id
from tests.node.federation import MemoryFederation
from tests.node.gateway_world import (
    ROUTED,
    Emit,
    World,
    events,
    failing,
    gateway_world,
    saying,
)
from tests.node.gateways import two_gateways

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD, ALERTS = DOCS / "grafana" / "mtor.json", DOCS / "grafana" / "alerts.yml"
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
STATUS = {str(status) for status in range(100, 600)}
CODES = {code.name.lower() for code in ErrorCode}


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Prometheus' text: labels and values by name."""
    read: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            found = SAMPLE.match(line)
            assert found, line
            read.setdefault(found[1], []).append((dict(LABEL.findall(found[2] or "")), float(found[3])))
    return read


async def text_of(world: World) -> str:
    """What Prometheus reads."""
    reply = await world.ask("GET", "/metrics")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/plain; version=")
    return reply.body.decode()


def value(read: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float:
    """Of one series."""
    [found] = [number for which, number in read[name] if which == labels]
    return found


@asynccontextmanager
async def asked_once(data: Path) -> AsyncIterator[tuple[MemoryFederation, World, World]]:
    """The same, after one query."""
    async with two_gateways(data) as (federation, asker, served):
        reply = await asker.chat(max_tokens=20)
        assert reply.status == 200, reply.body
        yield federation, asker, served


async def test_both_sides_of_a_query_are_counted(tmp_path: Path) -> None:
    async with asked_once(tmp_path) as (_, asker, served):
        read, there = samples(await text_of(asker)), samples(await text_of(served))
    chat = {"realm": "$CHAT"}
    assert value(read, "mtor_queries_total", outcome="completed", **chat) == 1
    assert value(read, "mtor_attempts_total", worker="remote", outcome="completed", **chat) == 1
    assert value(read, "mtor_tokens_total", direction="out", **chat) == 20
    for name in ("first_token", "answer", "queue_wait", "hop"):
        assert value(read, f"mtor_{name}_seconds_count", **chat) == 1, name
    assert value(read, "mtor_first_token_seconds_sum", **chat) >= value(read, "mtor_hop_seconds_sum", **chat) > 0
    assert value(read, "mtor_open_channels", role="payer") == 1 and value(read, "mtor_held_credits") > 0
    assert value(read, "mtor_offering_peers", realm="$CHAT") == 1
    assert value(there, "mtor_served_queries_total", outcome="completed", **chat) == 1
    assert value(there, "mtor_served_tokens_total", direction="out", **chat) == 20
    for name in ("served_queue_wait", "engine_first_token", "engine"):
        assert value(there, f"mtor_{name}_seconds_count", **chat) == 1, name
    assert value(there, "mtor_engine_seconds_sum", **chat) <= value(read, "mtor_answer_seconds_sum", **chat)
    assert value(there, "mtor_slots", model="own-model", **chat) == 2
    assert value(there, "mtor_unsettled_credits", direction="in") > 0
    assert value(there, "mtor_running_queries", side="served") == 0 and value(there, "mtor_problems") == 1


async def test_refusals_are_counted_on_both_sides(tmp_path: Path) -> None:
    async with asked_once(tmp_path) as (federation, asker, served):
        federation.workers[0].worker.pause(60_000)
        assert (await asker.chat()).status == 503
        read, there = samples(await text_of(asker)), samples(await text_of(served))
    assert value(read, "mtor_attempt_refusals_total", realm="$CHAT", reason="paused") == 1
    assert value(read, "mtor_queries_total", realm="$CHAT", outcome="paused") == 1
    assert value(read, "mtor_http_errors_total", code="paused") == 1
    assert value(there, "mtor_served_refusals_total", realm="$CHAT", reason="paused") == 1
    assert value(there, "mtor_guard_paused") == 1


# --- labels ------------------------------------------------------------------------------------------------


async def test_labels_hold_no_word_of_a_client_or_a_peer(tmp_path: Path) -> None:
    marker = "MARKER"
    async with asked_once(tmp_path) as (federation, asker, served):
        await asker.chat(model=marker, messages=[{"role": "user", "content": marker}], mtor={"realm": f"${marker}"})
        await asker.chat(model="auto", mtor={"realm": f"${marker}"}, messages=[{"role": "user", "content": "x"}])
        await asker.ask("GET", f"/{marker}?{marker}={marker}")
        await asker.ask("GET", f"/v1/models/{marker}")
        await asker.ask(marker, "/v1/models", b"", {"x-request-id": marker, "User-Agent": marker, "Host": "localhost"})
        await asker.operate(marker)
        text, there = await text_of(asker), await text_of(served)
    ids = [peer_id(node.signer.node) for node in (federation.gateway, *federation.workers)]
    assert not any(word in text + there for word in (marker, marker.lower(), *ids))
    realms = {*BUILT_IN_REALMS, OTHER}
    allowed = {
        "realm": realms,
        "outcome": CODES | {"completed", "client_gone", "internal", "requester_gone", "refused", "failed"},
        "reason": CODES,
        "direction": {"in", "out"},
        "worker": {"own", "remote"},
        "model": {"own-model"},
        "role": {"payer", "payee"},
        "side": {"asked", "served"},
        "state": {"connected", "known"},
        "status": STATUS,
        "le": {*(str(bound) for bound in SECONDS_BOUNDS), "+Inf"},
    }
    for name, series in (samples(text) | samples(there)).items():
        for labels, _ in series:
            for label, said in labels.items():
                assert said in allowed.get(label, {said}), (name, label, said)
    routes = {labels["route"] for labels, _ in samples(text)["mtor_http_requests_total"]}
    assert UNMATCHED in routes and routes <= {UNMATCHED, "/metrics", "/v1/models", "/v1/models/{model}"} | {
        "/v1/chat/completions",
        "/mtor/v1/{operation}",
    }


def test_a_mistake_in_a_label_costs_one_name_and_no_memory() -> None:
    measures = Measures()
    for number in range(3 * MOST_SERIES):
        measures.count("mtor_queries", "$CHAT", str(number))
        measures.observe("mtor_hop_seconds", str(number), seconds=1.0)
    figures = measures.measured()
    assert len(figures) == 2 * (MOST_SERIES + 1)
    assert Figure("mtor_queries", (OTHER, OTHER), 2 * MOST_SERIES) in figures


def test_a_realm_is_named_if_it_is_built_in_or_served_here() -> None:
    measures = Measures(lambda: {"$CODE"})
    assert [measures.realm(name) for name in ("$CHAT", "$CODE", "$THEIRS")] == ["$CHAT", "$CODE", OTHER]


# --- the page ----------------------------------------------------------------------------------------------


def test_every_name_follows_the_conventions_and_has_a_sentence() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(mtor|process)_[a-z_]+", name) and not name.endswith(("_total", "_count", "_sum")), name
        assert metric.help[0].isupper() or metric.help[0].isdigit(), name
        assert metric.help.endswith("."), name
        assert metric.kind != "histogram" or name.endswith("_seconds"), name


def test_all_names_stand_there_before_anything_was_measured() -> None:
    text = render([])[0].decode()
    for name, metric in METRICS.items():
        shown = f"{name}_total" if metric.kind == "counter" else name
        assert f"# HELP {shown} {metric.help}\n# TYPE {shown} {metric.kind}\n" in text


async def test_open_metrics_is_spoken_to_who_asks_for_it(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        await world.chat()
        accepts = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        reply = await world.ask("GET", "/metrics", headers=accepts)
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n") and b"# TYPE mtor_queries counter" in reply.body


async def test_each_way_a_query_ends_is_an_outcome(tmp_path: Path) -> None:
    async def bug(question: Question, emit: Emit) -> None:
        raise ZeroDivisionError

    async with gateway_world(tmp_path) as world:
        scripts = [saying("a"), failing(ErrorCode.NO_PEER), bug, events(ROUTED, Delta("half of it"))]
        for script in scripts:
            world.answers.script = script
            await world.chat()
        read = samples(await text_of(world))
    outcomes = {labels["outcome"]: number for labels, number in read["mtor_queries_total"]}
    assert outcomes == {"completed": 1, "no_peer": 1, "internal": 2}


# --- dashboard and alerts ----------------------------------------------------------------------------------

QUERIED = re.compile(r"\b((?:mtor|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
MATCHED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
FUNCTIONS_OF_A_SCRAPE = {"le", "instance", "job"}  # labels that Prometheus adds, or histograms have


def dashboard_expressions() -> list[str]:
    """What the panels and variables ask Prometheus."""
    board = json.loads(DASHBOARD.read_text())
    panels = [*board["panels"], *(inner for panel in board["panels"] for inner in panel.get("panels", []))]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alert_expressions() -> list[str]:
    """What the rules ask."""
    return [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def exposed(text: str) -> dict[str, set[str]]:
    """Names as a query writes them, with the labels that they have."""
    names: dict[str, set[str]] = {}
    for shown, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        name = shown.removesuffix("_total")
        labels = set(METRICS[name].labels)
        for ending in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            names[shown + ending] = labels
    return names


@pytest.mark.parametrize("file", ["dashboard", "alerts"])
async def test_what_is_asked_of_prometheus_is_there(tmp_path: Path, file: str) -> None:
    async with asked_once(tmp_path) as (_, asker, _served):
        names = exposed(await text_of(asker))
    expressions = dashboard_expressions() if file == "dashboard" else alert_expressions()
    assert expressions
    for expression in expressions:
        used = QUERIED.findall(expression)
        assert used, expression
        labels = {label for _, matchers in used for label in MATCHED.findall(matchers)}
        labels |= {
            label.strip() for group in GROUPED.findall(expression) for label in group.split(",") if label.strip()
        }
        for name, _ in used:
            assert name in names, (name, expression)
        known = set().union(*(names[name] for name, _ in used)) | FUNCTIONS_OF_A_SCRAPE
        assert labels <= known, (labels - known, expression)


NOT_DRAWN = {
    "mtor_build_info",  # the version: a table of one row
    "process_start_time_seconds",  # the uptime says it
}


def test_the_dashboard_shows_everything_but_a_list() -> None:
    used = {name for expression in dashboard_expressions() for name, _ in QUERIED.findall(expression)}
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    assert set(METRICS) - plain == NOT_DRAWN


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["id"] is None and board["uid"] and board["title"]
    [source] = [variable for variable in board["templating"]["list"] if variable["type"] == "datasource"]
    assert source["query"] == "prometheus"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["title"] and panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == f"${{{source['name']}}}" and panel["description"]


def test_each_alert_says_what_to_do() -> None:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["alert"] and rule["for"] and rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"] and "mtor " in rule["annotations"]["description"]
