"""Reference of an accuracy budget: the network whose accuracy is to be kept, and which images it is right about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import ReferenceRecord
from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.data import AnyImages
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters.reference import images_at_once
from dfs_deploy.io.files import sha256_file
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.io.text import one_line
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime

BATCH = 128

Classify = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""From images (N, H, W, 3) uint8 to classes (N,) int64."""


def rival_answers(
    path: Path, halves: Sequence[AnyImages], contract: InputContract, classes: int, threads: int | None
) -> tuple[ReferenceRecord, list[NDArray[np.bool_]]]:
    """Runs the reference that a user names.

    Args:
        path: a bundle, which runs as deployed on ONNX Runtime; or a checkpoint, which runs in PyTorch.
        halves: images to run it on.
        contract: input contract of the network that is exported.
        classes: number of its classes.
        threads: threads of an engine; ``None`` for one.

    Returns:
        Record of the reference, and for each half (N,) bool, whether it is right.

    Raises:
        UsageError: it takes other images, or has other classes.
        ArtefactError: it cannot be read.
    """
    if path.is_dir():
        bundle = Bundle(path)
        _check_alike(path, bundle.input, bundle.architecture.classes, contract, classes)
        record = ReferenceRecord(kind="bundle", name=one_line(bundle.name, LONGEST_NAME), sha256=bundle.digest)
        with Runtime(bundle, threads=threads, plan=False, prepared=False) as runtime:
            return record, [right_answers(lambda images: runtime(images).classes, half, contract) for half in halves]
    loaded = load_checkpoint(path)
    network, own = loaded.network, loaded.input
    _check_alike(path, own, network.architecture.classes, contract, classes)

    def classify(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        logits = network.route(torch.from_numpy(own.normalize(images))).logits
        return np.asarray(logits.argmax(1).numpy(), np.int64)

    name = one_line(path.name, LONGEST_NAME)
    record = ReferenceRecord(kind="checkpoint", name=name, sha256=sha256_file(path))
    return record, [right_answers(classify, half, contract) for half in halves]


def most_precise_path(architecture: Architecture, options: Options) -> NDArray[np.uint8]:
    """(blocks after the first,) uint8: every block at the most precise option that it may run."""
    bits = np.where(architecture.allowed(options), np.asarray(options.bits), -1)
    return np.asarray(bits.argmax(1), np.uint8)


def right_answers(classify: Classify, data: AnyImages, contract: InputContract) -> NDArray[np.bool_]:
    """(N,) bool, whether a network is right about each image."""
    parts = [classify(images) == labels for images, labels in data.batches(images_at_once(contract.shape, BATCH))]
    return np.concatenate(parts)


def _check_alike(path: Path, own: InputContract, classes: int, contract: InputContract, expected: int) -> None:
    remedy = "give the network's static twin with --reference"
    if own.shape != contract.shape:
        raise UsageError(f"{path} takes images of {own.shape}, expected {contract.shape}; {remedy}")
    if classes != expected:
        raise UsageError(f"{path} has {classes} classes, expected {expected}; {remedy}")
    if own.class_names and contract.class_names and own.class_names != contract.class_names:
        raise UsageError(
            f"{path} numbers its classes otherwise ({own.class_names[0]}, ...), expected"
            f" {contract.class_names[0]}, ...; {remedy}"
        )
