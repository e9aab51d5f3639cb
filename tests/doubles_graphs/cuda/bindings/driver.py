"""A double of cuda-python's driver interface: graphs are the operations that were captured."""

from __future__ import annotations

import enum

from double_gpu import GPU, Operation


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_UNKNOWN = 999


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUstream:
    def __init__(self, init_value: int = 0) -> None:
        self.handle = init_value


class CUgraph:
    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.destroyed = False


class CUgraphExec(CUgraph):
    pass


def _result(name: str) -> CUresult:
    GPU.current(name)
    return CUresult.CUDA_ERROR_UNKNOWN if GPU.fault(name) else CUresult.CUDA_SUCCESS


def cuStreamBeginCapture(hStream: CUstream, mode: CUstreamCaptureMode) -> tuple[CUresult]:
    stream = GPU.stream(hStream.handle, "a capture")
    if stream.queue:
        GPU.violate("a capture began with work under way")
    result = _result("cuStreamBeginCapture")
    if result == CUresult.CUDA_SUCCESS:
        stream.capturing = []
    return (result,)


def cuStreamEndCapture(hStream: CUstream) -> tuple[CUresult, CUgraph]:
    stream = GPU.stream(hStream.handle, "a capture")
    operations, stream.capturing = stream.capturing or [], None
    result = _result("cuStreamEndCapture")
    if result == CUresult.CUDA_SUCCESS:
        GPU.live["graph"] += 1
    return (result, CUgraph(operations))


def cuGraphInstantiate(hGraph: CUgraph, flags: int) -> tuple[CUresult, CUgraphExec]:
    result = _result("cuGraphInstantiate")
    if result == CUresult.CUDA_SUCCESS:
        GPU.live["graph"] += 1
    return (result, CUgraphExec(list(hGraph.operations)))


def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) -> tuple[CUresult]:
    if hGraphExec.destroyed:
        GPU.violate("a graph was launched after it was destroyed")
    result = _result("cuGraphLaunch")
    if result == CUresult.CUDA_SUCCESS:
        stream = GPU.stream(hStream.handle, "a graph")
        for operation in hGraphExec.operations:
            stream.add(operation)
    return (result,)


def _destroy(graph: CUgraph) -> tuple[CUresult]:
    if graph.destroyed:
        GPU.violate("a graph was destroyed twice")
    graph.destroyed, graph.operations = True, []
    GPU.live["graph"] -= 1
    return (CUresult.CUDA_SUCCESS,)


def cuGraphDestroy(hGraph: CUgraph) -> tuple[CUresult]:
    return _destroy(hGraph)


def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> tuple[CUresult]:
    return _destroy(hGraphExec)
