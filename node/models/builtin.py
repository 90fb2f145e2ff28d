"""Models that come with this package.

Rule: the digests of what is loaded are in a file SHA256SUMS beside it; models that come with the package are neither
pulled nor removed. After new weights, in the model's folder:

    sha256sum config.json *.safetensors > SHA256SUMS
"""

from __future__ import annotations

from pathlib import Path

from node.models.catalogue import BUILTIN, CatalogueEntry
from node.models.errors import ModelError
from node.models.kinds import context_of
from node.models.manifest import About, FileFacts, Manifest

SUMS = "SHA256SUMS"


def builtin_folder(entry: CatalogueEntry) -> Path:
    """Where it lies."""
    return BUILTIN / entry.name


def builtin_here(entry: CatalogueEntry) -> bool:
    """True if this copy of the package has it."""
    return (builtin_folder(entry) / SUMS).is_file()


def builtin_manifest(entry: CatalogueEntry) -> Manifest:
    """What is written down of it. Blocks. Raises `ModelError` if this copy of the package lacks it."""
    folder = builtin_folder(entry)
    try:
        files = {name: _facts(folder / name, sha256) for name, sha256 in _sums(folder / SUMS)}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{entry.name} should come with mtor and cannot be read ({error}); install mtor again"
        ) from None
    about = About(entry.title, entry.licence, entry.source, entry.realm, entry.engine, entry.limits, entry.licence_text)
    return Manifest(entry.name, about, files, context_of(folder))


def _sums(path: Path) -> list[tuple[str, str]]:
    lines = (line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line)
    return [(name.strip().lstrip("*"), sha256) for sha256, name in lines]


def _facts(path: Path, sha256: str) -> FileFacts:
    """A file that is missing has no bytes: `verify` names it."""
    return FileFacts(path.stat().st_size if path.exists() else 0, sha256)
