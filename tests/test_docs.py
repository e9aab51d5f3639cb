"""The pages under docs/ name commands, flags and files that exist."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path

from tests.cli.program import run

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, whole ones in blocks and those in running text, without the program's name."""
    text = page.read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).split("\n")
    inline = re.findall(
        r"`(dfs-deploy [a-z][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " ")
    )
    lines = [line.split("#")[0].split(">")[0].strip() for line in (*blocks, *inline)]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dfs-deploy ")]


@functools.cache
def usage(verb: str) -> str:
    ran = run(verb, "--help")
    assert ran.code == 0, verb
    return ran.out


def test_every_command_and_flag_exists() -> None:
    for page in PAGES:
        for verb, *arguments in commands(page):
            if verb.isupper() or verb.startswith("-"):
                continue  # a word for any verb, or a flag before it
            for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
                assert re.search(rf"{re.escape(flag)}\b", usage(verb)), (page.name, verb, flag)


def test_every_file_of_ours_exists() -> None:
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"`((?:dfs_deploy|tests|examples|benchmarks)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), (page.name, path)
        for module in re.findall(r"python -m (benchmarks\.\w+)", text):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), (page.name, module)


def test_the_page_on_the_jetson_has_the_whole_way() -> None:
    assert {verb for verb, *_ in commands(ROOT / "docs" / "jetson.md")} == {"doctor", "export", "prepare", "bench"}


def messages() -> str:
    """Every string literal of the package, with ``...`` for what is filled in, one per line."""
    found = []
    for file in sorted((ROOT / "dfs_deploy").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_of_the_troubleshooting_page_is_one_of_ours() -> None:
    known = messages()
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert quoted
    for message in quoted:
        parts = (re.escape(part) for part in message.strip(". ").split("..."))
        assert re.search("[^\n]*?".join(parts), known), message


def test_no_line_is_too_long_to_read() -> None:
    for page in (*PAGES, ROOT / "README.md"):
        long = [line for line in page.read_text().splitlines() if len(line) > 160 and not line.startswith("|")]
        assert not long, (page.name, long[0])
