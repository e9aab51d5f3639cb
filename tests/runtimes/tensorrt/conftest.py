from __future__ import annotations

from pathlib import Path

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes.tensorrt.building import prepare
from dfs_deploy.runtimes.tensorrt.plan import Settings
from tests.bundles import Made, copied, mixed_bundle
from tests.runtimes.tensorrt.machine import building_here, machine

BATCH = 8
"""The largest batch of the plans here: larger ones run in parts."""


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return mixed_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def prepared(mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with plans of the double's usual version; not to be changed."""
    bundle = copied(mixed, tmp_path_factory.mktemp("prepared"))
    with machine(), building_here():
        prepare(Bundle(bundle), Settings(batch=BATCH))
    return bundle
