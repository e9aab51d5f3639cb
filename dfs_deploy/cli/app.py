"""The command line: one verb per module."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

import dfs_deploy
from dfs_deploy.cli import adapt, bench, blocks, demo, doctor, export, inspect, prepare, report, run, train, verify
from dfs_deploy.cli.console import USAGE, exit_codes, log_shown
from dfs_deploy.cli.process import INTERRUPTED
from dfs_deploy.errors import UsageError

_PROGRAM = "dfs-deploy"


class _Verb(TyperCommand):
    """Command whose help names an argument without the type in Python, and mentions the flags of all verbs."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        self.epilog = f"-v, -vv and --debug may follow a verb, too; {_PROGRAM} --help explains them."
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                vars(parameter)["display_type_rich"] = lambda ctx: None  # newer versions show <path> or <list[Path]>


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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            help="Show what is loaded, cached and replaced; -vv for more. Works before and after a verb.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Works before and after a verb.")
    ] = False,
) -> None:
    """Deploys networks that choose, per input and per block, what to compute."""


# A verb whose first sentence is too long for the list of verbs on a narrow terminal has a shorter one for it.
app.command("export", cls=_Verb, short_help="Split a checkpoint into a gate and block engines, and validate.")(
    export.export
)
app.command("blocks", cls=_Verb, short_help="Find and prove the residual blocks of a network.")(blocks.blocks)
app.command("adapt", cls=_Verb, short_help="Put a gate beside a network, without training.")(adapt.adapt)
app.command("prepare", cls=_Verb, short_help="Make what a runtime needs once per machine.")(prepare.prepare)
app.command("verify", cls=_Verb, short_help="Measure accuracy and routing against the reference.")(verify.verify)
app.command("bench", cls=_Verb, short_help="Time the network against static engines.")(bench.bench)
app.command("report", cls=_Verb, short_help="Write one page on bundles, or figures of training runs.")(report.report)
app.command("run", cls=_Verb)(run.run)
app.command("inspect", cls=_Verb, short_help="Check a bundle's digests and show what is in it.")(inspect.inspect)
app.command("doctor", cls=_Verb)(doctor.doctor)
app.command("train", cls=_Verb, short_help="Train a network, or a baseline.")(train.train)
app.command("demo", cls=_Verb)(demo.demo)


# The error that the parser raises, whether Typer imports Click or, as newer versions do, brings its own copy.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Entry point: runs a verb, and ends with the exit code of its error."""
    arguments, verbosity, debug = _without_general_flags(sys.argv[1:])
    with exit_codes(debug), log_shown(verbosity):
        code = _run(arguments or ["--help"])
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this
            raise KeyboardInterrupt
    sys.exit(code if arguments else USAGE)


def _without_general_flags(words: list[str]) -> tuple[list[str], int, bool]:
    """Takes ``-v`` and ``--debug`` out of a command line, before or after the verb.

    Returns:
        The other words, how many times more was asked for, and whether tracebacks are to be shown.
    """
    end = words.index("--") if "--" in words else len(words)
    counts = [word.count("v") if re.fullmatch("-v+", word) else int(word == "--verbose") for word in words[:end]]
    rest = [word for word, count in zip(words, counts, strict=False) if not count and word != "--debug"]
    return [*rest, *words[end:]], sum(counts), "--debug" in words[:end]


def _run(arguments: list[str]) -> int:
    try:
        # Typer's own handling of errors prints several lines.
        return int(app(arguments, prog_name=_PROGRAM, standalone_mode=False) or 0)
    except typer.Abort as error:  # older versions of Typer turn Ctrl-C into this
        raise KeyboardInterrupt from error
    except _ParserError as error:
        raise UsageError(_one_line(error, arguments)) from error


def _one_line(error: Any, arguments: list[str]) -> str:
    """The parser's message in the form of our own errors."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if error.ctx is not None:
        command = error.ctx.command_path
    else:  # an option without its value; a verb follows only flags
        command = " ".join([_PROGRAM, *[word for word in arguments if not word.startswith("-")][:1]])
    return f"{message[:1].lower()}{message[1:]}; run: {command} --help"
