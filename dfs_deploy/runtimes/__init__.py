"""Running a bundle: no PyTorch here, only NumPy, an inference engine and the manifest."""

from dfs_deploy.runtimes.api import BACKENDS, Result, Runtime
from dfs_deploy.runtimes.backend import Backend, BackendOptions, Substitution, running_engine, running_engines

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendOptions",
    "Result",
    "Runtime",
    "Substitution",
    "running_engine",
    "running_engines",
]
