"""Accuracy budget: the cheapest bias on the gate's scores that keeps the accuracy of a reference, chosen and checked.

The engines of the bundle are run, not the PyTorch reference, so that what is judged is what is deployed. One half of
the images chooses the bias; the other, which had no part in that, checks it by the difference to the reference on the
same images (``dfs_deploy.paired``). The choice suffices by one standard error of the difference (the rule of Breiman et
al., Classification and Regression Trees, 1984, section 3.4.3), since one that just suffices does so by luck as often as
not. If the check sees it lose more than is allowed all the same, a dearer one is tried, up to ``MOST_LOOKS`` times, and
the record says so and claims no proof. There is one bias for all blocks: biases of their own would be fitted to the
luck of a few hundred images, of which half a point of accuracy is two or three.

Few images have to be run for a bias. An option wins over the others on an interval of biases, since every score falls
in a straight line as the bias rises; what follows it in the network is the same all over that interval. So an image
that takes the same path at two biases takes it at all between them, and only the others are run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle.manifest import AccuracyBudget, AccuracyHalf, ReferenceRecord
from dfs_deploy.costs import LatencyTable
from dfs_deploy.data import AnyImages
from dfs_deploy.errors import AccuracyGoalError, UsageError
from dfs_deploy.exporters.accuracy_reference import BATCH, most_precise_path, right_answers, rival_answers
from dfs_deploy.exporters.cheapest import MOST_POINTS, Search
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.io.text import one_line
from dfs_deploy.options import TRAINED, computation_percentage
from dfs_deploy.paired import safety_margin, share_difference
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.budgets import Prices, computation_prices

MOST_LOOKS = 4
"""Most choices that are checked."""

STRIDE = 0.02
"""Cost by which the second of them is dearer than the first, of the dearest path's; each step is twice the last."""

_ROUNDING = 1e-9

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccuracyGoal:
    """Accuracy that a bundle is to keep at the least cost.

    Attributes:
        max_top1_drop: share of right answers that may be lost against the reference, 0 to 1.
        reference: bundle or checkpoint to compare with; ``None`` for the network itself: with every block at its most
            precise option, or as trained if that is more accurate.
        costs: measured times of the options, to be lowered in place of computation; ``None`` for computation.

    Raises:
        UsageError: a drop that is no share.
    """

    max_top1_drop: float
    reference: Path | None = None
    costs: LatencyTable | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_top1_drop <= 1.0:
            raise UsageError(f"--max-top1-drop {self.max_top1_drop:g}, expected a share, 0 to 1; give one, as in 0.005")


