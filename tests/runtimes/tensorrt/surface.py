"""The public names of a module and its classes, with signatures: of NVIDIA's bindings, of doubles and of stubs.

Run as a program it prints those of a module as JSON: two versions of one library do not fit in one process.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

Parameter = tuple[str, bool]
"""Its name, and whether it may be left out."""

_SPECIAL = ("__init__", "__int__", "__version__")


def surface(module: Any, prefix: str) -> dict[str, dict[str, Any]]:
    """Kind, and of what is called the signatures without ``self``, by the full name."""
    found: dict[str, dict[str, Any]] = {}
    top = module.__name__.partition(".")[0]

    def add(owner: Any, name: str, depth: int) -> None:
        own = [base for base in owner.__mro__ if base.__module__.partition(".")[0] == top] if depth else [owner]
        for key in sorted({key for base in own for key in vars(base)}):
            if key.startswith("_") and key not in _SPECIAL:
                continue
            full, raw = f"{name}.{key}", inspect.getattr_static(owner, key)
            value = getattr(owner, key)
            if inspect.isclass(value):
                if depth == 0 and value.__module__.partition(".")[0] != top:
                    continue  # imported there, and not its own
                found[full] = {"kind": "class"}
                add(value, full, depth + 1)
            elif isinstance(raw, property):
                found[full] = {"kind": "property", "set": raw.fset is not None}
            elif callable(value):
                found[full] = {"kind": "callable", "signatures": signatures(raw, value, bool(depth))}
            elif not inspect.ismodule(value) and type(value).__module__ != "__future__":
                found[full] = {"kind": "value", "set": True}

    add(module, prefix, 0)
    return found


def signatures(raw: Any, value: Any, method: bool) -> list[list[Parameter]]:
    """Of Python's functions from the object, of compiled ones from the head of their docstrings."""
    written = raw.__func__ if isinstance(raw, staticmethod) else raw
    if inspect.isfunction(written):
        parameters = list(inspect.signature(written).parameters.values())
        own = parameters[1:] if method and written is raw else parameters
        return [[(p.name, p.default is not p.empty) for p in own]]
    lines = (value.__doc__ or "").splitlines()
    name = re.escape(getattr(value, "__name__", ""))
    heads = [m[1] for line in lines if (m := re.match(rf"(?:\d+\. )?{name}\((.*)\) -> ", line))]
    return [[(p, d) for p, d in map(_parameter, _split(head)) if p not in ("self", "", "/")] for head in heads]


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parameter(text: str) -> Parameter:
    return text.partition(":")[0].strip(), " = " in text


def stub_surface(stub: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """The same of a stub file."""
    found: dict[str, dict[str, Any]] = {}

    def add(body: list[ast.stmt], name: str, method: bool) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[f"{name}.{node.name}"] = {"kind": "class"}
                add(node.body, f"{name}.{node.name}", True)
            elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name in _SPECIAL):
                kinds = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
                arguments = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                required = len(arguments) - len(node.args.defaults)
                taken = [(argument, i >= required) for i, argument in enumerate(arguments)]
                bound = method and "staticmethod" not in kinds
                found[f"{name}.{node.name}"] = (
                    {"kind": "property", "set": False}
                    if "property" in kinds
                    else {"kind": "callable", "signatures": [taken[1:] if bound else taken]}
                )
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                assert isinstance(target, ast.Name)
                found[f"{name}.{target.id}"] = {"kind": "value", "set": True}

    add(ast.parse(stub.read_text()).body, prefix, False)
    return found


if __name__ == "__main__":
    json.dump(surface(importlib.import_module(sys.argv[1]), sys.argv[2]), sys.stdout)
