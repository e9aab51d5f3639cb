"""Proof that graphs compute what modules compute, on random tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dfs_deploy.io.text import first_line
from dfs_deploy.models.chain import Link, RefusedError
from dfs_deploy.models.graph import Evaluation, Graph, named_tensors
from dfs_deploy.models.trace import Place, Shape

TOLERANCE = 1e-5
"""Largest difference between a block and its graphs, relative to the largest value of the block's output."""


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
        for x in self.draws(shape):
            arguments = [x.clone() if isinstance(part, Place) else part for part in call.arguments]
            keywords = {key: x.clone() if isinstance(part, Place) else part for key, part in call.keywords.items()}
            try:
                expected = call.module(*arguments, **keywords)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise RefusedError(f"fails on a batch of {len(x)} random tensors ({first_line(error)})") from error
            if problem := _difference(expected, self.evaluation.run(graph, x)):
                raise RefusedError(f"{problem} on a batch of {len(x)} random tensors")

    def whole(self, graph: Graph) -> str | None:
        """Reason why a graph is not the network; ``None`` if it is."""
        images = self.example[:1]
        for x in (images, *self.draws(tuple(images.shape[1:]))):
            if problem := _difference(self.net(x.clone()), self.evaluation.run(graph, x)):
                return f"put together again, it {problem}"
        return None


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
