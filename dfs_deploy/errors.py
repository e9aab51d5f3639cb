"""Every error that dfs-deploy raises on purpose.

    DfsDeployError
    ├── CheckFailedError          a bar was missed                      exit 1
    │   ├── ExportMismatchError       an engine disagrees with the reference
    │   │   └── GraphRuleError            an engine breaks a rule of its runtime
    │   ├── VerificationError         a bundle misses its bars
    │   └── RegressionError           a bench is slower than its baseline
    ├── UsageError (ValueError)   the call is wrong                     exit 2
    │   ├── OptionError               an option list or target list that cannot be
    │   ├── DataError                 a data set or image that cannot be read
    │   └── InputError                an array that the network cannot take
    ├── EnvironmentLacksError     this machine misses something         exit 3
    │   ├── DependencyError           a library (ImportError)
    │   │   └── MissingExtraError         that an extra brings
    │   └── OutOfMemoryError          memory (MemoryError)
    ├── ArtefactError             the file does not fit here            exit 4
    │   ├── CheckpointError           a checkpoint that cannot be read or split
    │   │   ├── UnsafeCheckpointError     a pickle that would run code
    │   │   └── UnknownCheckpointError    no recogniser knows its keys
    │   ├── SavedResultError          a saved result that cannot be read, or is of something else
    │   └── BundleError               a bundle that cannot be read
    │       ├── SchemaVersionError        written by another version
    │       └── DigestError               a file changed, missing, foreign or outside
    ├── EngineError               the execution provider failed         exit 4
    ├── RuntimeClosedError        used after close()
    └── InternalError             our bug, not yours

A message is one line: what was seen, what was expected, what to do. Text from outside in it (names, keys, what a
library said) is made fit for a terminal here, for every error: see :mod:`dfs_deploy.io.text`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfs_deploy.io.text import one_line


class DfsDeployError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class CheckFailedError(DfsDeployError):
    """A result was computed and misses a bar."""


class ExportMismatchError(CheckFailedError):
    """At least one exported engine disagrees with the reference.

    Attributes:
        mismatches: one line for each engine beyond its tolerance.
    """

    def __init__(self, message: str, mismatches: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.mismatches = tuple(map(one_line, mismatches))


class GraphRuleError(ExportMismatchError):
    """At least one exported graph breaks a rule of the runtime that it is for; ``mismatches`` lists every breach."""


class VerificationError(CheckFailedError):
    """A bundle misses its accuracy or routing bars."""


class RegressionError(CheckFailedError):
    """A bench is slower than its baseline, or too unsteady to tell."""


class UsageError(DfsDeployError, ValueError):
    """The call itself is wrong."""

    exit_code = 2


class OptionError(UsageError):
    """An option list or a list of targets that cannot be."""


class DataError(UsageError):
    """A data set or an image that cannot be read."""


class InputError(UsageError):
    """An array that the network cannot take."""


class EnvironmentLacksError(DfsDeployError):
    """This machine misses something that the call needs."""

    exit_code = 3


class DependencyError(EnvironmentLacksError, ImportError):
    """A library that the call needs is not installed, too old, or cannot be imported; the message says which and why.

    Attributes:
        module: name of the module.
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module

    def __reduce__(self) -> tuple[type[DependencyError], tuple[str, str]]:
        # An exception is otherwise rebuilt from its message alone.
        return type(self), (str(self), self.module)


class MissingExtraError(DependencyError):
    """An optional dependency is not installed.

    Attributes:
        module: name of the module that could not be imported.
        extra: extra of ``dfs-deploy`` that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        from dfs_deploy.system.installed import install_line

        super().__init__(f"{module} is not installed and this needs it; run: {install_line(extra)}", module)
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        # An exception is otherwise rebuilt from its message, which is not what this one takes.
        return type(self), (self.module, self.extra)


class OutOfMemoryError(EnvironmentLacksError, MemoryError):
    """Memory ran out, or a limit of this process's was reached."""


class ArtefactError(DfsDeployError):
    """A file that does not fit here."""

    exit_code = 4


class CheckpointError(ArtefactError):
    """A checkpoint that cannot be read or split."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that would run code when loaded; it was not loaded."""


class UnknownCheckpointError(CheckpointError):
    """No recogniser knows the checkpoint's keys, or one knows that they cannot be used."""


class SavedResultError(ArtefactError):
    """A saved result that cannot be read, or is of another bundle."""


class BundleError(ArtefactError):
    """A bundle that cannot be read."""


class SchemaVersionError(BundleError):
    """A bundle whose manifest was written to a schema that this version does not read."""


class DigestError(BundleError):
    """A file of a bundle was changed, is missing, does not belong to it, or lies outside it."""


class EngineError(DfsDeployError):
    """The execution provider failed while it ran an engine; the message names block and option.

    No check was missed: the engine does not run here.
    """

    exit_code = 4


class RuntimeClosedError(DfsDeployError):
    """A runtime was used after it was closed."""

    exit_code = 2


class InternalError(DfsDeployError):
    """An invariant of dfs-deploy itself broke: please report it."""
