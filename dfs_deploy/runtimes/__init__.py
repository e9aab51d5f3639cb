"""Running a bundle: no PyTorch and no ONNX reader here, only NumPy, an inference engine and the manifest."""

from dfs_deploy.runtimes.base import BACKENDS, Backend, Result, Runtime, Substitution

__all__ = ["BACKENDS", "Backend", "Result", "Runtime", "Substitution"]
