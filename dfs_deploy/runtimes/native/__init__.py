"""The compiled gate and dispatch loop, and the compiled ends; missing if no C compiler was there at install.

``kernel.h`` declares the gate's arithmetic, ``kernel_variant.h`` defines it, ``kernel.c`` compiles it for each
instruction set, and ``_gate.pyx`` binds it, with the dispatch loop around it. ``dfs_deploy.runtimes.gate.native`` wraps
it. ``ends.c`` makes the pixels of an INT8 stem and checks logits, and ``_ends.pyx`` binds it.
"""

from __future__ import annotations

from importlib import import_module


def _why_missing(extension: str) -> str | None:
    try:
        import_module(f"{__name__}.{extension}")
    except ModuleNotFoundError:
        return "it was not compiled at install"
    except ImportError as error:
        return str(error)
    return None


why_missing = _why_missing("_gate")
"""Reason why the compiled gate could not be imported; ``None`` if it was."""

ends_missing = _why_missing("_ends")
"""Reason why the compiled ends could not be imported; ``None`` if it was."""

__all__ = ["ends_missing", "why_missing"]
