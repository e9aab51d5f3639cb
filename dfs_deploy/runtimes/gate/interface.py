"""The interface of every gate, with its checks: each gate refuses the same input in the same words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import InputError, UsageError
from dfs_deploy.runtimes.gate.weights import Array, GateWeights

Features = NDArray[np.float32] | NDArray[np.uint8]
"""Feature maps: (N, C, H, W) float32 or (N, H, W, C) uint8."""


class BoundStep(Protocol):
    """Step of the gate after one block for one sample, bound to the buffer that holds its features.

    It belongs to a gate that was reset for one sample. Of equal scores the lowest option wins.
    """

    def __call__(self) -> int:
        """Pools the features, advances the state and returns the option index for the next block."""

    def pool(self) -> None:
        """Averages the features over the map."""

    def advance(self) -> int:
        """Advances the state by the features pooled last: enough by itself if they did not change since."""


class Gate(ABC):
    """LSTM that steps through a network, block by block, for one sample or a batch.

    Args:
        weights: weights, shared by gates.
        channel_block: channels of a float32 map that lie together in memory: 1 for plain maps (N, C, H, W); with 8, the
            memory of a map of that shape holds (N, C / 8, H, W, 8), the blocked layout of ONNX Runtime's convolutions.
    """

    name: str
    """Name in the output of ``doctor`` and ``bench``."""

    def __init__(self, weights: GateWeights, channel_block: int = 1) -> None:
        self._weights = weights
        self._samples = 1
        self.channel_block = channel_block

    def reset(self, samples: int) -> None:
        """Forgets all states: the next step is the one after the first block, for this many samples."""
        if samples < 0:
            raise UsageError(f"{samples} samples: expected none or more")
        self._reset(samples)
        self._samples = samples

    def set_score_offset(self, offset: Array) -> None:
        """Adds to the score of every option, from the next step on and in bound steps too; replaces the last offset.

        It works as another bias of the projection would. Other gates of the same weights are not affected.

        Args:
            offset: (options,) float32, finite; zeros for the weights' own scores.

        Raises:
            InputError: another shape or type, NaN or infinity.
        """
        shape = (self._weights.options,)
        if not isinstance(offset, np.ndarray) or offset.dtype != np.float32 or offset.shape != shape:
            seen = f"{_kind(offset)} of shape {np.shape(offset)}"
            raise InputError(f"the offset of the scores is {seen}, expected float32 of shape {shape}")
        bias: Array = self._weights.projection_bias + offset
        if not np.isfinite(offset).all() or not np.isfinite(bias).all():
            raise InputError("the offset of the scores is not finite, or too large to be added; pass finite numbers")
        self._set_projection_bias(bias)

    def bind(self, block: int, features: Features, scale: float) -> BoundStep:
        """Makes a step for one sample whose features always lie in one buffer.

        Args:
            block: index of the block that makes the features; 0 is the first.
            features: contiguous: (1, C, H, W) float32, or (1, H, W, C) uint8. Read at each call.
            scale: value of one unit of uint8; ignored for float32.

        Returns:
            The step, which gives the option for the block after ``block``.

        Raises:
            UsageError: no gate follows such a block.
            InputError: the features have another type, shape or layout.
        """
        self._check_features("features", block, features)
        if len(features) != 1:
            raise InputError(f"features are of {len(features)} samples, expected one")
        return self._bind(block, features, scale)

    def bind_pooled(self, block: int, pooled: Array) -> BoundStep:
        """Makes a step for one sample whose features arrive averaged over the map, (1, C) float32; see :meth:`bind`."""
        return self.bind(block, _as_maps(pooled), 1.0)

    def step(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Steps a batch whose features lie in several buffers, each in one of two layouts.

        Args:
            block: index of the block that made the features.
            buffers: contiguous maps of one C, H and W: (n, C, H, W) float32 or (n, H, W, C) uint8, each of any n.
            where: (N, 2) intp, buffer of each sample and row in it.
            scale: value of one unit of uint8.
            changed: (N,) bool, false if the features of a sample did not change since the last step, nor their layout
                and scale: their pooled mean is used again. ``None`` if all may have changed.

        Returns:
            (N,) int64 option indices; of equal scores the lowest.

        Raises:
            UsageError: no gate follows such a block, or another number of samples than the gate was reset for.
            InputError: an array has another type, shape or layout.
        """
        self._check_batch(block, buffers, where, changed)
        return self._step(block, buffers, where, scale, changed)

    def step_pooled(self, block: int, pooled: Array) -> NDArray[np.int64]:
        """Steps a batch whose features arrive averaged over the map, (N, C) float32; see :meth:`step`."""
        rows = np.arange(len(pooled))
        return self.step(block, [_as_maps(pooled)], np.stack([np.zeros_like(rows), rows], 1), 1.0)

    # The same without checks, by each gate.

    @abstractmethod
    def _reset(self, samples: int) -> None: ...

    @abstractmethod
    def _set_projection_bias(self, bias: Array) -> None: ...

    @abstractmethod
    def _bind(self, block: int, features: Features, scale: float) -> BoundStep: ...

    @abstractmethod
    def _step(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        scale: float,
        changed: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64]: ...

    def _check_features(self, name: str, block: int, features: Features) -> None:
        if not isinstance(features, np.ndarray) or features.dtype not in (np.float32, np.uint8):
            raise InputError(f"{name} are {_kind(features)}, expected an array of float32 or uint8")
        if features.ndim != 4 or min(features.shape[1:]) < 1:
            wanted = "(N, H, W, C)" if features.dtype == np.uint8 else "(N, C, H, W)"
            raise InputError(f"{name} have shape {features.shape}, expected {wanted}, none of C, H and W zero")
        _check_contiguous(name, features)
        channels = channels_of(features)
        weights = self._weights
        if not 0 <= block < weights.gates:
            raise UsageError(f"no gate follows block {block}: there are {weights.gates}, from 0")
        least, most = weights.channels[block], weights.widest
        if not least <= channels <= most:
            bounds = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(f"{name} have {channels} channels, expected {bounds} after block {block}")
        if channels % self.channel_block:
            raise InputError(f"{name} have {channels} channels, expected a multiple of {self.channel_block}")

    def _check_batch(
        self,
        block: int,
        buffers: Sequence[Features],
        where: NDArray[np.intp],
        changed: NDArray[np.bool_] | None,
    ) -> None:
        if not isinstance(where, np.ndarray) or where.dtype != np.intp or where.ndim != 2 or where.shape[1] != 2:
            raise InputError(f"where is {_kind(where)}, expected an array of intp of shape (N, 2)")
        _check_contiguous("where", where)
        if not buffers:
            raise InputError("no buffers of features, expected at least one")
        for buffer in buffers:
            self._check_features("features in a buffer", block, buffer)
        sizes = {_size_of(buffer) for buffer in buffers}
        if len(sizes) > 1:
            raise InputError(f"buffers of features have channels, height and width {sorted(sizes)}, expected the same")
        lengths = [len(buffer) for buffer in buffers]
        if len(where) and (
            where.min() < 0
            or where[:, 0].max() >= len(buffers)
            or (where[:, 1] >= np.array(lengths)[where[:, 0]]).any()
        ):
            raise InputError(f"where points beyond the {len(buffers)} buffers of {lengths} samples")
        if changed is not None:
            shape = (len(where),)
            if not isinstance(changed, np.ndarray) or changed.dtype != np.bool_ or changed.shape != shape:
                raise InputError(f"changed is {_kind(changed)}, expected an array of bool of shape {shape}")
            _check_contiguous("changed", changed)
        if len(where) != self._samples:
            raise UsageError(f"{len(where)} samples, but the gate was reset for {self._samples}")


def channels_of(features: Features) -> int:
    """Channels of a feature map: a uint8 map lies in memory channels last."""
    return int(features.shape[3 if features.dtype == np.uint8 else 1])


def _size_of(features: Features) -> tuple[int, ...]:
    """Channels, height and width of a feature map."""
    size = features.shape[1:]
    return (size[2], *size[:2]) if features.dtype == np.uint8 else size


def uint8_factor(scale: float, area: int) -> np.float64:
    """Factor from the sum of a channel in uint8 to its mean: a float32 value, in double precision."""
    return np.float64(np.float32(scale / area))


def _as_maps(pooled: Array) -> Array:
    """Pooled features as maps of one pixel, in the same memory."""
    if not isinstance(pooled, np.ndarray) or pooled.dtype != np.float32 or pooled.ndim != 2:
        raise InputError(f"pooled features are {_kind(pooled)}, expected an array of float32 of shape (N, C)")
    return pooled[:, :, None, None]


def _check_contiguous(name: str, array: NDArray[np.generic]) -> None:
    if not array.flags.c_contiguous:
        raise InputError(f"{name}: the array is not contiguous; pass numpy.ascontiguousarray of it")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
