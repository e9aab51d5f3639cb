"""From a trained checkpoint to a bundle: split, calibrate, write every engine, validate, measure."""

from __future__ import annotations

import functools
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from torch import Tensor

import dfs_deploy
from dfs_deploy.bundle import SUFFIX, Bundle, check_writable, source_of, write_bundle
from dfs_deploy.bundle import manifest as schema
from dfs_deploy.calibration import (
    METHODS,
    STATIC,
    CalibratedRange,
    TensorKey,
    calibrate,
    calibrate_static,
    from_checkpoint,
)
from dfs_deploy.checkpoints import Checkpoint, CheckpointFacts, load_checkpoint
from dfs_deploy.data import Dataset, ImageFolder, open_dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters.budgets import calibrate_budgets, check_budgets
from dfs_deploy.exporters.comparison import Comparison, compare, static_top1
from dfs_deploy.exporters.probes import make_probes, pack_samples, pick_samples
from dfs_deploy.exporters.single_file import check_single_file
from dfs_deploy.exporters.single_file import single_file as write_single_file
from dfs_deploy.exporters.tensorrt_lint import check_graphs
from dfs_deploy.exporters.validation import Validation, validate
from dfs_deploy.exporters.writing import EngineWriter
from dfs_deploy.io.files import check_folder, sha256_file, temporary_folder, write_whole
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.io.text import one_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.threads import in_torch_threads
from dfs_deploy.options import PRECISIONS, Option, Options, Precision, engine_precision, parse_targets
from dfs_deploy.runtimes import Runtime
from dfs_deploy.system.cpu import WEIGHT_BITS, WeightBits, target_named
from dfs_deploy.system.ort import onnxruntime

RUNTIMES = ("onnxruntime", "tensorrt")
CALIBRATION_METHODS = ("checkpoint", *METHODS)
DEFAULT_SAMPLES = 1024
_BATCH = 64
_JOB_FILE = "job.json"
_OF_A_RUN = {"checkpoint": "", "backbone": "-backbone"}
"""Stems of the checkpoints that a training run leaves beside its job, and what its name gets for each."""

