"""The engines of one path, joined into one model: what a static policy runs, and the trace of a path in a bench.

Joined where they run, they take no room in a bundle, and which precision serves an option is known by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.onnx_messages import Message, parse_model
from dfs_deploy.errors import BundleError
from dfs_deploy.runtimes.base import Substitution, serving


def join_path(bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = ()) -> bytes:
    """The engines that a path runs as one ONNX model, from images to logits.

    Args:
        bundle: with engines for ONNX Runtime.
        path: (gated blocks,) option indices.
        substitutions: which option is served by an engine of another precision.

    Raises:
        BundleError: an engine is not what an export writes, or the engines have operators of several versions.
    """
    files = engine_files(bundle, path, substitutions)
    return join_engines([(f"{bundle.path}: {file}", bundle.read(file)) for file in files])


def engine_files(bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = ()) -> list[str]:
    """Names in the bundle of the engines that a path runs, in order, each for the layout in which features reach it.

    Args:
        bundle: with engines for ONNX Runtime.
        path: (gated blocks,) option indices.
        substitutions: which option is served by an engine of another precision.
    """
    engines = bundle.manifest.runtimes["onnxruntime"]
    files, layout = [engines.stem.files["float32"]], engines.stem.output
    for block, choice in zip(engines.blocks, path, strict=True):
        option = bundle.options[int(choice)]
        engine = block.skip if option.skips else serving(block, option.name, substitutions)
        if engine is not None:
            files.append(engine.files[layout])
            layout = engine.output
    return [*files, engines.head.files[layout]]


def join_engines(engines: Sequence[tuple[str, bytes]]) -> bytes:
    """Joins engines of one input and one output each into one that runs them in order.

    Args:
        engines: name for messages and ONNX model of each, at least one; each takes what the one before it gives.

    Raises:
        BundleError: one is no model, or their operators are of several versions.
    """
    joined: Message = None
    left = ""
    for place, (name, data) in enumerate(engines):
        part = parse_model(data, name)
        left = _rename(part.graph, f"{place}.", left)
        if joined is None:
            joined = part
            continue
        if list(part.opset_import) != list(joined.opset_import):
            raise BundleError(f"{name} has operators of another version than the engines before it; export it again")
        joined.graph.node.extend(part.graph.node)
        joined.graph.initializer.extend(part.graph.initializer)
        del joined.graph.output[:]
        joined.graph.output.extend(part.graph.output)
    model: bytes = joined.SerializeToString()
    return model


def _rename(graph: Message, prefix: str, taken: str) -> str:
    """Gives every name in a graph a prefix, its input the name of what it takes if there is one; returns its output."""
    source = graph.input[0].name

    def named(name: str) -> str:
        return taken if taken and name == source else prefix + name

    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = named(tensor.name)
    for value in (graph.input[0], graph.output[0]):
        value.name = named(value.name)
    left: str = graph.output[0].name
    return left
