"""What `/metrics` shows, in Prometheus' text or as OpenMetrics.

Rule: `METRICS` is the whole list: a name, a sentence and labels for each, whichever side of the bridge measures it.
What is measured comes here as plain values; labels hold no ids and no text of a client's or a peer's choosing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from node.measures import SECONDS_BOUNDS, Figure, Measured, Spread

BOUNDS = (*(str(float(bound)) for bound in SECONDS_BOUNDS), "+Inf")


@dataclass(frozen=True, slots=True)
class Metric:
    """One name."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    # --- asking: what this node's own clients see ---
    "mtor_queries": Metric("counter", "Queries asked, by how they ended.", ("realm", "outcome")),
    "mtor_tokens": Metric("counter", "Tokens (a realm's units) of whole answers.", ("realm", "direction")),
    "mtor_first_token_seconds": Metric("histogram", "From a query to the first part of its answer.", ("realm",)),
    "mtor_answer_seconds": Metric("histogram", "From a query to the end of a whole answer.", ("realm",)),
    "mtor_running_queries": Metric("gauge", "Queries that run now, asked or served by this node.", ("side",)),
    "mtor_attempts": Metric("counter", "Workers asked, by where they are.", ("realm", "worker", "outcome")),
    "mtor_attempt_refusals": Metric("counter", "Workers that refused a query, by their code.", ("realm", "reason")),
    "mtor_attempt_failures": Metric("counter", "Workers that broke off, by code.", ("realm", "reason")),
    "mtor_failovers": Metric("counter", "Begun answers that another worker went on with.", ("realm",)),
    "mtor_queue_wait_seconds": Metric(
        "histogram", "From a worker's first word to its word that it begins, measured by the asker.", ("realm",)
    ),
    "mtor_hop_seconds": Metric(
        "histogram", "To open a stream to another node and hear its first word, measured by the asker.", ("realm",)
    ),
    # --- serving ---
    "mtor_served_queries": Metric("counter", "Queries served, by how they ended.", ("realm", "outcome")),
    "mtor_served_refusals": Metric("counter", "Queries refused, by reason.", ("realm", "reason")),
    "mtor_served_tokens": Metric("counter", "Tokens (a realm's units) served.", ("realm", "direction")),
    "mtor_served_queue_wait_seconds": Metric("histogram", "In the own queue, until a slot was free.", ("realm",)),
    "mtor_engine_first_token_seconds": Metric("histogram", "From the engine's begin to its first part.", ("realm",)),
    "mtor_engine_seconds": Metric("histogram", "Of the engine for an answer, less its waits for vouchers.", ("realm",)),
    "mtor_slots": Metric("gauge", "Queries that a served model answers at once.", ("realm", "model")),
    "mtor_busy_slots": Metric("gauge", "Slots in use.", ("realm", "model")),
    "mtor_queued_queries": Metric("gauge", "Queries that wait for a slot.", ("realm", "model")),
    "mtor_engine_ready": Metric("gauge", "Engines that have the model loaded.", ("realm", "model")),
    "mtor_engine_tokens_per_second": Metric("gauge", "Recent speed of one answer.", ("realm", "model")),
    "mtor_engine_memory_bytes": Metric("gauge", "Memory that the model takes where it runs.", ("realm", "model")),
    "mtor_engine_restarts": Metric(
        "counter", "Times that a model's process ended and began again.", ("realm", "model")
    ),
    "mtor_guard_paused": Metric("gauge", "1 while the node steps aside for its owner."),
    # --- the ledger ---
    "mtor_balance_credits": Metric("gauge", "Credits free to spend."),
    "mtor_held_credits": Metric("gauge", "Credits locked in open channels."),
    "mtor_unsettled_credits": Metric("gauge", "Credits of vouchers that are not settled yet.", ("direction",)),
    "mtor_earned_credits": Metric("counter", "Credits earned by settled channels."),
    "mtor_spent_credits": Metric("counter", "Credits spent by settled channels."),
    "mtor_open_channels": Metric("gauge", "Open payment channels, by who pays.", ("role",)),
    "mtor_epoch": Metric("gauge", "The ledger's epoch in force."),
    # --- the network ---
    "mtor_peers": Metric("gauge", "Other nodes that are connected, or known at all.", ("state",)),
    "mtor_offering_peers": Metric("gauge", "Other nodes that offer slots, by realm.", ("realm",)),
    "mtor_query_streams": Metric("gauge", "Open streams of other nodes' and own queries to this worker."),
    # --- HTTP ---
    "mtor_http_requests": Metric("counter", "HTTP requests.", ("route", "status")),
    "mtor_http_errors": Metric("counter", "HTTP answers that are errors, by code.", ("code",)),
    "mtor_websocket_sockets": Metric("gauge", "Open WebSockets."),
    # --- the process ---
    "mtor_build_info": Metric("gauge", "1; the version is the label.", ("version",)),
    "mtor_problems": Metric("gauge", "Problems that `mtor status` shows now."),
    "process_resident_memory_bytes": Metric("gauge", "Memory of the node's own process, without the engines'."),
    "process_cpu_seconds": Metric("counter", "Time on a CPU of the node's own process."),
    "process_start_time_seconds": Metric("gauge", "When the node's process began, in seconds since 1970."),
}


def render(measured: Iterable[Measured], accept: str = "") -> tuple[bytes, str]:
    """The text and its type, which is the one that the reader accepts."""
    encoder, content_type = choose_encoder(accept)
    return encoder(_Page(measured)), content_type


class _Page(Collector):
    """What the encoder reads: every name of `METRICS`, also those that nothing was measured of yet."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._by_name: dict[str, list[Measured]] = {name: [] for name in METRICS}
        for each in measured:
            self._by_name[each.name].append(each)

    def collect(self) -> Iterator[Family]:
        """See `Collector`."""
        return (_family(name, METRICS[name], values) for name, values in self._by_name.items())


def _family(name: str, metric: Metric, values: list[Measured]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for spread in values:
            assert isinstance(spread, Spread)
            buckets = [(bound, float(count)) for bound, count in zip(BOUNDS, spread.counts, strict=True)]
            histogram.add_metric(spread.labels, buckets, spread.total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for figure in values:
        assert isinstance(figure, Figure) and len(figure.labels) == len(metric.labels), figure
        family.add_metric(figure.labels, figure.value)
    return family
