"""The compiled gate, where a C compiler was there at install; :mod:`dfs_deploy.runtimes.native_gate` wraps it.

``kernel.h`` declares the arithmetic, ``kernel_variant.h`` defines it, ``kernel.c`` compiles it for each instruction
set, and ``_gate.pyx`` binds it.
"""

from __future__ import annotations

from importlib import import_module

lacks: str | None = None
"""Why the extension could not be imported; ``None`` where it was."""

try:
    import_module(f"{__name__}._gate")
except ModuleNotFoundError:
    lacks = "it was not compiled at install"
except ImportError as _error:
    lacks = str(_error)

__all__ = ["lacks"]
