"""NVIDIA's own Python bindings, and pycuda's source, downloaded once into ``.cache/``.

The bindings import where three libraries of TensorRT are; empty ones, made here with the C compiler, will do: nothing
in them is called. Without a network or a compiler the tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[3]
CACHE = ROOT / ".cache" / "conformance"
SURFACE = Path(__file__).with_name("surface.py")

BINDINGS = {"10.3.0": "10.3.0", "10.13.3": "10.13.3.9", "11.4.0": "11.4.0.106"}
"""Versions of ``tensorrt-cu12-bindings`` by what they are called here; 10.3.0 is JetPack 6's."""

PYCUDA = "2026.1"

_SYMBOLS = [
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getInferLibVersion",
]
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@functools.cache
def real_surface(version: str) -> dict[str, dict[str, Any]]:
    """The names of NVIDIA's bindings of a version, under ``tensorrt``."""
    folder = CACHE / f"tensorrt-{version}-py{sys.version_info.major}{sys.version_info.minor}"
    if not (folder / "tensorrt_bindings").is_dir():
        _unpacked(_downloaded(f"tensorrt-cu12-bindings=={version}", "--only-binary=:all:"), folder)
    libraries = _stub_libraries(version.partition(".")[0])
    return surface_of("tensorrt_bindings", "tensorrt", PYTHONPATH=str(folder), LD_LIBRARY_PATH=str(libraries))


def surface_of(module: str, prefix: str, **env: str) -> dict[str, dict[str, Any]]:
    """The names of a module, imported in a process of its own."""
    command = [sys.executable, str(SURFACE), module, prefix]
    ran = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    return found


@functools.cache
def pycuda_source() -> str:
    """The file in which pycuda registers what its driver module has; no comments."""
    folder = CACHE / f"pycuda-{PYCUDA}"
    file = folder / f"pycuda-{PYCUDA}" / "src" / "wrapper" / "wrap_cudadrv.cpp"
    if not file.is_file():
        # Only its archive: pip would build it to learn its name, and that needs CUDA.
        _unpacked(_downloaded(f"pycuda=={PYCUDA}", "--no-binary=:all:", "--no-build-isolation"), folder)
    return re.sub(r"//[^\n]*", "", file.read_text())


def _downloaded(requirement: str, *flags: str) -> Path:
    """Has pip download one file."""
    target = CACHE / "downloads" / re.sub(r"\W+", "-", requirement)
    if not list(target.glob("*.*")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target)]
        command += ["--disable-pip-version-check", "--retries=1", *flags, requirement]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            shutil.rmtree(target, ignore_errors=True)
            _lacking(f"pip cannot download {requirement}: {(ran.stderr.strip().splitlines() or ['?'])[-1]}")
    return next(target.glob("*.*"))


def _lacking(why: str) -> NoReturn:
    """Skips a test for want of something that CI must have."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(why)
    pytest.skip(why)


def _unpacked(archive: Path, folder: Path) -> None:
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(temporary)
    else:
        shutil.unpack_archive(archive, temporary, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _stub_libraries(major: str) -> Path:
    """The folder of empty libraries for bindings of a major version."""
    folder = CACHE / f"libraries-{major}"
    if not folder.is_dir():
        compiler = shlex.split(os.environ.get("CC", "cc"))
        if shutil.which(compiler[0]) is None:
            _lacking(f"no C compiler ({compiler[0]}) to make empty libraries for NVIDIA's bindings with")
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        source = temporary / "stub.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in _SYMBOLS))
        for library in _LIBRARIES:
            name = f"lib{library}.so.{major}"
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(temporary / name), str(source)]
            subprocess.run([*compiler, *flags], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    return folder
