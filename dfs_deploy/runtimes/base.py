"""What every runtime has in common: inputs checked, results made, lifecycle kept. A backend runs the engines."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError, InputError, RuntimeClosedError, UsageError
from dfs_deploy.manifest import BlockEngines, BudgetRecord, Engine
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes.budgets import bias_for, score_offset
from dfs_deploy.target_cpu import made_for_another_cpu
from dfs_deploy.text import one_line

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a network made of a batch.

    Attributes:
        logits: (N, classes) float32.
        path: (N, gated blocks) uint8, the option index that each gated block ran.
        costs: of each option, relative to the full-precision block.
    """

    logits: NDArray[np.float32]
    path: NDArray[np.uint8]
    costs: tuple[float, ...]

    @property
    def computation_percentage(self) -> NDArray[np.float32]:
        """(N,) float32, in percent of every gated block run in full precision."""
        return computation_percentage(self.path, self.costs)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) int64, the class with the greatest logit."""
        return np.asarray(self.logits.argmax(1), np.int64)


@dataclass(frozen=True)
class Substitution:
    """An option that an engine of another precision than its own serves.

    Attributes:
        option: name of the option.
        wanted: precision of its own engine.
        served_by: precision of the engine that runs instead.
        reason: why, in a few words.
        blocks: indices of the blocks where this is so.
    """

    option: str
    wanted: str
    served_by: str
    reason: str
    blocks: tuple[int, ...]


def serving(block: BlockEngines, option: str, substitutions: Sequence[Substitution]) -> Engine:
    """The engine that runs when the gate chooses an option of a block here."""
    preferred = block.options[option][0]
    standing_in = (s.served_by for s in substitutions if s.option == option and block.index in s.blocks)
    wanted = next(standing_in, preferred.precision)
    return next((engine for engine in block.options[option] if engine.precision == wanted), preferred)


class Backend(ABC):
    """Runs a bundle's engines for one thread."""

    name: str

    @abstractmethod
    def infer(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch.

        Args:
            images: (N, C, H, W) float32, checked.
            forced: (N, gated blocks) uint8, options to run instead of what the gate chooses; the gate still steps.

        Returns:
            Logits (N, classes) float32 and path (N, gated blocks) uint8, both owned by the caller.
        """

    @abstractmethod
    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        """Adds to the gate's scores, (options,) float32, from the next batch on; clones made later start with it."""

    @abstractmethod
    def clone(self) -> Backend:
        """A backend for another thread, with the same engines and its own buffers."""

    @abstractmethod
    def close(self) -> None:
        """Frees what this backend alone holds, and the engines when no clone is left."""

    @abstractmethod
    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        """See :meth:`Runtime.engine_calls`."""

    @abstractmethod
    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """See :meth:`Runtime.gate_calls`."""

    @property
    @abstractmethod
    def substitutions(self) -> tuple[Substitution, ...]:
        """What was decided at load."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain facts for reports: provider and version, threads, gate."""


BackendFactory = Callable[..., Backend]


def _onnxruntime(
    bundle: Bundle, threads: int | None, gate: str | None, plan: bool, prepared: bool, speculate: bool
) -> Backend:
    from dfs_deploy.runtimes.onnxruntime import OnnxRuntimeBackend

    if speculate:
        raise UsageError("the runtime onnxruntime has nothing to gain from speculation; use tensorrt, or leave it out")
    return OnnxRuntimeBackend(bundle, threads, gate, plan, prepared)


def _tensorrt(
    bundle: Bundle, threads: int | None, gate: str | None, plan: bool, prepared: bool, speculate: bool
) -> Backend:
    from dfs_deploy.runtimes.tensorrt import TensorRTBackend

    if threads is not None:
        raise UsageError(f"{threads} threads for the runtime tensorrt, which has none; leave threads out")
    return TensorRTBackend(bundle, gate, speculate)


BACKENDS: dict[str, BackendFactory] = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt}
"""Runtimes by name; each is imported when it is asked for."""


