from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import dfs_deploy
from dfs_deploy import errors
from dfs_deploy.bundle import Bundle
from dfs_deploy.cli import console
from dfs_deploy.cli.app import app
from dfs_deploy.errors import ExportMismatchError
from tests.bundles import Made, copied
from tests.cli.program import VERBS, run, run_apart


def test_help_names_every_verb() -> None:
    for arguments in (["--help"], ["-h"]):
        ran = run(*arguments)
        assert ran.code == 0
        for verb in VERBS:
            assert re.search(rf"\b{verb}\b", ran.out), verb


def test_every_verb_has_help_that_is_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    assert set(commands) >= set(VERBS)
    for verb, command in commands.items():
        ran = run(verb, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert "--json" in ran.out, verb
        shown = ran.out
        words = set(re.split(r"[^-\w]+", shown))
        flags = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        assert flags <= words, verb
        assert "…" not in shown
        assert not re.search(r"<(str|int|float|path|list)\b|\(none\)", shown), verb
        assert {"-v", "--debug"} <= words, verb
        assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in run("--help").out.partition("Commands")[2]


def test_without_a_verb_help_is_shown() -> None:
    ran = run()
    assert "Usage" in ran.out + ran.err
    assert ran.code in (0, 2)


def test_version() -> None:
    assert run("--version").out.strip() == f"dfs-deploy {dfs_deploy.__version__}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], ["no such command 'fly'", "run: dfs-deploy --help"]),
        (["--debugg"], ["--debugg", "run: dfs-deploy --help"]),
        (["inspect", "--fast"], ["--fast", "run: dfs-deploy inspect --help"]),
        (["bench", "--seed", "none"], ["--seed", "integer", "run: dfs-deploy bench --help"]),
        (["export", "net.pt", "--weight-bits", "3"], ["--weight-bits", "7", "run: dfs-deploy export --help"]),
    ],
)
def test_what_the_parser_refuses_is_one_line_that_names_the_help(arguments: list[str], words: list[str]) -> None:
    run(*arguments).failed(2, *words)


def test_an_error_is_one_line_and_its_kind_decides_the_exit_code(mixed: Made, tmp_path: Path) -> None:
    run("inspect", tmp_path / "missing.dfs").failed(4, "missing.dfs")
    run("bench", mixed.path, "--device", "jupiter").failed(2, "jupiter")


EXIT_CODES = {
    errors.CheckFailedError: 1,
    errors.InternalError: 1,
    errors.UsageError: 2,
    errors.RuntimeClosedError: 2,
    errors.EnvironmentLacksError: 3,
    errors.ArtefactError: 4,
    errors.EngineError: 4,
}


def test_every_error_has_the_exit_code_of_its_kind() -> None:
    for error in vars(errors).values():
        if (
            not isinstance(error, type)
            or not issubclass(error, errors.DfsDeployError)
            or error is errors.DfsDeployError
        ):
            continue
        (code,) = (code for kind, code in EXIT_CODES.items() if issubclass(error, kind))
        assert console.exit_code(error("seen")) == code, error


