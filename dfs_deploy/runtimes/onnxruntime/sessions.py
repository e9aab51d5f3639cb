"""Sessions of ONNX Runtime: how they are opened, bound to buffers and run, and what their failures mean."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from dfs_deploy.bundle.onnx_messages import parse_model
from dfs_deploy.errors import BundleError, EngineError, OutOfMemoryError
from dfs_deploy.io.text import first_line
from dfs_deploy.runtimes.dispatch import Call
from dfs_deploy.system.cpu import target_of
from dfs_deploy.system.ort import onnxruntime as ort

_AS_REQUESTED = 1  # kSameAsRequested: grow by the size of the request; the default doubles
_global_pool = False
_GLOBAL_POOL = "use_per_session_threads must be false"
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")
_QUANTISERS = ["WeightBiasQuantization"]
"""Optimisers that are switched off: this one makes a float convolution between uint8 tensors an INT8 one."""

_EXTERNAL_DATA = b"location"
"""Key of the file of a tensor (onnx.proto, TensorProto.external_data); otherwise only names can hold these bytes."""


def session_options(threads: int) -> ort.SessionOptions:
    """Options of every session.

    Args:
        threads: threads that the session may use.
    """
    _share_allocator()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads  # one: the calling thread, and no pool
    if threads > 1:
        # Each session then has a pool (see loading.py); pools that do not spin while waiting do not disturb each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    # With one block of memory for a whole run, planned by shape, an INT8 block takes 1.5 times as long at a batch of
    # 64, and the same at a batch of one (docs/performance.md).
    options.enable_mem_pattern = False
    # ONNX Runtime's own format is read without checks, and would be recognised by its first bytes.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # errors are raised as well; warnings are about the machine's sysfs
    if target_of() == "avx2":
        # On an x86 CPU without VNNI, sums of two 8-bit products saturate in 16 bits; with this they are exact, and
        # slower unless the weights have 7 bits. With VNNI they are exact anyway, and this would double their time.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


_allocator_lock = threading.Lock()
_allocator_shared = False


def _share_allocator() -> None:
    """Gives ONNX Runtime one arena for all sessions of the process, which lives as long as the process.

    Sessions that each own an arena push one another's buffers out of the cache (docs/performance.md).
    """
    global _allocator_shared
    with _allocator_lock:
        if not _allocator_shared:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            try:
                ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED}))
            except RuntimeError as error:  # older versions: the application shares one already, which is as good
                if "already been registered" not in str(error):
                    raise
            _allocator_shared = True


def open_session(data: bytes, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """Makes a session from a model in memory.

    Raises:
        BundleError: the model keeps weights outside itself, or ONNX Runtime refuses it.
        OutOfMemoryError: there is not enough memory for it.
    """
    if _EXTERNAL_DATA in data and _keeps_weights_outside(data, name):
        raise BundleError(f"{name} keeps weights in a file of its own, which no exported engine does; do not use it")
    try:
        session = _open(data, options)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        if is_memory_error(error):
            raise OutOfMemoryError(f"memory ran out while {name} was loaded; free some, or raise its limit") from error
        raise BundleError(
            f"ONNX Runtime {ort.__version__} does not take {name} ({first_line(error)}); export it again"
        ) from error
    # It would keep the model, as much memory as its weights again, to open it anew with another execution provider.
    if "_model_bytes" in vars(session):
        vars(session)["_model_bytes"] = None
    return session


def _keeps_weights_outside(data: bytes, name: str) -> bool:
    """Whether a model has a constant in another file, or parts that may have one and that no exported engine has."""
    graph = parse_model(data, name).graph
    size = graph.ByteSize()
    graph.DiscardUnknownFields()
    return graph.ByteSize() != size or any(tensor.external_data or tensor.data_location for tensor in graph.initializer)


def _open(data: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    global _global_pool
    # Without the fallback, which would try the same provider again, and print.
    make = functools.partial(
        ort.InferenceSession,
        data,
        options,
        ["CPUExecutionProvider"],
        enable_fallback=0,
        disabled_optimizers=_QUANTISERS,
    )
    if not _global_pool:
        try:
            return make()
        except RuntimeError as error:
            if _GLOBAL_POOL not in str(error):
                raise
        _global_pool = True
    options.use_per_session_threads = False
    options.intra_op_num_threads = options.inter_op_num_threads = 0  # the pool's own
    return make()


def has_global_pool() -> bool:
    """Whether the application set up one thread pool for all sessions; known once a session was opened."""
    return _global_pool


def is_memory_error(error: Exception) -> bool:
    """Whether ONNX Runtime failed because it could not get memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def bind(session: ort.InferenceSession, source: NDArray[Any], target: NDArray[Any]) -> Call:
    """A call without arguments that runs a session from one buffer into another.

    Args:
        session: session with one input and one output.
        source: input, read at each call.
        target: output, written at each call.

    Returns:
        The call. If the session fails it raises an exception of ONNX Runtime: see ``engine_failed``.
    """
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(source))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(target))
    return _bound_call(session, binding)


