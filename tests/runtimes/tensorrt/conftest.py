from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes.tensorrt.engine_cache import BuildSettings, prepare
from tests.bundles import Made, copied
from tests.runtimes.tensorrt.machine import VERSIONS, building_here, machine

BATCH = 8
"""The largest batch of the engines here: larger ones run in parts."""


@pytest.fixture(scope="session")
def prepared_for(mixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the bundle with engines of a version of the double, built once; not to be changed."""

    @functools.cache
    def prepared_for(version: str) -> Path:
        bundle = copied(mixed, tmp_path_factory.mktemp("prepared"))
        with machine(version), building_here():
            prepare(Bundle(bundle), BuildSettings(batch=BATCH))
        return bundle

    return prepared_for


@pytest.fixture(scope="session")
def prepared(prepared_for: Callable[[str], Path]) -> Path:
    """A bundle with engines of the double's usual version; not to be changed."""
    return prepared_for(VERSIONS[2])
