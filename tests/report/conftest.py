from __future__ import annotations

import pytest

from dfs_deploy.report import BundleReport, Report, report
from tests.bundles import Made


@pytest.fixture(scope="session")
def one(mixed: Made) -> BundleReport:
    """The report of the mixed bundle on its own labelled data."""
    (made,) = report(mixed.path, data=mixed.data, min_seconds=0.02, min_iterations=4, examples=3).bundles
    return made


@pytest.fixture(scope="session")
def unlabelled(floats: Made) -> BundleReport:
    """The report of the float bundle on the images that it carries."""
    (made,) = report(floats.path, min_seconds=0.02, min_iterations=4, examples=2).bundles
    return made


@pytest.fixture(scope="session")
def report_of_one(one: BundleReport) -> Report:
    return Report("0.0.0", "2020-01-01T00:00:00+00:00", (one,))


@pytest.fixture(scope="session")
def report_of_two(one: BundleReport, unlabelled: BundleReport) -> Report:
    return Report("0.0.0", "2020-01-01T00:00:00+00:00", (one, unlabelled))
