"""Modules that are called like the function in them that has their name.

``dfs_deploy.bench`` is the package with the measuring code and the verb ``bench`` at once: importing any module below
it puts the package at this place, whatever was there before. So the package itself can be called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class VerbModule(ModuleType):
    """A module whose call is that of its function of the same name, as ``dfs_deploy.bench.bench``."""

    @property
    def _verb(self) -> Callable[..., Any]:
        verb: Callable[..., Any] = getattr(self, self.__name__.rpartition(".")[2])
        return verb

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._verb(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._verb)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)


def make_callable(module: str) -> None:
    """Makes a module a :class:`VerbModule`; the module calls it with its ``__name__``."""
    sys.modules[module].__class__ = VerbModule
