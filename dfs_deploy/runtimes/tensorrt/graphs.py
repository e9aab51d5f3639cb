"""Enqueuing an engine and the copy of what the host reads: call by call, or as one captured CUDA graph.

A graph saves the host the work of enqueuing each kernel anew. pycuda has no graphs; where NVIDIA's ``cuda-python`` is
installed, each engine is run once and then captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from dfs_deploy.errors import EngineError
from dfs_deploy.runtimes.tensorrt.contexts import BoundEngine
from dfs_deploy.runtimes.tensorrt.device import HostOutput, Lane

if TYPE_CHECKING:
    from cuda.bindings.driver import CUresult


class Launch:
    """A call that enqueues a bound engine, then what brings its small output to the host, where the host reads it.

    Attributes:
        label: of the engine.
    """

    def __init__(self, call: BoundEngine, output: HostOutput | None, lane: Lane) -> None:
        self.label = call.label
        self._call, self._output, self._lane = call, output, lane
        self._graph: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph()
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """Enqueues it call by call."""
        self._call.enqueue()
        if self._output is not None:
            self._lane.fetch(self._output)

    def use_graph(self, graph: Callable[[], None]) -> None:
        """Launches a captured graph from now on."""
        self._graph = graph


class Launcher:
    """Makes launches on a lane.

    Args:
        lane: this thread's stream and memory.
        graphs: whether engines are captured; ``None`` for that where ``cuda-python`` is installed.
    """

    def __init__(self, lane: Lane, graphs: bool | None = None) -> None:
        self._lane = lane
        self._held = contextlib.ExitStack()
        self.captures = graphs_available() if graphs is None else graphs
        """Whether launches are graphs."""

    def launch(self, call: BoundEngine, output: HostOutput | None) -> Launch:
        """A launch of an engine bound for one image, and of the copy of an output; ``None`` where nobody reads it."""
        launch = Launch(call, output, self._lane)
        if self.captures:
            launch.enqueue()  # the first run of a context may allocate, which a capture does not allow
            self._lane.synchronize()
            launch.use_graph(self._capture(launch))
        return launch

    def close(self) -> None:
        """Frees the graphs, when the stream is idle."""
        self._held.close()

    def _capture(self, launch: Launch) -> Callable[[], None]:
        from cuda.bindings import driver

        label = launch.label

        def check(result: CUresult, what: str) -> None:
            if result != driver.CUresult.CUDA_SUCCESS:
                raise EngineError(f"{label} failed {what} as a CUDA graph: {result.name}")

        stream = driver.CUstream(self._lane.stream.handle)
        # Of this thread alone: other threads' calls go on meanwhile.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(driver.cuStreamBeginCapture(stream, mode)[0], "to be captured")
        with contextlib.ExitStack() as captured:
            try:
                launch.enqueue()
            finally:
                ended, graph = driver.cuStreamEndCapture(stream)
                if ended == driver.CUresult.CUDA_SUCCESS:
                    captured.callback(driver.cuGraphDestroy, graph)
            check(ended, "to be captured")
            made, executable = driver.cuGraphInstantiate(graph, 0)
        check(made, "to be made")
        self._held.callback(driver.cuGraphExecDestroy, executable)
        run = driver.cuGraphLaunch

        def graph_launch() -> None:
            check(run(executable, stream)[0], "to run")

        return graph_launch


def graphs_available() -> bool:
    """Whether ``cuda-python`` is installed, which captures CUDA graphs."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return False
    return hasattr(driver, "cuStreamBeginCapture")
