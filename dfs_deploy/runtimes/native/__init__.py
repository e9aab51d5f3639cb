"""The compiled gate and dispatch loop; missing if no C compiler was there at install.

``kernel.h`` declares the arithmetic, ``kernel_variant.h`` defines it, ``kernel.c`` compiles it for each instruction
set, and ``_gate.pyx`` binds it, with the dispatch loop around it. ``dfs_deploy.runtimes.gate.native`` wraps it.
"""

from __future__ import annotations

from importlib import import_module

why_missing: str | None = None
"""Reason why the extension could not be imported; ``None`` if it was."""

try:
    import_module(f"{__name__}._gate")
except ModuleNotFoundError:
    why_missing = "it was not compiled at install"
except ImportError as _error:
    why_missing = str(_error)

__all__ = ["why_missing"]
