"""Every reader under test, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.corpus import Corpus
from tests.fuzz.reader import Reader
from tests.fuzz.readers.bundles import (
    EngineReader,
    GateReader,
    InspectReader,
    ManifestReader,
    PrepareReader,
    SamplesReader,
    WeightsReader,
)
from tests.fuzz.readers.caches import PlanReader, PreparedReader, TensorRTReader
from tests.fuzz.readers.checkpoints import CheckpointReader
from tests.fuzz.readers.data import ArchiveReader, CifarReader, FolderReader, ImageReader, RunReader
from tests.fuzz.readers.results import BenchReader, CostsReader, JobReader, LogReader, VerificationReader
from tests.fuzz.readers.service import ServiceReader
from tests.fuzz.readers.training import StateReader

READERS: dict[str, Callable[[Corpus], Reader]] = {
    reader.name: reader
    for reader in (
        ManifestReader,
        InspectReader,
        EngineReader,
        GateReader,
        WeightsReader,
        SamplesReader,
        PrepareReader,
        PreparedReader,
        PlanReader,
        TensorRTReader,
        CheckpointReader,
        StateReader,
        ArchiveReader,
        ImageReader,
        FolderReader,
        RunReader,
        CifarReader,
        CostsReader,
        VerificationReader,
        BenchReader,
        LogReader,
        JobReader,
        ServiceReader,
    )
}
