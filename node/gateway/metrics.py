"""Prometheus metrics of the HTTP side.

Rule: names begin with `mtor_`, labels hold no ids and no text of a client's choosing.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One gateway's metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.queries = Counter(
            "mtor_queries", "Queries by realm and outcome.", ["realm", "outcome"], registry=self._registry
        )
        self.first_token = Histogram(
            "mtor_first_token_seconds",
            "Time to the first token.",
            ["realm"],
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self.answer = Histogram(
            "mtor_answer_seconds", "Time of whole answers.", ["realm"], buckets=SECONDS_BUCKETS, registry=self._registry
        )
        self.tokens = Counter("mtor_tokens", "Tokens of answers.", ["realm", "direction"], registry=self._registry)
        self.running = Gauge("mtor_running_queries", "Queries being answered.", registry=self._registry)
        self.requests = Counter("mtor_http_requests", "HTTP requests by status.", ["status"], registry=self._registry)
        self._gauges: dict[str, Gauge] = {}

    def render(self, gauges: Mapping[str, float]) -> bytes:
        """Prometheus text, with the node's own figures."""
        for name, value in gauges.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, name.replace("_", " "), registry=self._registry)
            self._gauges[name].set(value)
        return generate_latest(self._registry)
