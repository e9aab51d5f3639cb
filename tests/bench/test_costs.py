from __future__ import annotations

from dfs_deploy.bench.costs import measure_costs
from dfs_deploy.bundle import Bundle
from tests.bundles import Made


def test_every_option_of_every_block_is_timed(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    told: list[float] = []
    table = measure_costs(bundle, plan=False, progress=told.append)
    assert told[-1] == 1.0
    assert (table.bundle, table.threads) == (bundle.digest, 1)
    assert [(e.block, e.option) for e in table.entries] == [(b, o) for b in (1, 2, 3) for o in bundle.options.names]
    for entry in table.entries:
        free = entry.option == "skip" and entry.block != 2  # the second block changes shape: its skip projects
        assert (entry.engine_us == 0.0) == free
        assert (entry.precision is None) == free
    assert {e.precision for e in table.entries if e.option == "8"} == {"int8"}
    assert table.gate_us > 0.0
    costs = table.costs(bundle.architecture, bundle.options)
    assert costs.shape == (3, 4)
    assert costs.min() > 0.0
