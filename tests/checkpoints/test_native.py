from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dfs_deploy.checkpoints import load_checkpoint, native, save_checkpoint
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import random_images, small_network
from tests.checks import refuses

SUFFIXES = (".pt", ".safetensors")

DROPPED = object()
"""Instead of a value that is left out."""

CONTRACT = InputContract((3, 8, 8), (0.1, 1 / 3, 0.7), (0.2, 0.25, 1e-3), ("cat", "dog", "ship"))


def network(**values: Any) -> DFSNetwork:
    return small_network(**{"options": "skip,8,16,full", "classes": 3, **values})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("options", ["skip,8,16,full", "full,skip", "skip,2,4,6,8,10,12,14,16,full"])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, suffix: str, options: str) -> None:
    saved = network(options=options)
    save_checkpoint(tmp_path / f"net{suffix}", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / f"net{suffix}")
    assert loaded.format == native.FORMAT
    assert loaded.input == CONTRACT
    assert loaded.assumptions == ()
    assert loaded.network.architecture == saved.architecture
    assert loaded.network.options == saved.options
    assert not loaded.network.training
    state, again = saved.state_dict(), loaded.network.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    images = random_images(4)
    assert torch.equal(saved.route(images).logits, loaded.network.route(images).logits)


def test_a_network_in_training_is_saved_all_the_same(tmp_path: Path) -> None:
    saved = network().train()
    save_checkpoint(str(tmp_path / "net.pt"), saved, CONTRACT)
    assert saved.training
    assert not load_checkpoint(str(tmp_path / "net.pt")).network.training


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_save_that_fails_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, network(seed=1), CONTRACT)
    before = path.read_bytes()

    def half(target: Path, data: bytes) -> None:
        with target.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, network(seed=2), CONTRACT)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def tampered(path: Path, suffix: str, change: dict[str, Any], saved: DFSNetwork | None = None) -> Path:
    """A saved network with some of its values changed, or some of its description's; ``None`` drops one."""
    file = path / f"net{suffix}"
    save_checkpoint(file, saved or network(), CONTRACT)
    if suffix == ".pt":
        content = torch.load(file, weights_only=True)
        torch.save({**changed(content, change), "state_dict": content["state_dict"]}, file)
    else:
        with safe_open(file, "pt") as archive:
            values = json.loads(archive.metadata()["dfs_deploy"])
        save_file(load_file(file), file, {"dfs_deploy": json.dumps(changed(values, change))})
    return file


def changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    description = json.loads(values["network"])
    inside = {key: value for key, value in change.items() if key in description}
    kept = {key: value for key, value in {**description, **inside}.items() if value is not DROPPED}
    outside = {key: value for key, value in change.items() if key not in description}
    all_values = {**values, "network": json.dumps(kept), **outside}
    return {key: value for key, value in all_values.items() if value is not DROPPED}


@pytest.mark.parametrize("version", [4, "1", 0, DROPPED])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    for suffix in SUFFIXES:
        with refuses(CheckpointError, f"version {None if version is DROPPED else version!r}"):
            load_checkpoint(tampered(tmp_path, suffix, {"version": version}))


def description() -> dict[str, Any]:
    """What a file of ``network()`` says of it."""
    saved = network()
    return {name: json.loads(msgspec.json.encode(getattr(saved, name))) for name in ("graphs", "architecture")}


def edited(*path: str | int, value: Any) -> dict[str, Any]:
    """A change of the description at one place, which is given by keys and indices."""
    made = description()
    inside = made
    for key in path[:-1]:
        inside = inside[key]  # type: ignore[index]
    inside[path[-1]] = value  # type: ignore[index]
    return {str(path[0]): made[str(path[0])]}


INPUT = {"shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": []}
CONV = ("graphs", "blocks", 0, "branch", "nodes", 0)
NORM = ("graphs", "blocks", 0, "branch", "nodes", 1)
RELU = ("graphs", "blocks", 0, "branch", "nodes", 2)


def operation(operator: str, **attributes: float) -> dict[str, Any]:
    """A change of a relu inside a block to another operation."""
    made = edited(*RELU, "operator", value=operator)
    made["graphs"]["blocks"][0]["branch"]["nodes"][2]["attributes"] = attributes
    return made


@pytest.mark.parametrize(
    "change",
    [
        {"network": DROPPED},
        {"network": 5},
        {"network": {}},
        {"network": "{"},
        {"network": "[" * 100_000},
        {"architecture": DROPPED},
        {"graphs": []},
        {"options": 4},
        {"options": [0, 8, 8, 32]},
        {"options": [0, "8", 16, 32]},
        {"policy": ["full", "12"]},
        {"policy": ["full", 2]},
        {"policy": 2},
        {"input": "cifar"},
        {"input": {**INPUT, "std": [0.2, 0.0, 0.2]}},
        {"input": {**INPUT, "shape": [3, 16, 16]}},
        {"input": {**INPUT, "resize": 4}},
        {"input": {**INPUT, "resize": "8"}},
        {"input": {**INPUT, "interpolation": "none"}},
        {"input": {**INPUT, "extra": 1}},
        {"tensors": 5},
        {"buffers": [5]},
        edited("architecture", "classes", value=0),
        edited("architecture", "blocks", 1, "in_shape", value=[4, 8]),
        edited("architecture", "blocks", 1, "macs", value=-1),
        edited("architecture", "gate", "kind", value="tree"),
        edited("architecture", "gate", "hidden", value=1 << 20),
        edited("graphs", "quantizer", value="row"),
        edited("graphs", "always", value=64),
        edited(*CONV, "name", value="x" * 1000),
        edited(*CONV, "attributes", "stride", value="2"),
        edited(*CONV, "code", value="import os"),
    ],
)
def test_malformed_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    for suffix in SUFFIXES:
        with refuses(CheckpointError, "malformed"):
            load_checkpoint(tampered(tmp_path, suffix, change))


