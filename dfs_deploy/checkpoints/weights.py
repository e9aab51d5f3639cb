"""Which tensors of a checkpoint are the network's weights: found by the name of one of them, wherever it stands.

Training saves weights in a dict beside other things, wraps networks so that every name grows, keeps an average of the
weights beside them, and lets profilers count in them. All of that is undone here, if there is one way to, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dfs_deploy.checkpoints.reading import FileContent
from dfs_deploy.checkpoints.tensors import same_values
from dfs_deploy.errors import CheckpointError

MARKERS = ("control.proj.weight", "backbone.stem_conv.weight")
"""Tensors by which a network is found: one of the release's and SkipNet's, one of ours."""

_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing put in."""

_COUNTERS = frozenset(
    ("total_ops", "total_params", "n_averaged", "num_updates", "decay", "initted", "step", "total_time", "call_count")
)
"""Last parts of names under which profilers and averages keep single numbers."""

_AVERAGED = frozenset(("ema", "swa", "avg", "average", "averaged", "shadow", "teacher", "polyak"))
"""Words that name averaged weights; those beside them are taken unless told otherwise."""

_MOST_COPIES = 4
"""Times that the values of a file may stand in one dict of tensors: under two names, or as views of one tensor."""

_MAX_DEPTH = 3
_MAX_DICTS = 256
_MAX_LABEL = 48
_MAX_NETWORKS = 64


