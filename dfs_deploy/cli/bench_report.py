"""A bench as a person reads it: what was run on what, the tables, and the verdict and the comparison last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from dfs_deploy.cli.console import engine_choice, output, percent, show_table

if TYPE_CHECKING:
    from dfs_deploy.bench.result import BenchResult, Comparison, PowerState, Ratios

_BLOCKS_PER_ROW = 18


def show_bench(result: BenchResult) -> None:
    """Prints a bench; the verdict comes last, or the comparison with a baseline."""
    console = output()
    for line in _where(result):
        console.print(line)
    _show_cases(result)
    _show_mixture(result)
    _show_paths(result)
    _show_forced(result)
    _show_start_up(result)
    _show_energy(result)
    console.print()
    for line in _notes(result):
        console.print(line)
    for caveat in result.verdict.caveats:
        console.print(f"note: {caveat}")
    for problem in result.problems:
        console.print(Text.assemble(("INVALID: ", "bold red"), f"{problem.what}; {problem.remedy}"))
    if result.valid:
        console.print(Text.assemble(("VALID", "bold green"), f": {_steadiness(result)}"))
    console.print(Text.assemble(("verdict: ", "bold"), (result.verdict.words, "bold")))
    if result.comparison is not None:
        _show_comparison(result.comparison)


def _show_comparison(comparison: Comparison) -> None:
    """Prints what changed since the baseline."""
    console = output()
    band = f"{100 * comparison.noise_band:.1f} %"
    rows: list[list[str | Text]] = [
        [
            change.name,
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            f"{100 * (change.change.value - 1):+.1f} %",
            f"{100 * (change.change.low - 1):+.1f} to {100 * (change.change.high - 1):+.1f}",
            Text("REGRESSED", "red") if change.regressed else Text("ok", "green"),
        ]
        for change in comparison.changes
    ]
    over = comparison.changes[0].over if comparison.changes else "baseline"
    _show(f"latency over {over}, against the baseline", ["case", "before", "now", "change", "95 %", ""], rows)
    for note in comparison.notes:
        console.print(f"note: {note}")
    console.print("FAILED" if comparison.failures else f"PASSED: no ratio rose beyond the noise band of {band}")


def _where(result: BenchResult) -> Iterator[str]:
    machine, state, facts = result.machine, result.state, result.runtime
    bundle = result.bundle
    yield f"{bundle.name}, {bundle.architecture}: {result.inputs} inputs ({result.data}), seed {result.seed}"
    if point := result.point_of(bundle.digest):
        yield f"dfs: {point}"
    for other in result.against:
        yield f"beside {other.name}, {other.architecture}" + (f", {other.point}" if other.point else "")
    quota = "" if machine.quota is None else f", CPU quota {machine.quota:g}"
    yield f"{machine.cpu}, {machine.cores} core(s){quota}, {machine.int8 or 'no 8-bit product instructions'}"
    gate = f"{facts['gate']} gate, engine choice: {engine_choice(facts.get('plan'))}"
    layout = f", layout: {facts['layout']}" if facts.get("layout") else ""
    threads = "" if result.threads is None else f", {result.threads} thread(s)"
    yield f"{facts['runtime']} {facts['version']}{threads}, {gate}{layout}"
    clock = [
        f"governor {state.governor or 'unknown'}",
        "frequency unknown" if state.frequency_mhz is None else f"{state.frequency_mhz:,.0f} MHz",
        f"turbo {'unknown' if state.turbo is None else 'on' if state.turbo else 'off'}",
        *([] if state.load is None else [f"load {state.load:.1f}"]),
        *(["virtual machine"] if state.virtual else []),
    ]
    yield ", ".join(clock)
    if result.jetson is not None:
        board, before, after = result.jetson.board, result.jetson.before, result.jetson.after
        locked = {True: "locked", False: "free", None: "unknown"}[before.clocks_locked]
        yield f"{board.model}, JetPack {board.jetpack}, TensorRT {board.tensorrt}, CUDA {board.cuda}"
        heat = f"{_celsius(before)} before, {_celsius(after)} after"
        yield f"power mode {before.mode or 'unknown'}, clocks {locked}, {heat}"


def _show_cases(result: BenchResult) -> None:
    base = result.normaliser
    columns = ["case", "p50 ms", "p95 ms", "p99 ms", "CoV", "images/s", "top-1"]
    columns += [] if base is None else ["ratio"]
    rows: list[list[str | Text]] = []
    for case in result.compared:
        latency = case.latency_ms
        row: list[str | Text] = [
            case.name,
            *(_number(value, ".3f") for value in (latency.p50, latency.p95, latency.p99)),
            Text(f"{100 * latency.cov:.0f} %", "yellow" if case.name in result.noisy else ""),
            f"{case.throughput_per_s:,.0f}",
            percent(case.top1),
        ]
        rows.append(row if base is None else [*row, _p50(case.ratio)])
    over = "" if base is None else f"; ratio: p50 over that of {base.name}"
    _show(f"batch {result.cases[0].batch}, in rounds on the same inputs{over}", columns, rows)


def _show_mixture(result: BenchResult) -> None:
    """The share of inputs by option, blocks across and no lines between, so that a deep network fits a terminal."""
    console, names = output(), result.bundle.options
    width = max(map(len, (*names, "block")))
    blocks = list(enumerate(result.option_share, 1))
    for start in range(0, len(blocks), _BLOCKS_PER_ROW):
        part = blocks[start : start + _BLOCKS_PER_ROW]
        console.print()
        console.print(Text("path mixture: percent of the inputs, by block and option", "bold"))
        console.print(f"{'block':<{width}}" + "".join(f"{block:4}" for block, _ in part))
        for option, name in enumerate(names):
            console.print(f"{name:<{width}}" + "".join(f"{100 * share[option]:4.0f}" for _, share in part))


def _show_paths(result: BenchResult) -> None:
    rows = [
        [
            path.kind,
            _number(path.latency_ms.p50, ".3f"),
            _number(path.latency_ms.p95, ".3f"),
            percent(path.share, 1),
            f"{path.computation_percentage:.1f} %",
            ", ".join(
                f"{count} at {name} bits" if name.isdecimal() else f"{count} {name}"
                for name in result.bundle.options
                if (count := path.path.count(name))
            ),
        ]
        for path in result.paths
    ]
    _show("by path", ["path", "p50 ms", "p95 ms", "inputs", "computation", "blocks"], rows)


def _show_forced(result: BenchResult) -> None:
    blocks = max((path.blocks for path in result.forced), default=0)  # all that may be skipped
    rows = [
        [
            f"{path.blocks}/{blocks} {path.precision.upper()}",
            f"{path.dispatch_ms:.3f}",
            f"{path.trace_ms:.3f}",
            _p50(path.over_static),
            _p50(path.over_trace),
            _number(path.gate_us, ".1f"),
            _number(path.dispatch_us, ".1f"),
        ]
        for path in result.forced
    ]
    columns = ["blocks run", "p50 ms", "trace", "/ static", "/ trace", "gate us", "other us"]
    _show("forced paths, the other blocks skipped", columns, rows)
    if rows:
        output().print("static: the static engine of that precision; trace: the same path as one engine.")
        output().print("gate us, other us: per gated block, the gate's step and what is neither engine nor gate.")


def _show_start_up(result: BenchResult) -> None:
    rows = [
        [
            start.name,
            f"{start.import_ms:.0f}",
            f"{start.load_ms:.0f}",
            f"{start.first_result_ms:.2f}",
            f"{start.total_ms:.0f}",
            _number(start.rss_mb, ".0f"),
            _number(start.loaded_mb, ".0f"),
        ]
        for start in result.start_up
    ]
    columns = ["process", "import ms", "load ms", "first ms", "total ms", "RSS MB", "bundle MB"]
    _show(f"start of a process, median of {max((s.processes for s in result.start_up), default=0)}", columns, rows)


def _show_energy(result: BenchResult) -> None:
    energy = result.energy
    if energy is None:
        return
    rows = [
        [
            case.name,
            f"{1e3 * case.joules_per_image:.3f}",
            f"{1e3 * case.joules_per_image_over_idle:.3f}",
            f"{case.watts:.2f}",
            f"{case.images:,}",
        ]
        for case in energy.cases
    ]
    where = f"{energy.rail} by {energy.source}, {energy.rate_hz:.0f} samples per second, idle {energy.idle_watts:.2f} W"
    _show(f"energy: {where}", ["case", "mJ per image", "over idle", "W", "images"], rows)


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Prints a table after an empty line; nothing if it has no rows."""
    if rows:
        output().print()
        show_table(title, columns, rows)


