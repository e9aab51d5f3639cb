"""What ``verify`` found, kept in a file so that it can be judged again by other bars without running anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import SavedResultError
from dfs_deploy.io.files import read_file, write_whole
from dfs_deploy.io.json_files import MAX_JSON, Digest, MalformedError, Name, Percentage, Share, decode_json
from dfs_deploy.io.text import first_line

SCHEMA: Final = "dfs-deploy/verify"
SCHEMA_VERSION: Final = 2
"""Version 2 added ``notes`` and ``assumptions``; a file of version 1 is read as if they were empty."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file: immutable, and strict about its keys."""


class EngineError(_Record, frozen=True, kw_only=True):
    """How far one engine of a block is from what its option means in the PyTorch reference.

    Attributes:
        block: index of the block.
        option: name.
        precision: precision of the engine.
        runtime: runtime that it was made for.
        layout: layout in which it takes features.
        max_relative: greatest error over the greatest output; ``None`` if a value is not finite.
        rms_relative: root-mean-square error over that of the output; ``None`` as above.
        tolerance: most ``rms_relative`` for INT8, most ``max_relative`` for others; the one that export fails by.
        passed: whether the error is within it.
    """

    block: Annotated[int, Meta(ge=0)]
    option: Name
    precision: Name
    runtime: Name
    layout: Name = msgspec.field(name="form")
    max_relative: float | None
    rms_relative: float | None
    tolerance: float
    passed: bool

    @property
    def judged(self) -> float | None:
        """The figure that the tolerance is about."""
        return self.rms_relative if self.precision == "int8" else self.max_relative


class Verification(_Record, frozen=True, kw_only=True):
    """A bundle compared with its reference; shares are 0 to 1, percentages 0 to 100.

    Attributes:
        schema: ``dfs-deploy/verify``.
        schema_version: version of these keys.
        version: version of dfs-deploy.
        bundle: name of the bundle.
        bundle_digest: SHA-256 of its manifest.
        checkpoint: name of the checkpoint's file.
        checkpoint_sha256: SHA-256 of that file.
        data: name of the data.
        seed: seed of the draw.
        budget: budget that the bundle ran at, or ``None`` as trained.
        samples: images compared.
        top1_reference: share of right answers of the reference.
        top1_bundle: share of right answers of the bundle.
        route_agreement: share of block decisions equal to the reference's.
        block_agreement: the same share at each gated block.
        computation_percentage_reference: mean over the samples, in the reference.
        computation_percentage_bundle: mean over the samples, in the bundle.
        max_abs_logit_error: greatest difference of a logit; ``None`` if one is not finite.
        per_block: the error of each engine, or ``None`` if it was not asked for.
        notes: what was assumed about the data, and what hints at a mistake, one line each.
        assumptions: what was assumed about the checkpoint, one line each.
    """

    schema: Literal["dfs-deploy/verify"] = SCHEMA
    schema_version: Literal[1, 2] = SCHEMA_VERSION
    version: Name
    bundle: Name
    bundle_digest: Digest
    checkpoint: Name
    checkpoint_sha256: Digest
    data: Name
    seed: int
    budget: Share | None
    samples: Annotated[int, Meta(ge=1)]
    top1_reference: Share | None
    top1_bundle: Share | None
    route_agreement: Share
    block_agreement: list[Share]
    computation_percentage_reference: Percentage
    computation_percentage_bundle: Percentage
    max_abs_logit_error: float | None
    per_block: list[EngineError] | None
    notes: list[str] = []
    assumptions: list[str] = []

    def as_json(self) -> dict[str, Any]:
        """Every key, as plain values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value


class _Head(msgspec.Struct):
    """What can be read of a file of any version."""

    schema: str
    schema_version: int


def finite(value: float) -> float | None:
    """The value, or ``None`` if it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def save_verification(path: Path, verification: Verification) -> None:
    """Writes a result, whole."""
    write_whole(path, json.dumps(verification.as_json(), indent=1, allow_nan=False).encode() + b"\n")


def load_verification(path: Path) -> Verification:
    """Reads a result that :func:`save_verification` wrote, strictly.

    Raises:
        SavedResultError: it cannot be read, is of another version, or a key is missing, unknown or of another type.
    """
    remedy = "make it with dfs-deploy verify --save"
    try:
        content = read_file(path, MAX_JSON)
    except OSError as error:
        raise SavedResultError(f"{path} cannot be read ({first_line(error)}); {remedy}") from error
    try:
        head = decode_json(content, _Head)
        if head.schema != SCHEMA:
            raise SavedResultError(f"{path} holds {head.schema!r}, expected {SCHEMA!r}; {remedy}")
        if not 1 <= head.schema_version <= SCHEMA_VERSION:
            newer = "update dfs-deploy" if head.schema_version > SCHEMA_VERSION else "verify again"
            raise SavedResultError(
                f"{path} has schema version {head.schema_version}, expected 1 to {SCHEMA_VERSION}; {newer}"
            )
        return decode_json(content, Verification)
    except MalformedError as error:
        raise SavedResultError(f"{path} is no saved result ({error}); {remedy}") from error
