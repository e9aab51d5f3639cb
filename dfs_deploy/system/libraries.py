"""Libraries that dfs-deploy uses: which version is here, why one cannot be used, and the command that installs it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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


_PROJECT = re.compile(rf'^name = "{NAME}"$', re.MULTILINE)
_EXTRA = re.compile(r"""(?:\s+and\s+)?extra\s*==\s*['"]([\w-]+)['"](?:\s+and\s+)?""")


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
def required(extra: str | None = None) -> Iterator[None]:
    """Turns the failed import of an optional library into an error that says how to install it, or what broke it.

    Args:
        extra: extra that brings the library; ``None`` for the one in :data:`EXTRA_OF`.

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
            raise missing_extra(module, extra or EXTRA_OF[module]) from error
        raise
    except ImportError as error:
        raise broken(error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # it is about a file, not raised by the loader of shared libraries
        raise broken(error) from error


def missing_extra(module: str, extra: str) -> MissingExtraError:
    """The error about a library that is not installed.

    Args:
        module: name of the library.
        extra: extra of dfs-deploy that brings it.
    """
    return MissingExtraError(
        f"{module} is not installed and this needs it; run: {install_line(extra)}", module=module, extra=extra
    )


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
    """The command that installs dfs-deploy again with an extra, from where it was installed here.

    The package is on no index, so the command names its checkout, wheel, archive or repository. If that is unknown or
    gone, it names the requirements of the extra instead.

    Args:
        extra: name of an extra such as ``export``; ``None`` for the core install.

    Returns:
        A line that begins with ``pip install``.
    """
    wanted = f"[{extra}]" if extra else ""
    checkout = _checkout()
    if checkout is not None:
        return f"pip install -e {_quoted(f'{checkout}{wanted}')}"
    origin = _origin()
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        path = unquote(urlsplit(url).path)
        if Path(path).exists():
            return f"pip install {_quoted(f'{path}{wanted}')}"
    elif url:
        system = origin.get("vcs_info", {})
        if system:
            url = f"{system.get('vcs', 'git')}+{url}@{system.get('commit_id', 'HEAD')}"
        return f"pip install {_quoted(f'{NAME}{wanted} @ {url}')}"
    named = [_quoted(each) for each in dict.fromkeys(_requirements(extra))]
    return " ".join(["pip install", *named]) if named else f'pip install ".{wanted}" in a checkout of {NAME}'


def _checkout() -> Path | None:
    """The source tree that this package is imported from."""
    folder = Path(__file__).resolve().parents[2]
    try:
        return folder if _PROJECT.search((folder / "pyproject.toml").read_text(errors="replace")) else None
    except OSError:  # installed, not in its source tree
        return None


def _origin() -> dict[str, Any]:
    """Record of where the installer got the package from (PEP 610); empty if there is none."""
    try:
        said = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _requirements(extra: str | None) -> Iterator[str]:
    """Requirements of an extra, or of the core install for ``None``; without dfs-deploy itself."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        of = _EXTRA.search(marker)
        if (of[1] if of else None) != extra:
            continue
        ours = re.fullmatch(rf"{NAME}\[([\w,-]+)\]", requirement.replace(" ", ""))
        if ours:
            for other in ours[1].split(","):
                yield from _requirements(other)
        else:
            rest = _EXTRA.sub("", marker).strip()
            yield f"{requirement}; {rest}" if rest else requirement


def _quoted(word: str) -> str:
    """A word quoted for a shell: in double quotes, as people write it, if they suffice."""
    return f'"{word}"' if re.fullmatch(r"[^\"$`\\!]+", word) else shlex.quote(word)
