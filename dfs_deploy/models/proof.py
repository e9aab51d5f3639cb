"""Proof that graphs compute what modules compute, on random tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dfs_deploy.models.chain import Link, RefusedError
from dfs_deploy.models.graph import Evaluation, Graph, named_tensors
from dfs_deploy.models.running import user_code
from dfs_deploy.models.trace import Place, Shape

TOLERANCE = 1e-5
"""Largest difference between a block and its graphs, relative to the largest value of the block's output."""

_AUDIBLE = 1e-2
"""Least magnitude of a tensor's largest value, below which a proof gives it others."""


class Prover:
    """Comparison of modules with graphs, on random tensors.

    Args:
        net: the network.
        example: (N, C, H, W) float32.
    """

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        self.net = net
        self.example = example
        self.tensors: dict[str, Tensor] = named_tensors(net)
        self.evaluation = Evaluation(self.tensors)
        self._generator = torch.Generator().manual_seed(0)

    def draws(self, shape: Shape) -> Iterator[Tensor]:
        """Random tensors: of both signs, then a batch of three kinds, then of values below zero."""

        def normal(count: int) -> Tensor:
            return torch.randn((count, *shape), generator=self._generator)

        yield normal(1).to(self.example)
        mixed = normal(3)
        mixed[0].abs_()
        mixed[1].mul_(4.0)
        mixed[2].abs_().neg_()
        yield mixed.to(self.example)
        yield normal(1).abs_().neg_().to(self.example)

    def prove(self, link: Link, shape: Shape) -> None:
        """Compares a module with its graphs on inputs of a shape, without the batch.

        Raises:
            RefusedError: they differ.
        """
        call = link.call
        graph = link.prefix.then(link.graphs.whole)
        with self._audible(graph):
            for x in self.draws(shape):
                arguments = [x.clone() if isinstance(part, Place) else part for part in call.arguments]
                keywords = {key: x.clone() if isinstance(part, Place) else part for key, part in call.keywords.items()}
                with user_code(RefusedError, f"fails on a batch of {len(x)} random tensors"):
                    expected = call.module(*arguments, **keywords)
                if problem := _difference(expected, self.evaluation.run(graph, x)):
                    raise RefusedError(f"{problem} on a batch of {len(x)} random tensors")

    def whole(self, graph: Graph) -> str | None:
        """Reason why a graph is not the network; ``None`` if it is."""
        images = self.example[:1]
        for x in (images, *self.draws(tuple(images.shape[1:]))):
            if problem := self.same(graph, x):
                return f"put together again, it {problem}"
        return None

    def same(self, graph: Graph, x: Tensor) -> str | None:
        """Reason why a graph is not the network on images (N, C, H, W); ``None`` if it is."""
        with self._audible(graph):
            try:
                with user_code(RefusedError, f"fails on a batch of {len(x)} random images"):
                    expected = self.net(x.clone())
            except RefusedError as error:
                return str(error)
            return _difference(expected, self.evaluation.run(graph, x))

    @contextmanager
    def _audible(self, graph: Graph) -> Iterator[None]:
        """Gives other values, for a time, to those tensors of a graph that would hide what they scale.

        The last normalisation of a branch, or the final layer, often begins with zeros; any graph would do then. The
        user's own values stay untouched: the tensors only have other memory meanwhile.
        """
        tensors = {id(tensor): tensor for tensor in map(self.tensors.__getitem__, graph.tensors)}
        own = [(tensor, tensor.data) for tensor in tensors.values() if float(tensor.abs().max()) < _AUDIBLE]
        try:
            for tensor, _ in own:
                tensor.data = self._drawn(tensor)
            yield
        finally:
            for tensor, data in own:
                tensor.data = data

    def _drawn(self, tensor: Tensor) -> Tensor:
        """Random values that neither shrink nor blow up what passes a layer."""
        if tensor.ndim < 2:
            return torch.rand(tensor.shape, generator=self._generator).add(0.5).to(tensor)
        scale = (2.0 / tensor[0].numel()) ** 0.5
        return torch.randn(tensor.shape, generator=self._generator).mul(scale).to(tensor)


def _difference(expected: object, given: Tensor) -> str | None:
    """Difference between what a module and its graphs give, in words; ``None`` within the tolerance."""
    if not isinstance(expected, Tensor):
        return f"gives a {type(expected).__name__}, expected one tensor,"
    if expected.shape != given.shape:
        return f"gives {tuple(expected.shape)} where its operations give {tuple(given.shape)}"
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        return "gives values that are not finite"
    error = float((expected - given).abs().max())
    if not error <= TOLERANCE * largest:
        return f"differs from its operations by {error:.3g} (values up to {largest:.3g})"
    return None
