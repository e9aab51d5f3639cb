"""Cost ``latency``: what each option takes on this machine, as it would be deployed, measured before training begins.

The network is exported to a bundle for a moment, and every option of every block is timed in its runtime: the engines
that run, fallbacks included. The table stays in the run's folder as ``latency.json``.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from dfs_deploy.costs import LatencyTable, load_costs
from dfs_deploy.errors import CheckFailedError, EnvironmentLacksError, ExportMismatchError, UsageError
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.options import Options
from dfs_deploy.progress import Progress
from dfs_deploy.system.libraries import required
from dfs_deploy.training.begin import contract_of
from dfs_deploy.training.job import Job
from dfs_deploy.training.metrics import Evaluation
from dfs_deploy.training.recipe import FLOPS
from dfs_deploy.training.splits import Splits

LATENCY: Final = "latency"
"""Name of the cost that is measured here."""

LATENCY_FILE: Final = "latency.json"
"""The latency table of a run, in its folder."""

TOLERANCE = 0.2
"""Uncertainty of an option's time, as a share of the dearest option's, beyond which training is not to aim by it."""

_FOR_CPU, _FOR_GPU = "cpu-int8", "jetson"
"""Presets for networks that run in ONNX Runtime and in TensorRT."""

_IMAGES = 64
"""Training images that ranges of quantised layers are taken from: times hardly depend on them."""

_LOG = logging.getLogger(__name__)


def usual_cost(preset: str) -> tuple[str, tuple[str, ...]]:
    """Name of the cost if none is asked for, and what is to be said about it, one line each.

    It is time for the presets of networks that will run on the machine that trains them, else bits squared.
    """
    if preset == _FOR_GPU:
        try:
            _device(preset)
        except EnvironmentLacksError as error:
            return FLOPS, (
                f"options cost by bits, not by time on the device ({first_line(error)}); measure a bundle there with"
                " bench --save-costs, and give the file with --cost",
            )
    return (LATENCY if preset in (_FOR_CPU, _FOR_GPU) else FLOPS), ()


def _device(preset: str) -> str:
    """The device that a preset's networks run on.

    Raises:
        EnvironmentLacksError: this machine is no such device.
    """
    from dfs_deploy.bench.devices import check_device
    from dfs_deploy.bench.jetson import is_jetson

    device = "cpu" if preset != _FOR_GPU else "jetson" if is_jetson() else "cuda"
    check_device(device)
    return device


def measure_here(
    job: Job, options: Options, splits: Splits, network: DFSNetwork | None, preset: str, progress: Progress
) -> LatencyTable:
    """Measures what each option of each block takes on this machine, as deployed.

    Args:
        job: the job; of its recipe, only the blocks per group are read.
        options: options that the gate chooses from.
        splits: its data, from which the ranges of quantised layers are taken.
        network: network that is to be trained, which is left as it is; ``None`` for the CIFAR ResNet of the job.
        preset: name of the preset, which decides the device.
        progress: progress of the measuring.

    Raises:
        UsageError: the network has a static policy, so nothing is chosen.
        MissingExtraError: a library that exports is not installed.
        EnvironmentLacksError: this machine is not the device, or has no room for a bundle.
        CheckFailedError: the network cannot be exported, or the machine is so busy that times say nothing.
    """
    with required():
        from dfs_deploy.bench.costs import measure_costs
        from dfs_deploy.bench.devices import RUNTIME_OF
        from dfs_deploy.exporters import export

    device = _device(preset)
    if network is None:
        with torch.random.fork_rng([]):
            torch.manual_seed(job.seed)
            network = cifar_network(splits.architecture(job.recipe.blocks_per_group), options)
    if network.policy is not None:
        raise UsageError("cost latency for a network with a static policy, which has no choice; leave the cost out")
    progress("exporting the network, to time its options", 0.0)
    try:
        with tempfile.TemporaryDirectory(prefix="dfs-deploy-") as folder:
            exported = export(
                network,
                Path(folder, "begun.dfs"),
                runtimes=tuple(dict.fromkeys(("onnxruntime", RUNTIME_OF[device]))),
                contract=contract_of(network, splits),
                calibration_data=splits.train.subset(_IMAGES, job.seed).load(),
                threads=job.threads,
                proved=False,
            )
            table = measure_costs(
                exported.bundle,
                progress=progress,
                device=device,
                tolerance=TOLERANCE,
                cache_dir=Path(folder, "cache"),
            )
    except ExportMismatchError as error:
        raise CheckFailedError(
            f"the options cannot be timed as deployed: {first_line(error)}; train with --cost flops, or with a table"
            " that bench --save-costs wrote"
        ) from error
    except OSError as error:
        raise EnvironmentLacksError(
            f"no bundle can be written to {tempfile.gettempdir()} to time its options ({first_line(error)}); make room"
            " there, or set TMPDIR"
        ) from error
    _LOG.info("timed the options on %s, %s", table.machine, table.runtime)
    return table


@dataclass(frozen=True)
class Predicted:
    """Time that a latency table predicts for a trained network.

    Attributes:
        mean_us: mean over the images, of the decided blocks and their gate steps, in microseconds.
        dearest_us: the same if every block runs its slowest option, which is 100 %.
    """

    mean_us: float
    dearest_us: float

    @property
    def percentage(self) -> float:
        """Percent of the dearest path's time."""
        return 100.0 * self.mean_us / self.dearest_us


def predicted_time(table: LatencyTable, job: Job, evaluation: Evaluation) -> Predicted | None:
    """The time that a run's latency table predicts for its network.

    Args:
        table: the latency table.
        job: the job.
        evaluation: how often each option was taken.

    Returns:
        The prediction; ``None`` if no block was decided, as in an evaluation of the backbone only.
    """
    options = job.recipe.options
    dearest = table.dearest_us(options)
    if not evaluation.option_share or not dearest:
        return None
    gated = job.recipe.policy is None
    return Predicted(table.predict_mean_us(evaluation.option_share, options, gated=gated), dearest)


def table_of(folder: Path) -> LatencyTable | None:
    """The latency table of a run; ``None`` if it was not steered by one.

    Raises:
        DataError: it is malformed.
    """
    path = folder / LATENCY_FILE
    return load_costs(path) if path.is_file() else None
