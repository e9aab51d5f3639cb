"""What the paper shows, as plain data: each figure and table with the networks that it compares.

From "Fractional Skipping: Towards Finer-Grained Dynamic CNN Inference" (AAAI 2020), Section 4. The text gives the
targets of Tables 1 and 2 and of Figures 8 to 10; the points of the other figures are read off its ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DFS, SKIPNET = "skip,8,16,full", "skip,full"
"""Options of a gate."""

SCALABLE = tuple(range(8, 23, 2))
"""Bitwidths of the scalable network (Banner et al. 2018), one network each."""

Drawing = Literal["accuracy", "decisions", "table-1", "table-2", "index"]
"""Kind of figure or table; ``index`` for neither, only its rows in the index."""


@dataclass(frozen=True)
class Variant:
    """One network of an exhibit.

    Attributes:
        options: options of its gate, or that a searched policy chooses from; ``None`` for those of a policy that names
            its own.
        target: computation percentage that it aims for; ``None`` for a policy that costs what it costs.
        policy: static policy in place of a gate.
        alpha: absolute weight of the cost; ``None`` for the paper's 5e-6.
        alpha_sign: whether that weight changes its sign or stays positive.
        two_step: whether joint training begins with a gate that stage 1 trained to run every block in full precision.
    """

    options: str | None = DFS
    target: float | None = None
    policy: str | None = None
    alpha: float | None = None
    alpha_sign: Literal["dynamic", "constant"] = "dynamic"
    two_step: bool = True


@dataclass(frozen=True)
class Exhibit:
    """One figure or table.

    Attributes:
        name: name on the command line, such as ``fig3``.
        title: its subject, as the paper puts it.
        claim: statement of the paper about it, with its numbers.
        network: backbone of all its networks.
        data_set: data that they are trained on.
        variants: its networks, besides the backbone itself.
        drawing: kind of figure or table.
    """

    name: str
    title: str
    claim: str
    network: str
    data_set: str
    variants: tuple[Variant, ...]
    drawing: Drawing = "accuracy"


def _against_skipnet(number: int, network: str, data_set: str, claim: str) -> Exhibit:
    targets = (20.0, 40.0, 60.0, 80.0)
    return Exhibit(
        name=f"fig{number}",
        title=f"Figure {number}: accuracy and computation of DFS and SkipNet",
        claim=claim,
        network=network,
        data_set=data_set,
        variants=tuple(Variant(options, target) for options in (DFS, SKIPNET) for target in targets),
    )


def _decisions(number: int, target: float, claim: str) -> Exhibit:
    return Exhibit(
        name=f"fig{number}",
        title=f"Figure {number}: decisions by block at {target:g} %",
        claim=claim,
        network="resnet74",
        data_set="cifar10",
        variants=(Variant(target=target),),
        drawing="decisions",
    )


EXHIBITS: tuple[Exhibit, ...] = (
    _against_skipnet(3, "resnet38", "cifar10", "DFS above SkipNet from 20 to 80 %; at 20 % 93.61 % against 89.26 %."),
    _against_skipnet(4, "resnet74", "cifar10", "DFS above SkipNet from 20 to 80 %, and above the full network."),
    _against_skipnet(5, "resnet38", "cifar100", "At 20 % 68.91 % against 60.38 %."),
    _against_skipnet(6, "resnet74", "cifar100", "At 20 % 70.94 % against 65.09 %."),
    Exhibit(
        name="fig7",
        title="Figure 7: accuracy and computation of DFS and of statically quantised networks",
        claim="DFS up to 1.2 points above the scalable network and 0.2 above HAQ; the scalable network varies most.",
        network="resnet38",
        data_set="cifar10",
        variants=(
            *(Variant(target=target) for target in (10.0, 20.0, 30.0, 40.0)),
            *(Variant(None, policy=str(bits)) for bits in SCALABLE),
            *(Variant(",".join(map(str, SCALABLE)), t, policy="mixed") for t in (10.0, 20.0, 30.0, 40.0)),
        ),
    ),
    _decisions(8, 4.0, "Skips and 8 bits mixed; the first block of each group is never skipped."),
    _decisions(9, 5.0, "Fewer skips: block 5 from 55 % to none, block 8 from 100 to 10 %."),
    _decisions(10, 6.25, "Every block at 8 bits."),
    Exhibit(
        name="fig11",
        title="Figure 11: accuracy at low computation",
        claim="From 92.91 % at 4 % to 93.54 % at 6.25 %, then a plateau.",
        network="resnet74",
        data_set="cifar10",
        variants=tuple(Variant(target=target) for target in (4.0, 5.0, 6.25, 10.0, 20.0, 30.0)),
    ),
    Exhibit(
        name="table1",
        title="Table 1: alpha with a dynamic sign, and constant",
        claim="Target 40 %: dynamic 40.20 %, top-1 93.53 %; constant 8.20 %, 93.12 %; backbone 93.55 %.",
        network="resnet74",
        data_set="cifar10",
        variants=(Variant(target=40.0, alpha=1e-5), Variant(target=40.0, alpha=1e-5, alpha_sign="constant")),
        drawing="table-1",
    ),
    Exhibit(
        name="table2",
        title="Table 2: absolute value of alpha",
        claim="1e-6 and 1e-5 alike at 40 and 50 %; 1e-3 lands 3 points above the target and costs 0.3 points of top-1.",
        network="resnet74",
        data_set="cifar10",
        variants=tuple(
            Variant(target=target, alpha=alpha) for target in (40.0, 50.0) for alpha in (1e-6, 1e-5, 1e-4, 1e-3)
        ),
        drawing="table-2",
    ),
    Exhibit(
        name="two-step",
        title="Section 3: joint training with and without the first step",
        claim="Without the first step accuracy is much lower.",
        network="resnet38",
        data_set="cifar10",
        drawing="index",
        variants=tuple(
            Variant(target=target, two_step=two_step) for two_step in (True, False) for target in (20.0, 40.0)
        ),
    ),
)


def chosen(only: Sequence[str] | None, networks: Sequence[str], data_sets: Sequence[str]) -> list[Exhibit]:
    """The exhibits of some names, ``None`` for all, that are about some networks and data sets."""
    return [
        each
        for each in EXHIBITS
        if (only is None or each.name in only) and each.network in networks and each.data_set in data_sets
    ]