@dataclass(frozen=True, eq=False)
class RawCheckpoint:
    """A network's weights and what stood beside them, before anyone has recognised them.

    Attributes:
        tensors: tensors by name, without what wrappers add.
        values: plain values beside them.
        notes: what was left out, undone or chosen, one line each.
        weights: name of these weights in the file, if there are several; else ``None``.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class _Weights:
    """A dict of tensors and the prefix under which a network stands in it."""

    path: tuple[str, ...]
    prefix: str
    names: Mapping[str, list[str]]
    tensors: Mapping[str, Tensor]

    @property
    def label(self) -> str:
        return ".".join((*self.path, *filter(None, [self.prefix.rstrip(".")]))) or "."

    @property
    def averaged(self) -> bool:
        return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", self.label.lower()))


def choose_weights(file: FileContent, wanted: str | None = None) -> RawCheckpoint:
    """Finds the network's weights in what a file holds.

    Args:
        file: content of the file, as read.
        wanted: which of several to take, as messages name them; ``None`` for those of the network rather than of its
            average, and the first of these.

    Raises:
        CheckpointError: none or another number is in the file than asked for, one name stands for two tensors, or other
            tensors stand beside the network's.
    """
    found = list(_networks(file.content))
    if len(found) > _MAX_NETWORKS:
        raise CheckpointError(
            f"{file.path} has weights of {len(found):,} networks, expected {_MAX_NETWORKS} at most; save"
            " model.state_dict() of one alone"
        )
    chosen = _chosen(file, found, wanted)
    if chosen is None:
        largest = max(_dicts(file.content), key=lambda entry: len(entry[1]), default=((), {}))
        chosen = _Weights(largest[0], "", _unwrapped(largest[1]), largest[1])
    held = sum(tensor.numel() * tensor.element_size() for tensor in chosen.tensors.values())
    if held > _MOST_COPIES * file.size:
        raise CheckpointError(
            f"{file.path} has tensors of {held:,} bytes in a file of {file.size:,}, expected each value once; save"
            " tensors that are not expanded"
        )
    tensors, counters, foreign = _sorted_out(chosen, found)
    notes = (
        [] if len(found) > 1 or chosen.label in (".", "state_dict") else [f"the weights are those in {chosen.label}"]
    )
    if len(found) > 1:
        labels = ", ".join(each.label for each in found)
        notes.append(f"the file has weights in {labels}: those in {chosen.label} are taken; choose with --weights-key")
    if wrapped := _wrapped(chosen.tensors):
        notes.append(f"names are read without what wrappers added ({', '.join(wrapped)})")
    if counters:
        notes.append(f"{len(counters)} counter(s) that are no weights are passed over, {counters[0]} for one")
    if foreign and wanted is None:
        raise CheckpointError(
            f"{file.path} has {len(foreign)} tensor(s) beside those in {chosen.label}, {foreign[0]} for one; if they"
            f" are not the network's, pass them over with --weights-key {chosen.label}"
        )
    if foreign:
        notes.append(f"{len(foreign)} tensor(s) beside those in {chosen.label} are passed over, {foreign[0]} for one")
    return RawCheckpoint(tensors, file.values, tuple(notes), chosen.label if len(found) > 1 or wanted else None)


def _chosen(file: FileContent, found: Sequence[_Weights], wanted: str | None) -> _Weights | None:
    if wanted is None:
        return min(found, key=lambda each: each.averaged, default=None)
    named = [each for each in found if each.label == (wanted.rstrip(".") or ".")]
    if not named:
        labels = ", ".join(each.label for each in found) or "none of a known format"
        raise CheckpointError(f"{file.path} has no weights in {wanted!r}, expected one of: {labels}")
    return named[0]


def _dicts(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yields each dict with tensors in it, and the keys that lead to it, those near the top first."""
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for path, current in waiting:
        tensors = {k: v for k, v in current.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            yield path, tensors
        for key, value in current.items():
            if isinstance(value, Mapping) and isinstance(key, str) and len(key) <= _MAX_LABEL and id(value) not in seen:
                seen.add(id(value))
                if len(path) < _MAX_DEPTH and len(waiting) < _MAX_DICTS:
                    waiting.append(((*path, key), value))


def _networks(content: Mapping[Any, Any]) -> Iterator[_Weights]:
    for path, tensors in _dicts(content):
        names = _unwrapped(tensors)
        prefixes = {
            name.removesuffix(marker): None
            for name in names
            for marker in MARKERS
            if name == marker or (name.endswith(f".{marker}") and len(name) <= _MAX_LABEL + len(marker))
        }
        for prefix in prefixes:
            yield _Weights(path, prefix, names, tensors)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names in the file by the name without wrappers; more than one may come to stand for one."""
    names: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(".".join(part for part in name.split(".") if part not in _WRAPPERS), []).append(name)
    return names


def _wrapped(names: Iterable[str]) -> list[str]:
    """What wrappers added to names; that ``module.`` stands before all of them is how the formats' own scripts save."""
    weights = [name for name in names if name.rpartition(".")[2] not in _COUNTERS]
    if all(name.startswith("module.") for name in weights):
        weights = [name.removeprefix("module.") for name in weights]
    return sorted(_WRAPPERS.intersection(part for name in weights for part in name.split(".")))


def _sorted_out(chosen: _Weights, found: Sequence[_Weights]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The network's tensors by name; the names of counters; the names of what belongs to no network that was found."""
    others = [each.prefix for each in found if each.path == chosen.path and each.prefix != chosen.prefix]
    within = tuple(prefix for prefix in others if prefix.startswith(chosen.prefix))
    tensors: dict[str, Tensor] = {}
    counters, foreign = [], []
    for name, originals in chosen.names.items():
        tensor = chosen.tensors[originals[0]]
        if name.rpartition(".")[2] in _COUNTERS and tensor.numel() <= 1:
            counters.append(originals[0])
        elif name.startswith(chosen.prefix) and not name.startswith(within):
            for other in originals[1:]:
                if not same_values(tensor, chosen.tensors[other]):
                    raise CheckpointError(f"{originals[0]} and {other} stand for one tensor and differ; save it again")
            tensors[name.removeprefix(chosen.prefix)] = tensor
        elif not name.startswith(tuple(others)):
            foreign.append(originals[0])
    return tensors, counters, foreign
