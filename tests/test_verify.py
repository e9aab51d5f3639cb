from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dfs_deploy.errors import SavedResultError
from dfs_deploy.verify import DeviationRecord, Verification, load_verification, save_verification
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


@pytest.mark.parametrize("key", sorted(set(RESULT.as_json()) - {"schema", "schema_version", "notes", "assumptions"}))
def test_every_key_must_be_there(tmp_path: Path, key: str) -> None:
    values = RESULT.as_json()
    del values[key]
    with refuses(SavedResultError, key):
        load_verification(written(tmp_path, values))


def test_a_result_of_version_1_is_read(tmp_path: Path) -> None:
    values = RESULT.as_json() | {"schema_version": 1}
    del values["notes"], values["assumptions"]
    loaded = load_verification(written(tmp_path, values))
    assert (loaded.notes, loaded.assumptions) == ([], [])
    assert loaded.top1_bundle == RESULT.top1_bundle


def test_what_is_no_result(tmp_path: Path) -> None:
    with refuses(SavedResultError, "kept.json"):
        load_verification(tmp_path / "kept.json")
    for content in (b"", b"[]", b"\xff", b"{", b"[" * 100_000):
        (tmp_path / "kept.json").write_bytes(content)
        with refuses(SavedResultError, "kept.json"):
            load_verification(tmp_path / "kept.json")


def test_judged_is_what_the_tolerance_is_about() -> None:
    assert RESULT.per_block is not None
    (error,) = RESULT.per_block
    assert error.judged == 0.1
    assert msgspec.structs.replace(error, precision="fp16").judged == 0.2