class Runtime:
    """Runs a bundle: for each input the gate decides, block by block, what is computed.

    One ``Runtime`` is one thread's; :meth:`clone` gives another thread its own. Use it as a context manager, or call
    :meth:`close`.

    Args:
        bundle: path of a ``NAME.dfs`` directory, or an opened :class:`~dfs_deploy.bundle.Bundle`.
        runtime: ``onnxruntime`` or ``tensorrt``; ``None`` for the first.
        threads: threads that one engine may use; ``None`` for one, which is the fastest at batch 1.
        gate: ``native`` or ``numpy``; ``None`` for the first where it was compiled, the second elsewhere.
        plan: whether a plan measured on this machine (``dfs-deploy bench --save-plan``) decides which engine serves an
            option; else the engine of the option's own precision does, where the CPU is made for it.
        prepared: whether engines prepared for this machine run (``dfs-deploy prepare``), made at load where there are
            none; else the bundle's own do.
        budget: see :meth:`set_budget`; ``None`` for the gate as trained.
        speculate: on ``tensorrt``, whether single images run ahead of the gate on the paths that most inputs took: the
            results are the same. ``description`` tells how many guesses were right.

    Raises:
        BundleError: the bundle cannot be read, or holds no engines for this runtime.
        UsageError: an unknown runtime, less than one thread, a budget outside what was calibrated, or a choice that
            this runtime does not have.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        runtime: str | None = None,
        *,
        threads: int | None = None,
        gate: str | None = None,
        plan: bool = True,
        prepared: bool = True,
        budget: float | None = None,
        speculate: bool = False,
    ) -> None:
        name = runtime or "onnxruntime"
        if name not in BACKENDS:
            raise UsageError(f"unknown runtime {name!r}, expected {' or '.join(BACKENDS)}")
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads, expected at least 1")
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        if name not in self._bundle.manifest.runtimes:
            made = ", ".join(self._bundle.manifest.runtimes) or "none"
            raise BundleError(
                f"{self._bundle.path} has no engines for {name} (made for: {made}); export with --runtime {name}"
            )
        bias = None if budget is None else bias_for(budget, self._bundle)
        if name == "onnxruntime" and not isinstance(bundle, Bundle):  # who opened it before can ask for themselves
            note = made_for_another_cpu(self._bundle.manifest)
            if note is not None:
                _LOG.warning("%s: %s", one_line(self._bundle.path), note)
        self._backend: Backend | None = BACKENDS[name](self._bundle, threads, gate, plan, prepared, speculate)
        self._costs = self._bundle.options.costs
        self._gated_blocks = self._bundle.architecture.gated_blocks
        self._policy = self._bundle.policy
        self._in_use = threading.Lock()
        self._budget: float | None = None
        self._cost_bias = 0.0
        if bias is not None:
            self.set_cost_bias(bias)
            self._budget = budget

    def __call__(self, images: NDArray[Any], *, path: NDArray[Any] | None = None) -> Result:
        """Classifies a batch.

        Args:
            images: (N, C, H, W) float32, normalised already; or (N, H, W, C) uint8, which it normalises itself.
            path: (N, gated blocks) integer, options to run instead of what the gate chooses; the gate still steps, so
                that the time it takes stays in. A static policy takes no other path than its own.

        Returns:
            The result; its arrays belong to the caller.

        Raises:
            InputError: an empty batch, another shape or dtype, NaN or infinity, an impossible path.
            EngineError: an engine failed.
            RuntimeClosedError: it was closed.
            UsageError: two threads use it at once.
        """
        backend = self._open_backend()
        prepared = self._bundle.input.prepare(images)
        forced = self._policy_path(len(prepared)) if path is None else self._check_path(path, len(prepared))
        self._claim()
        try:
            logits, taken = backend.infer(prepared, forced)
        finally:
            self._in_use.release()
        return Result(logits, taken, self._costs)

    @property
    def bundle(self) -> Bundle:
        """The bundle that it runs."""
        return self._bundle

    @property
    def options(self) -> Options:
        """What the gate chooses from; a path holds indices into it."""
        return self._bundle.options

    @property
    def input(self) -> InputContract:
        """How pixels become its input."""
        return self._bundle.input

    @property
    def budgets(self) -> tuple[BudgetRecord, ...]:
        """The operating points that the bundle's budgets were calibrated at, least first; empty where none were."""
        return tuple(self._bundle.manifest.budgets)

    @property
    def budget(self) -> float | None:
        """The budget in force, 0 to 1; ``None`` for the gate as trained, or where a bias was set by hand."""
        return self._budget

    def set_budget(self, budget: float | None) -> None:
        """Makes the network compute more or less from the next batch on; clones made later start with it.

        A bias is taken from each option's score, in proportion to the option's cost, so that dear options lose where
        the gate was least sure of them. Which bias holds which budget was calibrated at export; between two calibrated
        budgets it is interpolated.

        Args:
            budget: mean computation as a share of running every gated block in full precision; ``None`` for the gate
                as trained.

        Raises:
            UsageError: the bundle has no budgets, or this one is outside what was calibrated.
            RuntimeClosedError: it was closed.
        """
        self.set_cost_bias(0.0 if budget is None else bias_for(budget, self._bundle))
        self._budget = budget

    @property
    def cost_bias(self) -> float:
        """What is taken from each option's score, times the option's cost; 0 for the gate as trained."""
        return self._cost_bias

    def set_cost_bias(self, bias: float) -> None:
        """Takes ``bias * cost`` from each option's score from the next batch on: what a budget stands for.

        Args:
            bias: finite; 0 for the gate as trained, negative to compute more.

        Raises:
            UsageError: it is not finite or beyond what scores can bear.
            RuntimeClosedError: it was closed.
        """
        backend, offset = self._open_backend(), score_offset(bias, self._costs)
        self._claim()
        try:
            backend.set_score_offset(offset)
        finally:
            self._in_use.release()
        self._budget, self._cost_bias = None, bias

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        """Options that an engine of another precision serves here, decided at load."""
        return self._open_backend().substitutions

    @property
    def description(self) -> dict[str, Any]:
        """Plain facts for reports: provider and version, threads, gate."""
        return self._open_backend().description

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        """The engine calls that a path makes at batch 1, in order, without the gates between: for a bench.

        The same engine on the same buffers is the same object each time.

        Args:
            path: (gated blocks,) option indices.
        """
        return self._open_backend().engine_calls(self._check_path(np.asarray(path)[None], 1)[0])

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """A gate step a gated block, at batch 1: for a bench. The gate forgets the batch before.

        Raises:
            RuntimeClosedError: it was closed.
            UsageError: another thread uses it now.
        """
        backend = self._open_backend()
        self._claim()
        try:
            return backend.gate_calls()
        finally:
            self._in_use.release()

    def clone(self) -> Runtime:
        """A runtime for another thread: the same engines, its own buffers."""
        other = object.__new__(Runtime)
        other._bundle, other._costs, other._gated_blocks = self._bundle, self._costs, self._gated_blocks
        other._policy = self._policy
        other._backend = self._open_backend().clone()
        other._in_use = threading.Lock()
        other._budget, other._cost_bias = self._budget, self._cost_bias
        return other

    def close(self) -> None:
        """Frees everything that no clone holds; closing twice is fine."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Runtime:
        self._open_backend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self) -> None:
        """Takes the runtime for this thread, which releases it; a context manager would cost a batch of one 2 %."""
        if not self._in_use.acquire(blocking=False):
            raise UsageError("this Runtime is in use by another thread; give each thread its own with clone()")

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise RuntimeClosedError("this Runtime was closed; make a new one, or use it inside its with block")
        return self._backend

    def _check_path(self, path: NDArray[Any], samples: int) -> NDArray[np.uint8]:
        path = np.asarray(path)
        shape = (samples, self._gated_blocks)
        if path.shape != shape or path.dtype.kind not in "iu":
            raise InputError(
                f"path of shape {path.shape} {path.dtype}, expected {shape} integer; one option index a block"
            )
        if path.size and (path.max() >= len(self._costs) or (path.dtype.kind == "i" and path.min() < 0)):
            raise InputError(f"path with option {path.min()} to {path.max()}, expected 0 to {len(self._costs) - 1}")
        policy = self._policy_path(samples)
        if policy is not None and (path != policy).any():
            raise InputError(
                f"{self._bundle.path} has a static policy, and engines for no other path; leave out the path"
            )
        return np.ascontiguousarray(path, np.uint8)

    def _policy_path(self, samples: int) -> NDArray[np.uint8] | None:
        return None if self._policy is None else np.repeat(self._policy[None], samples, 0)
