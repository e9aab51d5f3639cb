"""The verb ``export``: from a trained network to a bundle, validated and measured before it is put in its place."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from torch import Tensor

import dfs_deploy
from dfs_deploy.bundle import (
    SUFFIX,
    Bundle,
    check_writable,
    describe_bundle,
    drafted_bundle,
    sharing_weights,
    source_of,
)
from dfs_deploy.bundle import manifest as schema
from dfs_deploy.calibration import ALWAYS, METHODS, STATIC, Ranges, calibrate, calibrate_static, from_checkpoint
from dfs_deploy.checkpoints import CheckpointFacts
from dfs_deploy.costs import load_costs
from dfs_deploy.data import AnyImages, open_dataset, splits_of
from dfs_deploy.errors import UsageError
from dfs_deploy.exporters.accuracy_budget import AccuracyGoal, choose_accuracy_budget, notes_on
from dfs_deploy.exporters.budgets import calibrate_budgets, check_budgets
from dfs_deploy.exporters.comparison import Comparison, compare, static_top1
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.layers import check_operators
from dfs_deploy.exporters.probes import carried, make_probes, most_looked_at, pack_samples, pick_samples
from dfs_deploy.exporters.reference import Reference, images_at_once
from dfs_deploy.exporters.single_file import check_single_file
from dfs_deploy.exporters.single_file import single_file as write_single_file
from dfs_deploy.exporters.source import Source, digest_of, open_source
from dfs_deploy.exporters.tensorrt_lint import check_graphs
from dfs_deploy.exporters.validation import Validation, validate
from dfs_deploy.exporters.writing import EngineWriter
from dfs_deploy.io.files import check_folder, sha256_file, write_whole
from dfs_deploy.io.json_files import LONGEST_NAME
from dfs_deploy.io.kinds import JOB_FILE
from dfs_deploy.io.text import one_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.graph import named_tensors
from dfs_deploy.models.threads import torch_threads
from dfs_deploy.options import PRECISIONS, Option, Options, Precision, engine_precision, parse_targets
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.system.cpu import WEIGHT_BITS, TargetCpu, WeightBits, target_named
from dfs_deploy.system.ort import onnxruntime

_LOG = logging.getLogger(__name__)

RUNTIMES = ("onnxruntime", "tensorrt")
CALIBRATION_METHODS = ("checkpoint", *METHODS)
DEFAULT_SAMPLES = 1024
_BATCH = 64
_SAMPLES = "samples.npz"
_SUFFIXES_OF_A_RUN = {"checkpoint": "", "backbone": "-backbone"}
"""Stems of the checkpoints that a training run leaves beside its job, and what each adds to the name of the run."""


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        bundle: opened, every digest checked.
        validation: distance of each engine from the reference.
        comparison: figures measured on the calibration data; ``None`` without data.
        assumptions: facts that the checkpoint does not say and that were assumed, one line each.
        single_file: path of the whole network as one ONNX file; ``None`` if it was not asked for.
        notes: assumptions and remarks about the calibration data, one line each.
        replaced: name of another checkpoint, whose bundle stood in this one's place; ``None`` if there was none.
        kept_in_float: layers that an INT8 engine computes in float, since measured errors say so, one line per file.
    """

    bundle: Bundle
    validation: Validation
    comparison: Comparison | None
    assumptions: tuple[str, ...]
    single_file: Path | None
    notes: tuple[str, ...]
    replaced: str | None
    kept_in_float: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Exported {describe_bundle(self.bundle)}: {len(self.validation.engines)} engines validated>"

    def as_json(self) -> dict[str, Any]:
        """The keys of ``export --json``, as plain values."""
        manifest = self.bundle.manifest
        accuracy = None if self.comparison is None else asdict(self.comparison)
        suspicions = [] if accuracy is None else accuracy.pop("suspicions")
        return {
            "bundle": str(self.bundle.path),
            "digest": self.bundle.digest,
            "bytes": self.bundle.size,
            "architecture": manifest.architecture.name,
            "options": list(self.bundle.options.names),
            "substitutions": {record.option: record.served_by for record in manifest.substitutions},
            "assumptions": list(self.assumptions),
            "weight_bits": None if manifest.calibration is None else manifest.calibration.weight_bits,
            "target_cpu": None if manifest.calibration is None else manifest.calibration.target_cpu,
            "notes": [*self.notes, *suspicions],
            "engines_validated": len(self.validation.engines),
            "worst_error": {precision: self.validation.worst(precision) for precision in manifest.targets},
            "paths_validated": self.validation.paths,
            "budgets": msgspec.to_builtins(manifest.budgets),
            "accuracy_budget": msgspec.to_builtins(manifest.accuracy_budget),
            "single_file": None if self.single_file is None else str(self.single_file),
            "accuracy": accuracy,
            "replaced": self.replaced,
            "kept_in_float": list(self.kept_in_float),
            "passed": True,
        }


