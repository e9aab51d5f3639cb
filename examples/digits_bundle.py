"""Makes what the other examples run: digits.dfs, with budgets, and digits-test.npz.

    python examples/digits_bundle.py [--out FOLDER]

Exports digits.pt, which lies beside this file, calibrated on 256 scanned digits; 500 others are written for the
examples to run. It is a ResNet-14 with all four options, trained by the loop of an earlier version, whose recipe and
figures digits-training.json keeps. It was chosen for its varied paths, and on the test split: its accuracy is no
result. Needs: pip install ".[train]"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dfs_deploy import export
from dfs_deploy.data import save_npz
from dfs_deploy.data.digits import load_digits

BUDGETS = (0.15, 0.3, 0.6)
SAMPLES = 256


def make_digits_bundle(folder: Path) -> tuple[Path, Path]:
    """Writes ``digits.dfs`` and ``digits-test.npz`` into a folder, and gives both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle, data = folder / "digits.dfs", folder / "digits-test.npz"
    checkpoint = Path(__file__).parent / "digits.pt"
    export(checkpoint, bundle, calibration_data=load_digits("train"), calibration_samples=SAMPLES, budgets=BUDGETS)
    save_npz(data, load_digits("test"))
    return bundle, data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    for made in make_digits_bundle(parser.parse_args().out):
        print(made)
