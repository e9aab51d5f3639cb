"""The command line."""

import sys


def main() -> None:
    """Entry point of ``dfs-deploy``."""
    from dfs_deploy.cli.process import Stopped, describe_stop, open_streams, stoppable

    with stoppable():
        open_streams()
        try:
            from dfs_deploy.cli.app import main as run
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("typer", "rich"):
                raise
            sys.stderr.write(f"error: {error.name} is not installed and this needs it; run: pip install {error.name}\n")
            sys.exit(3)
        except (KeyboardInterrupt, Stopped) as stop:  # while libraries are imported
            how, code = describe_stop(stop)
            sys.stderr.write(f"{how}\n")
            sys.exit(code)
        run()


__all__ = ["main"]