Progress = Callable[[str, float], None]
"""Called with what is being done and how far it is, 0 to 1."""


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        bundle: opened, every digest checked.
        validation: how far each engine is from the reference.
        comparison: what was measured on the calibration data, or ``None`` without data.
        assumptions: what the checkpoint does not say and was taken for granted.
        notes: what was assumed or noticed about the calibration data, one line each.
        single_file: where the whole network was written as one ONNX file, or ``None``.
        replaced: name of another checkpoint, whose bundle stood in this one's place; ``None`` if there was none.
    """

    bundle: Bundle
    validation: Validation
    comparison: Comparison | None
    assumptions: tuple[str, ...]
    single_file: Path | None = None
    notes: tuple[str, ...] = ()
    replaced: str | None = None


@in_torch_threads
def export(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    targets: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    options: Options | None = None,
    facts: CheckpointFacts | None = None,
    calibration_data: str | Path | Dataset | ImageFolder | None = None,
    calibration_method: str | None = None,
    calibration_samples: int | None = None,
    target_cpu: str | None = None,
    weight_bits: WeightBits | None = None,
    seed: int = 0,
    budgets: Sequence[float] | None = None,
    single_file: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Splits a checkpoint, writes an engine for every block and option, and proves that they compute the same.

    Args:
        checkpoint: a trained network of a known format.
        out: directory to write; ``None`` for ``./<checkpoint stem>.dfs``, or ``./<run>.dfs`` for the checkpoint of a
            training run. A bundle that was made from another checkpoint is replaced only if it is named here.
        targets: engine precisions to make, among ``int8``, ``fp16`` and ``fp32``; ``None`` for all three.
        runtimes: runtimes to make engines for, ``onnxruntime`` and ``tensorrt``; ``None`` for the first alone.
        options: what the gate chooses from, if the checkpoint does not say.
        facts: what else the caller knows of the checkpoint: which weights in it, its normalisation, class names and
            image size; ``None`` for nothing. What is neither in the file nor given is assumed, and said.
        calibration_data: a :class:`~dfs_deploy.data.Dataset`, or where to load one from (its training split; of a
            folder, only the images drawn are decoded); ``None`` uses the ranges that the checkpoint carries.
        calibration_method: ``checkpoint``, ``minmax``, ``percentile``, ``entropy`` or ``mse``; ``None`` for ``minmax``
            with data and ``checkpoint`` without.
        calibration_samples: images to draw from the data; ``None`` for 1,024, or all if there are fewer.
        target_cpu: kind of CPU that is to run the INT8 engines of ONNX Runtime, ``vnni`` (x86 with VNNI), ``avx2`` (x86
            without) or ``arm``, which decides the bits of their weights; ``auto`` and ``None``
            for the kind of this machine's CPU.
        weight_bits: 8 or 7, whatever the CPU; ``None`` for those that suit ``target_cpu``.
        seed: seed of the draw.
        budgets: shares of running every gated block in full precision that the bundle shall be able to hold at run
            time, calibrated on the data; ``None`` for none.
        single_file: where to write, besides the bundle, the whole network as one ONNX file with ``If`` operators;
            ``None`` for nowhere.
        threads: CPU threads of PyTorch, and of an engine when the bundle is measured; ``None`` for what affinity and
            the container's CPU quota allow PyTorch, and one for an engine.
        progress: called as the work goes on.

    Raises:
        ArtefactError: the checkpoint cannot be used.
        UsageError: a choice that cannot be, fewer than one thread, or data that cannot be read.
        ExportMismatchError: an engine, or the whole, disagrees with the reference, or the single file with the runtime;
            nothing is written then.
        GraphRuleError: a graph for TensorRT breaks one of its rules.
    """
    report = progress or (lambda what, share: None)
    bits = weight_bits or WEIGHT_BITS[target_named(target_cpu)]
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"seed {seed}, expected 0 to {(1 << 63) - 1}")
    source = Path(checkpoint)
    named = out is not None
    out = Path(f"{bundle_stem(source)}{SUFFIX}") if out is None else Path(out)
    wanted = parse_targets(",".join(PRECISIONS if targets is None else targets))
    made_for = _check_runtimes(RUNTIMES[:1] if runtimes is None else runtimes)
    single = None if single_file is None else _check_single_path(Path(single_file), out, made_for)
    check_writable(out)
    replaced = _check_replaced(out, source, named)
    loaded = load_checkpoint(source, options, facts)
    network = loaded.network
    data = _load_data(calibration_data, loaded, calibration_samples, seed)
    if budgets is not None:
        budgets = _check_budgets(budgets, network, data, made_for)
    possible = range(len(network.options)) if network.policy is None else sorted(set(network.policy))
    rounded = [i for i in possible if engine_precision(network.options[i], wanted) == "int8"]
    method = _check_method(calibration_method, data, loaded, bool(rounded))
    ranges = _calibrate(loaded, rounded, data, method, report) if "int8" in wanted else {}

    writer = EngineWriter(network, ranges, wanted, bits)
    engines = {}
    for name in made_for:
        report(f"writing engines for {name}", 0.0)
        engines[name] = writer.write(name, functools.partial(report, f"writing engines for {name}"))
    check_graphs({name: data for name, data in writer.files.items() if name.startswith("tensorrt/")})
    images = make_probes(loaded.input, seed) if data is None else data.images
    samples = pick_samples(network, loaded.input, images, None if data is None else data.labels)
    manifest = schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        producer=_producer(),
        source=schema.SourceRecord(
            file=_name(source.name),
            format=loaded.format,
            sha256=sha256_file(source),
            assumptions=[one_line(assumption) for assumption in loaded.assumptions],
            weights_key=loaded.weights_key,
        ),
        architecture=loaded.network.architecture,
        options=[schema.OptionRecord(name=o.name, bits=o.bits, cost=o.cost) for o in network.options],
        policy=None if network.policy is None else [network.options[choice].name for choice in network.policy],
        budgets=[],
        targets=list(wanted),
        input=schema.InputRecord(
            shape=loaded.input.shape,
            mean=list(loaded.input.mean),
            std=list(loaded.input.std),
            class_names=list(loaded.input.class_names),
        ),
        runtimes=engines,
        calibration=_calibration_record(loaded, ranges, data, method, seed, bits) if ranges else None,
        accuracy=None,
        substitutions=_served([network.options[i] for i in possible], wanted),
        samples="samples.npz",
        files={},
    )
    files = {**writer.files, "samples.npz": pack_samples(samples)}
    with temporary_folder(out) as folder:
        draft = write_bundle(folder / f"draft{SUFFIX}", manifest, files)
        report("validating", 0.0)
        validation = validate(draft, network, loaded.input.normalize(samples.images))
        comparison, static, points, model = None, {}, [], b""
        if data is not None and "onnxruntime" in made_for:
            with Runtime(draft, threads=threads, plan=False, prepared=False) as runtime:
                comparison = compare(runtime, network, data.images, data.labels, functools.partial(report, "measuring"))
                if budgets is not None:
                    points = calibrate_budgets(runtime, budgets, data, functools.partial(report, "calibrating budgets"))
            static = static_top1(draft, data.images, data.labels, threads)
        if single is not None:
            report("writing the single file", 0.0)
            model = write_single_file(network, loaded.input, ranges, wanted, bits)
            check_single_file(model, draft, loaded.input.normalize(samples.images))
    accuracy = None if comparison is None or data is None else _accuracy_record(comparison, static, data)
    bundle = write_bundle(out, msgspec.structs.replace(manifest, accuracy=accuracy, budgets=points), files)
    if single is not None:
        write_whole(single, model)
    notes = () if data is None else data.notes
    return Exported(bundle, validation, comparison, loaded.assumptions, single, notes, replaced)


