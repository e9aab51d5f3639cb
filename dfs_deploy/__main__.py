"""``python -m dfs_deploy``."""

from dfs_deploy.cli import main

main()
