"""Bound calls: an engine, a buffer to read, a buffer to write, and nothing to look up between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dfs_deploy.errors import EngineError

Call = Callable[[], None]

_ALIGNMENT = 64


def session_options(threads: int) -> ort.SessionOptions:
    """Options that every session here is made with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings about this machine's sysfs help nobody here
    return options


def aligned_buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A zeroed array on a cache line, which an OrtValue can share instead of copying."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def bind(session: ort.InferenceSession, label: str, source: NDArray[Any], target: NDArray[Any]) -> Call:
    """A call without arguments that runs a session from one buffer into another.

    Args:
        session: with one input and one output.
        label: what a message calls the engine.
        source: read each time, in place.
        target: written each time, in place.

    Returns:
        The call; it raises EngineError where the session fails.
    """
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(source))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(target))
    run = session.run_with_iobinding

    def call() -> None:
        try:
            run(binding)
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"{label} failed in ONNX Runtime: {error}") from error

    return call


def run_once(session: ort.InferenceSession, label: str, features: NDArray[Any]) -> NDArray[Any]:
    """Runs a session on an array of any batch size and returns a new one; raises EngineError where it fails."""
    try:
        output: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: features})[0]
    except Exception as error:  # its exceptions share no base but Exception
        raise EngineError(f"{label} failed in ONNX Runtime: {error}") from error
    return output
