"""The compiled gate: its variants, its memory, its threads, and an install with and without a compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.runtimes.gate import GateWeights, NativeGate, native_variants
from tests.checks import refuses
from tests.runtimes.gates import (
    SHAPES,
    assert_same_bits,
    needs_native,
    random_features,
    random_integers,
    random_state,
    random_weights,
    rows_of,
    step_floats,
    step_forms,
)

ROOT = Path(__file__).parents[2]
NATIVE = "dfs_deploy/runtimes/native"


@needs_native
@pytest.mark.parametrize(("shape", "hidden"), [(shape, (10, 17)[i % 2]) for i, shape in enumerate(SHAPES)])
@pytest.mark.parametrize(("kind", "zero_point"), [("lstm", 0), ("stateless", 100)])
def test_every_variant_gives_the_same_bits(shape: tuple[int, ...], hidden: int, kind: str, zero_point: int) -> None:
    samples, weights = 200, random_weights((shape[0],), hidden, kind=kind)
    floats, integers = random_features(samples, shape), random_integers(samples, shape)
    in_uint8 = np.arange(samples) % 2 == 0
    results = []
    for variant in native_variants():
        gate = NativeGate(weights, variant)
        assert gate.variant == variant
        gate.reset(samples)
        gate.state = random_state(samples, hidden)
        results.append((step_forms(gate, 0, floats, integers, in_uint8, 0.02, None, zero_point), gate.state))
    assert native_variants()[-1] == "baseline"
    for decisions, state in results:
        np.testing.assert_array_equal(decisions, results[0][0])
        assert_same_bits(state, results[0][1])


@needs_native
@pytest.mark.parametrize("variant", native_variants())
def test_sigmoid_and_tanh_are_those_of_double_precision(variant: str) -> None:
    # One unit whose output gate is a sigmoid of x, then one whose cell is a hyperbolic tangent of x.
    x = np.concatenate([np.linspace(-110, 110, 40_001), np.geomspace(1e-30, 1, 1000)]).astype(np.float32)
    features = x.reshape(-1, 1, 1, 1)

    def run(row: int, bias: list[float]) -> tuple[Any, Any]:
        inputs = np.zeros((1, 4, 1), np.float32)
        inputs[0, row] = 1.0
        zeros = np.zeros((4, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
        gate = NativeGate(GateWeights(inputs, np.array([bias], np.float32), *zeros), variant)
        gate.reset(len(x))
        step_floats(gate, 0, features)
        return gate.state

    wide = x.astype(np.float64)
    # A cell of 1 (all gates saturated) shows tanh(1) * sigmoid(x).
    np.testing.assert_allclose(
        run(3, [100, 0, 100, 0])[0][:, 0], np.tanh(1) / (1 + np.exp(-wide)), rtol=6e-7, atol=1e-36
    )
    np.testing.assert_allclose(run(2, [100, 0, 0, 0])[1][:, 0], np.tanh(wide), rtol=6e-7)


@needs_native
@pytest.mark.parametrize("variant", native_variants())
def test_a_sum_of_bytes_is_exact(variant: str) -> None:
    """The cell is tanh(mean / 1024) of one channel, near enough to the mean to tell one channel from the next."""
    rng = np.random.default_rng(0)
    bias, ones = np.array([[100, 0, 0, 0]], np.float32), np.full((1, 1, 30_000, 32), 255, np.uint8)
    zeros = np.zeros((4, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    for area, channels in [(1, 1), (63, 8), (64, 16), (65, 40), (8191, 64), (8193, 192), (30_000, 32)]:
        drawn = rng.integers(0, 256, (1, 1, area, channels), np.uint8)
        for features in (drawn, ones[:, :, :area, :channels]) if channels == 32 else (drawn,):
            for channel in {0, channels // 2, channels - 1}:
                inputs = np.zeros((1, 4, channels), np.float32)
                inputs[0, 2, channel] = 2.0**-10
                gate = NativeGate(GateWeights(inputs, bias, *zeros), variant)
                gate.reset(1)
                gate.bind(0, features, 1.0)()
                expected = np.tanh(features[..., channel].mean(dtype=np.float64) / 1024)
                assert gate.state[1][0, 0] == pytest.approx(expected, rel=3e-7), (area, channels, channel)


@needs_native
def test_other_variants_are_refused() -> None:
    with refuses(EnvironmentLacksError, "'mmx'", "baseline"):
        NativeGate(random_weights(), "mmx")


@needs_native
def test_the_extension_itself_refuses_what_it_cannot_read() -> None:
    from dfs_deploy.runtimes.native._gate import LANES, CompiledGate

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    packed = [zeros(2, 8, 4, LANES), zeros(2, 4, LANES), zeros(10, 4, LANES), zeros(10, LANES), zeros(2, LANES)]
    gate = CompiledGate(*packed, 10, 4)
    with pytest.raises(TypeError):
        gate.__init__(*packed, 10, 4)
    for i, array in enumerate(packed):
        for wrong in (array[..., :-1].copy(), array.astype(np.float64), array[..., ::2], array[None], None, b""):
            with pytest.raises((TypeError, ValueError, BufferError)):
                CompiledGate(*packed[:i], wrong, *packed[i + 1 :], 10, 4)
    stateless = [zeros(2, 8, 1, LANES), zeros(2, 1, LANES), None, zeros(2, 10, LANES), zeros(2, LANES)]
    CompiledGate(*stateless, 10, 4)
    for i, wrong in ((0, packed[0]), (1, packed[1]), (2, packed[2]), (3, packed[3]), (3, zeros(1, 10, LANES))):
        with pytest.raises((TypeError, ValueError)):
            CompiledGate(*stateless[:i], wrong, *stateless[i + 1 :], 10, 4)
    for hidden, options in ((0, 4), (10, 0), (-1, 4), (17, 4), (10, 17)):
        with pytest.raises(ValueError, match=r"expected"):
            CompiledGate(*packed, hidden, options)
    with pytest.raises(ValueError, match="variant"):
        CompiledGate(*packed, 10, 4, "mmx")
    gate.reset(1)
    for block, features in [
        (0, zeros(1, 9, 2, 2)),
        (0, zeros(1, 0, 2, 2)),
        (0, zeros(1, 8, 2, 0)),
        (0, zeros(2, 8, 2, 2)),
        (0, zeros(8, 2, 2)),
        (0, zeros(1, 8, 2, 2).astype(np.int8)),
        (0, np.zeros((1, 1, (1 << 24) + 1, 1), np.uint8)),
        (0, zeros(1, 8, 2, 4)[..., ::2]),
        (0, None),
        (2, zeros(1, 8, 2, 2)),
        (-1, zeros(1, 8, 2, 2)),
    ]:
        with pytest.raises((TypeError, ValueError, BufferError)):
            gate.bind(block, features, 1.0)
    with pytest.raises((ValueError, OverflowError, MemoryError)):
        gate.reset(-1)
    with pytest.raises(MemoryError):
        gate.reset(2**61)
    assert gate.bind(0, zeros(1, 8, 2, 2), 1.0)() == 0
    decisions = np.zeros(1, np.int64)
    decisions.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        gate.step(0, [zeros(1, 8, 2, 2)], rows_of(np.zeros(1)), 1.0, decisions)
    decisions = np.zeros(1, np.int64)
    gate.step(0, [zeros(1, 8, 2, 2)], rows_of(np.zeros(1)), 1.0, decisions)
    for chunks, where, changed in [
        ([], [[0, 0]], None),
        ([zeros(1, 8, 2, 2)], [[1, 0]], None),
        ([zeros(1, 8, 2, 2)], [[0, 1]], None),
        ([zeros(1, 8, 2, 2)], [[0, -1]], None),
        ([zeros(1, 8, 2, 2)], [[0, 0], [0, 0]], None),
        ([zeros(1, 8, 2, 2)], [[0, 0]], np.zeros(2, np.bool_)),
        ([zeros(1, 9, 2, 2)], [[0, 0]], None),
        ([zeros(1, 8, 2, 4)[..., ::2]], [[0, 0]], None),
        ([zeros(8, 2, 2)], [[0, 0]], None),
    ]:
        with pytest.raises((TypeError, ValueError, BufferError)):
            gate.step(0, chunks, np.array(where, np.intp), 1.0, decisions, changed)


@needs_native
def test_the_extension_is_safe_before_it_is_set_up() -> None:
    from dfs_deploy.runtimes.native._gate import CompiledGate

    gate = CompiledGate.__new__(CompiledGate)
    gate.reset(3)
    with pytest.raises(TypeError, match="not set up"):
        gate.bind(0, np.zeros((1, 1, 1, 1), np.float32), 1.0)


@needs_native
def test_memory_does_not_grow() -> None:
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("no /proc to read this process's memory from")
    weights, features = random_weights(), random_features(1, (16, 8, 8))

    def cycles(count: int) -> int:
        for _ in range(count):
            gate = NativeGate(weights)
            for samples in (1000, 1, 2000):
                gate.reset(samples)
            gate.bind(0, features, 1.0)
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = cycles(50)
    # A state that stayed behind would take 384 kB a cycle, 190 MB in all.
    assert cycles(500) - before < 20e6


@needs_native
def test_a_batch_releases_the_gil_and_a_gate_is_one_threads() -> None:
    gate = NativeGate(random_weights())
    features, where = random_features(1, (16, 32, 32)), np.zeros((20_000, 2), np.intp)  # one map, many times
    gate.reset(len(where))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to let go of the GIL: who runs meanwhile runs because it was released
    seen = False
    try:
        for _ in range(50):
            started, done = threading.Event(), []

            def work(started: threading.Event = started, done: list[int] = done) -> None:
                started.set()
                gate.step(0, [features], where, 1.0)
                done.append(1)

            thread = threading.Thread(target=work)
            thread.start()
            started.wait()
            try:
                while not done and not seen:
                    gate.reset(len(where))
                    os.sched_yield()
            except UsageError as error:
                assert "another thread" in str(error)
                seen = not done
            thread.join()
            if seen:
                break
    finally:
        sys.setswitchinterval(interval)
    assert seen
    gate.reset(len(where))


@needs_native
def test_gates_in_threads_do_not_meet() -> None:
    weights, features = random_weights((16,)), random_features(64, (16, 32, 32))
    results: dict[int, Any] = {}

    def work(index: int) -> None:
        gate = NativeGate(weights)
        gate.reset(len(features))
        for _ in range(20):
            step_floats(gate, 0, features)
        results[index] = gate.state

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(4)
    for i in range(4):
        assert_same_bits(results[i], results[4])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build needs, with nothing built."""
    for module in ("setuptools", "Cython", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, to build offline")
    copy = tmp_path / "source"
    shutil.copytree(ROOT / "dfs_deploy", copy / "dfs_deploy", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "examples" / "demo", copy / "examples" / "demo")
    return copy


def built_wheel(source: Path, **environment: str) -> Path:
    out = source.parent / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(out)]
    result = subprocess.run(
        [*command, str(source)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def chosen_gate(wheel: Path) -> str:
    """The gate that an installed wheel chooses, asked in a process of its own."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "installed")  # noqa: S202 (ours)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, dfs_deploy\n"
        "assert dfs_deploy.__file__.startswith(sys.argv[1]), dfs_deploy.__file__\n"
        "from dfs_deploy.runtimes.gate import GateWeights\n"
        "from dfs_deploy.runtimes.gate import gate_for\n"
        "shapes = [(1, 40, 3), (1, 40), (40, 10), (4, 10), (1, 4)]\n"
        "gate = gate_for(GateWeights(*(np.zeros(shape, np.float32) for shape in shapes)))\n"
        "gate.reset(1)\n"
        "assert gate.bind(0, np.ones((1, 3, 2, 2), np.float32), 1.0)() == 0\n"
        "print(gate.name)\n"
    )
    command = [sys.executable, "-c", code, str(wheel.parent / "installed")]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=wheel.parent).stdout.strip()


@pytest.mark.slow
def test_an_install_without_a_compiler_succeeds_and_runs_in_numpy(source: Path) -> None:
    false = shutil.which("false")
    assert false is not None
    wheel = built_wheel(source, CC=false, CXX=false)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert f"{NATIVE}/__init__.py" in names
    assert not [name for name in names if name.endswith(".so")]
    assert chosen_gate(wheel) == "numpy"


@pytest.mark.slow
@needs_native
def test_a_wheel_holds_the_extension_and_no_sources(source: Path) -> None:
    wheel = built_wheel(source)
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if name.startswith(f"{NATIVE}/")}
        content = {name: archive.read(f"{NATIVE}/{name}") for name in names if name.endswith(".so")}
    libraries = {name for name in names if name.endswith(".so")}
    assert {name.partition(".")[0] for name in libraries} == {"_ends", "_gate"}
    assert names - libraries == {"__init__.py", "_ends.pyi", "_gate.pyi"}
    assert chosen_gate(wheel) == "native"
    if sys.platform == "linux":
        # What debuggers and linkers alone would read takes five times the room of the code.
        assert not [name for name, data in content.items() if b".debug_info" in data or b".symtab" in data]


@pytest.mark.slow
def test_an_sdist_holds_the_sources_and_nothing_generated(source: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
    sources = ("_gate.pyx", "_gate.pyi", "kernel.c", "kernel.h", "kernel_variant.h", "variants.h")
    sources += ("_ends.pyx", "ends.c", "ends.h")
    assert {f"{NATIVE}/{name}" for name in sources} < {*names}
    assert "setup.py" in names
    assert not [name for name in names if name.endswith(("_gate.c", "_ends.c", ".so", ".o"))]
