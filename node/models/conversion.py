"""Converting what was fetched into what is loaded.

Rule: in a process of its own, offline: it may take much memory and half a minute, and ending it ends the work. It
writes to a new folder; if it fails, nothing of that folder is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from node.models.errors import ModelError

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
GGUF_CONVERTER = "node.engines.convert:from_sources"


async def convert(converter: str, sources: Mapping[str, Path], folder: Path) -> None:
    """Make `folder` (which must not exist) from `sources`. Raises `ModelError`."""
    await trio.Path(folder).mkdir()
    command = [sys.executable, "-m", "node.engines.converting", converter, str(folder)]
    command += [f"{name}={path}" for name, path in sources.items()]
    environment = os.environ | OFFLINE
    result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environment)
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ModelError(f"the weights could not be converted: {last[0] if last else 'no reason given'}")
