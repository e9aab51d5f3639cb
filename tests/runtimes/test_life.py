"""Close, fork, exit and pickle: what becomes of a runtime, in real processes where a process ends."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dfs_deploy.errors import BundleError, RuntimeClosedError, UsageError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime import OnnxRuntimeBackend
from dfs_deploy.runtimes.tensorrt import TensorRTBackend
from tests.bundles import Made, copied, manifest_of, write_manifest
from tests.checks import refuses
from tests.runtimes.tensorrt.machine import building_here, machine
from tests.settled import pixels

PATIENCE_S = 120
"""How long a process may take here; one that hangs takes longer."""


def python(script: str, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in an interpreter of its own."""
    before = "import sys\nimport numpy as np\nimages = np.zeros((1, 8, 8, 3), np.uint8)\n"
    if "import Runtime" not in script:
        before += "from dfs_deploy import Runtime\n"
    command = [sys.executable, "-c", before + script, *map(str, arguments)]
    variables = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=variables)


@pytest.fixture
def runtime(mixed: Made) -> Iterator[Runtime]:
    with Runtime(mixed.path) as opened:
        yield opened


# Fork

FORK = """
import gc, os, time

def child():
    uses = {
        "call": lambda: net(images), "clone": net.clone, "enter": net.__enter__,
        "substitutions": lambda: net.substitutions,
        "description": lambda: net.description, "budget": lambda: net.set_cost_bias(0.0), "gates": net.gate_calls,
        "engines": lambda: net.engine_calls(np.zeros(3, np.uint8)), "clone's": lambda: clone(images),
        "pickle": net.__reduce__,
    }
    said = set()
    for name, use in uses.items():
        try:
            use()
        except Exception as error:
            said.add(f"{type(error).__name__}: {error}")
        else:
            said.add(f"{name} went through")
    print(*said, sep="\\n")
    net.close()
    net.close()
    gc.collect()

with Runtime(sys.argv[1], threads=int(sys.argv[2])) as net:
    clone = net.clone()
    net(images)
    if os.fork() == 0:
        child()
        sys.exit(7)
    pid, status = os.wait()
    print("ended with", os.waitstatus_to_exitcode(status))
    print("the parent goes on", net(images).logits.shape)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_fork_the_child_gets_one_clear_error_and_ends(mixed: Made, threads: int) -> None:
    ran = python(FORK, mixed.path, str(threads))
    assert (ran.returncode, ran.stderr) == (0, "")
    said, ended, goes_on = ran.stdout.splitlines()
    assert said.startswith("RuntimeClosedError: this Runtime was made before a fork")
    assert "make a new Runtime in each process" in said
    assert ended == "ended with 7"
    assert goes_on == "the parent goes on (1, 10)"


def test_a_child_can_make_its_own(mixed: Made) -> None:
    script = """
