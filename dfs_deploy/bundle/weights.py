"""Constant tensors of a bundle's ONNX files, each stored once: ``weights.bin``, and references into it.

Engines of one block share most of their tensors, and a static baseline has those of all blocks. So a file of a bundle
holds the graph and its small constants alone; ``SharedWeights`` takes the large ones out of it, and ``inlined`` puts
them back for whoever reads the model. A reference is what ONNX calls external data (onnx.proto, TensorProto): the
entries ``location``, ``offset`` and ``length``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

from dfs_deploy.bundle.manifest import Manifest
from dfs_deploy.bundle.onnx_messages import EXTERNAL, Message, UnfitError, parse_model
from dfs_deploy.errors import BundleError, DigestError
from dfs_deploy.io.files import sha256, sha256_stream

WEIGHTS = "weights.bin"
"""Name of the file with the tensors in a bundle."""

LEAST_SHARED = 256
"""Bytes from which a tensor is stored in that file; smaller ones stay in the graph."""

ALIGNMENT = 64
"""Every tensor begins at a multiple of this number of bytes."""

MOST_CONSTANTS = (1 << 31) - 1
"""Most bytes that one model may refer to: the limit of an ONNX file."""

_HEAD = 1024
"""First bytes of a file that show what it is instead."""

_KEYS = ("length", "location", "offset")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto and TensorProto


@dataclass(frozen=True, order=True)
class Reference:
    """Place of a tensor in the file of weights.

    Attributes:
        offset: position of its first byte.
        length: number of its bytes.
    """

    offset: int
    length: int


ReadTensor = Callable[[Reference], bytes | memoryview]
"""Gives the content of a reference that lies within the file."""


class WeightsSource(Protocol):
    """Where tensors are read from."""

    @property
    def name(self) -> str:
        """Name of the file, which references give as their location."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def opened(self) -> AbstractContextManager[ReadTensor]:
        """Opens the file; raises DigestError if it is not, or no longer, what the bundle's manifest says."""


class HasModels(Protocol):
    """What a count of tensors needs of an opened bundle."""

    @property
    def path(self) -> Path:
        """The bundle's directory."""

    @property
    def manifest(self) -> Manifest:
        """Description of the bundle's files."""

    @property
    def weights(self) -> WeightsFile | None:
        """Constants that its ONNX files share."""

    def read(self, name: str) -> bytes:
        """Content of a file."""


class WeightsFile:
    """Weights of a bundle on disk. They are read tensor by tensor, and are never in memory as a whole.

    The digest is checked once, and again if the file was changed or replaced since.

    Args:
        name: name of the file in the bundle.
        size: bytes of the file.
        digest: its SHA-256.
        open_file: opens it, checked to be a regular file of the bundle.
        changed: makes the error for a file of another content, from its first bytes.

    Raises:
        DigestError: the content has another size or digest.
    """

    def __init__(
        self,
        name: str,
        size: int,
        digest: str,
        open_file: Callable[[], AbstractContextManager[BinaryIO]],
        changed: Callable[[bytes], DigestError],
    ) -> None:
        self.name, self.size = name, size
        self._digest, self._open_file, self._changed = digest, open_file, changed
        self._known: tuple[int, ...] = ()
        with self.opened():
            pass

    @contextlib.contextmanager
    def opened(self) -> Iterator[ReadTensor]:
        """Opens the file; see ``WeightsSource``."""
        with self._open_file() as stream:
            status = os.fstat(stream.fileno())
            state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if state != self._known:
                if status.st_size != self.size or sha256_stream(stream) != self._digest:
                    stream.seek(0)
                    raise self._changed(stream.read(_HEAD))
                self._known = state

            def read(reference: Reference) -> bytes:
                stream.seek(reference.offset)
                data = stream.read(reference.length)
                if len(data) < reference.length:  # cut off while it was read
                    raise self._changed(b"")
                return data

            yield read


@dataclass(frozen=True)
class WeightsInMemory:
    """Weights that were read already.

    Attributes:
        name: name that references give as their location.
        content: all of them.
    """

    name: str
    content: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return len(self.content)

    @contextlib.contextmanager
    def opened(self) -> Iterator[ReadTensor]:
        """Opens nothing; see ``WeightsSource``."""
        view = memoryview(self.content)
        yield lambda reference: view[reference.offset : reference.offset + reference.length]


