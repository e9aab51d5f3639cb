from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy import data
from dfs_deploy.geometry import Geometry
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.cli.program import run
from tests.data.pictures import save_clip
from tests.settled import pixels


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames without loss, of the network's own size."""
    pytest.importorskip("av")
    return save_clip(tmp_path_factory.mktemp("clips") / "clip.mkv", pixels(6, seed=5))


KEYS = {"file", "class", "class_name", "probability", "path", "computation_percentage"}


def test_each_file_gets_its_class_and_its_path(mixed: Made, pictures: Path) -> None:
    files = [pictures / "b.png", pictures / "a.png"]
    ran = run("run", mixed.path, *files, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["bundle"] == str(mixed.path)
    results = ran.json["results"]
    assert [entry["file"] for entry in results] == [str(file) for file in files], "in the order given"
    with Runtime(mixed.path) as runtime:
        expected = runtime(pixels(3)[[1, 0]])
    for row, entry in enumerate(results):
        assert entry.keys() == KEYS
        assert entry["class"] == expected.classes[row]
        assert entry["class_name"] == "abcdefghij"[entry["class"]]
        assert entry["path"] == [("skip", "8", "16", "full")[option] for option in expected.path[row]]
        assert entry["computation_percentage"] == pytest.approx(float(expected.computation_percentage[row]))
        odds = np.exp(expected.logits[row].astype(float) - expected.logits[row].max())
        assert entry["probability"] == pytest.approx(odds.max() / odds.sum(), rel=1e-3)


def test_folders_are_searched(mixed: Made, pictures: Path) -> None:
    results = run("run", mixed.path, pictures, pictures / "a.png", "--json").json["results"]
    assert [Path(entry["file"]).name for entry in results] == ["a.png", "b.png", "c.png", "a.png"]


def test_a_person_sees_a_table_and_what_its_cells_mean(mixed: Made, pictures: Path) -> None:
    ran = run("run", mixed.path, pictures)
    assert ran.code == 0
    for word in ("a.png", "c.png", "probability", "computation", "path: one cell per block", "skip", "full"):
        assert word in ran.out
    assert ran.err == "classifying 3 images ...\n"
    assert "\x1b" not in ran.out, "a pipe gets no colours"


def test_without_colour_the_cells_say_the_same(mixed: Made, pictures: Path) -> None:
    entries = run("run", mixed.path, pictures, "--json").json["results"]
    lines = run("run", mixed.path, pictures).out.splitlines()
    for entry in entries:
        (line,) = [line for line in lines if line.startswith(entry["file"])]
        shown = line.split("│")[3].split()
        assert shown == [{"skip": "·", "full": "F"}.get(option, option) for option in entry["path"]]


def test_one_image_says_nothing_of_progress(mixed: Made, pictures: Path) -> None:
    assert run("run", mixed.path, pictures / "a.png").err == ""


def test_a_budget_decides_what_is_computed(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    point = {"computation_percentage": 0.0, "top1": None, "latency_ms": None, "samples": 1}
    records = [{"budget": 0.01, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    frugal, lavish = (run("run", bundle, pictures, "--budget", budget, "--json").json for budget in ("0.01", "0.9"))
    assert (frugal["budget"], lavish["budget"]) == (0.01, 0.9)
    assert {option for entry in lavish["results"] for option in entry["path"]} == {"full"}
    assert {option for entry in frugal["results"] for option in entry["path"]} == {"skip"}
    assert "mixed.dfs, budget 0.9" in run("run", bundle, pictures, "--budget", "0.9").out
    run("run", bundle, pictures, "--budget", "0.95").failed(2, "budget 0.95")


# Videos and cameras


def test_a_video_is_counted_frame_by_frame(mixed: Made, pictures: Path, clip: Path) -> None:
    ran = run("run", mixed.path, pictures / "a.png", clip, "--json")
    assert (ran.code, ran.err) == (0, "")
    (entry,) = ran.json["videos"]
    with Runtime(mixed.path) as runtime:
        expected = runtime(pixels(6, seed=5))
    names = ["abcdefghij"[label] for label in expected.classes]
    assert (entry["file"], entry["frames"]) == (str(clip), 6)
    assert entry["classes"] == dict(Counter(names).most_common())
    assert entry["last"]["class_name"] == names[-1]
    assert entry["last"]["path"] == [("skip", "8", "16", "full")[option] for option in expected.path[-1]]
    assert entry["computation_percentage"] == pytest.approx(float(expected.computation_percentage.mean()))
    assert entry["frames_per_s"] == pytest.approx(6 / entry["seconds"])
    assert len(ran.json["results"]) == 1
    shown = run("run", mixed.path, clip, "--frames", "4")
    assert (shown.code, shown.err) == (0, f"classifying {clip} ...\n")
    assert "frames/s" in shown.out
    assert run("run", mixed.path, clip, "--frames", "4", "--json").json["videos"][0]["frames"] == 4


def test_a_damaged_video_is_named_and_the_rest_goes_on(mixed: Made, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    ran = run("run", mixed.path, tmp_path / "text.mp4", clip, "--json")
    ran.failed(1, "1 of 2", "text.mp4")
    assert [entry["frames"] for entry in ran.json["videos"]] == [0, 6]
    assert "text.mp4" in ran.json["errors"][0]["message"]


def test_a_camera_is_watched_until_the_user_stops(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def camera(device: str, size: Geometry) -> Iterator[NDArray[np.uint8]]:
        assert (device, size) == ("0", Geometry((8, 8)))
        yield from pixels(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "read_camera", camera)
    ran = run("run", mixed.path, "--camera", "0", "--json")
    assert ran.code == 0, "Ctrl-C is how a camera's view ends"
    assert [entry["frames"] for entry in ran.json["videos"]] == [5]


def test_a_terminal_gets_a_live_counter(mixed: Made, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    ran = run("run", mixed.path, clip)
    assert ran.code == 0
    assert "6 frames" in ran.err
    assert "\x1b[30;" in ran.out, "coloured cells"


def test_a_video_without_its_extra(mixed: Made, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    run("run", mixed.path, clip, "--json").failed(3, "pip install -e", "[video]")
    run("run", mixed.path, "--camera", "0", "--json").failed(3, "pip install -e", "[video]")


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(
    mixed: Made, pictures: Path, tmp_path: Path
) -> None:
    whole = (pictures / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/text.png").write_text("no image")
    (tmp_path / "good.png").write_bytes(whole)
    ran = run("run", mixed.path, tmp_path, pictures / "b.png", "--json")
    ran.failed(1, "2 of 4", "broken.png")
    assert [Path(entry["file"]).name for entry in ran.json["results"]] == ["good.png", "b.png"]
    assert [Path(entry["file"]).name for entry in ran.json["errors"]] == ["broken.png", "text.png"]
    assert "damaged" in ran.json["errors"][0]["message"]
    shown = run("run", mixed.path, tmp_path)
    assert shown.code == 1
    assert "good.png" in shown.out
    assert [line.split(":")[0] for line in shown.err.splitlines()[1:]] == ["unread", "unread", "error"]
    assert "broken.png is a damaged image" in shown.err


def test_one_input_that_cannot_be_read_is_one_line(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for arguments in ([tmp_path / "text.png"], [tmp_path / "text.png", "--json"], [pictures / "a.png", tmp_path]):
        ran = run("run", mixed.path, *arguments)
        last = [line for line in ran.err.splitlines() if "..." not in line]
        assert (ran.code, len(last)) == (1, 1), ran.err
        assert last[0].startswith("error: ")
        assert "text.png" in last[0]


def test_inputs_that_are_not_there(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing.png", "missing.mp4", "empty"):
        ran = run("run", mixed.path, pictures / "a.png", tmp_path / name, "--json")
        ran.failed(2, name)
        assert ran.out == "", "nothing runs before every input is there"


# Inputs that cannot be read


def test_a_bundle_comes_before_the_images(mixed: Made, pictures: Path) -> None:
    run("run", mixed.path, pictures / "a.png", mixed.path).failed(
        2, "is a bundle, expected one at most, before the images"
    )
    last = run("run", pictures / "a.png", mixed.path)  # no bundle in the current directory
    last.failed(2, f"{mixed.path} is a bundle", "name it first")


def test_a_folder_goes_on_past_what_cannot_be_listed(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "within").mkdir(parents=True)
    for name in ("a.png", "within/c.png"):
        (folder / name).write_bytes((pictures / name).read_bytes())
    (folder / "gone.png").symlink_to("/nowhere.png")
    (folder / "within" / "loop.png").symlink_to("loop.png")
    (folder / "outside.png").symlink_to(pictures / "b.png")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = run("run", mixed.path, folder, "--json")
    ran.failed(1, "4 of 6")
    assert [Path(entry["file"]).name for entry in ran.json["results"]] == ["a.png", "c.png"]
    named = {Path(entry["file"]).name: entry["message"] for entry in ran.json["errors"]}
    assert named.keys() == {"gone.png", "loop.png", "outside.png", "damaged.png"}
    assert "link" in named["gone.png"]
    shown = run("run", mixed.path, folder)
    assert shown.err.count("unread: ") == 4
    assert "c.png" in shown.out


def test_a_folder_that_cannot_be_read_is_named(
    mixed: Made, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.png").write_bytes((pictures / "a.png").read_bytes())
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))  # modes bind no superuser
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ran = run("run", mixed.path, tmp_path, "--json")
    ran.failed(1, "1 of 2", "shut")
    assert len(ran.json["results"]) == 1


def test_a_link_to_nothing_among_the_arguments_is_as_one_in_a_folder(
    mixed: Made, pictures: Path, tmp_path: Path
) -> None:
    """A shell's pattern names it."""
    (tmp_path / "gone.png").symlink_to("/nowhere.png")
    ran = run("run", mixed.path, tmp_path / "gone.png", pictures / "a.png", "--json")
    ran.failed(1, "1 of 2", "gone.png")
    assert len(ran.json["results"]) == 1
    run("run", mixed.path, tmp_path / "gone.png").failed(2, "gone.png", "link to nothing")


def test_an_input_of_another_kind_is_named_as_what_it_is(mixed: Made, pictures: Path) -> None:
    ran = run("run", mixed.path, pictures / "a.png", mixed.data_file, mixed.checkpoint, "--json")
    ran.failed(1, "2 of 3")
    assert len(ran.json["results"]) == 1
    messages = [entry["message"] for entry in ran.json["errors"]]
    assert "is an .npz archive of arrays, expected an image" in messages[0]
    assert "is a PyTorch checkpoint, expected an image" in messages[1]
