"""Settings of the whole suite, and the bundles that most tests share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.bundles import Made
    from tests.data.decoded import Decoded

# The same examples on every machine and every run; a slow machine is no failure.
settings.register_profile("dfs-deploy", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("dfs-deploy")

# The networks here are so small that more threads only wait for each other. The core's tests need no PyTorch.
with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what is made once on a machine out of the user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "user-cache"))
    monkeypatch.delenv("DFS_DEPLOY_CACHE", raising=False)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Counts the images of folders that are decoded."""
    from tests.data.decoded import Decoded

    return Decoded(monkeypatch)


# Each is exported once per run of the suite. The imports need PyTorch, so they stand in the fixtures.


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """INT8, FP16 and FP32 engines for both runtimes; options skip, 8, 16 and full."""
    from tests.bundles import mixed_bundle

    return mixed_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """FP32 engines only, so that every path is the reference's."""
    from tests.bundles import float_bundle

    return float_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The policy 8, skip, 16 instead of a gate, for both runtimes."""
    from tests.bundles import static_bundle

    return static_bundle(tmp_path_factory)
