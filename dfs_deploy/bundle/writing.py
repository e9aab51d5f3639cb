"""Writing a bundle: whole or not at all, and never over something that is no bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dfs_deploy.bundle.artefact import Bundle, foreign_entries, is_litter_entry, read_head
from dfs_deploy.bundle.manifest import FORMAT, MANIFEST, MAX_BUNDLE, FileRecord, Manifest
from dfs_deploy.bundle.weights import WEIGHTS, share_weights
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.io.files import (
    check_folder,
    put_folder,
    sha256,
    sync_tree_to_disk,
    temporary_folder,
)


def sharing_weights(manifest: Manifest, files: Mapping[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    """Stores the large constants of a bundle's ONNX files once, in a file of their own.

    Args:
        manifest: manifest of the bundle.
        files: content by path in the bundle, with all constants inside.

    Returns:
        Both for ``write_bundle``; as they were if there are no large constants.

    Raises:
        BundleError: a file ends in ``.onnx`` and is no model.
        UsageError: they are of more bytes than a bundle may have.
    """
    shared, weights = share_weights(files)
    if len(weights) > MAX_BUNDLE:
        raise UsageError(
            f"the engines have {len(weights):,} bytes of different weights together, expected at most {MAX_BUNDLE:,};"
            " leave out options, targets or runtimes"
        )
    if not weights:
        return manifest, dict(files)
    return msgspec.structs.replace(manifest, weights=WEIGHTS), {**shared, WEIGHTS: weights}


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Writes a bundle, whole or not at all: into a temporary directory next to ``path``, which is then renamed.

    Args:
        path: the directory; an existing bundle is replaced, unless it holds files that are not its own.
        manifest: manifest of the bundle; its ``files`` are replaced.
        files: content by path in the bundle.

    Raises:
        UsageError: something else is at ``path``, or in the bundle there.
    """
    with drafted_bundle(path, manifest, files):
        pass
    return Bundle(path)


@dataclass
class Draft:
    """A bundle that is not in its place yet.

    Attributes:
        bundle: the bundle as it lies in a temporary directory.
        manifest: manifest to put in its place; what was measured with the draft may be added to it.
    """

    bundle: Bundle
    manifest: Manifest


@contextlib.contextmanager
def drafted_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes]) -> Iterator[Draft]:
    """Writes a bundle beside its place, and puts it there when the block ends; if the block fails nothing is put there.

    Arguments and errors are those of ``write_bundle``.
    """
    path = Path(path)
    check_writable(path)
    records = {name: FileRecord(sha256=sha256(data), size=len(data)) for name, data in sorted(files.items())}
    with temporary_folder(path) as temporary:
        made = temporary / path.name
        try:
            for name, data in files.items():
                target = made / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            complete = msgspec.structs.replace(manifest, files=records)
            _write_manifest(made, complete)
            draft = Draft(Bundle(made), complete)
            yield draft
            _write_manifest(made, draft.manifest)
            sync_tree_to_disk(made)
            put_folder(made, path)
        except BundleError as error:
            raise type(error)(str(error).replace(str(made), str(path))) from error
        except OSError as error:
            if str(temporary) in str(error.filename):  # nobody knows the temporary directory's name
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def _write_manifest(path: Path, manifest: Manifest) -> None:
    (path / MANIFEST).write_bytes(FORMAT.encode(manifest))


def check_writable(path: Path) -> None:
    """Checks that a bundle can be written to a path, and creates the folder above it.

    Raises:
        UsageError: something else is at the path, or a bundle with files that are not its own and that would be
            deleted; or the path is not writable.
    """
    exists = path.exists()  # before the manifest is read, because another export may put its bundle there in between
    head = read_head(path)
    if path.is_symlink() or (exists and (head is None or not head.is_ours)):
        raise UsageError(f"{path} exists and is no bundle; give another path with --out, or remove it")
    if head is not None:
        for entry in foreign_entries(path, head.files, within=True):
            if not is_litter_entry(entry):
                raise UsageError(
                    f"{path} holds {entry}, which is no file of the bundle and would be lost; move it away, or give"
                    " another --out"
                )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written ({error.strerror}); give another --out") from error
