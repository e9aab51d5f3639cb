"""The straight-line trace of a path: the engines that it runs, joined into one, without gates or dispatch.

No dynamic dispatch can beat it, so what dispatch takes beyond it is what control costs (Zhang et al., Cocktailer,
OSDI 2023, compare with such traces).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes import Substitution
from dfs_deploy.runtimes.onnxruntime.static import StraightEngine, join_path


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
        BundleError: ONNX Runtime does not take it.
    """
    return StraightEngine(join_path(bundle, path, substitutions), "the trace of a path", bundle, threads)
