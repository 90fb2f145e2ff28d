"""The models on this machine: a store that finds, fetches, checks and removes them."""

from node.models.catalogue import CATALOGUE, CatalogueEntry, Member, Wheel
from node.models.errors import ModelError, Progress
from node.models.manifest import MANIFEST
from node.models.store import Checked, ModelRow, ModelStore, PullWish

__all__ = [
    "CATALOGUE",
    "MANIFEST",
    "CatalogueEntry",
    "Checked",
    "Member",
    "ModelError",
    "ModelRow",
    "ModelStore",
    "Progress",
    "PullWish",
    "Wheel",
]
