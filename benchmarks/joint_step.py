"""Time of one step of joint training, compared with a step of the backbone only.

A step is forward, backward and the optimizer, on random weights and images. The gate's scores are spread so that a
batch uses all options. All cases run in one process, in rounds; a figure is the median over the rounds. The ratio is to
a step of the plain backbone times the number of options that compute something.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.training.forward import joint_forward


def main() -> None:
    """Prints one line per list of options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", nargs="*", default=["skip,8,16,full", "skip,full"], help="lists to measure")
    parser.add_argument("--blocks", type=int, default=3, help="n of ResNet-(6n+2)")
    parser.add_argument("--batch", type=int, default=128, help="images in a step")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which each case is timed")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{'options':>16} {'share of each option':>28} {'backbone':>9} {'plain':>9} {'joint':>9} {'ratio':>6}")
    for text in args.options:
        options = Options.parse(text)
        network = spread_network(options, args.blocks)
        shares, seconds = measure(network, args.batch, args.rounds)
        computing = sum(not option.skips for option in options)
        ratio = seconds["joint"] / (seconds["backbone"] * computing)
        listed = " ".join(f"{share:.0%}" for share in shares)
        figures = " ".join(f"{seconds[name]:>7.3f} s" for name in ("backbone", "plain", "joint"))
        print(f"{text:>16} {listed:>28} {figures} {ratio:>6.2f}")


def spread_network(options: Options, blocks: int) -> DFSNetwork:
    """A network of random weights whose gate sends the images of a batch to all options."""
    torch.manual_seed(0)
    network = cifar_network(cifar_resnet((blocks,) * 3), options)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith("gate.embeddings.") and name.endswith(".weight"):
                weight.mul_(30.0)
            elif name == "gate.projection.weight":
                weight.mul_(20.0)
    return network.to(memory_format=torch.channels_last)


def measure(network: DFSNetwork, batch: int, rounds: int) -> tuple[list[float], dict[str, float]]:
    """Share of the decisions by option, and the median seconds of a step by name."""
    x = torch.randn(batch, 3, 32, 32) * torch.rand(batch, 1, 1, 1) * 3.0
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, network.architecture.classes, (batch,))
    cases: dict[str, Callable[[Tensor], Tensor]] = {
        "backbone": network.static,
        "plain": lambda images: network(images).logits,
        "joint": lambda images: joint_forward(network, images).logits,
    }
    path = joint_forward(network, x).path.flatten()
    shares = (torch.bincount(path, minlength=len(network.options)) / len(path)).tolist()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, forward in cases.items():
            started = time.perf_counter()
            optimizer.zero_grad()
            functional.cross_entropy(forward(x), labels).backward()
            optimizer.step()
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - started)
    return shares, {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
