"""torch without its compiler, for processes that only run models.

Rule: what a library tells `torch.compile` beforehand is heard and not acted on; the compiler is loaded when anything
else of it is wanted. Nothing here compiles a model or spreads one over machines, but transformers marks functions for
those who do, and each mark would load the compiler, an algebra system and distributed tensors: more than a third of an
engine's start. Modules take torch from here before they import what builds on it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch as torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder on this disk; nothing is fetched here

COMPILER = "torch._dynamo"
TRACING = "torch._dynamo._trace_wrapped_higher_order_op"
MARKS = ("disable", "assume_constant_result", "allow_in_graph")


class StandIn(ModuleType):
    """In the place of a module that is loaded when something other than `known` is wanted of it."""

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        self._known = known

    def __getattr__(self, name: str) -> Any:
        if name in self._known:
            return self._known[name]
        if name.startswith("__") and not (name == "__path__" and self.__name__ == COMPILER):  # a package's alone
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


def _load(name: str) -> ModuleType:
    """The module itself; nothing stands in any more."""
    for stood_for in (COMPILER, TRACING):
        if isinstance(sys.modules.get(stood_for), StandIn):
            del sys.modules[stood_for]
    return importlib.import_module(name)


def _unmarked(function: Any = None, *how: object, **reasons: object) -> Any:
    """A mark, as a decorator with or without arguments."""
    return _unmarked if function is None else function


def _indexing_while_traced() -> Any:
    """Some masks are made with the compiler's help."""
    return _load(TRACING).TransformGetItemToIndex()


def _stand_in() -> None:
    sys.modules[COMPILER] = StandIn(COMPILER, dict.fromkeys(MARKS, _unmarked))
    sys.modules[TRACING] = StandIn(TRACING, {"TransformGetItemToIndex": _indexing_while_traced})
    torch.distributed.is_available = lambda: False


if sys.modules.keys().isdisjoint((COMPILER, "transformers", "diffusers")):  # who is there already has loaded it
    _stand_in()
