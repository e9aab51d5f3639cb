"""Tensors of a checkpoint: checked one by one, and moved into a network that has no other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Data types of weights that are accepted; all become float32."""

COUNTER = "num_batches_tracked"
"""Last part of the name of a normalisation's count of batches, which no computation uses."""


STATISTICS = ("running_mean", "running_var")
"""Last parts of the names of a normalisation's running statistics."""


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type and shape, and are equal bit by bit."""
    if one is other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)


class TensorReader:
    """Takes tensors by key, checks them, and remembers which were never taken.

    Args:
        tensors: tensors of one network, by key.
        kind: name of the format, for messages.
        aliases: original beginning of a key by its alias; a checkpoint may have either or both.

    Raises:
        CheckpointError: a checkpoint has both, and their tensors differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor], kind: str, aliases: Mapping[str, str] | None = None) -> None:
        self._kind = kind
        self._taken: set[str] = set()
        self._tensors = dict(tensors)
        for alias, original in (aliases or {}).items():
            for name in [name for name in self._tensors if name.startswith(alias)]:
                key = original + name.removeprefix(alias)
                tensor = self._tensors.pop(name)
                if not same_values(self._tensors.setdefault(key, tensor), tensor) and not key.endswith(COUNTER):
                    raise CheckpointError(f"{kind} checkpoint has {name} and {key} that differ, expected equal tensors")

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def axes(self, key: str) -> int:
        """Number of axes of the tensor ``key``."""
        return self._find(key, None).ndim

    def shape(self, key: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Shape of the tensor ``key``, checked as in ``take``."""
        return tuple(self._find(key, shape).shape)

    def take(self, key: str, shape: tuple[int | None, ...] | None, finite: bool = True) -> Tensor:
        """Copy of the tensor ``key`` in float32.

        Args:
            key: name of the tensor.
            shape: expected shape, with ``None`` for any size of an axis; ``None`` for any shape.
            finite: whether NaN and infinity are refused.

        Raises:
            CheckpointError: the tensor is missing, has another shape or no floating-point type, or is not finite.
        """
        tensor = self._find(key, shape)
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} in {kind}, expected float32, float64, float16 or bfloat16; convert"
                " it before saving"
            )
        # float32 is copied too: two tensors of a file can be views of the same storage.
        tensor = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if finite and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self._kind} checkpoint has NaN or infinity in {key}; training diverged: use an earlier checkpoint"
            )
        if key.endswith("running_var") and bool((tensor < 0).any()):
            raise CheckpointError(
                f"{self._kind} checkpoint has a negative variance in {key}; it is damaged: copy it again"
            )
        return tensor

    def keep(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Copy of the tensor ``key`` as it is, with values of any kind.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """
        tensor = self._find(key, shape)
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    def take_counter(self, key: str) -> Tensor:
        """Count of batches; zero if it is missing.

        Raises:
            CheckpointError: it is not an integer.
        """
        if key not in self._tensors:
            return torch.zeros((), dtype=torch.int64)
        tensor = self._find(key, ())
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} in {tensor.dtype}, expected an integer; save it again"
            )
        return tensor.detach().to(torch.int64, copy=True)

    def _find(self, key: str, shape: tuple[int | None, ...] | None) -> Tensor:
        if key not in self._tensors:
            raise CheckpointError(
                f"{self._kind} checkpoint lacks {key}; it is incomplete or was renamed: save it again"
            )
        tensor = self._tensors[key]
        shape = tuple(tensor.shape) if shape is None else shape
        if tensor.ndim != len(shape) or any(w not in (None, n) for n, w in zip(tensor.shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} of shape {tuple(tensor.shape)}, expected ({wanted}); it belongs"
                " to another network"
            )
        self._taken.add(key)
        return tensor

    def skip(self, unused: Callable[[str], bool]) -> None:
        """Marks tensors that the network contains but does not use."""
        self._taken.update(key for key in self._tensors if unused(key))

    def finish(self) -> None:
        """Raises CheckpointError if a tensor was never taken: a network with more tensors is another network."""
        foreign = sorted(set(self._tensors) - self._taken)
        if foreign:
            raise CheckpointError(
                f"{self._kind} checkpoint has {len(foreign)} key(s) that such a network does not have, such as"
                f" {foreign[0]}; it belongs to another network"
            )


_FILLERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class _Unfilled(TorchFunctionMode):
    """Skips the initialisation of new tensors, which is slow in PyTorch and pointless for tensors without values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _FILLERS or getattr(func, "__module__", None) == init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_values(make: Callable[[], DFSNetwork]) -> DFSNetwork:
    """A network whose new tensors have shapes but no values, and take no memory.

    Args:
        make: makes the network, such as ``lambda: cifar_network(architecture, options)``.
    """
    with torch.device("meta"), _Unfilled():
        return make()


def fill(network: DFSNetwork, state: Mapping[str, Tensor]) -> DFSNetwork:
    """Fills a network without values, and sets evaluation mode.

    Args:
        network: result of ``without_values``.
        state: every tensor by name, on the CPU; counts of batches may be missing.
    """
    counters = {key: torch.zeros((), dtype=torch.int64) for key in network.state_dict() if key.endswith(COUNTER)}
    network.load_state_dict({**counters, **state}, assign=True)
    return network.eval()
