"""The compiled gate, where a C compiler was there at install; :mod:`dfs_deploy.runtimes.native_gate` wraps it.

``kernel.h`` declares the arithmetic, ``kernel_variant.h`` defines it, ``kernel.c`` compiles it for each instruction
set, ``_gate.pyx`` binds it, ``_loop.pyx`` is the dispatch loop around it, and ``_rows.pyx`` regroups batches.
"""

from __future__ import annotations

from importlib import import_module

lacks: str | None = None
"""Why the extension could not be imported; ``None`` where it was."""

try:
    for _name in ("_gate", "_loop", "_rows"):
        import_module(f"{__name__}.{_name}")
except ModuleNotFoundError:
    lacks = "it was not compiled at install"
except ImportError as _error:
    lacks = str(_error)

__all__ = ["lacks"]
