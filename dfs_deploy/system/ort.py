"""ONNX Runtime, imported in this one place: without its telemetry, and refused with the true reason if it is no use.

The Linux wheel of ONNX Runtime 1.32 reports on its use: it writes a device id and a store of events into the user's
home folder, starts a thread and looks up its maker's host. No call turns that off once it is imported. It is turned off
here before the import, unless whoever runs the process has set the variable already, to anything.
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
"""Oldest version of ONNX Runtime that has what is used of it."""

_given = os.environ.get(TELEMETRY)
_late = "onnxruntime" in sys.modules
if _given is None and not _late:
    os.environ[TELEMETRY] = "1"


def telemetry() -> str:
    """What was decided about ONNX Runtime's telemetry in this process, in words."""
    if _given is not None:
        return f"as {TELEMETRY}={_given!r} says, which was set before"
    if _late:
        return f"left as it was: onnxruntime was imported before dfs_deploy; set {TELEMETRY}=1"
    return f"off: {TELEMETRY}=1, set by dfs-deploy"


def _broken(error: Exception) -> DependencyError:
    why = f"{type(error).__name__}: {first_line(error)}"
    return DependencyError(f"onnxruntime is installed and cannot be imported ({why}); repair it", "onnxruntime")


# Whichever distribution it comes from: onnxruntime, -gpu, -openvino, the wheel of a board's maker.
try:
    import onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":  # something that it needs
        raise _broken(error) from error
    raise DependencyError(
        "onnxruntime is not installed and bundles need it; run: pip install onnxruntime", "onnxruntime"
    ) from error
except Exception as error:  # a broken library raises whatever it meets while it begins
    raise _broken(error) from error


def _check() -> None:
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DependencyError(
            "onnxruntime is a folder without the library, as removing one of several distributions leaves it; run:"
            " pip install --force-reinstall onnxruntime",
            "onnxruntime",
        )
    version = str(getattr(onnxruntime, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST:
        least = ".".join(map(str, LEAST))
        raise DependencyError(
            f"onnxruntime {version} is too old, expected {least} or later; run: pip install --upgrade onnxruntime",
            "onnxruntime",
        )


_check()
