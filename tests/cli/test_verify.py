from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.io.files import sha256
from tests.bundles import Made, copied, manifest_of, rewritten
from tests.cli.program import run
from tests.exporters.test_validation import perturbed
from tests.settled import CONTRACT, settled_network

KEYS = [
    "samples",
    "top1_reference",
    "top1_bundle",
    "route_agreement",
    "computation_percentage_reference",
    "computation_percentage_bundle",
    "max_abs_logit_error",
    "passed",
    "bundle_digest",
    "checkpoint_sha256",
    "notes",
    "assumptions",
]


def test_the_keys_are_those_of_the_contract(floats: Made) -> None:
    ran = run("verify", floats.path, "--checkpoint", floats.checkpoint, "--data", floats.data_file, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == KEYS
    assert ran.json["samples"] == 96
    assert ran.json["top1_reference"] == ran.json["top1_bundle"] == 1.0
    assert ran.json["route_agreement"] == 1.0
    assert ran.json["computation_percentage_bundle"] == ran.json["computation_percentage_reference"]
    assert 0.0 <= ran.json["max_abs_logit_error"] < 1e-2
    assert ran.json["passed"] is True


def test_a_person_reads_passed(mixed: Made) -> None:
    bars = ["--min-route-agreement", "0.9", "--max-computation-change", "5", "--max-top1-drop", "0.1"]
    ran = run("verify", mixed.path, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, *bars)
    assert ran.code == 0
    assert "PASSED" in ran.out
    assert "top-1" in ran.out
    assert "block" in ran.out


def test_a_bundle_below_its_bars_fails_and_still_says_the_figures(floats: Made, tmp_path: Path) -> None:
    other = settled_network("skip,16,full", seed=5)
    save_checkpoint(tmp_path / "other.pt", other, CONTRACT)
    arguments = ["verify", floats.path, "--checkpoint", tmp_path / "other.pt", "--data", floats.data_file]
    ran = run(*arguments, "--json")
    ran.failed(1, "routes agree")
    assert ran.json["passed"] is False
    assert ran.json["route_agreement"] < 0.98
    ran = run(*arguments)
    assert ran.code == 1
    assert "FAILED" in ran.out


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        (["--max-top1-drop", "-1"], ["-1, expected a share, 0 to 1"]),
        (["--min-route-agreement", "98"], ["98, expected a share, 0 to 1"]),
        (["--min-route-agreement", "nan"], ["nan, expected a share, 0 to 1"]),
        (["--max-computation-change", "101"], ["101, expected points, 0 to 100"]),
    ],
)
def test_a_bar_that_cannot_be_is_refused_before_anything_runs(bar: list[str], words: list[str]) -> None:
    run("verify", "missing.dfs", "--result", "missing.json", *bar).failed(2, bar[0], *words)


