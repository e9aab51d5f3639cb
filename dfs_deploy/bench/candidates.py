"""What a bench compares: the dynamic network, static engines of its backbone, forced paths and the traces of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.traces import open_trace
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import UsageError
from dfs_deploy.io.text import one_line
from dfs_deploy.options import PRECISIONS, Options, Precision, engine_precision
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

FORCED_SHARES = (0, 25, 50, 75, 100)
"""Percent of the gated blocks that run, after the protocol of Cocktailer (Zhang et al., OSDI 2023)."""

DYNAMIC = "dfs"
STATIC = "static-"
RIVAL = "@"
"""Stands between the name of a case and that of the other bundle that it is of."""

POLICY = "policy"
"""In the place of a precision: a network that always takes its own path, of more than one precision."""

BUDGET = f"{DYNAMIC}-budget-"
_FORCED = f"{DYNAMIC}-forced-"
_TRACE = "trace-"


@dataclass(frozen=True)
class ForcedPattern:
    """A path that does not depend on the input.

    Attributes:
        share: percent of the gated blocks that run, evenly spread; the others are skipped.
        option: index of the option that they run.
        precision: that names the series: of the option's engines.
    """

    share: int
    option: int
    precision: Precision

    @property
    def dispatched(self) -> str:
        """Name of the case in which the runtime takes this path, gates stepping."""
        return f"{_FORCED}{self.share}-{self.precision}"

    @property
    def trace(self) -> str:
        """Name of the case in which one engine holds this path."""
        return f"{_TRACE}{self.share}-{self.precision}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something that classifies.

    Attributes:
        name: ``dfs``, ``static-int8``, ``static-int8@other``, ``dfs-budget-20``, ``dfs-forced-25-int8``,
            ``trace-25-int8`` and the like.
        logits: function from (N, C, H, W) float32, normalised, to (N, classes) float32.
        input: how pixels become its input.
        runtime: runtime that dispatches it block by block; ``None`` for one engine and for a network of another bundle.
        forced: (gated blocks,) uint8 option indices of a forced path, else ``None``.
    """

    name: str
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    input: InputContract
    runtime: Runtime | None = None
    forced: NDArray[np.uint8] | None = None

    @property
    def static(self) -> bool:
        """Whether it is a static network."""
        return self.name.startswith(STATIC)


def open_candidates(
    bundle: Bundle,
    runtime: Runtime,
    *,
    batch: int,
    threads: int,
    forced: bool,
    closing: ExitStack,
    against: Sequence[Bundle] = (),
    budgets: Sequence[float] = (),
) -> list[Candidate]:
    """Loads everything that a bench compares.

    Args:
        bundle: bundle with engines for the runtime. Static engines and traces run in ONNX Runtime alone, and none is
            compared with a dynamic network that runs elsewhere.
        runtime: dynamic network, opened.
        batch: images per call.
        threads: threads that one engine may use.
        forced: whether to force paths as well, with none to all of the gated blocks run.
        closing: stack that closes what is opened.
        against: bundles of networks that were trained to be static.
        budgets: computation that the dynamic network is to hold in cases of their own, 0 to 1.

    Returns:
        The dynamic network, the static engines from the most precise on, those of the other bundles, the budgets, and
        forced paths, each before its trace, if any.

    Raises:
        UsageError: paths cannot be forced, or none skips; or a network to compare with is no static one, has engines
            for another runtime alone, or takes other images or classes.
    """
    here = runtime.description["runtime"] == "onnxruntime"
    if against and not here:
        raise UsageError("static networks run in ONNX Runtime alone so far; compare with --device cpu")
    check_rivals(bundle, against)
    names = _rival_names(bundle, against)
    return [
        Candidate(DYNAMIC, lambda images: runtime(images).logits, bundle.input, runtime),
        *(_static(bundle, threads, closing) if here else ()),
        *(case for rival, name in zip(against, names, strict=True) for case in _rival(rival, name, threads, closing)),
        *(_at_budget(bundle, runtime, budget, closing) for budget in budgets),
        *(_forced(bundle, runtime, batch, threads if here else None, closing) if forced else ()),
    ]


def _static(bundle: Bundle, threads: int, closing: ExitStack, suffix: str = "") -> Iterator[Candidate]:
    for precision in sorted(bundle.manifest.runtimes["onnxruntime"].static, key=PRECISIONS.index, reverse=True):
        engine = closing.enter_context(StaticEngine(bundle, precision, threads))
        yield Candidate(f"{STATIC}{precision}{suffix}", engine, bundle.input)


def _rival(bundle: Bundle, name: str, threads: int, closing: ExitStack) -> Iterator[Candidate]:
    """A network that was trained to be static, in every precision, and as its policy says if that mixes precisions."""
    suffix, policy = f"{RIVAL}{name}", bundle.manifest.policy or []
    if "skip" not in policy:  # else no static engine is the network that was trained: each runs every block
        yield from _static(bundle, threads, closing, suffix)
    if len(set(policy)) > 1:
        runtime = closing.enter_context(Runtime(bundle, threads=threads))
        yield Candidate(f"{STATIC}{POLICY}{suffix}", lambda images: runtime(images).logits, bundle.input)


