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

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()

_SHORT = {
    "train": ("--backbone-steps", "12", "--joint-steps", "8", "--gate-steps", "4"),
    "verify": ("--max-top1-drop", "0.1", "--min-route-agreement", "0.8", "--max-computation-change", "2"),
    "bench": ("--min-seconds", "0.05", "--max-seconds", "0.05", "--min-iterations", "4", "--start-ups", "0"),
}
"""Flags that make a verb short, or suit a network that has hardly been trained; in place of the page's own."""


_LESS = {
    "data = load_digits(split)": 'data = load_digits(split).subset({"train": 192, "test": 96}[split], 0)',
    "fit(net, 200,": "fit(net, 12,",
    "fit(model, 300,": "fit(model, 6,",
    "min_seconds=1": "min_seconds=0.05, max_seconds=0.05, min_iterations=4",
}
"""What makes a program of the page short."""

_PRINTS = {
    "app.py": r"a \d, at \d\.\d % of the computation\npath: ((skip|8), ){7}(skip|8)\n",
    "notebook.py": r"top-1 \d+\.\d+% at \d\.\d % of the computation\n.+\n",
}
"""Output of the page's programs."""


def steps() -> Iterator[tuple[str, str]]:
    """The page's steps in order: a program's name and text, or ``sh`` and a command."""
    for name, program, commands in re.findall(r'```python title="(\S+)"\n(.*?)```|```sh\n(.*?)```', PAGE, re.DOTALL):
        if name:
            yield name, program
        yield from (("sh", line) for line in commands.replace("\\\n", "").splitlines())


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
    monkeypatch.delitem(sys.modules, "my_network", raising=False)  # if another test has imported one
    ran, used = [], set()
    for name, text in steps():
        if name != "sh":
            for long, short in _LESS.items():
                used |= {long} if long in text else set()
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
            assert re.fullmatch(_PRINTS.get(words[0], ""), done.stdout), (text, done.stdout)
        else:
            assert program == "pip", text
    assert used == set(_LESS)
    assert ran == [
        "pip install",
        "python get_data.py",
        "dfs-deploy blocks",
        "dfs-deploy train",
        "dfs-deploy export",
        "dfs-deploy verify",
        "dfs-deploy export",
        "dfs-deploy bench",
        "python app.py",
        "dfs-deploy run",
        "python notebook.py",
    ]


def test_the_examples_have_the_network_of_the_page() -> None:
    assert dict(steps())["my_network.py"] == (ROOT / "examples" / "my_network.py").read_text()
