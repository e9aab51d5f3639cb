from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dfs_deploy.data import save_npz
from dfs_deploy.data.digits import load_digits
from tests.examples.program import EXAMPLES


def load_example(name: str) -> ModuleType:
    """An example as a module; its name begins with a digit, so it cannot be imported by a statement."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``digits_bundle.py`` makes, and a few of its images as ``few.npz``."""
    folder = tmp_path_factory.mktemp("digits")
    load_example("digits_bundle").make_digits_bundle(folder)
    save_npz(folder / "few.npz", load_digits("test").subset(60, 0))
    return folder
