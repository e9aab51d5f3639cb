from __future__ import annotations

import json
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import dfs_deploy
from dfs_deploy.system import libraries
from dfs_deploy.system.libraries import EXTRA_OF, install_line

REQUIRES = [
    "numpy>=1.26",
    'torch<2.14,>=2.4; extra == "export"',
    'onnx>=1.17; extra == "export"',
    'dfs-deploy[export]; extra == "train"',
    'scipy>=1.9; extra == "train"',
    "tensorrt>=8.6; platform_machine == 'x86_64' and extra == 'tensorrt'",
]


class Distribution(metadata.Distribution):
    """One with requirements, and what an installer noted of where it came from."""

    def __init__(self, origin: object) -> None:
        self._origin = origin

    @property
    def metadata(self) -> Any:
        message = Message()
        for line in REQUIRES:
            message["Requires-Dist"] = line
        return message

    def read_text(self, filename: str) -> str | None:
        if filename == "direct_url.json" and self._origin is not None:
            return self._origin if isinstance(self._origin, str) else json.dumps(self._origin)
        return None

    def locate_file(self, path: Any) -> Any:
        return path


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package lies in a folder of installed ones, not in its source tree."""
    monkeypatch.setattr(libraries, "__file__", str(tmp_path / "site-packages/dfs_deploy/system/libraries.py"))
    return tmp_path


def noted(monkeypatch: pytest.MonkeyPatch, origin: object) -> None:
    distribution = Distribution(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)


def test_a_checkout_is_installed_in_place() -> None:
    checkout = Path(dfs_deploy.__file__).parents[1]
    assert install_line("export") == f'pip install -e "{checkout}[export]"'
    assert install_line() == f'pip install -e "{checkout}"'


def test_a_wheel_is_named_by_its_path_while_it_is_there(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = elsewhere / "my wheels" / "dfs_deploy-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    noted(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert install_line("export") == f'pip install "{wheel}[export]"'
    wheel.unlink()
    assert install_line("export") == 'pip install "torch<2.14,>=2.4" "onnx>=1.17"'


def test_a_repository_or_an_archive_is_named_by_its_address(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://example.org/dfs.git"
    noted(monkeypatch, {"url": url, "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert install_line("report") == f'pip install "dfs-deploy[report] @ git+{url}@abc"'
    noted(monkeypatch, {"url": "https://example.org/dfs.whl", "archive_info": {}})
    assert install_line() == 'pip install "dfs-deploy @ https://example.org/dfs.whl"'


@pytest.mark.parametrize("origin", [None, "no json", "[1]"])
def test_from_an_unknown_place_the_requirements_are_named(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, origin: object
) -> None:
    noted(monkeypatch, origin)
    assert install_line("train") == 'pip install "torch<2.14,>=2.4" "onnx>=1.17" "scipy>=1.9"'
    assert install_line("tensorrt") == "pip install \"tensorrt>=8.6; platform_machine == 'x86_64'\""
    assert install_line() == 'pip install "numpy>=1.26"'
    assert "dfs-deploy[" not in install_line("train")


def test_without_a_record_a_checkout_is_asked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert install_line("export") == 'pip install ".[export]" in a checkout of dfs-deploy'


def test_every_extra_has_requirements(elsewhere: Path) -> None:
    """Of this very installation, whose metadata a package manager wrote."""
    for extra in {*EXTRA_OF.values()}:
        words = install_line(extra).split()
        assert words[:2] == ["pip", "install"]
        assert len(words) > 2


def test_no_message_asks_an_index_for_the_package() -> None:
    package = Path(dfs_deploy.__file__).parent
    sources = [file for file in package.rglob("*.py") if file.name != "libraries.py"]
    assert len(sources) > 100
    guilty = [file for file in sources if "dfs-deploy[" in file.read_text() or "pip install dfs" in file.read_text()]
    assert not guilty
