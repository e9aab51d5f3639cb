"""What an export starts from: a checkpoint, or a network in memory."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import sha256_file
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract

_IN_MEMORY = "memory"
"""Format of a network that came from no file."""


@dataclass(frozen=True)
class Source:
    """A trained network and where it came from.

    Attributes:
        network: the reference, in evaluation mode.
        input: its input contract.
        name: name of its file, or of the network.
        format: format of its file; ``memory`` without one.
        sha256: digest of the file; without one, of graphs and tensors.
        assumptions: what was assumed, one line each.
        weights_key: name of the weights that were taken from the file; ``None`` if there is only one set.
    """

    network: DFSNetwork
    input: InputContract
    name: str
    format: str
    sha256: str
    assumptions: tuple[str, ...]
    weights_key: str | None = None


def open_source(
    given: str | Path | DFSNetwork,
    options: str | Options | None = None,
    facts: CheckpointFacts | None = None,
    contract: InputContract | None = None,
    class_names: tuple[str, ...] = (),
) -> Source:
    """Opens what is to be exported.

    Args:
        given: path of a checkpoint, or a network, which is left as it is.
        options: options of the gate, for a checkpoint that does not say.
        facts: further knowledge of a checkpoint.
        contract: input contract of a network; ``None`` for its own, or if it has none ImageNet's normalisation.
        class_names: names of the classes, for a network without a contract.

    Raises:
        ArtefactError: the checkpoint cannot be used.
        UsageError: something is given that the network or the checkpoint says itself.
    """
    if not isinstance(given, DFSNetwork):
        if contract is not None:
            raise UsageError(f"{given} says itself how images are prepared; leave out contract, or give facts")
        path = Path(given)
        loaded = load_checkpoint(path, options, facts)
        digest = sha256_file(path)
        notes = loaded.assumptions
        return Source(loaded.network, loaded.input, path.name, loaded.format, digest, notes, loaded.weights_key)
    if options is not None and Options.parse(options) != given.options:
        raise UsageError(f"options {Options.parse(options)}, the network has {given.options}; leave them out")
    if facts is not None:
        raise UsageError("facts are about a checkpoint, and a network was given; give contract instead")
    network = copy.deepcopy(given).cpu().eval()
    assumptions: tuple[str, ...] = ()
    contract = contract or given.contract
    if contract is None:
        contract, assumptions = _assumed(network, class_names)
    shape, name = network.architecture.image_shape, network.architecture.name
    if contract.shape != shape:
        raise UsageError(f"an input contract for images of {contract.shape}, the network takes {shape}; correct one")
    return Source(network, contract, name, _IN_MEMORY, digest_of(network), assumptions)


def digest_of(network: DFSNetwork) -> str:
    """SHA-256 of a network's graphs, options and tensors."""
    digest = hashlib.sha256(msgspec.json.encode((network.graphs, network.architecture, network.options.bits)))
    digest.update(msgspec.json.encode(network.policy))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _assumed(network: DFSNetwork, class_names: tuple[str, ...]) -> tuple[InputContract, tuple[str, ...]]:
    shape, classes = network.architecture.image_shape, network.architecture.classes
    if shape[0] != len(IMAGENET_INPUT.mean):
        raise UsageError(f"no input contract for images of {shape[0]} channel(s); give contract")
    names = class_names if len(class_names) == classes else ()
    contract = replace(IMAGENET_INPUT, shape=shape, resize=None, class_names=names)
    return contract, ("the network does not say how images are normalised: ImageNet's mean and deviation are assumed",)