import os
net = Runtime(sys.argv[1], threads=2)
expected = net(images)
if os.fork() == 0:
    with Runtime(sys.argv[1], threads=2) as own:
        print(own(images) == expected)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    ran = python(script, mixed.path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n7\n", "")


def test_a_call_of_another_thread_is_no_trouble_in_the_child(mixed: Made) -> None:
    script = """
import os, threading, time
net, other = Runtime(sys.argv[1]), Runtime(sys.argv[1])
stop = threading.Event()
def loop():
    while not stop.is_set():
        net(np.zeros((64, 8, 8, 3), np.uint8))
thread = threading.Thread(target=loop)
thread.start()
for _ in range(5):
    time.sleep(0.01)
    if os.fork() == 0:
        net.close()
        try:
            net(images)
        except Exception as error:
            print(type(error).__name__, flush=True)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
stop.set()
thread.join()
"""
    ran = python(script, mixed.path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "RuntimeClosedError\n7\n" * 5, "")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's exit handlers")
def test_the_child_waits_for_no_thread_of_onnxruntimes_telemetry(mixed: Made) -> None:
    # Whoever wants the telemetry has a library whose exit handler waits for a thread; so does this one, for ever.
    script = """
import ctypes, os
net = Runtime(sys.argv[1])
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
library = ctypes.CDLL(None)
library.on_exit(library.pause, None)
if os.fork() == 0:
    print("said before the end")
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
os._exit(0)
"""
    ran = python(script, mixed.path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "said before the end\n7\n", "")


# The end of the interpreter

THREADS = {
    "one thread": "start(net)",
    "three clones": "[start(net.clone()) for _ in range(3)]",
    "a long call": "images = np.zeros((3000, 8, 8, 3), np.uint8); start(net)",
    "loading": "start(lambda images: Runtime(sys.argv[1]).close())",
    "a pool": "from concurrent.futures import ThreadPoolExecutor\n"
    "pool = ThreadPoolExecutor(2); [pool.submit(clone, images) for clone in (net.clone(), net.clone()) for _ in '12']",
}


@pytest.mark.parametrize(("kind", "threads"), [(kind, 1 + i % 2) for i, kind in enumerate(THREADS)])
def test_threads_that_infer_do_not_disturb_the_end(mixed: Made, kind: str, threads: int) -> None:
    script = f"""
import threading, time
net = Runtime(sys.argv[1], threads={threads})
def start(use):
    def loop():
        while True:
            use(images)
    threading.Thread(target=loop, daemon=True).start()
{THREADS[kind]}
time.sleep(float(sys.argv[2]))
"""
    for delay in ("0.05", "0.13"):
        ran = python(script, mixed.path, delay)
        assert (ran.returncode, ran.stderr) == (0, "")


def test_a_program_that_waits_for_its_threads_at_its_end_is_not_held_up(mixed: Made) -> None:
    script = """
import atexit, threading, time
def wait():
    thread.join()
    print("joined")
atexit.register(wait)
from dfs_deploy import Runtime  # what it registers runs before, since it came later
net = Runtime(sys.argv[1])
def loop():
    try:
        while True:
            net(images)
    except Exception as error:
        print(type(error).__name__, flush=True)
thread = threading.Thread(target=loop, daemon=True)
thread.start()
time.sleep(0.1)
"""
    ran = python(script, mixed.path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "RuntimeClosedError\njoined\n", "")


# Close


class Slow:
    """Makes a backend's calls wait, so that something can happen meanwhile."""

    def __init__(self, backend: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self.freed: list[Any] = []
        infer, close = backend.infer, backend.close

        def slow(held: Any, images: Any, forced: Any, first: int = 0) -> Any:
            self.inside.set()
            assert self.leave.wait(PATIENCE_S)
            assert held not in self.freed, "freed under a running call"
            return infer(held, images, forced, first)

        def free(held: Any) -> None:
            self.freed.append(held)
            close(held)

        monkeypatch.setattr(backend, "infer", slow)
        monkeypatch.setattr(backend, "close", free)


def close_during_a_call(runtime: Runtime, slow: Slow) -> Any:
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(runtime, pixels(3))
        assert slow.inside.wait(PATIENCE_S)
        close = pool.submit(runtime.close)
        time.sleep(0.05)
        assert not close.done(), "it waits for the call"
        with refuses(RuntimeClosedError, "closed"):
            runtime(pixels(1))
        slow.leave.set()
        close.result(PATIENCE_S)
        assert slow.freed
        return call.result(PATIENCE_S)


def test_close_waits_for_a_call_of_another_thread(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(mixed.path) as other:
        expected = other(pixels(3))
    assert close_during_a_call(Runtime(mixed.path), Slow(OnnxRuntimeBackend, monkeypatch)) == expected


def test_on_a_gpu_nothing_is_freed_under_a_running_stream(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(mixed, tmp_path)
    with machine(), building_here():
        runtime = Runtime(bundle, "tensorrt")
        clone = runtime.clone()
        result = close_during_a_call(runtime, Slow(TensorRTBackend, monkeypatch))
        assert clone(pixels(3)) == result
        clone.close()
        with refuses(RuntimeClosedError):
            clone.clone()


def test_close_between_the_parts_of_a_long_batch_ends_it(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(OnnxRuntimeBackend, monkeypatch)
    monkeypatch.setattr(runtime, "_most", 2)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(runtime, pixels(9))
        assert slow.inside.wait(PATIENCE_S)
        close = pool.submit(runtime.close)
        time.sleep(0.05)
        slow.leave.set()
        close.result(PATIENCE_S)
        with refuses(RuntimeClosedError, "closed"):
            call.result(PATIENCE_S)


def test_a_call_that_is_closed_by_its_own_thread_goes_on_to_its_end(
    mixed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(mixed.path)
    expected = runtime(pixels(3))
    slow = Slow(OnnxRuntimeBackend, monkeypatch)

    def close(*_: object) -> None:
        runtime.close()
        slow.leave.set()

    signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert runtime(pixels(3)) == expected
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert slow.freed
    with refuses(RuntimeClosedError):
        runtime(pixels(3))


def test_a_call_within_a_call_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "infer", lambda *_: runtime(pixels(1)))
    with refuses(UsageError, "in use", "clone()"):
        runtime(pixels(1))
    monkeypatch.undo()
    runtime(pixels(1))


def test_threads_whose_runtime_is_closed_see_one_kind_of_error(mixed: Made) -> None:
    seen: list[str] = []

    def loop(net: Runtime, count: int) -> None:
        try:
            while True:
                net(pixels(count))
        except Exception as error:
            seen.append(type(error).__name__)

    for turn in range(8):
        net = Runtime(mixed.path)
        thread = threading.Thread(target=loop, args=(net, 1 + 4 * (turn % 4)))
        thread.start()
        time.sleep(0.005 + turn * 3e-4)
        net.close()
        thread.join(PATIENCE_S)
    assert seen == ["RuntimeClosedError"] * 8


def test_what_is_not_closed_is_freed_with_its_last_reference(mixed: Made) -> None:
    runtime = Runtime(mixed.path)
    with mock.patch.object(OnnxRuntimeBackend, "close", autospec=True) as close:
        del runtime
        gc.collect()
    assert close.call_count == 1


# Copies and pickles


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_clone(runtime: Runtime, duplicate: Any) -> None:
    runtime.set_cost_bias(0.5)
    with duplicate(runtime) as other:
        assert other.cost_bias == 0.5
        assert other(pixels(3)) == runtime(pixels(3))


def test_a_pickle_opens_the_same_bundle_in_the_same_way(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(mixed, tmp_path)
    monkeypatch.chdir(tmp_path)
    with Runtime(bundle.name, gate="numpy", threads=2, prepared=False, cache_dir="place") as runtime:
        runtime.set_cost_bias(0.25)
        expected, data = runtime(pixels(5)), pickle.dumps(runtime)
        assert len(data) < 2000, "no engines"
        monkeypatch.chdir("/")
        with pickle.loads(data) as other:  # noqa: S301 (made above)
            assert other(pixels(5)) == expected
            assert other.description == runtime.description
            assert other.cost_bias == 0.25
    with refuses(RuntimeClosedError):
        pickle.dumps(runtime)
    write_manifest(bundle, manifest_of(bundle))  # the same values, written in another way
    with refuses(BundleError, "another bundle than when", str(bundle)):
        pickle.loads(data)  # noqa: S301 (made above)


def test_a_spawned_process_gets_a_runtime_of_its_own(mixed: Made, tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(
        """
import multiprocessing, sys
import numpy as np
from dfs_deploy import Runtime

def classes(net):
    return net(np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)).classes.tolist()

if __name__ == "__main__":
    with Runtime(sys.argv[1]) as net, multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(classes, [net, net]) == [classes(net)] * 2)
"""
    )
    ran = subprocess.run(
        [sys.executable, str(script), str(mixed.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")
