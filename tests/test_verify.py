from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import dfs_deploy
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import SavedResultError, UsageError
from dfs_deploy.verify import DeviationRecord, Verification, load_verification, save_verification
from tests.bundles import Made
from tests.checks import refuses

RESULT = Verification(
    version="0.1.0",
    bundle="net",
    bundle_digest="a" * 64,
    checkpoint="net.pt",
    checkpoint_sha256="b" * 64,
    data="test",
    seed=0,
    budget=None,
    samples=10,
    top1_reference=0.9,
    top1_bundle=0.8,
    route_agreement=0.99,
    block_agreement=[1.0, 0.98],
    computation_percentage_reference=30.0,
    computation_percentage_bundle=31.0,
    max_abs_logit_error=None,
    per_block=[
        DeviationRecord(
            block=1,
            option="8",
            precision="int8",
            runtime="onnxruntime",
            layout="uint8",
            max_relative=0.2,
            rms_relative=0.1,
            tolerance=0.15,
            passed=True,
        )
    ],
)


def written(folder: Path, values: Any) -> Path:
    path = folder / "kept.json"
    path.write_text(json.dumps(values))
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_verification(tmp_path / "kept.json", RESULT)
    assert load_verification(tmp_path / "kept.json") == RESULT


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": "10"}, "samples"),
        ({"route_agreement": 1.5}, "route_agreement"),
        ({"bundle_digest": "short"}, "bundle_digest"),
        ({"extra": 1}, "extra"),
        ({"per_block": [{}]}, "per_block"),
        ({"schema": "other"}, "other"),
        ({"schema_version": 3}, "update dfs-deploy"),
        ({"schema_version": 0}, "expected 1 to 2"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with refuses(SavedResultError, word):
        load_verification(written(tmp_path, RESULT.as_json() | change))


def test_every_key_must_be_there(tmp_path: Path) -> None:
    for key in set(RESULT.as_json()) - {"schema", "schema_version", "notes", "assumptions"}:
        values = RESULT.as_json()
        del values[key]
        with refuses(SavedResultError, key):
            load_verification(written(tmp_path, values))


def test_a_result_of_version_1_is_read(tmp_path: Path) -> None:
    values = RESULT.as_json() | {"schema_version": 1}
    del values["notes"], values["assumptions"]
    loaded = load_verification(written(tmp_path, values))
    assert (loaded.notes, loaded.assumptions) == ([], [])
    assert loaded.schema_version == 2, "it is written as what it is now"
    assert loaded.top1_bundle == RESULT.top1_bundle
    save_verification(tmp_path / "again.json", loaded)
    assert json.loads((tmp_path / "again.json").read_bytes())["schema_version"] == 2


def test_judged_is_what_the_tolerance_is_about() -> None:
    assert RESULT.per_block is not None
    (error,) = RESULT.per_block
    assert error.judged == 0.1
    assert msgspec.structs.replace(error, precision="fp16").judged == 0.2


# The verb as a function


def test_the_verb_takes_paths_or_opened_objects(floats: Made, capfd: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    found = dfs_deploy.verify(
        floats.path, floats.checkpoint, floats.data_file, progress=lambda stage, share: stages.append(stage)
    )
    assert isinstance(found, dfs_deploy.Verification)
    assert found.passed
    assert found.samples == len(floats.data.images)
    assert found.bundle_digest == Bundle(floats.path).digest
    assert any(stage.startswith("comparing") for stage in stages)
    data = dfs_deploy.load_dataset(floats.data_file)
    assert dfs_deploy.verify(Bundle(floats.path), str(floats.checkpoint), data) == found
    assert capfd.readouterr() == ("", ""), "a library prints nothing"


def test_a_result_is_judged_by_any_thresholds() -> None:
    assert not RESULT.passed
    assert RESULT.missed() == RESULT.missed(0.003, 0.98, 1.0)
    finite = msgspec.structs.replace(RESULT, max_abs_logit_error=0.5)
    (line,) = finite.missed()
    assert "top-1 fell by 10.00 points" in line
    assert finite.missed(max_top1_drop=0.1) == (), "to reach a threshold is enough"
    better = msgspec.structs.replace(finite, top1_bundle=1.0)
    assert better.missed() == (), "more accuracy is no drop"
    (line,) = finite.missed(max_top1_drop=0.1, max_computation_change=0.5)
    assert "computation" in line
    (line,) = finite.missed(max_top1_drop=0.1, min_route_agreement=0.995)
    assert "routes" in line
    assert "NaN" in RESULT.missed(max_top1_drop=1)[0]


@pytest.mark.parametrize(
    "thresholds",
    [{"max_top1_drop": -0.1}, {"min_route_agreement": 98}, {"max_computation_change": float("nan")}],
)
def test_thresholds_are_in_range(thresholds: dict[str, float]) -> None:
    with refuses(UsageError, next(iter(thresholds)).replace("_", "-"), "expected"):
        RESULT.missed(**thresholds)


def test_a_saved_result_is_about_one_bundle(floats: Made, tmp_path: Path) -> None:
    save_verification(tmp_path / "kept.json", RESULT)
    with refuses(SavedResultError, RESULT.bundle_digest[:12], Bundle(floats.path).digest[:12]):
        load_verification(tmp_path / "kept.json", floats.path)


def test_what_was_missed_is_shown() -> None:
    assert repr(RESULT).startswith("<Verification net on 10 images: missed: top-1 fell by 10.00 points")
    assert "passed>" in repr(
        msgspec.structs.replace(RESULT, top1_bundle=0.9, route_agreement=1.0, max_abs_logit_error=0.0)
    )
