"""One page that shows others what a bundle does here: accuracy, latency, decisions, and where precision is lost.

Two layers: :mod:`~dfs_deploy.report.results` is the data, every number that is shown; :mod:`~dfs_deploy.report.page`
makes the page from it and from nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs_deploy.report.build import report_bundle
    from dfs_deploy.report.page import render_page
    from dfs_deploy.report.results import BundleReport, Report, as_json

__all__ = ["BundleReport", "Report", "as_json", "render_page", "report_bundle"]

_HOMES = {
    "BundleReport": "results",
    "Report": "results",
    "as_json": "results",
    "render_page": "page",
    "report_bundle": "build",
}


def __getattr__(name: str) -> Any:
    """Imports on demand: the data needs no plotting library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dfs_deploy.report' has no attribute {name!r}")
    return getattr(import_module(f"dfs_deploy.report.{_HOMES[name]}"), name)
