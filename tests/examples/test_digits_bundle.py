"""What the other examples run is what it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dfs_deploy import Runtime, load_dataset


def test_its_budgets_hold_on_other_images(digits: Path) -> None:
    data = load_dataset(digits / "digits-test.npz")
    with Runtime(digits / "digits.dfs") as net:
        shares = []
        for budget in (0.15, 0.3, 0.6):
            net.set_budget(budget)
            result = net(data.images)
            assert abs(float(result.computation_percentage.mean()) - 100 * budget) < 5
            shares.append(float(np.mean(result.classes == data.labels)))
        assert shares[1] > 0.95
        assert shares[1] > shares[0]
