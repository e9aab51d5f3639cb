"""What a bench runs: the dynamic network, static engines, forced paths and their traces, and on which images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.result import BUDGET, DYNAMIC, FORCED, POLICY, RIVAL, STATIC, other_names
from dfs_deploy.bundle import Bundle
from dfs_deploy.data import AnyImages
from dfs_deploy.data.digits import DIGITS_CLASSES, DIGITS_SIZE, load_digits
from dfs_deploy.errors import MissingExtraError, UsageError
from dfs_deploy.network import Architecture
from dfs_deploy.options import PRECISIONS, Option, Options, Precision, engine_precision
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine, StraightEngine, join_path

MAX_INPUTS = 1024
"""Most images that a bench runs."""

FORCED_SHARES = (0, 25, 50, 75, 100)
"""Percent of the blocks that may be skipped and run, after the protocol of Cocktailer (Zhang et al., OSDI 2023)."""

_TRACE = "trace-"


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images that a bench runs.

    Attributes:
        images: (N, H, W, C) uint8, in the order in which they are run.
        labels: (N,) int64, or ``None`` if accuracy cannot be measured.
        name: name in reports.
        notes: assumptions and findings while they were read, one line each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    name: str
    notes: tuple[str, ...] = ()


def draw_inputs(bundle: Bundle, data: AnyImages | None, seed: int, most: int | None = MAX_INPUTS) -> Inputs:
    """Draws images, in an order that the seed decides.

    Args:
        bundle: bundle that is to run them.
        data: images to draw from; ``None`` for the shipped digits if the bundle was made for them, and else for the
            images that the bundle carries.
        seed: 0 or more.
        most: most images to draw from the data; ``None`` for all.

    Raises:
        UsageError: there are no images, or the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed {seed}, expected 0 or more")
    why = "no data was given"
    if data is None and _is_for_digits(bundle):
        try:
            data = load_digits("test")
        except MissingExtraError as error:
            why = str(error)
    if data is not None:
        drawn = data.subset(most, seed).load()
        return Inputs(drawn.images, drawn.labels, drawn.name, drawn.notes)
    samples = bundle.samples()
    if samples is None:
        raise UsageError(f"{bundle.path} carries no images and {why}; give some with --data")
    order = np.random.default_rng(seed).permutation(len(samples.images))
    # No labels: they were chosen for different paths, so their top-1 would say nothing about any data.
    return Inputs(samples.images[order], None, "images carried by the bundle, chosen for different paths")


def _is_for_digits(bundle: Bundle) -> bool:
    """Names decide: a network of ten classes may be for anything."""
    return bundle.input.shape == (3, DIGITS_SIZE, DIGITS_SIZE) and bundle.input.class_names == DIGITS_CLASSES


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that classifies.

    Attributes:
        name: name of its case; see ``CaseResult``.
        logits: function from (N, C, H, W) float32, normalised, to (N, classes) float32.
        bundle: bundle that it is of.
        runtime: runtime that dispatches it block by block; ``None`` for a static network.
        forced: (blocks,) uint8 option indices of a forced path, else ``None``.
    """

    name: str
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    bundle: Bundle
    runtime: Runtime | None = None
    forced: NDArray[np.uint8] | None = None

    @property
    def input(self) -> InputContract:
        """Contract by which pixels become its input."""
        return self.bundle.input


def has_gate(bundle: Bundle) -> bool:
    """Whether a bundle's network decides anything for an input: a plain backbone and a static policy do not."""
    return bundle.policy is None and bool(bundle.architecture.decided(bundle.options))


def open_candidates(
    bundle: Bundle,
    runtime: Runtime,
    *,
    batch: int,
    threads: int,
    forced: bool,
    closing: ExitStack,
    others: Sequence[Bundle] = (),
    all_budgets: bool = False,
    plan: bool = True,
    prepared: bool = True,
) -> list[Candidate]:
    """Loads everything that a bench compares.

    Args:
        bundle: bundle with engines for the runtime. Static engines and traces run only in ONNX Runtime, and none is
            compared with a dynamic network that runs elsewhere.
        runtime: dynamic network, opened.
        batch: images per call.
        threads: threads that one engine may use.
        forced: whether to force paths as well, in which none to all of the blocks run that may be skipped.
        closing: stack that closes what is opened.
        others: bundles to compare with, dynamic or static.
        all_budgets: whether dynamic networks are cases of their own at every budget that was calibrated.
        plan: whether a network of another bundle uses the engine choice measured on this machine, if any.
        prepared: whether it runs engines prepared for this machine.

    Returns:
        The dynamic network, the static engines from the most precise on, the networks of the other bundles, the
        budgets, and forced paths, each before its trace, if any.

    Raises:
        UsageError: paths cannot be forced, or none skips; or a network to compare with has engines only for another
            runtime, or takes other images or classes.
    """
    here = runtime.description["runtime"] == "onnxruntime"
    if others and not here:
        raise UsageError("networks of several bundles run only in ONNX Runtime so far; compare with --device cpu")
    check_comparable(bundle, others)
    opened = [(bundle, runtime, "")]
    rivals: list[Candidate] = []
    for other, name in zip(others, other_names(bundle, others), strict=True):
        suffix = f"{RIVAL}{name}"
        if has_gate(other):
            dynamic = closing.enter_context(Runtime(other, threads=threads, plan=plan, prepared=prepared))
            opened.append((other, dynamic, suffix))
            rivals.append(_dynamic(f"{DYNAMIC}{suffix}", other, dynamic))
        else:
            rivals += _trained_static(other, suffix, threads, closing, plan, prepared)
    return [
        _dynamic(DYNAMIC, bundle, runtime),
        *(_static(bundle, threads, closing) if here else ()),
        *rivals,
        *(case for each in opened if all_budgets for case in _at_budgets(*each, closing)),
        *(_forced(bundle, runtime, batch, threads if here else None, closing) if forced else ()),
    ]


