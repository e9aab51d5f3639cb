"""How dfs-deploy was installed, and the command that adds to it or repairs it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "dfs-deploy"

_PROJECT = re.compile(rf'^name = "{NAME}"$', re.MULTILINE)
_EXTRA = re.compile(r"""(?:\s+and\s+)?extra\s*==\s*['"]([\w-]+)['"](?:\s+and\s+)?""")


def install_line(extra: str | None = None) -> str:
    """The command that installs dfs-deploy again with an extra; true for how it was installed here.

    The name is on no package index, so it is said where the package is: its checkout, wheel, archive or repository. If
    that is unknown or gone, the command names what the extra requires instead.

    Args:
        extra: name of an extra such as ``export``; ``None`` for what every install needs.

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
    """What the installer noted of where the package came from (PEP 610); empty if it noted nothing."""
    try:
        said = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _requirements(extra: str | None) -> Iterator[str]:
    """Requirements that an extra adds, or that every install has, without dfs-deploy itself."""
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
    """A word for a shell, in double quotes, as everyone writes it, unless it needs others."""
    return f'"{word}"' if re.fullmatch(r"[^\"$`\\!]+", word) else shlex.quote(word)