def export(
    checkpoint: str | Path | DFSNetwork,
    out: str | Path | None = None,
    *,
    targets: str | Sequence[str] | None = None,
    runtimes: str | Sequence[str] | None = None,
    options: str | Options | None = None,
    facts: CheckpointFacts | None = None,
    contract: InputContract | None = None,
    calibration_data: str | Path | AnyImages | None = None,
    calibration_method: str | None = None,
    calibration_samples: int | None = None,
    target_cpu: str | None = None,
    weight_bits: WeightBits | None = None,
    seed: int = 0,
    budgets: str | float | Sequence[float] | None = None,
    max_top1_drop: float | None = None,
    accuracy_data: str | Path | AnyImages | None = None,
    reference: str | Path | None = None,
    cost: str | Path | None = None,
    single_file: str | Path | None = None,
    threads: int | None = None,
    proved: bool = True,
    progress: Progress | None = None,
) -> Exported:
    """Splits a network, writes an engine for every block and option, and proves that they compute the same.

    Args:
        checkpoint: a trained network: a checkpoint of a known format, or the network itself, as ``adapt`` gives it,
            which is left as it is.
        out: directory to write; ``None`` for ``./<checkpoint stem>.dfs``, or ``./<run>.dfs`` for the checkpoint of a
            training run; a network itself needs one. A bundle that was made from another checkpoint is replaced only if
            it is named here.
        targets: engine precisions to make, among ``int8``, ``fp16`` and ``fp32``; ``None`` for all three. This and the
            other lists can be text as well, as on the command line: ``fp32,int8``.
        runtimes: runtimes to make engines for, ``onnxruntime`` and ``tensorrt``; ``None`` for the first only.
        options: options that the gate chooses from, such as ``skip,8,16,full``, if the checkpoint does not say.
        facts: further knowledge of the checkpoint: which weights in it, its normalisation, class names and image
            size; ``None`` for nothing. What is neither in the file nor given is assumed, and said.
        contract: how images become the input of a network that is given itself; ``None`` for its own contract, and if
            it has none for ImageNet's normalisation.
        calibration_data: labelled images, or where to load them from (the training split; of a
            folder, only the images drawn are decoded); ``None`` uses the ranges that the checkpoint carries.
        calibration_method: ``checkpoint``, ``minmax``, ``percentile``, ``entropy`` or ``mse``; ``None`` for ``minmax``
            with data and ``checkpoint`` without.
        calibration_samples: number of images to draw from the data; ``None`` for 1,024, or all if there are fewer.
        target_cpu: kind of CPU that is to run the INT8 engines of ONNX Runtime, ``vnni`` (x86 with VNNI), ``avx2`` (x86
            without) or ``arm``, which decides the bits of their weights; ``auto`` and ``None``
            for the kind of this machine's CPU.
        weight_bits: 8 or 7, whatever the CPU; ``None`` for those that suit ``target_cpu``.
        seed: seed of the draw.
        budgets: shares of running every decided block in full precision that the bundle shall be able to hold at run
            time, calibrated on the data; ``None`` for none.
        max_top1_drop: share of right answers that may be lost against ``reference``: the cheapest bias on the gate's
            scores that keeps to it on one half of ``accuracy_data``, and is checked on the other, becomes what a
            runtime of the bundle holds by default; see ``Exported.bundle.manifest.accuracy_budget``. ``None`` for the
            gate as trained.
        accuracy_data: labelled images that training has not seen, or where to load them from (of a data set with splits
            ``val`` if there is one, else ``train``, with a note); all are used. ``None`` for the calibration data as
            drawn.
        reference: bundle or checkpoint whose accuracy is to be kept, such as the fine-tuned static twin; ``None`` for
            this network with every block at its most precise option, or as trained if that is more accurate.
        cost: latency table of ``bench --save-costs``, by which "cheapest" means time; ``None`` for computation.
        single_file: path at which to write, besides the bundle, the whole network as one ONNX file with ``If``
            operators; ``None`` for nowhere.
        threads: CPU threads of PyTorch, and of an engine when the bundle is measured; ``None`` for what affinity and
            the container's CPU quota allow PyTorch, and one for an engine.
        proved: whether engines and the whole are compared with the reference, and measured on the data. Without, the
            bundle is good for timing its engines only: those of a network that is not trained yet are far from it.
        progress: called as the work goes on.

    Raises:
        ArtefactError: the checkpoint cannot be used.
        UsageError: a choice that cannot be, fewer than one thread, or data that cannot be read.
        AccuracyGoalError: no budget keeps ``max_top1_drop``, or the check shows that the one chosen does not; nothing
            is written then.
        ExportMismatchError: an engine, or the whole, disagrees with the reference, or the single file with the runtime;
            nothing is written then.
        GraphRuleError: a graph for TensorRT breaks one of its rules.
    """
    progress = progress or silent
    named = out is not None
    if out is None and isinstance(checkpoint, DFSNetwork):
        raise UsageError("no name for the bundle of a network in memory; give out, as in net.dfs")
    out = Path(f"{bundle_stem(Path(str(checkpoint)))}{SUFFIX}" if out is None else out)
    if weight_bits not in (None, 7, 8):
        raise UsageError(f"weight_bits {weight_bits!r}, expected 7 or 8")
    target = target_named(target_cpu)
    bits = weight_bits or WEIGHT_BITS[target]
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"seed {seed}, expected 0 to {(1 << 63) - 1}")
    wanted = parse_targets(PRECISIONS if targets is None else targets)
    made_for = _check_runtimes(RUNTIMES[:1] if runtimes is None else runtimes)
    goal = _goal(max_top1_drop, accuracy_data, reference, cost)
    single = None if single_file is None else _check_single_path(Path(single_file), out, made_for)
    check_writable(out)
    replaced = _check_replaced(out, checkpoint, named)

    with torch_threads(threads):
        names = () if isinstance(calibration_data, str | Path | None) else calibration_data.class_names
        source = open_source(checkpoint, options, facts, contract, names)
        network, contract = source.network, source.input
        check_operators(network.graphs, named_tensors(network.net))
        _log_line(f"{source.name}: {network.architecture.name} of format {source.format}, options {network.options}")
        data = _load_data(calibration_data, source, calibration_samples, seed)
        held = None if budgets is None else _check_budgets(budgets, network, data, made_for)
        judged = None
        if goal is not None:
            judged = _accuracy_images(calibration_data, accuracy_data, source, data, made_for)
        used = {i: o for i, o in enumerate(network.options) if network.policy is None or i in network.policy}
        int8 = [i for i, option in used.items() if engine_precision(option, wanted) == "int8"]
        always = engine_precision(Option(network.graphs.always), wanted) == "int8"
        method = _check_method(calibration_method, data, needed=bool(int8) or always)
        ranges = _calibrate(source, int8, data, method, progress) if "int8" in wanted else {}
        some = None if data is None else data.select(slice(most_looked_at(contract))).load()
        images = make_probes(contract, seed) if some is None else some.images
        samples = pick_samples(network, contract, images, None if some is None else some.labels)
        observed = Reference.of(network, torch.from_numpy(contract.normalize(samples.images)))

        forms = Int8Forms(ranges, bits, observed if data is not None else None)
        writer = EngineWriter(network, forms, wanted)
        engines = {runtime: writer.write(runtime, progress) for runtime in made_for}
        check_graphs({name: model for name, model in writer.files.items() if name.startswith("tensorrt/")})
        manifest = schema.Manifest(
            schema_version=schema.SCHEMA_VERSION,
            producer=_producer(),
            source=schema.SourceRecord(
                file=_name(source.name),
                format=source.format,
                sha256=source.sha256,
                assumptions=[one_line(assumption) for assumption in source.assumptions],
                weights_key=source.weights_key,
            ),
            architecture=network.architecture,
            options=[schema.OptionRecord(name=o.name, bits=o.bits, cost=o.cost) for o in network.options],
            policy=None if network.policy is None else [network.options[choice].name for choice in network.policy],
            budgets=[],
            targets=list(wanted),
            input=schema.InputRecord(**asdict(contract)),
            runtimes=engines,
            calibration=_calibration_record(network, ranges, data, method, seed, bits, target) if ranges else None,
            accuracy=None,
            substitutions=_substitutions(used.values(), wanted),
            samples=_SAMPLES,
            weights=None,
            files={},
        )
        files = {**writer.files, _SAMPLES: pack_samples(carried(samples))}
        with drafted_bundle(out, *sharing_weights(manifest, files)) as draft:
            validation, comparison, point = Validation((), 0), None, None
            if proved:
                progress("validating", 0.0)
                validation = validate(draft.bundle, observed)
            if proved and data is not None and "onnxruntime" in made_for:
                comparison, draft.manifest = _measure(draft.bundle, network, data, held, threads, progress)
            if goal is not None and judged is not None:
                with Runtime(draft.bundle, threads=threads, plan=False, prepared=False) as runtime:
                    point = choose_accuracy_budget(
                        runtime, judged.images, goal, seed=seed, threads=threads, progress=progress
                    )
                draft.manifest = msgspec.structs.replace(draft.manifest, accuracy_budget=point)
            model = b""
            if single is not None:
                progress("writing the single file", 0.0)
                model = write_single_file(network, contract, forms, wanted)
                check_single_file(model, draft.bundle, observed.images.numpy())
    _log_line(
        f"{out}: {len(files)} files written" + ("" if replaced is None else f", replacing the bundle of {replaced}")
    )
    if single is not None:
        write_whole(single, model)
        _log_line(f"{single}: {len(model)} bytes written")
    notes = () if data is None else data.notes
    if judged is not None and point is not None:
        trained = () if single is None else ("the single file has the gate as trained, without the accuracy budget",)
        notes = tuple(dict.fromkeys((*notes, *judged.notes, *notes_on(point), *trained)))
    option_names = _option_names(network)
    kept = tuple(
        f"{key.runtime}, {chosen} (option {option_names[key.option]}, from {key.layout})"
        for key, chosen in forms.chosen.items()
        if chosen.kept
    )
    for line in kept:
        _log_line(line)
    return Exported(Bundle(out), validation, comparison, source.assumptions, single, notes, replaced, kept)


