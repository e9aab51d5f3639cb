"""Networks by name with weights of their own kind: state dicts that know nothing of this package."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dfs_deploy.checkpoints.native import users_state
from dfs_deploy.checkpoints.reading import FORMAT, OLDER_VERSIONS, FileContent, read_checkpoint_file
from dfs_deploy.checkpoints.tensors import COUNTER, STATISTICS, TensorReader
from dfs_deploy.checkpoints.weights import RawCheckpoint, choose_weights, names_in, own_weights, unwrapped
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.models.named import NamedNetwork, named_network
from dfs_deploy.preprocessing import MAX_CLASSES, parse_size


def build_network(
    name: str,
    weights: str | Path | None = None,
    classes: int | None = None,
    image_size: int | str | Sequence[int] | None = None,
    weights_key: str | None = None,
) -> NamedNetwork:
    """Makes a network by name, and fills it with weights.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``cifar-resnet:N``, or ``package.module:function``, which imports
            that module and runs the function; see ``named_network``.
        weights: state dict of that network, ``.pt``, ``.pth`` or ``.safetensors``; nothing in it is executed. Names may
            have the additions of wrappers. Weights of an adapted network in our own format will do too. ``None`` for
            random weights.
        classes: number of classes; ``None`` for the weights', or else the network's. If the weights have another
            number, the final linear layer is a new one, which is untrained.
        image_size: height and width of images, or one number for both; ``None`` for what the network was made for.
        weights_key: name in messages of the weights to take, if the file has several.

    Returns:
        The network in evaluation mode, with the input contract that belongs to it, and notes on what was assumed.

    Raises:
        UsageError: a network that does not exist or cannot be imported, or a number of classes that it cannot have.
        DependencyError: torchvision or timm is needed and not here.
        CheckpointError: weights that cannot be read, or that belong to another network.
    """
    if classes is not None and not 1 <= classes <= MAX_CLASSES:
        raise UsageError(f"{classes:,} classes, expected 1 to {MAX_CLASSES:,}")
    file = None if weights is None else read_checkpoint_file(Path(weights))
    keys = set() if file is None else names_in(file)
    made = named_network(name, _size(image_size), keys, "" if file is None else file.path.name)
    if file is not None:
        return _filled(made, file, classes, weights_key)
    if classes is None or classes == made.classes:
        return made
    _with_classes(made, classes)
    return replace(made, changes=(*made.changes, f"the network has {classes} classes by a new final layer"))


def _size(given: int | str | Sequence[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if isinstance(given, int):
        return given, given
    text = isinstance(given, str) and given.strip().isdigit()
    return parse_size("--image-size", f"{given}x{given}" if text else given)


def _final_linear(made: NamedNetwork) -> tuple[str, nn.Linear] | None:
    """The linear layer that gives the logits, and its qualified name; ``None`` if another kind of layer does."""
    seen: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in made.net.named_modules() if isinstance(layer, nn.Linear)}

    def note(name: str, output: Tensor) -> None:
        seen[name] = output

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, layer in layers.items()
    ]
    try:
        logits = made.logits()
    finally:
        for handle in handles:
            handle.remove()
    return next(((name, layers[name]) for name, output in seen.items() if torch.equal(output, logits)), None)


def _with_classes(made: NamedNetwork, classes: int) -> None:
    """Gives a network a new final layer.

    Raises:
        UsageError: its last layer is no linear one.
    """
    found = _final_linear(made)
    if found is None:
        raise UsageError(
            f"{made.name} has {made.classes} classes and no final linear layer that could be replaced for {classes};"
            " give package.module:function that makes it with that number"
        )
    name, before = found
    owner, _, last = name.rpartition(".")
    new = nn.Linear(before.in_features, classes, before.bias is not None)
    setattr(made.net.get_submodule(owner), last, new.to(before.weight).train(before.training))


def _filled(made: NamedNetwork, file: FileContent, classes: int | None, weights_key: str | None) -> NamedNetwork:
    raw = _raw(made, file, weights_key)
    changes, contract, found = [*made.changes, *raw.notes], made.contract, _final_linear(made)
    head = set() if found is None else {f"{found[0]}.weight", f"{found[0]}.bias"}
    theirs = made.classes
    if found is not None and (weight := raw.tensors.get(unwrapped(f"{found[0]}.weight"))) is not None:
        theirs = weight.shape[0] if weight.ndim == 2 else theirs
    wanted = theirs if classes is None else classes
    if not 1 <= wanted <= MAX_CLASSES:
        raise CheckpointError(f"{file.path} has weights for {wanted:,} classes, expected 1 to {MAX_CLASSES:,}")
    tensors = dict(raw.tensors)
    new_head = theirs != wanted
    if new_head:
        tensors = {name: value for name, value in tensors.items() if name not in set(map(unwrapped, head))}
        changes.append(
            f"the weights have {theirs} classes, so the final layer is a new one for {wanted}, still untrained"
        )
    if new_head or len(contract.class_names) != wanted:
        contract = replace(contract, class_names=())
    own = {unwrapped(key): key for key in made.net.state_dict() if not new_head or key not in head}
    _check_names(made, file, tensors, own.keys())
    reader = TensorReader(tensors, file.path.name)
    if wanted != made.classes:
        if found is not None and not new_head:  # before so large a layer is made
            reader.shape(unwrapped(f"{found[0]}.weight"), (wanted, found[1].in_features))
        _with_classes(made, wanted)
    learned = {name for name, _ in made.net.named_parameters(remove_duplicate=False)}
    state: dict[str, Tensor] = {}
    unfilled = made.net.state_dict()
    for name, key in own.items():
        value = unfilled[key]
        if key.endswith(COUNTER):
            state[key] = reader.take_counter(name)
        elif value.is_floating_point():
            # Other buffers may be anything, such as a mask of infinities.
            finite = key in learned or key.endswith(STATISTICS)
            state[key] = reader.take(name, tuple(value.shape), finite)
        else:
            state[key] = reader.keep(name, tuple(value.shape))
    made.net.load_state_dict(state, strict=False)
    return replace(made, contract=contract, changes=tuple(changes), new_head=new_head)


def _raw(made: NamedNetwork, file: FileContent, weights_key: str | None) -> RawCheckpoint:
    """The weights of the network in a file."""
    if file.values.get("format") == FORMAT and file.values.get("version") not in OLDER_VERSIONS:
        raw = own_weights(file, weights_key)
        tensors = {unwrapped(name): value for name, value in users_state(raw).items()}
        return replace(raw, tensors=tensors, notes=("the weights are those of an adapted network, without its gate",))
    return choose_weights(file, _markers(made.net), weights_key)


def _markers(net: nn.Module) -> tuple[str, ...]:
    """Name of a tensor by which the network is found in a file: no other name ends in it."""
    names = [unwrapped(name) for name in net.state_dict()]
    endings = {name.split(".", start)[-1] for name in names for start in range(1, name.count(".") + 1)}
    return tuple([name for name in names if name not in endings and not name.endswith(COUNTER)][:1])


def _check_names(made: NamedNetwork, file: FileContent, tensors: Mapping[str, Tensor], own: Collection[str]) -> None:
    missing = [name for name in own if name not in tensors and not name.endswith(COUNTER)]
    others = [name for name in tensors if name not in own and not name.endswith(COUNTER)]
    if missing or others:
        lacks = f"lacks {len(missing)} of its {len(own)} tensors, such as {min(missing)}" if missing else ""
        has = f"has {len(others)} that it does not have, such as {min(others)}" if others else ""
        raise CheckpointError(
            f"{file.path} does not fit {made.name}: it {', and '.join(filter(None, (lacks, has)))}; give weights of"
            " this network"
        )