def checkpoint_stem(path: Path) -> str:
    """A checkpoint's name without its suffixes: ``net`` for ``net.pth.tar``."""
    name = path.name
    while (suffix := Path(name).suffix) in (".tar", ".pt", ".pth", ".safetensors", ".ckpt"):
        name = name.removesuffix(suffix)
    return name


def bundle_stem(path: Path) -> str:
    """The name of a bundle that is given none: the checkpoint's, or the run's for what a training run left.

    Every run calls its checkpoint alike, so that one run's bundle would stand in the place of another's.
    """
    stem, run = checkpoint_stem(path), path.resolve().parent
    if stem not in _OF_A_RUN or not run.name or not (run / _JOB_FILE).is_file():
        return stem
    return run.name + _OF_A_RUN[stem]


def _check_replaced(out: Path, source: Path, named: bool) -> str | None:
    """Name of the other checkpoint of which the bundle was made that stands at ``out``, if that may be replaced."""
    before = source_of(out)
    if before is None or not source.is_file() or before.sha256 == sha256_file(source):
        return None
    if not named:
        raise UsageError(
            f"{out} was made from another checkpoint ({before.file}, SHA-256 {before.sha256[:12]}...); name it with"
            f" --out {shlex.quote(str(out))} to replace it, or give another name"
        )
    return before.file


def _check_runtimes(runtimes: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown or not runtimes:
        seen = f"unknown runtime {unknown[0]!r}" if unknown else "no runtime"
        raise UsageError(f"{seen}, expected some of {', '.join(RUNTIMES)}")
    return tuple(dict.fromkeys(runtimes))


def _check_single_path(path: Path, out: Path, runtimes: Sequence[str]) -> Path:
    if "onnxruntime" not in runtimes:
        raise UsageError("a single file is checked against the engines for onnxruntime; add it to the runtimes")
    if path.is_dir():
        raise UsageError(f"{path} is a directory, expected the file to write, as in model.onnx")
    if out.resolve() in (path.resolve(), *path.resolve().parents):
        raise UsageError(f"{path} lies in the bundle {out}, which holds its own files only; write it somewhere else")
    try:
        check_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); give another --single-file") from error
    return path


def _check_budgets(
    budgets: Sequence[float], network: DFSNetwork, data: Dataset | None, runtimes: Sequence[str]
) -> tuple[float, ...]:
    if network.gate is None:
        raise UsageError("budgets for a network whose policy is static and always computes the same; leave them out")
    if data is None:
        raise UsageError("budgets are calibrated on data and none was given; add --calibration-data")
    if "onnxruntime" not in runtimes:
        raise UsageError("budgets are calibrated with the engines for onnxruntime; add it to the runtimes")
    return check_budgets(budgets, network.options.costs)


def _load_data(
    source: str | Path | Dataset | ImageFolder | None, loaded: Checkpoint, samples: int | None, seed: int
) -> Dataset | None:
    if source is None:
        return None
    samples = DEFAULT_SAMPLES if samples is None else samples
    if samples < 1:
        raise UsageError(f"{samples} calibration samples, expected at least 1")
    size = loaded.input.shape[1:]
    data = source if isinstance(source, Dataset | ImageFolder) else open_dataset(source, split="train", size=size)
    names = loaded.input.class_names
    drawn = data.labelled_for(loaded.network.architecture.classes, names).subset(samples, seed).load()
    if drawn.images.shape[1:] != (*size, loaded.input.shape[0]):
        raise UsageError(
            f"{drawn.name} has images of {drawn.images.shape[1:]}, the network takes {(*size, loaded.input.shape[0])}"
        )
    return drawn


