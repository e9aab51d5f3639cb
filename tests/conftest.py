"""Settings of the whole suite."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import settings

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
