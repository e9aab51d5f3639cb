from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dfs_deploy.training import run_job
from tests.training.small import job


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the images of all jobs."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="session")
def backbone(folder: Path) -> Path:
    """A backbone trained on the images, some held out."""
    alone = dataclasses.replace(job(folder, held_out=24), until="backbone")
    return run_job(alone, folder / "backbone").checkpoint
