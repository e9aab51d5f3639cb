"""TensorRT itself: importing it, its version, the errors that it logs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_deploy.errors import DependencyError, EnvironmentLacksError, MissingExtraError
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    import tensorrt as trt

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_APT = {"tensorrt": "sudo apt install python3-libnvinfer", "pycuda": "sudo apt install python3-pycuda"}
"""JetPack's packages by module: pip has no TensorRT for a Jetson."""

_KEPT_MESSAGES = 3


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Turns a failed import of tensorrt or pycuda into an error that says what to do.

    Raises:
        MissingExtraError: it is not installed.
        EnvironmentLacksError: it is not installed on a Jetson, or the libraries that it loads are missing.
    """
    try:
        with required():
            yield
    except MissingExtraError as error:
        if _TEGRA_RELEASE.is_file() and error.module in _APT:
            raise EnvironmentLacksError(
                f"{error.module} is not installed and this needs it; run: {_APT[error.module]}"
            ) from error
        raise
    except DependencyError as error:
        raise EnvironmentLacksError(
            f"{error}: install the NVIDIA driver, and TensorRT's and CUDA's libraries"
        ) from error


def tensorrt_version() -> str:
    """Version of the installed TensorRT, as in ``10.3.0``."""
    with libraries():
        import tensorrt as trt
    return trt.__version__


def numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, at most three: (10, 13, 3) of ``10.13.3.9.post1``."""
    found = []
    for part in version.split(".")[:3]:
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


class Log:
    """The last errors that TensorRT logged, which say why one of its calls returned nothing.

    Attributes:
        logger: object for TensorRT's constructors; it must outlive what is made with it.
    """

    def __init__(self) -> None:
        with libraries():
            import tensorrt as trt

        errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
        messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # NVIDIA's classes want this spelled out

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in errors:
                    messages.append(" ".join(msg.split()))

        self._messages = messages
        self.logger: trt.ILogger = Logger()

    def take(self) -> str:
        """Errors since the last call, on one line."""
        text = "; ".join(self._messages) or "TensorRT gives no reason"
        self._messages.clear()
        return text
