"""What training is told, besides the data: the paper's hyperparameters, and a preset for small machines."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.options import Options, parse_policy

AlphaSign = Literal["dynamic", "constant"]
Schedule = Literal["steps", "one-cycle"]
GateOptimizer = Literal["sgd", "adam"]
Augmentation = Literal["crop-flip", "crop", "none"]
StageName = Literal["backbone", "gate", "joint", "deploy"]

FLOPS = "flops"
"""What a cost is without a latency table."""

STAGES: tuple[StageName, ...] = get_args(StageName)
"""The stages, in the order in which they run."""

STEERED: tuple[StageName, ...] = ("joint", "deploy")
"""The stages that aim for the target."""

_MOST_STEPS = 10**9
_WHOLE = {
    "blocks_per_group": (1, 333),  # a thousand blocks: a network of this kind beyond that cannot be deployed here
    "batch": (1, 10**6),
    "backbone_steps": (0, _MOST_STEPS),
    "gate_steps": (0, _MOST_STEPS),
    "joint_steps": (0, _MOST_STEPS),
    "gate_patience": (0, _MOST_STEPS),
    "deploy_steps": (0, _MOST_STEPS),
}
"""Least and most of each value that is an integer."""

_AT_LEAST_0 = (
    "backbone_lr",
    "gate_lr",
    "joint_lr",
    "joint_gate_lr",
    "deploy_rate",
    "weight_decay",
    "clip",
    "alpha",
)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of all stages; the defaults are the paper's (Section 4, Training Details).

    Attributes:
        options: what the gate chooses from.
        target: computation percentage that joint training aims for.
        blocks_per_group: n of ResNet-(6n+2).
        batch: images in a step, over all processes.
        backbone_steps: steps of stage 0, the backbone alone in full precision.
        gate_steps: most steps of stage 1, the gate alone on the fixed backbone.
        gate_patience: stage 1 ends early after so many steps in a row in which every block ran the dearest option;
            0 for never.
        joint_steps: steps of stage 2, backbone and gate toward the target.
        settle_share: last part of stage 2, 0 to 1, in which normalisation and ranges stay as they are and images are
            not varied: what is steered to the target then is what will be deployed.
        backbone_lr: initial or peak learning rate of stage 0.
        gate_lr: of stage 1.
        joint_lr: of the backbone in stage 2.
        joint_gate_lr: of the gate in stage 2.
        schedule: ``steps`` divides the rate by 10 after half of a stage and again after three quarters of it, as the
            paper; ``one-cycle`` warms up over a tenth of the stage and then follows a cosine to zero.
        gate_optimizer: ``sgd``, as for the backbone and in the paper; or ``adam``.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: of SGD.
        deploy_steps: steps of stage 3, in the arithmetic of the deployed engines; 0 for no such stage.
        deploy_rate: factor on stage 2's learning rates in stage 3.
        clip: greatest norm of a step's gradient; 0 for no limit.
        standardize_gate: whether stage 1 begins by scaling the gate's embeddings to mean 0 and deviation 1 over a
            batch. Pooled features differ little from image to image; unscaled, so do the first choices.
        alpha: absolute weight of the cost (Equation 2); the cost is summed over the gated blocks and the samples of a
            batch, in full-precision blocks, as in the authors' code.
        alpha_sign: ``dynamic`` flips the sign of alpha at every step, positive where the batch cost more than the
            target and negative where it did not (Section 3); ``constant`` keeps it positive (Table 1).
        policy: for a network without a gate, the option that each gated block always runs: one name for all of them,
            or one for each, separated by commas. Stage 1 falls away, and stage 2 trains the backbone as the policy
            runs it.
        costs: cost of each option at each gated block, in full-precision blocks, as
            :meth:`dfs_deploy.costs.LatencyTable.costs` measures it; ``None`` for ``(bits / 32) ** 2`` (Section 4,
            Metrics).
        cost: what the costs are, in a word: ``flops``, or the latency table's file.
        augmentation: ``crop-flip`` moves each image by up to 4 pixels and mirrors half of them; ``crop`` only moves.
    """

    options: Options = Options((0, 8, 16, 32))  # noqa: RUF009 (immutable)
    target: float = 40.0
    blocks_per_group: int = 6
    batch: int = 128
    backbone_steps: int = 64_000
    gate_steps: int = 64_000
    gate_patience: int = 0
    joint_steps: int = 64_000
    settle_share: float = 0.0
    deploy_steps: int = 0
    deploy_rate: float = 0.1
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
    augmentation: Augmentation = "crop-flip"
    policy: str | None = None
    costs: tuple[tuple[float, ...], ...] | None = None
    cost: str = FLOPS

    def __post_init__(self) -> None:
        self._check_choices()
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise UsageError(f"{name} is {value!r}, expected an integer of {least} to {most:,}")
        for name in _AT_LEAST_0:
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0.0):
                raise UsageError(f"{name} is {value!r}, expected a number of at least 0")
        if not (_is_number(self.settle_share) and 0.0 <= self.settle_share <= 1.0):
            raise UsageError(f"settle_share is {self.settle_share!r}, expected 0 to 1")
        if not (_is_number(self.momentum) and 0.0 <= self.momentum < 1.0):
            raise UsageError(f"momentum is {self.momentum!r}, expected 0 to less than 1")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov without momentum, which it needs; set nesterov to false, or give a momentum")
        self._check_costs()
        if self.policy is not None:
            self.policy_indices()
        low, high = (100.0 * sum(map(edge, self.cost_rows)) / len(self.cost_rows) for edge in (min, max))
        # A policy costs what it costs, so nothing is steered to the target; it must be a percentage all the same.
        if not _is_number(self.target) or (self.policy is None and not low <= self.target <= high):
            raise UsageError(
                f"target {self.target} %, expected {low:.4g} to {high:.4g}, what the options '{self.options}' reach;"
                " choose another target or other options"
            )

    def _check_costs(self) -> None:
        if (self.costs is None) != (self.cost == FLOPS):
            raise UsageError(
                f"cost {self.cost!r} {'without' if self.costs is None else 'with'} a table of costs, expected {FLOPS!r}"
                " without one, and the table's name with one"
            )
        if self.costs is None:
            return
        if [len(row) for row in self.costs] != [len(self.options)] * self.gated_blocks:
            raise UsageError(
                f"costs of {len(self.costs)} blocks, expected a cost for each option at each of {self.gated_blocks}"
            )
        if not all(_is_number(cost) and cost >= 0.0 for row in self.costs for cost in row):
            raise UsageError("a cost is negative or no finite number, expected each to be at least 0; measure again")

    def _check_choices(self) -> None:
        for name, kind in (
            ("schedule", Schedule),
            ("gate_optimizer", GateOptimizer),
            ("alpha_sign", AlphaSign),
            ("augmentation", Augmentation),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} {getattr(self, name)!r}, expected {' or '.join(get_args(kind))}")
        for name in ("nesterov", "standardize_gate"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected true or false")

    @property
    def gated_blocks(self) -> int:
        """Blocks after the first."""
        return 3 * self.blocks_per_group - 1

    @property
    def cost_rows(self) -> tuple[tuple[float, ...], ...]:
        """Cost of each option at each gated block, in full-precision blocks."""
        return (self.options.costs,) * self.gated_blocks if self.costs is None else self.costs

    @property
    def full_percentage(self) -> float:
        """Computation percentage where every block runs the dearest option, by bits: what stage 1 aims for."""
        return 100.0 * max(self.options.costs)

    def policy_indices(self) -> tuple[int, ...] | None:
        """The policy as an option index for each gated block, or ``None`` for a network with a gate.

        Raises:
            OptionError: an option that is not there, or another number of blocks.
        """
        if self.policy is None:
            return None
        names = [name.strip() for name in self.policy.split(",")]
        names = names * self.gated_blocks if len(names) == 1 else names
        if len(names) != self.gated_blocks:
            raise OptionError(
                f"a policy of {len(names)} options for {self.gated_blocks} gated blocks; give one, or one for each"
            )
        return parse_policy(names, self.options)

    def steps(self, stage: StageName) -> int:
        """Most steps that a stage takes."""
        steps = {"backbone": self.backbone_steps, "gate": self.gate_steps, "joint": self.joint_steps}
        return {**steps, "deploy": self.deploy_steps}[stage]

    def settled_from(self, stage: StageName) -> int:
        """The step of a stage, from 0, from which normalisation and ranges stay; its end where they never do."""
        return self.steps(stage) - (round(self.settle_share * self.joint_steps) if stage == "joint" else 0)

    def rate(self, stage: StageName, step: int) -> float:
        """Factor on a stage's learning rates at a step.

        Args:
            stage: which.
            step: from 0.

        Returns:
            Between 0 and 1.
        """
        steps = self.steps(stage)
        if self.schedule == "steps":
            return 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
        warm = max(1, steps // 10)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


PRESETS = {
    "paper": Recipe(),
    "quick": Recipe(
        blocks_per_group=3,
        backbone_steps=3000,
        gate_steps=300,
        gate_patience=50,
        joint_steps=1500,
        settle_share=0.1,
        backbone_lr=0.2,
        gate_lr=1e-2,
        joint_lr=0.05,
        joint_gate_lr=2e-3,
        schedule="one-cycle",
        gate_optimizer="adam",
        nesterov=True,
        weight_decay=5e-4,
        clip=5.0,
        standardize_gate=True,
        alpha=3e-4,
    ),
}
"""``paper``: Section 4's. ``quick``: a ResNet-20 in about an hour on two CPU cores."""


def preset(name: str, **changes: object) -> Recipe:
    """A preset with some values changed.

    Args:
        name: ``paper`` or ``quick``.
        changes: by attribute; ``None`` keeps the preset's value.

    Raises:
        UsageError: no such preset, no such attribute, or a value that cannot be.
    """
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}, expected {' or '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in given:
        if key not in known:
            raise UsageError(f"no value {key!r} in a recipe, expected one of {', '.join(known)}")
    return dataclasses.replace(PRESETS[name], **given)  # type: ignore[arg-type]
