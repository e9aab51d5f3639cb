from __future__ import annotations

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.report import BundleReport, Report, report_bundle
from tests.bundles import Made, float_bundle, mixed_bundle


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return mixed_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return float_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def told(mixed: Made) -> BundleReport:
    """The report of the mixed bundle on its own labelled data."""
    return report_bundle(Bundle(mixed.path), mixed.data, min_s=0.02, min_iterations=4, examples=3)


@pytest.fixture(scope="session")
def told_without_labels(floats: Made) -> BundleReport:
    """The report of the float bundle on the images that it carries."""
    return report_bundle(Bundle(floats.path), min_s=0.02, min_iterations=4, examples=2)


@pytest.fixture(scope="session")
def report(told: BundleReport) -> Report:
    return Report("0.0.0", "2020-01-01T00:00:00+00:00", (told,))


@pytest.fixture(scope="session")
def report_of_two(told: BundleReport, told_without_labels: BundleReport) -> Report:
    return Report("0.0.0", "2020-01-01T00:00:00+00:00", (told, told_without_labels))
