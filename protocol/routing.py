"""Which worker to ask, best first.

Rule: pure. Offers, requirements, own experience and `now` come in; ordered candidates, or the reasons why there
are none, go out. A worker's claims about speed count only until there is own experience.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the asker insists on. Zero and "" mean no wish."""

    model: str = ""
    min_vram_mib: int = 0
    device_kind: str = ""  # "cuda", "mps" or "cpu"
    max_price_in: int = 0  # µcredits for 1,000 prompt tokens
    max_price_out: int = 0  # µcredits for 1,000 output tokens
    min_context_tokens: int = 0
    worker: str = ""  # a peer id: this worker and no other
