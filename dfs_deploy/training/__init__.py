"""Training by the paper's two-step procedure: a backbone, its gate, then both toward a computation percentage.

from dfs_deploy.training import Job, preset, train

trained = train(Job("digits", preset("quick", target=30.0)), "run")
trained.checkpoint  # what dfs-deploy export takes
"""

from dfs_deploy.training.data import DIGITS, SplitChoice, Splits, choose_splits, is_digits, load_splits
from dfs_deploy.training.evaluation import Evaluation, evaluate
from dfs_deploy.training.forward import joint_forward
from dfs_deploy.training.job import Job
from dfs_deploy.training.metrics import read_metrics
from dfs_deploy.training.recipe import PRESETS, Recipe, preset
from dfs_deploy.training.sensitivity import PolicySearch, search_policy
from dfs_deploy.training.trainer import Observer, Trained, check_new, resume, train

__all__ = [
    "DIGITS",
    "PRESETS",
    "Evaluation",
    "Job",
    "Observer",
    "PolicySearch",
    "Recipe",
    "SplitChoice",
    "Splits",
    "Trained",
    "check_new",
    "choose_splits",
    "evaluate",
    "is_digits",
    "joint_forward",
    "load_splits",
    "preset",
    "read_metrics",
    "resume",
    "search_policy",
    "train",
]