def _bound_call(session: ort.InferenceSession, binding: ort.IOBinding) -> Call:
    """Makes a call without arguments that runs a session on what is bound."""
    # The public method looks for options of other providers at each call, and makes new run options: 0.7 of its 1.9
    # microseconds. It is the way if a later version lacks these attributes.
    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return functools.partial(session.run_with_iobinding, binding)
    call = functools.partial(inner.run_with_iobinding, bound, ort.RunOptions())
    call.__dict__["keeps"] = (session, binding)  # arrays bound as values live as long as these
    return call


class Rebinding:
    """Runs a session from any array into any other, of any batch size: it binds them at each call and makes nothing.

    Args:
        session: session with one input and one output.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        binding = session.io_binding()
        self._call = _bound_call(session, binding)
        names = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._bind_input, self._bind_output = _binders(binding, *names)

    def __call__(self, label: str, source: NDArray[Any], target: NDArray[Any]) -> None:
        """Runs it once.

        Args:
            label: name of the engine in messages.
            source: contiguous array.
            target: contiguous array of the output's shape and type.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        try:
            # By address: neither array is kept, and the caller holds both until this returns.
            self._bind_input(source.dtype, source.shape, source.ctypes.data)
            self._bind_output(target.dtype, target.shape, target.ctypes.data)
            self._call()
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise engine_failed(label, error) from error


def _binders(binding: ort.IOBinding, source: str, target: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Makes calls that bind memory on the CPU to an input and an output, by type, shape and address."""
    # The public methods make a new device at each call: 4 of their 6 microseconds. They are the way if a later version
    # lacks these attributes.
    inner, device = getattr(binding, "_iobinding", None), getattr(ort.OrtDevice.make("cpu", 0), "_ort_device", None)
    if inner is None or device is None:
        return (
            functools.partial(binding.bind_input, source, "cpu", 0),
            functools.partial(binding.bind_output, target, "cpu", 0),
        )
    return functools.partial(inner.bind_input, source, device), functools.partial(inner.bind_output, target, device)


def engine_failed(label: str, error: Exception) -> EngineError | OutOfMemoryError:
    """Makes the error for an engine that failed."""
    if is_memory_error(error):
        return OutOfMemoryError(f"memory ran out in {label}; give it fewer images per call, or free some")
    return EngineError(
        f"{label} failed in ONNX Runtime {ort.__version__}: {first_line(error)}; check the bundle with dfs-deploy"
        " inspect, or export it again"
    )


def run_once(session: ort.InferenceSession, label: str, features: NDArray[Any]) -> NDArray[Any]:
    """Runs a session on an array of any batch size and returns a new array; raises EngineError if it fails."""
    try:
        output: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: features})[0]
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise engine_failed(label, error) from error
    return output
