"""Which device a model runs on, for the engines that need torch but no more than torch.

Rule: "auto" is a card where torch sees one; a card that was asked for and is not there is an error, not a slow answer.
"""

from __future__ import annotations

import torch

from node.engines.port import EngineError
from protocol.errors import ErrorCode
from protocol.messages import Device


def choose_device(wanted: str) -> torch.device:
    """`wanted` is "cpu", "cuda" or "auto". Raises `EngineError`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            ErrorCode.ENGINE_FAILED, "device cuda is asked for, but torch sees no card; try `mtor doctor`"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device, threads: int) -> Device:
    """What an offer says of it."""
    if device.type != "cuda":
        return Device("cpu", f"{threads or torch.get_num_threads()} threads", 0, 0)
    facts = torch.cuda.get_device_properties(device)
    return Device("cuda", facts.name, facts.total_memory // 2**20, facts.major * 10 + facts.minor)


def memory_mib(device: torch.device, process_mib: int) -> int:
    """What the model holds: on a card what torch reserved there, else the memory of the process."""
    return torch.cuda.max_memory_reserved(device) // 2**20 if device.type == "cuda" else process_mib
