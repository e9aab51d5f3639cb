"""Libraries that dfs-deploy uses: what brings them, which version is there, and why one cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from dfs_deploy.errors import DependencyError, MissingExtraError
from dfs_deploy.io.text import first_line

CORE = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "google.protobuf": "protobuf",
    "msgspec": "msgspec",
    "typer": "typer",
    "rich": "rich",
    "PIL": "pillow",
}
"""Modules that every install has, and the distribution on the package index that brings each."""

EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "scipy": "train",
    "sklearn": "train",
    "tensorboard": "tensorboard",
    "jinja2": "report",
    "markupsafe": "report",
    "altair": "report",
    "vl_convert": "report",
    "av": "video",
    "pynvml": "nvml",
    "tensorrt": "tensorrt",
    "pycuda": "tensorrt",
}
"""The extra of dfs-deploy that brings a module."""


@dataclass(frozen=True)
class Library:
    """A library as it is found here.

    Attributes:
        version: version that it says of itself; empty if it cannot be used.
        problem: reason why it cannot be used, a line; empty if it can, and if it is not installed.
    """

    version: str
    problem: str = ""


def find_library(module: str) -> Library:
    """Looks for a library by importing it: distributions have other names than modules, and may be there and broken.

    Args:
        module: name of its module, such as ``onnxruntime``, which comes from ``onnxruntime``, ``onnxruntime-gpu``,
            the wheels of boards' makers, and others.
    """
    try:
        if module == "onnxruntime":
            from dfs_deploy.system import ort

            return Library(str(ort.onnxruntime.__version__))
        found = import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name == module or error.name == module.partition(".")[0]
        return Library("", "" if absent else f"cannot be imported: {first_line(error)}")
    except DependencyError as error:
        cause = error.__cause__
        absent = isinstance(cause, ModuleNotFoundError) and cause.name == module
        return Library("", "" if absent else str(error))
    except Exception as error:  # a broken library raises whatever it meets while it begins
        return Library("", f"cannot be imported: {type(error).__name__}: {first_line(error)}")
    version = vars(found).get("__version__")  # not what a module makes up on demand, with a warning
    return Library(version if isinstance(version, str) else _recorded_version(module))


def _recorded_version(module: str) -> str:
    """What the installer recorded of a module that does not say its version."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module.partition(".")[0])
    try:
        return metadata.version(names[0] if names else module)
    except metadata.PackageNotFoundError:
        return "of unknown version"


@contextlib.contextmanager
def required(extra: str | None = None) -> Iterator[None]:
    """Turns the failed import of an optional dependency into the line that installs it, or into what broke it.

    Args:
        extra: extra that brings what is imported; ``None`` for the one of :data:`EXTRA_OF`.

    Raises:
        MissingExtraError: a module of :data:`EXTRA_OF` is not installed.
        DependencyError: a library is installed and cannot be imported.
    """
    try:
        yield
    except DependencyError:
        raise
    except ModuleNotFoundError as error:
        module = _top(error)
        if module in EXTRA_OF:
            raise MissingExtraError(module, extra or EXTRA_OF[module]) from error
        raise
    except ImportError as error:
        raise broken(error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # of a file, not of the loader of shared libraries
        raise broken(error) from error


def broken(error: ImportError | OSError) -> DependencyError:
    """What is raised for a library that is installed and cannot be imported.

    Args:
        error: what its import raised, such as the name of a shared library that is missing.
    """
    module = _top(error) or "a library"
    return DependencyError(f"{module} is installed and cannot be imported ({first_line(error)}); repair it", module)


def _top(error: ImportError | OSError) -> str:
    return ((error.name if isinstance(error, ImportError) else None) or "").partition(".")[0]
