"""The package, and the doubles that it is tested on, against NVIDIA's own bindings and pycuda's source."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes.tensorrt.bindings import BINDINGS, pycuda_source, real_surface, surface_of
from tests.runtimes.tensorrt.machine import DOUBLES, GRAPHS
from tests.runtimes.tensorrt.uses import PACKAGE, Use, uses_of, uses_of_package

pytestmark = pytest.mark.conformance

INNER = ("ALIGNMENT", "GPU", "POISON", "session_of")
"""What the doubles import for themselves."""

Surface = dict[str, dict[str, Any]]


def double_surface(module: str, prefix: str, version: str = "10.13.3.9", folder: Path = DOUBLES) -> Surface:
    path = f"{folder}:{DOUBLES}:{GRAPHS}"
    return surface_of(module, prefix, PYTHONPATH=path, DOUBLE_TENSORRT=version)


def problems(uses: Iterable[Use], surface: Surface) -> list[str]:
    """What of the uses a library with these names does not have, or not so."""
    found = []
    for use in uses:
        if not use.alive(surface):
            continue
        there = surface.get(use.name)
        if there is None:
            found.append(f"{use.where}: there is no {use.name}")
        elif use.kind == "set" and not there.get("set"):
            found.append(f"{use.where}: {use.name} cannot be set")
        elif use.kind in ("call", "override"):
            takes = there["signatures"] if there["kind"] == "callable" else constructors(use.name, surface)
            if not any(fits(use, signature) for signature in takes):
                found.append(f"{use.where}: {use.name} takes {takes}, not {use.positional} and {use.keywords}")
    return found


def constructors(name: str, surface: Surface) -> list[Any]:
    made = surface.get(f"{name}.__init__")
    return [] if made is None else list(made["signatures"])


def fits(use: Use, signature: Sequence[Sequence[Any]]) -> bool:
    if use.kind == "override":
        return tuple(name for name, _ in signature) == use.keywords
    rest = signature[use.positional :]
    names = {name for name, _ in rest}
    required = {name for name, optional in rest if not optional}
    return use.positional <= len(signature) and required <= set(use.keywords) <= names


def of(prefix: str) -> list[Use]:
    return [use for use in uses_of_package() if use.name.startswith(prefix)]


# The package


def test_the_package_uses_what_it_is_known_to_use() -> None:
    """The search finds what a reader finds, in every way in which a name can be used."""
    found = {(use.name.partition(".")[2], use.kind) for use in uses_of_package()}
    assert {
        ("IExecutionContext.execute_async_v3", "call"),
        ("IBuilderConfig.progress_monitor", "set"),
        ("BuilderFlag.TF32", "read"),
        ("ICudaEngine.num_io_tensors", "read"),
        ("IProgressMonitor.step_complete", "override"),
        ("driver.memcpy_dtoh_async", "call"),
        ("driver.DeviceAllocation.free", "read"),
        ("bindings.driver.cuStreamEndCapture", "call"),
    } <= found
    (pagelocked,) = {use for use in uses_of_package() if use.name.endswith("pagelocked_empty")}
    assert (pagelocked.positional, pagelocked.keywords) == (2, ("mem_flags",))
    (older,) = [use for use in uses_of_package() if use.name.endswith("ICudaEngine.device_memory_size")]
    assert older.guards == (("tensorrt.ICudaEngine.device_memory_size_v2", False),)


@pytest.mark.parametrize("version", BINDINGS)
def test_nvidia_has_everything_that_the_package_uses(version: str) -> None:
    uses = of("tensorrt.")
    assert len({use.name for use in uses}) > 60
    assert problems(uses, real_surface(BINDINGS[version])) == []


def test_every_name_is_alive_in_some_version() -> None:
    """What only older versions have stands behind a hasattr, and is used on one of them."""
    surfaces = [real_surface(version) for version in BINDINGS.values()]
    surfaces.append(double_surface("tensorrt", "tensorrt", "8.6.1"))
    unused = {use.name for use in of("tensorrt.") if not any(use.alive(s) and use.name in s for s in surfaces)}
    assert unused == set()


# The doubles


@pytest.mark.parametrize("version", BINDINGS)
def test_the_double_has_the_names_and_signatures_of_tensorrt(version: str) -> None:
    real, double = real_surface(BINDINGS[version]), double_surface("tensorrt", "tensorrt", BINDINGS[version])
    assert problems(of("tensorrt."), double) == []
    double = {name: entry for name, entry in double.items() if name.partition(".")[2] not in INNER}
    assert sorted(set(double) - set(real)) == []
    assert [name for name in double if not agrees(name, double, real)] == []


def agrees(name: str, double: Surface, real: Surface) -> bool:
    """Whether what the double has is what there really is; a double may leave optional parameters out."""
    ours, theirs = double[name], real[name]
    if ours["kind"] != theirs["kind"]:
        return {ours["kind"], theirs["kind"]} == {"property", "value"} and ours["set"] == theirs["set"]
    if ours["kind"] == "property":
        return bool(ours["set"] == theirs["set"])
    if ours["kind"] != "callable":
        return True
    (own,) = ours["signatures"]
    if name.endswith(".__init__") and not theirs["signatures"]:
        return True  # not for its users to make
    return any(
        own == signature[: len(own)] and all(optional for _, optional in signature[len(own) :])
        for signature in theirs["signatures"]
    )


def test_the_doubles_have_what_the_package_uses_of_pycuda_and_cuda_python() -> None:
    assert problems(of("pycuda."), double_surface("pycuda.driver", "pycuda.driver")) == []
    assert problems(of("cuda."), double_surface("cuda.bindings.driver", "cuda.bindings.driver")) == []


# pycuda, whose source says what there is: it neither builds nor imports where CUDA is not


def test_pycuda_has_everything_that_the_package_and_the_double_use() -> None:
    surface, uses = pycuda_surface(pycuda_source()), of("pycuda.")
    assert len({use.name for use in uses}) > 25
    assert [problem for use in uses for problem in pycuda_problems(use, surface)] == []
    ours = double_surface("pycuda.driver", "pycuda.driver")
    mine = ("__init__", *INNER)
    assert [name for name in ours if name not in surface and name.rpartition(".")[2] not in mine] == []
    assert [
        name
        for name, entry in ours.items()
        for known in [surface.get(name)]
        if known is not None and known["kind"] == "callable" and known["arguments"] is not None
        if entry["kind"] == "callable" and entry["signatures"] != [known["arguments"]]
    ] == []


def pycuda_problems(use: Use, surface: Surface) -> list[str]:
    there = surface.get(use.name)
    if there is None:
        return [f"{use.where}: there is no {use.name}"]
    if use.kind != "call" or there.get("arguments") is None:  # the source names no arguments: then they have no names
        return [f"{use.where}: {use.name} takes no names"] if use.kind == "call" and use.keywords else []
    good = fits(use, there["arguments"])
    return [] if good else [f"{use.where}: {use.name} takes {there['arguments']}, not {use.positional}, {use.keywords}"]


def pycuda_surface(source: str) -> Surface:
    """What pycuda's wrapper registers; ``arguments`` is ``None`` where it names none."""
    found: Surface = {}
    for name in re.findall(r"DECLARE_EXC\((\w+)", source):
        found[f"pycuda.driver.{name}"] = {"kind": "class"}
    for name, rest in re.findall(r'^  py::def\("(\w+)",(.*?)\);', source, re.M | re.S):
        found[f"pycuda.driver.{name}"] = {"kind": "callable", "arguments": arguments(rest)}
    marks = re.compile(
        r'(?:typedef (?P<inner>\w+) cl;\s*)?py::(?:class_|enum_)<(?P<types>[^;"]*?)>\s*(?:\w+\s*)?\(\s*"(?P<name>\w+)"'
    )
    starts = list(marks.finditer(source))
    inner: dict[str | None, str] = {}
    for mark, following in zip(starts, [*starts[1:], None], strict=True):
        name = f"pycuda.driver.{mark['name']}"
        inner[mark["inner"]] = name
        block = source[mark.start() : len(source) if following is None else following.start()]
        block = re.split(r"^  (?:py::def|DEF_SIMPLE_FUNCTION)", block, maxsplit=1, flags=re.M)[0]
        made = re.search(r"py::init<(.*?)>\((.*?)\)\)", block, re.S)
        found[name] = {"kind": "class"}
        if made:
            names = arguments(made[2] + ")") or []
            optional = "py::optional" in made[1] or "=" in made[2]
            found[name] = {"kind": "class", "arguments": [(argument, optional) for argument, _ in names]}
        for key in re.findall(r'\.(?:value|attr)\("(\w+)"', block):
            found[f"{name}.{key}"] = {"kind": "value"}
        for key in re.findall(r'\.add_property\("(\w+)"', block):
            found[f"{name}.{key}"] = {"kind": "property"}
        for key, rest in re.findall(r'\.def\("(\w+)",?(.*?)(?=\n\s*\.|;|\n#)', block, re.S):
            found[f"{name}.{key}"] = {"kind": "callable", "arguments": arguments(rest)}
        for key in re.findall(r"DEF_SIMPLE_METHOD\((\w+)\)", block):
            found[f"{name}.{key}"] = {"kind": "callable", "arguments": None}
        for base in re.findall(r"py::bases<(\w+)>", mark["types"]):
            for key in [key for key in found if key.startswith(f"{inner[base]}.")]:
                found.setdefault(f"{name}.{key.rpartition('.')[2]}", found[key])
    return found


