"""What is imported when, and what works where the extras are not installed."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dfs_deploy
from tests.bundles import Made
from tests.settled import pixels

EXTRAS = ("torch", "onnx", "safetensors", "sklearn", "jinja2", "altair", "vl_convert", "av")

NEEDS_EXTRAS = ("models", "checkpoints", "exporters", "calibration", "training")
"""Packages that are made of what the extras bring; ``digits`` imports scikit-learn when it loads."""

DRAWS = ("dfs_deploy.report.charts", "dfs_deploy.report.figures", "dfs_deploy.report.page")
"""Modules that are made of what the extra of reports brings; a report's data needs none."""

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dfs_deploy.__path__, "dfs_deploy.")
    if module.name.split(".")[1] not in (*NEEDS_EXTRAS, "__main__") and module.name not in DRAWS
)

BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

MAIN = f"{BLOCK}\nfrom dfs_deploy.cli import main\nmain()\n"


def python(script: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def imported(statement: str, block: bool = False) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    script = f"{BLOCK if block else ''}\n{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    ran = python(script)
    assert ran.returncode == 0, ran.stderr
    return {name.partition(".")[0] for name in json.loads(ran.stdout)}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(pixels(1)[0]).save(file)
    return file


# What is imported


def test_importing_the_package_imports_nothing_of_weight() -> None:
    found = imported("import dfs_deploy")
    assert not found & {*EXTRAS, "onnxruntime", "numpy", "typer", "rich", "PIL", "msgspec"}


def test_the_runtime_takes_numpy_onnxruntime_and_a_manifest_reader() -> None:
    found = imported("from dfs_deploy import Runtime")
    assert "numpy" in found
    assert not found & {*EXTRAS, "typer", "rich", "PIL", "onnxruntime"}, "the engine is imported with the first bundle"


def test_running_a_bundle_imports_no_command_line_and_no_extra(mixed: Made) -> None:
    found = imported(
        "import numpy; from dfs_deploy import Runtime\n"
        f"with Runtime({str(mixed.path)!r}) as net: net(numpy.zeros((1, 8, 8, 3), numpy.uint8))"
    )
    assert "onnxruntime" in found
    assert not found & {*EXTRAS, "typer", "rich", "PIL"}


def test_the_log_is_silent_until_somebody_listens() -> None:
    code = "import dfs_deploy, logging; logging.getLogger('dfs_deploy.runtimes').warning('not shown')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_every_public_name_is_there() -> None:
    for name in dfs_deploy.__all__:
        assert getattr(dfs_deploy, name) is not None
    assert set(dfs_deploy.__all__) <= set(dir(dfs_deploy))
    assert {"dfs_deploy.bundle", "dfs_deploy.runtimes.onnxruntime", "dfs_deploy.cli.export"} <= set(MODULES)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        dfs_deploy.nothing_like_it  # noqa: B018
    with pytest.raises(ImportError):
        from dfs_deploy import nothing_like_it  # noqa: F401


# The verbs, some of which are modules as well


VERBS = ("bench", "export", "prepare", "report", "train", "verify")

ORDERS = {
    "the package alone": "import dfs_deploy",
    "a module below it first": "import dfs_deploy.{module}; import dfs_deploy",
    "a module below it after the verb was used": "import dfs_deploy; dfs_deploy.{verb}; import dfs_deploy.{module}",
    "the verb by name": "import dfs_deploy; from dfs_deploy import {verb}; import dfs_deploy.{module}",
    "every part of it": (
        "import dfs_deploy, importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(dfs_deploy.__path__, 'dfs_deploy.'):\n"
        "    if module.name != 'dfs_deploy.__main__': importlib.import_module(module.name)"
    ),
}

BELOW = {
    "bench": "bench.result",
    "export": "exporters",
    "prepare": "runtimes.preparation",
    "report": "report.build",
    "train": "training",
    "verify": "verify",
}
"""A module that implements each verb."""


@pytest.mark.parametrize("order", ORDERS)
def test_every_verb_can_be_called_whatever_was_imported_before(order: str) -> None:
    script = "".join(
        f"def check_{verb}():\n    exec({ORDERS[order].format(verb=verb, module=BELOW[verb])!r}, {{}})\n"
        "    import dfs_deploy, inspect, pickle\n"
        f"    verb = dfs_deploy.{verb}\n"
        "    assert callable(verb)\n"
        f"    from dfs_deploy import {verb} as named\n"
        "    assert named is verb\n"
        "    assert next(iter(inspect.signature(verb).parameters)) != 'arguments'\n"
        "    assert pickle.loads(pickle.dumps(verb)) is verb\n"
        f"check_{verb}()\n"
        for verb in VERBS
    )
    ran = python(script)
    assert ran.returncode == 0, ran.stderr


def test_a_verb_runs_its_function_with_what_it_is_given() -> None:
    """The call is refused by the function itself, which has other parameters."""
    ran = python(
        "import dfs_deploy\n"
        f"for verb in {VERBS!r}:\n"
        "    try: getattr(dfs_deploy, verb)(no_such_parameter=1)\n"
        "    except TypeError as error: print(error)\n"
    )
    said = ran.stdout.splitlines()
    assert [line.partition("(")[0] for line in said] == list(VERBS), ran.stderr


def test_a_module_that_is_a_verb_is_a_module_still(mixed: Made) -> None:
    ran = python(
        "from unittest import mock\n"
        "import dfs_deploy, dfs_deploy.verify as verify\n"
        "assert verify is dfs_deploy.verify and verify.Verification is dfs_deploy.Verification\n"
        "with mock.patch('dfs_deploy.verify.verify', return_value=7): assert dfs_deploy.verify('net.dfs') == 7\n"
    )
    assert ran.returncode == 0, ran.stderr


def test_the_contract_of_imports_is_kept() -> None:
    """Layers and cycles: see ``[tool.importlinter]``."""
    root = Path(dfs_deploy.__file__).parents[1]
    program = shutil.which("lint-imports", path=Path(sys.executable).parent)
    if program is None or not (root / "pyproject.toml").is_file():
        pytest.skip("import-linter is not installed here")
    ran = subprocess.run([program, "--no-logo"], capture_output=True, text=True, check=False, cwd=root)
    assert ran.returncode == 0, ran.stdout


# Without the extras


def test_every_module_of_the_core_imports_without_the_extras() -> None:
    """In one interpreter, and each is told by name where it fails."""
    script = f"""
{BLOCK}
import importlib, traceback
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(name + ": " + traceback.format_exc().splitlines()[-1])
print("\\n".join(failed))
loaded = [name for name in {EXTRAS!r} if name in sys.modules]
assert not loaded, loaded
"""
    ran = python(script, *MODULES)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def test_what_needs_an_extra_fails_by_its_name() -> None:
    ran = python(f"{BLOCK}\nimport dfs_deploy.models")
    assert ran.returncode != 0
    assert "ModuleNotFoundError: No module named" in ran.stderr


def test_the_public_export_says_what_to_install() -> None:
    ran = python(f"{BLOCK}\nimport dfs_deploy\ntry:\n    dfs_deploy.export\nexcept ImportError as e:\n    print(e)")
    assert "[export]" in ran.stdout


@pytest.mark.parametrize("verb", ["export", "verify", "demo"])
def test_verbs_that_need_an_extra_say_what_to_install(mixed: Made, tmp_path: Path, verb: str) -> None:
    arguments: dict[str, list[str | Path]] = {
        "export": [mixed.checkpoint, "--out", tmp_path / "net.dfs"],
        "verify": [mixed.path, "--checkpoint", mixed.checkpoint, "--data", mixed.data_file],
        "demo": ["--out", tmp_path / "digits.dfs"],
    }
    ran = python(MAIN, verb, *arguments[verb], "--json")
    assert ran.returncode == 3
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("error: ")
    assert "[export]" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_page_says_what_to_install_before_anything_is_measured(mixed: Made, tmp_path: Path) -> None:
    ran = python(MAIN, "report", mixed.path, "--html", tmp_path / "out.html")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.startswith("error: ")
    assert "[report]" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["run", "inspect", "bench", "report", "doctor"])
def test_verbs_of_an_edge_device_work_on_a_bundle(mixed: Made, picture: Path, verb: str) -> None:
    arguments: dict[str, list[str | Path]] = {
        "run": [mixed.path, picture],
        "inspect": [mixed.path],
        "bench": [mixed.path, "--min-seconds", "0.01", "--min-iterations", "4", "--start-ups", "0"],
        "report": [mixed.path, "--min-seconds", "0.01", "--min-iterations", "4"],
        "doctor": [],
    }
    ran = python(MAIN, verb, *arguments[verb], "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert isinstance(json.loads(ran.stdout), dict)
