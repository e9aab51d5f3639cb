"""The hyperparameters of training, and presets: the paper's, and ours for a small machine and for devices."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard, get_args, get_origin, get_type_hints

from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options, parse_policy

AlphaSign = Literal["dynamic", "constant", "controlled"]
Schedule = Literal["steps", "one-cycle"]
GateOptimizer = Literal["sgd", "adam"]
Autocast = Literal["none", "bfloat16"]
Augmentation = Literal["crop-flip", "crop", "none", "resized-crop-flip"]
StageName = Literal["backbone", "gate", "joint"]

RESIZED_CROPS: Final = "resized-crop-flip"
"""Variation of images that are larger than the network's input."""

FLOPS = "flops"
"""Name of the cost without a latency table."""

STAGES: tuple[StageName, ...] = get_args(StageName)
"""The stages, in the order in which they run."""

_PAPERS_OPTIONS = Options((0, 8, 16, 32))
_MOST_STEPS = 10**9
_BELOW_1 = math.nextafter(1.0, 0.0)
_BOUNDS = {
    "target": (-math.inf, math.inf),
    "blocks_per_group": (1, 333),  # a thousand blocks, the most of a network
    "batch": (1, 10**6),
    "settle_share": (0.0, 1.0),
    "descent": (0.0, 1.0),
    "distill": (0.0, 1.0),
    "temperature": (0.01, 1000.0),
    "drop": (0.0, 1.0),
    "crop_area": (0.001, 1.0),
    "momentum": (0.0, _BELOW_1),
}
"""Least and greatest number of a value, if these are not 0, and infinity or the most steps."""

