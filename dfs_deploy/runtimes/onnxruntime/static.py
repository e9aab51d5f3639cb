"""The static baselines of a bundle: the whole backbone as one engine, every block run."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import onnxruntime as ort
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


class StaticEngine:
    """Runs a static baseline with the same care as the dynamic network: bound at batch 1.

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
        self._label = f"static {precision}"
        self._session: ort.InferenceSession | None = open_session(
            bundle.read(static[precision]), f"{bundle.path}: {static[precision]}", session_options(threads or 1)
        )
        self._images = aligned_buffer((1, *bundle.input.shape), np.dtype(np.float32))
        self._logits = aligned_buffer((1, bundle.architecture.classes), np.dtype(np.float32))
        self._call: Call | None = bind(self._session, self._images, self._logits)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps (N, C, H, W) float32, normalised, to logits (N, classes) float32."""
        if self._session is None or self._call is None:
            raise RuntimeClosedError("this StaticEngine was closed; make a new one, or use it inside its with block")
        if len(images) != 1:
            return run_once(self._session, self._label, images)
        np.copyto(self._images, images)
        try:
            self._call()
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise engine_failed(self._label, error) from error
        return self._logits.copy()

    def close(self) -> None:
        """Frees the engine; closing twice is fine."""
        self._session = self._call = None

    def __enter__(self) -> StaticEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
