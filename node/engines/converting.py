"""The process that converts what was fetched into what is loaded; the model store starts it.

Rule: niced, because it may take all cores for half a minute and what the node answers comes first; offline, because
everything that it may use lies there already.

    python -m node.engines.converting MODULE:FUNCTION FOLDER NAME=PATH...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

NICENESS = 10


def main(arguments: Sequence[str]) -> None:
    """Run one converter: a function of the sources by name and the folder, which exists and is empty."""
    converter, folder, *pairs = arguments
    module, _, name = converter.partition(":")
    sources = {pair.partition("=")[0]: Path(pair.partition("=")[2]) for pair in pairs}
    getattr(import_module(module), name)(sources, Path(folder))


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    main(sys.argv[1:])
