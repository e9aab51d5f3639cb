from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dfs_deploy.errors import DependencyError, UsageError
from dfs_deploy.models import CifarResNet, find_blocks
from dfs_deploy.models.named import named_network
from dfs_deploy.models.option_a import OptionAResNet
from dfs_deploy.preprocessing import IMAGENET_INPUT, InputContract
from tests.checks import refuses

MODULE = """
import torch
from torch import nn

LOADED = []

class Net(nn.Module):
    def __init__(self, classes=4, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.conv(x)).mean((2, 3))))

def make():
    return Net()

def grey():
    return Net(channels=1)

def needs(depth):
    return Net()

def raises():
    raise RuntimeError("no weights\\nhere")

def ends():
    raise SystemExit(7)

class Lazy:
    def __getattr__(self, name):
        raise KeyError(name)

lazy = Lazy()

class Holder:
    make = staticmethod(make)

ready = Net(classes=6)
number = 5
text = lambda: "network"
pair = lambda: PairNet()

class PairNet(Net):
    def forward(self, x):
        return super().forward(x), x
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module and a package."""
    (tmp_path / "lone_networks.py").write_text(MODULE)
    (tmp_path / "kept_networks").mkdir()
    (tmp_path / "kept_networks" / "__init__.py").write_text("")
    (tmp_path / "kept_networks" / "inner.py").write_text(MODULE)
    (tmp_path / "broken_networks.py").write_text("import nothing_like_it\n")
    (tmp_path / "torn_networks.py").write_text("def make(:\n")
    (tmp_path / "failing_networks.py").write_text("raise OSError('no\\ndisk')\n")
    (tmp_path / "ending_networks.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "networks" in name:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("lone_networks:make", 4),
        ("kept_networks.inner:make", 4),
        ("lone_networks:Net", 4),
        ("lone_networks:Holder.make", 4),
        ("lone_networks:ready", 6),
    ],
)
def test_a_function_of_the_current_directory_gives_a_network(project: Path, name: str, classes: int) -> None:
    path = list(sys.path)
    made = named_network(name)
    assert (made.name, made.classes) == (name, classes)
    assert not made.net.training
    assert made.contract == IMAGENET_INPUT
    assert made.example.shape == (1, 3, 224, 224)
    assert any("224x224 pixels cut out of 256" in note for note in made.notes)
    assert sys.path == path, "the current directory is looked in only for this"


def test_a_network_of_one_channel_has_no_mean_of_imagenets(project: Path) -> None:
    made = named_network("lone_networks:grey", (28, 28))
    assert made.contract == InputContract((1, 28, 28), (0.5,), (0.5,), (), 32)
    assert made.classes == 4


def test_another_image_size_keeps_what_is_cut_out(project: Path) -> None:
    made = named_network("lone_networks:make", (112, 112))
    assert (made.contract.shape, made.contract.resize) == ((3, 112, 112), 128)
    assert made.example.shape == (1, 3, 112, 112)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ["expected torchvision:NAME"]),
        ("resnet18", ["'resnet18'", "expected torchvision:NAME", "package.module:function"]),
        (":make", ["expected torchvision:NAME"]),
        ("lone_networks:", ["expected torchvision:NAME"]),
        ("nowhere_at_all:make", ["cannot be imported", "no module nowhere_at_all", "current directory"]),
        ("kept_networks.outer:make", ["no module kept_networks.outer"]),
        ("broken_networks:make", ["cannot be imported", "nothing_like_it", "install"]),
        ("torn_networks:make", ["cannot be imported", "SyntaxError"]),
        ("failing_networks:make", ["cannot be imported", "OSError: no"]),
        ("lone_networks:mke", ["has no mke", "did you mean make"]),
        ("lone_networks:Holder.nothing", ["has no nothing"]),
        ("lone_networks:number", ["is a int", "a function"]),
        ("lone_networks:text", ["gives a str", "torch.nn.Module"]),
        ("lone_networks:needs", ["without arguments", "TypeError", "depth"]),
        ("lone_networks:raises", ["RuntimeError: no weights"]),
        ("lone_networks:ends", ["failed", "SystemExit: 7"]),
        ("lone_networks:lazy.net", ["cannot be read", "KeyError: 'net'"]),
        ("ending_networks:make", ["cannot be imported", "SystemExit: 3", "correct the module"]),
        ("lone_networks.py:make", ["begins with a file", "lone_networks:make"]),
        ("./lone_networks.py:make", ["begins with a file", "lone_networks:make"]),
    ],
)
def test_what_cannot_be_imported_is_one_line(project: Path, name: str, words: list[str]) -> None:
    with refuses(UsageError, *words):
        named_network(name)


