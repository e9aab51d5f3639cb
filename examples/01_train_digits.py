"""Trains a network on scanned digits for a target of 30 % computation, and exports it.

    python examples/01_train_digits.py [--out FOLDER]

The network is a ResNet-14 on 16x16 images, trained by the paper's steps: its backbone, its gate, then both toward the
target. A run that was stopped goes on with ``dfs_deploy.training.resume``. Minutes on two CPU cores. Needs:
pip install ".[train]"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dfs_deploy import export
from dfs_deploy.data.digits import load_digits
from dfs_deploy.training import train

STEPS = {"backbone_steps": 200, "gate_steps": 150, "joint_steps": 400}


def main(arguments: Sequence[str] | None = None, **values: int) -> None:
    """Trains, prints what was reached, and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits-30"), help="folder for the run")
    out = parser.parse_args(arguments).out
    chosen = {"preset": "quick", "target": 30.0, "alpha": 1e-3, "blocks_per_group": 2, "batch": 64, **STEPS, **values}
    result = train("digits", out, progress=lambda text, share: print(text), **chosen)
    found = result.evaluation
    print(f"top-1 {found.top1:.2%} at {found.percentage:.1f} % computation, {found.paths} paths")
    bundle = export(result.checkpoint, out.with_suffix(".dfs"), calibration_data=load_digits("train")).bundle
    print(f"wrote {result.checkpoint} and {bundle.path}")


if __name__ == "__main__":
    main()
