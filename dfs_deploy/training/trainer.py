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
from dfs_deploy.io.files import check_folder, remove_leftovers, sole_use
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.network import cifar_values
from dfs_deploy.options import FULL_BITS, Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.beginning import begin_with, new_architecture
from dfs_deploy.training.data import Batches, Images, Splits, load_splits
from dfs_deploy.training.deployed import Ranges, calibrate_deployed, plain_ranges, read_ranges, widest_ranges
from dfs_deploy.training.evaluation import Evaluation, evaluate
from dfs_deploy.training.job import JOB_FILE, Job, load_job, save_job
from dfs_deploy.training.loss import joint_loss, with_costs
from dfs_deploy.training.metrics import SCHEMA as METRICS_SCHEMA
from dfs_deploy.training.metrics import MetricsLog, Record, check_tensorboard
from dfs_deploy.training.processes import Processes, joined, local_device
from dfs_deploy.training.recipe import STEERED, StageName
from dfs_deploy.training.stages import Forward, learning, set_modes, stage_forward, stage_optimizers, standardize_gate
from dfs_deploy.training.state import STATE_FILE, State, load_state, save_state, saving

CHECKPOINT_FILE = "checkpoint.pt"
BACKBONE_FILE = "backbone.pt"
METRICS_FILE = "metrics.jsonl"

_FLUSH_EVERY = 10
_CALIBRATION_BATCHES = 8
_STEP_VALUES = ("loss", "accuracy", "cost", "percentage", "alpha")
_FULL_TOLERANCE = 1e-3
_GATHERED = {"SGD": {"momentum_buffer": True}, "Adam": {"step": False, "exp_avg": True, "exp_avg_sq": True}}
"""What each optimizer gathers of a parameter, and whether it has the parameter's shape."""

TARGET_TOLERANCE = 2.0
"""Points of computation percentage by which a run may end beside its target."""