def bundle_stem(checkpoint: Path) -> str:
    """Name of a bundle that is given none: ``net`` for ``net.pth.tar``, or the run's if a training run left the file.

    Every run gives its checkpoint the same name, so one run's bundle would take the place of another's.
    """
    stem, run = checkpoint.name, checkpoint.resolve().parent
    while (suffix := Path(stem).suffix) in (".tar", ".pt", ".pth", ".safetensors", ".ckpt"):
        stem = stem.removesuffix(suffix)
    if stem not in _SUFFIXES_OF_A_RUN or not run.name or not (run / JOB_FILE).is_file():
        return stem
    return run.name + _SUFFIXES_OF_A_RUN[stem]


def _check_runtimes(runtimes: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(runtimes, str):
        runtimes = [name.strip() for name in runtimes.split(",")]
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


def _check_replaced(out: Path, source: str | Path | DFSNetwork, named: bool) -> str | None:
    """Name of another checkpoint whose bundle stands at ``out`` and may be replaced; ``None`` if there is none."""
    before = source_of(out)
    if before is None or (not isinstance(source, DFSNetwork) and not Path(source).is_file()):
        return None
    if before.sha256 == (digest_of(source) if isinstance(source, DFSNetwork) else sha256_file(Path(source))):
        return None
    if not named:
        raise UsageError(
            f"{out} was made from another checkpoint ({before.file}, SHA-256 {before.sha256[:12]}...); name it with"
            f" --out {shlex.quote(str(out))} to replace it, or give another name"
        )
    return before.file


def _check_budgets(
    budgets: str | float | Sequence[float], network: DFSNetwork, data: AnyImages | None, runtimes: Sequence[str]
) -> tuple[float, ...]:
    if network.gate is None:
        raise UsageError("budgets for a network whose policy is static and always computes the same; leave them out")
    if data is None:
        raise UsageError("budgets are calibrated on data and none was given; add --calibration-data")
    if "onnxruntime" not in runtimes:
        raise UsageError("budgets are calibrated with the engines for onnxruntime; add it to the runtimes")
    return check_budgets(budgets, network.architecture.computation_range(network.options))


def _goal(
    max_top1_drop: float | None,
    accuracy_data: str | Path | AnyImages | None,
    reference: str | Path | None,
    cost: str | Path | None,
) -> AccuracyGoal | None:
    """The accuracy to keep; ``None`` if none is asked for."""
    if max_top1_drop is not None:
        path = None if reference is None else Path(reference)
        return AccuracyGoal(max_top1_drop, path, None if cost is None else load_costs(cost))
    for flag, given in (("--accuracy-data", accuracy_data), ("--reference", reference), ("--cost", cost)):
        if given is not None:
            raise UsageError(f"{flag} without an accuracy to keep; add --max-top1-drop, as in 0.005, or leave it out")
    return None


@dataclass(frozen=True, eq=False)
class _Judged:
    """Images that an accuracy budget is chosen and checked on, and what speaks against them."""

    images: AnyImages
    notes: tuple[str, ...]


def _accuracy_images(
    calibration: str | Path | AnyImages | None,
    given: str | Path | AnyImages | None,
    source: Source,
    data: AnyImages | None,
    runtimes: Sequence[str],
) -> _Judged:
    if source.network.gate is None:
        raise UsageError(
            "an accuracy to keep (--max-top1-drop) for a network whose policy is static and always computes the same;"
            " leave it out"
        )
    if "onnxruntime" not in runtimes:
        raise UsageError("an accuracy budget is chosen with the engines for onnxruntime; add it to the runtimes")
    if given is not None:
        # Never the split test, whose accuracy is to be reported: a choice on it would make that too good.
        split = "val" if "val" in _splits(given) else "train"
        images = _matching(given, source, split)
        return _Judged(images, (*images.notes, *_remarks(given, split, images.name)))
    if data is None:
        raise UsageError(
            "an accuracy budget is chosen on labelled images and none were given; add --accuracy-data with images that"
            " training has not seen, or --calibration-data"
        )
    return _Judged(data, _remarks(calibration, "train", data.name))


def _splits(given: str | Path | AnyImages | None) -> tuple[str, ...]:
    """Splits of images that are named by a path; none of others."""
    return splits_of(given) if isinstance(given, str | Path) else ()


def _remarks(given: str | Path | AnyImages | None, split: str, name: str) -> tuple[str, ...]:
    """One line if an accuracy budget is chosen on images that the network was trained on."""
    if split != "train" or split not in _splits(given):
        return ()
    return (
        f"the budget was chosen on {name}, a training split: a network loses less on images that it was trained on"
        " than on others; give some that it has not seen, with --accuracy-data",
    )


def _check_method(method: str | None, data: AnyImages | None, needed: bool) -> str:
    if method is None:
        method = "checkpoint" if data is None else "minmax"
    if method not in CALIBRATION_METHODS:
        raise UsageError(f"unknown calibration method {method!r}, expected one of {', '.join(CALIBRATION_METHODS)}")
    if needed and data is None and method != "checkpoint":
        raise UsageError(f"calibration method {method} measures on data and none was given; add --calibration-data")
    return method


def _load_data(
    given: str | Path | AnyImages | None, source: Source, samples: int | None, seed: int
) -> AnyImages | None:
    if given is None:
        return None
    samples = DEFAULT_SAMPLES if samples is None else samples
    if samples < 1:
        raise UsageError(f"{samples} calibration samples, expected at least 1")
    return _matching(given, source, "train").subset(samples, seed)


def _matching(given: str | Path | AnyImages, source: Source, split: str) -> AnyImages:
    """Labelled images of the network's size, with labels in its numbering."""
    channels, height, width = source.input.shape
    images = open_dataset(given, split, source.input.geometry) if isinstance(given, str | Path) else given
    labelled = images.labelled_for(source.network.architecture.classes, source.input.class_names)
    if (*labelled.image_size, 3) != (height, width, channels):
        raise UsageError(
            f"{labelled.name} has images of {(*labelled.image_size, 3)}, the network takes"
            f" {(height, width, channels)}; give data of that size"
        )
    return labelled


def _calibrate(
    source: Source, options: Sequence[int], data: AnyImages | None, method: str, progress: Progress
) -> Ranges:
    """The range of every tensor that an INT8 engine rounds, of options by index and of the static baseline.

    ``load_checkpoint`` has made sure that a checkpoint with quantised options carries ranges, so that the checkpoint's
    are always there to fall back to.
    """
    network = source.network
    if data is None:
        return from_checkpoint(network, options)
    at_once = images_at_once(source.input.shape, _BATCH)
    total = (3 if method in ("checkpoint", "minmax") else 5) * -(-len(data) // at_once)
    done = 0

    def batches() -> Iterator[Tensor]:
        nonlocal done
        for images, _ in data.batches(at_once):
            yield torch.from_numpy(source.input.normalize(images))
            done += 1
            progress(f"calibrating ({method})", min(done / total, 1.0))

    always = engine_precision(Option(network.graphs.always), PRECISIONS) == "int8"
    routed = calibrate(network, options, batches, method) if options or always else {}
    return {**routed, **calibrate_static(network, batches, method)}


def _measure(
    draft: Bundle,
    network: DFSNetwork,
    data: AnyImages,
    budgets: Sequence[float] | None,
    threads: int | None,
    progress: Progress,
) -> tuple[Comparison, schema.Manifest]:
    """Compares a bundle with its reference on the data, and calibrates budgets; gives the manifest with the results."""
    points = []
    with Runtime(draft, threads=threads, plan=False, prepared=False) as runtime:
        comparison = compare(runtime, network, data, progress)
        if budgets is not None:
            points = calibrate_budgets(runtime, budgets, data, progress)
    shared = set(schema.AccuracyRecord.__struct_fields__) & set(Comparison.__dataclass_fields__)
    accuracy = schema.AccuracyRecord(
        data=_name(data.name),
        top1_static=static_top1(draft, data, threads),
        **{key: getattr(comparison, key) for key in shared},
    )
    return comparison, msgspec.structs.replace(draft.manifest, accuracy=accuracy, budgets=points)


def _log_line(line: str) -> None:
    _LOG.info("%s", one_line(line))


def _name(text: str) -> str:
    """A name of a file or of data as a manifest holds it: on one line, and not without end."""
    return one_line(text, LONGEST_NAME)


def _producer() -> dict[str, str]:
    # Of the modules: distributions have other names, as onnxruntime-gpu and the wheels of boards' makers do.
    versions = {module.__name__: str(module.__version__) for module in (torch, onnx, onnxruntime, np)}
    return {"name": "dfs-deploy", "version": dfs_deploy.__version__, "python": platform.python_version(), **versions}


def _substitutions(options: Iterable[Option], targets: Sequence[Precision]) -> list[schema.ServedRecord]:
    """Options whose own precision is not among the targets."""
    records = []
    for option in options:
        wanted, served = engine_precision(option, PRECISIONS), engine_precision(option, targets)
        if wanted != served and wanted is not None and served is not None:
            reason = f"{wanted} is not among the targets"
            _log_line(f"option {option.name} falls back to {served}: {reason}")
            records.append(schema.ServedRecord(option=option.name, wanted=wanted, served_by=served, reason=reason))
    return records


def _option_names(network: DFSNetwork) -> dict[int, str]:
    """Names of the options that calibration knows, by index."""
    return {STATIC: "static", ALWAYS: "always", **dict(enumerate(network.options.names))}


def _calibration_record(
    network: DFSNetwork,
    ranges: Ranges,
    data: AnyImages | None,
    method: str,
    seed: int,
    weight_bits: WeightBits,
    target_cpu: TargetCpu,
) -> schema.CalibrationRecord:
    names = _option_names(network)
    return schema.CalibrationRecord(
        method=method,
        data=None if data is None else _name(data.name),
        samples=0 if data is None else len(data),
        seed=seed,
        weight_bits=weight_bits,
        target_cpu=target_cpu,
        ranges=[
            schema.RangeRecord(**{**asdict(key), **asdict(value), "option": names[key.option]})
            for key, value in sorted(ranges.items(), key=lambda item: item[0])
        ],
    )