def _dynamic(name: str, bundle: Bundle, runtime: Runtime) -> Candidate:
    return Candidate(name, lambda images: runtime(images).logits, bundle, runtime)


def _static(bundle: Bundle, threads: int, closing: ExitStack, suffix: str = "") -> Iterator[Candidate]:
    for precision in sorted(bundle.manifest.runtimes["onnxruntime"].static, key=PRECISIONS.index, reverse=True):
        engine = closing.enter_context(StaticEngine(bundle, precision, threads))
        yield Candidate(f"{STATIC}{precision}{suffix}", engine, bundle)


def _trained_static(
    bundle: Bundle, suffix: str, threads: int, closing: ExitStack, plan: bool, prepared: bool
) -> Iterator[Candidate]:
    """A network that was trained to be static, in every precision, and as its policy says if that mixes precisions."""
    policy = bundle.manifest.policy or []
    yield from _static(bundle, threads, closing, suffix)
    if len(set(policy)) > 1:
        runtime = closing.enter_context(Runtime(bundle, threads=threads, plan=plan, prepared=prepared))
        yield Candidate(f"{STATIC}{POLICY}{suffix}", lambda images: runtime(images).logits, bundle)


def main_first(bundles: Sequence[Bundle]) -> tuple[Bundle, list[Bundle]]:
    """The bundle that the case ``dfs`` is of, which is the first that has a gate if any has one, and the others."""
    main = next((index for index, bundle in enumerate(bundles) if has_gate(bundle)), 0)
    return bundles[main], [*bundles[:main], *bundles[main + 1 :]]