Observer = Callable[[Record], None]
"""Called with each record of the metrics log when it is written, and with two kinds that are not in the log.

A ``run`` comes before all records of the log, also if a run is resumed; a ``note`` has a ``text``: what was assumed, or
looks wrong and may be meant.
"""


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Attributes:
        folder: its folder.
        checkpoint: the file to export; the backbone's where the run ended with stage 0.
        network: in evaluation mode.
        contract: how pixels become its input.
        evaluation: of the last stage.
        split: what was evaluated on: ``test`` or ``val``, or ``held-out`` training images.
        target: computation percentage that the last stage was steered to; ``None`` if nothing steered it.
        first: whether this process is the one that wrote it; true where there is only one.
        finished_before: whether it was resumed with nothing left to do.
    """

    folder: Path
    checkpoint: Path
    network: DFSNetwork
    contract: InputContract
    evaluation: Evaluation
    split: str
    target: float | None = None
    first: bool = True
    finished_before: bool = False

    @property
    def target_missed(self) -> bool:
        """Whether the computation ended more than :data:`TARGET_TOLERANCE` beside the target."""
        return self.target is not None and abs(self.evaluation.percentage - self.target) > TARGET_TOLERANCE


def train(job: Job, out: str | Path, observer: Observer | None = None, *, splits: Splits | None = None) -> Trained:
    """Runs a job from its beginning.

    Args:
        job: what to do.
        out: folder for ``job.json``, ``metrics.jsonl``, ``state.pt``, ``backbone.pt`` and ``checkpoint.pt``; new, or
            without a run in it.
        observer: is told every record of the metrics log.
        splits: the job's data if they are loaded already; ``None`` loads them.

    Raises:
        UsageError: a run is there already, another process trains there, or the job cannot be.
        DataError: the data cannot be read, or are of one class.
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        EnvironmentLacksError: the folder cannot be created, the disk is full, or memory is too small; what was saved
            stays.
        CheckFailedError: the loss became NaN or infinite; what was saved stays.
    """
    folder = Path(out)
    check_new(folder)
    return _run(job, folder, observer, splits, new=True)


def check_new(folder: Path) -> None:
    """Makes sure that a run can begin in a folder; writes nothing.

    Raises:
        UsageError: a run is there already, or something that is no folder.
        EnvironmentLacksError: nothing can be written there.
    """
    if (folder / JOB_FILE).exists():
        raise UsageError(f"{folder} has a training run already, expected a new folder; choose another, or --resume it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder, expected a new one for the run; choose another with --out")
    try:
        check_folder(folder)
    except OSError as error:
        raise EnvironmentLacksError(
            f"the folder {folder} cannot be {'written to' if folder.exists() else 'created'} ({first_line(error)});"
            " choose another for the run"
        ) from error


def resume(out: str | Path, observer: Observer | None = None) -> Trained:
    """Goes on with a run that was stopped, from its last saved state, as if it had never stopped.

    On a CPU, with the threads that the run had, the metrics are those of a run that never stopped, step for step.

    Args:
        out: the run's folder.
        observer: is told every record that is written from now on.

    Raises:
        CheckpointError: no run is there, it is damaged, or its job was changed.
        UsageError: another process trains there.
        DataError: the data cannot be read, or are not those that the run was begun with.
        EnvironmentLacksError: the disk is full, or memory is too small.
        CheckFailedError: the loss became NaN or infinite.
    """
    folder = Path(out)
    return _run(load_job(folder), folder, observer, None, new=False)


def _run(job: Job, folder: Path, observer: Observer | None, splits: Splits | None, new: bool) -> Trained:
    if job.tensorboard:
        check_tensorboard()
    device = local_device(job.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(job.threads))
        processes = stack.enter_context(joined(device))
        processes.check_batch(job.recipe.batch)
        stack.enter_context(_memory())
        if not new and processes.first:
            stack.enter_context(_only_one(folder))
        state = None if new else load_state(folder)
        splits = splits or load_splits(job.data, job.size, job.held_out, job.seed, job.evaluate_on)
        if state is not None:
            state.check(folder, job, splits.identity)
        trainer = _Trainer(job, folder, splits, device, processes, observer or (lambda record: None), state)
        # Only now, that everything given has proved sound, is something written.
        if new and processes.first:
            _make(folder)
            stack.enter_context(_only_one(folder))
            check_new(folder)  # another process may have begun one meanwhile
            with saving(folder):
                save_job(folder, job)
        processes.wait()
        return trainer.run()


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process, and removes what a killed one left half written there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder))
        except BlockingIOError as error:
            raise UsageError(
                f"another process trains in {folder}; wait until it ends, or choose another folder with --out"
            ) from error
        for name in (JOB_FILE, STATE_FILE, BACKBONE_FILE, CHECKPOINT_FILE):
            remove_leftovers(folder / name)
        yield


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Says in one line that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for GPUs alone; on a CPU it is a RuntimeError like any other.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise EnvironmentLacksError(
            f"memory is too small for this run ({first_line(error, 120)}); lower --batch or --size; what was saved"
            " before is whole"
        ) from error


class _Trainer:
    def __init__(
        self,
        job: Job,
        folder: Path,
        splits: Splits,
        device: torch.device,
        processes: Processes,
        observer: Observer,
        state: State | None,
    ) -> None:
        self._job = job
        self._state = state
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
        if self._state is not None:
            _restore(network, self._state, self._folder)
            return network
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

    def run(self) -> Trained:
        """Runs all stages, from the saved state or the beginning."""
        stages, state = self._job.stages, self._state
        first = 0
        if state is not None:
            first = stages.index(state.stage) if state.stage is not None else len(stages)
        if first < len(stages):
            with self._logging(state.log_bytes if state else 0):
                self._begin(state)
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
            target=self._job.target,
            first=self._processes.first,
            finished_before=first == len(stages),
        )

    def _begin(self, state: State | None) -> None:
        if state is None:
            self._write([self._header()])
        elif self._processes.first:
            self._observer(self._header())
        for note in self._splits.notes:
            self._note(note)

    def _run_stage(self, stage: StageName, state: State | None) -> None:
        job, recipe, network = self._job, self._recipe, self._network
        steps = recipe.steps(stage)
        settled_from = recipe.settled_from(stage)
        optimizers = stage_optimizers(network, stage, recipe)
        begin = streak = 0
        if state is not None and state.optimizers:
            begin, streak = state.step, state.streak
            _restore_optimizers(optimizers, state, self._folder)
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
        measured = dataclasses.asdict(result)
        del measured["suspicions"]
        self._write([{**where, **measured}])
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
            whole = dataclasses.replace(
                state,
                log_bytes=self._log.sync(),
                network={key: value.cpu() for key, value in self._network.state_dict().items()},
                job=self._job.as_json(),
                data=self._splits.identity,
            )
            save_state(self._folder, whole)

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
            "architecture": cifar_values(self._network.architecture),
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
            f"the folder {folder} cannot be created ({first_line(error)}); choose another for the run"
        ) from error


def _in_full_precision(network: DFSNetwork) -> DFSNetwork:
    """The backbone as a network of its own, which can be deployed: a policy that runs every block in full precision."""
    return network.with_policy([1] * network.architecture.gated_blocks, Options((0, FULL_BITS)))


def _restore(network: DFSNetwork, state: State, folder: Path) -> None:
    try:
        network.load_state_dict(state.network)
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
    except (AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the state in {folder} is of another network than its job's; start again") from error
    if not sound:
        raise CheckpointError(f"the state in {folder} holds NaN or infinity; start again")


def _restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], state: State, folder: Path) -> None:
    try:
        for optimizer, saved in zip(optimizers, state.optimizers, strict=True):
            # Rates and the like are the recipe's; what an optimizer has gathered of each parameter is the state's.
            own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, values in zip(optimizer.param_groups, own, strict=True):
                parameters = group["params"]
                group.clear()
                group.update(values, params=parameters)
                for parameter in parameters:
                    _check_gathered(optimizer, parameter)
                    # Memory of its own, which a file's tensors may share with each other and with themselves.
                    gathered = optimizer.state.get(parameter, {})
                    gathered.update({key: value.clone() for key, value in gathered.items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the state in {folder} does not fit the stage {state.stage} ({first_line(error, 120)}); start again"
        ) from error


def _check_gathered(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Raises ValueError if an optimizer's state of a parameter is not what such an optimizer makes."""
    gathered = optimizer.state.get(parameter, {})
    shapes = _GATHERED[type(optimizer).__name__]
    if gathered and set(gathered) != set(shapes):
        raise ValueError(f"{type(optimizer).__name__} with {', '.join(map(str, gathered))}")
    for key, value in gathered.items():
        wanted = parameter.shape if shapes[key] else torch.Size()
        if not isinstance(value, Tensor) or value.shape != wanted or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} of another shape, or not finite")


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