def check_rivals(bundle: Bundle, against: Sequence[Bundle]) -> None:
    """Makes sure that networks can be compared with a bundle's.

    Args:
        bundle: bundle that is run.
        against: bundles of networks that were trained to be static.

    Raises:
        UsageError: one has a gate, has engines for another runtime alone, or takes other images or classes.
    """
    for rival in against:
        what = _misfit(bundle, rival)
        if what is not None:
            raise UsageError(f"{rival.path} {what}")


def _misfit(bundle: Bundle, rival: Bundle) -> str | None:
    """Why a network is not to be compared with a bundle's, and what to do; ``None`` if it is."""
    ours, theirs = bundle.input.class_names, rival.input.class_names
    if rival.digest == bundle.digest:
        return "is the bundle that is run, expected another; name a network that was trained to be static"
    if rival.policy is None and rival.architecture.gated_blocks:
        return (
            "has a gate, so its static engines were trained for the gate's paths, expected a network that was trained"
            " to be static; export a plain backbone, or one with a policy"
        )
    if "onnxruntime" not in rival.manifest.runtimes:
        return "has no engines for onnxruntime; export it with --runtime onnxruntime"
    if rival.input.shape != bundle.input.shape:
        return f"takes images of {rival.input.shape}, expected {bundle.input.shape}; train it on the same images"
    if rival.architecture.classes != bundle.architecture.classes:
        return (
            f"tells {rival.architecture.classes} classes apart, expected {bundle.architecture.classes}; train it on the"
            " same classes"
        )
    if ours and theirs and ours != theirs:
        name, other = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        return f"has the class {name!r} where the bundle has {other!r}; train it on the same classes in the same order"
    return None


def _rival_names(bundle: Bundle, against: Sequence[Bundle]) -> list[str]:
    """Names that tell other bundles apart, from one another and from the one that is run."""
    names = [one_line(rival.name, 80) for rival in against]
    taken = [*names, one_line(bundle.name, 80)]
    return [
        name if taken.count(name) == 1 else f"{name}-{rival.digest[:8]}"
        for name, rival in zip(names, against, strict=True)
    ]


def _at_budget(bundle: Bundle, runtime: Runtime, budget: float, closing: ExitStack) -> Candidate:
    """The dynamic network at a budget, with the engines of the one as trained and a gate of its own."""
    held = closing.enter_context(runtime.clone())
    held.set_budget(budget)
    return Candidate(f"{BUDGET}{100 * budget:g}", lambda images: held(images).logits, bundle.input, held)


def _forced(
    bundle: Bundle, runtime: Runtime, batch: int, trace_threads: int | None, closing: ExitStack
) -> Iterator[Candidate]:
    """Forced paths, and their traces where threads are given for them."""
    patterns = forced_patterns(bundle.options)
    if bundle.policy is not None or not patterns:
        why = f"options {bundle.options}, none of which skips" if bundle.policy is None else "a static policy"
        raise UsageError(f"{bundle.path} has {why}, expected a gate that may skip; leave --forced out")
    for pattern in patterns:
        row = spread_path(pattern.share, pattern.option, bundle.architecture.gated_blocks, bundle.options)
        whole = np.repeat(row[None], batch, 0)

        def logits(images: NDArray[np.float32], path: NDArray[np.uint8] = whole) -> NDArray[np.float32]:
            return runtime(images, path=path).logits

        yield Candidate(pattern.dispatched, logits, bundle.input, runtime, row)
        if trace_threads is not None:
            trace = open_trace(bundle, row, runtime.substitutions, trace_threads)
            yield Candidate(pattern.trace, closing.enter_context(trace), bundle.input, forced=row)


def forced_patterns(options: Options) -> tuple[ForcedPattern, ...]:
    """What paths are forced.

    One series for the least and one for the most precise option that computes, named by the precision of their engines,
    and one alone where that is the same; an option list without skip has none.
    """
    if not any(option.skips for option in options):
        return ()
    computing = sorted((i for i, option in enumerate(options) if not option.skips), key=lambda i: options[i].bits)
    ends = {
        precision: i for i in (computing[0], computing[-1]) if (precision := engine_precision(options[i], PRECISIONS))
    }
    return tuple(ForcedPattern(share, i, precision) for precision, i in ends.items() for share in FORCED_SHARES)


def spread_path(share: int, option: int, blocks: int, options: Options) -> NDArray[np.uint8]:
    """A path that runs a share of the gated blocks, evenly spread, and skips the rest.

    Args:
        share: percent of the blocks to run.
        option: index of the option that they run.
        blocks: gated blocks.
        options: of the bundle, with one that skips.

    Returns:
        (blocks,) uint8 option indices.
    """
    skip = next(i for i, candidate in enumerate(options) if candidate.skips)
    reached = np.floor(np.arange(1, blocks + 1) * share / 100 + 1e-9)
    runs = np.diff(reached, prepend=0.0) > 0
    return np.where(runs, option, skip).astype(np.uint8)
