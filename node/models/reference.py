"""What an operator may write after `mtor models pull`, and the names of models in the store.

Rule: pure; text that is none of these is refused with an example of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from node.models.errors import ModelError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DIGEST = re.compile(r"[0-9a-f]{64}")
HUB_PREFIX = "hf:"
HUB = re.compile(
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,128}))?(?::(?P<file>[\w./ -]+\.gguf))?"
)
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True, slots=True)
class HubReference:
    """hf:OWNER/NAME[@REVISION][:FILE.gguf]"""

    repo: str
    revision: str  # empty: the main branch
    file: str  # empty: safetensors

    @property
    def name(self) -> str:
        """A name in the store that suits it."""
        return tidy_name(self.file.rpartition("/")[2].removesuffix(".gguf") or self.repo.partition("/")[2])


@dataclass(frozen=True, slots=True)
class UrlReference:
    """A GGUF, or an archive of a folder with safetensors, by its address."""

    url: str
    sha256: str
    file: str  # the last part of its path

    @property
    def name(self) -> str:
        """A name in the store that suits it."""
        endings = (*ARCHIVES, ".gguf")
        ending = next((ending for ending in endings if self.file.lower().endswith(ending)), "")
        return tidy_name(self.file[: len(self.file) - len(ending)])


def parse_hub(text: str) -> HubReference:
    """Raises `ModelError`."""
    found = HUB.fullmatch(text.removeprefix(HUB_PREFIX))
    if found is None or ".." in text:
        raise ModelError(f"{text!r} is not hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME:FILE.gguf")
    return HubReference(found["repo"], found["revision"] or "", found["file"] or "")


def parse_url(text: str, sha256: str) -> UrlReference:
    """Raises `ModelError`."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ModelError(f"{text!r} is no http or https address without a password in it")
    file = unquote(parts.path).rpartition("/")[2]
    if not file.lower().endswith((*ARCHIVES, ".gguf")):
        raise ModelError(
            f"{file or text!r} is neither a .gguf nor an archive ({', '.join(ARCHIVES)}) of a folder with safetensors"
        )
    if not DIGEST.fullmatch(sha256.lower()):
        raise ModelError("an address needs --sha256 with the file's digest, 64 hex digits, from somebody you trust")
    return UrlReference(text, sha256.lower(), file)


def checked_name(name: str) -> str:
    """Raises `ModelError` if it cannot be a model's name."""
    if not NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name for a model: letters, digits, dot, dash and underscore, 96 at most")
    return name


def tidy_name(text: str) -> str:
    """A legal name made of a text; empty if nothing of it is legal."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:96]
