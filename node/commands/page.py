"""`mtor open`.

Rule: the link is good once, for ten minutes; it is shown where it is asked for, or where no browser can be started.
"""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Mapping

from node.commands.client import NodeClient
from node.paths import data_folder


def open_page(options: argparse.Namespace) -> int:
    """Open the page, unlocked for the operator."""
    url: str = NodeClient(data_folder(options.data)).call("page.link")["url"]
    if options.show:
        print(url)
    elif has_screen(sys.platform, os.environ) and webbrowser.open(url):
        print("opened in your browser; `mtor open --print` shows the link instead")
    else:
        print("no browser can be started here; open this in one (one use, ten minutes):", file=sys.stderr)
        print(url)
    return 0


def has_screen(platform: str, environment: Mapping[str, str]) -> bool:
    """False where only a browser in the terminal could be started, or none: it would not run the page."""
    if platform in ("win32", "darwin"):
        return True
    return any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER"))
