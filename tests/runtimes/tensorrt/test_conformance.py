"""The stubs that mypy holds the package to, and the doubles that it is tested on, against NVIDIA's own bindings.

``typings/`` names what the package uses of TensorRT and pycuda, so mypy finds any other name or argument in it. Here
the stubs are held to NVIDIA's bindings and to pycuda's source, and the doubles to both.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.runtimes.tensorrt.bindings import BINDINGS, ROOT, pycuda_source, real_surface, surface_of
from tests.runtimes.tensorrt.machine import DOUBLES
from tests.runtimes.tensorrt.surface import stub_surface

pytestmark = pytest.mark.conformance

INNER = ("ALIGNMENT", "GPU", "POISON", "session_of")
"""What the doubles import for themselves."""

OLDER = {
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "ICudaEngine.create_execution_context_without_device_memory",
    "ICudaEngine.device_memory_size",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "PreviewFeature.PROFILE_SHARING_0806",
}
"""Names that TensorRT 11 has no more."""

STUBS = {"tensorrt": "tensorrt/__init__.pyi", "pycuda.driver": "pycuda/driver.pyi"}

Surface = dict[str, dict[str, Any]]


def stubs(module: str) -> Surface:
    return stub_surface(ROOT / "typings" / STUBS[module], module)


def double(module: str, version: str = "10.13.3.9") -> Surface:
    found = surface_of(module, module, PYTHONPATH=str(DOUBLES), DOUBLE_TENSORRT=version)
    return {name: entry for name, entry in found.items() if name.removeprefix(f"{module}.") not in INNER}


def agrees(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> bool:
    """Whether what a stub or a double has is what there really is; it may leave optional parameters out."""
    if ours["kind"] != theirs["kind"]:
        return {ours["kind"], theirs["kind"]} == {"property", "value"} and ours["set"] == theirs["set"]
    if ours["kind"] == "property":
        return bool(ours["set"] == theirs["set"])
    if ours["kind"] != "callable" or theirs["signatures"] is None:
        return True
    if name.endswith(".__init__") and not theirs["signatures"]:
        return True  # not for its users to make
    (own,) = ([tuple(parameter) for parameter in signature] for signature in ours["signatures"])
    return any(
        own == [tuple(parameter) for parameter in signature[: len(own)]]
        and all(optional for _, optional in signature[len(own) :])
        for signature in theirs["signatures"]
    )


def problems(ours: Surface, real: Surface) -> list[str]:
    return [name for name, entry in ours.items() if name not in real or not agrees(entry, real[name], name)]


@pytest.mark.parametrize("version", BINDINGS)
def test_nvidia_has_what_the_package_uses(version: str) -> None:
    found = problems(stubs("tensorrt"), real_surface(BINDINGS[version]))
    assert set(found) == ({f"tensorrt.{name}" for name in OLDER} if version.startswith("11") else set())


@pytest.mark.parametrize("version", BINDINGS)
def test_the_double_is_like_tensorrt(version: str) -> None:
    ours, real = double("tensorrt", BINDINGS[version]), real_surface(BINDINGS[version])
    assert problems(ours, real) == []
    assert {name for name in stubs("tensorrt") if name in real} - set(ours) == set()


def test_pycuda_has_what_the_package_and_the_double_use() -> None:
    real, used, ours = pycuda_surface(pycuda_source()), stubs("pycuda.driver"), double("pycuda.driver")
    assert problems(used, real) == []
    assert problems(ours, real) == []
    assert set(used) - set(ours) == set()


def pycuda_surface(source: str) -> Surface:
    """What pycuda's wrapper registers; no signatures where the source names no arguments: these have no names."""
    found: Surface = {}
    for name in re.findall(r"DECLARE_EXC\((\w+)", source):
        found[f"pycuda.driver.{name}"] = {"kind": "class"}
    for name, rest in re.findall(r'^  py::def\("(\w+)",(.*?)\);', source, re.M | re.S):
        found[f"pycuda.driver.{name}"] = {"kind": "callable", "signatures": signatures(rest)}
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
        found[name] = {"kind": "class"}
        found[f"{name}.__init__"] = {"kind": "callable", "signatures": None}
        for key in re.findall(r'\.(?:value|attr|add_property)\("(\w+)"', block):
            found[f"{name}.{key}"] = {"kind": "value", "set": True}
        for key, rest in re.findall(r'\.def\("(\w+)",?(.*?)(?=\n\s*\.|;|\n#)', block, re.S):
            found[f"{name}.{key}"] = {"kind": "callable", "signatures": signatures(rest)}
        for key in re.findall(r"DEF_SIMPLE_METHOD\((\w+)\)", block):
            found[f"{name}.{key}"] = {"kind": "callable", "signatures": None}
        for base in re.findall(r"py::bases<(\w+)>", mark["types"]):
            for key in [key for key in found if key.startswith(f"{inner[base]}.")]:
                found.setdefault(f"{name}.{key.rpartition('.')[2]}", found[key])
    return found


def signatures(text: str) -> list[list[tuple[str, bool]]] | None:
    plain = re.sub(r'=\s*"[^"]*"', "=0", text)
    found = [(name, bool(default)) for name, default in re.findall(r'"(\w+)"\)?(\s*=)?', plain) if name != "self"]
    return [found] if found else None