def test_what_cannot_be_read(floats: Made, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    data = ["--data", floats.data_file, "--json"]
    run("verify", floats.path, "--checkpoint", tmp_path / "broken.pt", *data).failed(4, "broken.pt")
    run("verify", floats.path, "--checkpoint", floats.checkpoint, "--data", "missing.npz").failed(2, "missing.npz")
    bundle = copied(floats, tmp_path)
    (bundle / "common/stem.onnx").write_bytes(b"changed")
    run("verify", bundle, "--checkpoint", floats.checkpoint, *data).failed(4, "stem.onnx")


@pytest.mark.parametrize("other", ["blocks", "options", "policy"])
def test_a_checkpoint_of_another_shape_is_named(floats: Made, tmp_path: Path, other: str) -> None:
    network = {
        "blocks": lambda: settled_network("skip,16,full", blocks=1),
        "options": lambda: settled_network("skip,full"),
        "policy": lambda: settled_network("skip,16,full").with_policy([1, 1, 2]),
    }[other]()
    save_checkpoint(tmp_path / "other.pt", network, CONTRACT)
    ran = run("verify", floats.path, "--checkpoint", tmp_path / "other.pt", "--data", floats.data_file, "--json")
    ran.failed(4, "option" if other == "options" else "other.pt")
    assert ran.out == ""


def test_logits_that_are_no_numbers_fail_the_check(floats: Made, tmp_path: Path) -> None:
    bundle = copied(floats, tmp_path)
    heads = [name for name in manifest_of(bundle)["files"] if name.startswith("common/head")]
    changes = {name: perturbed(Bundle(bundle).model(name), "head_bias", lambda x: x * np.nan) for name in heads}
    rewritten(bundle, changes)
    arguments = ["--checkpoint", floats.checkpoint, "--data", floats.data_file, "--save", tmp_path / "kept.json"]
    ran = run("verify", bundle, *arguments, "--json")
    assert ran.code == 1
    assert ran.json["passed"] is False
    assert ran.json["max_abs_logit_error"] is None
    run("verify", "--result", tmp_path / "kept.json", "--max-top1-drop", "1", "--json").failed(1, "NaN")


def test_errors_are_told_by_block_and_option(mixed: Made) -> None:
    arguments = ["verify", mixed.path, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, "--per-block"]
    bars = ["--min-route-agreement", "0.9", "--max-computation-change", "5", "--max-top1-drop", "0.1"]
    ran = run(*arguments, *bars, "--json")
    assert list(ran.json) == [*KEYS, "per_block"]
    blocks = Bundle(mixed.path).manifest.runtimes["onnxruntime"].blocks
    told = {(row["block"], row["option"], row["precision"]) for row in ran.json["per_block"]}
    assert told >= {(b.index, o, e.precision) for b in blocks for o, engines in b.options.items() for e in engines}
    assert all(row["passed"] for row in ran.json["per_block"])
    by_precision = {row["precision"]: row["rms_relative"] for row in ran.json["per_block"]}
    assert by_precision["fp32"] < by_precision["fp16"] < by_precision["int8"]
    shown = run(*arguments, *bars).out
    for word in ("8 int8", "16 fp16", "full fp32", "skip fp32", "PASSED"):
        assert word in shown, word


def test_a_broken_engine_is_named_by_its_block(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    (block,) = [b for b in Bundle(bundle).manifest.runtimes["onnxruntime"].blocks if b.index == 2]
    files = [name for engine in block.options["16"] if engine.precision == "fp16" for name in engine.files.values()]
    rewritten(
        bundle,
        {name: perturbed(Bundle(bundle).model(name), "blocks.2.norm2_bias", lambda x: x * np.inf) for name in files},
    )
    arguments = ["verify", bundle, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file, "--per-block"]
    ran = run(*arguments, "--json")
    bad = {(r["block"], r["option"], r["precision"]) for r in ran.json["per_block"] if not r["passed"]}
    assert bad == {(2, "16", "fp16")}
    assert "not finite !" in run(*arguments).out


def test_a_kept_result_is_judged_again_without_running(
    floats: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    arguments = ["--checkpoint", floats.checkpoint, "--data", floats.data_file, "--per-block", "--json"]
    first = run("verify", floats.path, *arguments, "--save", kept)
    monkeypatch.setattr("dfs_deploy.runtimes.Runtime.__init__", None)
    again = run("verify", "--result", kept, "--json")
    assert (again.code, again.json) == (0, first.json)
    assert again.json["bundle_digest"] == Bundle(floats.path).digest
    assert again.json["checkpoint_sha256"] == sha256(floats.checkpoint.read_bytes())
    fallen = tmp_path / "fallen.json"
    fallen.write_text(json.dumps({**json.loads(kept.read_text()), "top1_reference": 0.9, "top1_bundle": 0.5}))
    run("verify", floats.path, "--result", fallen, "--max-top1-drop", "0.3", "--json").failed(1, "top-1")
    assert run("verify", floats.path, "--result", fallen, "--max-top1-drop", "0.4", "--json").code == 0
    shown = run("verify", "--result", kept)
    assert shown.code == 0
    for word in ("PASSED", again.json["bundle_digest"][:12], again.json["checkpoint_sha256"][:12]):
        assert word in shown.out


def test_a_kept_result_of_another_bundle_is_refused(floats: Made, mixed: Made, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    run("verify", floats.path, "--checkpoint", floats.checkpoint, "--data", floats.data_file, "--save", kept)
    ran = run("verify", mixed.path, "--result", kept, "--json")
    ran.failed(4, "kept.json", Bundle(floats.path).digest[:12], Bundle(mixed.path).digest[:12])
    assert ran.out == ""


def test_what_is_missing_or_too_much_is_named(floats: Made, tmp_path: Path) -> None:
    run("verify", floats.path, "--data", floats.data_file, "--json").failed(2, "--checkpoint")
    run("verify", floats.path, "--checkpoint", floats.checkpoint, "--json").failed(2, "--data")
    for given in (("--data", floats.data_file), ("--per-block",), ("--threads", "2"), ("--no-plan",), ("--seed", "0")):
        run("verify", "--result", tmp_path / "kept.json", *given).failed(2, given[0], "--result")
    run("verify", "--result", tmp_path / "kept.json", "--json").failed(4, "kept.json")


def test_what_is_suspicious_is_said_beside_passed(floats: Made, tmp_path: Path) -> None:
    """Two sides that are wrong alike pass every bar."""
    blank = np.full((60, 12, 12, 3), 90, np.uint8)
    save_npz(tmp_path / "blank.npz", Dataset(blank, np.arange(60) % 3, (), "blank"))
    arguments = ["verify", floats.path, "--checkpoint", floats.checkpoint, "--data", tmp_path / "blank.npz"]
    shown = run(*arguments)
    assert shown.code == 0
    assert "PASSED" in shown.out
    warned = [line.removeprefix("note: ") for line in shown.out.splitlines() if line.startswith("note: ")]
    for word in (
        "a single colour",
        "60 of 60 images were resized to 8x8",
        "every one of 60 images is classified as",
    ):
        assert any(word in line for line in warned), warned
    assert run(*arguments, "--json").json["notes"] == warned
    kept = tmp_path / "kept.json"
    run(*arguments, "--save", kept)
    assert run("verify", "--result", kept, "--json").json["notes"] == warned
