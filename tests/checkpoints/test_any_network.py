"""Networks of users in our own format: they come back without the code that made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from dfs_deploy.checkpoints import CheckpointFacts, build_network, load_checkpoint, save_checkpoint
from dfs_deploy.errors import CheckpointError, UsageError
from dfs_deploy.models import adapt, find_blocks
from dfs_deploy.models.graph import named_tensors
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract
from tests.checks import refuses
from tests.nets import KINDS, SIZE, Kind, adapted, spread_gate, user_images, user_net
from tests.networks import FAMILIES

SUFFIXES = (".pt", ".safetensors")
CONTRACT = InputContract((3, *SIZE), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), tuple("abcde"), 16, "bicubic")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_with_every_bit(tmp_path: Path, kind: Kind, suffix: str) -> None:
    saved = adapted(kind)
    save_checkpoint(tmp_path / f"net{suffix}", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / f"net{suffix}")
    network = loaded.network
    assert loaded.input == CONTRACT
    assert network.contract == CONTRACT
    assert loaded.assumptions == ()
    assert (network.architecture, network.graphs) == (saved.architecture, saved.graphs)
    state, again = saved.state_dict(), network.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert [name for name, _ in saved.named_parameters()] == [name for name, _ in network.named_parameters()]
    images = user_images(8)
    one, other = saved.route(images), network.route(images)
    assert torch.equal(one.path, other.path)
    assert len(one.path.unique()) > 1, "several options should be chosen, or this shows little"
    assert torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(tmp_path: Path, family: str) -> None:
    made = FAMILIES[family]
    net, images = made.build(), made.images()
    saved = adapt(net, find_blocks(net, images), "skip,8,full")
    save_checkpoint(tmp_path / "net.pt", saved, InputContract((3, made.pixels, made.pixels)))
    network = load_checkpoint(tmp_path / "net.pt").network
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(network.static(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(network.static(images), saved.static(images))


def test_a_stateless_gate_comes_back(tmp_path: Path) -> None:
    saved = adapted("mobile", gate="stateless")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    network = load_checkpoint(tmp_path / "net.pt").network
    assert network.architecture.gate.kind == "stateless"
    images = user_images(8)
    assert torch.equal(saved.route(images).scores, network.route(images).scores)


def test_the_users_code_takes_the_weights_back(tmp_path: Path) -> None:
    saved = adapted("bottleneck")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt").network
    fresh = user_net("bottleneck", seed=5)
    fresh.load_state_dict(loaded.net.state_dict())
    images = user_images(4)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(images), loaded.static(images), rtol=1e-5, atol=1e-5)


def test_a_loaded_network_trains_as_the_saved_one(tmp_path: Path) -> None:
    """Parameters stay parameters and buffers stay buffers."""
    saved = adapted("mobile", options="skip,8,full").train()
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt", deployable=False).network.train()
    results = []
    for network in (saved, loaded):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for step in range(2):
            optimizer.zero_grad()
            output = network(user_images(8, seed=step))
            (output.logits.square().mean() + network.cost_loss(40.0)).backward()
            optimizer.step()
        results.append({key: value.clone() for key, value in network.state_dict().items()})
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=0, msg=key)


def test_options_of_single_blocks_come_back(tmp_path: Path) -> None:
    net = user_net("basic")
    plan = find_blocks(net, user_images(2))
    plan["layer1.0"].options = "skip,full"
    plan["layer2.0"].options = "full"
    saved = adapt(net, plan, "skip,8,full")
    spread_gate(saved)
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    network = load_checkpoint(tmp_path / "net.pt").network
    assert network.architecture == saved.architecture
    images = user_images(16)
    assert torch.equal(saved.route(images).path, network.route(images).path)


def test_tensors_that_no_graph_reads_stay_as_they_are(tmp_path: Path) -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = user_net("basic")
            self.register_buffer("calls", torch.tensor([3, 4]))
            self.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(x)
            return logits

    net = Extra().eval()
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt").network
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value), key
        assert loaded.net.state_dict()[key].dtype == value.dtype


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tied_weights_stay_tied(tmp_path: Path, suffix: str) -> None:
    net, path = user_net("basic"), tmp_path / f"net{suffix}"
    net.layer1[1].conv1.weight = net.layer1[0].conv1.weight
    net.layer1[1].bn1 = net.layer1[0].bn1
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(path, saved, CONTRACT)
    loaded = load_checkpoint(path).network
    assert list(loaded.state_dict()) == list(saved.state_dict())
    tensors = named_tensors(loaded.net)
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.num_batches_tracked"):
        assert tensors[f"layer1.0.{name}"] is tensors[f"layer1.1.{name}"], name
    assert len(list(loaded.parameters())) == len(list(saved.parameters()))
    assert torch.equal(loaded.static(user_images(2)), saved.static(user_images(2)))
    save_checkpoint(path, loaded, CONTRACT)
    made = build_network("tests.checkpoints.test_any_network:basic", path, image_size=12)
    assert all(torch.equal(value, made.net.state_dict()[key]) for key, value in net.state_dict().items())


def basic() -> nn.Module:
    """What a user's own function gives."""
    return user_net("basic", seed=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_that_share_memory_are_written_apart(tmp_path: Path, suffix: str) -> None:
    net, path = user_net("basic"), tmp_path / f"net{suffix}"
    every = torch.rand(100_000)
    net.stem[1].weight = nn.Parameter(every[:8])
    net.stem[1].bias = nn.Parameter(every[4:12])
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(path, saved, CONTRACT)
    assert path.stat().st_size < 200_000, "only what is in the tensors"
    loaded = load_checkpoint(path).network
    assert torch.equal(loaded.static(user_images(2)), saved.static(user_images(2)))


class Blurred(nn.Module):
    """A network with a kernel that its state dict leaves out, as timm's BlurPool has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = user_net("basic")
        self.register_buffer("kernel", torch.rand(3, 1, 3, 3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(nn.functional.conv2d(x, self.kernel, None, 1, 1, 1, 3))
        return logits


def test_a_weight_that_no_state_dict_has_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Blurred().eval()
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    for _ in range(2):
        save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
        loaded = load_checkpoint(tmp_path / "net.pt").network
        assert torch.equal(loaded.static(user_images(2)), saved.static(user_images(2)))
        assert list(loaded.state_dict()) == list(saved.state_dict())
        saved = loaded
    net.load_state_dict(loaded.net.state_dict())
    made = build_network("tests.checkpoints.test_any_network:Blurred", tmp_path / "net.pt", image_size=12)
    assert torch.equal(made.net.inner.fc.weight, net.inner.fc.weight)


def test_a_type_that_safetensors_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> bytes:
        raise KeyError(torch.complex32)

    monkeypatch.setattr(safetensors.torch, "save", lacking)
    with refuses(CheckpointError, "complex32", "ends in .pt"):
        save_checkpoint(tmp_path / "net.safetensors", adapted("basic"), CONTRACT)


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Counting(nn.ReLU):
        def get_extra_state(self) -> object:
            return {"calls": 3}

        def set_extra_state(self, state: object) -> None: ...

    net = user_net("basic")
    net.stem[2] = Counting()
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    with refuses(CheckpointError, "stem.2._extra_state", "dict", "dense tensor"):
        save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)


@pytest.mark.parametrize("operator", ["sigmoid", "hard_swish"])
def test_a_skip_is_free_only_if_nothing_changes_the_input(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "net.pt"
    save_checkpoint(path, adapted("basic"), CONTRACT)
    content = torch.load(path, weights_only=True)
    description = json.loads(content["network"])
    block = next(block for block in description["graphs"]["blocks"] if block.get("free"))
    assert [node["operator"] for node in block["after"]["nodes"]] == ["relu"]
    block["after"]["nodes"][0]["operator"] = operator
    torch.save({**content, "network": json.dumps(description)}, path)
    with refuses(CheckpointError, "passes its input on if it is skipped", "layers that change it"):
        load_checkpoint(path)


def test_names_that_wrappers_use_are_the_users_own(tmp_path: Path) -> None:
    """``module`` in a name is no addition of a wrapper, nor ``step`` a counter, in a file of ours."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = user_net("basic")
            self.register_buffer("step", torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(x)
            return logits

    net = Wrapper().eval()
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt").network
    assert list(loaded.state_dict()) == list(saved.state_dict())
    with refuses(CheckpointError, "no weights in 'ema'", "state_dict"):
        load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(weights_key="ema"))


def test_it_loads_where_the_code_is_not(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", adapted("mobile"), CONTRACT)
    code = (
        "import sys; from dfs_deploy.checkpoints import load_checkpoint\n"
        f"network = load_checkpoint({str(tmp_path / 'net.pt')!r}).network\n"
        "assert not any(name.split('.')[0] in ('tests', 'torchvision', 'timm') for name in sys.modules)\n"
        "print(len(network.blocks))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, str(len(adapted("mobile").blocks))), ran.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_size_is_taken(tmp_path: Path, kind: Kind) -> None:
    saved = adapted(kind)
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(input_size=(24, 36)))
    assert loaded.input.shape == (3, 24, 36)
    assert loaded.input.resize == 36, "12 of 16 pixels are cut out, so 24 of 32; and no side may be longer than that"
    assert any("24x36" in line for line in loaded.assumptions)
    assert any("paddings" in line and "12x12" in line for line in loaded.assumptions)
    blocks = loaded.network.architecture.blocks
    images = torch.randn(2, 3, 24, 36)
    features = loaded.network.stem(images)
    assert blocks[0].out_shape == features.shape[1:]
    for block in loaded.network.blocks:
        features = block(features)
        assert block.shape.out_shape == features.shape[1:]
        assert block.shape.macs > saved.architecture.blocks[block.shape.index].macs
    assert loaded.network.route(images).logits.shape == (2, 5)


@pytest.mark.parametrize("size", [(24, 36), (8, 9)])
def test_a_network_of_another_image_size_is_saved_too(tmp_path: Path, size: tuple[int, int]) -> None:
    """Blocks that are merged, with a projection among them, count other multiply-adds than their graph has."""
    net = user_net("basic")
    plan = find_blocks(net, user_images(2))
    plan["layer1.1"].options = plan["layer2.0"].options = "full"
    saved = adapt(net, plan, "skip,full")
    assert [block.name for block in saved.architecture.blocks[1:]] == ["layer1.0", "layer1.1-layer2.0", "layer2.1"]
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    loaded = load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(input_size=size))
    save_checkpoint(tmp_path / "other.pt", loaded.network, loaded.input)
    again = load_checkpoint(tmp_path / "other.pt")
    assert again.network.architecture == loaded.network.architecture
    images = torch.randn(2, 3, *size)
    assert torch.equal(again.network.static(images), loaded.network.static(images))


def test_a_network_that_is_bound_to_its_size_says_so(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = user_net("basic")
            self.fc = nn.Linear(16 * 9, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner.layer2(self.inner.layer1(self.inner.stem(x)))
            logits: torch.Tensor = self.fc(torch.flatten(x, 1))
            return logits

    net = Flat().eval()
    saved = adapt(net, find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    with refuses(CheckpointError, "cannot take images of 24x24 pixels", "--input-size at 12x12"):
        load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(input_size=(24, 24)))


class Same(nn.Conv2d):
    """A convolution that pads by the size of its input, as TensorFlow's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
            pads += [total // 2, total - total // 2]
        return nn.functional.conv2d(nn.functional.pad(x, pads), self.weight, self.bias, 2)


class Cropped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :10, :10]


@pytest.mark.parametrize("first", [Same(3, 3, 3), Cropped()], ids=["same", "cropped"])
def test_a_network_that_pads_or_cuts_by_its_size_keeps_it(tmp_path: Path, first: nn.Module) -> None:
    net = user_net("basic")
    net.stem.insert(0, first)
    saved = adapt(net.eval(), find_blocks(net, user_images(2)), "skip,full")
    save_checkpoint(tmp_path / "net.pt", saved, CONTRACT)
    load_checkpoint(tmp_path / "net.pt")
    with refuses(CheckpointError, "cannot take images of 13x13 pixels", "one side more", "--input-size at 12x12"):
        load_checkpoint(tmp_path / "net.pt", facts=CheckpointFacts(input_size=(13, 13)))


def test_a_contract_of_other_images_is_refused(tmp_path: Path) -> None:
    with refuses(UsageError, "(3, 224, 224)", "(3, 12, 12)"):
        save_checkpoint(tmp_path / "net.pt", adapted("basic"), IMAGENET_INPUT)
    assert not list(tmp_path.iterdir())
