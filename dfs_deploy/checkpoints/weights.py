"""Weights of the network in a checkpoint, found by the name of one tensor, wherever it is.

Training scripts save weights in a dict with other values, wrap networks so that every name gets a prefix, keep averaged
weights next to the current ones, and add counters of profilers. All of that is undone here if there is only one way,
and reported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dfs_deploy.checkpoints.reading import FileContent
from dfs_deploy.checkpoints.tensors import same_values
from dfs_deploy.errors import CheckpointError

_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing add."""

_COUNTERS = frozenset(
    ("total_ops", "total_params", "n_averaged", "num_updates", "decay", "initted", "step", "total_time", "call_count")
)
"""Last parts of the names of single numbers that profilers and averages keep."""

_AVERAGED = frozenset(("ema", "swa", "avg", "average", "averaged", "shadow", "teacher", "polyak"))
"""Words in the names of averaged weights, which are only taken on request."""

_MOST_COPIES = 4
"""Most times that the values of a file may occur in one dict of tensors: under two names, or as views."""

_MAX_DEPTH = 3
_MAX_DICTS = 256
_MAX_LABEL = 48
_MAX_NETWORKS = 64


@dataclass(frozen=True, eq=False)
class RawCheckpoint:
    """Weights of a network and the values next to them, before a recogniser has read them.

    Attributes:
        tensors: tensors by name, without the additions of wrappers.
        values: plain values of the file.
        notes: what was left out, undone or chosen, one line each.
        weights: name of the weights in the file if there are several; else ``None``.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True, eq=False)
class _Weights:
    """A dict of tensors, and the prefix of a network in it."""

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


def unwrapped(name: str) -> str:
    """Name of a tensor without the additions of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def names_in(file: FileContent) -> set[str]:
    """Names of all tensors in a file, without the additions of wrappers."""
    return {unwrapped(name) for _, tensors in _dicts(file.content) for name in tensors}


def own_weights(file: FileContent, wanted: str | None = None) -> RawCheckpoint:
    """Weights of a file of our own format since version 3, under the names that they have there.

    Names are the user's, so nothing in them is taken for the addition of a wrapper.

    Raises:
        CheckpointError: there are none, there are others than requested, or they are larger than the file.
    """
    label = "state_dict" if isinstance(file.content.get("state_dict"), Mapping) else "."
    held = file.content["state_dict"] if label == "state_dict" else file.content
    if wanted is not None and (wanted.rstrip(".") or ".") != label:
        raise CheckpointError(f"{file.path} has no weights in {wanted!r}, expected one of: {label}")
    tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
    _check_held(file, tensors)
    return RawCheckpoint(tensors, file.values, weights=wanted)


def _check_held(file: FileContent, tensors: Mapping[str, Tensor]) -> None:
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if held > _MOST_COPIES * file.size:
        raise CheckpointError(
            f"{file.path} has tensors of {held:,} bytes in a file of {file.size:,}, expected each value once; save"
            " tensors that are not expanded"
        )


def choose_weights(file: FileContent, markers: Collection[str], wanted: str | None = None) -> RawCheckpoint:
    """Finds the weights of the network in the content of a file.

    Args:
        file: content of the file.
        markers: names of the tensors that identify a network, one per known format.
        wanted: name in messages of the weights to take; ``None`` for the first that are not averaged.

    Raises:
        CheckpointError: the requested weights are missing, two different tensors have the same name, or there are
            tensors that do not belong to the network.
    """
    found = list(_networks(file.content, markers))
    if len(found) > _MAX_NETWORKS:
        raise CheckpointError(
            f"{file.path} has weights of {len(found):,} networks, expected {_MAX_NETWORKS} at most; save"
            " model.state_dict() of only one"
        )
    chosen = _chosen(file, found, wanted)
    if chosen is None:
        largest = max(_dicts(file.content), key=lambda entry: len(entry[1]), default=((), {}))
        chosen = _Weights(largest[0], "", _unwrapped(largest[1]), largest[1])
    _check_held(file, chosen.tensors)
    tensors, counters, foreign = _sorted_out(chosen, found)
    notes = (
        [] if len(found) > 1 or chosen.label in (".", "state_dict") else [f"the weights are those in {chosen.label}"]
    )
    if len(found) > 1:
        labels = ", ".join(each.label for each in found)
        notes.append(f"the file has weights in {labels}: those in {chosen.label} are taken; choose with --weights-key")
    if wrapped := _wrapped(chosen.tensors):
        notes.append(f"names are read without the additions of wrappers ({', '.join(wrapped)})")
    if counters:
        notes.append(f"{len(counters)} counter(s) that are not weights are ignored, such as {counters[0]}")
    if foreign and wanted is None:
        raise CheckpointError(
            f"{file.path} has {len(foreign)} tensor(s) besides those in {chosen.label}, such as {foreign[0]}; if they"
            f" do not belong to the network, ignore them with --weights-key {chosen.label}"
        )
    if foreign:
        notes.append(f"{len(foreign)} tensor(s) besides those in {chosen.label} are ignored, such as {foreign[0]}")
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
    """Yields each dict that contains tensors, with the keys that lead to it, from the top down."""
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


def _networks(content: Mapping[Any, Any], markers: Collection[str]) -> Iterator[_Weights]:
    for path, tensors in _dicts(content):
        names = _unwrapped(tensors)
        prefixes = {
            name.removesuffix(marker): None
            for name in names
            for marker in markers
            if name == marker or (name.endswith(f".{marker}") and len(name) <= _MAX_LABEL + len(marker))
        }
        for prefix in prefixes:
            yield _Weights(path, prefix, names, tensors)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names in the file by the name without wrappers; several may map to the same one."""
    names: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(unwrapped(name), []).append(name)
    return names


def _wrapped(names: Iterable[str]) -> list[str]:
    """Additions of wrappers to names, except ``module.`` before all of them, which the formats' own scripts add."""
    weights = [name for name in names if name.rpartition(".")[2] not in _COUNTERS]
    if all(name.startswith("module.") for name in weights):
        weights = [name.removeprefix("module.") for name in weights]
    return sorted(_WRAPPERS.intersection(part for name in weights for part in name.split(".")))


def _sorted_out(chosen: _Weights, found: Sequence[_Weights]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors of the network by name; names of counters; names of tensors that belong to no network."""
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
                    raise CheckpointError(f"{originals[0]} and {other} are the same tensor and differ; save it again")
            tensors[name.removeprefix(chosen.prefix)] = tensor
        elif not name.startswith(tuple(others)):
            foreign.append(originals[0])
    return tensors, counters, foreign
