"""Running of users' networks: they are as before afterwards, and whatever their code raises becomes one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dfs_deploy.errors import DfsDeployError
from dfs_deploy.io.text import first_line
from dfs_deploy.models.graph import named_tensors


@contextmanager
def as_before(net: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode; afterwards, training flags, buffers and random numbers are what they were.

    The flags are set one by one: a module's own ``train`` or ``eval`` may do more than that.
    """
    flags = [(module, module.training) for module in net.modules()]
    buffers = [(module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()]
    copies = [None if buffer is None or buffer.is_meta else buffer.clone() for _, _, buffer in buffers]
    devices = sorted({tensor.device.index or 0 for tensor in named_tensors(net).values() if tensor.is_cuda})
    for module, _ in flags:
        module.training = False
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in flags:
            module.training = training
        for (module, name, buffer), saved in zip(buffers, copies, strict=True):
            module._buffers[name] = buffer
            if buffer is not None and saved is not None and not torch.equal(buffer, saved):
                with torch.no_grad():
                    buffer.copy_(saved)


@contextmanager
def user_code(error: Callable[[str], Exception], before: str, after: str = "") -> Iterator[None]:
    """Makes one line of whatever a user's code raises, or of its wish to end the program.

    Args:
        error: class of the error that is raised in its place.
        before: beginning of its message: what failed.
        after: end of its message, behind what the code raised: the remedy.
    """
    try:
        yield
    except DfsDeployError:
        raise
    except (Exception, SystemExit) as raised:
        name, text = type(raised).__name__, first_line(raised)
        why = name if text == name else f"{name}: {text}"
        raise error(f"{before} ({why}){after}") from raised