def test_what_is_no_classifier_is_refused(project: Path) -> None:
    with refuses(UsageError, "gives tuple", "(N, classes)"):
        _ = named_network("lone_networks:pair").classes
    with refuses(UsageError, "fails on an image", "(3, 1, 1)"):
        made = named_network("lone_networks:ready", (1, 1))
        made.net.conv = nn.Conv2d(4, 8, 3)
        _ = made.classes
    with refuses(UsageError, "fails on an image", "KeyError", "--image-size, or --size of train"):
        made.net.conv = nn.ModuleDict()
        made.net.forward = lambda x: made.net.conv["nowhere"](x)
        _ = made.classes


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_cifar_resnets_have_their_depth(depth: int) -> None:
    made = named_network(f"cifar-resnet:{depth}")
    assert isinstance(made.net, CifarResNet)
    convolutions = [module for module in made.net.modules() if isinstance(module, nn.Conv2d)]
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == depth - 1
    assert made.contract == InputContract()
    assert made.classes == 10


def test_names_of_weights_decide_about_shortcuts() -> None:
    for key in ("layer1.0.conv1.weight", "model.layer1.0.conv1.weight"):
        made = named_network("cifar-resnet:20", keys={key, "linear.weight"})
        assert isinstance(made.net, OptionAResNet)
        assert made.contract == InputContract(mean=IMAGENET_INPUT.mean, std=IMAGENET_INPUT.std)
        assert any("option A" in note for note in made.notes)
        assert len(find_blocks(made.net, made.example).blocks) == 9


@pytest.mark.parametrize("text", ["21", "2", "0", "-20", "x", "20000", "²0", "2 0"])
def test_other_depths_are_refused(text: str) -> None:
    with refuses(UsageError, "6n + 2"):
        named_network(f"cifar-resnet:{text}")


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with refuses(DependencyError, package, f"pip install {package}"):
        named_network(f"{package}:resnet18")


def test_torchvisions_networks_come_with_their_preprocessing() -> None:
    pytest.importorskip("torchvision")
    made = named_network("torchvision:resnet18")
    assert made.contract == IMAGENET_INPUT
    assert made.classes == 1000
    assert len(find_blocks(made.net, made.example).blocks) == 8
    first, second = (
        named_network("torchvision:resnet50", file=file).contract
        for file in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth")
    )
    assert (first.resize, second.resize) == (256, 232)
    assert len(first.class_names) == 1000
    assert not named_network("torchvision:resnet50", file="mine.pth").contract.class_names
    with refuses(UsageError, "torchvision:resnet17", "resnet18"):
        named_network("torchvision:resnet17")


def test_timms_networks_come_with_their_preprocessing() -> None:
    pytest.importorskip("timm")
    made = named_network("timm:efficientnet_lite0")
    assert (made.contract.shape, made.contract.resize, made.contract.interpolation) == ((3, 224, 224), 256, "bicubic")
    assert made.classes == 1000
    with refuses(UsageError, "timm:efficientnet_light0", "efficientnet_lite0"):
        named_network("timm:efficientnet_light0")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:regnety_004", "torchvision:regnet_y_400mf"])
def test_packages_state_dicts_load_into_their_networks(tmp_path: Path, name: str) -> None:
    package = pytest.importorskip(name.partition(":")[0])
    from dfs_deploy.checkpoints import build_network

    wanted = name.partition(":")[2]
    make = package.models.get_model if package.__name__ == "torchvision" else package.create_model
    torch.manual_seed(5)
    net = make(wanted).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    made = build_network(name, tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(made.net(made.example), net(made.example))
    assert build_network(name, tmp_path / "net.pth", classes=10).classes == 10