def test_unchanged_values_load(tmp_path: Path) -> None:
    """So that the refusals here are for the change."""
    for suffix in SUFFIXES:
        load_checkpoint(tampered(tmp_path, suffix, {**description(), "input": INPUT}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edited(*CONV, "operator", value="exec"), ["operator exec", "expected one of"]),
        (edited(*CONV, "inputs", value=["nobody"]), ["reads nobody"]),
        (edited(*CONV, "inputs", value=["input", "input"]), ["2 values"]),
        (edited(*CONV, "tensors", value={"weight": "nowhere"}), ["nowhere"]),
        (edited(*CONV, "tensors", value={"kernel": "stem_conv.weight"}), ["kernel"]),
        (edited(*CONV, "tensors", "weight", value="stem_norm.weight"), ["does not fit"]),
        (edited(*CONV, "attributes", value={}), ["attributes"]),
        (edited(*CONV, "attributes", "stride", value=[0, 0]), ["stride"]),
        (edited(*CONV, "attributes", "stride", value=[-1, 1]), ["stride"]),
        (edited(*CONV, "attributes", "dilation", value=[0, 1]), ["dilation"]),
        (edited(*CONV, "attributes", "padding", value=[-1, 0, 0, 0]), ["padding"]),
        (edited(*CONV, "attributes", "groups", value=0), ["groups"]),
        (edited(*CONV, "attributes", "padding", value=[1 << 26] * 4), ["padding"]),
        *(
            (edited(*NORM, "attributes", name, value=value), [name, "expected number from 0.0 to"])
            for name, value in (("epsilon", -5), ("epsilon", 10**400), ("momentum", 1.5), ("momentum", -(10**400)))
        ),
        (operation("dropout", share=5.0), ["share 5.0", "from 0.0 to 1.0"]),
        (operation("affine", scale=1e39, shift=0.0), ["scale"]),
        (operation("leaky_relu", slope=-(10**400)), ["slope"]),
        (operation("clip", low=5.0, high=1.0), ["clips to 5.0", "expected an interval"]),
        (edited(*CONV, "name", value="stem_conv"), ["occurs twice"]),
        (edited("graphs", "blocks", 0, "branch", "output", value="nobody"), ["nobody"]),
        (edited("graphs", "blocks", value=[]), ["0 blocks"]),
        (edited("graphs", "blocks", 0, "free", value=True), ["gives (4, 8, 8) if it is skipped"]),
        (edited("graphs", "blocks", 0, "shortcut", value=None), ["no shortcut"]),
        (edited("architecture", "blocks", 1, "macs", value=1 << 50), ["block 1 has", "multiply-adds, expected"]),
        (edited("architecture", "blocks", 1, "macs", value=0), ["block 1 has 0 multiply-adds"]),
        (edited("architecture", "blocks", 0, "macs", value=1 << 50), ["block 0 has", "multiply-adds, expected"]),
        (edited("graphs", "blocks", 0, "shortcut", value={"nodes": [], "output": "input"}), ["does not fit"]),
        (edited("graphs", "head", value={"nodes": [], "output": "input"}), ["head"]),
        (edited("architecture", "classes", value=4) | {"input": INPUT}, ["head gives (3,)", "(4,)"]),
        (edited("architecture", "gate", "hidden", value=12), ["gate.lstm.weight_ih"]),
        ({"tensors": ["stem_conv.weight"]}, ["a tensor"]),
        ({"tensors": [*network().net.state_dict(), "more.weight"]}, ["net.more.weight"]),
        ({"policy": ["full"]}, ["1 option"]),
    ],
)
def test_a_description_that_fits_no_network_is_refused(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    with refuses(CheckpointError, *words):
        load_checkpoint(tampered(tmp_path, ".pt", change))


def test_shapes_that_the_graphs_do_not_give_are_refused(tmp_path: Path) -> None:
    made = description()
    for block in made["architecture"]["blocks"][1:]:
        block["in_shape"][1] *= 2
        block["out_shape"][1] *= 2
    made["architecture"]["blocks"][0]["out_shape"][1] *= 2
    with refuses(CheckpointError, "block 0 gives (4, 8, 8)", "(4, 16, 8)"):
        load_checkpoint(tampered(tmp_path, ".pt", made))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"aliases": {"head.bias": "nowhere"}}, ["head.bias under the name nowhere"]),
        ({"aliases": {"nowhere": "head.bias"}}, ["nowhere under the name head.bias"]),
        ({"aliases": {"head.bias": "head.bias"}}, ["head.bias under the name head.bias"]),
        (
            {"aliases": {"stem_norm.bias": "head.bias", "head.bias": "stem_norm.bias"}},
            ["stem_norm.bias under the name"],
        ),
        ({"aliases": {"stem_norm.bias": "stem_norm.weight"}}, ["net.stem_norm.bias", "does not have"]),
        ({"unsaved": ["head.bias"]}, ["head.bias", "no buffer"]),
    ],
)
def test_impossible_names_of_tensors_are_refused(tmp_path: Path, values: dict[str, Any], words: list[str]) -> None:
    with refuses(CheckpointError, *words):
        load_checkpoint(tampered(tmp_path, ".pt", values))