def _check_method(method: str | None, data: Dataset | None, loaded: Checkpoint, needed: bool) -> str:
    if method is None:
        method = "checkpoint" if data is None else "minmax"
    if method not in CALIBRATION_METHODS:
        raise UsageError(f"unknown calibration method {method!r}, expected one of {', '.join(CALIBRATION_METHODS)}")
    if needed and data is None and method != "checkpoint":
        raise UsageError(f"calibration method {method} measures on data and none was given; add --calibration-data")
    return method


def _calibrate(
    loaded: Checkpoint, options: Sequence[int], data: Dataset | None, method: str, report: Progress
) -> dict[TensorKey, CalibratedRange]:
    """The range of every tensor that an INT8 engine rounds.

    ``load_checkpoint`` has made sure that a checkpoint with quantised options carries ranges, so that the checkpoint's
    are always there to fall back to.
    """
    if data is None:
        return from_checkpoint(loaded.network, options)
    total = -(-len(data.images) // _BATCH)
    passes = 3 if method in ("checkpoint", "minmax") else 5
    done = 0

    def batches() -> Iterator[Tensor]:
        nonlocal done
        for start in range(0, len(data.images), _BATCH):
            yield torch.from_numpy(loaded.input.normalize(data.images[start : start + _BATCH]))
            done += 1
            report(f"calibrating ({method})", min(done / (passes * total), 1.0))

    routed = calibrate(loaded.network, options, batches, method) if options else {}
    return {**routed, **calibrate_static(loaded.network, batches, method)}


def _producer() -> dict[str, str]:
    # Of the modules: distributions have other names, as onnxruntime-gpu and the wheels of boards' makers do.
    versions = {module.__name__: str(module.__version__) for module in (torch, onnx, onnxruntime, np)}
    return {"name": "dfs-deploy", "version": dfs_deploy.__version__, "python": platform.python_version(), **versions}


def _name(text: str) -> str:
    """A name of a file or of data as a manifest holds it: on one line, and not without end."""
    return one_line(text, LONGEST_NAME)


def _served(options: Sequence[Option], targets: Sequence[str]) -> list[schema.ServedRecord]:
    """Options whose own precision is not among the targets."""
    records = []
    for option in options:
        wanted, served = engine_precision(option, PRECISIONS), engine_precision(option, targets)
        if wanted != served and wanted is not None and served is not None:
            record = schema.ServedRecord(
                option=option.name, wanted=wanted, served_by=served, reason=f"{wanted} is not among the targets"
            )
            records.append(record)
    return records


def _calibration_record(
    loaded: Checkpoint,
    ranges: dict[TensorKey, CalibratedRange],
    data: Dataset | None,
    method: str,
    seed: int,
    weight_bits: WeightBits,
) -> schema.CalibrationRecord:
    names = {STATIC: "static", **dict(enumerate(loaded.network.options.names))}
    return schema.CalibrationRecord(
        method=method,
        data=None if data is None else _name(data.name),
        samples=0 if data is None else len(data.images),
        seed=seed,
        weight_bits=weight_bits,
        ranges=[
            schema.RangeRecord(
                block=key.block,
                option=names[key.option],
                tensor=key.tensor,
                low=value.low,
                high=value.high,
                source=value.source,
                samples=value.samples,
            )
            for key, value in sorted(ranges.items())
        ],
    )


def _accuracy_record(comparison: Comparison, static: dict[Precision, float], data: Dataset) -> schema.AccuracyRecord:
    return schema.AccuracyRecord(
        data=_name(data.name),
        samples=comparison.samples,
        top1_reference=comparison.top1_reference,
        top1_bundle=comparison.top1_bundle,
        top1_static=static,
        route_agreement=comparison.route_agreement,
        computation_percentage_reference=comparison.computation_percentage_reference,
        computation_percentage_bundle=comparison.computation_percentage_bundle,
        max_abs_logit_error=comparison.max_abs_logit_error,
        option_share=[list(share) for share in comparison.option_share],
    )
