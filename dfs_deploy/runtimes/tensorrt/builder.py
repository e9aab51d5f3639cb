"""Building an engine, in a process of its own.

TensorRT's builder takes gigabytes of host memory, and a build that crashes, or that the kernel kills, must not take the
application or the other builds with it. ``build_in_process`` starts this module as a process (``main``): a
``BuildRequest`` as one line of JSON comes on its standard input, then the ONNX graph.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dfs_deploy import __version__
from dfs_deploy.bundle.cache import MAX_FILE
from dfs_deploy.errors import DfsDeployError, EngineError
from dfs_deploy.io.files import nameless_file, read_file, sha256, write_whole
from dfs_deploy.io.text import one_line
from dfs_deploy.runtimes.tensorrt.library import Log, libraries, numbers
from dfs_deploy.system.process import end_with_parent

if TYPE_CHECKING:
    import tensorrt as trt

_PROGRAM = (
    "import os, sys; sys.path[:] = sys.argv.pop().split(os.pathsep);"
    " from dfs_deploy.runtimes.tensorrt.builder import main; main()"
)
"""Program of the process. It imports from where this process does, and so not from the current directory."""

_STRONG_SINCE = (10, 12)
"""TensorRT from which networks are strongly typed without a fallback; before, strong typing is young."""


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that an engine depends on; this package's version stands for how it builds them.

    Attributes:
        onnx: digest of the graph with its weights.
        precision: ``fp32``, ``fp16`` or ``int8``: what a weakly typed network may use.
        tensorrt: version of TensorRT.
        device: model of the GPU.
        compute_capability: its compute capability.
        inputs: size of each input, without the batch.
        profiles: least, best and greatest batch of each optimisation profile.
        workspace_mib: MiB that a layer may use while it runs; ``None`` for no limit.
        dfs_deploy: version of this package.
    """

    onnx: str
    precision: str
    tensorrt: str
    device: str
    compute_capability: str
    inputs: dict[str, tuple[int, ...]]
    profiles: tuple[tuple[int, int, int], ...]
    workspace_mib: int | None
    dfs_deploy: str = __version__

    @property
    def name(self) -> str:
        """Name of the engine's files, without suffix."""
        return sha256(msgspec.json.encode(self, order="sorted"))[:16]


class BuildRequest(msgspec.Struct, frozen=True):
    """One engine to build.

    Attributes:
        parent: number of the process that asks.
        label: name of the engine in messages.
        key: what the engine depends on.
        engine: handle of the file to which the engine is written.
        timing_cache: file of measured times to read and to write; ``None`` if none is kept.
    """

    parent: int
    label: str
    key: EngineKey
    engine: int
    timing_cache: str | None


def build_in_process(request: BuildRequest, model: bytes) -> str:
    """Builds an engine in a process of its own.

    Args:
        request: what to build; ``engine`` is a handle of this process.
        model: ONNX graph.

    Returns:
        How the network was typed: ``strong`` or ``weak``.

    Raises:
        EngineError: it could not be built; the message names the engine and says why.
    """
    with nameless_file() as given:
        given.write(msgspec.json.encode(request) + b"\n" + model)
        given.seek(0)
        command = [sys.executable, "-c", _PROGRAM, os.pathsep.join(sys.path)]
        ended = subprocess.run(  # noqa: S603 (our own program)
            command, stdin=given, capture_output=True, pass_fds=(request.engine,), check=False
        )
    said = ended.stdout.decode(errors="replace").strip()
    if ended.returncode == 0 and said:
        return said
    why = said or _why(ended.returncode, ended.stderr.decode(errors="replace"))
    raise EngineError(f"{request.label} could not be built: {one_line(why)}")


def _why(code: int, log: str) -> str:
    """Why a process ended that did not say so."""
    if code == -signal.SIGKILL:
        return "its process was killed, as the kernel does if memory runs out; free memory, or lower --workspace"
    if code < 0:
        return f"TensorRT crashed ({signal.Signals(-code).name}); update TensorRT, or leave this precision out"
    lines = log.strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"


def main() -> None:
    """Program of the process: builds, and writes how the network was typed, or why there is no engine."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=BuildRequest)
    end_with_parent(request.parent)
    # What TensorRT's libraries print goes to standard error: the pipe holds the result only.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as result:
        os.dup2(2, 1)
        try:
            result.write(build(request, sys.stdin.buffer.read()))
        except DfsDeployError as error:
            result.write(str(error))
            sys.exit(1)
        except OSError as error:
            result.write(f"{error.filename or 'the engine'}: {error.strerror or error}")
            sys.exit(1)


def build(request: BuildRequest, model: bytes) -> str:
    """Builds an engine in this process and writes it.

    In a strongly typed network the graph's own types decide the precision of each layer. If TensorRT is too old for
    that, or so young in it that it refuses the graph, the precision of the engine is allowed as a flag instead.

    Returns:
        How the network was typed: ``strong`` or ``weak``.

    Raises:
        DfsDeployError: TensorRT does not take the graph; the message says why.
    """
    log = Log()
    with libraries():
        import tensorrt as trt

    builder = trt.Builder(log.logger)
    typings = []
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        typings.append("strong")
    if numbers(trt.__version__) < _STRONG_SINCE:
        typings.append("weak")
    refusals = []
    for typing in typings:
        engine = _build_once(builder, log, request, model, typing)
        if engine is not None:
            with os.fdopen(request.engine, "wb", closefd=False) as file:
                file.write(engine)
            return typing
        refusals.append(log.take())
    raise DfsDeployError(f"TensorRT {trt.__version__} refused it ({' / '.join(refusals)})")


def _build_once(builder: trt.Builder, log: Log, request: BuildRequest, model: bytes, typing: str) -> memoryview | None:
    import tensorrt as trt

    key, network = request.key, builder.create_network(_network_flags(typing))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise DfsDeployError(f"TensorRT {trt.__version__} cannot read its graph ({errors}); export the bundle again")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what FP32 means
    if key.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_mib << 20)
    if typing == "weak" and key.precision == "fp16" and hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
    if typing == "weak" and key.precision == "int8" and hasattr(trt.BuilderFlag, "INT8"):
        config.set_flag(trt.BuilderFlag.INT8)
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # The runtime makes several contexts of one profile; newer versions allow that without asking.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    for batches in key.profiles:
        profile = builder.create_optimization_profile()
        for name, size in key.inputs.items():
            least, best, greatest = ((batch, *size) for batch in batches)
            profile.set_shape(name, least, best, greatest)
        if config.add_optimization_profile(profile) < 0:
            return None
    times = None if request.timing_cache is None else Path(request.timing_cache)
    if not config.set_timing_cache(config.create_timing_cache(_read(times)), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # times of another TensorRT or GPU
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return None
    measured = config.get_timing_cache()
    if measured is not None and times is not None:
        with contextlib.suppress(OSError):  # a cache: without it the next build takes longer
            write_whole(times, bytes(memoryview(measured.serialize())))
    return memoryview(engine)


def _network_flags(typing: str) -> int:
    import tensorrt as trt

    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):  # 8.6 needs it, 10.x ignores it, 11 has no other
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if typing == "strong" and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def _read(times: Path | None) -> bytes:
    """Times that were measured before; none if they cannot be read, or a link lies there."""
    if times is not None:
        with contextlib.suppress(OSError):  # a cache
            return read_file(times, MAX_FILE, follow=False)
    return b""
