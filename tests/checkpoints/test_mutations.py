"""Files with seeded damage: each is read or refused as a checkpoint, and nothing else is raised."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfs_deploy.checkpoints import load_checkpoint, save_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.preprocessing import InputContract
from tests.builders import release_state_dict, skipnet_state_dict, small_network

FORMATS: dict[str, Callable[[Path], None]] = {
    "ours": lambda path: save_checkpoint(path, small_network(), InputContract((3, 8, 8))),
    "release": lambda path: save(release_state_dict(), path),
    "skipnet": lambda path: save(skipnet_state_dict(), path),
}
BYTES = 120
TENSORS = 40
ODD_VALUES = (
    -1,
    0,
    2**31 - 1,
    10**30,
    0.5,
    float("nan"),
    "",
    "x" * 10_000,
    "\ud800",
    None,
    True,
    [],
    {},
    [[]],
    {"a": {}},
)
ODD_TENSORS = (
    torch.zeros(()),
    torch.zeros(0),
    torch.full((4,), torch.nan),
    torch.zeros(2, 2, dtype=torch.complex64),
    torch.zeros(3, dtype=torch.int8),
    torch.zeros(1).expand(4, 4),
)


def save(state: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)


def read(path: Path) -> bool:
    """Whether a file is read; raises whatever is no CheckpointError of one bounded line."""
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        assert str(error).isprintable()
        assert 0 < len(str(error)) <= 1200
        return False
    return True


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    FORMATS[kind](path)
    assert read(path)
    whole, draw = path.read_bytes(), random.Random(0)  # noqa: S311 (a seeded draw)
    described = len(whole) if suffix == ".pt" else int.from_bytes(whole[:8], "little") + 8
    refused = 0
    for _ in range(BYTES):
        damaged = bytearray(whole)
        # Of an archive, its pickle and its list of members; of other files, the header.
        end = draw.choice((described, min(described, 12_000)))
        at_end = suffix == ".pt" and draw.random() < 0.3
        at = draw.randrange(len(whole) - 8000, len(whole)) if at_end else draw.randrange(end)
        match draw.randrange(4):
            case 0:
                damaged[at] = draw.randrange(256)
            case 1:
                damaged[at : at + draw.randrange(1, 9)] = draw.randbytes(draw.randrange(9))
            case 2:
                del damaged[at : at + draw.randrange(1, 200)]
            case _:
                damaged[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
        path.write_bytes(damaged)
        refused += not read(path)
    assert refused > BYTES // 4


def mutate(holder: dict[Any, Any], draw: random.Random) -> None:
    """Changes, drops, doubles or renames one thing in a nest of dicts and lists."""
    current: Any = holder
    while True:
        key = draw.choice(list(current) if isinstance(current, dict) else range(len(current)))
        value = current[key]
        if isinstance(value, dict | list) and value and draw.random() < 0.9:
            current = value
            continue
        odd = ODD_TENSORS if isinstance(value, Tensor) else ODD_VALUES
        match draw.randrange(4):
            case 0 if isinstance(current, dict):
                del current[key]
            case 1 if isinstance(current, dict) and isinstance(key, str):
                current[draw.choice(("module.", "ema.", "_orig_mod.", "\x1b[2J")) + key] = current.pop(key)
            case 2 if isinstance(current, list):
                current.extend(current * draw.choice((1, 50)))
            case 2 if isinstance(value, Tensor):
                current[key] = draw.choice([other for other in current.values() if isinstance(other, Tensor)])
            case _:
                current[key] = copy.deepcopy(draw.choice(odd))
        return


@pytest.mark.parametrize("kind", FORMATS)
def test_other_values(tmp_path: Path, kind: str) -> None:
    path, draw = tmp_path / "net.pt", random.Random(1)  # noqa: S311 (a seeded draw)
    FORMATS[kind](path)
    whole = torch.load(path, weights_only=True)
    refused = 0
    for _ in range(TENSORS):
        content = copy.deepcopy(whole)
        mutate(content, draw)
        torch.save(content, path)
        refused += not read(path)
    assert refused > TENSORS // 4


@pytest.mark.parametrize("kind", FORMATS)
def test_other_tensors_of_safetensors(tmp_path: Path, kind: str) -> None:
    path, draw = tmp_path / "net.safetensors", random.Random(2)  # noqa: S311 (a seeded draw)
    FORMATS[kind](path)
    state = load_file(path)
    for _ in range(TENSORS):
        changed: dict[str, Any] = dict(state)
        mutate(changed, draw)
        held = {key: value.clone().contiguous() for key, value in changed.items() if isinstance(value, Tensor)}
        save_file({key: value for key, value in held.items() if key.isprintable()}, path)
        read(path)
