"""Training from end to end: stages, steps, evaluations, and saving so that nothing is lost (Section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dfs_deploy
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import CheckFailedError, CheckpointError, EnvironmentLacksError, UsageError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import FULL_BITS, Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.beginning import begin_with, new_architecture
from dfs_deploy.training.data import Batches, Images, Splits, load_splits
from dfs_deploy.training.deployed import Ranges, calibrate_deployed, plain_ranges, read_ranges, widest_ranges
from dfs_deploy.training.evaluation import Evaluation, evaluate
from dfs_deploy.training.job import JOB_FILE, Job, load_job, save_job
from dfs_deploy.training.loss import joint_loss, with_costs
from dfs_deploy.training.metrics import SCHEMA as METRICS_SCHEMA
from dfs_deploy.training.metrics import MetricsLog, Record
from dfs_deploy.training.processes import Processes, joined, local_device
from dfs_deploy.training.recipe import STEERED, StageName
from dfs_deploy.training.stages import Forward, learning, set_modes, stage_forward, stage_optimizers, standardize_gate
from dfs_deploy.training.state import State, load_state, save_state, saving

CHECKPOINT_FILE = "checkpoint.pt"
BACKBONE_FILE = "backbone.pt"
METRICS_FILE = "metrics.jsonl"

_FLUSH_EVERY = 10
_CALIBRATION_BATCHES = 8
_STEP_VALUES = ("loss", "accuracy", "cost", "percentage", "alpha")
_FULL_TOLERANCE = 1e-3

Observer = Callable[[Record], None]
"""Called with each record of the metrics log when it is written, and with notes (``note``: a ``text``), not in it."""


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Attributes:
        folder: its folder.
        checkpoint: the file to export; the backbone's where the run ended with stage 0.
        network: in evaluation mode.
        contract: how pixels become its input.
        evaluation: of the last stage.
        split: what was evaluated on: ``test``, or ``held-out`` training images.
        first: whether this process is the one that wrote it; true where there is only one.
        finished_before: whether it was resumed with nothing left to do.
    """

    folder: Path
    checkpoint: Path
    network: DFSNetwork
    contract: InputContract
    evaluation: Evaluation
    split: str
    first: bool = True
    finished_before: bool = False


def train(job: Job, out: str | Path, observer: Observer | None = None) -> Trained:
    """Runs a job from its beginning.

    Args:
        job: what to do.
        out: folder for ``job.json``, ``metrics.jsonl``, ``state.pt``, ``backbone.pt`` and ``checkpoint.pt``; new, or
            without a run in it.
        observer: is told every record of the metrics log.

    Raises:
        UsageError: a run is there already, or the job cannot be.
        DataError: the data cannot be read, or is of one class.
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        EnvironmentLacksError: the folder cannot be created, or the disk is full; what was saved stays.
        CheckFailedError: the loss became NaN or infinite; what was saved stays.
    """
    folder = Path(out)
    if (folder / JOB_FILE).exists():
        raise UsageError(f"{folder} has a training run already, expected a new folder; choose another, or --resume it")
    return _run(job, folder, observer, new=True)


def resume(out: str | Path, observer: Observer | None = None) -> Trained:
    """Goes on with a run that was stopped, from its last saved state, as if it had never stopped.

    On a CPU, with the threads that the run had, the metrics are those of a run that never stopped, step for step.

    Args:
        out: the run's folder.
        observer: is told every record that is written from now on.

    Raises:
        CheckpointError: no run is there, or it is damaged.
    """
    folder = Path(out)
    return _run(load_job(folder), folder, observer, new=False)


def _run(job: Job, folder: Path, observer: Observer | None, new: bool) -> Trained:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    device = local_device(job.device)
    with joined(device) as processes:
        processes.check_batch(job.recipe.batch)
        splits = load_splits(job.data, job.size, job.held_out, job.seed)
        trainer = _Trainer(job, folder, splits, device, processes, observer or (lambda record: None))
        # Only now, that everything given has proved sound, is something written.
        if new and processes.first:
            _make(folder)
            with saving(folder):
                save_job(folder, job)
        processes.wait()
        return trainer.run(None if new else load_state(folder))


