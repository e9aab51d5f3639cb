"""The command line."""


def main() -> None:
    """Entry point of ``dfs-deploy``."""
    from dfs_deploy.cli.app import main as run

    run()


__all__ = ["main"]
