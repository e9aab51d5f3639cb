"""The tutorial's programs and commands, run in order, word for word but for the length of training and timing."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import run

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()

_SHORT = {
    "train": ("--backbone-steps", "20", "--gate-steps", "8", "--joint-steps", "12"),
    "bench": ("--min-seconds", "0.05", "--max-seconds", "0.05", "--min-iterations", "4", "--start-ups", "0"),
}
"""Flags that make a verb short, in place of the page's own if both say the same."""


_LESS = {
    "min_seconds=1": "min_seconds=0.05, max_seconds=0.05, min_iterations=4",
    'load_digits("train")': 'load_digits("train").subset(256, 0)',
    'load_digits("test")': 'load_digits("test").subset(128, 0)',
}
"""What makes a program of the page short."""


def steps() -> Iterator[tuple[str, str]]:
    """The page's steps in order: a program's name and text, or ``sh`` and a command."""
    for name, program, commands in re.findall(r'```python title="(\S+)"\n(.*?)```|```sh\n(.*?)```', PAGE, re.DOTALL):
        if name:
            yield name, program
        yield from (("sh", line) for line in commands.splitlines())


def shortened(words: list[str]) -> list[str]:
    """A command of ``dfs-deploy`` with what makes it short."""
    flags = _SHORT.get(words[0], ())
    for flag in flags[::2]:
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return [*words, *flags]


def test_the_tutorial_leads_to_a_running_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []
    for name, text in steps():
        if name != "sh":
            for long, short in _LESS.items():
                text = text.replace(long, short)
            (tmp_path / name).write_text(text)
            continue
        program, *words = shlex.split(text)
        ran.append(" ".join([program, words[0]]))
        if program == "dfs-deploy":
            found = run(*shortened(words))
            assert found.code == 0, (text, found)
        elif program == "python":
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (text, done.stderr)
            if words[0] == "app.py":
                assert re.fullmatch(r"class \d at \d+ % of the computation\npath: .*\n", done.stdout)
        else:
            assert program == "pip", text
    assert ran == [
        "pip install",
        "python get_data.py",
        "dfs-deploy train",
        "dfs-deploy export",
        "dfs-deploy verify",
        "dfs-deploy bench",
        "python app.py",
        "python check.py",
    ]
