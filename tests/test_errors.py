from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from dfs_deploy import errors

CLASSES: list[type[errors.DfsDeployError]] = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


def drawn_tree() -> dict[str, str | None]:
    """The tree in the module's docstring: for each class its parent."""
    found: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"[ │├└─]*(\w+Error)\b", line):
            column = match.start(1)
            above = [(at, name) for at, name in above if at < column]
            found[match[1]] = above[-1][1] if above else None
            above.append((column, match[1]))
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = drawn_tree()
    assert set(drawn) == {error.__name__ for error in CLASSES}
    for error in CLASSES:
        assert error.__bases__[0].__name__ == (drawn[error.__name__] or "Exception")


def test_each_error_is_of_the_one_base_and_documented() -> None:
    for error in CLASSES:
        assert issubclass(error, errors.DfsDeployError)
        assert error.__doc__


def test_builtin_parents_let_callers_catch_what_they_know() -> None:
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


@pytest.mark.parametrize(
    "error",
    [
        errors.MissingExtraError("onnx is not installed", module="onnx", extra="export"),
        errors.DependencyError("onnxruntime is too old", module="onnxruntime"),
        errors.ExportMismatchError("2 engines differ", ["block 1", "block 2"]),
        errors.DataError("no data set"),
        errors.OutOfMemoryError("too little"),
    ],
)
def test_errors_survive_a_copy_and_the_way_between_processes(error: errors.DfsDeployError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 (our own)
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_a_mismatch_keeps_its_lines() -> None:
    assert errors.ExportMismatchError("1 engine differs", ["block 3"]).mismatches == ("block 3",)
    assert errors.ExportMismatchError("some differ").mismatches == ()
