"""What a gate is given is checked here, so that every gate refuses the same in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError, UsageError
from dfs_deploy.runtimes.gate import Array, Features, GateWeights, channels_of


def biased_projection(weights: GateWeights, offset: Array) -> Array:
    """The projection's bias with an offset added, (options,) float32; see :meth:`Gate.set_score_offset`."""
    if not isinstance(offset, np.ndarray) or offset.dtype != np.float32 or offset.shape != (weights.options,):
        seen = f"{_kind(offset)} of shape {np.shape(offset)}"
        raise InputError(f"the offset of the scores is {seen}, expected float32 of shape {(weights.options,)}")
    biased: Array = weights.projection_bias + offset
    if not np.isfinite(offset).all() or not np.isfinite(biased).all():
        raise InputError("the offset of the scores is not finite, or too large to be added; pass finite numbers")
    return biased


def check_samples(samples: int) -> None:
    """Raises UsageError where this cannot be a number of samples."""
    if samples < 0:
        raise UsageError(f"{samples} samples: expected none or more")


def check_bound(weights: GateWeights, block: int, features: Features, together: int) -> None:
    """Raises where a step cannot be bound to these features.

    Raises:
        UsageError: there is no such block.
        InputError: the features have another type, shape or layout.
    """
    if not isinstance(features, np.ndarray) or features.dtype not in (np.float32, np.uint8):
        raise InputError(f"features are {_kind(features)}, expected an array of float32 or uint8")
    _check_features(weights, block, "features", features, together)
    if len(features) != 1:
        raise InputError(f"features are of {len(features)} samples, expected one")


def check_batch(
    weights: GateWeights,
    block: int,
    samples: int,
    chunks: Sequence[Features],
    where: NDArray[np.intp],
    together: int,
    changed: NDArray[np.bool_] | None,
) -> int:
    """Raises where a batch cannot be stepped; see :func:`check_bound`. Returns its channels."""
    if not isinstance(where, np.ndarray) or where.dtype != np.intp or where.ndim != 2 or where.shape[1] != 2:
        raise InputError(f"where is {_kind(where)}, expected an array of intp of shape (N, 2)")
    if not where.flags.c_contiguous:
        raise InputError("where is not contiguous; pass numpy.ascontiguousarray of it")
    if not chunks:
        raise InputError("no chunks of features, expected at least one")
    sizes = set()
    for chunk in chunks:
        if not isinstance(chunk, np.ndarray) or chunk.dtype not in (np.float32, np.uint8):
            raise InputError(f"a chunk of features is {_kind(chunk)}, expected an array of float32 or uint8")
        _check_features(weights, block, "features", chunk, together)
        height, width = chunk.shape[1:3] if chunk.dtype == np.uint8 else chunk.shape[2:]
        sizes.add((channels_of(chunk), height, width))
    if len(sizes) > 1:
        raise InputError(f"chunks of features have channels, height and width {sorted(sizes)}, expected the same")
    lengths = np.array([len(chunk) for chunk in chunks])
    if len(where) and (
        where.min() < 0 or where[:, 0].max() >= len(chunks) or (where[:, 1] >= lengths[where[:, 0]]).any()
    ):
        raise InputError(f"where points beyond the {len(chunks)} chunks of {lengths.tolist()} samples")
    if isinstance(changed, np.ndarray) and not changed.flags.c_contiguous:
        raise InputError("changed is not contiguous; pass numpy.ascontiguousarray of it")
    if changed is not None and (
        not isinstance(changed, np.ndarray) or changed.dtype != np.bool_ or changed.shape != (len(where),)
    ):
        raise InputError(f"changed is {_kind(changed)}, expected an array of bool of shape ({len(where)},)")
    _check_samples_held(len(where), samples)
    return sizes.pop()[0]


def check_pooled(weights: GateWeights, block: int, samples: int, pooled: Array) -> None:
    """Raises where features that came pooled cannot be stepped; see :func:`check_bound`."""
    _check_block(weights, block)
    if not isinstance(pooled, np.ndarray) or pooled.dtype != np.float32 or pooled.ndim != 2:
        raise InputError(f"pooled features are {_kind(pooled)}, expected an array of float32 of shape (N, C)")
    if not pooled.flags.c_contiguous:
        raise InputError("pooled features are not contiguous; pass numpy.ascontiguousarray of them")
    check_channels(weights, block, "pooled features", pooled.shape[1])
    _check_samples_held(len(pooled), samples)


def _check_samples_held(given: int, held: int) -> None:
    if given != held:
        raise UsageError(f"{given} samples, but the gate was reset for {held}")


def _check_block(weights: GateWeights, block: int) -> None:
    if not 0 <= block < weights.gates:
        raise UsageError(f"no gate follows block {block}: there are {weights.gates}, from 0")


def _check_features(weights: GateWeights, block: int, name: str, features: NDArray[Any], together: int) -> None:
    _check_block(weights, block)
    if features.ndim != 4 or min(features.shape[1:]) < 1:
        wanted = "(N, H, W, C)" if features.dtype == np.uint8 else "(N, C, H, W)"
        raise InputError(f"{name} have shape {features.shape}, expected {wanted}, none of C, H and W zero")
    if not features.flags.c_contiguous:
        raise InputError(f"{name} are not contiguous; pass numpy.ascontiguousarray({name})")
    channels = channels_of(features)
    check_channels(weights, block, name, channels)
    if channels % together:
        raise InputError(f"{name} have {channels} channels, expected a multiple of the {together} that lie together")


def check_channels(weights: GateWeights, block: int, name: str, channels: int) -> None:
    """Raises where features of this many channels cannot follow a block that there is; see :func:`check_bound`."""
    least = weights.prepared(_own_channels)[block]
    if not least <= channels <= weights.widest:
        bounds = f"{least}" if least == weights.widest else f"{least} to {weights.widest}"
        raise InputError(f"{name} have {channels} channels, expected {bounds} after block {block}")


def _own_channels(weights: GateWeights) -> tuple[int, ...]:
    """By block, the least number of channels that has every weight other than zero."""
    used = (weights.input_weight != 0).any(1)
    return tuple(int(np.flatnonzero(row)[-1]) + 1 if row.any() else 1 for row in used)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
