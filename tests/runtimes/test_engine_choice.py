"""Plans: measured, kept under a key of all they depend on, never loaded stale."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime import engine_choice
from tests.bundles import copied, mixed_bundle
from tests.settled import pixels

_BLOCKS = (1, 2, 3)


@pytest.fixture
def bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(copied(mixed_bundle(tmp_path_factory), tmp_path))


def choice_of(bundle: Bundle, entries: list[engine_choice.ChosenEngine]) -> engine_choice.EngineChoice:
    return engine_choice.EngineChoice(engine_choice.FORMAT.version, engine_choice.choice_key(bundle, 1), entries)


def test_measures_every_option_with_several_engines(bundle: Bundle) -> None:
    measured = engine_choice.measure_choice(bundle, 1)
    assert {(e.block, e.option) for e in measured.entries} == {(b, o) for b in _BLOCKS for o in ("8", "16")}
    for entry in measured.entries:
        assert entry.chosen in entry.median_us
        assert all(median > 0 for median in entry.median_us.values())


def test_a_saved_plan_decides_and_is_shown(bundle: Bundle) -> None:
    entries = [engine_choice.ChosenEngine(b, "8", "fp32", {"int8": 2.0, "fp32": 1.0}) for b in _BLOCKS]
    engine_choice.save_choice(bundle, choice_of(bundle, entries))
    images = pixels(6)
    path = np.full((6, len(_BLOCKS)), bundle.options.names.index("8"))
    with Runtime(bundle) as planned, Runtime(bundle, plan=False) as plain:
        served = {(s.option, s.served_by, s.blocks) for s in planned.substitutions}
        assert ("8", "fp32", _BLOCKS) in served
        assert "8" not in {s.option for s in plain.substitutions}
        assert planned.description["plan"] == "measured here"
        assert plain.description["plan"] == "none"
        assert planned.clone().description["plan"] == "measured here"
        by_fp32, by_int8 = planned(images, path=path).logits, plain(images, path=path).logits
    assert 0.0 < np.std(by_fp32 - by_int8) < 0.2 * np.std(by_int8)


@pytest.mark.parametrize("key", ["bundle", "cpu", "dfs_deploy"])
def test_a_plan_of_another_key_is_never_loaded(bundle: Bundle, key: str) -> None:
    path = engine_choice.save_choice(bundle, choice_of(bundle, []))
    assert engine_choice.load_choice(bundle, 1) is not None
    other = {**engine_choice.choice_key(bundle, 1), key: "another"}
    path.write_bytes(msgspec.json.encode(engine_choice.EngineChoice(engine_choice.FORMAT.version, other, [])))
    assert engine_choice.load_choice(bundle, 1) is None


def test_plans_of_other_threads_lie_elsewhere(bundle: Bundle) -> None:
    engine_choice.save_choice(bundle, choice_of(bundle, []))
    assert engine_choice.load_choice(bundle, 2) is None


@pytest.mark.parametrize("content", [b"", b'{"version": 1}'])
def test_a_damaged_plan_is_as_none(bundle: Bundle, content: bytes) -> None:
    path = Cache(bundle).folder / engine_choice.choice_file(engine_choice.choice_key(bundle, 1))
    path.parent.mkdir()
    path.write_bytes(content)
    assert engine_choice.load_choice(bundle, 1) is None
    with Runtime(bundle) as runtime:
        assert runtime.description["plan"] == "none"
