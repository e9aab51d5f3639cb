from __future__ import annotations

import pytest

from tests.bundles import Made, float_bundle, mixed_bundle


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return mixed_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return float_bundle(tmp_path_factory)
