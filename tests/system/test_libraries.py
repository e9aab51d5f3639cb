from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import dfs_deploy
from dfs_deploy.system import libraries
from dfs_deploy.system.libraries import install_line


def test_a_checkout_is_installed_in_place() -> None:
    checkout = Path(dfs_deploy.__file__).parents[1]
    assert shlex.split(install_line("export")) == ["pip", "install", "-e", f"{checkout}[export]"]
    assert shlex.split(install_line()) == ["pip", "install", "-e", str(checkout)]


def test_an_installed_package_asks_for_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "__file__", str(tmp_path / "site-packages/dfs_deploy/system/libraries.py"))
    assert install_line("export") == 'pip install ".[export]" in a checkout of dfs-deploy'


def test_no_message_asks_an_index_for_the_package() -> None:
    package = Path(dfs_deploy.__file__).parent
    sources = [file for file in package.rglob("*.py") if file.name != "libraries.py"]
    assert len(sources) > 100
    guilty = [file for file in sources if "dfs-deploy[" in file.read_text() or "pip install dfs" in file.read_text()]
    assert not guilty
