"""The dynamic network: one loop over gate and blocks, and the two forwards over the same weights that must agree.

``forward`` computes every option of every block and mixes them by the gate's one-hot choice (Equation 1): it is what
training differentiates, and the oracle. ``route`` runs for each sample only what its gate chose. Both are
``DFSNetwork.unroll`` with another way to run a block, and so is every other forward over these weights.

A network may have a static *policy* instead of a gate: an option for each block, the same for every input. Uniform
bitwidths (Banner et al. 2018) and mixed precision (HAQ, Wang et al. 2019) are such networks; both forwards then run the
policy's option only.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import CheckpointError, OptionError, UsageError
from dfs_deploy.models.gate import GATES, decide
from dfs_deploy.models.graph import (
    OUTPUT,
    BlockGraphs,
    Evaluation,
    Graph,
    NetworkGraphs,
    Ranges,
    module_at,
    named_tensors,
)
from dfs_deploy.network import Architecture, Block
from dfs_deploy.options import FULL_BITS, Option, Options
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract

_LOG = logging.getLogger(__name__)

MASKED = -3e38
"""Score of an option that a block may not run: finite, and far below any other."""


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """Result of one forward.

    Attributes:
        logits: (N, classes) float32.
        path: (N, gated blocks) int64, the option index that each gated block ran.
        scores: (N, gated blocks, options) float32, the gate's scores before softmax, ``MASKED`` for what a block may
            not run; zeros if nothing is decided.
        expected_cost: (N,) float32, mean cost of the options taken; see ``expected_cost``.
    """

    logits: Tensor
    path: Tensor
    scores: Tensor
    expected_cost: Tensor


class Decision(NamedTuple):
    """Decision before one gated block.

    Attributes:
        scores: (N, options) float32, before softmax; zeros if nothing is decided.
        choice: (N,) int64, the option index that each sample takes.
    """

    scores: Tensor
    choice: Tensor


BlockObserver = Callable[[int, int, Tensor, Tensor], None]
"""Called as ``observer(block, option_index, rows, features)`` with the samples that a block is about to run."""

ValueObserver = Callable[[int, str, Tensor], None]
"""Called as ``observer(block, name, value)`` with every value inside a block: ``input``, each node's, and ``output``.

