"""``dfs-deploy run``: classify images, videos or a camera's view, and show the paths."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dfs_deploy.cli.arguments import (
    BudgetOption,
    CacheOption,
    JsonOption,
    PlanOption,
    PreparedOption,
    ThreadsOption,
    bundle_path,
)
from dfs_deploy.cli.classified import Classified, cells, classify, legend
from dfs_deploy.cli.console import errors, output, print_json, progress, show_table
from dfs_deploy.errors import CheckFailedError, DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dfs_deploy.cli.live import Tally
    from dfs_deploy.runtimes import Runtime

_CLASSES_SHOWN = 3
_READ_AHEAD = 16


def run(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE|INPUT",
            help="Images, folders of images, or videos; the first may be a bundle (if not, the only one in"
            " the current directory runs).",
        ),
    ] = None,
    camera: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Camera to watch: 0 for /dev/video0, or a device.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Frames to classify of each video or the camera.", show_default="all"),
    ] = None,
    budget: BudgetOption = None,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Classify images, and show what each block did for each of them."""
    from dfs_deploy.bundle import SUFFIX
    from dfs_deploy.cli.live import watch
    from dfs_deploy.data import read_camera, read_video
    from dfs_deploy.runtimes import Runtime

    given = inputs or []
    named = bool(given) and _is_meant_as_bundle(given[0])
    wanted = given[1:] if named else given
    if late := next((path for path in wanted if path.suffix == SUFFIX and path.is_dir()), None):
        raise UsageError(f"{late} is a bundle, expected one at most, before the images; name it first")
    bundle = bundle_path(given[0] if named else None)
    if not wanted and camera is None:
        raise UsageError("no input given; name images, folders or videos after the bundle, or a --camera")
    files, videos, unlisted = _listed(wanted)
    if unlisted and not files and not videos and camera is None:
        raise DataError(unlisted[0][1])
    with Runtime(bundle, threads=threads, plan=plan, prepared=prepared, budget=budget) as runtime:
        size = runtime.input.geometry
        results, bad = _classify_files(runtime, files, quiet=json or len(files) < 2)
        tallies = [
            watch(runtime, read_video(path, size), str(path), frames, quiet=json, endless=False) for path in videos
        ]
        if camera is not None:
            tallies.append(watch(runtime, read_camera(camera, size), camera, frames, quiet=json, endless=True))
        options = list(runtime.options)
    count = len(files) + len(tallies) + len(unlisted)
    bad = unlisted + bad + [(tally.file, tally.error) for tally in tallies if tally.error is not None]
    if json:
        print_json(
            {
                "bundle": str(bundle),
                "budget": budget,
                "results": [{**_named(str(file)), **result.as_json()} for file, result in results],
                "videos": [{**_named(tally.file), **tally.as_json()} for tally in tallies],
                "errors": [{**_named(name), "message": message} for name, message in bad],
            }
        )
    else:
        title = str(bundle) if budget is None else f"{bundle}, budget {budget}"
        if results:
            _show_images(title, results)
        if any(tally.frames for tally in tallies):
            _show_videos(title, tallies)
        if results or any(tally.frames for tally in tallies):
            output().print(legend(options))
        for _, message in bad if len(bad) > 1 else ():
            errors().print(f"unread: {message}")
    if len(bad) == 1:
        raise CheckFailedError(bad[0][1] if count == 1 else f"1 of {count} inputs could not be read: {bad[0][1]}")
    if bad:
        raise CheckFailedError(
            f"{len(bad)} of {count} input(s) could not be read, as {bad[0][0]}; repair or remove them"
        )


def _is_meant_as_bundle(path: Path) -> bool:
    """Whether the first argument is a bundle, or a file of another kind that was given in its place."""
    from dfs_deploy.bundle import SUFFIX
    from dfs_deploy.io.kinds import kind_of

    kind = kind_of(path)
    return path.suffix == SUFFIX or (
        kind is not None and kind.role in ("bundle", "checkpoint", "data", "model", "part")
    )


def _listed(wanted: Sequence[Path]) -> tuple[list[Path], list[Path], list[tuple[str, str]]]:
    """Images and videos among the inputs, and name and reason of each input that cannot be listed.

    Raises:
        DataError: an input does not exist, or is a folder without images: the call is wrong, and nothing is run.
    """
    from dfs_deploy.data import VIDEO_SUFFIXES, list_images

    files: list[Path] = []
    videos: list[Path] = []
    unlisted: list[tuple[str, str]] = []
    for path in wanted:
        if path.is_symlink() and not path.exists():  # probably matched by a shell's pattern
            unlisted.append((str(path), f"{path} is a link to nothing; remove it"))
        elif path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
            if not path.is_file():
                raise DataError(f"no video at {path}; check the path")
            videos.append(path)
        else:
            files += list_images(path, lambda entry, error: unlisted.append((str(entry), str(error))))
    return files, videos, unlisted


def _why(path: Path, error: DataError) -> str:
    """The reason why an input cannot be run: that it is something else, if its content shows that."""
    from dfs_deploy.io.kinds import given_instead

    return given_instead(path, "an image, a folder of images or a video", "image") or str(error)


def _named(file: str) -> dict[str, str]:
    """Keys that name a file in ``run --json``; with a URI if the name is not Unicode text."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return {"file": file, "file_uri": Path(file).absolute().as_uri()}
    return {"file": file}


def _classify_files(
    runtime: Runtime, files: Sequence[Path], quiet: bool
) -> tuple[list[tuple[Path, Classified]], list[tuple[str, str]]]:
    """Results of the files that can be read, and name and message of those that cannot."""
    from dfs_deploy.data import load_image
    from dfs_deploy.data.ahead import done_ahead

    geometry = runtime.input.geometry

    def read(file: Path) -> NDArray[np.uint8] | DataError:
        try:
            return load_image(file, geometry)
        except DataError as error:
            return error

    results, bad = [], []
    with progress(quiet) as report, contextlib.closing(done_ahead(read, files, _READ_AHEAD)) as images:
        for done, (file, image) in enumerate(zip(files, images, strict=True)):
            report(f"classifying {len(files)} images", done / len(files))
            if isinstance(image, DataError):
                bad.append((str(file), _why(file, image)))
            else:
                results.append((file, classify(runtime, image)))
    return results, bad


def _show_images(title: str, results: Sequence[tuple[Path, Classified]]) -> None:
    rows: list[list[str | Text]] = [
        [
            str(file),
            result.label,
            f"{result.probability:.3f}",
            cells(result.path),
            f"{result.computation_percentage:.1f} %",
        ]
        for file, result in results
    ]
    show_table(title, ["file", "class", "probability", "path", "computation"], rows)


def _show_videos(title: str, tallies: Sequence[Tally]) -> None:
    rows: list[list[str | Text]] = []
    for tally in tallies:
        if tally.last is not None:
            common = [f"{name} {100 * n / tally.frames:.0f} %" for name, n in tally.classes.most_common(_CLASSES_SHOWN)]
            rows.append(
                [
                    tally.file,
                    str(tally.frames),
                    f"{tally.frames_per_s:.1f}",
                    f"{tally.computation_percentage:.1f} %",
                    ", ".join(common),
                    cells(tally.last.path),
                ]
            )
    columns = ["video", "frames", "frames/s", "computation", "classes", "last path"]
    show_table(f"{title}; frames/s: decoding, resizing and classifying", columns, rows)
