"""What every runtime has in common: inputs checked, results made, lifecycle kept. A backend runs the engines."""

from __future__ import annotations

import contextlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.manifest import BlockEngines, BudgetRecord, Engine
from dfs_deploy.errors import (
    BundleError,
    EngineError,
    InputError,
    OutOfMemoryError,
    UsageError,
)
from dfs_deploy.io.text import one_line
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options, computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes.budgets import bias_for, score_offset
from dfs_deploy.runtimes.life import Living
from dfs_deploy.system.cpu import made_for_another_cpu

_LOG = logging.getLogger(__name__)

PART_BYTES = 32 << 20
"""Most memory of the images and of the widest features of what runs at once; a longer batch runs in parts."""

_LEAST_PART = 16

_FEW = 64
"""Logits up to this many are added up in Python, which takes less than one call of NumPy."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a network made of a batch. Results are equal if all that is in them is, value for value.

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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            self.costs == other.costs
            and np.array_equal(self.path, other.path)
            and np.array_equal(self.logits, other.logits)
        )

    def __hash__(self) -> int:
        return hash((self.logits.shape, self.path.shape, self.costs))  # what does not change if an array is written to


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

    batch = 1
    """Images that its engines take at once, if they were made for a number of them."""

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


@dataclass(frozen=True)
class Choices:
    """How a runtime was asked to run its bundle; see :class:`Runtime`."""

    runtime: str = "onnxruntime"
    threads: int | None = None
    gate: str | None = None
    plan: bool = True
    prepared: bool = True
    cache_dir: str | None = None


BackendFactory = Callable[[Bundle, Choices], Backend]


def _onnxruntime(bundle: Bundle, choices: Choices) -> Backend:
    from dfs_deploy.runtimes.onnxruntime import OnnxRuntimeBackend, PolicyBackend

    cache = Cache(bundle, choices.cache_dir)
    if bundle.policy is not None:
        return PolicyBackend(bundle, bundle.policy, choices.threads, choices.plan, cache)
    return OnnxRuntimeBackend(bundle, choices.threads, choices.gate, choices.plan, choices.prepared, cache)


def _tensorrt(bundle: Bundle, choices: Choices) -> Backend:
    from dfs_deploy.runtimes.tensorrt import TensorRTBackend

    if choices.threads is not None:
        raise UsageError(f"{choices.threads} threads for the runtime tensorrt, which has none; leave threads out")
    return TensorRTBackend(bundle, choices.gate, Cache(bundle, choices.cache_dir))


BACKENDS: dict[str, BackendFactory] = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt}
"""Runtimes by name; each is imported when it is asked for."""


class Runtime(Living[Backend]):
    """Runs a bundle: for each input the gate decides, block by block, what is computed.

    One ``Runtime`` is one thread's; :meth:`clone` gives another thread its own. Use it as a context manager, or call
    :meth:`close`. A runtime can be pickled: it is opened again, by its path, where it is unpickled. After a fork, one
    made before it refuses in the child.

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
        cache_dir: folder in which what is made once on a machine is kept; ``None`` for the one that the environment
            variable ``DFS_DEPLOY_CACHE`` names, else beside the bundle; see :class:`~dfs_deploy.bundle.cache.Cache`.

    Raises:
        BundleError: the bundle cannot be read, or holds no engines for this runtime.
        UsageError: an unknown runtime, less than one thread, a budget outside what was calibrated, or a choice that
            this runtime does not have.
        EnvironmentLacksError: this machine has not the memory, the threads or the libraries that it takes.
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
        cache_dir: str | Path | None = None,
    ) -> None:
        name = runtime or "onnxruntime"
        if name not in BACKENDS:
            raise UsageError(f"unknown runtime {name!r}, expected {' or '.join(BACKENDS)}")
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads, expected at least 1")
        place = None if cache_dir is None else str(Path(cache_dir).absolute())  # also for a process elsewhere
        self._choices = Choices(name, threads, gate, plan, prepared, place)
        self._bundle = bundle if isinstance(bundle, Bundle) else _opened(bundle)
        if name not in self._bundle.manifest.runtimes:
            made = ", ".join(self._bundle.manifest.runtimes) or "none"
            raise BundleError(
                f"{self._bundle.path} has no engines for {name} (made for: {made}); export with --runtime {name}"
            )
        bias = None if budget is None else bias_for(budget, self._bundle)
        if name == "onnxruntime" and not isinstance(bundle, Bundle):  # who opened it before can ask for themselves
            note = made_for_another_cpu(self._bundle.manifest.int8_weight_bits)
            if note is not None:
                _LOG.warning("%s: %s", one_line(self._bundle.path), note)
        self._budget: float | None = None
        self._cost_bias = 0.0
        self._take_over(lambda: BACKENDS[name](self._bundle, self._choices))
        if bias is not None:
            self.set_cost_bias(bias)
            self._budget = budget

    def _take_over(self, make: Callable[[], Backend]) -> None:
        """Makes the backend and opens this runtime for use."""
        self._costs = self._bundle.options.costs
        self._gated_blocks = self._bundle.architecture.gated_blocks
        self._policy = self._bundle.policy
        self._begin()
        try:
            with _memory_for(self._bundle.path):
                backend = make()
        except BaseException:
            self._leave()
            raise
        self._most = _most_at_once(self._bundle.architecture, backend.batch)
        self._hold(backend)

    def __call__(self, images: NDArray[Any], *, path: NDArray[Any] | None = None, finite: bool = True) -> Result:
        """Classifies a batch. A long one runs in parts of bounded memory, with the same results.

        Args:
            images: (N, C, H, W) float32, normalised already; or (N, H, W, C) uint8, which it normalises itself.
            path: (N, gated blocks) integer, options to run instead of what the gate chooses; the gate still steps, so
                that the time it takes stays in. A static policy takes no other path than its own.
            finite: whether logits that are not finite are refused; a check of a bundle wants to see them.

        Returns:
            The result; its arrays belong to the caller.

        Raises:
            InputError: an empty batch, another shape or dtype, NaN or infinity, values so large that they end in
                logits that are not finite, an impossible path.
            EngineError: an engine failed, or made logits that are not finite of pixels.
            OutOfMemoryError: memory ran out; the runtime can be used again.
            RuntimeClosedError: it was closed, made before a fork, or the interpreter ends.
            UsageError: two threads use it at once.
        """
        if self._held is None:
            self._refuse()
        try:
            if isinstance(images, np.ndarray) and images.ndim and len(images) > self._most:
                return self._in_parts(images, path, finite)
            prepared = self._bundle.input.prepare(images)
            forced = self._policy_path(len(prepared)) if path is None else self._check_path(path, len(prepared))
            backend = self._claim()
            try:
                logits, taken = backend.infer(prepared, forced)
            finally:
                self._leave()
            if finite and not _are_finite(logits):
                self._refuse_logits(logits, images, 0)
        except OutOfMemoryError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(
                f"memory ran out in a call of {len(images):,} image(s); give it fewer a call, or free some"
            ) from error
        return Result(logits, taken, self._costs)

    def _in_parts(self, images: NDArray[Any], path: NDArray[Any] | None, finite: bool) -> Result:
        """The same for a batch that is too long to run at once."""
        count, most = len(images), self._most
        self._bundle.input.prepare(images[:1])  # refuses another shape or dtype before anything is run
        forced = self._policy_path(count) if path is None else self._check_path(path, count)
        logits = np.empty((count, self._bundle.architecture.classes), np.float32)
        taken = np.empty((count, self._gated_blocks), np.uint8)
        backend: Backend | None = self._claim()
        try:
            for start in range(0, count, most):
                part = slice(start, start + most)
                prepared = self._bundle.input.prepare(images[part], first=start)
                backend = self._held
                if backend is None:  # closed meanwhile
                    break
                logits[part], taken[part] = backend.infer(prepared, None if forced is None else forced[part])
                if finite and not _are_finite(logits[part]):
                    self._refuse_logits(logits[part], images, start)
        finally:
            self._leave()
        if backend is None:
            self._refuse()
        return Result(logits, taken, self._costs)

    def _refuse_logits(self, logits: NDArray[np.float32], images: NDArray[Any], first: int) -> NoReturn:
        """Raises since some logits are not finite, naming the first image that they are of."""
        image = first + int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        seen = f"image {image} of the batch ends in logits that are not finite"
        if images.dtype == np.uint8:
            raise EngineError(f"{seen}; check the bundle with dfs-deploy verify, or export it again")
        least, greatest = float(images[image].min()), float(images[image].max())
        raise InputError(
            f"{seen}: its values, {least:.3g} to {greatest:.3g}, are more than this network computes with, or an engine"
            " is at fault; check how it was normalised, and the bundle with dfs-deploy verify"
        )

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
        self._open()
        offset = score_offset(bias, self._costs)
        backend = self._claim()
        try:
            backend.set_score_offset(offset)
        finally:
            self._leave()
        self._budget, self._cost_bias = None, bias

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        """Options that an engine of another precision serves here, decided at load."""
        return self._open().substitutions

    @property
    def description(self) -> dict[str, Any]:
        """Plain facts for reports: provider and version, threads, gate."""
        return self._open().description

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        """The engine calls that a path makes at batch 1, in order, without the gates between: for a bench.

        The same engine on the same buffers is the same object each time.

        Args:
            path: (gated blocks,) option indices.
        """
        return self._open().engine_calls(self._check_path(np.asarray(path)[None], 1)[0])

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """A gate step a gated block, at batch 1: for a bench. The gate forgets the batch before.

        Raises:
            RuntimeClosedError: it was closed.
            UsageError: another thread uses it now.
        """
        self._open()
        backend = self._claim()
        try:
            return backend.gate_calls()
        finally:
            self._leave()

    def clone(self) -> Runtime:
        """A runtime for another thread: the same engines, its own buffers."""
        backend = self._open()
        other = object.__new__(Runtime)
        other._bundle, other._choices = self._bundle, self._choices
        other._budget, other._cost_bias = self._budget, self._cost_bias
        other._take_over(backend.clone)
        return other

    def __copy__(self) -> Runtime:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        return self.clone()

    def __reduce__(self) -> tuple[Callable[..., Runtime], tuple[Any, ...]]:
        """What a pickle holds: the bundle's path and digest, and how it is run; no engine."""
        self._open()
        path = str(self._bundle.path.absolute())
        return _opened_again, (path, self._bundle.digest, asdict(self._choices), self._budget, self._cost_bias)

    def __enter__(self) -> Runtime:
        self._open()
        return self

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


