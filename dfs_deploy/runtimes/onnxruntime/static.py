"""Whole networks as one engine: static baselines, static policies, and the trace of a path for a bench.

The engines of a path are joined where they run: they take no room in a bundle, and which precision runs for an option
is known then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.engines import PlacedEngine, feature_grids, laid_out
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import Message, parse_model
from dfs_deploy.bundle.weights import inlined
from dfs_deploy.errors import BundleError, RuntimeClosedError
from dfs_deploy.options import Precision
from dfs_deploy.runtimes.backend import Backend, BackendOptions, Substitution, running_engines
from dfs_deploy.runtimes.buffers import aligned_buffer
from dfs_deploy.runtimes.dispatch import Call
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER, conversion_model
from dfs_deploy.runtimes.onnxruntime.engine_choice import decide_substitutions, load_choice
from dfs_deploy.runtimes.onnxruntime.entry import Entry, split_entry
from dfs_deploy.runtimes.onnxruntime.loading import affordable_threads, check_ends, check_memory, describe
from dfs_deploy.runtimes.onnxruntime.prepared import ONE_ENGINE, PreparedEngines
from dfs_deploy.runtimes.onnxruntime.sessions import bind, engine_failed, open_session, run_once, session_options
from dfs_deploy.system.memory import return_freed_memory
from dfs_deploy.system.ort import onnxruntime as ort


class StraightEngine:
    """One engine from images to logits, bound at batch 1 like the dynamic network.

    Args:
        model: ONNX model from (N, C, H, W) float32 to (N, classes) float32.
        label: name in messages.
        bundle: bundle that it was made from.
        threads: threads that it may use; ``None`` for one.
        joined: whether it is a path of engines, which is to give what they give one by one.

    Attributes:
        entry: way from images to its input.

    Raises:
        BundleError: ONNX Runtime does not take the model, or it takes or gives something else.
    """

    def __init__(
        self, model: bytes, label: str, bundle: Bundle, threads: int | None = None, joined: bool = False
    ) -> None:
        options = session_options(threads or 1)
        if joined:  # else it would merge the two grids of a tensor that is quantised twice in a row, into a third one
            options.add_session_config_entry("session.disable_double_qdq_remover", "1")
        model, entry = split_entry(model, bundle.input, f"{bundle.path}: {label}")
        session = open_session(model, f"{bundle.path}: {label}", options)
        return_freed_memory()
        classes = (bundle.architecture.classes,)
        check_ends(bundle, label, session, (entry.layout, entry.size), ("float32", classes))
        self._set_up(session, label, bundle, entry)

    def _set_up(self, session: ort.InferenceSession, label: str, bundle: Bundle, entry: Entry) -> None:
        self._label, self._bundle, self.entry = label, bundle, entry
        self._images = aligned_buffer((1, *laid_out(entry.size, entry.layout)), np.dtype(entry.layout))
        self._logits = aligned_buffer((1, bundle.architecture.classes), np.dtype(np.float32))
        self._opened: tuple[ort.InferenceSession, Call] | None = session, bind(session, self._images, self._logits)

    def __call__(self, images: NDArray[Any], first: int = 0) -> NDArray[np.float32]:
        """Classifies images.

        Args:
            images: (N, C, H, W) float32, normalised; or what ``entry.admit`` gave.
            first: index in the whole batch of the first image, for messages.

        Returns:
            Logits, (N, classes) float32.

        Raises:
            InputError: NaN or infinity, if the engine takes pixels.
            EngineError: the engine failed.
        """
        session, call = self._open()
        if len(images) != 1:
            if self.entry.grid is not None:
                pixels = np.empty((len(images), *self._images.shape[1:]), self._images.dtype)
                self.entry.fill(images, pixels, first)
                images = pixels
            return run_once(session, self._label, images)
        self.entry.fill(images, self._images, first)
        try:
            call()
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise engine_failed(self._label, error) from error
        return self._logits.copy()

    @functools.cached_property
    def call(self) -> Call:
        """Bound call at batch 1, on the image of the last call or a blank one: for a bench."""
        return self.entry.ahead_of(self._open()[1], self._images)

    def clone(self) -> StraightEngine:
        """Makes one for another thread: the same engine with buffers of its own."""
        other = object.__new__(StraightEngine)
        other._set_up(self._open()[0], self._label, self._bundle, self.entry)
        return other

    def _open(self) -> tuple[ort.InferenceSession, Call]:
        if self._opened is None:
            raise RuntimeClosedError(f"{self._label} was closed; make a new one")
        return self._opened

    def close(self) -> None:
        """Frees the engine; closing twice is fine."""
        self._opened = None
        vars(self).pop("call", None)

    def __enter__(self) -> StraightEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class StaticEngine(StraightEngine):
    """A static baseline: the whole backbone in one precision, with every block run.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        precision: precision of the baseline.
        threads: threads that it may use; ``None`` for one.

    Raises:
        BundleError: the bundle has no such baseline.
    """

    def __init__(self, bundle: Bundle, precision: Precision, threads: int | None = None) -> None:
        static = bundle.manifest.runtimes["onnxruntime"].static
        if precision not in static:
            raise BundleError(
                f"{bundle.path} has no static {precision} engine; export with {precision} among the targets"
            )
        super().__init__(bundle.model(static[precision]), static[precision], bundle, threads)


class PolicyBackend(Backend):
    """Runs a static policy: its path never changes, so its engines are joined into one.

    Args:
        bundle: bundle with a static policy.
        options: choices of how it runs.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if bundle.policy is None:
            raise BundleError(f"{bundle.path} has a gate, and no static policy")
        check_memory(bundle)
        wanted = options.threads or 1
        choice = load_choice(bundle, wanted, cache=Cache(bundle, options.cache_dir)) if options.plan else None
        self._substitutions = decide_substitutions(bundle, choice)
        threads, pools = affordable_threads(bundle, wanted, 1)
        layout = PreparedEngines(reason=ONE_ENGINE).description
        self._description = describe(threads, pools, "none: a static policy", choice is not None, layout)
        model = join_path(bundle, bundle.policy, self._substitutions)
        self._engine = StraightEngine(model, "the path of the static policy", bundle, threads, joined=True)
        self._path = bundle.policy

    def infer(
        self, images: NDArray[Any], forced: NDArray[np.uint8] | None, first: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return self._engine(self._engine.entry.admit(images, first), first), np.repeat(self._path[None], len(images), 0)

    def engine_calls(self, path: NDArray[np.uint8]) -> tuple[Call, ...]:
        return (self._engine.call,)

    def gate_calls(self) -> tuple[Callable[[], object], ...]:
        return ()

    def set_score_offset(self, offset: NDArray[np.float32]) -> None:
        """Does nothing: there are no scores."""

    def clone(self) -> PolicyBackend:
        other = object.__new__(PolicyBackend)
        other._substitutions, other._description = self._substitutions, self._description
        other._engine, other._path = self._engine.clone(), self._path
        return other

    def close(self) -> None:
        self._engine.close()

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        return self._substitutions

    @property
    def description(self) -> dict[str, Any]:
        return dict(self._description)


def join_path(bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = ()) -> bytes:
    """Joins the engines of a path into one ONNX model, from images to logits.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        path: (blocks,) option indices.
        substitutions: options that run on an engine of another precision.

    Raises:
        BundleError: an engine is not what an export writes, or the engines have operators of several versions.
    """
    parts: list[tuple[str, bytes]] = []
    grids = feature_grids(bundle, "onnxruntime")
    opset = 0
    for placed, arrives, takes in _placed_on(bundle, path, substitutions):
        file = placed.engine.files[takes]
        data = bundle.read(file)  # graphs are joined, and then the weights are read
        if not parts:
            opset = next((o.version for o in parse_model(data, file).opset_import if not o.domain), 0)
        if takes != arrives:
            converter = conversion_model(takes, grids[placed.before], placed.takes[0], opset=opset)
            parts.append((f"{bundle.path}: the conversion for {file}", converter))
        parts.append((f"{bundle.path}: {file}", data))
    return inlined(join_engines(parts), bundle.weights, f"{bundle.path}: a path's engines")


def engine_files(bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution] = ()) -> list[str]:
    """Names of the files of a path's engines, in order, each for the layout in which its features arrive if it has one.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        path: (blocks,) option indices.
        substitutions: options that run on an engine of another precision.
    """
    return [placed.engine.files[takes] for placed, _, takes in _placed_on(bundle, path, substitutions)]


