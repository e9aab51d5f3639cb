"""What the package uses of tensorrt, pycuda and cuda-python, read off its own source with the types that mypy finds.

A use is alive for a version unless it stands behind a ``hasattr`` that says otherwise there.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mypy.build import BuildSource, build
from mypy.options import Options
from mypy.types import CallableType, Instance, Overloaded, Type, TypeType, UnionType, get_proper_type

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "dfs_deploy" / "runtimes" / "tensorrt"
LIBRARIES = ("tensorrt", "pycuda.driver", "cuda.bindings.driver")

_Place = tuple[int, int, int | None, int | None]
"""Of an expression in a file: line and column where it begins and ends."""

_LINES = 1000
"""More than any file has."""


@dataclass(frozen=True)
class Use:
    """A name that the package uses.

    Attributes:
        name: as in ``tensorrt.Builder.create_network``.
        kind: ``read``, ``set``, ``call``, or ``override`` of a method that the library calls.
        positional: how many arguments go by position.
        keywords: names of the others; of an override those of all its parameters.
        guards: names that ``hasattr`` must find, or must not, for this to run.
        where: file and line.
    """

    name: str
    kind: str
    positional: int
    keywords: tuple[str, ...]
    guards: tuple[tuple[str, bool], ...]
    where: str

    def alive(self, names: Iterable[str]) -> bool:
        """Whether this runs with a library that has these names."""
        return all((name in names) == there for name, there in self.guards)


@functools.cache
def uses_of_package() -> tuple[Use, ...]:
    """Every use in the package."""
    return uses_of(PACKAGE)


def uses_of(package: Path) -> tuple[Use, ...]:
    """Every use in the modules of a folder, which stand for the package's."""
    options = Options()
    options.export_types = options.preserve_asts = True
    options.mypy_path = [str(ROOT / "typings")]
    options.follow_imports = "skip"
    options.per_module_options = {"numpy.*": {"follow_imports": "skip", "follow_imports_for_stubs": True}}
    options.cache_dir = str(ROOT / ".cache" / "mypy")  # of libraries; what is given as text is read anew each time
    # What mypy keeps of types tells no file: so every file begins at a line of its own, far behind other libraries'.
    files = [(_LINES * (100 + i), file) for i, file in enumerate(sorted(package.glob("*.py")))]
    texts = {file: "\n" * first + file.read_text() for first, file in files}
    sources = [
        BuildSource(str(file), f"dfs_deploy.runtimes.tensorrt.{file.stem}".removesuffix(".__init__"), text)
        for file, text in texts.items()
    ]
    types = {(e.line, e.column, e.end_line, e.end_column): found for e, found in build(sources, options).types.items()}
    found: list[Use] = []
    for first, file in files:
        finder = _Finder(file.name, first, types)
        finder.visit(ast.parse(texts[file]))
        found += finder.found
    return tuple(found)


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, first: int, types: dict[_Place, Type]) -> None:
        self.found: list[Use] = []
        self._file, self._first, self._types = file, first, types
        self._modules: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._guards: list[tuple[str, bool]] = []
        self._calls: dict[ast.expr, tuple[int, tuple[str, ...]]] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name in LIBRARIES:
                self._modules[alias.asname or alias.name] = alias.name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if f"{node.module}.{alias.name}" in LIBRARIES:
                self._modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif node.module in LIBRARIES:
                self._add(f"{node.module}.{alias.name}", "read", 0, (), node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in self._modules:
            for target in node.targets:
                if isinstance(target, ast.Attribute):  # self._cuda = cuda
                    self._kept[target.attr] = self._modules[node.value.id]
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if not any(isinstance(argument, ast.Starred) for argument in node.args):
            keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
            spelt_out = isinstance(node.func, ast.Attribute) and node.func.attr == "__init__"  # with self
            self._calls[node.func] = (len(node.args) - spelt_out, keywords)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            for owner in self._owners(base):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        names = tuple(argument.arg for argument in method.args.args[1:])
                        self._add(f"{owner}.{method.name}", "override", len(names), names, method)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        kind = "set" if isinstance(node.ctx, ast.Store) else "call" if node in self._calls else "read"
        for owner in () if node.attr.startswith("_") and not node.attr.endswith("__") else self._owners(node.value):
            self._add(f"{owner}.{node.attr}", kind, *self._calls.get(node, (0, ())), node)
        self.generic_visit(node)

    # What stands behind a hasattr.

    def visit_If(self, node: ast.If) -> None:
        self._choice(node.test, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._choice(node.test, [node.body], [node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        guards: list[tuple[str, bool]] = []
        for value in node.values:
            self._within(guards, [value])
            if isinstance(node.op, ast.And):
                guards += [(name, True) for name in self._hasattrs(value)]

    def _choice(self, test: ast.expr, body: Iterable[ast.AST], otherwise: Iterable[ast.AST]) -> None:
        self.visit(test)
        self._within([(name, True) for name in self._hasattrs(test)], body)
        single = [] if isinstance(test, ast.BoolOp) else [(name, False) for name in self._hasattrs(test)]
        self._within(single, otherwise)

    def _within(self, guards: list[tuple[str, bool]], nodes: Iterable[ast.AST]) -> None:
        self._guards += guards
        for node in nodes:
            self.visit(node)
        del self._guards[len(self._guards) - len(guards) :]

    def _hasattrs(self, test: ast.expr) -> Iterator[str]:
        """Names that must be there for a condition to hold."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            for value in test.values:
                yield from self._hasattrs(value)
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
            name = test.args[1]
            assert isinstance(name, ast.Constant)
            for owner in self._owners(test.args[0]):
                yield f"{owner}.{name.value}"

    # Names.

    def _add(self, name: str, kind: str, positional: int, keywords: tuple[str, ...], node: ast.stmt | ast.expr) -> None:
        where = f"{self._file}:{node.lineno - self._first}"
        self.found.append(Use(name, kind, positional, keywords, tuple(self._guards), where))

    def _owners(self, node: ast.expr) -> set[str]:
        """The library that an expression is; or the class of one, that it is or is an instance of."""
        if isinstance(node, ast.Name) and node.id in self._modules:
            return {self._modules[node.id]}
        if isinstance(node, ast.Attribute) and node.attr in self._kept:
            return {self._kept[node.attr]}
        found = set(_classes(self._types.get((node.lineno, node.col_offset, node.end_lineno, node.end_col_offset))))
        if (
            isinstance(node, ast.Attribute) and not found and not node.attr.startswith("_")
        ):  # in an annotation mypy keeps no type of it
            found = {f"{owner}.{node.attr}" for owner in self._owners(node.value)}
        return found


def _classes(found: Type | None) -> Iterator[str]:
    kind = None if found is None else get_proper_type(found)
    if isinstance(kind, UnionType):
        for item in kind.items:
            yield from _classes(item)
    elif isinstance(kind, TypeType):
        yield from _classes(kind.item)
    elif isinstance(kind, Overloaded):
        yield from _classes(kind.items[0])
    elif isinstance(kind, CallableType) and kind.is_type_obj():
        yield from _classes(kind.ret_type)
    elif isinstance(kind, Instance):
        module = kind.extra_attrs.mod_name if kind.extra_attrs is not None else None
        names = [module or "", *(info.fullname for info in kind.type.mro)]
        yield from [name for name in names if name in LIBRARIES or name.startswith(_INSIDE)][:1]


_INSIDE = tuple(f"{library}." for library in LIBRARIES)
