"""What comes from outside reaches a terminal, a log or a pipe on one line that moves no cursor."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.text import Text

from dfs_deploy.cli import console
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.cli.program import run

HOSTILE = (
    "a\x1b[2J\x1b]0;title\x07b",
    "c\r\nerror: forged",
    "d\u202egnp.exe",
    "e\x9b31mf",
    "g\u2028h\u0085i\x0bj",
    "k\x00l\x7fm\ttab",
    "n\udce9o",
    "p\u200bq\ufeff",
    "[bold]r[/bold] :smile:",
)

ALL = " ".join(HOSTILE)


def safe(text: str) -> bool:
    """Whether nothing but our own ends of lines is invisible."""
    return all(
        unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn") for sign in text.replace("\n", "")
    )


def test_every_way_to_print_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:
        console.output().print(text)
        console.output().print(Text.assemble(("error: ", "bold red"), text))
        console.output().print("a", text, Text(text))
        console.output().print(Group(text))
        out = capsys.readouterr().out
        assert out.count("\n") == 4
        assert safe(out)
        assert "[bold]" in out or "[bold]" not in text, "no style is taken from it"


@given(st.text(max_size=60))
def test_any_text_is_one_line(text: str) -> None:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        console.output().print(text)
        console.output().print(Text.assemble("x", (text, "bold")))
    assert stream.getvalue().count("\n") == 2
    assert safe(stream.getvalue())


def test_a_table_keeps_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[list[str | Text | Group]] = [[text, Text("ok", "green"), text] for text in HOSTILE]
    console.show_table(ALL, ["name", ALL, "again"], rows)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) == 3 + len(HOSTILE)
    assert safe(out)
    assert len({line.index("│") for line in lines[3:]}) == 1, "columns stay aligned"


def test_progress_is_a_line_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as report:
        report(ALL, 0.0)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert safe(err)


def test_progress_on_a_terminal_takes_neither_escapes_nor_styles_from_outside() -> None:
    script = (
        "import sys; from dfs_deploy.cli import console\n"
        "with console.progress() as report: report('x' + chr(27) + ']0;owned' + chr(7) + chr(8238) + '[red]y', 0.5)\n"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is gone
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait() == 0
    assert b"x\\x1b]0;owned" in seen
    assert b"\x1b]0;" not in seen
    assert "\u202e".encode() not in seen
    assert b"[red]y" in seen


# The verbs


@pytest.fixture
def hostile(mixed: Made, tmp_path: Path) -> Path:
    """A bundle whose every free string is hostile, without what JSON itself cannot hold."""
    bundle = copied(mixed, tmp_path)
    manifest = manifest_of(bundle)
    text = ALL.replace("\udce9", "")
    manifest["source"]["file"] = text
    manifest["producer"]["version"] = text
    manifest["architecture"]["name"] = text
    manifest["input"]["class_names"] = [f"{i}{text}" for i in range(len(manifest["input"]["class_names"]))]
    write_manifest(bundle, manifest)
    return bundle


def test_no_verb_lets_a_bundle_speak_to_the_terminal(hostile: Path, pictures: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for i, name in enumerate(HOSTILE):
        if "\0" not in name:
            os.link(pictures / "a.png", odd / f"{i}{name.replace('/', '_')}.png")
    (odd / "z\x1b[2J\n.png").write_text("no image")
    count = 0
    for arguments in (["inspect", hostile], ["run", hostile, odd]):
        ran = run(*arguments)
        assert safe(ran.out), arguments
        assert safe(ran.err), arguments
        count += len(ran.out.splitlines())
        ran = run(*arguments, "--json")
        assert safe(ran.out), arguments
        assert ran.out.isascii()
        assert isinstance(json.loads(ran.out), dict)
    assert count > 10
    assert not any(line.startswith("error: forged") for line in ran.err.splitlines())


def test_an_unforeseen_error_shows_its_place_and_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, path: object) -> None:
        raise AttributeError(ALL)

    monkeypatch.setattr("dfs_deploy.bundle.Bundle.__init__", fail)
    ran = run("inspect", "net.dfs")
    assert ran.code == 1
    assert safe(ran.err)
    assert "Traceback" in ran.err
    assert "please report it" in ran.err.splitlines()[-1]


def test_a_traceback_that_was_asked_for_is_clean_as_well(tmp_path: Path) -> None:
    ran = run("--debug", "inspect", tmp_path / "a\x1b[2J\u202e.dfs")
    assert ran.code == 4
    assert "Traceback" in ran.err
    assert safe(ran.err)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, path: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dfs_deploy.bundle.Bundle.__init__", fail)
    run("inspect", "net.dfs").failed(3, "memory")