def _placed_on(
    bundle: Bundle, path: NDArray[np.uint8], substitutions: Sequence[Substitution]
) -> Iterator[tuple[PlacedEngine, Layout, Layout]]:
    """Yields the engines of a path in order, each with the layout in which its features arrive and that it takes."""
    names = bundle.options.names
    layout: Layout = "float32"
    for placed in running_engines(bundle, "onnxruntime", substitutions):
        if not placed.block or placed.option == names[int(path[placed.block - 1])]:  # stem and head always run
            yield placed, layout, layout if layout in placed.engine.files else OTHER[layout]
            layout = placed.engine.output


def join_engines(engines: Sequence[tuple[str, bytes]]) -> bytes:
    """Joins engines of one input each into one that runs them in order.

    Args:
        engines: name for messages and ONNX model of each, at least one; each takes the first output of the one before
            it. References to weights stay what they are.

    Raises:
        BundleError: one is no model, or their operators are of several versions.
    """
    joined: Message = None
    output = ""
    for position, (name, data) in enumerate(engines):
        part = parse_model(data, name)
        output = _rename(part.graph, f"{position}.", output)
        del part.graph.output[1:]  # nobody asks for them
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
    """Prefixes every name in a graph, but calls its input ``taken`` if that is given; returns the output's name."""
    source = graph.input[0].name

    def named(name: str) -> str:
        if not name:  # an optional input that is left out
            return name
        return taken if taken and name == source else prefix + name

    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = named(tensor.name)
    for value in (graph.input[0], graph.output[0]):
        value.name = named(value.name)
    output: str = graph.output[0].name
    return output
