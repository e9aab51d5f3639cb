"""Dispatch at 224 pixels: networks by name, made adaptive, exported and timed on forced paths.

    python -m benchmarks.any_network torchvision:resnet18 torchvision:resnet50 lite0.py:network

Weights need not be trained: times do not depend on them. For each network it prints the time of dispatch and of the
straight-line trace of the same path over that of the static INT8 engine, the share of the trace's saving that dispatch
keeps, and size, memory and load time of the bundle. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dfs_deploy import Bundle, Runtime, adapt, bench, export, find_blocks
from dfs_deploy.checkpoints.plain import build_network
from dfs_deploy.data import Dataset
from dfs_deploy.exporters.probes import make_probes
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

LIMITS = {"100": 1.03, "trace": 1.02, "saving": 0.95, "size": 1.1, "memory": 1.2, "load": 3.0}
"""What each figure should reach; only ``saving`` is a least value."""


def random_network_bundle(name: str, options: str, folder: Path) -> Bundle:
    """Exports a network by name, adapted without training, with ranges of random images."""
    named = build_network(name)
    model = adapt(named.net, find_blocks(named.net, named.example), options)
    model.contract = named.contract
    images = make_probes(named.contract, 0)[:16]
    data = Dataset(images, np.arange(len(images)) % model.architecture.classes, (), "synthetic images")
    out = folder / f"{name.replace(':', '-').replace('/', '-')}-{options.replace(',', '-')}.dfs"
    return export(model, out, targets=("fp32", "int8"), calibration_data=data).bundle


def forced_figures(bundle: Bundle, seconds: float) -> dict[str, float]:
    """Times of forced paths over that of static INT8, from one run of ``bench``."""
    result = bench(bundle, forced=True, min_seconds=seconds, start_ups=0, energy_seconds=0.0)
    cases = {case.name: case.latency_ms.p50 for case in result.cases if case.batch == 1}
    static = cases["static-int8"]
    figures = {"static-int8 ms": static, "static-fp32 ms": cases["static-fp32"]}
    for share in (0, 25, 50, 75, 100):
        dispatch, trace = (cases[f"{kind}-{share}-int8"] for kind in ("dfs-forced", "trace"))
        figures |= {f"dispatch {share}": dispatch / static, f"trace {share}": dispatch / trace}
        if 0 < share < 100:
            figures[f"saving {share}"] = (static - dispatch) / (static - trace)
    return figures


def _held(kind: str, path: str, queue: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Memory in MiB that belongs to this process alone after loading, and the seconds that loading took."""
    bundle = Bundle(path)
    before, begin = _private(), time.perf_counter()
    held: list[Any] = []
    if kind == "dynamic":
        held.append(Runtime(bundle))
    else:
        held += [StaticEngine(bundle, "fp32"), StaticEngine(bundle, "int8")]
    taken = time.perf_counter() - begin
    images = np.zeros((1, *bundle.input.shape), np.float32)
    for each in held:
        each(images)
    queue.put((_private() - before, taken))


def _private() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def load_figures(bundle: Bundle) -> dict[str, float]:
    """Memory and time of loading, over those of static FP32 and static INT8 together."""
    Runtime(bundle).close()  # what is made once for a machine is made now
    context = multiprocessing.get_context("spawn")
    medians = {}
    for kind in ("dynamic", "static"):
        found = []
        for _ in range(5):
            queue = context.Queue()
            process = context.Process(target=_held, args=(kind, str(bundle.path), queue))
            process.start()
            found.append(queue.get())
            process.join()
        medians[kind] = np.median(np.array(found), 0)
    memory, load = medians["dynamic"] / medians["static"]
    return {"memory MiB": float(medians["dynamic"][0]), "memory": float(memory), "load": float(load)}


def main() -> None:
    """Prints the figures of each network, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="as in dfs-deploy blocks --network")
    parser.add_argument("--options", default="skip,8")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds per case")
    parser.add_argument("--keep", type=Path, help="folder for the bundles; those that are there are used again")
    parser.add_argument("--no-times", action="store_true", help="only size, memory and load time")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.networks:
            place = folder / f"{name.replace(':', '-').replace('/', '-')}-{args.options.replace(',', '-')}.dfs"
            bundle = Bundle(place) if place.exists() else random_network_bundle(name, args.options, folder)
            figures = {} if args.no_times else forced_figures(bundle, args.seconds)
            figures |= {"size MB": bundle.size / 1e6, **load_figures(bundle)}
            found[name] = figures
            print(f"{name}, options {args.options}")
            for key, value in figures.items():
                print(f"  {key:18} {value:9.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
