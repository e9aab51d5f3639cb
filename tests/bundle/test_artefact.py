from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from dfs_deploy.bundle import Bundle, check_writable, find_bundle, source_of, write_bundle
from dfs_deploy.bundle.manifest import MANIFEST, SCHEMA_VERSION, Manifest, parse_manifest
from dfs_deploy.errors import ArtefactError, BundleError, DigestError, SchemaVersionError, UsageError
from dfs_deploy.io.arrays import Arrays
from dfs_deploy.io.files import sha256
from dfs_deploy.network import Architecture, cifar_resnet
from tests.checks import MakesFolder, little_memory, refuses

GOLDEN = Path(__file__).parents[1] / "golden" / "manifest-v5.json"
"""A manifest as this version writes it; each of its files holds its own name."""

GOLDEN_V1, GOLDEN_V2, GOLDEN_V3, GOLDEN_V4 = (GOLDEN.with_name(f"manifest-v{version}.json") for version in (1, 2, 3, 4))
"""The same network's as older versions wrote them."""

Edit = Callable[[dict[str, Any]], None]


def golden_files() -> dict[str, bytes]:
    return {name: name.encode() for name in msgspec.json.decode(GOLDEN.read_bytes())["files"]}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A whole bundle, whose engines are no engines: reading it does not look into them."""
    folder = tmp_path / "tiny.dfs"
    for name, data in {**golden_files(), MANIFEST: GOLDEN.read_bytes()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def values(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = msgspec.json.decode((folder / MANIFEST).read_bytes())
    return read


def edit_manifest(folder: Path, edit: Edit) -> None:
    """Changes the manifest's values, and nothing else."""
    changed = values(folder)
    edit(changed)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(changed))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file, with a digest that fits."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda m: m["files"].update({name: {"sha256": sha256(data), "size": len(data)}}))


# What is written can be read


