"""``dfs-deploy doctor``: what this machine has, as a block to paste into a report."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.text import Text

import dfs_deploy
from dfs_deploy.bench.energy import find_sampler, why_no_sampler
from dfs_deploy.bench.jetson import APT_TENSORRT, is_jetson, problems, read_jetson, read_power_state
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.console import output, print_json
from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.extras import EXTRA_OF
from dfs_deploy.target_cpu import is_x86

_CORE = ("numpy", "onnxruntime", "msgspec", "typer", "rich", "pillow")
_DISTRIBUTION = {"sklearn": "scikit-learn", "pynvml": "nvidia-ml-py", "vl_convert": "vl-convert-python"}


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
    machine, board = describe_machine(), is_jetson()
    checks = [Check(name, _version(name), True, f"pip install {name}") for name in _CORE]
    for module, extra in EXTRA_OF.items():
        remedy = f'pip install "dfs-deploy[{extra}]"'
        if module == "tensorrt" and board:
            remedy = APT_TENSORRT
        checks.append(Check(module, _version(_DISTRIBUTION.get(module, module)), False, remedy))
    missing = [check for check in checks if check.needed and not check.found]
    facts = {
        "dfs-deploy": dfs_deploy.__version__,
        "python": platform.python_version(),
        "system": machine.system,
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "8-bit products": machine.int8 or ("none: export gives INT8 weights 7 bits here" if is_x86() else "none"),
        "float16 arithmetic": "yes" if machine.float16 else "no: the FP16 option runs the FP32 engine",
        "gate": _gate(),
        "feature layout": _layout(),
        "energy": _energy("jetson" if board else "cpu"),
        "jetson": "yes" if board else "no",
        **(_jetson_facts() if board else {}),
    }
    known = problems(read_jetson()) if board else []
    if json:
        print_json(
            {"facts": facts, "checks": [asdict(check) for check in checks], "problems": known, "passed": not missing}
        )
    else:
        console = output()
        for name, value in facts.items():
            console.print(f"{name:<20} {value}")
        for check in checks:
            mark, style = ("ok", "green") if check.found else ("missing", "red") if check.needed else ("-", "grey50")
            what = check.found or f"not installed: {check.remedy}"
            console.print(Text.assemble((f"{mark:<8}", style), f"{check.name:<12}{what}"))
        for problem in known:
            console.print(Text.assemble(("known     ", "yellow"), problem))
        console.print("PASSED" if not missing else f"FAILED: {', '.join(check.name for check in missing)} missing")
    if missing:
        raise EnvironmentLacksError(
            f"{missing[0].name} is not installed and running a bundle needs it; {missing[0].remedy}"
        )


def _energy(device: str) -> str:
    sampler = find_sampler(device)
    return f"none: {why_no_sampler(device)}" if sampler is None else f"{sampler.source}, {sampler.rail}"


def _jetson_facts() -> dict[str, str]:
    board, state = read_jetson(), read_power_state()
    clocks = {True: "locked", False: "free: sudo jetson_clocks locks them", None: None}[state.clocks_locked]
    facts = {
        "model": board.model,
        "Jetson Linux": board.l4t,
        "JetPack": board.jetpack,
        "TensorRT": board.tensorrt,
        "CUDA": board.cuda,
        "power mode": state.mode,
        "clocks": clocks,
        "temperature": None if state.celsius is None else f"{state.celsius:.1f} °C ({state.sensor})",
    }
    return {name: value or "not found" for name, value in facts.items()}


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


def _layout() -> str:
    try:
        from dfs_deploy.runtimes.onnxruntime.blocked import block_size
    except ModuleNotFoundError as error:
        return f"unknown: {error.name} is missing"
    together = block_size()
    if together > 1:
        return f"blocked by {together}, for networks whose channels are multiples of it"
    return "plain: ONNX Runtime has no blocked one for this CPU"
