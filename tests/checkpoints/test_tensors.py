from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfs_deploy.checkpoints import load_checkpoint, save_checkpoint
from dfs_deploy.checkpoints.tensors import fill, without_values
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from tests.builders import release_state_dict, save_release, skipnet_state_dict, small_network
from tests.checks import refuses

READ = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
REFUSED = (torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return skipnet_state_dict()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "net.pt"
    save_checkpoint(path, small_network(), InputContract((3, 8, 8)))
    return path


@pytest.mark.parametrize("dtype", READ)
def test_floating_point_becomes_float32(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    path = save_release(tmp_path / "net.pt", state | {"fc.weight": state["fc.weight"].to(dtype)})
    weight = load_checkpoint(path).network.net.head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["fc.weight"].to(dtype).float())


@pytest.mark.parametrize("dtype", REFUSED)
def test_other_types_hold_no_weights(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    path = save_release(tmp_path / "net.pt", state | {"fc.weight": state["fc.weight"].to(dtype)})
    with refuses(CheckpointError, "fc.weight", str(dtype).removeprefix("torch."), "bfloat16"):
        load_checkpoint(path)


def test_our_own_format_is_held_to_the_same_rule(tmp_path: Path, ours: Path) -> None:
    content = torch.load(ours, weights_only=True)
    key = "net.head.weight"
    content["state_dict"][key] = content["state_dict"][key].to(torch.int8)
    torch.save(content, tmp_path / "net.pt")
    with refuses(CheckpointError, key, "int8"):
        load_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda weight: weight.to_sparse(), "a sparse tensor"),
        (lambda weight: weight.to_sparse_csr(), "a sparse tensor"),
        (lambda weight: weight.to("meta"), "without values"),
        (lambda weight: torch.nn.Parameter(weight), None),
        (lambda weight: weight.t().contiguous().t(), None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_only_dense_tensors_are_read(tmp_path: Path, state: dict[str, Tensor], make: object, words: str | None) -> None:
    assert callable(make)
    path = save_release(tmp_path / "net.pt", state | {"fc.weight": make(state["fc.weight"])})
    if words is None:
        assert torch.equal(load_checkpoint(path).network.net.head.weight, state["fc.weight"])
    else:
        with refuses(CheckpointError, words, "dense"):
            load_checkpoint(path)


def test_a_value_beyond_float32_is_infinite(tmp_path: Path, state: dict[str, Tensor]) -> None:
    large = state["fc.weight"].double()
    large[0, 0] = 1e300
    with refuses(CheckpointError, "infinity in fc.weight"):
        load_checkpoint(save_release(tmp_path / "net.pt", state | {"fc.weight": large}))


@pytest.mark.parametrize("make", [skipnet_state_dict, release_state_dict])
def test_a_negative_variance_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    made = make()
    made["bn1.running_var"][0] = -1e-3
    with refuses(CheckpointError, "negative variance in bn1.running_var"):
        load_checkpoint(save_release(tmp_path / "net.pt", made))


@pytest.mark.parametrize("counter", [torch.tensor(3.5), torch.tensor([3]), torch.tensor(1j)])
def test_a_counter_that_counts_nothing_is_refused(tmp_path: Path, ours: Path, counter: Tensor) -> None:
    content = torch.load(ours, weights_only=True)
    key = "net.stem_norm.num_batches_tracked"
    content["state_dict"][key] = counter
    torch.save(content, tmp_path / "net.pt")
    with refuses(CheckpointError, key):
        load_checkpoint(tmp_path / "net.pt")


def test_a_network_without_values_takes_no_memory_and_every_value_from_its_file() -> None:
    wide, options = cifar_resnet((1, 1, 1), (2**16 - 1,) * 3, image_shape=(3, 8, 8)), Options.parse("skip,full")
    network = without_values(lambda: cifar_network(wide, options))
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    small = small_network("skip,full")

    def empty() -> DFSNetwork:
        return without_values(lambda: cifar_network(small.architecture, small.options))

    whole = {key: value for key, value in small.state_dict().items() if not key.endswith("num_batches_tracked")}
    filled = fill(empty(), whole)
    assert all(torch.equal(value, filled.state_dict()[key]) for key, value in small.state_dict().items())
    assert not filled.training
    for key in whole:
        with pytest.raises(RuntimeError, match="Missing key"):
            fill(empty(), {name: value for name, value in whole.items() if name != key})
