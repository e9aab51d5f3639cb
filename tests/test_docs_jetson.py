"""docs/jetson.md names commands, flags and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.program import run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "jetson.md").read_text()


def test_every_command_and_flag_exists() -> None:
    lines = [
        line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.split("\n")
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dfs-deploy")]
    assert {command[0] for command in commands} == {"doctor", "export", "bench"}
    for verb, *arguments in commands:
        known = run(verb, "--help").out
        for flag in (word for word in arguments if word.startswith("--")):
            assert flag in known, (verb, flag)


def test_every_file_of_ours_exists() -> None:
    for path in re.findall(r"`(dfs_deploy/[\w/.]+)`", PAGE):
        assert (ROOT / path).is_file(), path


def test_what_never_ran_on_hardware_is_marked() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    marked = [heading for heading in headings if heading.endswith("*[not run on hardware]*")]
    assert [heading for heading in headings if heading not in marked] == ["2. The bundle, on the machine that exports"]
