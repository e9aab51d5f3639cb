"""Saved benches, and the bundles of a report that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfs_deploy.bench.result import BenchResult
from dfs_deploy.errors import SavedResultError, UsageError


def match_benches(
    digests: Sequence[str], benches: Sequence[tuple[Path, BenchResult]]
) -> tuple[BenchResult | None, ...]:
    """Finds the bench of each bundle, by its digest.

    Args:
        digests: digests of the bundles.
        benches: files and what they hold; fewer than bundles if some are to be timed now.

    Returns:
        The bench of each bundle, or ``None``.

    Raises:
        SavedResultError: a file is of another bundle.
        UsageError: two files are of one bundle.
    """
    found: dict[str, BenchResult] = {}
    for path, bench in benches:
        digest = bench.bundle.digest
        if digest not in digests:
            raise SavedResultError(
                f"{path} is of a bundle with digest {digest[:12]}, expected"
                f" {' or '.join(each[:12] for each in digests)}; run dfs-deploy bench again"
            )
        if digest in found:
            raise UsageError(f"{path} is of the same bundle as a file before it; give one file per bundle")
        found[digest] = bench
    return tuple(found.get(digest) for digest in digests)