def arguments(text: str) -> list[list[Any]] | None:
    """Names of arguments and whether each may be left out; ``None`` where the source gives no names."""
    plain = re.sub(r'=\s*"[^"]*"', "=0", text)
    found = [[name, bool(default)] for name, default in re.findall(r'"(\w+)"\)?(\s*=)?', plain) if name != "self"]
    return found or None


# A test that would not fail is none


MISSPELT = (
    ("contexts.py", "set_tensor_address(", "set_tensor_adress("),
    ("contexts.py", "execute_async_v3(self._handle)", "execute_async_v3(handle=self._handle)"),
    ("contexts.py", "Strategy.USER_MANAGED", "Strategy.USER"),
    ("device.py", "cuda.mem_alloc(", "cuda.mem_allocate("),
    ("device.py", "mem_flags=flags", "memory_flags=flags"),
    ("worker.py", "trt.BuilderFlag.TF32", "trt.BuilderFlag.TF_32"),
    ("worker.py", "config.progress_monitor =", "config.progress_monitors ="),
    ("worker.py", "num_steps: int", "steps: int"),
    ("worker.py", "create_network(_network_flags(typing))", "create_network(flag=_network_flags(typing))"),
)


def test_each_name_that_is_misspelt_in_the_package_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy)
    lines = set()
    for file, right, wrong in MISSPELT:
        text = (copy / file).read_text()
        lines |= {f"{file}:{i + 1}" for i, line in enumerate(text.splitlines()) if right in line}
        (copy / file).write_text(text.replace(right, wrong))
    uses = uses_of(copy)
    found = problems([use for use in uses if use.name.startswith("tensorrt.")], real_surface(BINDINGS["10.13.3"]))
    surface = pycuda_surface(pycuda_source())
    found += [problem for use in uses if use.name.startswith("pycuda.") for problem in pycuda_problems(use, surface)]
    assert len(lines) >= len(MISSPELT)
    assert {problem.partition(": ")[0] for problem in found} == lines


def test_each_name_that_is_gone_from_the_double_is_found() -> None:
    double, uses = double_surface("tensorrt", "tensorrt"), of("tensorrt.")
    for name in sorted({use.name for use in uses if use.name in double and use.alive(double)}):
        rest = {key: entry for key, entry in double.items() if key != name}
        live = [use for use in uses if use.name == name and use.alive(rest)]
        assert not live or any(f"there is no {name}" in problem for problem in problems(live, rest)), name


def test_a_name_that_tensorrt_does_not_have_is_found_in_the_double() -> None:
    double = double_surface("tensorrt", "tensorrt", "8.6.1")
    assert set(double) - set(real_surface(BINDINGS["11.4.0"])) > {"tensorrt.BuilderFlag.INT8"}
