from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from dfs_deploy.checkpoints import Checkpoint, CheckpointFacts, load_checkpoint, registry
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import older_content, release_state_dict, skipnet_state_dict, small_network
from tests.checks import refuses

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return skipnet_state_dict()


@pytest.fixture(scope="module")
def other() -> State:
    return skipnet_state_dict(seed=1)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "net.pt")
    return folder / "net.pt"


def is_of(checkpoint: Checkpoint, state: State) -> bool:
    return torch.equal(checkpoint.network.net.head.weight, state["fc.weight"])


def said(checkpoint: Checkpoint) -> str:
    """What is said of the weights, without what is assumed of the input."""
    flags = ("--mean", "--input-size", "--class-names", "--options")
    return "\n".join(line for line in checkpoint.assumptions if not any(flag in line for flag in flags))


@pytest.mark.parametrize("container", ["model", "model_state_dict", "weights"])
def test_weights_in_any_container_are_found_and_said(tmp_path: Path, state: State, container: str) -> None:
    loaded = load_checkpoint(saved(tmp_path, {container: state, "epoch": 3}))
    assert is_of(loaded, state)
    assert f"in {container}" in said(loaded)
    assert loaded.weights_key is None


def test_containers_in_containers_are_found(tmp_path: Path, state: State) -> None:
    loaded = load_checkpoint(saved(tmp_path, {"checkpoint": {"trainer": {"model": state}}, "lr": 0.1}))
    assert is_of(loaded, state)
    assert "checkpoint.trainer.model" in said(loaded)


def test_the_containers_of_the_formats_own_scripts_are_not_worth_a_word(tmp_path: Path, state: State) -> None:
    for content in (
        state,
        {"state_dict": state},
        {"state_dict": prefixed(state, "module.")},
        prefixed(state, "module."),
    ):
        loaded = load_checkpoint(saved(tmp_path, content))
        assert is_of(loaded, state)
        assert said(loaded) == ""


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("model.", "in state_dict.model"),
        ("ema_model.", "in state_dict.ema_model"),
        ("model.module.", "in state_dict.model"),
        ("_orig_mod.", "_orig_mod"),
        ("_orig_mod.module.", "_orig_mod"),
        ("module.module.", "module"),
        ("_fsdp_wrapped_module.", "_fsdp_wrapped_module"),
    ],
)
def test_wrappers_are_undone_and_said(tmp_path: Path, state: State, prefix: str, words: str) -> None:
    for made in (state, release_state_dict()):
        loaded = load_checkpoint(saved(tmp_path, {"state_dict": prefixed(made, prefix)}))
        assert is_of(loaded, made)
        assert words in said(loaded)


def test_wrappers_of_parts_are_undone(tmp_path: Path, state: State) -> None:
    parts = {
        key.replace("group1_layer1.", "group1_layer1._orig_mod.").replace("control.", "control.module."): value
        for key, value in state.items()
    }
    loaded = load_checkpoint(saved(tmp_path, parts))
    assert is_of(loaded, state)
    assert "_orig_mod, module" in said(loaded)


def test_one_name_for_two_tensors_is_refused(tmp_path: Path, state: State) -> None:
    both = state | {f"module.{key}": value for key, value in state.items()}
    assert is_of(load_checkpoint(saved(tmp_path, both)), state)
    both["module.fc.weight"] = state["fc.weight"] + 1
    with refuses(CheckpointError, "module.fc.weight", "differ"):
        load_checkpoint(saved(tmp_path, both))


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    ("key", "value"), [("conv1.total_ops", torch.zeros(1, dtype=torch.float64)), ("n_averaged", torch.tensor(9))]
)
def test_counters_are_passed_over_and_said(tmp_path: Path, state: State, older: bool, key: str, value: Tensor) -> None:
    path = tmp_path / "net.pt"
    if older:
        content = older_content(small_network(), InputContract((3, 8, 8)))
        content["state_dict"][key] = value
        torch.save(content, path)
    else:
        torch.save(prefixed(state, "module.") | {key: value}, path)
    loaded = load_checkpoint(path)
    assert key in said(loaded)


def test_a_tensor_with_the_name_of_a_counter_is_none(tmp_path: Path, state: State) -> None:
    with refuses(CheckpointError, "conv1.step"):
        load_checkpoint(saved(tmp_path, state | {"conv1.step": torch.ones(2)}))


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model-ema", "swa_model", "teacher"])
@pytest.mark.parametrize("first", [True, False])
def test_of_several_weights_those_that_are_no_average_are_taken(
    tmp_path: Path, state: State, other: State, averaged: str, first: bool
) -> None:
    content = {averaged: other, "state_dict": state} if first else {"state_dict": state, averaged: other}
    loaded = load_checkpoint(saved(tmp_path, content))
    assert is_of(loaded, state)
    for word in ("state_dict", averaged, "--weights-key"):
        assert word in said(loaded)
    assert loaded.weights_key == "state_dict"
    told = load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(weights_key=averaged))
    assert is_of(told, other)
    assert told.weights_key == averaged


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_several_weights_in_one_dict_are_told_apart_by_their_prefixes(
    tmp_path: Path, state: State, other: State, suffix: str
) -> None:
    path = tmp_path / f"net{suffix}"
    content = prefixed(other, "ema_model.module.") | prefixed(state, "online_model.") | {"initted": torch.tensor(True)}
    save_file({k: v.clone() for k, v in content.items()}, path) if suffix == ".safetensors" else torch.save(
        content, path
    )
    loaded = load_checkpoint(path)
    assert is_of(loaded, state)
    assert "ema_model, online_model" in said(loaded)
    assert is_of(load_checkpoint(path, facts=CheckpointFacts(weights_key="ema_model")), other)


