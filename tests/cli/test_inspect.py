from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.weights import distinct_tensors
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.cli.program import run


def test_json_holds_the_manifest_and_what_runs_here(mixed: Made) -> None:
    ran = run("inspect", mixed.path, "--json")
    assert (ran.code, ran.err) == (0, "")
    bundle = Bundle(mixed.path)
    assert ran.json["path"] == str(mixed.path)
    assert ran.json["digest"] == bundle.digest
    assert ran.json["bytes"] == bundle.size
    assert ran.json["tensor_bytes"] == distinct_tensors(bundle)
    assert ran.json["manifest"] == manifest_of(mixed.path)
    here = ran.json["here"]["onnxruntime"]
    assert here["runtime"] == "onnxruntime"
    assert here["gate"]
    assert all({"option", "wanted", "served_by", "reason", "blocks"} == entry.keys() for entry in here["substitutions"])


def test_a_person_sees_what_is_in_it(mixed: Made) -> None:
    ran = run("inspect", mixed.path)
    assert ran.code == 0
    for word in (
        "ResNet-",
        "skip",
        "int8",
        "mixed.pt",
        "minmax",
        "every SHA-256",
        "MB of distinct tensors",
        "top-1",
        "share of images",
    ):
        assert word in ran.out, word


def test_a_person_sees_at_how_many_blocks_an_engine_stands_in(mixed: Made) -> None:
    blocks = Bundle(mixed.path).architecture.gated_blocks
    shown = " ".join(run("inspect", mixed.path).out.split())
    for entry in run("inspect", mixed.path, "--json").json["here"]["onnxruntime"]["substitutions"]:
        words = f"option {entry['option']} runs {entry['served_by']} instead of {entry['wanted']}"
        assert f"{words} at {len(entry['blocks'])} of {blocks} blocks" in shown


def test_a_bundle_without_calibration_or_accuracy(floats: Made, tmp_path: Path) -> None:
    bundle = copied(floats, tmp_path)
    manifest = manifest_of(bundle)
    manifest["accuracy"] = manifest["calibration"] = manifest["samples"] = None
    del manifest["files"]["samples.npz"]
    (bundle / "samples.npz").unlink()
    write_manifest(bundle, manifest)
    ran = run("inspect", bundle)
    assert ran.code == 0
    assert "fp32" in ran.out


def test_a_bundle_that_runs_elsewhere(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    manifest = manifest_of(bundle)
    del manifest["runtimes"]["onnxruntime"]
    write_manifest(bundle, manifest)
    ran = run("inspect", bundle, "--json")
    assert ran.code == 0
    assert "onnxruntime" not in ran.json["here"]
    assert run("inspect", bundle).code == 0


def test_a_changed_file_is_named(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    file = bundle / "common/gate.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for flags in ([], ["--json"]):
        ran = run("inspect", bundle, *flags)
        ran.failed(4, "common/gate.onnx")
        assert ran.out == ""


def test_another_version_is_named(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    write_manifest(bundle, {**manifest_of(bundle), "schema_version": 99})
    run("inspect", bundle).failed(4, "schema version 99", "update dfs-deploy")


EMPTY: dict[str, tuple[list[str | int], object, str]] = {
    "runtimes": (["runtimes"], {}, "engines for no runtime"),
    "blocks": (["runtimes", "onnxruntime", "blocks"], [], "0 blocks after the first"),
    "engines of an option": (["runtimes", "onnxruntime", "blocks", 0, "options", "8"], [], "every option of block 1"),
    "files of the stem": (["runtimes", "onnxruntime", "stem", "files"], {}, "the stem"),
    "options": (["options"], [], "option"),
    "files": (["files"], {}, "not among"),
    "blocks of the architecture": (["architecture", "blocks"], [], "blocks"),
    "static engines": (["runtimes", "onnxruntime", "static"], {}, ""),
    "targets": (["targets"], [], ""),
    "class names": (["input", "class_names"], [], ""),
    "assumptions": (["source", "assumptions"], [], ""),
    "a name of a file": (["source", "file"], "", ""),
}


@pytest.mark.parametrize("part", EMPTY)
def test_an_empty_part_is_shown_or_refused_by_name(mixed: Made, tmp_path: Path, part: str) -> None:
    keys, empty, word = EMPTY[part]
    bundle = copied(mixed, tmp_path)
    values = manifest_of(bundle)
    place: Any = values
    for key in keys[:-1]:
        place = place[key]
    assert place[keys[-1]] or part == "assumptions"
    place[keys[-1]] = empty
    write_manifest(bundle, values)
    ran = run("inspect", bundle)
    if word:
        ran.failed(4, str(bundle), word)
    else:
        assert (ran.code, ran.err) == (0, "")
        assert run("inspect", bundle, "--json").json["manifest"] == values


def test_what_is_not_in_the_manifest_is_named(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    (bundle / ".DS_Store").touch()
    (bundle / "__MACOSX").mkdir()
    (bundle / "a\x1b[2J").touch()
    ran = run("inspect", bundle)
    assert ran.code == 0
    assert r".DS_Store, __MACOSX/, a\x1b[2J: not in the manifest, never read" in ran.out
    assert "\x1b" not in ran.out
    assert run("inspect", bundle, "--json").json["foreign"] == [".DS_Store", "__MACOSX/", "a\x1b[2J"]
