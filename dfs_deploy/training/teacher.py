"""The teacher of a run: a frozen network whose answers the network in training learns from (Hinton et al. 2015).

It is a checkpoint, the run's own network in full precision as the run began, or a module that was handed over. All but
a module that is no ``DFSNetwork`` are kept in the run's folder, so that a run goes on without anything of the user's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import DataError, UsageError
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.job import GIVEN, Job
from dfs_deploy.training.loop import BACKBONE_FILE
from dfs_deploy.training.processes import Processes

FULL: Final = "full"
"""Word for the network as the run began with it, in full precision."""

TEACHER_FILE: Final = "teacher.pt"
"""The teacher of a run, in its folder."""

USUAL_DISTILL = 0.5
"""Part of a teacher's answers in the loss if one is given and the recipe has none."""

_PROBES = 2


@dataclass(frozen=True)
class Pupil:
    """What a teacher must fit.

    Attributes:
        contract: input contract of the network in training, whose images the teacher gets.
        classes: number of its classes.
        device: device that it is trained on.
    """

    contract: InputContract
    classes: int
    device: torch.device


class Teacher:
    """Frozen function from normalised images to logits.

    Args:
        network: the teacher; it is copied, put in evaluation mode and on the pupil's device.
        pupil: what it must fit.
        name: name of it in messages.

    Raises:
        DataError: it has other classes, takes images of another shape, or fails on two of them.
    """

    def __init__(self, network: nn.Module, pupil: Pupil, name: str) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval().to(pupil.device)
        self._scale = self._shift = None
        if isinstance(self.network, DFSNetwork):
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            own = self.network.contract
            _check_network(self.network, pupil, name)
            if own is not None and (own.mean, own.std) != (pupil.contract.mean, pupil.contract.std):
                # From pixels as the pupil normalises them to pixels as the teacher does.
                mean, std, ours, ours_std = (
                    torch.tensor(each, device=pupil.device).view(1, -1, 1, 1)
                    for each in (own.mean, own.std, pupil.contract.mean, pupil.contract.std)
                )
                self._scale, self._shift = ours_std / std, (ours - mean) / std
        else:
            _check_module(self, pupil, name)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Answers of the teacher.

        Args:
            x: (N, C, H, W) float32, normalised as for the network in training.

        Returns:
            (N, classes) float32 logits.
        """
        if self._scale is not None and self._shift is not None:
            x = x * self._scale + self._shift
        network = self.network
        logits: Tensor = network.route(x).logits if isinstance(network, DFSNetwork) else network(x)
        return logits.float()


def _check_network(network: DFSNetwork, pupil: Pupil, name: str) -> None:
    architecture, shape = network.architecture, pupil.contract.shape
    if architecture.classes != pupil.classes:
        raise DataError(
            f"{name} has {architecture.classes} classes, expected the {pupil.classes} of the data; give a teacher that"
            " was trained on the same classes"
        )
    theirs, ours = () if network.contract is None else network.contract.class_names, pupil.contract.class_names
    if theirs and ours and theirs != ours:
        one, other = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"{name} has the class {one!r} where the data have {other!r}; give a teacher that was trained on the same"
            " classes in the same order"
        )
    if architecture.image_shape != shape:
        raise DataError(
            f"{name} takes images of shape {architecture.image_shape}, expected {shape}, as the network in training"
            " does; give a teacher of that size"
        )


def _check_module(teacher: Teacher, pupil: Pupil, name: str) -> None:
    """Runs a module that says nothing about itself on two images."""
    wanted = (_PROBES, pupil.classes)
    try:
        answers = teacher(torch.zeros((_PROBES, *pupil.contract.shape), device=pupil.device))
        seen = f"{tuple(answers.shape)}" if torch.isfinite(answers).all() else "NaN or infinity"
    except Exception as error:  # the user's module raises what it likes
        seen = f"{type(error).__name__}: {first_line(error, 120)}"
    if seen != f"{wanted}":
        raise DataError(
            f"{name} gives {seen} for {_PROBES} images of shape {pupil.contract.shape}, expected logits of shape"
            f" {wanted}; give a module that takes the run's normalised images and has its classes"
        )


class _OfBackbone:
    """The backbone of a run that begins with stage 0, in full precision: there once that stage has ended."""

    def __init__(self, folder: Path, pupil: Pupil, processes: Processes) -> None:
        self._file, self._pupil, self._processes = folder / BACKBONE_FILE, pupil, processes
        self._teacher: Teacher | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._teacher is None:
            self._processes.wait()  # the first one writes it
            network = load_checkpoint(self._file, deployable=False).network
            self._teacher = Teacher(network, self._pupil, "the run's backbone")
        return self._teacher(x)


def begun_teacher(
    job: Job, network: DFSNetwork, pupil: Pupil, given: nn.Module | None, folder: Path, processes: Processes
) -> Callable[[Tensor], Tensor] | None:
    """The teacher of a run at its beginning; ``None`` if it has none.

    Args:
        job: the job.
        network: the network as the run begins with it.
        pupil: what the teacher must fit.
        given: module that was handed over.
        folder: folder of the run, which need not exist yet.
        processes: processes of the run.

    Raises:
        CheckpointError: the teacher's file cannot be read.
        DataError: it does not fit; see ``Teacher``.
    """
    if job.teacher is None:
        return None
    if job.teacher == FULL:
        if "backbone" in job.stages:
            return _OfBackbone(folder, pupil, processes)
        return Teacher(network.in_full_precision(), pupil, "the teacher")
    if job.teacher == GIVEN:
        return Teacher(_handed_over(job, given, folder), pupil, "the teacher")
    other = load_checkpoint(job.teacher, deployable=False).network
    return Teacher(other, pupil, f"the teacher {job.teacher}")


def kept_teacher(
    job: Job, pupil: Pupil, given: nn.Module | None, folder: Path, processes: Processes
) -> Callable[[Tensor], Tensor] | None:
    """The teacher of a run that goes on, as its folder holds it; arguments as for ``begun_teacher``.

    Raises:
        CheckpointError: the folder lacks it, or it is damaged.
        UsageError: it was a module that no file holds, and it is not given again, or another one is.
    """
    if job.teacher is None:
        return None
    if job.teacher == FULL and "backbone" in job.stages:
        return _OfBackbone(folder, pupil, processes)
    if job.teacher_digest is None:
        return Teacher(load_checkpoint(folder / TEACHER_FILE, deployable=False).network, pupil, "the teacher")
    return Teacher(_handed_over(job, given, folder), pupil, "the teacher")


def _handed_over(job: Job, given: nn.Module | None, folder: Path) -> nn.Module:
    """The module that was handed over, which must be the one that the job was made with."""
    again = f'give it again, as in resume("{folder}", teacher=module)'
    if given is None:
        raise UsageError(
            f"the run in {folder} learns from a module that was handed over, and no file holds its code; {again}"
        )
    if job.teacher_digest not in (None, digest_of(given)):
        raise UsageError(f"the teacher is not the module that the run in {folder} was begun with; {again}")
    return given


def save_teacher(teacher: Callable[[Tensor], Tensor] | None, pupil: Pupil, folder: Path) -> None:
    """Keeps a teacher in a run's folder, if a file can hold it.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(teacher, Teacher) and isinstance(teacher.network, DFSNetwork):
        teacher.network.save(folder / TEACHER_FILE, teacher.network.contract or pupil.contract)


def digest_of(module: nn.Module) -> str:
    """Digest of a module's state, by which it is known again."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
