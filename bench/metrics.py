"""What `/metrics` costs: `python bench/metrics.py`.

Rule: the page is as full as it can be: each realm, outcome and route, and eight models.
"""

from __future__ import annotations

import statistics
import time

from node.gateway.metrics import METRICS, render
from node.measures import Figure, Measured, Measures
from protocol.errors import ErrorCode
from protocol.ids import BUILT_IN_REALMS

ROUNDS = 200  # the clock is the process's own time on a CPU
MANY = 100_000
VALUES = {
    "realm": (*BUILT_IN_REALMS, "other"),
    "outcome": ("completed", "client_gone", "internal", *(code.name.lower() for code in ErrorCode)),
    "reason": tuple(code.name.lower() for code in ErrorCode),
    "direction": ("in", "out"),
    "worker": ("own", "remote"),
    "model": tuple(f"model-{number}" for number in range(8)),
    "route": tuple(f"/v1/route-{number}" for number in range(20)),
    "status": ("200", "400", "401", "404", "429", "503"),
}


def fullest() -> tuple[Measures, list[Measured]]:
    """Everything that can be counted, counted once."""
    measures, standing = Measures(), list[Measured]()
    for name, metric in METRICS.items():
        combinations: list[tuple[str, ...]] = [()]
        for label in metric.labels:
            combinations = [(*before, value) for before in combinations for value in VALUES.get(label, ("one",))]
        for labels in combinations:
            if metric.kind == "histogram":
                measures.observe(name, *labels, seconds=0.2)
            elif metric.kind == "counter":
                measures.count(name, *labels)
            else:
                standing.append(Figure(name, labels, 1.0))
    return measures, standing


def main() -> None:
    """Print medians."""
    measures, standing = fullest()
    times = []
    size = lines = 0
    for _ in range(ROUNDS):
        began = time.process_time()
        body, _ = render([*measures.measured(), *standing])
        times.append(time.process_time() - began)
        size, lines = len(body), body.count(b"\n")
    print(f"the fullest page: {lines} lines, {size / 1_024:.0f} KiB, {statistics.median(times) * 1_000:.1f} ms")
    began = time.process_time()
    for _ in range(MANY):
        measures.count("mtor_queries", "$CHAT", "completed")
        measures.observe("mtor_hop_seconds", "$CHAT", seconds=0.2)
    print(f"a count and a time: {(time.process_time() - began) / MANY * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