class SharedWeights:
    """Collects the large constants of models, each distinct one once, in the order in which they come.

    Args:
        name: name of the file, for the references.
    """

    def __init__(self, name: str = WEIGHTS) -> None:
        self.name = name
        self._content = io.BytesIO()
        self._places: dict[str, Reference] = {}

    def take(self, model: bytes, name: str) -> bytes:
        """Moves the large constants of a model here.

        Args:
            model: ONNX model, as written; what has references already keeps them.
            name: name of the model in messages.

        Returns:
            The same model, with references instead; the same bytes for the same models in the same order.

        Raises:
            BundleError: it is no model.
        """
        parsed = parse_model(model, name)
        for tensor in parsed.graph.initializer:
            if len(tensor.raw_data) >= LEAST_SHARED:
                place = self._put(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = EXTERNAL
                values = {"location": self.name, "offset": str(place.offset), "length": str(place.length)}
                for key, value in values.items():
                    tensor.external_data.add(key=key, value=value)
        shared: bytes = parsed.SerializeToString(deterministic=True)
        return shared

    def _put(self, data: bytes) -> Reference:
        """Place of a tensor, which is added if there is none of the same bytes."""
        digest = sha256(data)
        if digest not in self._places:
            end = self._content.seek(0, io.SEEK_END)
            self._content.write(bytes(-end % ALIGNMENT))
            self._places[digest] = Reference(self._content.tell(), len(data))
            self._content.write(data)
        return self._places[digest]

    @property
    def content(self) -> bytes:
        """Content of the file; empty if no model has a large constant."""
        return self._content.getvalue()


def share_weights(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """Takes the large constants out of the ONNX files of a bundle.

    Args:
        files: content of each file, by its name in the bundle; those that do not end in ``.onnx`` stay as they are.

    Returns:
        The files with references into ``weights.bin``, and its content, which does not depend on their order.

    Raises:
        BundleError: a file ends in ``.onnx`` and is no model.
    """
    weights, shared = SharedWeights(), dict(files)
    for name in sorted(files):
        if name.endswith(".onnx"):
            shared[name] = weights.take(files[name], name)
    return shared, weights.content


def reference_of(tensor: Message, weights: WeightsSource | None) -> Reference | None:
    """Reference of a constant; ``None`` if its data is in the graph.

    Args:
        tensor: initializer of a model.
        weights: file that references may lead to; ``None`` if there is none.

    Raises:
        UnfitError: it leads somewhere else, or outside the file, or is not written as ``SharedWeights`` writes it.
    """
    if not tensor.external_data and not tensor.data_location:
        return None
    values = {entry.key: entry.value for entry in tensor.external_data}
    if weights is None or values.get("location") != weights.name or tensor.data_location != EXTERNAL:
        raise UnfitError("keeps weights in another file")
    numbers = [values.get(key, "") for key in ("offset", "length")]
    if sorted(entry.key for entry in tensor.external_data) != list(_KEYS) or not all(map(_NUMBER.fullmatch, numbers)):
        raise UnfitError(f"has a reference into {weights.name} with other entries than in an export")
    if tensor.raw_data:
        raise UnfitError(f"has a constant both inside and in {weights.name}")
    offset, length = map(int, numbers)
    if offset % ALIGNMENT or length < LEAST_SHARED or offset + length > weights.size:
        raise UnfitError(
            f"refers to {length:,} bytes at {offset:,} of {weights.name}, expected at least {LEAST_SHARED} within its"
            f" {weights.size:,}, at a multiple of {ALIGNMENT}"
        )
    return Reference(offset, length)


def references_of(graph: Message, weights: WeightsSource | None) -> list[Reference | None]:
    """Reference of each constant of a graph, checked as in ``reference_of``.

    Raises:
        UnfitError: one is not as it should be, two overlap, or they are of more bytes than a model can hold, each
            counted as often as it is named.
    """
    references = [reference_of(tensor, weights) for tensor in graph.initializer]
    if (total := sum(each.length for each in references if each is not None)) > MOST_CONSTANTS:
        raise UnfitError(f"refers to {total:,} bytes, expected at most {MOST_CONSTANTS:,}")
    for before, after in pairwise(sorted(set(filter(None, references)))):
        if before.offset + before.length > after.offset:
            raise UnfitError(f"has constants that overlap in the file of weights, at {after.offset:,}")
    return references


def inlined(model: bytes, weights: WeightsSource | None, name: str) -> bytes:
    """A model with its constants inside, as any ONNX runtime reads it.

    Args:
        model: ONNX model of a bundle.
        weights: file that its references lead to; ``None`` if it has none.
        name: name of the model in messages.

    Raises:
        BundleError: it is no model, a reference leads elsewhere, or they are of more bytes than a model can hold.
    """
    if weights is None:
        return model
    parsed = parse_model(model, name)
    try:
        references = references_of(parsed.graph, weights)
    except (UnfitError, UnicodeDecodeError) as error:
        raise BundleError(f"{name} {error}; export it again") from error
    if not any(references):
        return model
    # Copied once: what is written here is what a serialised model is, a tag and a length before each part. Tensors may
    # come last, because the order of fields has no meaning.
    heads = []
    for tensor in parsed.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        heads.append(tensor.SerializeToString(deterministic=True))
    del parsed.graph.initializer[:]
    graph = parsed.graph.SerializeToString(deterministic=True)
    parsed.ClearField("graph")
    starts = []
    for head, reference in zip(heads, references, strict=True):
        length = 0 if reference is None else reference.length
        start = head if reference is None else head + _begin(_RAW_DATA, length)
        starts.append(_begin(_INITIALIZER, len(start) + length) + start)
    size = len(graph) + sum(map(len, starts)) + sum(each.length for each in references if each is not None)
    written = io.BytesIO()
    written.write(parsed.SerializeToString(deterministic=True) + _begin(_GRAPH, size) + graph)
    with weights.opened() as read:
        for start, reference in zip(starts, references, strict=True):
            written.write(start)
            if reference is not None:
                written.write(read(reference))
    return written.getvalue()


def distinct_tensors(bundle: HasModels) -> int:
    """Bytes of the distinct constants in a bundle's ONNX files: what it would have at least.

    Raises:
        BundleError: a file ends in ``.onnx`` and is no model.
    """
    weights, inside, outside = bundle.weights, dict[str, int](), set[Reference]()
    for name in bundle.manifest.files:
        if not name.endswith(".onnx"):
            continue
        for tensor in parse_model(bundle.read(name), f"{bundle.path}: {name}").graph.initializer:
            reference = reference_of(tensor, weights)
            if reference is None:
                inside[sha256(tensor.raw_data)] = len(tensor.raw_data)
            else:
                outside.add(reference)
    return sum(inside.values()) + sum(each.length for each in outside)


def _begin(field: int, length: int) -> bytes:
    """Tag and length of a part of a message."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
