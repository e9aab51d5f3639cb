"""Bundles on disk: manifest, reading and writing, samples, the walk over their engines, and their cache."""

from dfs_deploy.bundle.artefact import (
    SUFFIX,
    Bundle,
    Samples,
    describe_bundle,
    find_bundle,
    open_bundles,
    other_than_bundle,
    source_of,
)
from dfs_deploy.bundle.writing import check_writable, drafted_bundle, sharing_weights, write_bundle

__all__ = [
    "SUFFIX",
    "Bundle",
    "Samples",
    "check_writable",
    "describe_bundle",
    "drafted_bundle",
    "find_bundle",
    "open_bundles",
    "other_than_bundle",
    "sharing_weights",
    "source_of",
    "write_bundle",
]
