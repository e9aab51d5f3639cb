"""The command line as a process of its own: streams that are closed, full or of another encoding, and signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bundles import Made, copied
from tests.cli.program import Ran, run, run_apart

PROGRAM = [sys.executable, "-m", "dfs_deploy"]
PATIENCE = 120.0
"""Seconds after which a test gives up; none waits so long on a sound machine."""


def shell(arguments: str, before: str = "", **environment: str) -> Ran:
    """Runs the program by a shell, which can close streams, and by a command before it, if there is one."""
    command = f'exec {before} "$PYTHON" -m dfs_deploy {arguments}'
    ran = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        timeout=PATIENCE,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.fixture
def odd(mixed: Made, pictures: Path, tmp_path: Path) -> Path:
    """A bundle, and beside it a folder with an image whose name is no text."""
    copied(mixed, tmp_path)
    (tmp_path / "odd").mkdir()
    os.link(pictures / "a.png", os.fsencode(tmp_path / "odd") + b"/caf\xe9.png")
    return tmp_path


# Streams


@pytest.mark.parametrize("verb", ["inspect --json", "run {pictures}", "--help"])
def test_a_closed_output_is_one_line_before_any_work(mixed: Made, pictures: Path, verb: str) -> None:
    words = verb.format(pictures=pictures)
    name, _, rest = words.partition(" ")
    bundle = mixed.path if name in ("inspect", "run") else ""
    shell(f"{name} {bundle} {rest} >&-").failed(3, "standard output is closed")


def test_a_closed_output_stops_an_export_before_its_work(mixed: Made, tmp_path: Path) -> None:
    shell(f"export {mixed.checkpoint} --out {tmp_path}/net.dfs >&-").failed(3, "standard output is closed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inspect --json", "--help"])
def test_a_full_output_is_one_line(mixed: Made, verb: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    bundle = mixed.path if "inspect" in verb else ""
    shell(f"{verb} {bundle} > /dev/full").failed(3, "standard output: No space left on device")


def test_without_standard_error_results_and_codes_are_the_same(mixed: Made, pictures: Path) -> None:
    ran = shell(f"run {mixed.path} {pictures} --json 2>&-")
    assert (ran.code, ran.err) == (0, "")
    assert len(json.loads(ran.out)["results"]) == 3
    assert shell(f"run {mixed.path} {pictures} 2>&-").code == 0, "progress has nowhere to go"
    assert shell("fly 2>&-").code == 2
    assert shell("inspect missing.dfs 2>&-").code == 4
    assert shell("fly 2>/dev/full").code == 2


def test_with_every_stream_closed_nothing_is_written_elsewhere(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    before = {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    assert shell(f"inspect {bundle} <&- >&- 2>&-").code == 3
    ran = shell(f"inspect {bundle} <&- 2>&-")
    assert ran.code == 0
    assert "runs here" in ran.out
    assert before == {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_any_encoding_carries_the_output(odd: Path, environment: dict[str, str]) -> None:
    ascii_only = "utf-8:strict" not in environment.values()
    for arguments in (f"run {odd}/mixed.dfs {odd}/odd", f"inspect {odd}/mixed.dfs"):
        command = ["sh", "-c", f'exec "$PYTHON" -m dfs_deploy {arguments}']
        variables = {**os.environ, "PYTHON": sys.executable, **environment}
        ran = subprocess.run(command, capture_output=True, check=False, env=variables)
        assert ran.returncode == 0, ran
        assert b"Traceback" not in ran.stderr
        if arguments.startswith("run"):
            assert rb"caf\xe9.png" in ran.stdout, "the byte is shown as an escape"
            assert ran.stdout.isascii() == ascii_only
            assert ("┃".encode() in ran.stdout) != ascii_only, "the table's lines fall back"
        else:
            assert ran.stdout


def test_json_leads_to_a_file_whose_name_is_no_text(odd: Path) -> None:
    ran = run_apart("run", odd / "mixed.dfs", odd / "odd", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.isascii()
    (entry,) = ran.json["results"]
    assert Path(entry["file"]).is_file()
    assert entry["file_uri"] == f"{(odd / 'odd').as_uri()}/caf%E9.png"


# Signals


@contextmanager
def started(arguments: Sequence[object], prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A process of the program that runs for long, and is gone in the end in any case."""
    command = [*prefix, *PROGRAM, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(seen: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for something; fails if it does not come, or if the process ends before it."""
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, "it ended before"
        time.sleep(0.01)


def said(process: subprocess.Popen[str], line: str) -> None:
    """Waits for a line on standard error."""
    assert process.stderr is not None
    while True:
        assert select.select([process.stderr], [], [], PATIENCE)[0]
        got = process.stderr.readline()
        assert got, "it ended before"
        if got.startswith(line):
            return


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was still said."""
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def long_bench(mixed: Made, *more: object) -> list[object]:
    return ["bench", mixed.path, "--min-seconds", 600, "--start-ups", 0, "--energy-seconds", 0, *more]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_export_and_leaves_nothing(
    mixed: Made, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    arguments = ["export", mixed.checkpoint, "--out", tmp_path / "net.dfs", "--targets", "fp32"]
    with started(arguments) as process:
        until(lambda: list(tmp_path.glob(".net.dfs*.tmp")), process)
        process.send_signal(number)
        status, err = ended(process)
    assert status == code
    assert err.splitlines()[-1] == f"stopped by {number.name}"
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_signal_ends_the_first_process_of_a_container(mixed: Made) -> None:
    """The kernel lets process 1 ignore what it has no handler for."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be made here")
    with started(long_bench(mixed), prefix) as process:
        said(process, "timing")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (first,) = map(int, children.read_text().split())
        try:
            os.kill(first, signal.SIGTERM)
            status, err = ended(process)
        finally:
            if Path(f"/proc/{first}").exists():
                os.kill(first, signal.SIGKILL)
    assert (status, err) == (143, "stopped by SIGTERM\n")


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(mixed: Made) -> None:
    """As nohup wants it."""
    with started(long_bench(mixed), ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]) as process:
        said(process, "timing")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "stopped by SIGTERM\n")


UNWILLING = """
import sys, time
from dfs_deploy import bundle
def slow(self, path):
    try:
        print("working", file=sys.stderr, flush=True)
        time.sleep(600)
    finally:
        print("unwinding", file=sys.stderr, flush=True)
        time.sleep(600)
bundle.Bundle.__init__ = slow
sys.argv = ["dfs-deploy", "inspect", "net.dfs"]
from dfs_deploy.cli import main
main()
"""


def test_a_second_signal_ends_it_at_once() -> None:
    command = [sys.executable, "-c", UNWILLING]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        said(process, "working")
        process.send_signal(signal.SIGTERM)
        said(process, "unwinding")
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (143, "")
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "from dfs_deploy.cli import main; main()"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", script, "doctor"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "interrupted\n")


def test_the_library_installs_no_handler() -> None:
    script = (
        "import signal\n"
        "before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]\n"
        "from dfs_deploy import Runtime\n"
        "import dfs_deploy.cli.app\n"
        "assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_handlers_of_others_stay_and_ours_go(mixed: Made) -> None:
    def theirs(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        assert run("inspect", mixed.path).code == 0
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
    hangup = signal.getsignal(signal.SIGHUP)
    assert run("inspect", mixed.path).code == 0
    assert signal.getsignal(signal.SIGHUP) == hangup


# Children


def children_of(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_of_a_bench_end_with_it(mixed: Made, number: signal.Signals) -> None:
    arguments = ["bench", mixed.path, "--min-seconds", 0.01, "--min-iterations", 4, "--start-ups", 500]
    with started([*arguments, "--energy-seconds", 0]) as process:
        until(lambda: _starting(process.pid), process)
        (child,) = _starting(process.pid)
        try:
            os.kill(child, signal.SIGSTOP)  # so that it would stay for ever
            process.send_signal(number)
            process.wait(PATIENCE)
            until(lambda: not alive(child))
        finally:
            if alive(child):
                os.kill(child, signal.SIGKILL)


def _starting(pid: int) -> list[int]:
    """Children that have begun their work: they have loaded the library, and are no copy of the parent any more."""
    found = []
    for child in children_of(pid):
        try:
            ours = b"bench.start_up" in Path(f"/proc/{child}/cmdline").read_bytes()
            begun = ours and "onnxruntime" in Path(f"/proc/{child}/maps").read_text()
        except OSError:
            continue
        found += [child] if begun else []
    return found


# What lies around it


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None, "USER": None, "LOGNAME": None},
        {"HOME": "/dev/null"},
        {"TMPDIR": "/dev/null"},
    ],
    ids=lambda given: " ".join(f"{name}={value}" for name, value in given.items()),
)
def test_neither_a_home_nor_a_folder_for_temporary_files_is_needed(
    mixed: Made, pictures: Path, tmp_path: Path, environment: dict[str, str | None]
) -> None:
    names = {"XDG_CACHE_HOME": None, **environment}
    unset = " ".join(f"-u {name}" for name, value in names.items() if value is None)
    given = {name: value for name, value in names.items() if value is not None}
    bundle = copied(mixed, tmp_path)
    ran = shell(f"run {bundle} {pictures} --json", before=f"env {unset}", **given)
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.json["results"]) == 3
    ran = shell(f"export {mixed.checkpoint} --out {tmp_path}/made.dfs --targets fp32", before=f"env {unset}", **given)
    assert ran.code == 0, ran
    assert {entry.name for entry in tmp_path.iterdir()} <= {bundle.name, f"{bundle.name}.cache", "made.dfs"}


def test_a_folder_for_temporary_files_may_be_full(mixed: Made, pictures: Path, tmp_path: Path) -> None:
    bundle, full = copied(mixed, tmp_path), tmp_path / "full"
    full.mkdir()
    mounted = f"mount -t tmpfs -o size=4k full {full}"
    apart = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*apart, mounted], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    fill = f"{mounted}; cat /dev/zero > {full}/all 2> /dev/null"
    for arguments in (
        f"run {bundle} {pictures}",
        f"export {mixed.checkpoint} --out {tmp_path}/made.dfs --targets fp32",
    ):
        ran = subprocess.run(
            [*apart, f'{fill}; TMPDIR={full} exec "$PYTHON" -m dfs_deploy {arguments}'],
            capture_output=True,
            check=False,
            text=True,
            env={**os.environ, "PYTHON": sys.executable},
        )
        assert ran.returncode == 0, ran
    described = "import sys; from dfs_deploy import Runtime; print(Runtime(sys.argv[1]).description['layout'])"
    ran = subprocess.run([sys.executable, "-c", described, bundle], capture_output=True, check=True, text=True)
    assert "No space" not in ran.stdout