def _notes(result: BenchResult) -> Iterator[str]:
    yield from (f"note: {note}" for note in result.notes)
    dfs = result.dynamic
    if dfs.computation_percentage is not None:
        yield f"computation: {dfs.computation_percentage:.1f} % of running every decided block in full precision"
    if dfs.engine_ms is not None and dfs.gate_us is not None and dfs.gate_share is not None:
        interval = dfs.dispatch_efficiency_interval
        within = "" if interval is None else f" ({interval.low:.2f} to {interval.high:.2f})"
        yield (
            f"dispatch efficiency {dfs.dispatch_efficiency:.2f}{within}: engines by themselves {dfs.engine_ms:.3f}"
            f" of {dfs.latency_ms.p50:.3f} ms; gate {dfs.gate_us:.1f} us per step, {percent(dfs.gate_share, 1)} of it"
        )
    if dfs.predicted_ms is not None:
        yield (
            f"predicted by the table of costs: {dfs.predicted_ms:.3f} ms at the median, engines and gate without"
            f" dispatch; measured is {dfs.prediction_ratio:.2f}x that"
        )
    if result.energy is None:
        yield f"energy was not measured: {result.no_energy}"
    if result.noisy:
        yield f"noisy: {', '.join(result.noisy)} varied by more than 2.5 %; trust ratios, not times"


def _steadiness(result: BenchResult) -> str:
    against = result.rival
    if against is None:
        said = "accuracy alone decides" if result.verdict.choice else "nothing in the verdict depends on a time"
    else:
        ends = f"{against.p50.low:.2f} and {against.p50.high:.2f}"
        which = f"{result.contender} over {against.over}"
        said = f"the ratio of the medians, {which}, lies between {ends} with 95 % confidence"
    longer = "" if result.looks == 1 else f"; the run was extended {result.looks - 1} time(s) for that"
    taken = result.disturbance.preemptions_per_s
    return (
        said
        + longer
        + ("" if taken is None else f"; other processes interrupted the timing {taken:.0f} times per second")
    )


def _celsius(state: PowerState) -> str:
    return "temperature unknown" if state.celsius is None else f"{state.celsius:.1f} °C ({state.sensor})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _p50(ratios: Ratios | None) -> str:
    return "-" if ratios is None else f"{ratios.p50.value:.2f} ±{100 * ratios.p50.uncertainty:.0f} %"
