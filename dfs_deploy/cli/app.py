"""The command line: one verb a module, each imported when it runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import dfs_deploy
from dfs_deploy.cli import bench, demo, doctor, export, inspect, prepare, report, run, train, verify
from dfs_deploy.cli.console import exit_codes
from dfs_deploy.cli.process import INTERRUPTED
from dfs_deploy.errors import UsageError

_PROGRAM = "dfs-deploy"

app = typer.Typer(
    name=_PROGRAM,
    help="Deploys networks that choose, per input and per block, what to compute.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich's table cuts long flags off on a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dfs-deploy {dfs_deploy.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Deploys networks that choose, per input and per block, what to compute."""


# Where a verb's first sentence is too long for the list of verbs on a narrow terminal, it has a shorter one there.
app.command("export", short_help="Split a checkpoint into a gate and block engines, and validate.")(export.export)
app.command("prepare", short_help="Make what a runtime wants once on each machine.")(prepare.prepare)
app.command("verify", short_help="Measure accuracy and routing against the reference.")(verify.verify)
app.command("bench", short_help="Time the network against static engines.")(bench.bench)
app.command("report", short_help="Write one page on bundles, or figures of training runs.")(report.report)
app.command("run")(run.run)
app.command("inspect", short_help="Check a bundle's digests and show what is in it.")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("train", short_help="Train a network, or a baseline.")(train.train)
app.command("demo")(demo.demo)


# Typer brings its own copy of Click or imports it, by its version; either way this is what the parser raises.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Entry point: runs a verb, and ends with the exit code of its error."""
    arguments = sys.argv[1:]
    with exit_codes(debug="--debug" in arguments):
        code = _run(arguments or ["--help"])
        if code == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
    sys.exit(code if arguments else UsageError.exit_code)


def _run(arguments: list[str]) -> int:
    try:
        # Typer's own handling of errors prints several lines.
        return int(app(arguments, prog_name=_PROGRAM, standalone_mode=False) or 0)
    except typer.Abort as error:  # what older versions of Typer make of Ctrl-C
        raise KeyboardInterrupt from error
    except _ParserError as error:
        raise UsageError(_one_line(error, arguments)) from error


def _one_line(error: Any, arguments: list[str]) -> str:
    """What the parser says, as our own errors say it."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if error.ctx is not None:
        command = error.ctx.command_path
    else:  # an option without its value; a verb follows only flags
        command = " ".join([_PROGRAM, *[word for word in arguments if not word.startswith("-")][:1]])
    return f"{message[:1].lower()}{message[1:]}; run: {command} --help"
