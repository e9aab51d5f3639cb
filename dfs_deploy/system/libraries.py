"""Libraries that dfs-deploy uses: which version is here, why one cannot be used, and the command that installs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from dfs_deploy.errors import DependencyError, MissingExtraError
from dfs_deploy.io.text import first_line

NAME = "dfs-deploy"

CORE = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "google.protobuf": "protobuf",
    "msgspec": "msgspec",
    "typer": "typer",
    "rich": "rich",
    "PIL": "pillow",
}
"""Distribution on the package index that brings each module of the core install."""

EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "scipy": "train",
    "sklearn": "train",
    "altair": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "vl_convert": "report",
    "av": "video",
    "pynvml": "nvml",
    "tensorrt": "tensorrt",
    "pycuda": "tensorrt",
}
"""Extra of dfs-deploy that brings each optional module."""


@dataclass(frozen=True)
class Library:
    """A library on this machine.

    Attributes:
        version: version that it reports; empty if it cannot be used.
        problem: reason why it cannot be used, one line; empty if it can be, and if it is not installed.
    """

    version: str
    problem: str = ""


def find_library(module: str) -> Library:
    """Looks for a library by importing it, since a distribution may have another name, and may be installed but broken.

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
    except Exception as error:  # a broken library can raise anything while it is imported
        return Library("", f"cannot be imported: {type(error).__name__}: {first_line(error)}")
    version = vars(found).get("__version__")  # without a module's own __getattr__, which may warn
    return Library(version if isinstance(version, str) else _recorded_version(module))


def _recorded_version(module: str) -> str:
    """Version that the installer recorded, of a module that does not report one."""
    names = metadata.packages_distributions().get(module.partition(".")[0])
    try:
        return metadata.version(names[0] if names else module)
    except metadata.PackageNotFoundError:
        return "of unknown version"


@contextlib.contextmanager
def required() -> Iterator[None]:
    """Turns the failed import of an optional library into an error that says how to install it, or what broke it.

    Raises:
        MissingExtraError: a module of ``EXTRA_OF`` is not installed.
        DependencyError: a library is installed and cannot be imported.
    """
    try:
        yield
    except DependencyError:
        raise
    except ModuleNotFoundError as error:
        module = _top(error)
        if module in EXTRA_OF:
            extra = EXTRA_OF[module]
            seen = f"{module} is not installed and this needs it; run: {install_line(extra)}"
            raise MissingExtraError(seen, module=module, extra=extra) from error
        raise
    except ImportError as error:
        raise broken(error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # it is about a file, not raised by the loader of shared libraries
        raise broken(error) from error


def broken(error: ImportError | OSError) -> DependencyError:
    """The error about a library that is installed and cannot be imported.

    Args:
        error: error that its import raised, for example about a shared library that is missing.
    """
    module = _top(error) or "a library"
    seen = f"{module} is installed and cannot be imported ({first_line(error)}); repair it"
    return DependencyError(seen, module=module)


def _top(error: ImportError | OSError) -> str:
    return ((error.name if isinstance(error, ImportError) else None) or "").partition(".")[0]


def install_line(extra: str | None = None) -> str:
    """The command that installs dfs-deploy with an extra, from a checkout, since the package is on no index.

    Args:
        extra: name of an extra such as ``export``; ``None`` for the core install.
    """
    wanted, folder = f"[{extra}]" if extra else "", Path(__file__).resolve().parents[2]
    if (folder / "pyproject.toml").is_file() and (folder / "dfs_deploy").is_dir():
        return f'pip install -e "{folder}{wanted}"'
    return f'pip install ".{wanted}" in a checkout of {NAME}'
