"""The command line."""

import sys


def main() -> None:
    """Entry point of ``dfs-deploy``."""
    from dfs_deploy.cli.process import open_streams, stoppable

    with stoppable():
        open_streams()
        try:
            from dfs_deploy.cli.app import main as run
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("typer", "rich"):
                raise
            sys.stderr.write(f"error: {error.name} is not installed and this needs it; run: pip install {error.name}\n")
            sys.exit(3)
        except KeyboardInterrupt:  # while libraries are imported
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        run()


__all__ = ["main"]
