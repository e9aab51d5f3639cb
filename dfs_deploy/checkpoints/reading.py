"""Reading a checkpoint file without running anything in it."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfs_deploy.errors import CheckpointError, UnsafeCheckpointError

METADATA_KEY = "dfs_deploy"
"""Key of a ``.safetensors`` header under which our own format keeps its plain values, as JSON."""

_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE"})
"""Instructions of a pickle that name or call something."""

_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, eq=False)
class RawCheckpoint:
    """What a file holds, before anyone has recognised it.

    Attributes:
        tensors: by key, with wrapper prefixes (``module.``, ``_orig_mod.``) stripped where all keys carry them.
        values: what stood beside the tensors: plain values only.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint_file(path: Path) -> RawCheckpoint:
    """Reads a ``.safetensors`` file or a ``torch.save`` archive of tensors and plain values.

    Raises:
        CheckpointError: the file is missing, truncated, or no dict.
        UnsafeCheckpointError: loading it would run code; nothing of it was run.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .pt, .pth, .pth.tar or .safetensors file")
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return RawCheckpoint(_strip_prefixes(raw.tensors), raw.values)


def _read_safetensors(path: Path) -> RawCheckpoint:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 (no mapping)
        values = json.loads(metadata.get(METADATA_KEY, "{}"))
    except Exception as error:  # a damaged header raises whatever the parsers meet in it
        raise CheckpointError(
            f"{path} is not a readable .safetensors file ({_one_line(error)}); copy it again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} carries {METADATA_KEY} metadata that is no JSON object; save it again")
    return RawCheckpoint(tensors, values)


def _read_pickle(path: Path) -> RawCheckpoint:
    try:
        with warnings.catch_warnings():
            # About the pickle's protocol; whether it can be read is said below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _would_run_code(error, path):
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise UnsafeCheckpointError(
                f"{path} holds pickled objects{f' ({named[1]})' if named else ''} beside tensors and plain values; it"
                " was not loaded, since that would run code; save a state dict, or convert it to .safetensors where you"
                " trust it"
            ) from error
        raise _unreadable(path) from error
    # torch.load lets whatever its readers meet in a damaged archive through; there is no common base to name.
    except Exception as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict; save model.state_dict() in it"
        )
    nested = content.get("state_dict", content)
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{path} has a state_dict of type {type(nested).__name__}, expected a dict")
    tensors = {key: value for key, value in nested.items() if isinstance(key, str) and isinstance(value, Tensor)}
    values = {key: value for key, value in content.items() if not isinstance(value, Tensor) and value is not nested}
    return RawCheckpoint(tensors, values)


def _would_run_code(error: pickle.UnpicklingError, path: Path) -> bool:
    """Whether torch.load refused a pickle for what it would call, rather than for damage."""
    named = any(mark in str(error) for mark in ("GLOBAL", "unrecognized function", "allowlist", "must be imported"))
    calls = False
    with path.open("rb") as stream:
        head = stream.peek(2)[:2]
        marked = head[:1] == pickle.PROTO
        if named and (marked or head == b"PK"):
            return True
        # torch.load knows few instructions of the pickles that torch.save did not write: look what else is in this one.
        try:
            for instruction, _, _ in pickletools.genops(stream):
                calls = calls or instruction.name in _CALLS
        except Exception:  # a damaged pickle raises whatever the parser meets in it
            # Text may begin like a pickle of the first protocols, which bear no mark; it hardly ends like one.
            return marked and calls
    return calls


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a readable checkpoint; it may be truncated: copy it again")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = dict(tensors)
    while result and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in result)), None)):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


class TensorReader:
    """Takes tensors by key, checks their shapes, and knows which were never asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], kind: str) -> None:
        self._tensors = tensors
        self._kind = kind
        self._taken: set[str] = set()

    def take(self, key: str, shape: tuple[int | None, ...]) -> Tensor:
        """Returns the tensor under ``key``, in float32 unless it counts.

        Args:
            key: its name.
            shape: what it must be; ``None`` for an extent that may be any.

        Raises:
            CheckpointError: it is missing, of another shape, or not finite.
        """
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
        if not tensor.dtype.is_floating_point:
            return tensor
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self._kind} checkpoint has NaN or infinity in {key}; training diverged: use an earlier one"
            )
        return tensor

    def take_alias(self, alias: str, key: str) -> None:
        """Marks a second copy of a tensor as taken, and checks that both agree where it is there.

        Raises:
            CheckpointError: the copies differ, or there is only one.
        """
        if alias in self._tensors:
            self._taken.add(alias)
            if key not in self._tensors:
                raise CheckpointError(
                    f"{self._kind} checkpoint has {alias} and lacks {key}, expected both; save it again"
                )
            if not torch.equal(self._tensors[alias], self._tensors[key]):
                raise CheckpointError(
                    f"{self._kind} checkpoint has {alias} and {key} differ, expected copies of one tensor"
                )

    def skip(self, unused: Callable[[str], bool]) -> None:
        """Marks tensors that the network holds and never computes with."""
        self._taken.update(key for key in self._tensors if unused(key))

    def finish(self) -> None:
        """Raises CheckpointError where a tensor was never asked for: a network with more in it is another network."""
        foreign = sorted(set(self._tensors) - self._taken)
        if foreign:
            raise CheckpointError(
                f"{self._kind} checkpoint has {len(foreign)} key(s) that such a network does not, {foreign[0]} for one;"
                " it is of another network"
            )
