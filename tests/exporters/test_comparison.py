from __future__ import annotations

import numpy as np
import pytest
import torch

from dfs_deploy.bundle import Bundle
from dfs_deploy.exporters import compare
from dfs_deploy.exporters.comparison import BATCH, Answers, static_top1, summarize
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, labelled

COSTS = (0.0, 0.0625, 0.25, 1.0)


def test_the_figures_of_a_comparison() -> None:
    path = np.array([[0, 3], [1, 3], [2, 0], [3, 3]], np.uint8)
    reference = np.array([[0, 3], [0, 3], [2, 0], [3, 1]], np.uint8)
    ours, theirs = Answers(np.array([1, 0, 1, 0]), path), Answers(np.array([1, 1, 1, 0]), reference)
    result = summarize(ours, theirs, 3.0, np.array([1, 0, 1, 1]), COSTS, 2)
    assert result.samples == 4
    assert result.top1_bundle == 0.75
    assert result.top1_reference == 0.5
    assert result.route_agreement == 6 / 8
    assert result.block_agreement == (0.75, 0.75)
    assert result.max_abs_logit_error == 3.0
    assert result.option_share == ((0.25, 0.25, 0.25, 0.25), (0.25, 0.0, 0.0, 0.75))
    assert result.computation_percentage_bundle == pytest.approx(100 * (1 + 1.0625 + 0.25 + 2) / 8)
    assert result.computation_percentage_reference == pytest.approx(100 * (1 + 1 + 0.25 + 1.0625) / 8)


def test_without_labels_there_is_no_accuracy() -> None:
    answers = Answers(np.array([0, 1]), np.zeros((2, 1), np.uint8))
    result = summarize(answers, answers, 0.0, None, COSTS, 2)
    assert result.top1_bundle is result.top1_reference is None
    assert result.route_agreement == 1.0
    assert result.max_abs_logit_error == 0.0


def test_without_gated_blocks_every_route_agrees() -> None:
    answers = Answers(np.array([0, 1]), np.zeros((2, 0), np.uint8))
    result = summarize(answers, answers, 0.0, None, COSTS, 2)
    assert result.route_agreement == 1.0
    assert result.option_share == result.block_agreement == ()
    assert result.computation_percentage_bundle == 100.0


def test_a_float_bundle_is_its_reference_over_more_than_one_batch(floats: Made) -> None:
    data = labelled(floats.network, BATCH + 40, seed=3)
    shares: list[float] = []
    with Runtime(floats.path) as runtime:
        result = compare(runtime, floats.network, data, lambda stage, share: shares.append(share))
    assert result.samples == BATCH + 40
    assert result.top1_reference == result.top1_bundle == 1.0, "the labels are the reference's answers"
    assert result.route_agreement == 1.0
    assert result.max_abs_logit_error < 1e-3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for share in result.option_share:
        assert sum(share) == pytest.approx(1.0)


def test_the_accuracy_of_the_baselines(mixed: Made) -> None:
    shares = static_top1(Bundle(mixed.path), mixed.data)
    assert set(shares) == {"fp32", "fp16", "int8"}
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    bundle = Bundle(mixed.path)
    images = bundle.input.normalize(mixed.data.images)
    with torch.no_grad():
        answers = mixed.network.static(torch.from_numpy(images)).argmax(1).numpy()
    assert shares["fp32"] == pytest.approx(np.mean(answers == mixed.data.labels))
