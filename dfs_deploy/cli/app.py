"""The command line: one verb a module, each imported when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import dfs_deploy
from dfs_deploy.cli import bench, demo, doctor, export, inspect, run, verify
from dfs_deploy.cli.console import exit_codes

app = typer.Typer(
    name="dfs-deploy",
    help="Deploys networks that choose, per input and per block, what to compute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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


app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("run")(run.run)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point: runs a verb, and ends with the exit code of its error."""
    with exit_codes(debug="--debug" in sys.argv[1:]):
        app()
