"""Taking tensors out of a checkpoint, each checked, and putting them into a network that has no other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types in which weights are read; they become float32."""

COUNTER = "num_batches_tracked"
"""Last part of the name of a normalisation's count of batches, with which nothing is computed."""


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one type and shape, and equal bit by bit."""
    if one is other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)


class TensorReader:
    """Takes tensors by key, checks them, and knows which were never asked for.

    Args:
        tensors: tensors of one network, by key.
        kind: name of the format, for messages.
        aliases: for each beginning of a key that stands for the same tensors as another one, that other one; either may
            be in a checkpoint.

    Raises:
        CheckpointError: both are, and their tensors differ.
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
                    raise CheckpointError(
                        f"{kind} checkpoint has {name} and {key} that differ, expected copies of one tensor"
                    )

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, key: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Shape of the tensor under ``key``, which must be as in :meth:`take`."""
        return tuple(self._find(key, shape).shape)

    def take(self, key: str, shape: tuple[int | None, ...]) -> Tensor:
        """A copy of the tensor under ``key``, in float32.

        Args:
            key: its name.
            shape: what it must be; ``None`` for an extent that may be any.

        Raises:
            CheckpointError: it is missing, of another shape, of a type that holds no weights, or not finite.
        """
        tensor = self._find(key, shape)
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} in {kind}, expected float32, float64, float16 or bfloat16; convert"
                " it before it is saved"
            )
        # A copy also of float32: two tensors of a file can be views of one.
        tensor = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self._kind} checkpoint has NaN or infinity in {key}; training diverged: use an earlier one"
            )
        if key.endswith("running_var") and bool((tensor < 0).any()):
            raise CheckpointError(
                f"{self._kind} checkpoint has a negative variance in {key}; it is damaged: copy it again"
            )
        return tensor

    def take_counter(self, key: str) -> Tensor:
        """A count of batches, zero if it is not there.

        Raises:
            CheckpointError: it is no whole number.
        """
        if key not in self._tensors:
            return torch.zeros((), dtype=torch.int64)
        tensor = self._find(key, ())
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} in {tensor.dtype}, expected an integer; save it again"
            )
        return tensor.detach().to(torch.int64, copy=True)

    def _find(self, key: str, shape: tuple[int | None, ...]) -> Tensor:
        if key not in self._tensors:
            raise CheckpointError(f"{self._kind} checkpoint lacks {key}; it was cut or renamed: save it again")
        tensor = self._tensors[key]
        if tensor.ndim != len(shape) or any(w not in (None, n) for n, w in zip(tensor.shape, shape, strict=True)):
            wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise CheckpointError(
                f"{self._kind} checkpoint has {key} of shape {tuple(tensor.shape)}, expected ({wanted}); it is of"
                " another network"
            )
        self._taken.add(key)
        return tensor

    def skip(self, unused: Callable[[str], bool]) -> None:
        """Marks tensors that the network holds and never computes with."""
        self._taken.update(key for key in self._tensors if unused(key))

    def finish(self) -> None:
        """Raises CheckpointError if a tensor was never asked for: a network with more in it is another network."""
        foreign = sorted(set(self._tensors) - self._taken)
        if foreign:
            raise CheckpointError(
                f"{self._kind} checkpoint has {len(foreign)} key(s) that such a network does not, {foreign[0]} for one;"
                " it is of another network"
            )


_FILLERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class _Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are: those without values have nothing to fill, and PyTorch's code for it is slow."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _FILLERS or getattr(func, "__module__", None) == init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_values(architecture: Architecture, options: Options, policy: Sequence[int] | None = None) -> DFSNetwork:
    """A network whose tensors have shapes and no values, and take no memory."""
    with torch.device("meta"), _Unfilled():
        return DFSNetwork(architecture, options, policy)


def fill(network: DFSNetwork, state: Mapping[str, Tensor]) -> DFSNetwork:
    """Gives a network without values its tensors, in evaluation mode. Every one must be given: none has another value.

    Args:
        network: network as :func:`without_values` makes it.
        state: every tensor by name, on the CPU; counts of batches may be missing.
    """
    counters = {key: torch.zeros((), dtype=torch.int64) for key in network.state_dict() if key.endswith(COUNTER)}
    network.load_state_dict({**counters, **state}, assign=True)
    return network.eval()