def test_what_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    with refuses(UsageError, "3 class names for a network of 10 classes"):
        save_checkpoint(tmp_path / "net.pt", network(classes=10), CONTRACT)
    for broken, words in (
        (with_graphs(network(), name="x" * 257), ["no checkpoint can hold", "256"]),
        (with_graphs(network(), free=True), ["gives (4, 8, 8) if it is skipped"]),
    ):
        with refuses(CheckpointError, *words):
            save_checkpoint(tmp_path / "net.pt", broken, CONTRACT)
    assert not list(tmp_path.iterdir())


def with_graphs(network: DFSNetwork, **values: Any) -> DFSNetwork:
    """A network with values of its first block changed."""
    first, *others = network.graphs.blocks
    changed = msgspec.structs.replace(first, **values)
    network.graphs = msgspec.structs.replace(network.graphs, blocks=(changed, *others))
    return network


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    for key in ("net.extra", "extra", "gate.extra"):
        file = tampered(tmp_path, ".pt", {})
        content = torch.load(file, weights_only=True)
        content["state_dict"][key] = torch.ones(1)
        torch.save(content, file)
        with refuses(CheckpointError, key):
            load_checkpoint(file)


@pytest.mark.parametrize(
    "names", [("forward.weight",), ("a", "a.b"), ("a.b", "a"), ("",), ("a..b",), (".".join("a" * 99),)]
)
def test_names_that_no_module_has_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = tampered(tmp_path, ".pt", {"tensors": [*network().net.state_dict(), *names]})
    content = torch.load(file, weights_only=True)
    content["state_dict"].update({f"net.{name}": torch.ones(1) for name in names})
    torch.save(content, file)
    with refuses(CheckpointError, "save it again"):
        load_checkpoint(file)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = network()
    with torch.no_grad():
        broken.net.head.weight[0, 0] = float("inf")
    save_checkpoint(tmp_path / "net.pt", broken, CONTRACT)
    with refuses(CheckpointError, "NaN or infinity"):
        load_checkpoint(tmp_path / "net.pt")


def test_other_options_than_it_says_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", network(), CONTRACT)
    with refuses(CheckpointError, "skip,2,4,full", "skip,8,16,full"):
        load_checkpoint(tmp_path / "net.pt", Options.parse("skip,2,4,full"))


def test_quantised_options_need_ranges_in_every_gated_block(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "none.pt", without_ranges(network(), 1, 2), CONTRACT)
    with refuses(CheckpointError, "gate-only", "step 2"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "some.pt", without_ranges(network(), 2), CONTRACT)
    with refuses(CheckpointError, "block(s) 2 "):
        load_checkpoint(tmp_path / "some.pt")
    save_checkpoint(tmp_path / "first.pt", without_ranges(network(), 0), CONTRACT)
    load_checkpoint(tmp_path / "first.pt")
    save_checkpoint(tmp_path / "full.pt", without_ranges(network(options="skip,full"), 0, 1, 2), CONTRACT)
    load_checkpoint(tmp_path / "full.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_policy_travels_and_needs_no_gate(tmp_path: Path, suffix: str) -> None:
    static = network().with_policy([2, 3])
    save_checkpoint(tmp_path / f"net{suffix}", static, CONTRACT)
    loaded = load_checkpoint(tmp_path / f"net{suffix}").network
    assert loaded.policy == (2, 3)
    assert loaded.gate is None
    for key, value in static.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_policy_needs_ranges_where_it_quantises(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", without_ranges(network().with_policy([3, 1]), 1), CONTRACT)
    load_checkpoint(tmp_path / "net.pt")
    save_checkpoint(tmp_path / "net.pt", without_ranges(network().with_policy([1, 3]), 1), CONTRACT)
    with refuses(CheckpointError, "block(s) 1 "):
        load_checkpoint(tmp_path / "net.pt")


def without_ranges(network: DFSNetwork, *blocks: int) -> DFSNetwork:
    for block in blocks:
        graph = network.graphs.stem if block == 0 else network.graphs.blocks[block - 1].whole
        for node in graph.nodes:
            if node.quantizable:
                for end in network.ranges.of(node.name):
                    end.zero_()
    return network