class _Trainer:
    def __init__(
        self,
        job: Job,
        folder: Path,
        splits: Splits,
        device: torch.device,
        processes: Processes,
        observer: Observer,
    ) -> None:
        self._job = job
        self._recipe = job.recipe
        self._folder = folder
        self._device = device
        self._processes = processes
        self._observer = observer
        self._splits = splits
        self._contract = splits.contract()
        train = Images(splits.train, self._contract, device)
        self._evaluation_images = Images(splits.evaluation, self._contract, device)
        self._batches = Batches(train, job.recipe.batch, job.recipe.augmentation, job.seed, processes)
        self._network = self._new_network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        costs = job.recipe.costs
        self._costs = None if costs is None else torch.tensor(costs, device=device)
        self._pending: list[tuple[Tensor, dict[str, Any]]] = []
        self._log: MetricsLog | None = None
        self._last: Evaluation | None = None

    def _new_network(self) -> DFSNetwork:
        architecture = new_architecture(self._recipe, self._splits)
        torch.manual_seed(self._job.seed)
        network = DFSNetwork(architecture, self._recipe.options, self._recipe.policy_indices())
        if self._job.backbone is not None:
            given = begin_with(self._job.backbone, architecture, self._note)
            network.backbone.load_state_dict(given.backbone.state_dict())
        if self._job.start is not None:
            given = begin_with(self._job.start, architecture, self._note)
            if given.options != network.options:
                raise CheckpointError(
                    f"{self._job.start} has the options {given.options}, expected {network.options}; give --options"
                    f" {given.options}, or take its backbone alone with --backbone"
                )
            network.load_state_dict(given.state_dict())
        return network

    def _note(self, text: str) -> None:
        if self._processes.first:
            self._observer({"event": "note", "text": text})

    def run(self, state: State | None) -> Trained:
        """Runs all stages, from a saved state or the beginning."""
        stages = self._job.stages
        first = 0
        if state is not None:
            first = stages.index(state.stage) if state.stage is not None else len(stages)
            _restore(self._network, state, self._folder)
        with self._logging(state.log_bytes if state else 0):
            if state is None:
                self._write([self._header()])
            for index, stage in enumerate(stages[first:], start=first):
                self._run_stage(stage, state if index == first else None)
                self._save(State(stages[index + 1] if index + 1 < len(stages) else None, 0, 0))
        gated = stages[-1] != "backbone"
        return Trained(
            folder=self._folder,
            checkpoint=self._folder / (CHECKPOINT_FILE if gated else BACKBONE_FILE),
            network=self._network.eval(),
            contract=self._contract,
            evaluation=self._last
            or evaluate(self._network, self._evaluation_images, self._processes, gated, self._costs_of(stages[-1])),
            split=self._splits.evaluation_name,
            first=self._processes.first,
            finished_before=first == len(stages),
        )

    def _run_stage(self, stage: StageName, state: State | None) -> None:
        job, recipe, network = self._job, self._recipe, self._network
        steps = recipe.steps(stage)
        settled_from = recipe.settled_from(stage)
        optimizers = stage_optimizers(network, stage, recipe)
        begin = streak = 0
        if state is not None and state.optimizers:
            begin, streak = state.step, state.streak
            for optimizer, saved in zip(optimizers, state.optimizers, strict=True):
                optimizer.load_state_dict(saved)
        elif stage == "gate" and recipe.standardize_gate:
            standardize_gate(network, self._batches.take(stage, 0, plain=True)[0])
            self._processes.average(list(network.parameters()))
        ranges: Ranges = {}
        if stage == "deploy":
            ranges = read_ranges(state.ranges) if state is not None and state.ranges else self._calibrate()
        forward = stage_forward(network, stage, job.compile, ranges)
        done, seconds = begin, 0.0
        with learning(network, stage):
            for step in range(begin, steps):
                if step in (begin, settled_from):
                    set_modes(network, stage, settled=step >= settled_from)
                started = time.perf_counter()
                plain = step >= settled_from or stage == "deploy"
                percentage = self._step(stage, step, forward, optimizers, plain)
                seconds += time.perf_counter() - started
                done = step + 1
                if stage == "gate" and recipe.gate_patience:
                    streak = streak + 1 if percentage.item() > recipe.full_percentage - _FULL_TOLERANCE else 0
                    if streak == recipe.gate_patience:
                        break
                if done == steps:
                    break
                if done % _FLUSH_EVERY == 0:
                    self._flush()
                if job.evaluate_every and done % job.evaluate_every == 0:
                    self._evaluate(stage, done)
                if done % job.save_every == 0:
                    states = [each.state_dict() for each in optimizers]
                    self._save(State(stage, done, streak, optimizers=states, ranges=plain_ranges(ranges)))
        self._evaluate(stage, done)
        self._write(
            [{"event": "time", "stage": stage, "step": done, "seconds": round(seconds, 3), "steps": done - begin}]
        )

    def _calibrate(self) -> Ranges:
        """Ranges of the deployed engines, on training images as they are; every process measures a share."""

        def batches() -> Iterator[Tensor]:
            for step in range(min(_CALIBRATION_BATCHES, len(self._batches))):
                yield self._batches.take("calibration", step, plain=True)[0]

        return widest_ranges(self._processes.gather(calibrate_deployed(self._network, batches)))

    def _step(
        self, stage: StageName, step: int, forward: Forward, optimizers: Sequence[torch.optim.Optimizer], plain: bool
    ) -> Tensor:
        """Takes one step; gives the computation percentage of its batch."""
        recipe = self._recipe
        x, labels = self._batches.take(stage, step, plain)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._job.amp and stage != "deploy"):
            output = forward(x)
        steered = stage in STEERED
        if self._costs is not None and steered:
            output = with_costs(output, self._costs)
        loss = joint_loss(
            output,
            labels,
            target=recipe.target if steered else recipe.full_percentage,
            alpha=0.0 if stage == "backbone" or self._network.gate is None else recipe.alpha,
            # Stage 1 goes up to full computation, whatever stage 2 is told.
            alpha_sign=recipe.alpha_sign if steered else "dynamic",
            processes=self._processes,
        )
        rates = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * recipe.rate(stage, step)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        accuracy = (output.logits.detach().argmax(1) == labels).float().mean()
        gradients = _gradients(optimizers)
        buffers = [buffer for buffer in self._network.buffers() if buffer.is_floating_point()]
        self._processes.average([*gradients, *buffers, accuracy])
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(_parameters(optimizers), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
        total = loss.accuracy_loss + loss.alpha * loss.cost
        values = torch.stack([total, accuracy, loss.cost, loss.percentage, loss.alpha])
        self._pending.append((values, {"stage": stage, "step": step + 1, "lr": rates}))
        return loss.percentage

    def _evaluate(self, stage: StageName, step: int) -> None:
        """Evaluates, logs that, and saves what can be used already."""
        self._flush()
        gated = stage != "backbone"
        result = evaluate(self._network, self._evaluation_images, self._processes, gated, self._costs_of(stage))
        self._last = result
        where = {"event": "evaluation", "stage": stage, "step": step, "split": self._splits.evaluation_name}
        self._write([{**where, **dataclasses.asdict(result)}])
        if self._processes.first and stage != "gate":
            name = CHECKPOINT_FILE if gated else BACKBONE_FILE
            network = self._network if gated else _in_full_precision(self._network)
            with saving(self._folder):
                save_checkpoint(self._folder / name, network, self._contract)

    def _costs_of(self, stage: StageName) -> tuple[tuple[float, ...], ...] | None:
        """The costs that a stage is steered by: stage 1 goes up to full bitwidth, whatever that costs on a device."""
        return self._recipe.costs if stage in STEERED else None

    def _flush(self) -> None:
        """Writes the records of the steps since the last time; one transfer from the device for all."""
        if not self._pending:
            return
        rows = torch.stack([values for values, _ in self._pending]).tolist()
        records = []
        for row, (_, where) in zip(rows, self._pending, strict=True):
            if not math.isfinite(row[0]):
                raise CheckFailedError(
                    f"the loss is {row[0]} at step {where['step']} of stage {where['stage']}, expected a number; lower"
                    f" the learning rate; the states saved in {self._folder} before it are whole"
                )
            records.append({"event": "step", **where, **dict(zip(_STEP_VALUES, row, strict=True))})
        self._pending.clear()
        self._write(records)

    def _save(self, state: State) -> None:
        self._flush()
        if self._log is None:
            return
        with saving(self._folder):
            network = {key: value.cpu() for key, value in self._network.state_dict().items()}
            save_state(self._folder, dataclasses.replace(state, log_bytes=self._log.sync(), network=network))

    def _write(self, records: Sequence[Record]) -> None:
        if self._log is not None:
            with saving(self._folder):
                self._log.write(records)
            for record in records:
                self._observer(record)

    @contextlib.contextmanager
    def _logging(self, keep: int) -> Iterator[None]:
        if not self._processes.first:
            yield
            return
        tensorboard = self._folder / "tensorboard" if self._job.tensorboard else None
        with saving(self._folder):
            self._log = MetricsLog(self._folder / METRICS_FILE, keep, tensorboard)
        try:
            yield
        finally:
            self._log.close()
            self._log = None

    def _header(self) -> Record:
        policy = self._network.policy
        return {
            "event": "run",
            "schema": METRICS_SCHEMA,
            "version": dfs_deploy.__version__,
            "job": self._job.as_json(),
            "architecture": dataclasses.asdict(self._network.architecture),
            "options": list(self._network.options.names),
            "policy": None if policy is None else [self._network.options[choice].name for choice in policy],
            "cost": self._recipe.cost,
            "images": {"train": len(self._splits.train), self._splits.evaluation_name: len(self._splits.evaluation)},
            "processes": self._processes.count,
        }


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentLacksError(
            f"the folder {folder} cannot be created ({error.strerror or error}); choose another for the run"
        ) from error


def _in_full_precision(network: DFSNetwork) -> DFSNetwork:
    """The backbone as a network of its own, which can be deployed: a policy that runs every block in full precision."""
    return network.with_policy([1] * network.architecture.gated_blocks, Options((0, FULL_BITS)))


def _restore(network: DFSNetwork, state: State, folder: Path) -> None:
    try:
        network.load_state_dict(state.network)
    except RuntimeError as error:
        raise CheckpointError(f"the state in {folder} is of another network than its job's; start again") from error


def _parameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    return [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]


def _gradients(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """All gradients; zeros where the gate left a parameter out, so that the optimizers treat all processes' alike."""
    gradients = []
    for parameter in _parameters(optimizers):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients
