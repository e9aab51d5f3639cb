"""``dfs-deploy blocks``: the plan of a network by name, or of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.preprocessing import InputContract
from tests.builders import older_content, save_older, small_network
from tests.cli.program import run
from tests.nets import SIZE, adapted, user_net

HERE = "tests.cli.test_blocks"
NET = ("--network", f"{HERE}:mobile", "--image-size", "12")


def mobile() -> nn.Module:
    return user_net("mobile")


def basic() -> nn.Module:
    return user_net("basic")


def plain() -> nn.Module:
    """A network without a residual block."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class TwoInputs(nn.Module):
    """A block that reads two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + other


class Branching(nn.Module):
    """A block whose path depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if float(x.sum()) > 0 else x + x.relu()


class Odd(nn.Module):
    """A network with a sound block, and one of the blocks above."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.inner = user_net("basic")
        self.before = nn.Conv2d(3, 4, 1)
        self.odd = odd
        self.after = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        x = self.odd(x, x.relu()) if isinstance(self.odd, TwoInputs) else self.odd(x)
        logits: torch.Tensor = self.inner(self.after(x))
        return logits


def two_inputs() -> nn.Module:
    return Odd(TwoInputs()).eval()


def branching() -> nn.Module:
    return Odd(Branching()).eval()


class NotResidual(nn.Module):
    """A network whose head computes what no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = user_net("basic")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(self.inner(x)).real


def outside() -> nn.Module:
    return NotResidual().eval()


def test_the_plan_of_a_network_is_shown() -> None:
    ran = run("blocks", *NET)
    assert (ran.code, ran.err) == (0, "")
    assert f"{HERE}:mobile: 4 blocks, 3 free to skip" in ran.out
    for word in ("layer1.0", "layer2.0", "InvertedResidualV3", "identity", "always runs"):
        assert word in ran.out
    assert "note: images are 12x12 pixels cut out of 14, bilinear" in ran.out


def test_it_is_one_json_object_too() -> None:
    ran = run("blocks", *NET, "--options", "skip,8,full", "--json")
    assert (ran.code, ran.err) == (0, "")
    blocks = [row for row in ran.json["rows"] if row["kind"] == "block"]
    assert [row["name"] for row in blocks] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert [row["skip"] for row in blocks] == ["free", "free", None, "free"]
    assert ran.json["options"] == ["skip", "8", "full"]
    assert ran.json["decided"] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert ran.json["input"]["shape"] == [3, 12, 12]
    assert ran.json["problem"] is None
    assert sum(row["share"] for row in ran.json["rows"]) == pytest.approx(1.0)


def test_options_say_what_a_gate_would_decide_about() -> None:
    ran = run("blocks", *NET, "--options", "skip,full", "--json")
    assert ran.json["decided"] == ["layer1.0", "layer1.1", "layer2.1"], "layer2.0 cannot be skipped"
    fixed = run("blocks", *NET, "--options", "skip,8,full", "--block", "layer1.*=full", "--json")
    assert fixed.json["decided"] == ["layer2.0", "layer2.1"]
    assert "the gate decides about 4 blocks; stem, head and skips run in 8 bits" in (
        run("blocks", *NET, "--options", "skip,8,full").out
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BasicBlock", ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
        ("layer1.0", ["layer1.0"]),
        ("layer1.0, layer2.1", ["layer1.0", "layer2.1"]),
        (r"layer\d\.1", ["layer1.1", "layer2.1"]),
    ],
)
def test_blocks_are_named_by_class_name_or_expression(text: str, found: list[str]) -> None:
    ran = run("blocks", "--network", f"{HERE}:basic", "--image-size", "12x12", "--blocks", text, "--json")
    assert ran.code == 0, ran
    assert [row["name"] for row in ran.json["rows"] if row["kind"] == "block"] == found


def test_weights_are_taken(tmp_path: Path) -> None:
    torch.save(user_net("mobile", classes=7).state_dict(), tmp_path / "w.pt")
    ran = run("blocks", *NET, "--weights", tmp_path / "w.pt", "--json")
    assert ran.json["classes"] == 7


