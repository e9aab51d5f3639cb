"""Modules that can be called like the function in them that has their name.

``dfs_deploy.bench`` is a package and a verb. As soon as anything below the package is imported, Python sets this
attribute of ``dfs_deploy`` to the package, whatever it was before. So the package itself is made callable: then
``dfs_deploy.bench("net.dfs")`` works in every order of imports, and ``dfs_deploy.bench`` is always the same object.
Type checkers see the function, which ``dfs_deploy/__init__.py`` imports for them.

A submodule must not have the verb's name, or it would replace the function: ``bench/run.py``, not ``bench/bench.py``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class VerbModule(ModuleType):
    """A module whose call is that of its function of the same name; it can be pickled, as functions can."""

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
    """Makes a module callable; the module calls this with its own ``__name__``."""
    sys.modules[module].__class__ = VerbModule
