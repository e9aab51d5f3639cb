from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dfs_deploy.errors import UsageError
from dfs_deploy.models import threads
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.system.cpu import CpuLimits
from tests.checks import refuses


@pytest.fixture(autouse=True)
def four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def granted(monkeypatch: pytest.MonkeyPatch, cpus: int, quota: float | None = None) -> None:
    monkeypatch.setattr(threads, "cpu_limits", lambda: CpuLimits(tuple(range(cpus)), quota, None))


@pytest.mark.parametrize(
    ("cpus", "quota", "expected"), [(32, None, 4), (32, 1.0, 1), (32, 1.5, 2), (2, None, 2), (2, 8.0, 2)]
)
def test_pytorch_uses_no_more_threads_than_are_granted(
    monkeypatch: pytest.MonkeyPatch, cpus: int, quota: float | None, expected: int
) -> None:
    granted(monkeypatch, cpus, quota)
    with torch_threads():
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_a_number_that_was_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    granted(monkeypatch, 1)
    with torch_threads(3):
        assert torch.get_num_threads() == 3
    with pytest.raises(OSError, match="failed"), torch_threads(2):
        raise OSError("failed")
    assert torch.get_num_threads() == 4
    with refuses(UsageError, "0 threads"), torch_threads(0):
        pass
