from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.runtimes.onnxruntime import prepared
from dfs_deploy.runtimes.onnxruntime.blocked import block_size
from tests.bundles import Made, copied, wide_bundle
from tests.cli.program import run
from tests.runtimes.tensorrt.machine import building_here, machine


def test_engines_are_built_once(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    with machine(), building_here():
        ran = run("prepare", bundle, "--runtime", "tensorrt", "--batch", "4", "--workspace", "64", "--json")
        assert ran.code == 0, ran
        assert (ran.json["batch"], ran.json["workspace_mib"], ran.json["kept"]) == (4, 64, 0)
        assert ran.json["device"]["compute_capability"] == "8.7"
        again = run("prepare", bundle, "--runtime", "tensorrt", "--batch", "4", "--workspace", "64")
        seen = run("inspect", bundle, "--json").json["here"]["tensorrt"]
        shown = run("inspect", bundle)
    assert again.code == 0
    assert f"{len(ran.json['built'])} kept" in again.out
    assert (seen["engines"], seen["engines_ready"], seen["batch"]) == (len(ran.json["built"]),) * 2 + (4,)
    assert f"{seen['engines']} of {seen['engines']} engines ready" in shown.out


def test_a_build_that_fails_is_one_line(mixed: Made, tmp_path: Path) -> None:
    with machine(DOUBLE_BUILD_FAULT="refused:stem"):
        ran = run("prepare", copied(mixed, tmp_path), "--runtime", "tensorrt", "--json")
    ran.failed(4, "the stem", "any implementation")
    assert ran.out == ""


def test_onnxruntime_takes_a_narrow_bundle_as_it_is(mixed: Made) -> None:
    ran = run("prepare", mixed.path)
    assert (ran.code, ran.err) == (0, "")
    assert "nothing to prepare" in ran.out
    assert run("prepare", mixed.path, "--json").json["folder"] is None
    assert "layout: plain: " in run("inspect", mixed.path).out


@pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")
def test_onnxruntime_engines_are_made_once_and_mended(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = copied(wide_bundle(tmp_path_factory), tmp_path)
    first = run("prepare", bundle, "--json").json
    assert first["made"]
    assert first["together"] == block_size()
    assert not run("prepare", bundle, "--json").json["made"]
    assert "there already" in run("prepare", bundle).out
    damaged = next(Path(first["folder"]).glob("prepared-*"))
    damaged.write_bytes(b"")
    assert run("prepare", bundle, "--json").json["made"]
    assert not run("prepare", bundle, "--json").json["made"]
    assert all(file.read_bytes() for file in Path(first["folder"]).iterdir())


@pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")
def test_what_cannot_be_prepared_fails_and_looking_prepares_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(wide_bundle(tmp_path_factory), tmp_path)
    assert "not prepared yet" in run("inspect", bundle).out
    assert not Cache(Bundle(bundle)).folder.exists()
    monkeypatch.setattr(prepared, "TOLERANCE", -1.0)
    ran = run("prepare", bundle, "--json")
    assert (ran.code, ran.out) == (4, "")
    error = ran.err.splitlines()[-1]
    assert error.startswith("error: engines could not be prepared")
    assert "--no-prepared" in error
    assert all(line.startswith("warning: ") for line in ran.err.splitlines()[:-1])


@pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")
def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(wide_bundle(tmp_path_factory), tmp_path)
    bundle.with_name(f"{bundle.name}.cache").write_text("in the way")
    elsewhere = run("prepare", bundle, "--cache-dir", tmp_path / "place", "--json").json
    assert Path(elsewhere["folder"]).is_relative_to(tmp_path / "place")
    assert "kept" in run("inspect", bundle, "--cache-dir", tmp_path / "place").out
    assert "not prepared yet" in run("inspect", bundle).out, "the flag is of one call"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    run("prepare", bundle, "--json").failed(3, "cannot be kept", "writable")


def test_what_cannot_be_prepared(mixed: Made, floats: Made) -> None:
    run("prepare", mixed.path, "--runtime", "abacus", "--json").failed(2, "abacus")
    run("prepare", mixed.path, "--batch", "2", "--json").failed(2, "batch", "tensorrt")
    run("prepare", mixed.path, "--runtime", "tensorrt", "--json").failed(3, "pip install -e", "[tensorrt]")
    with machine():
        run("prepare", floats.path, "--runtime", "tensorrt", "--json").failed(4, "--runtime tensorrt")


def test_inspect_says_what_tensorrt_lacks_here(mixed: Made) -> None:
    ran = run("inspect", mixed.path)
    assert ran.code == 0
    assert "pycuda is not installed" in ran.out
