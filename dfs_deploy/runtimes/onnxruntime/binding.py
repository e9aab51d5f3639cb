"""Bound calls: an engine, a buffer to read, a buffer to write, and nothing to look up between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dfs_deploy.errors import BundleError, EngineError

Call = Callable[[], None]

_ALIGNMENT = 64
_EXTERNAL_DATA = b"\x0a\x08location"
"""How a tensor's external_data entry with the key ``location`` begins in an ONNX file (onnx.proto, TensorProto)."""


def session_options(threads: int) -> ort.SessionOptions:
    """Options that every session here is made with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised as well, and its warnings speak of the machine's sysfs
    return options


def open_session(data: bytes, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """Makes a session of a model held in memory.

    Raises:
        BundleError: the model keeps weights outside itself, or ONNX Runtime does not take it.
    """
    if _EXTERNAL_DATA in data:
        raise BundleError(f"{name} keeps weights in a file of its own, which no exported engine does; do not use it")
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"ONNX Runtime {ort.__version__} does not take {name} ({first}); export it again") from error


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
