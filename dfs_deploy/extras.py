"""Optional dependencies: what brings them, and what is said where one is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dfs_deploy.errors import MissingExtraError

EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "scipy": "train",
    "sklearn": "train",
    "tensorboard": "tensorboard",
    "jinja2": "report",
    "markupsafe": "report",
    "vl_convert": "report",
    "av": "video",
    "pynvml": "nvml",
    "tensorrt": "tensorrt",
    "pycuda": "tensorrt",
}
"""The extra of dfs-deploy that brings a module."""


@contextlib.contextmanager
def required(extra: str | None = None) -> Iterator[None]:
    """Turns the missing import of an optional dependency into the line that installs it.

    Args:
        extra: that brings what is imported; ``None`` for the one of :data:`EXTRA_OF`.

    Raises:
        MissingExtraError: a module of :data:`EXTRA_OF` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in EXTRA_OF:
            raise MissingExtraError(module, extra or EXTRA_OF[module]) from error
        raise
