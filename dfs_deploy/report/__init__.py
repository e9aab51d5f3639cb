"""One page that shows others what a bundle does here: accuracy, latency, decisions, and where precision is lost.

Three modules: the data (``dfs_deploy.report.data``, measured by ``dfs_deploy.report.build``), the charts
(``dfs_deploy.report.charts``) and the page (``dfs_deploy.report.page``), which is made from the data and from
nothing else. ``dfs_deploy.report.figures`` draws training runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dfs_deploy.verbs import make_callable

if TYPE_CHECKING:
    from dfs_deploy.report.build import report
    from dfs_deploy.report.data import BundleReport, Report
    from dfs_deploy.report.figures import write_figures
    from dfs_deploy.report.page import render_page
    from dfs_deploy.report.runs import TrainingRun, load_run

__all__ = ["BundleReport", "Report", "TrainingRun", "load_run", "render_page", "report", "write_figures"]

_HOMES = {
    "BundleReport": "data",
    "Report": "data",
    "TrainingRun": "runs",
    "load_run": "runs",
    "render_page": "page",
    "report": "build",
    "write_figures": "figures",
}

make_callable(__name__)


def __getattr__(name: str) -> Any:
    """Imports a name when it is first asked for: the data needs no plotting library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dfs_deploy.report' has no attribute {name!r}")
    return getattr(import_module(f"dfs_deploy.report.{_HOMES[name]}"), name)
