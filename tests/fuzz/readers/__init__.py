"""Every reader under test, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.corpus import Corpus
from tests.fuzz.reader import Reader
from tests.fuzz.readers.bundles import ManifestReader, SamplesReader
from tests.fuzz.readers.checkpoints import CheckpointReader
from tests.fuzz.readers.data import ArchiveReader

READERS: dict[str, Callable[[Corpus], Reader]] = {
    reader.name: reader for reader in (ManifestReader, SamplesReader, ArchiveReader, CheckpointReader)
}
