"""`mtor up` on a terminal shows a link to its page, and keeps it from its log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from node.commands.client import NodeClient
from node.local_federation import IDLE, SETTINGS

START_SECONDS = 120

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no terminals to pretend to be one")


def test_a_terminal_is_shown_the_link_and_the_log_is_not(tmp_path: Path) -> None:
    settings = tmp_path / "realms.yml"
    settings.write_text(SETTINGS.format(name="linked") + IDLE)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "cli", "up", "--data", str(tmp_path), "--config", str(settings)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    give_up = threading.Timer(START_SECONDS, process.kill)  # which ends the reading below
    give_up.start()
    shown = ""
    try:
        while not (found := re.search(r"(http://\S+)/#unlock=(\S+) ", shown)):
            shown += os.read(ours, 4_096).decode()
        body = json.dumps({"code": found[2]}).encode()
        with urllib.request.urlopen(f"{found[1]}/mtor/unlock", body, timeout=START_SECONDS) as answer:
            assert len(json.load(answer)["token"]) >= 43
        assert NodeClient(tmp_path).url == found[1]
        assert "unlock" not in (tmp_path / "logs" / "node.log").read_text()
    finally:
        give_up.cancel()
        process.terminate()
        process.wait(START_SECONDS)
        os.close(ours)
