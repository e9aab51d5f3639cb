"""Every error that dfs-deploy raises on purpose.

    DfsDeployError
    ├── CheckFailedError          a threshold was missed
    │   ├── ExportMismatchError       an engine disagrees with the reference
    │   │   └── GraphRuleError            an engine breaks a rule of its runtime
    │   ├── AccuracyGoalError         no budget of a network keeps the accuracy that was asked for
    │   ├── VerificationError         a bundle misses its thresholds
    │   └── RegressionError           a bench is slower than its baseline
    ├── UsageError (ValueError)   the call is wrong
    │   ├── OptionError               an invalid list of options or targets
    │   ├── BlockError                blocks that cannot be found, named or proved
    │   ├── DataError                 a data set or image that cannot be read
    │   └── InputError                an array that does not fit the network
    ├── EnvironmentLacksError     this machine lacks something
    │   ├── DependencyError           a library (ImportError)
    │   │   └── MissingExtraError         an optional one
    │   └── OutOfMemoryError          memory (MemoryError)
    ├── ArtefactError             the file does not fit here
    │   ├── CheckpointError           a checkpoint that cannot be read or split
    │   │   ├── UnsafeCheckpointError     a pickle that would run code
    │   │   └── UnknownCheckpointError    no recogniser knows its keys
    │   ├── SavedResultError          a saved result that cannot be read, or is about another bundle
    │   └── BundleError               a bundle that cannot be read
    │       ├── SchemaVersionError        written by another version
    │       └── DigestError               a file changed, missing, foreign or outside
    ├── EngineError               the execution provider failed
    ├── RuntimeClosedError        used after close()
    └── InternalError             our bug, not yours

A message is one line: what was seen, what was expected, what to do. Text from outside in it (names, keys, messages of
libraries) is made safe for a terminal here, for every error: see ``dfs_deploy.io.text``.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfs_deploy.io.text import one_line


class DfsDeployError(Exception):
    """Base of every error raised on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class CheckFailedError(DfsDeployError):
    """A result was computed and misses a threshold."""


class ExportMismatchError(CheckFailedError):
    """At least one exported engine disagrees with the reference.

    Attributes:
        mismatches: one line per engine beyond its tolerance.
    """

    def __init__(self, message: str, mismatches: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.mismatches = tuple(map(one_line, mismatches))


class GraphRuleError(ExportMismatchError):
    """At least one exported graph breaks a rule of its runtime; ``mismatches`` lists every breach."""


class AccuracyGoalError(CheckFailedError):
    """No budget of a network keeps the accuracy that was asked for, or the one that was chosen does not keep it."""


class VerificationError(CheckFailedError):
    """A bundle misses a threshold of accuracy, routing or computation."""


class RegressionError(CheckFailedError):
    """A bench is slower than its baseline, or too unsteady to tell."""


class UsageError(DfsDeployError, ValueError):
    """The call itself is wrong."""


class OptionError(UsageError):
    """An invalid list of options or targets."""


class BlockError(UsageError):
    """Blocks of a network that cannot be found, named or proved; the message names the module and why."""


class DataError(UsageError):
    """A data set or an image that cannot be read."""


class InputError(UsageError):
    """An array that does not fit the network's input."""


class EnvironmentLacksError(DfsDeployError):
    """This machine lacks something that the call needs."""


class DependencyError(EnvironmentLacksError, ImportError):
    """A library that the call needs is not installed, too old, or cannot be imported; the message says which and why.

    Attributes:
        module: name of its module.
    """

    def __init__(self, message: str, *, module: str = "") -> None:
        super().__init__(message)
        self.module = module


class MissingExtraError(DependencyError):
    """An optional library is not installed; the message has the command that installs it.

    Attributes:
        module: name of its module.
        extra: extra of ``dfs-deploy`` that brings it.
    """

    def __init__(self, message: str, *, module: str = "", extra: str = "") -> None:
        super().__init__(message, module=module)
        self.extra = extra


class OutOfMemoryError(EnvironmentLacksError, MemoryError):
    """Memory ran out, or this process reached its limit."""


class ArtefactError(DfsDeployError):
    """A file that does not fit here."""


class CheckpointError(ArtefactError):
    """A checkpoint that cannot be read or split."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that would run code when loaded; it was not loaded."""


class UnknownCheckpointError(CheckpointError):
    """No recogniser knows the checkpoint's keys, or they are of a known kind that cannot be used."""


class SavedResultError(ArtefactError):
    """A saved result that cannot be read, or is about another bundle."""


class BundleError(ArtefactError):
    """A bundle that cannot be read."""


class SchemaVersionError(BundleError):
    """A bundle whose manifest has a schema version that this version of dfs-deploy does not read."""


class DigestError(BundleError):
    """A file of a bundle was changed, is missing, does not belong to it, or lies outside it."""


class EngineError(DfsDeployError):
    """The execution provider failed while it ran an engine; the message names block and option."""


class RuntimeClosedError(DfsDeployError):
    """A runtime was used after it was closed."""


class InternalError(DfsDeployError):
    """An invariant of dfs-deploy itself broke: please report it."""
