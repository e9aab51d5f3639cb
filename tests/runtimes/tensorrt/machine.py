"""A machine with TensorRT and a GPU, as the doubles make it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from dfs_deploy.runtimes.tensorrt import builder, engine_cache

TESTS = Path(__file__).parents[2]
DOUBLES = TESTS / "doubles"

VERSIONS = ("8.6.1", "10.3.0", "10.13.3.9", "11.4.0.106")
"""Of TensorRT that the double can be."""

_MODULES = ("tensorrt", "pycuda", "pycuda.driver")


@contextlib.contextmanager
def machine(version: str = VERSIONS[2], *, integrated: bool = False, clean: bool = True, **env: str) -> Iterator[Any]:
    """Has the doubles imported as tensorrt and pycuda; also in processes started meanwhile.

    Gives the GPU, and at the end checks that no rule was broken and, unless not ``clean``, that nothing is left on it.
    """
    variables = {
        "DOUBLE_TENSORRT": version,
        "DOUBLE_INTEGRATED": "1" if integrated else "",
        "PYTHONPATH": str(DOUBLES),
        **env,
    }
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "path", [str(DOUBLES), *sys.path]),
        _imported_anew(),
    ):
        gpu = importlib.import_module("double_gpu").GPU
        gpu.reset()
        yield gpu
        assert not gpu.violations, sorted(set(gpu.violations))
        if clean:
            assert left(gpu) == {}


@contextlib.contextmanager
def _imported_anew() -> Iterator[None]:
    """Has the modules that are doubles imported within, and forgets them afterwards."""

    def forget() -> None:
        for name in _MODULES:
            sys.modules.pop(name, None)

    forget()
    try:
        yield
    finally:
        forget()


def left(gpu: Any) -> dict[str, int]:
    """What is still on the GPU, by kind."""
    rest = {kind: count for kind, count in gpu.live.items() if count}
    return {**rest, **({"context": gpu.retained} if gpu.retained else {})}


@contextlib.contextmanager
def building_here() -> Iterator[None]:
    """Builds in this process, which saves starting one for each engine, and does not wait until the disk has it."""

    def run(request: builder.BuildRequest, model: bytes) -> str:
        with contextlib.redirect_stdout(sys.stderr):
            return builder.build(request, model)

    with mock.patch.object(engine_cache, "build_in_process", run), mock.patch.object(os, "fsync"):
        yield


def records(bundle: Path) -> list[Any]:
    """What is kept beside each engine of a bundle, as plain values."""
    folder = bundle.with_name(f"{bundle.name}.cache") / "tensorrt"
    return [msgspec.json.decode(file.read_bytes()) for file in sorted(folder.glob("????????????????.json"))]


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own; raises what it raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((True, call()))
        except BaseException as error:
            results.append((False, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    good, value = results[0]
    if not good:
        raise value
    return value


start_in_thread = functools.partial(threading.Thread, daemon=True)
