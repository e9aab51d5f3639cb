"""The runtime that applications use: it checks inputs, makes results and keeps its life cycle; backends run engines."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle, describe_bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.manifest import BudgetRecord
from dfs_deploy.errors import BundleError, EngineError, InputError, OutOfMemoryError, UsageError
from dfs_deploy.io.text import one_line
from dfs_deploy.network import Architecture
from dfs_deploy.options import TRAINED, Budget, Options, computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.backend import Backend, BackendOptions, Substitution
from dfs_deploy.runtimes.budgets import Prices, score_offset, setting_for
from dfs_deploy.runtimes.life import Living

_LOG = logging.getLogger(__name__)

PART_BYTES = 32 << 20
"""Most memory for the images of a part of a batch and their widest features; a longer batch runs in parts."""

_LEAST_PART = 16

if native.ends_missing is None:
    from dfs_deploy.runtimes.native._ends import are_finite
else:

    def are_finite(values: NDArray[np.float32]) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(values).all())


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a batch. Two results are equal if all their values are.

    Attributes:
        logits: (N, classes) float32.
        path: (N, blocks) uint8, index of the option that each block after the first ran.
        costs: cost of each option, relative to the full-precision block.
        weights: weight of each block in the computation, as from ``Architecture.weights``; ``None`` for equal ones.
    """

    logits: NDArray[np.float32]
    path: NDArray[np.uint8]
    costs: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    @property
    def computation_percentage(self) -> NDArray[np.float32]:
        """(N,) float32, percentage of the computation of all decided blocks in full precision."""
        return computation_percentage(self.path, self.costs, self.weights)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) int64, the class with the greatest logit."""
        return np.asarray(self.logits.argmax(1), np.int64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            self.costs == other.costs
            and self.weights == other.weights
            and np.array_equal(self.path, other.path)
            and np.array_equal(self.logits, other.logits)
        )

    def __repr__(self) -> str:
        return f"<Result: logits {self.logits.shape}, path {self.path.shape}, {len(self.costs)} options>"

    def __hash__(self) -> int:
        return hash((self.logits.shape, self.path.shape, self.costs))  # unchanged if somebody writes to an array


def _onnxruntime(bundle: Bundle, options: BackendOptions) -> Backend:
    from dfs_deploy.runtimes.onnxruntime import OnnxRuntimeBackend, PolicyBackend

    if bundle.policy is None:
        return OnnxRuntimeBackend(bundle, options)
    if options.gate is not None:
        raise UsageError(f"gate {options.gate!r}: {bundle.path} has a static policy and no gate; leave gate out")
    return PolicyBackend(bundle, options)


def _tensorrt(bundle: Bundle, options: BackendOptions) -> Backend:
    from dfs_deploy.runtimes.tensorrt import TensorRTBackend

    if options.threads is not None:
        raise UsageError(
            f"threads {options.threads} for the runtime tensorrt: its engines run on the GPU; leave threads out"
        )
    return TensorRTBackend(bundle, gate=options.gate, cache=Cache(bundle, options.cache_dir))


BACKENDS: dict[str, Callable[[Bundle, BackendOptions], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}
"""Runtimes by name; each is imported when it is first used."""


class Runtime(Living[Backend]):
    """Runs a bundle: for each input the gate decides, block by block, what is computed.

    One ``Runtime`` belongs to one thread; ``clone`` makes one for another thread. Use it as a context manager, or
    call ``close``. A pickled runtime is opened again, by the path of its bundle, when it is unpickled. In a child
    process after a fork, a runtime made before the fork refuses to run.

    Args:
        bundle: path of a ``NAME.dfs`` directory, or an opened ``Bundle``.
        runtime: ``onnxruntime`` or ``tensorrt``; ``None`` for the first.
        threads: threads that one engine may use; ``None`` for one, which is the fastest at batch 1.
        gate: ``native`` or ``numpy``; ``None`` for the first if it was compiled, else the second.
        plan: whether measurements on this machine (``dfs-deploy bench --save-plan``) decide which engine runs for an
            option; otherwise the option's own precision runs, unless this CPU emulates it (fp16 on most x86). No effect
            with ``tensorrt``, in which every option runs in its own precision.
        prepared: whether engines prepared for this machine run (``dfs-deploy prepare``), made at load if there are
            none; otherwise the bundle's own run. No effect with ``tensorrt``, which always builds engines for the GPU.
        budget: see ``set_budget``; ``None`` for the bundle's accuracy budget if it has one, else for the gate as
            trained, as ``"trained"`` does in any case.
        cache_dir: folder for results that are made once on a machine, such as prepared engines; ``None`` for the folder
            that the environment variable ``DFS_DEPLOY_CACHE`` names, else one beside the bundle; see
            ``Cache``.

    Raises:
        BundleError: the bundle cannot be read, or holds no engines for this runtime.
        UsageError: an unknown runtime, less than one thread, a budget outside the calibrated ones, or ``threads`` or
            a ``gate`` that this runtime does not have.
        EnvironmentLacksError: this machine lacks the memory, the threads or the libraries that are needed.
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
        budget: Budget = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        name = runtime or "onnxruntime"
        if name not in BACKENDS:
            raise UsageError(f"unknown runtime {name!r}, expected {' or '.join(BACKENDS)}")
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads, expected at least 1")
        folder = None if cache_dir is None else str(Path(cache_dir).absolute())  # a pickle may be opened elsewhere
        self._name, self._options = name, BackendOptions(threads, gate, plan, prepared, folder)
        self._bundle = bundle if isinstance(bundle, Bundle) else _opened(bundle)
        if name not in self._bundle.manifest.runtimes:
            made = ", ".join(self._bundle.manifest.runtimes) or "none"
            raise BundleError(
                f"{self._bundle.path} has no engines for {name} (made for: {made}); export with --runtime {name}"
            )
        bias, prices = setting_for(budget, self._bundle)
        if name == "onnxruntime" and not isinstance(bundle, Bundle):  # whoever opened the bundle can ask
            note = self._bundle.cpu_mismatch
            if note is not None:
                _LOG.warning("%s: %s", one_line(self._bundle.path), note)
        self._budget: Budget = None
        self._cost_bias = 0.0
        self._prices: Prices | None = None
        self._take_over(lambda: BACKENDS[name](self._bundle, self._options))
        if bias:
            self.set_cost_bias(bias, prices)
        self._budget = budget

    def _take_over(self, make: Callable[[], Backend]) -> None:
        """Makes the backend and opens this runtime."""
        architecture, options = self._bundle.architecture, self._bundle.options
        self._costs, self._weights = options.costs, architecture.weights(options)
        allowed = architecture.allowed(options)
        self._allowed = None if allowed.all() else allowed
        self._gated_blocks = architecture.gated_blocks
        self._policy = self._bundle.policy
        self._allowed_path: tuple[tuple[int, ...], bytes] = (), b""  # checked last
        self._begin()
        try:
            with _memory_for(self._bundle.path):
                backend = make()
        except BaseException:
            self._leave()
            raise
        self._most = _most_at_once(architecture, backend.batch)
        self._hold(backend)

    def __call__(self, images: NDArray[Any], *, path: NDArray[Any] | None = None, finite: bool = True) -> Result:
        """Classifies a batch. A long batch runs in parts of bounded memory, with the same results.

        Args:
            images: (N, C, H, W) float32, normalised; or (N, H, W, C) uint8, which is normalised here.
            path: (N, blocks) integer, an option for each block after the first to run instead of the gate's choice;
                the gate still steps, so that timings include it. A block takes no option that it may not run, and a
                static policy no other path than its own.
            finite: whether logits that are not finite are refused; a check of a bundle wants to see them.

        Returns:
            Result; its arrays belong to the caller.

        Raises:
            InputError: an empty batch, another shape or dtype, NaN or infinity, values so large that the logits are not
                finite, an impossible path.
            EngineError: an engine failed, or the logits of uint8 images are not finite.
            OutOfMemoryError: memory ran out; the runtime can be used again.
            RuntimeClosedError: it was closed or made before a fork, or the interpreter is ending.
            UsageError: two threads use it at once.
        """
        if self._held is None:
            self._refuse()
        try:
            if isinstance(images, np.ndarray) and images.ndim and len(images) > self._most:
                return self._in_parts(images, path, finite)
            arranged = self._bundle.input.arrange(images)
            forced = self._policy_path(len(arranged)) if path is None else self._check_path(path, len(arranged))
            backend = self._claim()
            try:
                logits, taken = backend.infer(arranged, forced)
            finally:
                self._leave()
            if finite and not are_finite(logits):
                self._refuse_logits(logits, images, 0)
        except OutOfMemoryError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(
                f"memory ran out in a call of {len(images):,} image(s); give it fewer per call, or free some"
            ) from error
        return Result(logits, taken, self._costs, self._weights)

    def _in_parts(self, images: NDArray[Any], path: NDArray[Any] | None, finite: bool) -> Result:
        """Classifies a batch that is too long to run at once."""
        count, most = len(images), self._most
        self._bundle.input.arrange(images[:1])  # refuses another shape or dtype before anything is run
        forced = self._policy_path(count) if path is None else self._check_path(path, count)
        logits = np.empty((count, self._bundle.architecture.classes), np.float32)
        taken = np.empty((count, self._gated_blocks), np.uint8)
        backend: Backend | None = self._claim()
        try:
            for start in range(0, count, most):
                part = slice(start, start + most)
                arranged = self._bundle.input.arrange(images[part])
                backend = self._held
                if backend is None:  # closed meanwhile
                    break
                logits[part], taken[part] = backend.infer(arranged, None if forced is None else forced[part], start)
                if finite and not are_finite(logits[part]):
                    self._refuse_logits(logits[part], images, start)
        finally:
            self._leave()
        if backend is None:
            self._refuse()
        return Result(logits, taken, self._costs, self._weights)

    def _refuse_logits(self, logits: NDArray[np.float32], images: NDArray[Any], first: int) -> NoReturn:
        """Raises because some logits are not finite, naming the first image with such logits."""
        image = first + int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        seen = f"image {image} of the batch ends in logits that are not finite"
        if images.dtype == np.uint8:
            raise EngineError(f"{seen}; check the bundle with dfs-deploy verify, or export it again")
        least, greatest = float(images[image].min()), float(images[image].max())
        raise InputError(
            f"{seen}: its values, {least:.3g} to {greatest:.3g}, are too large for this network, or an engine is"
            " faulty; check how it was normalised, and the bundle with dfs-deploy verify"
        )

    @property
    def bundle(self) -> Bundle:
        """Bundle that runs."""
        return self._bundle

    @property
    def options(self) -> Options:
        """Options that the gate chooses from; a path holds indices into them."""
        return self._bundle.options

    @property
    def input(self) -> InputContract:
        """Contract of how pixels become its input."""
        return self._bundle.input

    @property
    def budgets(self) -> tuple[BudgetRecord, ...]:
        """Operating points that budgets were calibrated at, smallest budget first; empty if there are none."""
        return tuple(self._bundle.manifest.budgets)

    @property
    def budget(self) -> Budget:
        """Budget in force as it was given; ``None`` also if a bias was set by hand."""
        return self._budget

    def set_budget(self, budget: Budget) -> None:
        """Makes the network compute more or less from the next batch on; clones made later start with it.

        A bias in proportion to an option's cost is subtracted from its score, so that expensive options lose where the
        gate was least sure of them. The bias for each budget was calibrated at export; between two calibrated budgets
        it is interpolated.

        Args:
            budget: mean computation as a share of running every decided block in full precision; ``"trained"`` for the
                gate as trained; ``None`` for the bundle's own: its accuracy budget (``export --max-top1-drop``), or the
                gate as trained if it has none.

        Raises:
            UsageError: the bundle has no budgets, or this one is outside the calibrated ones.
            RuntimeClosedError: it was closed.
        """
        self.set_cost_bias(*setting_for(budget, self._bundle))
        self._budget = budget

    @property
    def cost_bias(self) -> float:
        """Bias in force, subtracted from each option's score times its price; 0 for the gate as trained."""
        return self._cost_bias

    @property
    def score_offset(self) -> NDArray[np.float32]:
        """(gates, options) float32 that is added to the gate's scores: the bias in force, and masks.

        A mask takes an option away that a block may not run.
        """
        return score_offset(self._cost_bias, self._bundle.architecture, self._bundle.options, self._prices)

    def set_cost_bias(self, bias: float, prices: Prices | None = None) -> None:
        """Subtracts ``bias * cost`` from each option's score from the next batch on, as a budget does.

        Args:
            bias: finite; 0 for the gate as trained, negative to compute more.
            prices: (blocks after the first, options), to be subtracted in place of the costs; ``None`` for the cost of
                the option times the weight of the block.

        Raises:
            UsageError: it is not finite, or too large for scores in float32.
            RuntimeClosedError: it was closed.
        """
        self._open()
        offset = score_offset(bias, self._bundle.architecture, self._bundle.options, prices)
        backend = self._claim()
        try:
            backend.set_score_offset(offset)
        finally:
            self._leave()
        self._budget, self._cost_bias, self._prices = None, bias, prices

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        """Options that run on an engine of another precision here, decided at load."""
        return self._open().substitutions

    @property
    def description(self) -> dict[str, Any]:
        """Plain facts for reports: provider and version, threads, gate."""
        return self._open().description

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Callable[[], None], ...]:
        """Engine calls of a path at batch 1, in order, without the gates in between: for a bench.

        The same engine on the same buffers is the same object each time.

        Args:
            path: (blocks,) option indices, one for each block after the first.
        """
        return self._open().engine_calls(self._check_path(np.asarray(path)[None], 1)[0])

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        """Gate steps of the decided blocks, at batch 1: for a bench. The gate forgets the batch before.

        Raises:
            RuntimeClosedError: it was closed.
            UsageError: another thread is using it.
        """
        self._open()
        backend = self._claim()
        try:
            return backend.gate_calls()
        finally:
            self._leave()

    def clone(self) -> Runtime:
        """Makes a runtime for another thread: the same engines, buffers of its own."""
        backend = self._open()
        other = object.__new__(Runtime)
        other._bundle, other._name, other._options = self._bundle, self._name, self._options
        other._budget, other._cost_bias, other._prices = self._budget, self._cost_bias, self._prices
        other._take_over(backend.clone)
        return other

    def __repr__(self) -> str:
        closed = ", closed" if self._held is None else ""
        return f"<Runtime {describe_bundle(self._bundle)} on {self._name}{closed}>"

    def __copy__(self) -> Runtime:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        return self.clone()

    def __reduce__(self) -> tuple[Callable[..., Runtime], tuple[Any, ...]]:
        """Content of a pickle: the bundle's path and digest, and how it is run; no engine."""
        self._open()
        path = str(self._bundle.path.absolute())
        setting = (self._budget, self._cost_bias, self._prices)
        return _opened_again, (path, self._bundle.digest, self._name, self._options, *setting)

    def __enter__(self) -> Runtime:
        self._open()
        return self

    def _check_path(self, path: NDArray[Any], samples: int) -> NDArray[np.uint8]:
        path = np.asarray(path)
        if path.dtype == np.uint8 and path.shape == self._allowed_path[0] and path.tobytes() == self._allowed_path[1]:
            return np.ascontiguousarray(path)
        shape = (samples, self._gated_blocks)
        if path.shape != shape or path.dtype.kind not in "iu":
            raise InputError(
                f"path of shape {path.shape} {path.dtype}, expected {shape} integer; one option index per block"
            )
        if path.size and (path.max() >= len(self._costs) or (path.dtype.kind == "i" and path.min() < 0)):
            raise InputError(f"path with option {path.min()} to {path.max()}, expected 0 to {len(self._costs) - 1}")
        policy = self._policy_path(samples)
        if policy is not None and (path != policy).any():
            raise InputError(
                f"{self._bundle.path} has a static policy, and engines for no other path; leave out the path"
            )
        if self._allowed is not None and not self._allowed[np.arange(self._gated_blocks), path].all():
            sample, block = np.argwhere(~self._allowed[np.arange(self._gated_blocks), path])[0]
            options = self._bundle.options
            known = [option.name for option in self._bundle.architecture.blocks[block + 1].choices(options)]
            raise InputError(
                f"path {sample} with option {options[int(path[sample, block])].name!r} at block {block + 1}, which may"
                f" run {', '.join(known)}; give it one of these"
            )
        path = np.ascontiguousarray(path, np.uint8)
        self._allowed_path = path.shape, path.tobytes()
        return path

    def _policy_path(self, samples: int) -> NDArray[np.uint8] | None:
        return None if self._policy is None else np.repeat(self._policy[None], samples, 0)


