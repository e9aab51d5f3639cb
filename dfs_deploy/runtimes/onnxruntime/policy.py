"""A static policy in ONNX Runtime: its path never changes, so it runs as one engine, with nothing to dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import RuntimeClosedError
from dfs_deploy.runtimes.base import Backend, Substitution
from dfs_deploy.runtimes.onnxruntime.binding import Call, open_session, session_options
from dfs_deploy.runtimes.onnxruntime.joined import join_path
from dfs_deploy.runtimes.onnxruntime.plan import load_plan
from dfs_deploy.runtimes.onnxruntime.prepared import ONE_ENGINE, PreparedEngines
from dfs_deploy.runtimes.onnxruntime.sessions import (
    affordable_threads,
    check_memory,
    decided_substitutions,
    described,
)
from dfs_deploy.runtimes.onnxruntime.static import StraightEngine

_LABEL = "the path of the static policy"


class PolicyBackend(Backend):
    """Runs the engines of a bundle's policy, joined into one.

    Args:
        bundle: with a static policy.
        policy: (gated blocks,) uint8, the option index that each block always runs.
        threads: that the engine may use; ``None`` for one.
        plan: whether a plan that was measured here decides which engine serves an option.
        cache: where plans are kept; ``None`` for the bundle's usual cache.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        policy: NDArray[np.uint8],
        threads: int | None = None,
        plan: bool = True,
        cache: Cache | None = None,
    ) -> None:
        check_memory(bundle)
        threads = threads or 1
        measured = load_plan(bundle, threads, cache=cache) if plan else None
        self._substitutions = decided_substitutions(bundle, measured)
        if threads > 1:  # tells whether the application made a pool for all sessions
            stem = bundle.manifest.runtimes["onnxruntime"].stem.files["float32"]
            open_session(bundle.read(stem), f"{bundle.path}: {stem}", session_options(1))
        threads, pools = affordable_threads(bundle, threads, 1)
        layout = PreparedEngines(reason=ONE_ENGINE).description
        self._description = described(threads, pools, "none: a static policy", measured is not None, layout)
        model = join_path(bundle, policy, self._substitutions)
        self._engine: StraightEngine | None = StraightEngine(model, _LABEL, bundle, threads)

    def infer(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        assert forced is not None  # noqa: S101 (a static policy is always given)
        return self._loaded()(images), forced.copy()

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        return (self._loaded().call,)

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        return ()

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        """Does nothing: there are no scores."""

    def clone(self) -> PolicyBackend:
        other = object.__new__(PolicyBackend)
        other._substitutions, other._description = self._substitutions, self._description
        other._engine = self._loaded().clone()
        return other

    def close(self) -> None:
        self._engine = None

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return self._substitutions

    @property
    def description(self) -> dict[str, Any]:
        return dict(self._description)

    def _loaded(self) -> StraightEngine:
        if self._engine is None:
            raise RuntimeClosedError("this Runtime was closed by another thread; make a new one")
        return self._engine