def strategy(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type, within the bounds that the schema gives."""
    if isinstance(kind, inspect.StructType) and kind.cls is Architecture:  # its blocks must form a chain
        return st.builds(cifar_resnet, st.tuples(*[st.integers(1, 3)] * 3), classes=st.integers(1, 1 << 16))
    if isinstance(kind, inspect.StructType):
        return st.builds(kind.cls, **{field.name: strategy(field.type) for field in kind.fields})
    if isinstance(kind, inspect.IntType):
        return st.integers(-(2**63) if kind.ge is None else kind.ge, 2**63 - 1 if kind.le is None else kind.le)
    if isinstance(kind, inspect.FloatType):
        least, exclude = (kind.ge, False) if kind.gt is None else (kind.gt, True)
        return st.floats(least, kind.le, exclude_min=exclude, allow_nan=False, allow_infinity=False)
    if isinstance(kind, inspect.StrType):
        return st.from_regex(kind.pattern, fullmatch=True) if kind.pattern else st.text(max_size=8)
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, inspect.NoneType):
        return st.none()
    if isinstance(kind, inspect.UnionType):
        return st.one_of(*map(strategy, kind.types))
    if isinstance(kind, inspect.ListType):
        return st.lists(strategy(kind.item_type), max_size=3)
    if isinstance(kind, inspect.TupleType):
        return st.tuples(*map(strategy, kind.item_types))
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(strategy(kind.key_type), strategy(kind.value_type), max_size=3)
    raise NotImplementedError(kind)


MANIFESTS = strategy(inspect.type_info(Manifest)).map(
    lambda manifest: msgspec.structs.replace(manifest, schema_version=SCHEMA_VERSION)
)


@settings(max_examples=20)
@given(MANIFESTS)
def test_a_manifest_survives_its_file(manifest: Manifest) -> None:
    assert parse_manifest(msgspec.json.encode(manifest), Path("net.dfs")) == manifest


def test_the_golden_manifest_keeps_loading(made: Path) -> None:
    bundle = Bundle(made)
    manifest = bundle.manifest
    assert bundle.options.names == ("skip", "8", "16", "full")
    assert bundle.architecture == cifar_resnet((1, 1), (4, 8), 10, (3, 8, 8))
    assert bundle.architecture.gated_blocks == 1
    assert bundle.input.shape == (3, 8, 8)
    assert (bundle.input.resize, bundle.input.interpolation) == (12, "bicubic")
    assert [engines.feature_zero_points for engines in manifest.runtimes.values()] == [[0, 3], [0, 0]]
    assert manifest.weights is None
    assert manifest.targets == ["int8", "fp32"]
    assert set(manifest.runtimes) == {"onnxruntime", "tensorrt"}
    assert [(r.option, r.wanted, r.served_by) for r in manifest.substitutions] == [("16", "fp16", "fp32")]
    assert manifest.calibration is not None
    assert {(r.option, r.source) for r in manifest.calibration.ranges} == {("8", "routed"), ("static", "reached")}
    assert manifest.accuracy is not None
    assert manifest.accuracy.samples == 32
    assert manifest.calibration.target_cpu == "vnni"
    assert bundle.digest == sha256(GOLDEN.read_bytes())
    assert manifest.policy is None
    point = manifest.accuracy_budget
    assert point is not None
    assert (point.bias, point.prices, point.reference.name) == (1.5, [[0.0, 0.25, 1.5, 1.0]], "twin")
    assert (point.chosen.top1, point.checked.top1_change, point.looks) == (0.875, -0.0625, 1)
    assert [(point.budget, point.bias, point.top1) for point in manifest.budgets] == [
        (0.1, 3.25, 0.8125),
        (0.5, -0.5, None),
    ]
    assert bundle.name == "tiny"
    assert bundle.size == sum(len(data) for data in golden_files().values())


def test_what_was_added_within_the_version_may_be_lacking(made: Path) -> None:
    values = msgspec.json.decode((made / MANIFEST).read_bytes())
    del values["accuracy_budget"], values["calibration"]["target_cpu"]
    (made / MANIFEST).write_bytes(msgspec.json.encode(values))
    manifest = Bundle(made).manifest
    assert manifest.calibration is not None
    assert manifest.accuracy_budget is manifest.calibration.target_cpu is None


@pytest.mark.parametrize(
    ("older", "lacking"),
    [
        (GOLDEN_V1, {"policy": None, "budgets": [], "weights_key": None}),
        (GOLDEN_V2, {"weights_key": None}),
        (GOLDEN_V3, {}),
        (GOLDEN_V4, {}),
    ],
    ids=["1", "2", "3", "4"],
)
def test_a_manifest_of_an_older_version_is_read_as_this_version_has_it(
    made: Path, tmp_path: Path, older: Path, lacking: dict[str, Any]
) -> None:
    manifest = Bundle(made).manifest
    of_source = {key: value for key, value in lacking.items() if key == "weights_key"}
    source = msgspec.structs.replace(manifest.source, **of_source)
    assert manifest.calibration is not None
    of_before_5 = {
        "accuracy_budget": None,
        "calibration": msgspec.structs.replace(manifest.calibration, target_cpu=None),
        "architecture": manifest.architecture.without_macs(),
        "input": msgspec.structs.replace(manifest.input, resize=None, interpolation="bilinear"),
        "runtimes": {
            name: msgspec.structs.replace(engines, feature_zero_points=[0, 0])
            for name, engines in manifest.runtimes.items()
        },
    }
    (made / MANIFEST).write_bytes(older.read_bytes())
    assert Bundle(made).manifest == msgspec.structs.replace(
        manifest, source=source, **of_before_5, **{key: value for key, value in lacking.items() if key not in of_source}
    )
    origin = source_of(made)
    assert origin is not None
    assert (origin.file, origin.sha256) == (source.file, source.sha256)
    again = write_bundle(tmp_path / "again.dfs", Bundle(made).manifest, golden_files())
    assert values(again.path)["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("older", "keys"),
    [
        (GOLDEN_V1, ("policy",)),
        (GOLDEN_V1, ("budgets",)),
        (GOLDEN_V1, ("source", "weights_key")),
        (GOLDEN_V2, ("source", "weights_key")),
        (GOLDEN_V3, ("architecture", "blocks")),
        (GOLDEN_V4, ("architecture", "blocks", 0, "macs")),
        (GOLDEN_V4, ("input", "resize")),
        (GOLDEN_V4, ("runtimes", "tensorrt", "feature_zero_points")),
        (GOLDEN_V4, ("weights",)),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value[-1],
)
def test_a_manifest_of_an_older_version_with_a_key_of_a_newer_one(
    made: Path, older: Path, keys: tuple[str, ...]
) -> None:
    (made / MANIFEST).write_bytes(older.read_bytes())
    edit_manifest(made, set_to(*keys, value=None))
    with refuses(BundleError, MANIFEST, keys[-1]):
        Bundle(made)


def test_writing_the_golden_manifest_again_changes_nothing(made: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again.dfs", Bundle(made).manifest, golden_files())
    assert (again.path / MANIFEST).read_bytes() == GOLDEN.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.dfs", "tiny.dfs"]


def test_every_file_is_read_through_its_digest(made: Path) -> None:
    put(made, "more/notes.txt", b"a file that is listed and used for nothing")
    bundle = Bundle(made)
    for name in ("samples.npz", "more/notes.txt"):
        assert bundle.read(name) == (made / name).read_bytes()
    (made / "samples.npz").write_bytes(b"changed while it was open")
    with refuses(DigestError, "samples.npz", "changed"):
        bundle.read("samples.npz")
    with refuses(BundleError, "common/stem.onnx", "no ONNX model"):
        bundle.read("common/stem.onnx")
    with refuses(DigestError, "somewhere.onnx"):
        bundle.read("somewhere.onnx")
    with refuses(DigestError):
        bundle.read(MANIFEST)


# Files that are not what the manifest says


def flip(folder: Path) -> None:
    file = folder / "common/head.onnx"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    file = folder / "common/head.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    file = folder / "common/head.onnx"
    file.write_bytes(file.read_bytes() + b" ")


def swap(folder: Path) -> None:
    (folder / "common/head.onnx").rename(folder / "kept")
    (folder / "common/stem.onnx").rename(folder / "common/head.onnx")
    (folder / "kept").rename(folder / "common/stem.onnx")


def link_file(folder: Path) -> None:
    file = folder / "common/head.onnx"
    file.rename(folder.parent / "head.onnx")
    file.symlink_to(folder.parent / "head.onnx")


def link_folder(folder: Path) -> None:
    (folder / "common").rename(folder.parent / "common")
    (folder / "common").symlink_to(folder.parent / "common", target_is_directory=True)


def dangle(folder: Path) -> None:
    (folder / "common/head.onnx").unlink()
    (folder / "common/head.onnx").symlink_to("nowhere")


def sparse(folder: Path) -> None:
    os.truncate(folder / "common/head.onnx", 1 << 40)


def folder_instead(folder: Path) -> None:
    (folder / "common/head.onnx").unlink()
    (folder / "common/head.onnx").mkdir()


def pipe_instead(folder: Path) -> None:
    (folder / "common/head.onnx").unlink()
    os.mkfifo(folder / "common/head.onnx")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed bit": (flip, "head.onnx"),
    "a truncated file": (truncate, "head.onnx"),
    "a longer file": (lengthen, "head.onnx"),
    "two files swapped": (swap, "onnx"),
    "a missing file": (lambda folder: (folder / "common/head.onnx").unlink(), "head.onnx"),
    "a linked file": (link_file, "head.onnx is a link"),
    "a linked folder": (link_folder, "common is a link"),
    "a dangling link": (dangle, "head.onnx"),
    "a sparse file of a terabyte": (sparse, "head.onnx was changed"),
    "a pointer of Git LFS": (
        lambda folder: (folder / "common/head.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "a folder for a file": (folder_instead, "head.onnx"),
    "a pipe for a file": (pipe_instead, "head.onnx"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_not_what_the_manifest_says(made: Path, what: str) -> None:
    spoil, word = SPOILT[what]
    spoil(made)
    with refuses(DigestError, str(made), word) as _:
        Bundle(made)


FOREIGN = {
    "a system's file": lambda folder: (folder / ".DS_Store").write_bytes(b"x"),
    "a file that NFS keeps": lambda folder: (folder / "common/.nfs000123").write_bytes(b"x"),
    "an archiver's folder": lambda folder: ((folder / "__MACOSX").mkdir(), (folder / "__MACOSX/._a").write_bytes(b"")),
    "a hub's files": lambda folder: (
        (folder / ".cache/huggingface").mkdir(parents=True),
        (folder / ".cache/huggingface/common.lock").touch(),
    ),
    "a user's file": lambda folder: (folder / "README.md").write_text("what this is"),
    "an engine that is not listed": lambda folder: (folder / "common/extra.onnx").write_bytes(b"x"),
    "a linked folder": lambda folder: (folder / "more").symlink_to(folder.parent),
    "a link to itself": lambda folder: (folder / "more").symlink_to("more"),
    "a pipe": lambda folder: os.mkfifo(folder / "more"),
    "a name that moves the cursor": lambda folder: (folder / "a\x1b[2J\nerror: forged").touch(),
    "a name that is no UTF-8": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).touch(),
}

LITTER = ("a system's file", "a file that NFS keeps", "an archiver's folder")


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_listed_is_passed_over_and_named(made: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    caplog.set_level(logging.INFO)
    before = set(made.rglob("*"))
    FOREIGN[what](made)
    top = {entry.relative_to(made) for entry in set(made.rglob("*")) - before}
    (name,) = [entry for entry in top if entry.parent not in top]
    bundle = Bundle(made)
    assert [found.rstrip("/") for found in bundle.foreign] == [str(name)]
    (record,) = [record for record in caplog.records if "not in its manifest" in record.getMessage()]
    assert record.levelname == ("INFO" if what in LITTER else "WARNING")
    assert str(made) in record.getMessage()
    assert record.getMessage().isprintable()
    with refuses(DigestError, "not in the manifest"):
        bundle.read(str(name))


def test_hundreds_of_foreign_files_are_counted(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(300):
        (made / f"{i}.txt").touch()
    assert len(Bundle(made).foreign) == 300
    (record,) = caplog.records
    assert "295 more" in record.getMessage()


def test_a_copy_without_its_links_is_what_the_message_says(made: Path, tmp_path: Path) -> None:
    linked = tmp_path / "hub.dfs"
    for file in made.rglob("*"):
        if file.is_file():
            (linked / file.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            (linked / file.relative_to(made)).symlink_to(file)
    with refuses(BundleError, f"{linked}: manifest.json is a link", f"cp -rL {linked} COPY.dfs"):
        Bundle(linked)
    (linked / MANIFEST).unlink()
    shutil.copy(made / MANIFEST, linked)
    with refuses(DigestError, f"{linked}: ", "is a link", f"cp -rL {linked} COPY.dfs"):
        Bundle(linked)
    subprocess.run(["cp", "-rL", linked, tmp_path / "copy.dfs"], check=True)
    assert Bundle(tmp_path / "copy.dfs").digest == Bundle(made).digest
    (tmp_path / "alias.dfs").symlink_to(made)
    assert Bundle(tmp_path / "alias.dfs").digest == Bundle(made).digest, "the bundle itself may be reached by a link"


def test_any_changed_byte_is_found(made: Path) -> None:
    for name, data in golden_files().items():
        for position in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[position] ^= 0x20
            (made / name).write_bytes(changed)
            with refuses(DigestError, name):
                Bundle(made)
        (made / name).write_bytes(data)
    Bundle(made)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.onnx",
        "common/../../outside.onnx",
        "/etc/passwd",
        "",
        "a\\..\\b",
        "C:/outside.onnx",
        "//server/share/outside.onnx",
        "common/\0.onnx",
        "./common/head.onnx",
        "common/head.onnx.",
        "common/.hidden",
        "common/nul",
        "AUX.onnx",
        "common/head.onnx:stream",
        "common/h\u00e9ad.onnx",
        "a/" * 100 + "head.onnx ",
    ],
    ids=ascii,
)
def test_a_path_that_leaves_the_folder(made: Path, name: str) -> None:
    outside = made.parent / "outside.onnx"
    outside.write_bytes(b"secret")
    record = {"sha256": sha256(b"secret"), "size": 6}
    edit_manifest(made, lambda m: m["files"].update({name: record}))
    with refuses(DigestError, repr(name)):
        Bundle(made)


@pytest.mark.parametrize("name", ["Common/head.onnx", "common/HEAD.onnx", "MANIFEST.json", "manifest.json"])
def test_names_that_are_one_file_on_some_systems(made: Path, name: str) -> None:
    edit_manifest(made, lambda m: m["files"].update({name: m["files"]["common/head.onnx"]}))
    with refuses(DigestError, name):
        Bundle(made)


# The manifest itself


def set_to(*keys: str | int, value: Any) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        part: Any = manifest
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return edit


def drop(*keys: str | int) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        part: Any = manifest
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]

    return edit


@pytest.mark.parametrize(("version", "word"), [(0, "export"), (6, "update"), (99, "update"), (-1, "export")])
def test_another_schema_version(made: Path, version: int, word: str) -> None:
    edit_manifest(made, set_to("schema_version", value=version))
    with refuses(SchemaVersionError, str(version), word):
        Bundle(made)
    (made / MANIFEST).write_bytes(b'{"schema_version": 7, "everything": "else"}')
    with refuses(SchemaVersionError, "7"):
        Bundle(made)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"\xff\xfe\x00",
        b"[]",
        b'{"schema_version": 1}',
        b'{"schema_version": 1, ',
        b"\x80\x05\x95",
        b'{"schema_version": 1, "options": ' + b"[" * 100_000,
    ],
    ids=lambda content: content[:40].decode("latin-1"),
)
def test_what_is_no_manifest(made: Path, content: bytes) -> None:
    (made / MANIFEST).write_bytes(content)
    with refuses(BundleError, str(made), MANIFEST):
        Bundle(made)


MALFORMED: dict[str, tuple[Edit, str]] = {
    "a missing key": (drop("runtimes"), "runtimes"),
    "an unknown key": (set_to("extra", value=1), "extra"),
    "a policy that is no list": (set_to("policy", value="8"), "policy"),
    "a wrong type": (set_to("targets", value="int8"), "targets"),
    "an unknown precision": (set_to("targets", 0, value="int4"), "int4"),
    "bits out of bounds": (set_to("options", 1, "bits", value=64), "bits"),
    "a digest that is none": (set_to("files", "samples.npz", "sha256", value="00"), "sha256"),
    "zero classes": (set_to("architecture", "classes", value=0), "classes"),
    "an input of two dimensions": (set_to("input", "shape", value=[8, 8]), "shape"),
    "a budget above one": (set_to("budgets", 1, "budget", value=1.5), "budget"),
    "a bias that no score survives": (set_to("budgets", 0, "bias", value=1e39), "bias"),
    "a runtime that is none": (lambda m: m["runtimes"].update({"\x1b[2J": m["runtimes"]["onnxruntime"]}), "runtimes"),
    "a long class name": (set_to("input", "class_names", 0, value="a" * 10_000), "class_names"),
    "a long path": (set_to("samples", value="a/" * 1000), "samples"),
    "ten thousand versions": (set_to("producer", value={str(i): "1" for i in range(10_000)}), "producer"),
    "a gate of a hundred gigabytes": (set_to("architecture", "gate", "hidden", value=1 << 16), "gate.hidden"),
    "a file of a terabyte": (set_to("files", "samples.npz", "size", value=1 << 40), "size"),
    "a standard deviation of next to nothing": (set_to("input", "std", 0, value=1e-300), "std"),
    "a mean beyond float32": (set_to("input", "mean", 0, value=1e300), "mean"),
    "a zero point beyond uint8": (
        set_to("runtimes", "onnxruntime", "feature_zero_points", 0, value=256),
        "zero_points",
    ),
    "more multiply-adds than anything has": (set_to("architecture", "blocks", 1, "macs", value=1 << 60), "macs"),
    "an unknown interpolation": (set_to("input", "interpolation", value="nearest"), "interpolation"),
    "a feature scale of next to nothing": (set_to("runtimes", "tensorrt", "feature_scales", 0, value=1e-300), "scales"),
    "a number beyond all": (set_to("calibration", "seed", value=10**400), "seed"),
    "null for a number": (set_to("accuracy", "route_agreement", value=None), "route_agreement"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_manifest_that_breaks_the_schema(made: Path, what: str) -> None:
    edit, word = MALFORMED[what]
    edit_manifest(made, edit)
    with refuses(BundleError, str(made), word):
        Bundle(made)


INCONSISTENT: dict[str, Edit] = {
    "a name that is not its bits'": set_to("options", 1, "name", value="9"),
    "a cost that is not its bits'": set_to("options", 1, "cost", value=0.5),
    "an option of one bit": set_to("options", 1, "bits", value=1),
    "an option twice": lambda m: m["options"].append(dict(m["options"][1])),
    "one option alone": set_to("options", value=[{"name": "full", "bits": 32, "cost": 1.0}]),
    "no options": set_to("options", value=[]),
    "an input of another shape": set_to("input", "shape", value=[3, 9, 9]),
    "too few means": set_to("input", "mean", value=[0.5]),
    "a standard deviation of zero": set_to("input", "std", 0, value=0.0),
    "no blocks": set_to("architecture", "blocks", value=[]),
    "a block that takes what no block gives": set_to("architecture", "blocks", 1, "in_shape", value=[4, 9, 8]),
    "a block of another index": set_to("architecture", "blocks", 1, "index", value=0),
    "a free skip that changes the shape": set_to("architecture", "blocks", 1, "skip", value="free"),
    "a first block that can be skipped": set_to("architecture", "blocks", 0, "skip", value="projection"),
    "a free skip onto another grid": lambda m: m["architecture"]["blocks"][1].update(
        skip="free", out_shape=m["architecture"]["blocks"][1]["in_shape"]
    ),
    "engines for options that the block may not run": set_to("architecture", "blocks", 1, "options", value=["8"]),
    "a projection of a block that cannot be skipped": set_to("architecture", "blocks", 1, "skip", value=None),
    "a block that may run nothing": lambda m: m["architecture"]["blocks"][1].update(skip=None, options=["skip"]),
    "a block of an unknown option": set_to("architecture", "blocks", 1, "options", value=["skip", "9"]),
    "too few zero points": set_to("runtimes", "tensorrt", "feature_zero_points", value=[0]),
    "weights in no file": set_to("weights", value="weights.bin"),
    "engines for fewer blocks": set_to("runtimes", "onnxruntime", "blocks", value=[]),
    "engines for more blocks": lambda m: m["runtimes"]["onnxruntime"]["blocks"].append(
        {**m["runtimes"]["onnxruntime"]["blocks"][0], "index": 2}
    ),
    "engines for another block": set_to("runtimes", "onnxruntime", "blocks", 0, "index", value=2),
    "no engine for an option": drop("runtimes", "onnxruntime", "blocks", 0, "options", "8"),
    "an empty list for an option": set_to("runtimes", "tensorrt", "blocks", 0, "options", "8", value=[]),
    "an engine for an option that is none": lambda m: m["runtimes"]["onnxruntime"]["blocks"][0]["options"].update(
        {"4": m["runtimes"]["onnxruntime"]["blocks"][0]["options"]["8"]}
    ),
    "too few feature scales": set_to("runtimes", "onnxruntime", "feature_scales", value=[1.0]),
    "no gate and no policy": set_to("runtimes", "onnxruntime", "gate", value=None),
    "budgets that do not rise": lambda m: m["budgets"].reverse(),
    "a budget twice": lambda m: m["budgets"].append(dict(m["budgets"][1])),
    "a bias that rises with the budget": set_to("budgets", 1, "bias", value=4.0),
    "engines for no runtime": set_to("runtimes", value={}),
    "ten thousand blocks": lambda m: m["architecture"].update(blocks=m["architecture"]["blocks"] * 5000),
    "images of a terabyte": lambda m: (
        set_to("architecture", "image_shape", value=[3, 1 << 16, 1 << 16])(m),
        set_to("input", "shape", value=[3, 1 << 16, 1 << 16])(m),
    ),
    "feature maps of 4 GB": lambda m: (
        set_to("architecture", "image_shape", value=[3, 512, 512])(m),
        set_to("input", "shape", value=[3, 512, 512])(m),
        set_to("architecture", "blocks", 0, "out_shape", value=[1 << 12, 512, 512])(m),
        set_to("architecture", "blocks", 1, "in_shape", value=[1 << 12, 512, 512])(m),
    ),
    "files of a terabyte together": lambda m: m["files"].update(
        {f"more/{i}": {"sha256": "0" * 64, "size": 1 << 30} for i in range(1000)}
    ),
    "a stem for TensorRT that leaves uint8": set_to("runtimes", "tensorrt", "stem", "output", value="uint8"),
    "a head that leaves uint8": set_to("runtimes", "tensorrt", "head", "output", value="uint8"),
    "an engine for TensorRT that leaves uint8": set_to(
        "runtimes", "tensorrt", "blocks", 0, "options", "8", 0, "output", value="uint8"
    ),
    "an engine without a file": set_to("runtimes", "tensorrt", "blocks", 0, "options", "8", 0, "files", value={}),
    "shares of other blocks": set_to("accuracy", "option_share", value=[]),
    "shares of other options": set_to("accuracy", "option_share", 0, value=[1.0]),
    "more blocks than engines": lambda m: m["architecture"]["blocks"].append(
        {
            **m["architecture"]["blocks"][1],
            "index": 2,
            "skip": "free",
            "in_shape": m["architecture"]["blocks"][1]["out_shape"],
        }
    ),
}


@pytest.mark.parametrize("what", INCONSISTENT)
def test_parts_that_contradict_each_other(made: Path, what: str) -> None:
    edit_manifest(made, INCONSISTENT[what])
    with pytest.raises(ArtefactError) as caught:
        Bundle(made)
    assert str(made) in str(caught.value)
    assert "\n" not in str(caught.value)


def narrow(manifest: dict[str, Any], block: int, names: list[str], skip: str | None) -> None:
    """Lets a block run some options only, and drops the engines of the others."""
    manifest["architecture"]["blocks"][block].update(options=names, skip=skip)
    for engines in manifest["runtimes"].values():
        record = engines["blocks"][block - 1]
        record["options"] = {name: served for name, served in record["options"].items() if name in names}
        record["skip"] = record["skip"] if skip and "skip" in names else None


@pytest.mark.parametrize(
    ("names", "skip", "fixed"),
    [(["skip", "8", "16", "full"], None, False), (["8", "full"], None, False), (["8"], "projection", True)],
)
def test_a_block_may_have_choices_of_its_own(made: Path, names: list[str], skip: str | None, fixed: bool) -> None:
    edit_manifest(made, lambda m: narrow(m, 1, names, skip))
    bundle = Bundle(made)
    choices = bundle.architecture.blocks[1].choices(bundle.options)
    assert [option.name for option in choices] == [name for name in names if skip or name != "skip"]
    assert bundle.architecture.blocks[1].fixed(bundle.options) == fixed


@pytest.mark.parametrize("part", ["stem", "head"])
def test_a_stem_may_leave_uint8_and_a_head_may_take_nothing_else(made: Path, part: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        engine = manifest["runtimes"]["onnxruntime"][part]
        if part == "stem":
            engine["output"] = "uint8"
        else:
            del engine["files"]["float32"]

    edit_manifest(made, edit)
    assert getattr(Bundle(made).manifest.runtimes["onnxruntime"], part) is not None


OLD_ARCHITECTURES: dict[str, Edit] = {
    "widths that are not the groups'": set_to("architecture", "widths", value=[4]),
    "no groups": set_to("architecture", "groups", value=[]),
    "ten thousand blocks": set_to("architecture", "groups", value=[1000] * 10),
    "feature maps of 4 GB": lambda m: (
        set_to("architecture", "image_shape", value=[3, 512, 512])(m),
        set_to("input", "shape", value=[3, 512, 512])(m),
        set_to("architecture", "widths", value=[1 << 12, 1 << 12])(m),
    ),
    "more blocks than engines": set_to("architecture", "groups", value=[2, 1]),
    "a gate of a hundred gigabytes": set_to("architecture", "gate_hidden", value=1 << 16),
}


@pytest.mark.parametrize("what", OLD_ARCHITECTURES)
def test_an_impossible_architecture_in_a_manifest_of_version_3(made: Path, what: str) -> None:
    (made / MANIFEST).write_bytes(GOLDEN_V3.read_bytes())
    edit_manifest(made, OLD_ARCHITECTURES[what])
    with refuses(BundleError, str(made)):
        Bundle(made)


def make_static(manifest: dict[str, Any], option: str = "8") -> None:
    """Turns a manifest into that of a network without a gate, whose one gated block always runs an option."""
    manifest.update(policy=[option], budgets=[], accuracy_budget=None)
    for engines in manifest["runtimes"].values():
        engines["gate"] = None
        for block in engines["blocks"]:
            block["options"] = {name: served for name, served in block["options"].items() if name == option}
            if option != "skip":
                block["skip"] = None


@pytest.mark.parametrize("option", ["skip", "8", "16", "full"])
def test_a_static_policy_needs_no_gate_and_the_engines_of_its_options_alone(made: Path, option: str) -> None:
    edit_manifest(made, lambda m: make_static(m, option))
    bundle = Bundle(made)
    assert bundle.manifest.policy == [option]
    assert bundle.policy is not None
    assert bundle.policy.tolist() == [bundle.options.names.index(option)]


WRONG_POLICIES: dict[str, tuple[Edit, str]] = {
    "of another length": (lambda m: m["policy"].append("8"), "2 blocks after the first"),
    "of no block": (set_to("policy", value=[]), "0 blocks after the first"),
    "of an option that the block may not run": (set_to("architecture", "blocks", 1, "options", value=["16"]), "'8'"),
    "of an unknown option": (set_to("policy", 0, value="4"), "'4'"),
    "beside a gate": (set_to("runtimes", "onnxruntime", "gate", value="common/gate.onnx"), "gate"),
    "with an accuracy budget": (
        lambda m: m.update(accuracy_budget=msgspec.json.decode(GOLDEN.read_bytes())["accuracy_budget"]),
        "accuracy budget",
    ),
    "with budgets": (
        lambda m: m["budgets"].append(msgspec.json.decode(GOLDEN.read_bytes())["budgets"][0]),
        "budgets",
    ),
    "without its option's engine": (set_to("runtimes", "onnxruntime", "blocks", 0, "options", value={}), "block 1"),
    "of an option that has no engine": (set_to("policy", 0, value="16"), "block 1"),
    "that skips, without the projection": (
        lambda m: (make_static(m, "skip"), set_to("runtimes", "onnxruntime", "blocks", 0, "skip", value=None)(m)),
        "projection",
    ),
}


@pytest.mark.parametrize("what", WRONG_POLICIES)
def test_a_policy_that_cannot_be(made: Path, what: str) -> None:
    edit, word = WRONG_POLICIES[what]
    edit_manifest(made, make_static)
    edit_manifest(made, edit)
    with refuses(BundleError, str(made), word):
        Bundle(made)


DANGLING: dict[str, Edit] = {
    "an engine's file": set_to("runtimes", "onnxruntime", "stem", "files", "float32", value="common/other.onnx"),
    "a gate": set_to("runtimes", "onnxruntime", "gate", value="common/other.onnx"),
    "a baseline": set_to("runtimes", "onnxruntime", "static", "fp32", value="common/other.onnx"),
    "the samples": set_to("samples", value="other.npz"),
    "a file outside": set_to("runtimes", "onnxruntime", "gate", value="../other.onnx"),
    "a stem without its layout": set_to("runtimes", "onnxruntime", "stem", "files", value={}),
    "a stem for uint8 alone": lambda m: m["runtimes"]["onnxruntime"]["stem"].update(
        files={"uint8": m["runtimes"]["onnxruntime"]["stem"]["files"]["float32"]}
    ),
    "a block for TensorRT without float32": lambda m: m["runtimes"]["tensorrt"]["blocks"][0]["options"]["8"][0].update(
        files={"uint8": m["runtimes"]["tensorrt"]["head"]["files"]["float32"]}
    ),
    "a stride block without its skip": set_to("runtimes", "onnxruntime", "blocks", 0, "skip", value=None),
    "names for half the classes": set_to("input", "class_names", value=["a", "b"]),
    "a feature scale of zero": set_to("runtimes", "onnxruntime", "feature_scales", 0, value=0.0),
}


@pytest.mark.parametrize("what", DANGLING)
def test_a_part_that_is_missing_is_found_on_opening(made: Path, what: str) -> None:
    edit_manifest(made, DANGLING[what])
    with pytest.raises(BundleError):
        Bundle(made)


def test_an_architecture_far_larger_than_its_engines_takes_no_memory(made: Path) -> None:
    (made / MANIFEST).write_bytes(GOLDEN_V3.read_bytes())
    edit_manifest(made, set_to("architecture", "groups", value=[100_000, 1]))
    with little_memory(5_000_000), pytest.raises(BundleError):
        Bundle(made)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with refuses(BundleError, "missing.dfs", "dfs-deploy export"):
        Bundle(tmp_path / "missing.dfs")
    (tmp_path / "file.dfs").write_bytes(b"x")
    with refuses(BundleError, "file.dfs"):
        Bundle(tmp_path / "file.dfs")
    (tmp_path / "empty.dfs").mkdir()
    with refuses(BundleError, "empty.dfs", MANIFEST):
        Bundle(tmp_path / "empty.dfs")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "sparse file", "pointer of Git LFS", "device"])
def test_a_manifest_that_is_no_file_is_refused_at_once(made: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    file = made / MANIFEST
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        monkeypatch.chdir(made)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as here:
            here.bind(MANIFEST)
    elif kind == "folder":
        file.mkdir()
    elif kind == "sparse file":
        file.touch()
        os.truncate(file, 100 << 30)
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only the superuser makes devices")
        os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    else:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    word = {"sparse file": "107,374,182,400 bytes", "pointer of Git LFS": "git lfs pull"}.get(kind, f"is a {kind}")
    with refuses(BundleError, str(file), word.replace("a pipe", "a FIFO")):
        Bundle(made)
    with pytest.raises(UsageError):  # nor is it replaced
        check_writable(made)


def test_a_bundle_that_cannot_be_written_is_named_by_its_own_path(made: Path, tmp_path: Path) -> None:
    files = {name: data for name, data in golden_files().items() if name != "common/stem.onnx"}
    out = tmp_path / "new.dfs"
    with pytest.raises(BundleError, match="stem") as caught:
        write_bundle(out, Bundle(made).manifest, files)
    assert str(out) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert not out.exists()


def test_a_manifest_of_many_small_parts_takes_little_memory(made: Path) -> None:
    (made / MANIFEST).write_bytes(b'{"schema_version": 3, "producer": {"a": [' + b"[]," * 3_000_000 + b"[]]}}")
    with little_memory(40_000_000), pytest.raises(BundleError):
        Bundle(made)


# Samples


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


SAMPLES = {
    "images": np.zeros((2, 8, 8, 3), np.uint8),
    "labels": np.array([1, -1]),
    "logits": np.ones((2, 10), np.float32),
    "path": np.array([[0], [3]], np.uint8),
}


def test_samples_come_as_they_were_packed(made: Path) -> None:
    put(made, "samples.npz", archive(**SAMPLES))
    samples = Bundle(made).samples()
    assert samples is not None
    for name, expected in SAMPLES.items():
        assert np.array_equal(getattr(samples, name), expected)
    edit_manifest(made, set_to("samples", value=None))
    assert Bundle(made).samples() is None


@pytest.mark.parametrize("how", ["a pickle", "a pickle in an archive", "an array of objects", "an .npy of objects"])
def test_samples_that_would_run_code_are_refused_and_never_run(made: Path, tmp_path: Path, how: str) -> None:
    trap = MakesFolder(tmp_path / "made-by-a-pickle")
    if how == "a pickle":
        data = pickle.dumps(trap)
    elif how == "a pickle in an archive":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as packed:
            packed.writestr("images.npy", pickle.dumps(trap))
        data = stream.getvalue()
    elif how == "an array of objects":
        data = archive(**{**SAMPLES, "labels": np.array([trap, trap], object)})
    else:
        stream = io.BytesIO()
        np.save(stream, np.array([trap], object), allow_pickle=True)
        data = stream.getvalue()
    put(made, "samples.npz", data)
    with refuses(BundleError, "samples.npz"):
        Bundle(made).samples()
    assert not trap.path.exists()


def damaged() -> bytes:
    """An archive whose compressed data are no such: it opens, and fails when an array is read."""
    data = bytearray(
        archive(**{**SAMPLES, "images": np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), np.uint8)})
    )
    data[60:90] = bytes(30)
    return bytes(data)


BROKEN_SAMPLES = {
    "empty": b"",
    "text": b"samples",
    "a truncated archive": archive(**SAMPLES)[:-40],
    "a damaged archive": damaged(),
    "an archive of nothing": archive(),
    "an archive without labels": archive(**{name: array for name, array in SAMPLES.items() if name != "labels"}),
    "a single array": (lambda stream: (np.save(stream, np.zeros(3)), stream.getvalue())[1])(io.BytesIO()),
}


@pytest.mark.parametrize("what", BROKEN_SAMPLES)
def test_samples_that_cannot_be_read(made: Path, what: str) -> None:
    put(made, "samples.npz", BROKEN_SAMPLES[what])
    with refuses(BundleError, "samples.npz"):
        Bundle(made).samples()


WRONG_SAMPLES = {
    "images of another size": {"images": np.zeros((2, 9, 8, 3), np.uint8)},
    "images in floats": {"images": np.zeros((2, 8, 8, 3), np.float32)},
    "fewer labels": {"labels": np.array([1])},
    "a path of another length": {"path": np.zeros((2, 5), np.uint8)},
    "a path with options that are none": {"path": np.full((2, 1), 9, np.uint8)},
    "logits of other classes": {"logits": np.ones((2, 3), np.float32)},
    "a label of no class": {"labels": np.array([1, 10])},
    "a negative label": {"labels": np.array([1, -2])},
    "more than a bundle may carry": {
        "images": np.zeros((4097, 8, 8, 3), np.uint8),
        "labels": np.zeros(4097, np.int64),
        "logits": np.zeros((4097, 10), np.float32),
        "path": np.zeros((4097, 1), np.uint8),
    },
}


@pytest.mark.parametrize("what", WRONG_SAMPLES)
def test_samples_that_are_not_what_the_manifest_says(made: Path, what: str) -> None:
    put(made, "samples.npz", archive(**{**SAMPLES, **WRONG_SAMPLES[what]}))
    with refuses(BundleError, "samples.npz"):
        Bundle(made).samples()


def test_samples_of_wrong_shapes_are_refused_unread(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their headers: a hostile bundle would otherwise take gigabytes before it is found out."""
    put(made, "samples.npz", archive(**{**SAMPLES, "images": np.zeros((2, 9, 8, 3), np.uint8)}))
    monkeypatch.setattr(Arrays, "read", lambda *_: pytest.fail("read before it was checked"))
    with refuses(BundleError, "samples.npz", "images of shape (2, 9, 8, 3)"):
        Bundle(made).samples()


def test_a_bundle_goes_by_its_name_however_it_is_reached(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(path for path in made.iterdir() if path.is_dir())
    monkeypatch.chdir(folder)
    assert Bundle("..").path == made.resolve()
    assert Bundle(folder / "..").path == made.resolve()
    monkeypatch.chdir(made)
    assert Bundle(".").path == made.resolve()


# Finding and writing


def test_the_one_bundle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(UsageError, f"no *.dfs bundle in {tmp_path}", "export"):
        find_bundle(tmp_path)
    (tmp_path / "notes.dfs").write_text("a file is no bundle")
    with refuses(UsageError, "no *.dfs bundle"):
        find_bundle(tmp_path)
    (tmp_path / "b.dfs").mkdir()
    assert find_bundle(tmp_path) == tmp_path / "b.dfs"
    monkeypatch.chdir(tmp_path)
    assert find_bundle() == Path("b.dfs")
    (tmp_path / "a.dfs").mkdir()
    with refuses(UsageError, "several bundles", "a.dfs, b.dfs", f"in {tmp_path}"):
        find_bundle(tmp_path)
    with refuses(UsageError, "in the current directory"):
        find_bundle()


def test_writing_fills_in_the_files_and_reads_back(made: Path, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(Bundle(made).manifest, files={})
    written = write_bundle(tmp_path / "deep" / "net.dfs", manifest, golden_files())
    assert written.manifest == Bundle(made).manifest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["net.dfs"]


def test_writing_replaces_a_bundle_whole(made: Path) -> None:
    manifest = Bundle(made).manifest
    files = {**golden_files(), "samples.npz": b"new"}
    written = write_bundle(made, manifest, files)
    assert written.read("samples.npz") == b"new"
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_a_bundle_that_is_damaged_can_be_replaced(made: Path) -> None:
    manifest = Bundle(made).manifest
    flip(made)
    write_bundle(made, manifest, golden_files())
    Bundle(made)


@pytest.mark.parametrize("name", ["labels.csv", "common/labels.csv", ".hidden", "notes/deep/labels.csv", "elsewhere"])
def test_a_bundle_that_holds_a_users_file_is_not_replaced(made: Path, tmp_path: Path, name: str) -> None:
    bundle = Bundle(made)
    if name == "elsewhere":
        (tmp_path / "folder").mkdir()
        (made / name).symlink_to(tmp_path / "folder")
    else:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("precious")
    with refuses(UsageError, str(made), name):
        write_bundle(made, bundle.manifest, {**golden_files(), "common/stem.onnx": b"new"})
    assert (made / name).is_dir() or (made / name).read_text() == "precious"
    assert [path.name for path in made.parent.iterdir() if path.name != "folder"] == [made.name]
    (made / name).unlink()
    assert Bundle(made).digest == bundle.digest
    write_bundle(made, bundle.manifest, golden_files())


@pytest.mark.parametrize("name", [".DS_Store", "common/Thumbs.db", "__MACOSX/common/._a", "manifest.json~", ".nfs01"])
def test_what_a_system_left_in_a_bundle_does_not_stop_its_replacement(made: Path, name: str) -> None:
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    (made / name).touch()
    written = write_bundle(made, Bundle(made).manifest, {**golden_files(), "samples.npz": b"new"})
    assert written.read("samples.npz") == b"new"
    assert written.foreign == ()


def test_a_file_that_an_older_bundle_listed_does_not_stop_its_replacement(made: Path) -> None:
    manifest = Bundle(made).manifest
    write_bundle(made, manifest, {**golden_files(), "common/other.onnx": b"stem"})
    write_bundle(made, manifest, golden_files())
    assert not (made / "common" / "other.onnx").exists()


CUT_OFF = """
import os, sys
from pathlib import Path
from dfs_deploy.io import files
from dfs_deploy.io.arrays import Arrays
from dfs_deploy.bundle import Bundle, write_bundle

path, rename = Path(sys.argv[1]), Path.rename
bundle = Bundle(path)
contents = {name: (path / name).read_bytes() for name in bundle.manifest.files}

def cut_off(self, target):
    if target == path:
        os._exit(9)
    return rename(self, target)

files._exchange = lambda one, other: False
Path.rename = cut_off
write_bundle(path, bundle.manifest, contents)
"""
"""Dies between the two renames that replace a bundle on a file system that cannot exchange names."""


def test_after_a_crash_while_it_is_replaced_a_bundle_can_be_moved_back(made: Path) -> None:
    digest = Bundle(made).digest
    assert subprocess.run([sys.executable, "-c", CUT_OFF, made], check=False).returncode == 9
    (aside,) = made.parent.glob(".*.tmp/*.replaced")
    with refuses(BundleError, str(made), "no bundle"):
        Bundle(made)
    aside.rename(made)
    assert Bundle(made).digest == digest


def test_all_of_a_bundle_is_on_the_disk_before_it_takes_its_place(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, synced = Bundle(made).manifest, dict[int, bool]()
    old = made.stat().st_ino

    def fsync(handle: int) -> None:
        synced[os.fstat(handle).st_ino] = made.exists() and made.stat().st_ino == old

    monkeypatch.setattr(os, "fsync", fsync)
    write_bundle(made, manifest, golden_files())
    for entry in (made, *made.rglob("*")):
        assert synced.pop(entry.stat().st_ino), entry
    assert synced == {made.parent.stat().st_ino: False}, "the folder, after its entry changed"


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_writing_over_something_else_is_refused(made: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.dfs"
    if kind == "file":
        out.write_text("precious")
    elif kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("precious")
    else:
        out.symlink_to(made if kind == "link" else tmp_path / "nowhere")
    with refuses(UsageError, str(out)):
        write_bundle(out, Bundle(made).manifest, golden_files())
    assert kind != "file" or out.read_text() == "precious"
    assert kind != "folder" or (out / "notes.txt").read_text() == "precious"
    assert out.is_symlink() == ("link" in kind)


def test_a_folder_of_another_kind_with_a_manifest_json_is_left_alone(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "web-application"
    out.mkdir()
    (out / MANIFEST).write_text('{"name": "a browser extension", "manifest_version": 3}')
    (out / "source.js").write_text("precious")
    with pytest.raises(UsageError):
        write_bundle(out, Bundle(made).manifest, golden_files())
    assert (out / "source.js").read_text() == "precious"


def test_a_write_that_fails_leaves_what_was_there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(made)
    before = bundle.digest

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write_bundle(made, bundle.manifest, golden_files())
    assert Bundle(made).digest == before
    assert [path.name for path in made.parent.iterdir()] == [made.name]
