"""Bundles changed at random, digests that fit included: each opens, or is refused by name; nothing hangs or crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import copied, mixed_bundle


@pytest.mark.parametrize(("kind", "count"), [("manifest", 300), ("engine", 100)])
def test_a_changed_bundle_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, kind: str, count: int
) -> None:
    bundle = copied(mixed_bundle(tmp_path_factory), tmp_path)
    command = [sys.executable, "-m", "tests.bundle_mutations", kind, bundle, str(count), "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert sum(found.values()) == count
    assert found["BundleError"] > count / 10
    assert found["runs"] > 0, "or the changes are too coarse to get far"
