"""Checkpoints that look like ours and cannot be deployed: each is named, with what to do."""

from __future__ import annotations

from collections.abc import Callable

from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import UnknownCheckpointError

Test = Callable[[RawCheckpoint], bool]


def _has(raw: RawCheckpoint, *parts: str) -> bool:
    return all(any(part in key for key in raw.tensors) for part in parts)


def is_fractrain(raw: RawCheckpoint) -> bool:
    """FracTrain shares the DFS release's gate, but keeps ranges as zero point and width."""
    return _has(raw, "running_zero_point") or _has(raw, "running_range")


REJECTED: tuple[tuple[str, Test, str], ...] = (
    (
        "FracTrain",
        is_fractrain,
        "its quantiser differs from DFS's, so decisions would change; train with dfs-deploy or the DFS release",
    ),
    (
        "DFS backbone without a gate",
        lambda raw: _has(raw, "quantize_input") and not _has(raw, "control.") and not _has(raw, "_gate"),
        "there is nothing to decide with; train the gate on it (steps 1 and 2) and export that checkpoint",
    ),
    (
        "SkipNet for ImageNet",
        lambda raw: _has(raw, "control.rnn.") and (_has(raw, "group4_") or _has(raw, "group1_ds0")),
        "only CIFAR networks of basic blocks are supported; use a CIFAR SkipNet or train one with dfs-deploy",
    ),
    (
        "SkipNet with feed-forward gates",
        lambda raw: _has(raw, "_gate0.linear_layer") and not _has(raw, "control."),
        "only the recurrent gate is supported; use a recurrent-gate (rnn) checkpoint of SkipNet",
    ),
    (
        "BlockDrop",
        lambda raw: {"resnet", "agent"} <= set(raw.values),
        "its policy network is no recurrent gate; train with dfs-deploy instead",
    ),
)


def reject(raw: RawCheckpoint, path: object) -> None:
    """Raises UnknownCheckpointError where the keys are those of a known kind that cannot be deployed."""
    for kind, matches, remedy in REJECTED:
        if matches(raw):
            raise UnknownCheckpointError(f"{path} is a {kind} checkpoint: {remedy}")
