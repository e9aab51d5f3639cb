"""What the product wrote itself and reads again: results, baselines, cost tables, metrics logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dfs_deploy.bench.baseline import compare_with_baseline, load_baseline, save_baseline
from dfs_deploy.bench.result import load_bench
from dfs_deploy.costs import LatencyTable, OptionCost, load_costs, save_costs
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.report.build import match_benches
from dfs_deploy.report.runs import load_run
from dfs_deploy.training.job import load_job, save_job
from dfs_deploy.verify import Verification, load_verification, save_verification
from tests.bench.made import FACTS, made_bench
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.jsons import mutate_json, mutate_lines
from tests.fuzz.mutators.raw import odd_file
from tests.fuzz.reader import Fate, Reader, fingerprint, replace
from tests.report.logs import records, write_log
from tests.training.small import small_job


class FileReader(Reader):
    """A reader of one file that a user names."""

    file: str
    change: Callable[[Draw, bytes], bytes] = staticmethod(mutate_json)

    def __init__(self, corpus: Corpus) -> None:
        self._folder = corpus.mktemp(self.name)
        self.seeds = tuple(self.make(self._folder))

    def make(self, folder: Path) -> list[str]:
        """Writes sound files, each in a folder of its own; gives the folders' names."""
        raise NotImplementedError

    def place(self, seed: str, folder: Path) -> None:
        os.link(self._folder / seed / self.file, folder / self.file)

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / self.file
        if draw.chance(0.01):
            odd_file(draw, file, named=True)
            return "refused"
        replace(file, type(self).change(draw, file.read_bytes()))
        return "any"


class CostsReader(FileReader):
    """A latency table."""

    name = "costs"
    file = "costs.json"

    def make(self, folder: Path) -> list[str]:
        entries = [
            OptionCost(block=block, option=name, engine_us=us, precision=precision)
            for block in (1, 2)
            for name, us, precision in (
                ("skip", 0.0, None),
                ("8", 5.0, "int8"),
                ("16", 9.0, "fp16"),
                ("full", 12.5, "fp32"),
            )
        ]
        table = LatencyTable(
            bundle="d" * 64,
            machine="a machine",
            runtime="onnxruntime 1",
            threads=1,
            image_shape=(3, 8, 8),
            block_shapes=((4, 8, 8), (8, 4, 4), (16, 2, 2)),
            gate_us=2.0,
            entries=entries,
        )
        (folder / "table").mkdir()
        save_costs(folder / "table" / self.file, table)
        return ["table"]

    def read(self, folder: Path) -> str:
        table = load_costs(folder / self.file)
        costs = table.costs(cifar_resnet((1, 1, 1), (4, 8, 16), 10, (3, 8, 8)), Options.parse("skip,8,16,full"))
        return fingerprint(costs, table)


class VerificationReader(FileReader):
    """A result of ``verify --save``."""

    name = "verification"
    file = "verified.json"

    def make(self, folder: Path) -> list[str]:
        values: dict[str, Any] = {
            "schema": "dfs-deploy/verify",
            "schema_version": 1,
            "version": "0.1.0",
            "bundle": "net",
            "bundle_digest": "b" * 64,
            "checkpoint": "net.pt",
            "checkpoint_sha256": "c" * 64,
            "data": "data",
            "seed": 0,
            "budget": None,
            "samples": 10,
            "top1_reference": 0.9,
            "top1_bundle": 0.9,
            "route_agreement": 1.0,
            "block_agreement": [1.0, 0.5],
            "computation_percentage_reference": 30.0,
            "computation_percentage_bundle": 30.5,
            "max_abs_logit_error": 0.01,
            "per_block": [
                {
                    "block": 1,
                    "option": "8",
                    "precision": "int8",
                    "runtime": "onnxruntime",
                    "form": "uint8",
                    "max_relative": 0.1,
                    "rms_relative": None,
                    "tolerance": 0.15,
                    "passed": True,
                }
            ],
        }
        (folder / "saved").mkdir()
        save_verification(folder / "saved" / self.file, msgspec.convert(values, Verification))
        return ["saved"]

    def read(self, folder: Path) -> str:
        saved = load_verification(folder / self.file)
        return fingerprint(saved, saved.as_json(), [each.judged for each in saved.per_block or ()])


class BenchReader(FileReader):
    """A saved bench, as the report takes it and as a baseline."""

    name = "bench"
    file = "bench.json"

    def make(self, folder: Path) -> list[str]:
        self._now = made_bench(noise=1)
        tops = {"dfs": 0.9, "static-fp32": 0.91, "static-int8": 0.9}
        for name, result in (("plain", made_bench()), ("accuracy", made_bench(top1=tops))):
            (folder / name).mkdir()
            save_baseline(result, folder / name / self.file)
        return ["plain", "accuracy"]

    def read(self, folder: Path) -> str:
        file = folder / self.file
        figures = load_bench(file)
        match_benches([FACTS.digest], [figures])
        compared = compare_with_baseline(self._now, load_baseline(file))
        return fingerprint(figures, compared)


class LogReader(FileReader):
    """A training run's metrics log, as the report reads it."""

    name = "log"
    file = "metrics.jsonl"
    change = staticmethod(mutate_lines)

    def make(self, folder: Path) -> list[str]:
        write_log(folder / "dynamic", records())
        write_log(folder / "policy", records(policy=["8"] * 8))
        return ["dynamic", "policy"]

    def read(self, folder: Path) -> str:
        return fingerprint(load_run(folder))


class JobReader(FileReader):
    """What a training run was asked to do, as it is resumed."""

    name = "job"
    file = "job.json"

    def make(self, folder: Path) -> list[str]:
        (folder / "job").mkdir()
        save_job(folder / "job", small_job(folder))
        return ["job"]

    def read(self, folder: Path) -> str:
        job = load_job(folder)
        return fingerprint(job, job.stages)
