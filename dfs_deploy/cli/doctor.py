"""``dfs-deploy doctor``: what this machine has, as a block to paste into a report."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.text import Text

import dfs_deploy
from dfs_deploy.bench.machine import describe_machine, is_jetson
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.console import output, print_json
from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.extras import EXTRA_OF

_CORE = ("numpy", "onnxruntime", "msgspec", "typer", "rich", "pillow")
_DISTRIBUTION = {"sklearn": "scikit-learn", "pynvml": "nvidia-ml-py"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: what.
        found: a version or a fact; empty where it is missing.
        needed: whether running a bundle needs it.
        remedy: what to do where it is missing.
    """

    name: str
    found: str
    needed: bool
    remedy: str = ""


def doctor(json: JsonOption = False) -> None:
    """Check what running, exporting and training need here."""
    machine = describe_machine()
    checks = [Check(name, _version(name), True, f"pip install {name}") for name in _CORE]
    for module, extra in EXTRA_OF.items():
        remedy = f'pip install "dfs-deploy[{extra}]"'
        if module == "tensorrt" and is_jetson():
            remedy = "sudo apt install python3-libnvinfer"
        checks.append(Check(module, _version(_DISTRIBUTION.get(module, module)), False, remedy))
    missing = [check for check in checks if check.needed and not check.found]
    facts = {
        "dfs-deploy": dfs_deploy.__version__,
        "python": platform.python_version(),
        "system": machine.system,
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "8-bit products": machine.int8 or "none: export with --weight-bits 7 where this is x86",
        "float16 arithmetic": "yes" if machine.float16 else "no: the FP16 option runs the FP32 engine",
        "gate": _gate(),
        "jetson": "yes" if is_jetson() else "no",
    }
    if json:
        print_json({"facts": facts, "checks": [asdict(check) for check in checks], "passed": not missing})
    else:
        console = output()
        for name, value in facts.items():
            console.print(f"{name:<20} {value}")
        for check in checks:
            mark, style = ("ok", "green") if check.found else ("missing", "red") if check.needed else ("-", "grey50")
            what = check.found or f"not installed: {check.remedy}"
            console.print(Text.assemble((f"{mark:<8}", style), f"{check.name:<12}{what}"))
        console.print("PASSED" if not missing else f"FAILED: {', '.join(check.name for check in missing)} missing")
    if missing:
        raise EnvironmentLacksError(
            f"{missing[0].name} is not installed and running a bundle needs it; {missing[0].remedy}"
        )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _gate() -> str:
    try:
        from dfs_deploy.runtimes.native_gate import native_available, native_variants
    except ModuleNotFoundError as error:
        return f"unknown: {error.name} is missing"
    if native_available():
        return f"native ({native_variants()[0]})"
    return "numpy: install a C compiler and reinstall dfs-deploy for the native one"
