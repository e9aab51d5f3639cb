"""What a notebook shows of a result: one short line, with arrays by shape."""

from __future__ import annotations

from pathlib import Path

import pytest

import dfs_deploy
from dfs_deploy.bundle import Bundle
from tests.bundles import Made

MOST = 300


@pytest.fixture(scope="module")
def shown(mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    bundle = Bundle(mixed.path)
    with dfs_deploy.Runtime(bundle) as runtime:
        result = runtime(mixed.data.images)
        found = {"Runtime": repr(runtime)}
    found["closed"] = repr(runtime)
    timed = dfs_deploy.bench(
        bundle, mixed.data, min_seconds=0.0, min_iterations=3, warm_up_seconds=0.0, start_ups=0, energy_seconds=0.0
    )
    report = dfs_deploy.report(bundle, data=mixed.data, bench=timed)
    folder = tmp_path_factory.mktemp("reprs")
    values = {
        "Bundle": bundle,
        "Result": result,
        "Samples": bundle.samples(),
        "Dataset": mixed.data,
        "Verification": dfs_deploy.verify(bundle, mixed.checkpoint, mixed.data),
        "BenchResult": timed,
        "Report": report,
        "BundleReport": report.bundles[0],
        "Exported": dfs_deploy.export(mixed.checkpoint, Path(folder) / "net.dfs", calibration_data=mixed.data),
    }
    return found | {name: repr(value) for name, value in values.items()}


def test_each_is_one_short_line(shown: dict[str, str]) -> None:
    for name, text in shown.items():
        assert text.startswith("<" + name.replace("closed", "Runtime")), text
        assert text.endswith(">")
        assert "\n" not in text
        assert len(text) < MOST, text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Runtime", ["mixed.dfs: ResNet-", "options skip,8,16,full", "onnxruntime"]),
        ("closed", ["closed"]),
        ("Bundle", ["mixed.dfs: ResNet-", "options skip,8,16,full"]),
        ("Result", ["(96, 10)"]),
        ("Dataset", ["96 images (8, 8, 3)"]),
        ("Verification", ["mixed on 96 images"]),
        ("BenchResult", ["mixed on cpu", "dfs ", " ms"]),
        ("Report", ["1 bundle", "mixed"]),
        ("Exported", ["net.dfs", "engines validated"]),
    ],
)
def test_it_says_what_and_how_many(shown: dict[str, str], name: str, words: list[str]) -> None:
    for word in words:
        assert word in shown[name]
