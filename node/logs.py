"""Logs: a rotating file in the data folder, and the terminal.

Rule: what people wrote and what models answered never comes near a logger, and neither do keys. Each line has time,
level, part and message; a query can be followed by its id.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import time
from pathlib import Path

from node.config import LogSection

QUIET = ("libp2p", "multiaddr", "aiohttp", "async_service", "root.libp2p")
LINE = "%(asctime)s %(levelname)-7s %(name)-16s %(message)s"
LOG_FILE = "node.log"


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_folder(data: Path) -> Path:
    """Where the log files are."""
    return data / "logs"


def start_logging(config: LogSection, data: Path) -> None:
    """Log to the data folder and to stderr from now on."""
    folder = log_folder(data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotating = logging.handlers.RotatingFileHandler(
        folder / LOG_FILE, maxBytes=config.max_bytes, backupCount=config.files, encoding="utf-8"
    )
    formatter = JsonLines() if config.format == "json" else logging.Formatter(LINE)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in (rotating, logging.StreamHandler(sys.stderr)):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("mtor").setLevel(config.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
