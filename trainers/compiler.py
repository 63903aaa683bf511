"""torch's compiler stays unloaded until something compiles: it takes two seconds of every process that trains.

``torch._compile`` imports ``torch._dynamo`` the first time an optimizer is made, or a network on the meta device, for
no more than to mark a function that must not be compiled.  A stand-in answers that, and is the compiler at once where
anything else is asked of it.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


def postpone_compiler() -> None:
    """Let a stand-in answer for the compiler in this process; no effect where the compiler is loaded already."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _NotLoaded(NAME)


class _NotLoaded(ModuleType):
    """What ``torch._compile`` and the process group ask for, without the compiler; any other name loads it."""

    @staticmethod
    def disable(function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """Return the function: where nothing compiles, nothing has to be marked."""
        del recursive, options
        return function

    @staticmethod
    def graph_break() -> None:
        """Nothing: no graph is being built; an optimizer's step asks for it."""

    @property
    def trace_rules(self) -> Any:
        """The compiler's rules, whose cache a new process group clears."""
        return _NoRules()

    @property
    def __path__(self) -> Any:  # type: ignore[override]  # what ``import torch._dynamo.config`` asks for first
        return _loaded().__path__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_loaded(), name)


class _NoRules:
    def clear_lru_cache(self) -> None:
        """Nothing was cached."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_loaded().trace_rules, name)


def _loaded() -> Any:
    """The compiler itself, in the place of the stand-in."""
    if isinstance(sys.modules.get(NAME), _NotLoaded):
        del sys.modules[NAME], torch._dynamo
    return importlib.import_module(NAME)