@dataclass(frozen=True, eq=False)
class _Trial:
    """A bias and what the network does with it: (N, blocks) path, (N,) bool right answers, and the path's mean cost."""

    bias: float
    path: NDArray[np.uint8]
    right: NDArray[np.bool_]
    cost: float

    @property
    def top1(self) -> float:
        return float(self.right.mean())


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A trial with its accuracy as far as it can be relied on: its share of right answers less a margin."""

    trial: _Trial
    accuracy: float

    @property
    def bias(self) -> float:
        return self.trial.bias

    @property
    def cost(self) -> float:
        return self.trial.cost


def _candidate(trial: _Trial, reference: NDArray[np.bool_], max_top1_drop: float) -> _Candidate:
    """A trial less the margin by which a choice has to suffice."""
    change = share_difference(trial.right, reference)
    return _Candidate(trial, trial.top1 - safety_margin(change, max_top1_drop))


class Sweep:
    """One data set at many biases; only images whose path may have changed are run.

    Args:
        runtime: bundle's runtime, whose bias is changed.
        data: labelled images.
        prices: (blocks after the first, options) price of each option.

    Attributes:
        images_run: number of images that were run.
    """

    def __init__(self, runtime: Runtime, data: AnyImages, prices: Prices) -> None:
        self._runtime, self._data, self._prices = runtime, data, prices
        allowed = runtime.bundle.architecture.allowed(runtime.options)
        dearest = np.where(allowed, prices, -np.inf).max(1).sum()
        self._scale = 1.0 / dearest if dearest > 0.0 else 0.0
        self.least_cost = float(np.where(allowed, prices, np.inf).min(1).sum() * self._scale)
        self._trials: dict[float, _Trial] = {}
        self.images_run = 0

    def __call__(self, bias: float) -> _Trial:
        """Results at a bias."""
        if bias not in self._trials:
            below = max((known for known in self._trials if known < bias), default=None)
            above = min((known for known in self._trials if known > bias), default=None)
            shape = (len(self._data), self._runtime.bundle.architecture.gated_blocks)
            path, right = np.empty(shape, np.uint8), np.empty(len(self._data), np.bool_)
            rows = np.arange(len(self._data))
            if below is not None and above is not None:
                low, high = self._trials[below], self._trials[above]
                path[:], right[:] = low.path, low.right
                rows = np.flatnonzero((low.path != high.path).any(1))
            self._run(bias, rows, path, right)
            blocks = np.arange(shape[1])
            cost = float(self._prices[blocks, path].sum(1).mean() * self._scale)
            self._trials[bias] = _Trial(bias, path, right, cost)
        return self._trials[bias]

    def _run(self, bias: float, rows: NDArray[np.intp], path: NDArray[np.uint8], right: NDArray[np.bool_]) -> None:
        self._runtime.set_cost_bias(bias, self._prices)
        begin = 0
        for images, labels in self._data.batches(images_at_once(self._runtime.input.shape, BATCH), rows):
            part = rows[begin : begin + len(images)]
            result = self._runtime(images)
            path[part], right[part] = result.path, result.classes == labels
            begin += len(images)
        self.images_run += len(rows)


def choose_accuracy_budget(
    runtime: Runtime,
    data: AnyImages,
    goal: AccuracyGoal,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = silent,
) -> AccuracyBudget:
    """Finds the cheapest bias that keeps the accuracy of a reference on half of the images; checks it on the others.

    Args:
        runtime: bundle's runtime; it is left as the gate was trained.
        data: labelled images, with labels in the network's numbering.
        goal: accuracy to keep, and the reference.
        seed: seed by which the images are divided.
        threads: threads of an engine of the reference; ``None`` for one.
        progress: called as the work goes on.

    Raises:
        AccuracyGoalError: no bias keeps the accuracy, or the check shows that the one chosen does not.
        UsageError: fewer than two images, a reference that does not fit, or a network with nothing to decide.
        DataError: the latency table is of another network.
        ArtefactError: the reference cannot be read.
    """
    architecture, options = runtime.bundle.architecture, runtime.options
    if not architecture.decided(options):
        raise UsageError("the network has no block to decide about, so it always computes the same; leave the drop out")
    if len(data) < 2:
        raise UsageError(f"{len(data)} labelled image to choose a budget on, expected at least 2; give more")
    mixed = data.subset(None, seed)
    halves = [mixed.select(slice(start, None, 2)) for start in (0, 1)]
    timed = None if goal.costs is None else goal.costs.costs(architecture, options)
    prices = computation_prices(architecture, options) if timed is None else timed
    sweep = Sweep(runtime, halves[0], prices)
    progress("choosing a budget", 0.0)
    trained = sweep(0.0)
    check = Sweep(runtime, halves[1], prices)
    reference, answers = _reference(runtime, halves, goal, (trained, check(0.0)), threads)

    tried = 0

    def measure(bias: float) -> _Candidate:
        nonlocal tried
        tried += 1
        progress("choosing a budget", min(0.9, tried / MOST_POINTS))
        return _candidate(sweep(bias), answers[0], goal.max_top1_drop)

    search = Search(measure, (sweep.least_cost, 1.0), 1.0 / float(np.median(prices[prices > 0.0])))
    floor = float(answers[0].mean()) - goal.max_top1_drop
    settled = search.cheapest(floor)
    best = max((point.trial for point in search.points), key=lambda trial: (trial.top1, -trial.cost))
    # If none suffices by a standard error, the most accurate one may still suffice.
    found = best if settled is None else settled.trial
    _LOG.info("%d biases tried in %d runs of an image", len(search.points), sweep.images_run)
    named = f"{_words(reference)} ({100 * answers[0].mean():.2f} % on {len(halves[0])} images)"
    if found.top1 < floor - _ROUNDING:
        raise AccuracyGoalError(
            f"no budget keeps top-1 within {100 * goal.max_top1_drop:.2f} points of {named}: the best, at"
            f" {100 * best.cost:.1f} % of the dearest path's cost, has {100 * best.top1:.2f} %, as trained it has"
            f" {100 * trained.top1:.2f} %; train it longer or with a teacher, or allow more with --max-top1-drop"
        )
    enough = [each.trial for each in search.points if each.accuracy >= floor - _ROUNDING]
    found, looks = _check_choices(found, enough, check, answers[1], goal.max_top1_drop)
    checks = check(0.0), check(found.bias)
    runtime.set_budget(TRAINED)
    record = AccuracyBudget(
        max_top1_drop=goal.max_top1_drop,
        bias=found.bias,
        prices=None if timed is None else timed.tolist(),
        machine=None if goal.costs is None else goal.costs.machine,
        reference=reference,
        data=one_line(data.name, LONGEST_NAME),
        seed=seed,
        chosen=_half(runtime, (trained, found), answers[0], timed is not None),
        checked=_half(runtime, checks, answers[1], timed is not None),
        looks=looks,
    )
    progress("choosing a budget", 1.0)
    if record.refuted:
        checked = record.checked
        raise AccuracyGoalError(
            f"the budget that keeps top-1 within {100 * goal.max_top1_drop:.2f} points of {_words(reference)} on"
            f" {record.chosen.samples} images does not on {checked.samples} others: there it is"
            f" {100 * checked.top1_change:+.2f} points ({100 * checked.top1_change_low:+.2f} to"
            f" {100 * checked.top1_change_high:+.2f} with 95 % confidence); give more labelled images"
        )
    return record


def _check_choices(
    first: _Trial, enough: list[_Trial], check: Sweep, reference: NDArray[np.bool_], max_top1_drop: float
) -> tuple[_Trial, int]:
    """The choice that stands after a check on the other half, and the number of choices that were checked.

    It is the first of ever dearer choices, among those that are good enough on their own half, that is not seen to lose
    more than is allowed; the most accurate of them if there is none.
    """
    looked = [first]
    while True:
        changes = [float(check(trial.bias).right.mean() - reference.mean()) for trial in looked]
        if changes[-1] >= -max_top1_drop - _ROUNDING:
            return looked[-1], len(looked)
        dearer = sorted((t for t in enough if t.cost > looked[-1].cost + _ROUNDING), key=lambda trial: trial.cost)
        if not dearer or len(looked) == MOST_LOOKS:
            return looked[int(np.argmax(changes))], len(looked)
        wanted = looked[-1].cost + STRIDE * 2 ** (len(looked) - 1)
        looked.append(next((trial for trial in dearer if trial.cost >= wanted), dearer[-1]))


def notes_on(record: AccuracyBudget) -> tuple[str, ...]:
    """Weaknesses of an accuracy budget, one line each."""
    checked, found = record.checked, []
    if not record.within:
        needed = record.images_needed
        more = "no number would tell" if needed is None else f"about {needed:,} would tell, if it stays at that"
        found.append(
            f"the check cannot tell yet whether the budget keeps top-1 within {100 * record.max_top1_drop:.2f} points:"
            f" on {checked.samples:,} images it changes by {100 * checked.top1_change:+.2f}"
            f" ({100 * checked.top1_change_low:+.2f} to {100 * checked.top1_change_high:+.2f} with 95 % confidence); of"
            f" labelled images, in both halves together, {more}"
        )
    if record.looks > 1:
        found.append(
            f"{record.looks} budgets were checked, each dearer than the one before, which was seen to lose more than is"
            " allowed; so the check had a part in the choice and proves nothing: give more labelled images, or verify"
            " the bundle on others"
        )
    behind = record.chosen.top1_trained - record.chosen.top1_reference
    if record.reference.name is not None and behind > record.max_top1_drop:
        found.append(
            f"the reference {record.reference.name} is {100 * behind:.2f} points less accurate than this network as"
            " trained: is it the static network that would be shipped instead?"
        )
    return tuple(found)


def _reference(
    runtime: Runtime, halves: list[AnyImages], goal: AccuracyGoal, trained: tuple[_Trial, _Trial], threads: int | None
) -> tuple[ReferenceRecord, list[NDArray[np.bool_]]]:
    """The reference, and which images of each half it is right about."""
    architecture, contract = runtime.bundle.architecture, runtime.input
    if goal.reference is not None:
        return rival_answers(goal.reference, halves, contract, architecture.classes, threads)
    path = most_precise_path(architecture, runtime.options)

    def precisely(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        return runtime(images, path=np.repeat(path[None], len(images), 0)).classes

    answers = [right_answers(precisely, half, contract) for half in halves]
    if answers[0].mean() >= trained[0].top1:
        return ReferenceRecord(kind="most-precise-path", name=None, sha256=None), answers
    return ReferenceRecord(kind="as-trained", name=None, sha256=None), [trial.right for trial in trained]


def _half(runtime: Runtime, trials: tuple[_Trial, _Trial], reference: NDArray[np.bool_], timed: bool) -> AccuracyHalf:
    """Figures of one half, as trained and at the bias that was chosen."""
    trained, found = trials
    costs, weights = runtime.options.costs, runtime.bundle.architecture.weights(runtime.options)
    computation = [float(computation_percentage(trial.path, costs, weights).mean(dtype=np.float64)) for trial in trials]
    times = [min(100.0 * trial.cost, 100.0) if timed else None for trial in trials]
    change = share_difference(found.right, reference)
    return AccuracyHalf(
        samples=len(reference),
        top1=found.top1,
        top1_trained=trained.top1,
        top1_reference=float(reference.mean()),
        top1_change=change.value,
        top1_change_low=change.low,
        top1_change_high=change.high,
        computation_percentage=computation[1],
        computation_percentage_trained=computation[0],
        time_percentage=times[1],
        time_percentage_trained=times[0],
    )


def _words(reference: ReferenceRecord) -> str:
    """The reference in words."""
    if reference.kind == "most-precise-path":
        return "this network with every block at its most precise option"
    return "this network as trained" if reference.name is None else f"{reference.kind} {reference.name}"