@pytest.mark.parametrize("words", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_where_it_came_from(tmp_path: Path, words: list[str]) -> None:
    ran = run(*words, tmp_path / "missing.dfs")
    assert ran.code == 4
    assert "Traceback (most recent call last)" in ran.err
    assert "missing.dfs" in ran.err


# The package's log


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the opening of a bundle say something at every level."""
    before = Bundle.__init__

    def init(self: Bundle, path: Path) -> None:
        log = logging.getLogger("dfs_deploy.bundle.artefact")
        for level in ("debug", "info", "warning"):
            getattr(log, level)("%s of %s", level, "a\x1b[2Jb")
        before(self, path)

    monkeypatch.setattr("dfs_deploy.bundle.Bundle.__init__", init)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ([], [], []),
        ([], ["-v"], ["info"]),
        (["-v"], ["-v"], ["debug", "info"]),
        ([], ["-v", "--verbose", "-vv"], ["debug", "info"]),
    ],
)
@pytest.mark.usefixtures("talkative")
def test_the_log_is_shown_as_far_as_was_asked_for(
    mixed: Made, before: list[str], after: list[str], shown: list[str]
) -> None:
    handlers = list(logging.getLogger("dfs_deploy").handlers)
    ran = run(*before, "inspect", mixed.path, *after, "--json")
    assert ran.code == 0
    assert ran.json["path"] == str(mixed.path)
    said = [line for line in ran.err.splitlines() if " of a" in line]
    assert said == [
        *(f"bundle.artefact: {level} of a\\x1b[2Jb" for level in shown),
        "warning: warning of a\\x1b[2Jb",
    ]
    if not shown:
        assert len(ran.err.splitlines()) == 1
    assert logging.getLogger("dfs_deploy").handlers == handlers, "nothing of it stays in the process"


def test_words_after_two_dashes_are_no_flags(mixed: Made, tmp_path: Path) -> None:
    run("run", mixed.path, "--", "-v").failed(2, "-v")


def test_a_process_of_its_own_ends_alike(mixed: Made, tmp_path: Path) -> None:
    ran = run_apart("inspect", mixed.path, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["path"] == str(mixed.path)
    run_apart("inspect", tmp_path / "missing.dfs").failed(4, "missing.dfs")


def test_long_lines_are_not_cut_in_a_pipe(mixed: Made, tmp_path: Path) -> None:
    deep = tmp_path / ("very-" * 30 + "long") / ("deeply-" * 10 + "nested")
    deep.mkdir(parents=True)
    bundle = copied(mixed, deep)
    (bundle / "manifest.json").unlink()
    run_apart("inspect", bundle).failed(4, str(bundle), "manifest.json")


def test_brackets_in_a_message_are_not_taken_for_style(tmp_path: Path) -> None:
    run("inspect", tmp_path / "[bold]net[/bold].dfs").failed(4, "[bold]net[/bold].dfs")


def test_every_mismatch_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise ExportMismatchError("2 engines differ", ["block 1 [x]: error 0.5", "block 2: error 0.7"])

    monkeypatch.setattr("dfs_deploy.exporters.export", fail)
    ran = run("export", "net.pt")
    assert ran.code == 1
    assert ran.err.splitlines() == ["error: 2 engines differ", "  block 1 [x]: error 0.5", "  block 2: error 0.7"]


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfs_deploy.bundle.Bundle.__init__", lambda self, path: interrupted(path))
    ran = run("inspect", "net.dfs")
    assert ran.code == 130
    assert ran.err == "interrupted\n"
    assert ran.out == ""


def test_ctrl_c_ends_a_process_with_one_line() -> None:
    script = (
        "import os, signal, sys, time\n"
        "from dfs_deploy import bundle\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def wait(self, path): os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "bundle.Bundle.__init__ = wait\n"
        "sys.argv = ['dfs-deploy', 'inspect', 'net.dfs']\n"
        "from dfs_deploy.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("arguments", [["inspect"], ["doctor", "--json"]])
def test_a_reader_that_goes_away_ends_it_quietly(mixed: Made, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dfs_deploy", *arguments]
    if "inspect" in arguments:
        command.append(str(mixed.path))
    with os.fdopen(writing, "w") as stream:
        ran = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_json_has_neither_nan_nor_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": float("nan"), "b": [1.5, float("inf"), {"c": (-float("inf"), 2)}], "d": "NaN", "e": None}
    console.print_json(value)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN", "e": None}


def test_progress_in_a_pipe_is_a_line_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as report:
        for share in (0.0, 0.5, 1.0):
            report("calibrating", share)
        report("writing", 0.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["calibrating ...", "writing ..."]
    with console.progress(quiet=True) as report:
        report("calibrating", 0.0)
    assert capsys.readouterr() == ("", "")


def test_the_one_bundle_in_the_directory_is_meant(
    floats: Made, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verify = ["verify", "--checkpoint", floats.checkpoint, "--data", floats.data_file]
    for arguments in (["inspect"], ["prepare"], ["bench"], ["report"], ["run", pictures / "a.png"], verify):
        run(*arguments, "--json").failed(2, "no *.dfs bundle")
    copied(floats, tmp_path)
    for arguments in (["inspect"], ["prepare"], ["run", pictures / "a.png"], verify):
        assert run(*arguments, "--json").code == 0, arguments
    (tmp_path / "second.dfs").mkdir()
    run("inspect").failed(2, "several bundles")


def arguments_with(path: Path, made: Made, place: str) -> list[Path | str]:
    """A call in which a path stands where something else belongs."""
    return {
        "inspect": ["inspect", path],
        "prepare": ["prepare", path],
        "bench": ["bench", path],
        "report": ["report", path, "--json"],
        "run": ["run", path, "photo.png"],
        "verify": ["verify", path, "--checkpoint", made.checkpoint, "--data", made.data_file],
        "export": ["export", path],
        "verify --checkpoint": ["verify", made.path, "--checkpoint", path, "--data", made.data_file],
        "bench --data": ["bench", made.path, "--data", path],
        "verify --data": ["verify", made.path, "--checkpoint", made.checkpoint, "--data", path],
        "export --calibration-data": ["export", made.checkpoint, "--calibration-data", path],
        "train --data": ["train", "--data", path],
    }[place]


BUNDLES = ["inspect", "prepare", "bench", "report", "run", "verify"]
CHECKPOINTS = ["export", "verify --checkpoint"]
DATA = ["bench --data", "verify --data", "export --calibration-data", "train --data"]


@pytest.mark.parametrize(
    ("kind", "places", "words"),
    [
        ("checkpoint", BUNDLES, ["is a PyTorch checkpoint, expected a bundle", "dfs-deploy export"]),
        ("checkpoint", DATA, ["is a PyTorch checkpoint, expected a data set"]),
        ("data", BUNDLES, ["is an .npz archive of arrays, expected a bundle", "--data"]),
        ("data", CHECKPOINTS, ["is an .npz archive of arrays, expected a checkpoint", "--calibration-data"]),
        ("bundle", CHECKPOINTS, ["is a bundle, expected a checkpoint", "made from, "]),
        ("bundle", DATA, ["is a bundle, expected a data set"]),
    ],
)
def test_what_was_given_in_place_of_another_is_named(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, places: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = {"checkpoint": mixed.checkpoint, "data": mixed.data_file, "bundle": mixed.path}[kind]
    for place in places:
        ran = run(*arguments_with(path, mixed, place))
        assert ran.code == (2 if place in DATA else 4), ran
        said = ran.err.splitlines()[-1]  # train says before it what it assumes
        assert said.startswith(f"error: {path}"), ran
        assert all(word in said for word in words), ran
        assert "Traceback" not in ran.err
        assert not list(tmp_path.iterdir())
