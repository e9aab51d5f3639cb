"""Whole networks as one engine: the static baselines of a bundle, static policies and traces of paths."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError, RuntimeClosedError
from dfs_deploy.options import Precision
from dfs_deploy.runtimes.onnxruntime.binding import (
    Call,
    aligned_buffer,
    bind,
    engine_failed,
    open_session,
    run_once,
    session_options,
)
from dfs_deploy.runtimes.onnxruntime.sessions import check_ends
from dfs_deploy.system.ort import onnxruntime as ort


class StraightEngine:
    """Runs one engine from images to logits with the same care as the dynamic network: bound at batch 1.

    Args:
        model: ONNX, from (N, C, H, W) float32 to (N, classes) float32.
        label: what messages call it.
        bundle: that it was made of.
        threads: that the engine may use; ``None`` for one.

    Raises:
        BundleError: ONNX Runtime does not take the model, or it takes or gives something else.
    """

    def __init__(self, model: bytes, label: str, bundle: Bundle, threads: int | None = None) -> None:
        session = open_session(model, f"{bundle.path}: {label}", session_options(threads or 1))
        classes = (bundle.architecture.classes,)
        check_ends(bundle, label, session, ("float32", bundle.input.shape), ("float32", classes))
        self._set_up(session, label, bundle)

    def _set_up(self, session: ort.InferenceSession, label: str, bundle: Bundle) -> None:
        self._label, self._bundle = label, bundle
        self._session: ort.InferenceSession | None = session
        self._images = aligned_buffer((1, *bundle.input.shape), np.dtype(np.float32))
        self._logits = aligned_buffer((1, bundle.architecture.classes), np.dtype(np.float32))
        self._call: Call | None = bind(session, self._images, self._logits)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps (N, C, H, W) float32, normalised, to logits (N, classes) float32."""
        session, call = self._opened()
        if len(images) != 1:
            return run_once(session, self._label, images)
        np.copyto(self._images, images)
        try:
            call()
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise engine_failed(self._label, error) from error
        return self._logits.copy()

    @property
    def call(self) -> Call:
        """The bound call at batch 1, on the image before: for a bench."""
        return self._opened()[1]

    def clone(self) -> StraightEngine:
        """The same engine with buffers of its own, for another thread."""
        other = object.__new__(StraightEngine)
        other._set_up(self._opened()[0], self._label, self._bundle)
        return other

    def _opened(self) -> tuple[ort.InferenceSession, Call]:
        session, call = self._session, self._call
        if session is None or call is None:
            raise RuntimeClosedError(
                f"this {type(self).__name__} was closed; make a new one, or use it inside its with block"
            )
        return session, call

    def close(self) -> None:
        """Frees the engine; closing twice is fine."""
        self._session = self._call = None

    def __enter__(self) -> StraightEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class StaticEngine(StraightEngine):
    """A static baseline: the whole backbone in one precision, every block run.

    Args:
        bundle: with engines for ONNX Runtime.
        precision: of the baseline.
        threads: that the engine may use; ``None`` for one.

    Raises:
        BundleError: the bundle has no such baseline.
    """

    def __init__(self, bundle: Bundle, precision: Precision, threads: int | None = None) -> None:
        static = bundle.manifest.runtimes["onnxruntime"].static
        if precision not in static:
            raise BundleError(
                f"{bundle.path} has no static {precision} engine; export with {precision} among the targets"
            )
        super().__init__(bundle.read(static[precision]), static[precision], bundle, threads)