def test_weights_and_their_average_in_one_dict(tmp_path: Path, state: State, other: State) -> None:
    path = saved(tmp_path, state | prefixed(other, "ema."))
    assert is_of(load_checkpoint(path), state)
    assert is_of(load_checkpoint(path, facts=CheckpointFacts(weights_key="ema")), other)
    assert is_of(load_checkpoint(path, facts=CheckpointFacts(weights_key=".")), state)


def test_weights_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path, state: State, other: State) -> None:
    path = saved(tmp_path, {"state_dict": state, "state_dict_ema": other})
    with refuses(CheckpointError, "'best'", "state_dict, state_dict_ema"):
        load_checkpoint(path, facts=CheckpointFacts(weights_key="best"))


def test_tensors_beside_the_network_are_passed_over_only_if_that_is_said(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, {"state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(10)}})
    with refuses(CheckpointError, "criterion.weight", "--weights-key state_dict.model"):
        load_checkpoint(path)
    loaded = load_checkpoint(path, facts=CheckpointFacts(weights_key="state_dict.model"))
    assert is_of(loaded, state)
    assert "criterion.weight" in said(loaded)


def test_an_optimiser_beside_the_weights_is_none_of_them(tmp_path: Path, state: State) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    content = {"state_dict": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    assert is_of(load_checkpoint(saved(tmp_path, content)), state)


class Skipnet(nn.Module):
    """Its state dict has the projections' tensors under two names each."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *_: Any, **__: Any) -> State:  # type: ignore[override]
        return self.state


@pytest.mark.parametrize(
    ("make", "prefix", "noted"), [(skipnet_state_dict, "module.", True), (release_state_dict, "", False)]
)
def test_either_name_of_a_shared_pair_in_safetensors_is_read(
    tmp_path: Path, make: Callable[[], State], prefix: str, noted: bool
) -> None:
    whole, path = make(), tmp_path / "net.safetensors"
    save_model(Skipnet(prefixed(whole, prefix)), str(path))
    if not noted:
        from safetensors.torch import load_file

        save_file(load_file(path), path)
    read = load_checkpoint(path).network.state_dict()
    expected = load_checkpoint(saved(tmp_path, whole)).network.state_dict()
    assert all(torch.equal(value, read[key]) for key, value in expected.items() if "num_batches" not in key)


def test_a_note_on_a_pair_leads_nowhere_else(tmp_path: Path, state: State) -> None:
    cut = {key: value.clone() for key, value in state.items() if "_ds0" not in key and key != "fc.bias"}
    save_file(cut, tmp_path / "net.safetensors", {"fc.bias": "control.proj.bias"})
    with refuses(CheckpointError, "fc.bias"):
        load_checkpoint(tmp_path / "net.safetensors")


def test_values_that_stand_in_a_dict_over_and_over_are_refused(tmp_path: Path, state: State) -> None:
    for shape in ((10**9,), (1000, 1000)):
        with refuses(CheckpointError, "expanded"):
            load_checkpoint(saved(tmp_path, state | {"fc.weight": torch.zeros(1).expand(shape)}))
    one = torch.zeros(10**5)
    with refuses(CheckpointError, "expected each value once"):
        load_checkpoint(saved(tmp_path, state | {f"group1_layer{i}.conv1.weight": one for i in range(20)}))


def test_two_tensors_of_one_memory_come_apart(tmp_path: Path, state: State) -> None:
    shared = state | {"group1_layer0.conv2.weight": state["group1_layer0.conv1.weight"]}
    tensors = load_checkpoint(saved(tmp_path, shared)).network.state_dict()
    with torch.no_grad():
        tensors["net.blocks.0.conv1.weight"].zero_()
    assert tensors["net.blocks.0.conv2.weight"].any()


def test_a_format_needs_nothing_but_its_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = load_checkpoint(saved(tmp_path, skipnet_state_dict()))
    monkeypatch.setattr(registry, "_RECOGNIZERS", list(registry._RECOGNIZERS))
    seen: list[set[str]] = []

    @registry.recognizer(lambda raw: "brand.new" in raw.tensors, marker="brand.new")
    def load(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
        seen.append(set(raw.tensors))
        return known

    new = {"module.net.brand.new": torch.ones(1), "module.net.head.weight": torch.ones(2)}
    assert load_checkpoint(saved(tmp_path, {"epoch": 3, "model": new})).network is known.network
    assert seen == [{"brand.new", "head.weight"}]