def test_the_plan_of_a_checkpoint_is_shown(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", adapted("mobile", "skip,8,full"), InputContract((3, *SIZE)))
    ran = run("blocks", tmp_path / "net.pt", "--json")
    assert ran.code == 0, ran
    rows = [row for row in ran.json["rows"] if row["kind"] == "block"]
    assert [row["name"] for row in rows] == ran.json["decided"] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    same = run("blocks", *NET, "--json").json["rows"]
    for key in ("name", "kind", "shortcut", "after", "skip", "in_shape", "out_shape", "macs", "share"):
        assert [row[key] for row in ran.json["rows"]] == [row[key] for row in same], key
    older = save_older(tmp_path / "older.pt", older_content(small_network(), InputContract((3, 8, 8))))
    assert "ResNet-8: 2 blocks" in run("blocks", older).out
    static = adapted("basic", "skip,8,full").with_policy([0, 1, 2, 0])
    save_checkpoint(tmp_path / "static.pt", static, InputContract((3, *SIZE)))
    assert "the policy decides about 4 blocks" in run("blocks", tmp_path / "static.pt").out


def test_a_network_that_cannot_be_adapted_is_a_failed_check() -> None:
    ran = run("blocks", "--network", f"{HERE}:outside", "--image-size", "12")
    assert (ran.code, ran.err) == (1, "")
    assert "It cannot be adapted: " in ran.out
    assert run("blocks", "--network", f"{HERE}:outside", "--image-size", "12", "--json").json["problem"] is not None


def test_what_is_no_block_is_named_with_its_reason() -> None:
    for name, words in (("two_inputs", "reads 2 tensors"), ("branching", "depends on data")):
        ran = run("blocks", "--network", f"{HERE}:{name}", "--image-size", "12")
        assert words in ran.out, ran
        assert "odd" in ran.out
        run("blocks", "--network", f"{HERE}:{name}", "--image-size", "12", "--blocks", "odd").failed(2, "odd", words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, ["--network", "not both"]),
        (("net.pt", "--network", "cifar-resnet:20"), 2, ["not both"]),
        (("net.pt", "--options", "skip,8"), 2, ["--options", "checkpoint"]),
        (("none.pt",), 4, ["none.pt does not exist"]),
        (("--network", f"{HERE}:plain"), 2, ["no residual block"]),
        (("--network", f"{HERE}:nothing"), 2, ["cannot be imported", "has no nothing"]),
        (("--network", "cifar-resnet:21"), 2, ["6n + 2"]),
        (("--network", "resnet18"), 2, ["torchvision:NAME"]),
        ((*NET, "--weights", "none.pt"), 4, ["none.pt does not exist"]),
        ((*NET, "--weights-key", "ema"), 2, ["--weights-key", "--weights"]),
        ((*NET, "--blocks", "layer1.9"), 2, ["layer1.9"]),
        ((*NET, "--blocks", "("), 2, ["no regular expression"]),
        ((*NET, "--block", "layer1.*"), 2, ["GLOB=LIST"]),
        ((*NET, "--block", "layer9.*=full"), 2, ["no block matches 'layer9.*'"]),
        ((*NET, "--block", "layer2.0=skip"), 2, ["layer2.0", "cannot be skipped"]),
        ((*NET, "--options", "skip,9x"), 2, ["unknown option '9x'"]),
        (("--network", f"{HERE}:basic", "--image-size", "a"), 2, ["--image-size", "as in 32x32"]),
        (("--network", f"{HERE}:basic", "--image-size", "0"), 2, ["(3, 0, 0)"]),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").write_bytes(b"")
    run("blocks", *arguments).failed(code, *words)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run("blocks", "--network", f"{package}:resnet18").failed(3, f"pip install {package}")


def test_help_says_that_a_module_is_imported() -> None:
    assert "imports that" in " ".join(run("blocks", "--help").out.split())
