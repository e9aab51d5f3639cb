"""Dataclasses that hold arrays: the equality that Python generates would raise, since arrays have no single truth."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator

import numpy as np

import dfs_deploy
from dfs_deploy.runtimes import Result

ARRAYS = re.compile(r"\b(NDArray|ndarray|Array|Features|Tensor|Rows|Module|Image)\b")
"""What annotations call arrays and what else has an equality of its own."""

CALLABLE = re.compile(r"\bCallable\b|^\w+Rows$")


def holders() -> Iterator[type]:
    for module in pkgutil.walk_packages(dfs_deploy.__path__, "dfs_deploy."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                    annotations = [str(field.type) for field in dataclasses.fields(value) if field.compare]
                    if any(ARRAYS.search(text) and not CALLABLE.search(text) for text in annotations):
                        yield value


def test_dataclasses_that_hold_arrays_have_no_generated_equality() -> None:
    found = list(holders())
    assert {"Result", "Samples", "GateWeights", "Dataset", "NetworkOutput"} <= {each.__name__ for each in found}
    generated = [f"{each.__module__}.{each.__name__}" for each in found if each.__dataclass_params__.eq]  # type: ignore[attr-defined]
    assert not generated, "write @dataclass(..., eq=False)"


def result(value: float = 1.0, option: int = 0) -> Result:
    return Result(np.full((2, 3), value, np.float32), np.full((2, 4), option, np.uint8), (0.0, 1.0))


def test_results_are_equal_if_their_values_are() -> None:
    first = result()
    assert first == first
    assert first == result()
    assert hash(first) == hash(result())
    assert len({first, result()}) == 1
    for other in (
        result(2.0),
        result(option=1),
        dataclasses.replace(first, costs=(0.0, 2.0)),
        dataclasses.replace(first, weights=(1.0,) * 4),
        "result",
        None,
    ):
        assert first != other
    shorter = Result(first.logits[:1], first.path[:1], first.costs)
    assert first != shorter
