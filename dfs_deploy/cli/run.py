"""``dfs-deploy run``: classify files, show the path that each took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from dfs_deploy.cli.arguments import JsonOption, PlanOption, ThreadsOption
from dfs_deploy.cli.console import output, print_json, show_table
from dfs_deploy.errors import UsageError
from dfs_deploy.options import Option

_COLOURS = ((0, "grey37"), (8, "green"), (16, "yellow"), (32, "red"))


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="[BUNDLE] INPUT...", help="Images, or folders of them; a bundle may come first."),
    ],
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    json: JsonOption = False,
) -> None:
    """Classify images, and show what each block did for each of them."""
    import numpy as np

    from dfs_deploy.bundle import SUFFIX, find_bundle
    from dfs_deploy.datasets import list_images, load_image
    from dfs_deploy.manifest import MANIFEST
    from dfs_deploy.runtimes import Runtime

    named = inputs[0].suffix == SUFFIX or (inputs[0] / MANIFEST).is_file()
    bundle, *images = inputs if named else [find_bundle(), *inputs]
    if not images:
        raise UsageError("no input given; name image files or folders after the bundle")
    files = [file for given in images for file in list_images(given)]
    with Runtime(bundle, threads=threads, plan=plan) as runtime:
        names, options = runtime.input.class_names, runtime.options
        results = [(file, runtime(load_image(file, size=runtime.input.shape[1:])[None])) for file in files]
    rows: list[list[str | Text]] = []
    records = []
    for file, result in results:
        label = int(result.classes[0])
        shifted = np.exp(result.logits[0] - result.logits[0].max())
        probability = float(shifted[label] / shifted.sum())
        chosen = [options[int(k)] for k in result.path[0]]
        name = names[label] if names else str(label)
        cost = float(result.computation_percentage[0])
        rows.append([str(file), name, f"{probability:.3f}", _cells(chosen), f"{cost:.1f} %"])
        records.append(
            {
                "file": str(file),
                "class": label,
                "class_name": name,
                "probability": probability,
                "path": [option.name for option in chosen],
                "computation_percentage": cost,
            }
        )
    if json:
        print_json({"bundle": str(bundle), "results": records})
        return
    show_table(f"{bundle}", ["file", "class", "probability", "path", "computation"], rows)
    output().print(Text.assemble("path: one cell a block, ", *(_legend(option) for option in options)))


def _cell(option: Option) -> str:
    return "·" if option.skips else "F" if option.bits == _COLOURS[-1][0] else f"{option.bits}"


def _style(option: Option) -> str:
    return next(colour for bits, colour in _COLOURS if option.bits <= bits)


def _cells(options: list[Option]) -> Text:
    return Text(" ").join(Text(f"{_cell(option):>2}", style=_style(option)) for option in options)


def _legend(option: Option) -> Text:
    return Text(f"{_cell(option)} {option.name}  ", style=_style(option))