def _opened(path: str | Path) -> Bundle:
    with _memory_for(path):
        return Bundle(path)


@contextlib.contextmanager
def _memory_for(path: str | Path) -> Iterator[None]:
    """Turns memory that ran out while a bundle was loaded into an ``OutOfMemoryError``."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, ImportError) as error:  # a library that cannot be mapped is an ImportError
        if isinstance(error, ImportError) and "failed to map" not in str(error):
            raise
        raise OutOfMemoryError(f"memory ran out while {path} was loaded; free some, or raise its limit") from error


def _opened_again(
    path: str,
    digest: str,
    name: str,
    options: BackendOptions,
    budget: Budget,
    bias: float,
    prices: Prices | None,
) -> Runtime:
    """Opens the bundle that a pickle names, if it is still the same."""
    bundle = Bundle(path)
    if bundle.digest != digest:
        raise BundleError(f"{path} is another bundle than when the Runtime was pickled; make a new Runtime from it")
    runtime = Runtime(bundle, name, **asdict(options), budget=TRAINED)
    if bias:
        runtime.set_cost_bias(bias, prices)
    runtime._budget = budget
    return runtime


def _most_at_once(architecture: Architecture, batch: int) -> int:
    """Most images that run at once, a multiple of the backend's own batch."""
    widest = max(math.prod(block.out_shape) for block in architecture.blocks)
    bytes_each = 4 * (math.prod(architecture.image_shape) + widest)
    return max(PART_BYTES // bytes_each, _LEAST_PART, batch) // batch * batch
