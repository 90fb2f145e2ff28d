"""The process that speaks with a model hub; `node.models.sources.hub` starts it.

Rule: a process of its own, because the hub's library cannot be interrupted: ending the process ends the download, and
what has come stays in the folder for the next. It ends by itself when its parent was killed. It fetches the named files
and no others, and prints one JSON object.

    python -m node.hub_child look REPO REVISION
    python -m node.hub_child fetch REPO COMMIT FOLDER < names, one a line
"""

from __future__ import annotations

import glob
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # plain HTTP, which goes on by Range where it was cut off

from huggingface_hub import HfApi, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._headers import build_hf_headers

TIMEOUT_SECONDS = 20.0
TEXT_BYTES = 256 << 10
LOOK_SECONDS = 1.0
MOST = 30  # texts that are looked at beforehand

SENTENCES = (
    (GatedRepoError, "{repo} is only given to those who agreed to its terms: do so on its page, then `hf auth login`"),
    (RepositoryNotFoundError, "the hub has no model {repo}, or not for you: check the name, or `hf auth login`"),
    (RevisionNotFoundError, "{repo} has no such revision"),
)


def look(repo: str, revision: str) -> dict[str, Any]:
    """A repository's commit, files and card."""
    info: Any = HfApi().model_info(repo, revision=revision or None, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = [_file(sibling) for sibling in info.siblings or []]
    card = info.card_data.to_dict() if info.card_data else {}
    licence = [tag.partition(":")[2] for tag in info.tags or [] if tag.startswith("license:")]
    return {
        "commit": info.sha,
        "files": files,
        "licence": str(card.get("license_name") or card.get("license") or next(iter(licence), "")),
        "licence_text": str(card.get("license_link") or ""),
        "pipeline": str(info.pipeline_tag or ""),
        "gated": bool(info.gated),
        "texts": {name: _text(repo, info.sha, name) for name in _texts(files)},
    }


def fetch(repo: str, commit: str, folder: str, names: Sequence[str]) -> dict[str, Any]:
    """The named files of one commit, into a folder."""
    patterns = [glob.escape(name) for name in names]
    snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=patterns, max_workers=4)
    return {}


def _file(sibling: Any) -> dict[str, Any]:
    """What a file has to be: sha256 of the large ones, git's digest of the others."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    return {"name": sibling.rfilename, "bytes": sibling.size or 0, "sha256": sha256, "blob": sibling.blob_id or ""}


def _texts(files: Sequence[dict[str, Any]]) -> list[str]:
    """The card, and the configurations, which may ask for a program."""
    small = [file["name"] for file in files if file["bytes"] <= TEXT_BYTES and file["name"].count("/") <= 1]
    return [name for name in small if name in ("README.md", "model_index.json") or name.endswith("config.json")][:MOST]


def _text(repo: str, commit: str, name: str) -> str:
    url = hf_hub_url(repo, name, revision=commit)
    answer: Any = get_session().get(url, headers=build_hf_headers(), follow_redirects=True, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    return str(answer.text)


def _reason(error: Exception, repo: str) -> str:
    for kind, sentence in SENTENCES:
        if isinstance(error, kind):
            return sentence.format(repo=repo)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the hub cannot be used: {lines[0]}"


def _end_with_parent() -> None:
    """A download whose pull was killed goes on for nobody. Windows keeps the number of a dead parent: there it does."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Run one command."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if arguments[0] == "look":
            found = look(arguments[1], arguments[2])
        else:
            found = fetch(arguments[1], arguments[2], arguments[3], sys.stdin.read().splitlines())
    except Exception as error:
        print(json.dumps({"error": _reason(error, arguments[1])}))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
