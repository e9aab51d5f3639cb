from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from dfs_deploy.bundle import Samples
from dfs_deploy.exporters.probes import CARRIED, make_probes, pack_samples, pick_samples
from dfs_deploy.preprocessing import InputContract
from tests.settled import CONTRACT, Split, normal_images, pixels, rig_gate, settled_network


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (3, 1, 1)])
def test_probes_are_images_of_the_contract_and_the_same_each_time(shape: tuple[int, int, int]) -> None:
    contract = InputContract(shape, (0.5,) * shape[0], (0.5,) * shape[0])
    images = make_probes(contract, 0)
    assert images.shape == (len(images), shape[1], shape[2], shape[0])
    assert images.dtype == np.uint8
    assert len(images) >= CARRIED
    assert np.array_equal(images, make_probes(contract, 0))
    assert not np.array_equal(images, make_probes(contract, 1))


def test_every_path_is_carried_with_what_the_reference_made_of_it() -> None:
    network = settled_network()
    rig_gate(network, [Split(0, 3), Split(1, 2), Split(0, 1)], normal_images(64))
    images, labels = pixels(300, seed=5), np.arange(300, dtype=np.int64) % 10
    samples = pick_samples(network, CONTRACT, images, labels)
    output = network.route(torch.from_numpy(CONTRACT.normalize(images)))
    assert len(samples.images) == CARRIED
    assert len(np.unique(samples.path, axis=0)) == len(output.path.unique(dim=0)) > 4
    positions = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in samples.images]
    assert positions == sorted(positions), "in the order given"
    assert np.array_equal(samples.labels, labels[positions])
    assert np.array_equal(samples.path, output.path.numpy()[positions])
    assert np.array_equal(samples.logits, output.logits.numpy()[positions])
    assert (samples.path.dtype, samples.labels.dtype) == (np.uint8, np.int64)


def test_a_rare_path_is_found_wherever_it_stands() -> None:
    network = settled_network()
    images = pixels(200, seed=6)
    rig_gate(network, [Split(0, 3), 3, 3], normal_images(64))
    path = network.route(torch.from_numpy(CONTRACT.normalize(images))).path[:, 0].numpy()
    common, rare = np.flatnonzero(path == 3), np.flatnonzero(path == 0)
    images = np.concatenate([images[common[:90]], images[rare[:1]]])
    samples = pick_samples(network, CONTRACT, images, None)
    assert len(samples.images) == CARRIED
    assert (samples.path[:, 0] == 0).sum() == 1
    assert (samples.labels == -1).all(), "no labels are known"


def test_packed_samples_hold_plain_arrays() -> None:
    samples = Samples(pixels(2), np.array([1, -1]), np.ones((2, 10), np.float32), np.zeros((2, 3), np.uint8))
    packed = pack_samples(samples)
    assert packed == pack_samples(samples)
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        assert sorted(archive) == ["images", "labels", "logits", "path"]
        for name in archive:
            assert np.array_equal(archive[name], getattr(samples, name))
            assert archive[name].dtype == getattr(samples, name).dtype
