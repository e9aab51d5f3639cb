"""The loop of a run: stages, steps, evaluations, and saving so that nothing is lost (Section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import dfs_deploy
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.errors import CheckFailedError
from dfs_deploy.models import DFSNetwork, NetworkOutput
from dfs_deploy.models.network import block_costs
from dfs_deploy.progress import Progress
from dfs_deploy.suspicion import suspicions
from dfs_deploy.training.data import Batches, Images
from dfs_deploy.training.job import GIVEN, Job
from dfs_deploy.training.metrics import (
    SCHEMA,
    Evaluation,
    EvaluationRecord,
    MetricsLog,
    Record,
    RunRecord,
    StepRecord,
    TimeRecord,
)
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import StageName
from dfs_deploy.training.splits import Splits
from dfs_deploy.training.stages import (
    Loss,
    accuracy_loss,
    gradients,
    joint_loss,
    learning,
    optimized,
    set_modes,
    stage_forward,
    stage_optimizers,
    standardize_gate,
    summed_cost,
    with_costs,
)
from dfs_deploy.training.state import State, save_state, saving
from dfs_deploy.training.statistics import renew_statistics
from dfs_deploy.training.steering import Steering, Trim

CHECKPOINT_FILE = "checkpoint.pt"
BACKBONE_FILE = "backbone.pt"

_FLUSH_EVERY = 10
_EVALUATED_AT_ONCE = 250
_VALUES_AT_ONCE = 1 << 23
_FULL_TOLERANCE = 1e-3
_ROUNDS = 3

_LOG = logging.getLogger(__name__)


class Loop:
    """A run in its folder, from its beginning or from a saved state.

    Args:
        job: the job.
        network: the network at the beginning of the run; it is trained in place.
        folder: folder of the run.
        splits: the job's data.
        device: device to compute on.
        processes: processes that share the work.
        progress: as in ``train``.
        state: state to go on from; ``None`` for the beginning.
        teacher: maps images (N, C, H, W) float32, normalised, to logits (N, classes) float32 that stage 2 learns from;
            it is in evaluation mode. ``None`` for no teacher.

    Attributes:
        notes: assumptions about the data and the checkpoints, and oddities that may be intended; one line each.

    Raises:
        CheckpointError: the state is of another network.
        DataError: fewer images than a batch.
    """

    def __init__(
        self,
        job: Job,
        network: DFSNetwork,
        folder: Path,
        splits: Splits,
        device: torch.device,
        processes: Processes,
        progress: Progress,
        state: State | None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._job, self._recipe, self._state = job, job.recipe, state
        self._folder = folder
        self._processes = processes
        self._progress = progress
        self._splits = splits
        self._teacher = teacher if job.recipe.distill else None
        self.notes = self._without_effect(network)
        # Channels last in memory, in which convolutions are fast.
        self._network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if state is not None:
            state.restore_network(self._network, folder)
        self._contract = network.contract or splits.contract()
        train = Images(splits.train, self._contract, device)
        self._evaluation_images = Images(splits.evaluation, self._contract, device)
        self._batches = Batches(
            train, job.recipe.batch, job.recipe.augmentation, job.seed, processes, job.recipe.crop_area
        )
        costs = job.recipe.costs
        self._costs = self._network.block_costs if costs is None else torch.tensor(costs, device=device)
        dearest = job.recipe.reach(network.architecture)[1]
        self._steering = Steering(job.recipe, dearest, state.steering if state is not None else None)
        self._trim = Trim(self._costs, dearest)
        self._pending: list[tuple[Tensor, StageName, int, list[float]]] = []
        self._metrics: MetricsLog | None = None
        self._last: Evaluation | None = None

    def _without_effect(self, network: DFSNetwork) -> list[str]:
        """A line for each value that is asked for and cannot do anything."""
        recipe, stages = self._recipe, self._job.stages
        notes = []
        if recipe.drop and "backbone" in stages and all(block.skipped is None for block in network.blocks):
            notes.append("no effect on this run: drop, as no block of the network can be skipped")
        if recipe.distill and "joint" in stages and self._teacher is None:
            notes.append("no effect on this run: distill, as no teacher is given")
        return notes

    def run(self) -> Evaluation:
        """Runs all stages that are left.

        Returns:
            The evaluation after the last stage.
        """
        device = self._evaluation_images.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            return self._run()

    def _run(self) -> Evaluation:
        stages, state = self._job.stages, self._state
        first = 0
        if state is not None:
            first = stages.index(state.stage) if state.stage is not None else len(stages)
        if first < len(stages):
            self.notes += self._splits.notes
            if self._processes.first:
                for note in self.notes:
                    _LOG.warning("%s", note)
            with self._logging(state.log_bytes if state else 0):
                if state is None:
                    self._write([self._header()])
                for index, stage in enumerate(stages[first:], start=first):
                    self._run_stage(stage, state if index == first else None)
                    self._save(State(stages[index + 1] if index + 1 < len(stages) else None, 0, 0))
        return self._last or self._evaluation(stages[-1])

    def _run_stage(self, stage: StageName, state: State | None) -> None:
        job, recipe, network = self._job, self._recipe, self._network
        steps = recipe.steps(stage)
        settled_from = recipe.settled_from(stage)
        full = 100.0 * network.architecture.computation_range(recipe.options)[1]
        optimizers = stage_optimizers(network, stage, recipe)
        begin = streak = 0
        if state is not None and state.optimizers:
            begin, streak = state.step, state.streak
            state.restore_optimizers(optimizers, self._folder)
        elif stage == job.standardized_in and (stage == "gate" or self._untrained_gate):
            standardize_gate(network, self._batches.take(stage, 0, plain=True)[0])
            self._processes.average(list(network.parameters()))
        done, seconds = begin, 0.0
        with learning(network, stage):
            for step in range(begin, steps):
                if step == settled_from:
                    self._renew_statistics(stage)
                if step in (begin, settled_from):
                    set_modes(network, stage, settled=step >= settled_from)
                started = time.perf_counter()
                percentage = self._step(stage, step, optimizers, plain=step >= settled_from)
                seconds += time.perf_counter() - started
                done = step + 1
                if stage == "gate" and recipe.gate_patience:
                    streak = streak + 1 if percentage.item() > full - _FULL_TOLERANCE else 0
                    if streak == recipe.gate_patience:
                        break
                if done == steps:
                    break
                if done % _FLUSH_EVERY == 0 or done == begin + 1:
                    self._flush()
                if job.evaluate_every and done % job.evaluate_every == 0:
                    self._evaluate(stage, done)
                if done % job.save_every == 0:
                    states = [each.state_dict() for each in optimizers]
                    self._save(State(stage, done, streak, optimizers=states))
        if settled_from == steps > begin:
            self._renew_statistics(stage)
        if stage == "joint" and steps > settled_from:
            self._trim_at_the_end()
        self._evaluate(stage, done)
        self._write([TimeRecord(stage=stage, step=done, seconds=round(seconds, 3), steps=done - begin)])

    @property
    def _untrained_gate(self) -> bool:
        """Whether the gate is as it was made; one that was handed over may have been trained before."""
        gate = self._network.gate
        return self._job.network != GIVEN or (gate is not None and gate.prefers)

    def _renew_statistics(self, stage: StageName) -> None:
        """Computes the statistics of normalisations anew, if the stage does that."""
        count = self._recipe.statistics_batches if stage == "joint" else 0
        if count:
            torch.manual_seed(_seed(self._job.seed, "statistics", self._processes.rank))
            with self._half():
                renew_statistics(self._network, self._plain_images(), self._processes)

    def _plain_images(self) -> Iterator[Tensor]:
        """Batches of images that are not varied, for what is computed over several at once."""
        for index in range(self._recipe.statistics_batches):
            yield self._batches.take("statistics", index, plain=True)[0]

    def _trim_at_the_end(self) -> None:
        """Moves the gate's biases by several batches at once: each of the steps before has seen one batch only."""
        self._flush()  # which says whether the loss is a number
        recipe, network = self._recipe, self._network
        if recipe.alpha_sign != "controlled" or network.gate is None or not recipe.statistics_batches:
            return
        network.eval()
        for _ in range(_ROUNDS):  # what an early block is given changes what later ones see
            scores = torch.cat([network.route(x).scores for x in self._plain_images()])
            every = self._processes.concatenate(scores)
            network.gate.shift(self._trim.shift(every, scores.new_tensor(recipe.target), 0))

    def _half(self) -> torch.autocast:
        """Computes layers in the format that the recipe asks for."""
        enabled = self._recipe.autocast == "bfloat16"
        return torch.autocast(self._evaluation_images.device.type, torch.bfloat16, enabled=enabled)

    def _step(self, stage: StageName, step: int, optimizers: Sequence[torch.optim.Optimizer], plain: bool) -> Tensor:
        """Takes one step; gives the computation percentage of its batch."""
        recipe, steered = self._recipe, stage == "joint"
        # What layers draw depends on the step alone, as everything else does.
        torch.manual_seed(_seed(self._job.seed, stage, step, self._processes.rank))
        x, labels = self._batches.take(stage, step, plain)
        taught = None
        with self._half():
            output = stage_forward(self._network, stage, x, 0.0 if plain else recipe.drop)
            if self._teacher is not None and steered:
                with torch.no_grad():
                    taught = self._teacher(x).float()
        output = dataclasses.replace(output, logits=output.logits.float())
        if recipe.costs is not None and steered:
            output = with_costs(output, self._costs)
        accuracy_of = accuracy_loss(output.logits, labels, taught, recipe)
        loss = self._loss(stage, step, output, accuracy_of)
        rates = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * recipe.rate(stage, step)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        accuracy = (output.logits.detach().argmax(1) == labels).float().mean()
        buffers = [buffer for buffer in self._network.buffers() if buffer.is_floating_point()]
        self._processes.average([*gradients(optimizers), *buffers, accuracy])
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(optimized(optimizers), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
        if plain and steered and recipe.alpha_sign == "controlled" and self._network.gate is not None:
            scores = self._processes.concatenate(output.scores.detach().contiguous())
            self._network.gate.shift(self._trim.shift(scores, loss.target, step - recipe.settled_from(stage)))
        values = torch.stack([loss.value, accuracy, loss.cost, loss.percentage, loss.alpha, loss.target])
        self._pending.append((values, stage, step + 1, rates))
        return loss.percentage

    def _loss(self, stage: StageName, step: int, output: NetworkOutput, accuracy: Tensor) -> Loss:
        """The loss of a step, by what steers its stage."""
        recipe, processes = self._recipe, self._processes
        cost = summed_cost(output, processes)
        if stage == "joint" and self._network.gate is not None:
            if recipe.alpha_sign == "controlled":
                cost = self._steering.cost(output, self._costs)
            return joint_loss(output, accuracy, cost, lambda seen: self._steering.weigh(step, seen), processes)
        # Stage 1 goes up to full computation, up to what there is; without a gate nothing is steered.
        alpha = -recipe.alpha if stage == "gate" else 0.0

        def weigh(percentage: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(percentage, math.inf), torch.full_like(percentage, alpha)

        return joint_loss(output, accuracy, cost, weigh, processes)

    def _evaluation(self, stage: StageName) -> Evaluation:
        # Stage 1 goes up to full bitwidth, whatever that costs on a device.
        costs = self._recipe.costs if stage == "joint" else None
        return evaluate(self._network, self._evaluation_images, self._processes, stage != "backbone", costs)

    def _evaluate(self, stage: StageName, step: int) -> None:
        """Evaluates, logs that, and saves what can be used already."""
        self._flush()
        self._last = self._evaluation(stage)
        measured = {name: getattr(self._last, name) for name in self._last.__struct_fields__}
        record = EvaluationRecord(stage=stage, step=step, split=self._splits.evaluation_name, **measured)
        self._write([record])
        if self._processes.first:
            _LOG.info("%s", record.in_words(self._unit(stage)))
            if stage != "gate":
                network, name = self._network, CHECKPOINT_FILE
                if stage == "backbone":
                    network, name = network.in_full_precision(), BACKBONE_FILE
                with saving(self._folder):
                    save_checkpoint(self._folder / name, network, self._contract)

    def _unit(self, stage: StageName) -> str:
        """Unit of a stage's percentages: the other stages count by bits, whatever that costs on a device."""
        return self._recipe.unit if stage == "joint" else "% computation"

    def _flush(self) -> None:
        """Writes the records of the steps since the last time; one transfer from the device for all."""
        if not self._pending:
            return
        rows = torch.stack([values for values, *_ in self._pending]).tolist()
        records = []
        for row, (_, stage, step, rates) in zip(rows, self._pending, strict=True):
            loss, accuracy, cost, percentage, alpha, target = row
            if not math.isfinite(loss):
                raise CheckFailedError(
                    f"the loss is {loss} at step {step} of stage {stage}, expected a number; lower the learning rate;"
                    f" the states saved in {self._folder} before it are whole"
                )
            figures = {"loss": loss, "accuracy": accuracy, "cost": cost, "percentage": percentage, "alpha": alpha}
            aim = target if math.isfinite(target) else None
            records.append(StepRecord(stage=stage, step=step, lr=rates, target=aim, **figures))
        self._pending.clear()
        self._write(records)
        if self._processes.first:
            steps = self._recipe.steps(stage)
            self._progress(
                f"{stage} step {step}/{steps}: loss {loss:.3f}, accuracy {100.0 * accuracy:.1f} %, {percentage:.1f}"
                f" {self._unit(stage)}",
                step / steps,
            )

    def _save(self, state: State) -> None:
        self._flush()
        if self._metrics is None:
            return
        with saving(self._folder):
            whole = dataclasses.replace(
                state,
                steering=self._steering.values() if state.stage == "joint" else {},
                log_bytes=self._metrics.sync(),
                network={key: value.cpu() for key, value in self._network.state_dict().items()},
                job=self._job.as_json(),
                data=self._splits.identity,
            )
            save_state(self._folder, whole)

    def _write(self, records: Sequence[Record]) -> None:
        if self._metrics is not None:
            with saving(self._folder):
                self._metrics.write(records)

    @contextlib.contextmanager
    def _logging(self, keep: int) -> Iterator[None]:
        if not self._processes.first:
            yield
            return
        with saving(self._folder):
            self._metrics = MetricsLog(self._folder, keep)
        try:
            yield
        finally:
            self._metrics.close()
            self._metrics = None

    def _header(self) -> RunRecord:
        network, splits = self._network, self._splits
        policy = network.policy
        return RunRecord(
            schema=SCHEMA,
            version=dfs_deploy.__version__,
            job=self._job.as_json(),
            architecture=msgspec.to_builtins(network.architecture),
            options=list(network.options.names),
            policy=None if policy is None else [network.options[choice].name for choice in policy],
            cost=self._recipe.cost,
            images={"train": len(splits.train), splits.evaluation_name: len(splits.evaluation)},
            processes=self._processes.count,
        )


def _seed(*key: object) -> int:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@torch.no_grad()
def answers(
    network: DFSNetwork, images: Images, processes: Processes | None = None, gated: bool = True
) -> NDArray[np.int64]:
    """What a network answers in evaluation mode, which is left as it was; every process takes a share and gets all.

    Args:
        network: the network.
        images: images to classify.
        processes: processes that share the work; ``None`` for this one only.
        gated: whether the gate or policy chooses; otherwise every block runs in full precision.

    Returns:
        (N, 2 + gated blocks) int64: label, answer, and the index of the option that each block ran, 0 if not gated.
    """
    processes = processes or Processes()
    modes = [(module, module.training) for module in network.modules()]
    share = processes.share(len(images))
    blocks = network.architecture.gated_blocks
    rows = [np.zeros((0, 2 + blocks), np.int64)]
    try:
        network.eval()
        at_once = max(1, min(_EVALUATED_AT_ONCE, _VALUES_AT_ONCE // math.prod(network.architecture.image_shape)))
        for pixels, labels in images.batches(at_once, range(share.start, share.stop)):
            x = images.normalize(pixels)
            if gated:
                output = network.route(x)
                logits, path = output.logits, output.path
            else:
                logits, path = network.static(x), labels.new_zeros(len(labels), blocks)
            rows.append(torch.column_stack([labels, logits.argmax(1), path]).cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(processes.gather(np.concatenate(rows)))


def evaluate(
    network: DFSNetwork,
    images: Images,
    processes: Processes | None = None,
    gated: bool = True,
    costs: Sequence[Sequence[float]] | None = None,
) -> Evaluation:
    """Evaluates a network; arguments as for ``answers``.

    Args:
        network: the network.
        images: images to classify.
        processes: processes that share the work.
        gated: whether the gate or policy chooses.
        costs: cost of each option at each gated block; ``None`` for the network's own, by multiply-adds.
    """
    every = answers(network, images, processes, gated)
    truth, predicted, path_of = every[:, 0], every[:, 1], every[:, 2:]
    blocks = network.architecture.gated_blocks
    rows = block_costs(network.architecture, network.options).numpy() if costs is None else np.asarray(costs)
    counts = np.array([np.bincount(column, minlength=len(network.options)) for column in path_of.T])
    return Evaluation(
        images=len(images),
        top1=float((truth == predicted).mean()),
        percentage=100.0 * float((counts * rows).sum()) / (len(images) * blocks) if gated and blocks else 100.0,
        option_share=(counts / len(images)).tolist() if gated else [],
        paths=len(np.unique(path_of, axis=0)) if gated and blocks else 1,
        suspicions=list(suspicions(truth, predicted, network.architecture.classes, images.class_names)),
    )