Block 0 is the stem, and the head comes after the last block.
"""


class NetworkBlock:
    """One gated block of a network; it holds no tensors of its own.

    Args:
        network: the network that it belongs to.
        shape: its place, sizes and choices.
        graphs: graphs of the block.

    Attributes:
        whole: the block as one graph.
        skipped: what a skip computes; ``None`` if the block cannot be skipped.
    """

    def __init__(self, network: DFSNetwork, shape: Block, graphs: BlockGraphs) -> None:
        self._network = network
        self.shape = shape
        self.graphs = graphs
        self.whole = graphs.whole
        self.skipped = graphs.skip

    def __call__(self, x: Tensor, bits: int = FULL_BITS, round_inputs: bool = True) -> Tensor:
        """Runs the block in a bitwidth, its shortcut too.

        Args:
            x: (N, C, H, W) float32.
            bits: 2 to 32.
            round_inputs: whether quantised layers round their inputs; if not, they still clamp them. What is left is
                what an engine of any arithmetic must come close to.

        Returns:
            (N, C', H', W') float32.
        """
        return self._network.compute(self.whole, x, bits, round_inputs, self.shape.index)

    def skip(self, x: Tensor, round_inputs: bool = True, bits: int | None = None) -> Tensor:
        """Output of a skipped block; arguments as for the block itself, in the network's own bitwidth unless told.

        Raises:
            OptionError: it has no shortcut and cannot be skipped.
        """
        graph = self.skipped
        if graph is None:
            raise OptionError(f"block {self.shape.index} ({self.shape.name}) has no shortcut; it cannot be skipped")
        if graph.identity:
            return x
        return self._network.compute(graph, x, bits or self._network.graphs.always, round_inputs, self.shape.index)


RunBlock = Callable[[NetworkBlock, Tensor, Decision], Tensor]
"""One way to run a gated block: ``run(block, features, decision)`` maps (N, C, H, W) to (N, C', H', W')."""


class DFSNetwork(nn.Module):
    """A network and the gate that chooses, per sample and per block, one of the options.

    Args:
        net: module that holds the network's tensors under the names that the graphs use; its own forward is not used.
        graphs: graphs of stem, blocks and head.
        architecture: its description.
        options: options of a gated block, in the order of the gate's scores.
        policy: option index of each gated block, for a network without a gate; ``None`` for one with a gate.

    Attributes:
        blocks: the gated blocks, with their places from 1 on, in the order in which they run.
        ranges: running ranges of the inputs of quantisable layers; they move in training mode.
        gate: the gate; ``None`` under a policy.
        contract: input contract of the network, if it is known; no part of the state dict.

    Raises:
        OptionError: a policy of another length, or with an option that the block may not run.
    """

    def __init__(
        self,
        net: nn.Module,
        graphs: NetworkGraphs,
        architecture: Architecture,
        options: Options,
        policy: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.graphs = graphs
        self.architecture = architecture
        self.options = options
        choices = [set(block.choices(options)) for block in architecture.blocks[1:]]
        if fixed := next((i for i, choice in enumerate(choices, 1) if not choice), None):
            raise OptionError(f"block {fixed} may run none of the options {options}; allow it at least one")
        self.policy = None if policy is None else _check_policy(policy, architecture, options)
        self.ranges = Ranges(node.name for node in graphs.whole.nodes if node.quantizable)
        decided = [self.decided(index) for index in range(1, len(architecture.blocks))]
        kind = GATES[architecture.gate.kind]
        self.gate = kind(architecture, decided, len(options)) if policy is None else None
        self.blocks = [
            NetworkBlock(self, shape, part) for shape, part in zip(architecture.blocks[1:], graphs.blocks, strict=True)
        ]
        self.contract: InputContract | None = None
        self._may = [[option in choice for option in options] for choice in choices]
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._found: tuple[dict[str, Tensor], frozenset[str]] | None = None
        self._frozen: frozenset[str] = frozenset()
        self._observer: ValueObserver | None = None
        self._forced: Tensor | None = None
        self._last: NetworkOutput | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # a copy has had no forward, and a graph of gradients cannot be copied

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return self.ranges.low.device

    @property
    def frozen_modules(self) -> frozenset[str]:
        """Names of the modules of ``net`` that stay in evaluation mode if the network is in training mode.

        They are those that were in evaluation mode when ``net`` was last seen in training mode.
        """
        if not self.net.training:
            return self._frozen
        return frozenset(name for name, module in self.net.named_modules() if not module.training)

    def freeze(self, modules: Iterable[str]) -> None:
        """Keeps modules of ``net``, by qualified name, in evaluation mode whatever the network's mode is.

        A network that was loaded lacks modules without tensors, such as dropout; they are added, empty.
        """
        self._frozen = frozenset(modules)
        for name in self._frozen:
            module_at(self.net, name).training = False

    def train(self, mode: bool = True) -> DFSNetwork:
        """Sets the mode of all modules, except for those that were frozen: see ``frozen_modules``."""
        frozen = self.frozen_modules
        super().train(mode)
        self.freeze(frozen)
        return self

    def block(self, index: int) -> NetworkBlock:
        """The gated block ``index``, at least 1."""
        return self.blocks[index - 1]

    def save(self, path: str | Path, contract: InputContract | None = None) -> None:
        """Writes the network, its blocks, options and weights as plain values: it loads without the code that made it.

        Args:
            path: a name that ends in ``.safetensors`` selects that format; any other is written by ``torch.save``.
            contract: input contract; ``None`` for the network's own; if it has none, ImageNet's normalisation is
                assumed, with a warning.

        Raises:
            UsageError: a contract for images of another shape, or none for images without three channels.
            OSError: the file cannot be written.
        """
        from dfs_deploy.checkpoints import save_checkpoint  # the one import upward: a network saves itself

        contract = contract or self.contract
        if contract is None:
            shape = self.architecture.image_shape
            if shape[0] != len(IMAGENET_INPUT.mean):
                raise UsageError(f"no input contract for images of {shape[0]} channel(s); give save an InputContract")
            _LOG.warning("no input contract: ImageNet's mean and deviation are assumed; give save an InputContract")
            contract = replace(IMAGENET_INPUT, shape=shape, resize=None)
        save_checkpoint(path, self, contract)

    def with_policy(self, policy: Sequence[int], options: Options | None = None) -> DFSNetwork:
        """A copy of the network, in the same mode and on the same device, that follows a static policy.

        The policy holds an index into ``options``, or into the network's own, for each gated block.
        """
        return self._copied(self.graphs, self.architecture, options or self.options, policy)

    def _copied(
        self, graphs: NetworkGraphs, architecture: Architecture, options: Options, policy: Sequence[int]
    ) -> DFSNetwork:
        static = DFSNetwork(copy.deepcopy(self.net), graphs, architecture, options, policy)
        static.freeze(self.frozen_modules)
        static.to(self.device).train(self.training)
        static.ranges.load_state_dict(self.ranges.state_dict())
        static.contract = self.contract
        return static

    def in_full_precision(self) -> DFSNetwork:
        """A copy whose policy is to run every block, and all else, in full precision."""
        graphs = msgspec.structs.replace(self.graphs, always=FULL_BITS)
        blocks = tuple(msgspec.structs.replace(block, options=None) for block in self.architecture.blocks)
        architecture = msgspec.structs.replace(self.architecture, blocks=blocks)
        policy = [1] * architecture.gated_blocks
        return self._copied(graphs, architecture, Options((0, FULL_BITS)), policy)

    def options_of(self, index: int) -> tuple[Option, ...]:
        """Options of the gated block ``index``, at least 1: those that the block may run, or the policy's only."""
        if self.policy is not None:
            return (self.options[self.policy[index - 1]],)
        return self.architecture.blocks[index].choices(self.options)

    @property
    def left_out(self) -> frozenset[int]:
        """Indices, at least 1, of the gated blocks that a static policy skips for every input; none with a gate."""
        choices = enumerate(self.policy or (), start=1)
        return frozenset(index for index, choice in choices if self.options[choice].skips)

    def decided(self, index: int) -> bool:
        """Whether the gate decides about block ``index``, at least 1: it may run more than one option."""
        return len(self.options_of(index)) > 1

    @property
    def block_costs(self) -> Tensor:
        """(gated blocks, options) float32 cost: the option's, by the share of the block in all multiply-adds.

        The multiply-adds are those of decided blocks. The mean over the blocks is 1 if each runs in full precision.
        """
        return self._on_device(self.device)[1]

    def _on_device(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Constants on a device: the options that each block may not run, and their costs."""
        if device not in self._constants:
            shape = (len(self.blocks), len(self.options))
            masked = ~torch.tensor(self._may, dtype=torch.bool, device=device).reshape(shape)
            self._constants[device] = masked, block_costs(self.architecture, self.options).to(device)
        return self._constants[device]

    def evaluation(self, bits: int = FULL_BITS, round_inputs: bool = True) -> Evaluation:
        """One way to compute this network's graphs; see ``Evaluation``."""
        tensors, frozen = self._look_up() if self._found is None else self._found
        return Evaluation(tensors, self.ranges, self.graphs.quantizer, bits, round_inputs, self.net.training, frozen)

    def _look_up(self) -> tuple[dict[str, Tensor], frozenset[str]]:
        """Tensors by name, and the modules that stay in evaluation mode."""
        return named_tensors(self.net), self.frozen_modules

    @contextmanager
    def _looked_up(self) -> Iterator[None]:
        """Looks up the network's tensors once for many evaluations."""
        before, self._found = self._found, self._look_up()
        try:
            yield
        finally:
            self._found = before

    def compute(
        self, graph: Graph, x: Tensor, bits: int = FULL_BITS, round_inputs: bool = True, block: int | None = None
    ) -> Tensor:
        """Computes a graph of the network.

        Args:
            graph: one of its graphs.
            x: (N, C, H, W) float32.
            bits: bitwidth of quantisable layers, 2 to 32.
            round_inputs: see ``NetworkBlock``.
            block: index under which an observer sees its values; ``None`` if it sees none.
        """
        evaluation, observer = self.evaluation(bits, round_inputs), self._observer
        if observer is None or block is None:
            return evaluation.run(graph, x)
        evaluation.observer = lambda name, value: observer(block, name, value)
        result = evaluation.run(graph, x)
        observer(block, OUTPUT, result)
        return result

    def without_ranges(self) -> dict[int, tuple[str, ...]]:
        """Layers of each gated block that may run quantised, and whose inputs have no running range, by index."""
        found = {}
        for block in self.blocks:
            nodes = block.whole.nodes if any(o.quantized for o in self.options_of(block.shape.index)) else ()
            missing = tuple(node.name for node in nodes if node.quantizable and not self.ranges.known(node.name))
            if missing:
                found[block.shape.index] = missing
        return found

    @contextmanager
    def observed(self, observer: ValueObserver) -> Iterator[None]:
        """Shows an observer every value that stem, blocks that run, and head compute."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def stem(self, x: Tensor, bits: int | None = None, round_inputs: bool = True) -> Tensor:
        """Maps normalised images (N, C, H, W) to the features that the first gated block reads."""
        return self.compute(self.graphs.stem, x, bits or self.graphs.always, round_inputs, 0)

    def head(self, features: Tensor, bits: int | None = None, round_inputs: bool = True) -> Tensor:
        """Maps the last features (N, C, H, W) to logits (N, classes)."""
        place = len(self.architecture.blocks)
        return self.compute(self.graphs.head, features, bits or self.graphs.always, round_inputs, place)

    def static(self, x: Tensor, bits: int = FULL_BITS, skipped: Collection[int] = ()) -> Tensor:
        """The static network: images (N, C, H, W) to logits (N, classes), every gated block in one bitwidth.

        Stem, head and the layers of a skip run in that bitwidth too, or in full precision if they always do.

        Args:
            x: (N, C, H, W) float32.
            bits: 2 to 32.
            skipped: indices, at least 1, of gated blocks that are skipped.
        """
        ends = FULL_BITS if self.graphs.always == FULL_BITS else bits
        with self._looked_up():
            features = self.stem(x, ends)
            for index, block in enumerate(self.blocks, start=1):
                features = block.skip(features, bits=ends) if index in skipped else block(features, bits)
            return self.head(features, ends)

    def forward(self, x: Tensor) -> NetworkOutput:
        """Computes every option of images (N, C, H, W) and mixes by the hard choice; the softmax carries the gradient.

        See Section 3.
        """
        self._last = self.unroll(x, self._mix_options)
        return self._last

    def cost_loss(self, target: float) -> Tensor:
        """Squared distance of the last forward's mean cost from a target, as shares of the dearest path's cost.

        Shares of what the network can compute at most, so that one weight suits every list of options: with
        ``skip,8`` no path costs more than 6.25 % of full precision.

        Args:
            target: computation percentage to reach, 0 to 100.

        Raises:
            UsageError: there was no forward.
        """
        if self._last is None:
            raise UsageError("no forward whose cost could be judged; call the network on a batch first")
        _, dearest = self.architecture.computation_range(self.options)
        return ((self._last.expected_cost.mean() - target / 100.0) / (dearest or 1.0)).square()

    @contextmanager
    def forced(self, path: Sequence[int | str] | Tensor) -> Iterator[None]:
        """Makes forwards take a path instead of the gate's choices; the gate still steps.

        Args:
            path: option of each gated block, by index or name; or an index for each sample too, an integer tensor
                (N, gated blocks).

        Raises:
            OptionError: a path of another length or type, or with an option that the block may not run. In a forward: a
                path for another number of samples.
        """
        given = self._path_of(path)
        for row in {tuple(row) for row in given.reshape(-1, given.shape[-1]).tolist()}:
            _check_policy(row, self.architecture, self.options)
        before, self._forced = self._forced, given.to(torch.int64)
        try:
            yield
        finally:
            self._forced = before

    def _path_of(self, path: object) -> Tensor:
        """A path as a tensor of option indices, (gated blocks,) or (N, gated blocks)."""
        if isinstance(path, Tensor):
            integers = not (path.is_floating_point() or path.is_complex() or path.dtype == torch.bool)
            if not integers or path.ndim not in (1, 2) or not path.numel():
                raise OptionError(
                    f"a path {tuple(path.shape)} {path.dtype}, expected option indices (gated blocks,) or (N, gated"
                    " blocks) int64"
                )
            return path
        if isinstance(path, str) or not isinstance(path, Iterable):
            raise OptionError(f"a path {path!r}, expected a list with one option per gated block")
        return torch.tensor([self._option_index(choice) for choice in path], dtype=torch.int64)

    def _option_index(self, choice: object) -> int:
        if isinstance(choice, str) and choice in self.options.names:
            return self.options.names.index(choice)
        if isinstance(choice, bool) or not isinstance(choice, Integral):
            raise OptionError(f"a path with option {choice!r}, expected one of {self.options}, or an index")
        return int(choice)

    @torch.no_grad()
    def route(self, x: Tensor, observer: BlockObserver | None = None) -> NetworkOutput:
        """Runs for each sample only the option that its gate chose.

        Args:
            x: (N, C, H, W) float32, normalised. N may be 1.
            observer: called with each group of samples before a gated block runs them.

        Returns:
            The output, equal to that of ``forward`` up to the order of float additions.

        Raises:
            CheckpointError: a score of the gate is NaN or infinite: the features overflowed.
        """

        def run(block: NetworkBlock, features: Tensor, decision: Decision) -> Tensor:
            index = block.shape.index
            if not torch.isfinite(decision.scores).all():  # no option has the greatest score then
                raise CheckpointError(
                    f"the gate's scores after block {index - 1} are NaN or infinite on these data, expected finite"
                    " values; check the checkpoint's weights and how it was trained"
                )
            return self.run_block(index, features, decision.choice, observer)

        return self.unroll(x, run)

    def unroll(self, x: Tensor, run: RunBlock, path: Tensor | None = None) -> NetworkOutput:
        """Runs the network block by block: THE loop over gate and blocks.

        Args:
            x: (N, C, H, W) float32, normalised.
            run: runs each gated block by what was decided for it.
            path: (N, gated blocks) int64, the choices to take; ``None`` for those that are forced, the policy's, or the
                gate's own.

        Returns:
            The output; ``path`` holds the choices taken.
        """
        with self._looked_up():
            return self._unroll(x, run, path)

    def _unroll(self, x: Tensor, run: RunBlock, path: Tensor | None) -> NetworkOutput:
        n, options = len(x), len(self.options)
        if path is None and self._forced is not None:
            if self._forced.ndim == 2 and len(self._forced) not in (1, n):
                raise OptionError(f"paths of {len(self._forced)} samples are forced on {n}; give one path per sample")
            path = self._forced.to(x.device).expand(n, -1)
        elif path is None and self.policy is not None:
            path = torch.tensor(self.policy, dtype=torch.int64, device=x.device).repeat(n, 1)
        features = self.stem(x)
        state = None if self.gate is None else self.gate.initial_state(features)
        scores, choices = x.new_zeros(n, 0, options), x.new_zeros(n, 0, dtype=torch.int64)
        steps: list[Decision] = []
        for block in self.blocks:
            index = block.shape.index
            score = x.new_zeros(n, options)
            if self.gate is not None and state is not None and self.decided(index):
                score, state = self.gate(index - 1, features, state)
            if not all(self._may[index - 1]):
                score = score.masked_fill(self._on_device(x.device)[0][index - 1], MASKED)
            steps.append(Decision(score, decide(score) if path is None else path[:, index - 1]))
            features = run(block, features, steps[-1])
        if steps:
            scores, choices = (torch.stack(values, 1) for values in zip(*steps, strict=True))
        return NetworkOutput(self.head(features), choices, scores, expected_cost(scores, choices, self.block_costs))

    def _mix_options(self, block: NetworkBlock, features: Tensor, decision: Decision) -> Tensor:
        possible = self.options_of(block.shape.index)
        if len(possible) == 1:
            return run_option(block, features, possible[0])
        soft = functional.softmax(decision.scores, 1)
        # The difference first: it is exactly zero, so the weights are exactly one-hot.
        weight = functional.one_hot(decision.choice, len(self.options)).to(soft.dtype) + (soft - soft.detach())
        # One after the other: the outputs of all options at once would take as much memory again.
        return functools.reduce(
            torch.add,
            (
                weight[:, k, None, None, None] * run_option(block, features, option)
                for k, option in enumerate(self.options)
                if option in possible
            ),
        )

    @torch.no_grad()
    def run_block(self, index: int, features: Tensor, choice: Tensor, observer: BlockObserver | None = None) -> Tensor:
        """Runs the gated block ``index``, at least 1: (N, C, H, W) float32 to (N, C', H', W').

        Each sample runs in its own option, an index in ``choice`` (N,) int64; the observer gets each group first.
        """
        block = self.block(index)
        outputs, order = [], []
        for k in sorted(set(choice.tolist())):
            rows = torch.nonzero(choice == k).flatten()
            group = features if len(rows) == len(features) else features[rows]
            if observer is not None:
                observer(index, k, rows, group)
            outputs.append(run_option(block, group, self.options[k]))
            order.append(rows)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)[torch.argsort(torch.cat(order))]


def block_costs(architecture: Architecture, options: Options) -> Tensor:
    """(gated blocks, options) float32, cost of each option; see ``DFSNetwork.block_costs``."""
    weights = torch.tensor(architecture.weights(options), dtype=torch.float64)
    costs = torch.tensor(options.costs, dtype=torch.float64)
    if not weights.any():  # nothing is decided: all of it always runs
        return torch.ones(len(weights), len(costs))
    return (weights / weights.mean())[:, None].mul(costs).float()


def expected_cost(scores: Tensor, path: Tensor, costs: Tensor) -> Tensor:
    """Mean cost of the options taken; the softmax of the gate's scores carries its gradient (Section 3).

    Args:
        scores: (N, gated blocks, options) float32, before softmax.
        path: (N, gated blocks) int64, option indices.
        costs: (gated blocks, options) float32, in full-precision blocks.

    Returns:
        (N,) float32; 1 for a network without gated blocks.
    """
    if not path.shape[1]:
        return scores.new_ones(len(path))
    soft = functional.softmax(scores, 2)
    chosen = costs.expand(len(path), -1, -1).gather(2, path.unsqueeze(2)).squeeze(2)
    # The difference first: it is exactly zero, so the cost is exactly that of the choice.
    return (chosen + ((soft - soft.detach()) * costs).sum(2)).mean(1)


def run_option(block: NetworkBlock, features: Tensor, option: Option, round_inputs: bool = True) -> Tensor:
    """Runs one block in one option: (N, C, H, W) float32 to (N, C', H', W').

    A quantised option rounds its layers' inputs, or only clamps them.
    """
    return block.skip(features) if option.skips else block(features, option.bits, round_inputs)


def _check_policy(policy: Sequence[int], architecture: Architecture, options: Options) -> tuple[int, ...]:
    if len(policy) != architecture.gated_blocks:
        raise OptionError(
            f"a policy of {len(policy)} option(s) for {architecture.gated_blocks} gated blocks; give one for each"
        )
    unknown = [choice for choice in policy if not hasattr(choice, "__index__") or not 0 <= choice < len(options)]
    if unknown:
        raise OptionError(f"a policy with option index {unknown[0]!r}, expected 0 to {len(options) - 1}")
    for block, choice in zip(architecture.blocks[1:], policy, strict=True):
        if options[choice] not in block.choices(options):
            raise OptionError(
                f"a policy with option {options[choice].name} at block {block.index}, which may not run it"
            )
    return tuple(policy)