def _opened(path: str | Path) -> Bundle:
    with _memory_for(path):
        return Bundle(path)


@contextlib.contextmanager
def _memory_for(path: str | Path) -> Iterator[None]:
    """Makes an error of ours of memory that ran out while a bundle was loaded."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, ImportError) as error:  # a library that cannot be mapped is an ImportError
        if isinstance(error, ImportError) and "failed to map" not in str(error):
            raise
        raise OutOfMemoryError(f"memory ran out while {path} was loaded; free some, or raise its limit") from error


def _opened_again(path: str, digest: str, choices: dict[str, Any], budget: float | None, bias: float) -> Runtime:
    """Opens what a pickle names, if it is still the same bundle."""
    bundle = Bundle(path)
    if bundle.digest != digest:
        raise BundleError(f"{path} is another bundle than when the Runtime was pickled; make a new Runtime of it")
    runtime = Runtime(bundle, **choices)
    if bias:
        runtime.set_cost_bias(bias)
    runtime._budget = budget
    return runtime


def _most_at_once(architecture: Architecture, batch: int) -> int:
    """Images that run at once, at most; as many times a backend's own batch as fit."""
    widest = max(math.prod(block.out_shape) for block in architecture.blocks)
    bytes_each = 4 * (math.prod(architecture.image_shape) + widest)
    return max(PART_BYTES // bytes_each, _LEAST_PART, batch) // batch * batch


def _are_finite(logits: NDArray[np.float32]) -> bool:
    if logits.size > _FEW:
        return bool(np.isfinite(logits).all())
    # Sums in double precision, where none overflows.
    return math.isfinite(sum(logits[0].tolist()) if len(logits) == 1 else sum(map(sum, logits.tolist())))
