"""The straight-line trace of a path: the engines that it runs, joined into one, without gates or dispatch.

No dynamic dispatch can beat it, so what dispatch takes beyond it is what control costs (Zhang et al., Cocktailer,
OSDI 2023, compare with such traces).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.extras import required
from dfs_deploy.runtimes.base import Substitution, serving
from dfs_deploy.runtimes.onnxruntime.static import StraightEngine


def open_trace(
    bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = (), threads: int = 1
) -> StraightEngine:
    """Loads the trace of a path into ONNX Runtime.

    Args:
        bundle: with engines for ONNX Runtime.
        path: (gated blocks,) option indices.
        substitutions: of the runtime that the trace is compared with.
        threads: that the engine may use.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    return StraightEngine(
        join_engines([bundle.read(file) for file in engine_files(bundle, path, substitutions)]),
        "the trace of a path",
        bundle,
        threads,
    )


def engine_files(bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = ()) -> list[str]:
    """Names in the bundle of the engines that a path runs, in order, each for the form in which features reach it.

    Args:
        bundle: with engines for ONNX Runtime.
        path: (gated blocks,) option indices.
        substitutions: which option is served by an engine of another precision.
    """
    engines = bundle.manifest.runtimes["onnxruntime"]
    files, form = [engines.stem.files["float32"]], engines.stem.output
    for block, choice in zip(engines.blocks, path, strict=True):
        option = bundle.options[int(choice)]
        engine = block.skip if option.skips else serving(block, option.name, substitutions)
        if engine is not None:
            files.append(engine.files[form])
            form = engine.output
    return [*files, engines.head.files[form]]


def join_engines(engines: Sequence[bytes]) -> bytes:
    """Joins engines of one input and one output each into one that runs them in order.

    Args:
        engines: ONNX models, at least one; each takes what the one before it gives.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    with required("bench"):
        import onnx
        from onnx.compose import add_prefix, merge_models

    parts = [add_prefix(onnx.load_from_string(data), f"{i}_") for i, data in enumerate(engines)]
    joined = parts[0]
    for part in parts[1:]:
        joined = merge_models(joined, part, [(joined.graph.output[0].name, part.graph.input[0].name)])
    model: bytes = joined.SerializeToString()
    return model