def check_comparable(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Makes sure that networks can be compared with a bundle's.

    Args:
        bundle: bundle that is run.
        others: bundles of networks to compare with.

    Raises:
        UsageError: one has engines only for another runtime, takes other images or classes, or is named twice.
    """
    digests = [bundle.digest]
    for other in others:
        what = _misfit(bundle, other)
        if what is not None:
            raise UsageError(f"{other.path} {what}")
        if other.digest in digests:
            raise UsageError(f"{other.path} is the same bundle as one before it; name each once")
        digests.append(other.digest)


def _misfit(bundle: Bundle, other: Bundle) -> str | None:
    """Reason why a network is not to be compared with a bundle's, and what to do; ``None`` if it is."""
    ours, theirs = bundle.input.class_names, other.input.class_names
    if "onnxruntime" not in other.manifest.runtimes:
        return "has no engines for onnxruntime; export it with --runtime onnxruntime"
    if other.input.shape != bundle.input.shape:
        return f"takes images of {other.input.shape}, expected {bundle.input.shape}; train it on the same images"
    if other.architecture.classes != bundle.architecture.classes:
        return (
            f"has {other.architecture.classes} classes, expected {bundle.architecture.classes}; train it on the same"
            " classes"
        )
    if ours and theirs and ours != theirs:
        theirs_here, ours_here = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        return (
            f"has the class {theirs_here!r} where the bundle has {ours_here!r}; train it on the same classes in the"
            " same order"
        )
    return None


def _at_budgets(bundle: Bundle, runtime: Runtime, suffix: str, closing: ExitStack) -> Iterator[Candidate]:
    """The dynamic network at each of its budgets, with the engines of the case ``dfs`` and a gate of its own."""
    for point in bundle.manifest.budgets:
        held = closing.enter_context(runtime.clone())
        held.set_budget(point.budget)
        yield _dynamic(f"{BUDGET}{100 * point.budget:g}{suffix}", bundle, held)


@dataclass(frozen=True)
class ForcedPattern:
    """A path that does not depend on the input.

    Attributes:
        share: percent of the blocks that may be skipped and run, evenly spread; the others are skipped.
        option: index of the option that they run.
        precision: precision of the option's engines, which names the series.
    """

    share: int
    option: int
    precision: Precision

    @property
    def dispatched(self) -> str:
        """Name of the case in which the runtime takes this path, gates stepping."""
        return f"{FORCED}{self.share}-{self.precision}"

    @property
    def trace(self) -> str:
        """Name of the case in which one engine holds this path."""
        return f"{_TRACE}{self.share}-{self.precision}"


def forced_patterns(options: Options) -> tuple[ForcedPattern, ...]:
    """Paths that are forced.

    One series for the least and one for the most precise option that computes, named by the precision of their engines;
    a single one if that is the same, and none for options without skip.
    """
    if not any(option.skips for option in options):
        return ()
    computing = sorted((i for i, option in enumerate(options) if not option.skips), key=lambda i: options[i].bits)
    ends = {
        precision: i for i in (computing[0], computing[-1]) if (precision := engine_precision(options[i], PRECISIONS))
    }
    return tuple(ForcedPattern(share, i, precision) for precision, i in ends.items() for share in FORCED_SHARES)


def spread_path(share: int, option: int, architecture: Architecture, options: Options) -> NDArray[np.uint8]:
    """A path that runs a share of the blocks that may be skipped, evenly spread, and skips the rest of them.

    Args:
        share: percent of these blocks to run.
        option: index of the option that blocks run if they may; else they run the nearest one in bits that they may.
        architecture: network.
        options: options of the bundle.

    Returns:
        (blocks,) uint8 option indices.
    """
    path = even_path(architecture, options, option)
    skippable = np.array(architecture.skippable(options), np.intp) - 1
    reached = np.floor(np.arange(1, len(skippable) + 1) * share / 100 + 1e-9)
    skipped = skippable[np.diff(reached, prepend=0.0) == 0]
    if len(skipped):
        path[skipped] = next(i for i, candidate in enumerate(options) if candidate.skips)
    return path


def even_path(architecture: Architecture, options: Options, option: int) -> NDArray[np.uint8]:
    """A path that takes one option, an index, at every block that may run it.

    Another block takes its option of the nearest bitwidth; it is not skipped instead if it may compute.

    Returns:
        (blocks,) uint8 option indices.
    """
    wanted = options[option]

    def nearest(choices: Sequence[Option]) -> Option:
        return min(choices, key=lambda choice: (choice.skips != wanted.skips, abs(choice.bits - wanted.bits)))

    taken = [nearest(block.choices(options)) for block in architecture.blocks[1:]]
    return np.array([options.names.index(choice.name) for choice in taken], np.uint8)


def _forced(
    bundle: Bundle, runtime: Runtime, batch: int, trace_threads: int | None, closing: ExitStack
) -> Iterator[Candidate]:
    """Forced paths, each with its trace if threads are given for one.

    A trace is the path as one engine, joined from the engines that the dispatch runs, without gates. No dispatch can
    beat it, so what dispatch takes beyond it is the cost of control flow (Zhang et al., Cocktailer, OSDI 2023).
    """
    patterns = forced_patterns(bundle.options)
    why = ""
    if bundle.policy is not None:
        why = "a static policy"
    elif not patterns:
        why = f"options {bundle.options}, none of which skips"
    elif not bundle.architecture.skippable(bundle.options):
        why = "no block that the gate may skip"
    if why:
        raise UsageError(f"{bundle.path} has {why}, expected a gate that may skip; leave --forced out")
    for pattern in patterns:
        row = spread_path(pattern.share, pattern.option, bundle.architecture, bundle.options)
        whole = np.repeat(row[None], batch, 0)

        def logits(images: NDArray[np.float32], path: NDArray[np.uint8] = whole) -> NDArray[np.float32]:
            return runtime(images, path=path).logits

        yield Candidate(pattern.dispatched, logits, bundle, runtime, row)
        if trace_threads is not None:
            joined = join_path(bundle, row, runtime.substitutions)
            trace = closing.enter_context(
                StraightEngine(joined, "the trace of a path", bundle, trace_threads, joined=True)
            )
            yield Candidate(pattern.trace, trace, bundle, forced=row)


class CallsAlone:
    """Calls of a runtime's parts one after another, without what the runtime does between them.

    Args:
        by_input: calls to make for the input of each index.
    """

    def __init__(self, by_input: Sequence[Sequence[Callable[[], object]]]) -> None:
        self._by_input = list(by_input)

    def __call__(self, index: int) -> None:
        """Makes the calls of an input."""
        for call in self._by_input[index]:
            call()

    def forget(self) -> None:
        """Lets go of the calls, which must not outlive their runtime on a device."""
        self._by_input.clear()


def engines_alone(runtime: Runtime, paths: NDArray[np.uint8]) -> CallsAlone:
    """Engines that each input runs, without gates and dispatch, at batch 1.

    Args:
        runtime: runtime that has the engines.
        paths: (N, gated blocks) option indices.
    """
    calls = {row.tobytes(): runtime.engine_calls(row) for row in np.unique(paths, axis=0)}
    return CallsAlone([calls[row.tobytes()] for row in np.ascontiguousarray(paths)])


def gates_alone(runtime: Runtime, inputs: int) -> CallsAlone | None:
    """Every step of the gate for one image, which does not depend on the input; ``None`` without a gate."""
    steps = runtime.gate_calls()
    return CallsAlone([steps] * inputs) if steps else None
