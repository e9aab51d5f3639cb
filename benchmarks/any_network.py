"""Dispatch at 224 pixels: networks by name, made adaptive, exported and timed on forced paths.

    python -m benchmarks.any_network torchvision:resnet18 torchvision:resnet50 my_module:function

Weights need not be trained: times do not depend on them. For each network it prints the time of dispatch and of the
straight-line trace of the same path over that of the static INT8 engine, the share of the trace's saving that dispatch
keeps, and the bundle's size; ``benchmarks.loading`` measures how one that is kept loads. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from dfs_deploy import Bundle, adapt, bench, export, find_blocks
from dfs_deploy.checkpoints import build_network
from dfs_deploy.data import Dataset
from dfs_deploy.exporters.probes import make_probes


def bundle_path(name: str, options: str, folder: Path) -> Path:
    """Place of the bundle of a network by name."""
    return folder / f"{name.replace(':', '-').replace('/', '-')}-{options.replace(',', '-')}.dfs"


def random_network_bundle(name: str, options: str, folder: Path) -> Bundle:
    """Exports a network by name, adapted without training, with ranges of random images."""
    named = build_network(name)
    model = adapt(named.net, find_blocks(named.net, named.example), options)
    model.contract = named.contract
    images = make_probes(named.contract, 0)[:16]
    data = Dataset(images, np.arange(len(images)) % model.architecture.classes, (), "synthetic images")
    out = bundle_path(name, options, folder)
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


def main() -> None:
    """Prints the figures of each network, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="as in dfs-deploy blocks --network")
    parser.add_argument("--options", default="skip,8")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds per case")
    parser.add_argument("--keep", type=Path, help="folder for the bundles; those that are there are used again")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.networks:
            place = bundle_path(name, args.options, folder)
            bundle = Bundle(place) if place.exists() else random_network_bundle(name, args.options, folder)
            figures = forced_figures(bundle, args.seconds) | {"size MB": bundle.size / 1e6}
            found[name] = figures
            print(f"{name}, options {args.options}")
            for key, value in figures.items():
                print(f"  {key:18} {value:9.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