_ALWAYS_READ = {"blocks_per_group", "batch", "schedule", "augmentation", "clip", "autocast"}
_SGD = {"momentum", "nesterov", "weight_decay"}
_OF_THE_GATE = {"gate_optimizer", "alpha"}
_READ_BY: dict[StageName, set[str]] = {
    "backbone": {"backbone_lr", "drop", *_SGD},
    "gate": {"options", "gate_lr", "gate_patience", "standardize_gate", *_OF_THE_GATE},
    "joint": {
        *("options", "settle_share", "statistics_batches", "joint_lr", "joint_gate_lr", "alpha_sign", "descent"),
        *("distill", "policy", "costs", "cost"),
        *_SGD,
        *_OF_THE_GATE,
    },
}
"""Values that a stage reads; the target is read by whoever aims for it."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of all stages; the defaults are the paper's (Section 4, Training Details).

    Attributes:
        options: options that the gate chooses from.
        target: computation percentage that joint training aims for.
        blocks_per_group: n of ResNet-(6n+2), the network of a job that names no other.
        batch: images in a step, over all processes.
        backbone_steps: steps of stage 0, only the backbone, in full precision.
        gate_steps: most steps of stage 1, only the gate, on the fixed backbone.
        gate_patience: steps in a row in which every block ran the dearest option, after which stage 1 ends early; 0 for
            never.
        joint_steps: steps of stage 2, backbone and gate toward the target.
        settle_share: last part of stage 2, 0 to 1, in which normalisation and ranges stay as they are and images are
            not varied: the network that is steered to the target then is the one that will be deployed.
        backbone_lr: initial or peak learning rate of stage 0.
        gate_lr: learning rate of stage 1.
        joint_lr: learning rate of the backbone in stage 2.
        joint_gate_lr: learning rate of the gate in stage 2.
        schedule: ``steps`` divides the rate by 10 after half of a stage and again after three quarters of it, as the
            paper; ``one-cycle`` warms up over a tenth of the stage and then follows a cosine to zero.
        gate_optimizer: ``sgd``, as for the backbone and in the paper; or ``adam``.
        momentum: momentum of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: weight decay of SGD.
        clip: greatest norm of a step's gradient; 0 for no limit.
        standardize_gate: whether stage 1, or stage 2 if that has no steps, begins by scaling the embeddings of an
            untrained gate to mean 0 and deviation 1 over a batch. Pooled features differ little from image to image;
            unscaled, so do the first choices. A gate that prefers one option whatever it sees goes on doing so.
        alpha: absolute weight of the cost (Equation 2); the cost is summed over the gated blocks and the samples of a
            batch, in full-precision blocks, as in the authors' code. With ``controlled``, the factor of both gains.
        alpha_sign: ``dynamic`` flips the sign of alpha at every step, positive if the batch cost more than the target
            and negative if it did not (Section 3); ``constant`` keeps it positive (Table 1). ``controlled``, which is
            not the paper's, finds alpha in every step by the error of the batch's cost, and the cost in the loss is a
            share of the dearest path's: see ``dfs_deploy.training.steering``.
        descent: first part of stage 2, 0 to 1, over which the target moves in a straight line from what the network
            costs at the stage's first step to ``target``; 0 for ``target`` at once, as the paper.
        distill: part that the answers of a teacher have in the loss of stage 2, 0 to 1 (Hinton et al. 2015); the labels
            have the rest. 0 for none, as the paper.
        temperature: divisor of the logits of teacher and network for that part, whose weight is its square.
        statistics_batches: batches over which, when stage 2 settles or else ends, each normalisation's statistics are
            computed anew: exact means over the samples that reach it. 0 for the running ones, as the paper.
        augmentation: ``crop-flip`` moves each image by up to 4 pixels and mirrors half of them; ``crop`` only moves;
            ``resized-crop-flip`` cuts a part out of each image as it is in its file, resizes it, and mirrors half.
        crop_area: least share of an image's area that such a part has; it has at most all of it.
        drop: probability with which a step of stage 0 skips the last block, 0 to 1; it falls linearly to 0 before the
            first (stochastic depth, Huang et al. 2016). Blocks are not scaled: one that is skipped later adds nothing,
            and one that runs adds all of its output. Steps are cheaper, and the network bears skips.
        autocast: ``bfloat16`` computes layers in that format, with weights and sums in float32 (PyTorch's autocast);
            ``none`` computes everything in float32.
        policy: the option that each gated block always runs, for a network without a gate: one name for all blocks, or
            one per block, separated by commas. There is no stage 1 then, and stage 2 trains the backbone as the policy
            runs it.
        costs: cost of each option at each gated block, in full-precision blocks, as
            ``LatencyTable.costs`` measures it; ``None`` for ``(bits / 32) ** 2`` (Section 4,
            Metrics), by the share of each block in all multiply-adds.
        cost: name of the costs: ``flops``, or the latency table's file.
    """

    options: Options = _PAPERS_OPTIONS
    target: float = 40.0
    blocks_per_group: int = 6
    batch: int = 128
    backbone_steps: int = 64_000
    gate_steps: int = 64_000
    gate_patience: int = 0
    joint_steps: int = 64_000
    settle_share: float = 0.0
    backbone_lr: float = 0.1
    gate_lr: float = 0.1
    joint_lr: float = 0.01
    joint_gate_lr: float = 0.01
    schedule: Schedule = "steps"
    gate_optimizer: GateOptimizer = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    clip: float = 0.0
    standardize_gate: bool = False
    alpha: float = 5e-6
    alpha_sign: AlphaSign = "dynamic"
    descent: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    statistics_batches: int = 0
    augmentation: Augmentation = "crop-flip"
    crop_area: float = 0.08
    drop: float = 0.0
    autocast: Autocast = "none"
    policy: str | None = None
    costs: tuple[tuple[float, ...], ...] | None = None
    cost: str = FLOPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Options.parse(self.options))
        for name, kind in get_type_hints(Recipe).items():
            _check(name, kind, getattr(self, name))
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov without momentum, which it needs; set nesterov to false, or give a momentum")
        self._check_costs()
        if self.policy is not None:
            parse_policy(self._policy_names, self.options)
        if 0.0 < self.target < 1.0:
            raise UsageError(
                f"target {self.target:g} is {self.target:g} % computation, expected at least 1 %; for that share of the"
                f" work give {100.0 * self.target:g}"
            )
        if self.policy is None:  # a policy costs what it costs, and nothing is steered to the target
            self._check_reach(_reach(self.costs or (self.options.costs,)))

    @property
    def dearest(self) -> float:
        """Greatest cost of a path, as a share of full computation: 1 if ``full`` is an option, less if not."""
        return _reach(self.costs or (self.options.costs,))[1]

    @property
    def unit(self) -> str:
        """Unit of a percentage in words: of the time if measured costs steer, else of the computation."""
        return "% computation" if self.costs is None else "% of the time"

    def reach(self, architecture: Architecture) -> tuple[float, float]:
        """Least and greatest cost of a path of a network, whose blocks may not run every option; shares as above."""
        return reach_of(architecture, self.options, self.costs)

    def _check_reach(self, reach: tuple[float, float]) -> None:
        """Checks that paths of these costs can reach the target."""
        low, high = (100.0 * end for end in reach)
        if not low <= self.target <= high:
            raise UsageError(
                f"target {self.target} %, expected {low:.4g} to {high:.4g}, the reach of the options '{self.options}';"
                " choose another target or other options"
            )

    def check_blocks(self, gated_blocks: int) -> None:
        """Checks that the recipe is for a network of so many gated blocks.

        Raises:
            UsageError: costs of another number of blocks.
            OptionError: a policy of another number of blocks.
        """
        if self.costs is not None and len(self.costs) != gated_blocks:
            raise UsageError(f"costs of {len(self.costs)} blocks, expected a cost for each option at {gated_blocks}")
        self.policy_indices(gated_blocks)

    def check_network(self, architecture: Architecture) -> None:
        """Checks that the recipe suits a network, whose blocks may not run every option.

        Raises:
            UsageError: costs of another number of blocks, or a target that the blocks cannot reach.
            OptionError: a policy of another number of blocks.
        """
        self.check_blocks(architecture.gated_blocks)
        if self.policy is None:
            self._check_reach(self.reach(architecture))

    def _check_costs(self) -> None:
        if (self.costs is None) != (self.cost == FLOPS):
            raise UsageError(
                f"cost {self.cost!r} {'without' if self.costs is None else 'with'} a table of costs, expected {FLOPS!r}"
                " without one, and the table's name with one"
            )
        if self.costs is None:
            return
        if any(len(row) != len(self.options) for row in self.costs) or not self.costs:
            raise UsageError(f"costs of {len(self.costs)} blocks, expected one for each of {len(self.options)} options")
        if not all(_is_number(cost) and cost >= 0.0 for row in self.costs for cost in row):
            raise UsageError("a cost is negative or no finite number, expected each to be at least 0; measure again")

    @property
    def _policy_names(self) -> list[str]:
        return [] if self.policy is None else [name.strip() for name in self.policy.split(",")]

    def policy_indices(self, gated_blocks: int) -> tuple[int, ...] | None:
        """The policy as an option index per gated block, or ``None`` for a network with a gate.

        Raises:
            OptionError: an option that is not there, or another number of blocks.
        """
        if self.policy is None:
            return None
        names = self._policy_names * (gated_blocks if len(self._policy_names) == 1 else 1)
        if len(names) != gated_blocks:
            raise OptionError(
                f"a policy of {len(names)} options for {gated_blocks} gated blocks; give one, or one for each"
            )
        return parse_policy(names, self.options)

    def steps(self, stage: StageName) -> int:
        """Most steps that a stage takes."""
        return {"backbone": self.backbone_steps, "gate": self.gate_steps, "joint": self.joint_steps}[stage]

    def settled_from(self, stage: StageName) -> int:
        """First step of a stage, from 0, at which normalisation and ranges stay; its end if they never do."""
        return self.steps(stage) - (round(self.settle_share * self.joint_steps) if stage == "joint" else 0)

    def to_go(self, step: int) -> float:
        """Part of the way from the first cost to the target that is left at a step of stage 2, from 0; 1 to 0."""
        steps = self.descent * self.joint_steps
        return max(0.0, 1.0 - step / steps) if steps else 0.0

    def rate(self, stage: StageName, step: int) -> float:
        """Factor on a stage's learning rates at a step, from 0; between 0 and 1.

        A function of the step only: PyTorch's schedulers have a state, which a resumed run would have to restore.
        """
        steps = self.steps(stage)
        if self.schedule == "steps":
            return 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
        warm = max(1, steps // 10)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def read_by(self, stages: Sequence[StageName]) -> frozenset[str]:
        """Names of the values that some stages read; the target is read by whoever aims for it, and is left out."""
        running = [stage for stage in stages if self.steps(stage)]
        names = _ALWAYS_READ.union({f"{stage}_steps" for stage in stages}, *(_READ_BY[stage] for stage in running))
        if self.augmentation == RESIZED_CROPS:
            names |= {"crop_area"}
        if self.policy is not None:
            names -= {*_OF_THE_GATE, "joint_gate_lr", "alpha_sign", "descent"}
        if "distill" in names and self.distill:
            names |= {"temperature"}
        return frozenset(names | _SGD if "gate" in running and self.gate_optimizer == "sgd" else names)


def reach_of(
    architecture: Architecture, options: Options, costs: Sequence[Sequence[float]] | None
) -> tuple[float, float]:
    """Least and greatest cost of a path of a network; see ``Recipe.reach``.

    Args:
        architecture: the network.
        options: options that the gate chooses from.
        costs: cost of each option at each gated block; those that a block may not run are left out. ``None`` for the
            network's own, by multiply-adds.
    """
    if costs is None:
        return architecture.computation_range(options)
    allowed = architecture.allowed(options)
    return _reach([list(itertools.compress(*row)) for row in zip(costs, allowed, strict=True)])


def _reach(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over blocks of the least and of the greatest of some costs."""
    return sum(map(min, rows)) / len(rows), sum(map(max, rows)) / len(rows)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, kind: Any, value: object) -> None:
    """Raises UsageError for a value that is out of its bounds or of another type."""
    expected = None
    if kind is bool:
        expected = None if isinstance(value, bool) else "true or false"
    elif get_origin(kind) is Literal:
        expected = None if value in get_args(kind) else " or ".join(get_args(kind))
    elif kind is int:
        low, high = _BOUNDS.get(name, (0, _MOST_STEPS))
        sound = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        expected = None if sound else f"an integer of {low} to {high:,}"
    elif kind is float:
        low, high = _BOUNDS.get(name, (0.0, math.inf))
        bounds = f" from {low:g} to {'less than 1' if high == _BELOW_1 else f'{high:g}'}"
        if high == math.inf:
            bounds = "" if low == -math.inf else f" of at least {low:g}"
        expected = None if _is_number(value) and low <= value <= high else f"a number{bounds}"
    if expected is not None:
        raise UsageError(f"{name} is {value!r}, expected {expected}")


def unknown_value(name: str, known: Collection[str]) -> str:
    """Message about a value that training does not have: the nearest names, and where all of them are listed."""
    near = [each for each in sorted(known) if each.startswith(name)]
    near = near or difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near[:3])}? " if near else ""
    return f"training has no value {name!r}; {meant}help(dfs_deploy.training.Recipe) lists them"


_SMALL = Recipe(
    gate_lr=1e-2,
    joint_gate_lr=2e-3,
    schedule="one-cycle",
    gate_optimizer="adam",
    nesterov=True,
    clip=5.0,
    standardize_gate=True,
    settle_share=0.1,
    alpha=1.0,
    alpha_sign="controlled",
    descent=0.5,
)
"""What the presets that are ours have in common: one alpha for all options and targets."""

_OF_DEVICES = dataclasses.replace(
    _SMALL,
    batch=32,
    backbone_steps=3000,
    gate_steps=200,
    gate_patience=20,
    joint_steps=1000,
    backbone_lr=0.05,
    joint_lr=5e-3,
    distill=0.5,
    statistics_batches=40,
)

_SHARES = {"cpu-int8": 0.6, "jetson": 0.6}
"""Targets of presets as shares of what the dearest path costs, if no target is given."""

PRESETS = {
    "paper": Recipe(),
    "quick": dataclasses.replace(
        _SMALL,
        blocks_per_group=3,
        backbone_steps=3000,
        gate_steps=300,
        gate_patience=50,
        joint_steps=1500,
        backbone_lr=0.2,
        joint_lr=0.05,
        weight_decay=5e-4,
        statistics_batches=20,
    ),
    "cpu-int8": dataclasses.replace(_OF_DEVICES, options=Options((0, 8)), target=3.75),
    "jetson": dataclasses.replace(_OF_DEVICES, target=60.0),
}
"""``paper``: Section 4's. ``quick``: a ResNet-20 in about an hour on two CPU cores. ``cpu-int8``: a trained network for
a CPU, which runs in 8 bits and learns what to skip. ``jetson``: one for a GPU, with all options."""


def usual_target(name: str, reach: tuple[float, float]) -> float | None:
    """Target of a preset if none is given: a share of the dearest path, or the least that paths cost.

    Args:
        name: name of the preset.
        reach: least and greatest cost of a path, as shares of full computation; see ``Recipe.reach``.

    Returns:
        A percentage; ``None`` for a preset whose target is the same whatever paths cost.
    """
    least, dearest = reach
    return 100.0 * max(least, _SHARES[name] * dearest) if name in _SHARES else None


def preset(name: str, **changes: object) -> Recipe:
    """A preset with some values changed.

    Without a target, ``cpu-int8`` and ``jetson`` aim for 60 % of what the dearest path costs, whatever options the
    blocks of a network may not run; ``train`` knows them, and aims for what they reach.

    Args:
        name: ``paper``, ``quick``, ``cpu-int8`` or ``jetson``.
        changes: values by attribute; ``None`` keeps the preset's.

    Raises:
        UsageError: no such preset, no such attribute, or a value that cannot be.
    """
    if name not in PRESETS:
        *most, last = PRESETS
        raise UsageError(f"preset {name!r}, expected {', '.join(most)} or {last}")
    given = {key: value for key, value in changes.items() if value is not None}
    known = [each.name for each in dataclasses.fields(Recipe)]
    for key in given:
        if key not in known:
            raise UsageError(unknown_value(key, known))
    if "target" not in given:
        options = Options.parse(given.get("options", PRESETS[name].options))  # type: ignore[arg-type]
        usual = usual_target(name, _reach(given.get("costs") or (options.costs,)))  # type: ignore[arg-type]
        given |= {} if usual is None else {"target": usual}
    return dataclasses.replace(PRESETS[name], **given)  # type: ignore[arg-type]
