"""Builds one plan and ends: what :mod:`dfs_deploy.runtimes.tensorrt.building` runs for each engine.

A :class:`BuildRequest` as one line of JSON comes on standard input, then the ONNX graph; a :class:`Message` a line goes
to standard output.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dfs_deploy.bundle.cache import MAX_FILE
from dfs_deploy.errors import DfsDeployError
from dfs_deploy.io.files import read_file, write_whole
from dfs_deploy.runtimes.tensorrt.library import STRONG_SINCE, Log, libraries, numbers
from dfs_deploy.system.process import end_with_parent

if TYPE_CHECKING:
    import tensorrt as trt


class BuildRequest(msgspec.Struct, frozen=True):
    """What to build.

    Attributes:
        parent: number of the process that asks.
        label: of the engine.
        precision: ``fp32``, ``fp16`` or ``int8``: what a weakly typed network may use.
        inputs: size of each input, without the batch.
        profiles: least, best and greatest batch of each optimisation profile.
        workspace: bytes that a layer may use while it runs; ``None`` for no limit.
        plan: handle of the file that the plan is written to.
        timing_cache: file of measured times to read, where there is one, and to write; ``None`` if none is kept.
    """

    parent: int
    label: str
    precision: str
    inputs: dict[str, tuple[int, ...]]
    profiles: tuple[tuple[int, int, int], ...]
    workspace: int | None
    plan: int
    timing_cache: str | None


class Message(msgspec.Struct, frozen=True):
    """How a build goes.

    Attributes:
        share: how far it is, 0 to 1.
        typing: at the end, how the network was typed: ``strong`` or ``weak``.
        error: at the end, why there is no plan.
    """

    share: float = 0.0
    typing: str = ""
    error: str = ""


def build(request: BuildRequest, model: bytes, report: Callable[[float], None]) -> str:
    """Builds a plan and writes it.

    Strongly typed, the graph's own types decide the precision of each layer. Where TensorRT is older than that, or so
    young in it that it refuses the graph, the precision of the engine is allowed as a flag instead.

    Returns:
        ``strong`` or ``weak``.

    Raises:
        DfsDeployError: TensorRT does not take the graph; the message says why.
    """
    log = Log()
    with libraries():
        import tensorrt as trt

    builder = trt.Builder(log.logger)
    ways = []
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        ways.append("strong")
    if numbers(trt.__version__) < STRONG_SINCE:
        ways.append("weak")
    refusals = []
    for typing in ways:
        plan = _build_once(builder, log, request, model, typing, report)
        if plan is not None:
            with os.fdopen(request.plan, "wb", closefd=False) as file:
                file.write(plan)
            return typing
        refusals.append(log.take() or "TensorRT gives no reason")
    raise DfsDeployError(f"TensorRT {trt.__version__} refused it ({' / '.join(refusals)})")


def _build_once(
    builder: trt.Builder, log: Log, request: BuildRequest, model: bytes, typing: str, report: Callable[[float], None]
) -> memoryview | None:
    with libraries():
        import tensorrt as trt

    network = builder.create_network(_network_flags(typing))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise DfsDeployError(f"TensorRT {trt.__version__} cannot read its graph ({errors}); export the bundle again")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what FP32 means
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    if typing == "weak":
        allowed = {"fp16": "FP16", "int8": "INT8"}.get(request.precision)
        if allowed == "FP16" and hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
        if allowed == "INT8" and hasattr(trt.BuilderFlag, "INT8"):
            config.set_flag(trt.BuilderFlag.INT8)
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # The runtime makes several contexts of one profile; newer versions allow that without asking.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    for batches in request.profiles:
        profile = builder.create_optimization_profile()
        for name, size in request.inputs.items():
            least, best, greatest = ((batch, *size) for batch in batches)
            profile.set_shape(name, least, best, greatest)
        if config.add_optimization_profile(profile) < 0:
            return None
    timing = None if request.timing_cache is None else Path(request.timing_cache)
    cache = config.create_timing_cache(_read(timing))
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # of another TensorRT or GPU: begin anew
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return None
    measured = config.get_timing_cache()
    if measured is not None and timing is not None:
        with contextlib.suppress(OSError):  # a cache: without it the next build takes longer
            write_whole(timing, bytes(memoryview(measured.serialize())))
    return memoryview(plan)


def _read(timing: Path | None) -> bytes:
    """The times that were measured before; none where they cannot be read, or a link lies there."""
    if timing is not None:
        with contextlib.suppress(OSError):  # a cache
            return read_file(timing, MAX_FILE, follow=False)
    return b""


def _network_flags(typing: str) -> int:
    with libraries():
        import tensorrt as trt

    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):  # 8.6 needs it, 10.x ignores it, 11 has no other
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if typing == "strong" and hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def _monitor(report: Callable[[float], None]) -> trt.IProgressMonitor:
    """Reports how far the outermost phase is: a build has one, with phases within phases."""
    with libraries():
        import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        """Follows the phases that have no parent."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # NVIDIA's classes want this spelled out
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                report(min((step + 1) / self._steps[phase_name], 1.0))
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def main() -> None:
    """Reads a request, builds, and says how it went."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=BuildRequest)
    end_with_parent(request.parent)
    # What TensorRT's libraries print goes to standard error: the pipe holds messages alone.
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(message: Message) -> None:
        channel.write(msgspec.json.encode(message) + b"\n")

    model = sys.stdin.buffer.read()
    try:
        say(Message(share=1.0, typing=build(request, model, lambda share: say(Message(share=share)))))
    except DfsDeployError as error:
        say(Message(error=str(error)))
        sys.exit(1)
    except OSError as error:
        say(Message(error=f"{error.filename or 'the plan'}: {error.strerror or error}"))
        sys.exit(1)


if __name__ == "__main__":
    main()
