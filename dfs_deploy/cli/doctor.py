"""``dfs-deploy doctor``: what this machine has, as a block to paste into a report."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

from rich.text import Text

import dfs_deploy
from dfs_deploy.bench.energy import EnergySampler
from dfs_deploy.bench.jetson import APT_TENSORRT, is_jetson, problems, read_jetson, read_power_state
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bench.sensors import find_sampler
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.console import output, print_json
from dfs_deploy.errors import DependencyError, EnvironmentLacksError
from dfs_deploy.io.text import first_line
from dfs_deploy.system.cpu import WEIGHT_BITS, WORDS, cpu_limits, target_of
from dfs_deploy.system.libraries import CORE, EXTRA_OF, find_library, install_line


@dataclass(frozen=True)
class Check:
    """A library that was looked for.

    Attributes:
        name: name of the distribution, or of the module for an extra.
        found: version; empty if it is missing or cannot be used.
        needed: whether running a bundle needs it.
        remedy: command that installs it.
        problem: reason why it cannot be used although it is installed; empty if there is none.
    """

    name: str
    found: str
    needed: bool
    remedy: str = ""
    problem: str = ""


def doctor(json: JsonOption = False) -> None:
    """Check what running, exporting and training need here."""
    machine, board, target = describe_machine(), is_jetson(), target_of()
    checks = [_check(module, name, True, f"pip install {name}") for module, name in CORE.items()]
    for module, extra in EXTRA_OF.items():
        remedy = APT_TENSORRT if module == "tensorrt" and board else install_line(extra)
        checks.append(_check(module, module, False, remedy))
    missing = [check for check in checks if check.needed and not check.found]
    facts = {
        "dfs-deploy": dfs_deploy.__version__,
        "python": platform.python_version(),
        "system": machine.system,
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "CPU quota": _quota(),
        "8-bit products": machine.int8 or "none",
        "target CPU": f"{target}: {WORDS[target]}, INT8 weights of {WEIGHT_BITS[target]} bits",
        "float16 arithmetic": "yes" if machine.float16 else "no: the FP16 option runs the FP32 engine",
        "gate": _gate(),
        "feature layout": _layout(),
        "telemetry": _telemetry(),
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
            if check.problem:
                mark, style = "broken", "red"
            what = check.found or check.problem or f"not installed: {check.remedy}"
            console.print(Text.assemble((f"{mark:<8}", style), f"{check.name:<12}{what}"))
        for problem in known:
            console.print(Text.assemble(("known     ", "yellow"), problem))
        lacking = ", ".join(f"{check.name} {'cannot be used' if check.problem else 'missing'}" for check in missing)
        console.print(f"FAILED: {lacking}" if missing else "PASSED")
    if missing:
        first = missing[0]
        what = first.problem or f"not installed and running a bundle needs it; {first.remedy}"
        raise EnvironmentLacksError(what if what.startswith(first.name) else f"{first.name} is {what}")


def _check(module: str, name: str, needed: bool, remedy: str) -> Check:
    library = find_library(module)
    return Check(name, library.version, needed, remedy, library.problem)


def _quota() -> str:
    limits = cpu_limits()
    if limits.quota is None:
        return "none"
    periods = limits.throttled_periods
    stopped = "" if periods is None else f", which stopped it in {periods} period(s) so far"
    return (
        f"{limits.quota:g} CPU(s) by the control group{stopped}: more than {limits.cores} thread(s) wait for each other"
    )


def _telemetry() -> str:
    try:
        from dfs_deploy.system.ort import telemetry
    except DependencyError:
        return "none: ONNX Runtime cannot be used"
    return f"{telemetry()}; dfs-deploy itself has none"


def _energy(device: str) -> str:
    sampler = find_sampler(device)
    return f"{sampler.source}, {sampler.rail}" if isinstance(sampler, EnergySampler) else f"none: {sampler}"


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


def _gate() -> str:
    try:
        from dfs_deploy.runtimes.gate import native_available, native_variants
    except ImportError as error:
        return f"unknown: {first_line(error)}"
    if native_available():
        return f"native ({native_variants()[0]})"
    return f"numpy: for the native one install a C compiler, then {install_line()}, with --force-reinstall --no-deps"


def _layout() -> str:
    try:
        from dfs_deploy.runtimes.onnxruntime.blocked import block_size
    except ImportError as error:
        return f"unknown: {first_line(error)}"
    channel_block = block_size()
    if channel_block > 1:
        return f"blocked by {channel_block}, for networks whose channels are multiples of it"
    return "plain: ONNX Runtime has no blocked layout for this CPU"
