"""The one place where ONNX Runtime is imported: its telemetry is off, and an unusable one is refused with the reason.

The Linux wheel of ONNX Runtime 1.32 reports on its use: it writes a device id and a store of events into the user's
home folder, starts a thread and looks up its maker's host. No call turns that off once it is imported. So it is turned
off here before the import, unless whoever runs the process has already set the variable, to any value.
"""

from __future__ import annotations

import os
import re
import sys

from dfs_deploy.errors import DependencyError
from dfs_deploy.io.text import first_line

__all__ = ["LEAST", "TELEMETRY", "onnxruntime", "telemetry"]

TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Environment variable that ONNX Runtime reads when it is imported: 1 for no telemetry."""

LEAST = (1, 20)
"""Oldest version of ONNX Runtime that has every function used here."""

_given = os.environ.get(TELEMETRY)
_late = "onnxruntime" in sys.modules
if _given is None and not _late:
    os.environ[TELEMETRY] = "1"


def telemetry() -> str:
    """State of ONNX Runtime's telemetry in this process, in words."""
    if _given is not None:
        return f"as {TELEMETRY}={_given!r} says, which was set before"
    if _late:
        return f"left as it was: onnxruntime was imported before dfs_deploy; set {TELEMETRY}=1"
    return f"off: {TELEMETRY}=1, set by dfs-deploy"


def _broken(error: Exception) -> DependencyError:
    why = f"{type(error).__name__}: {first_line(error)}"
    return DependencyError(f"onnxruntime is installed and cannot be imported ({why}); repair it", module="onnxruntime")


# From whichever distribution: onnxruntime, onnxruntime-gpu, onnxruntime-openvino, the wheel of a board's maker.
try:
    import onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":  # a library that it needs is missing
        raise _broken(error) from error
    raise DependencyError(
        "onnxruntime is not installed and bundles need it; run: pip install onnxruntime", module="onnxruntime"
    ) from error
except Exception as error:  # a broken library can raise anything while it is imported
    raise _broken(error) from error


def _check() -> None:
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DependencyError(
            "onnxruntime is a folder without the library, as removing one of several distributions leaves it; run:"
            " pip install --force-reinstall onnxruntime",
            module="onnxruntime",
        )
    version = str(getattr(onnxruntime, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST:
        least = ".".join(map(str, LEAST))
        raise DependencyError(
            f"onnxruntime {version} is too old, expected {least} or later; run: pip install --upgrade onnxruntime",
            module="onnxruntime",
        )


_check()
