"""Checkpoints made to exhaust memory or time: each is refused in a child process, which counts what it took."""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.preprocessing import InputContract
from tests.builders import older_content, save_older, skipnet_state_dict, small_network

ARCHITECTURE = {"groups": [1, 1, 1], "widths": [4, 8, 16], "classes": 10, "image_shape": [3, 8, 8]}
MOST_MIB = 256
MOST_CPU_S = 60

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ%stQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"\x89ccollections\nOrderedDict\n)Rt"
VALUES = ("a/data/0", b"\0" * 40)


def storage(items: int) -> bytes:
    return STORAGE.replace(b"%s", struct.pack("<i", items))


def tensor(items: int, extent: int, stride: int) -> bytes:
    """A pickle of a dict with a tensor over a storage of 40 bytes."""
    view = b"K\0J" + struct.pack("<i", extent) + b"\x85J" + struct.pack("<i", stride) + b"\x85"
    return b"\x80\x02}X\x01\0\0\0w" + REBUILD + b"(" + storage(items) + view + HOOKS + b"Rs."


def zipped(path: Path, pickled: bytes, *members: tuple[str, bytes], compress: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in (("a/data.pkl", pickled), ("a/byteorder", b"little"), ("a/version", b"3\n"), *members):
            archive.writestr(name, content)


def older(**change: Any) -> Callable[[Path], None]:
    content = {**older_content(small_network(), InputContract((3, 8, 8))), **change}
    return lambda path: save_older(path, content) and None


def architecture(**change: Any) -> Callable[[Path], None]:
    return older(architecture={**ARCHITECTURE, **change})


def ours(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A file of the newest version whose description was edited."""

    def make(path: Path) -> None:
        save_checkpoint(path, small_network(), InputContract((3, 8, 8)))
        content = torch.load(path, weights_only=True)
        description = json.loads(content["network"])
        edit(description)
        torch.save({**content, "network": json.dumps(description)}, path)

    return make


def first_conv(description: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = description["graphs"]["stem"]["nodes"][0]["attributes"]
    return attributes


def relus(description: dict[str, Any], count: int) -> None:
    """A stem that ends in a chain of relus, and then gives what it has not got: all of it is looked at."""
    stem = description["graphs"]["stem"]
    names = [stem["output"], *(f"r{number}" for number in range(count))]
    stem["nodes"] += [
        {"name": name, "operator": "relu", "inputs": [before]} for before, name in itertools.pairwise(names)
    ]
    stem["output"] = names[-1]
    description["architecture"]["classes"] += 1


def pads(description: dict[str, Any], count: int) -> None:
    """A stem whose maps grow with each of many nodes."""
    stem = description["graphs"]["stem"]
    names = [stem["output"], *(f"p{number}" for number in range(count))]
    pads = {"pads": [0, 4096, 4096, 0, 4096, 4096]}
    stem["nodes"] += [
        {"name": name, "operator": "pad", "inputs": [before], "attributes": pads}
        for before, name in itertools.pairwise(names)
    ]
    stem["output"] = names[-1]


def many_blocks(description: dict[str, Any]) -> None:
    graphs, architecture = description["graphs"], description["architecture"]
    relu = {"name": "r", "operator": "relu", "inputs": ["input"]}
    for number in range(5000):
        branch = {"nodes": [{**relu, "name": f"r{number}"}], "output": f"r{number}"}
        graphs["blocks"].append({"name": f"b{number}", "branch": branch, "shortcut": None})
        architecture["blocks"].append({**architecture["blocks"][-1], "index": len(architecture["blocks"])})


def wide_gate(description: dict[str, Any]) -> None:
    description["architecture"]["gate"].update(embedding=4096, hidden=4096)


def wide_key(number: int) -> bytes:
    """An integer that is a multiple of what Python's hashes are modulo to."""
    value = (number * ((1 << 61) - 1) << 61).to_bytes(24, "little")
    return b"\x8a" + bytes([len(value)]) + value


def torn_legacy(path: Path) -> None:
    torch.save({"w": torch.ones(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\nN") == 1
    path.write_bytes(content.replace(b"K\nN", b"J\xff\xff\xff\x7fN"))


def unlisted_legacy(path: Path) -> None:
    """The storage of a tensor is not among those that follow: torch.load would leave it as memory happens to be."""
    torch.save({"w": torch.ones(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    keys = content.rindex(b"\x80\x02]")
    path.write_bytes(content[:keys] + b"\x80\x02].")


def shared_lists(levels: int = 40) -> bytes:
    """Instructions that make a list of ten times a list of ten times a list ..."""
    return b"]q\0" + (b"](" + b"h\0" * 10 + b"eq\0") * levels


def shared(path: Path, kind: type) -> None:
    """Values of an architecture that hold one value ten times, and that one another ten times, and so on."""
    made: Any = 1
    for _ in range(40):
        made = dict.fromkeys("abcdefghij", made) if kind is dict else kind([made] * 10)
    architecture(groups=made)(path)


def shared_legacy(path: Path) -> None:
    torch.save({"w": torch.ones(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    keys = content.rindex(b"\x80\x02]")
    path.write_bytes(content[:keys] + b"\x80\x02](" + shared_lists() + b"e.")


def safetensors(header: dict[str, Any], body: bytes = b"") -> Callable[[Path], None]:
    encoded = json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body) and None


def entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


MADE: dict[str, Callable[[Path], None]] = {
    "many blocks": architecture(groups=[100_000, 2, 2]),
    "blocks without tensors": architecture(groups=[900, 1, 1]),
    "many groups": architecture(groups=[1] * 100_000, widths=[4] * 100_000),
    "a wide gate": architecture(gate_embedding=10**7),
    "a gate as wide as can be": architecture(gate_embedding=2**20, gate_hidden=2**20),
    "a gate without end": architecture(gate_embedding=10**30),
    "wide groups": architecture(widths=[2**20] * 3),
    "many classes": architecture(classes=10**9),
    "large images": older(
        architecture={**ARCHITECTURE, "image_shape": [3, 10**6, 10**6]},
        input={"shape": [3, 10**6, 10**6], "mean": [0.5] * 3, "std": [0.5] * 3, "class_names": []},
    ),
    "many options": older(options=list(range(100_000))),
    "a long policy": older(policy=["full"] * 100_000),
    "many class names": older(
        input={"shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "class_names": ["x" * 50] * 100_000}
    ),
    "a graph whose padding has no end": ours(lambda made: first_conv(made).update(padding=[4096] * 4)),
    "a graph whose padding is larger than any": ours(lambda made: first_conv(made).update(padding=[1 << 40] * 4)),
    "a graph with a number without end": ours(
        lambda made: made["graphs"]["stem"]["nodes"][1]["attributes"].update(epsilon=10**400)
    ),
    "a graph with a shift without end": ours(
        lambda made: made["graphs"]["stem"]["nodes"][2].update(
            operator="affine", attributes={"scale": 1.0, "shift": -(10**400)}
        )
    ),
    "a graph with multiply-adds without end": ours(lambda made: made["architecture"]["blocks"][1].update(macs=1 << 53)),
    "a graph with aliases in a circle": ours(
        lambda made: made.update(aliases=dict(itertools.pairwise([*made["tensors"], made["tensors"][0]])))
    ),
    "a graph of many nodes": ours(lambda made: relus(made, 10_000)),
    "a graph of more nodes than any": ours(lambda made: relus(made, 70_000)),
    "a graph whose maps grow": ours(lambda made: pads(made, 1000)),
    "a graph of many blocks": ours(many_blocks),
    "a graph with a wide gate": ours(wide_gate),
    "a graph with a name without end": ours(lambda made: made["tensors"].append("a." * 1_000_000)),
    "a graph with many names": ours(lambda made: made["tensors"].extend(f"a{n}" for n in range(100_000))),
    "a graph with an image without end": ours(
        lambda made: made["architecture"].update(image_shape=[65535, 1024, 1024])
    ),
    "a storage larger than its member": lambda path: zipped(path, tensor(2**31 - 1, 10, 1), VALUES),
    "a tensor larger than its storage": lambda path: zipped(path, tensor(10, 2**31 - 1, 1), VALUES),
    "a tensor of one value without end": lambda path: zipped(path, tensor(10, 2**31 - 1, 0), VALUES),
    "compressed values": lambda path: zipped(
        path, tensor(2**26, 2**26, 1), ("a/data/0", b"\0" * 2**28), compress=zipfile.ZIP_DEFLATED
    ),
    "many members": lambda path: zipped(
        path, tensor(10, 10, 1), VALUES, *((f"a/data/{n}", b"") for n in range(1, 20_000))
    ),
    "a member twice": lambda path: zipped(path, tensor(10, 10, 1), VALUES, VALUES),
    "many tensors": lambda path: zipped(
        path,
        b"\x80\x02"
        + REBUILD
        + b"q\1("
        + storage(10)
        + b"K\0K\x0a\x85K\1\x85"
        + HOOKS
        + b"q\2R]("
        + b"h\1h\2R" * 150_000
        + b"e.",
        VALUES,
    ),
    "an allocation": lambda path: zipped(path, b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
    "a tensor by its size": lambda path: zipped(path, b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R."),
    "a far memo": lambda path: zipped(path, b"\x80\x02Nr\xff\xff\xff\x7f."),
    "nested keys": lambda path: zipped(path, b"\x80\x02N\x85q\0" + b"h\0h\0\x86q\0" * 60 + b"}h\0Ns."),
    "keys that collide": lambda path: zipped(
        path, b"\x80\x02}(" + b"".join(wide_key(n) + b"N" for n in range(1, 100_000)) + b"u."
    ),
    "a list copied over and over": lambda path: zipped(
        path, b"\x80\x02](" + b"K\1K\1\x86" * 60_000 + b"eq\1](" + b"ccollections\nOrderedDict\nh\1\x85R" * 5000 + b"e."
    ),
    "many values": lambda path: zipped(path, b"\x80\x02(" + b"N" * 8_000_000 + b"t."),
    **{
        f"a {kind.__name__} shared without end": lambda path, kind=kind: shared(path, kind)
        for kind in (list, tuple, dict)
    },
    "an old list of storages shared without end": shared_legacy,
    "a name of lists shared without end": lambda path: zipped(path, b"\x80\x02" + shared_lists() + b"h\0\x93."),
    "deep lists": lambda path: zipped(path, b"\x80\x02" + b"]" * 400_000 + b"a" * 150_000 + b"."),
    "deep dicts": lambda path: zipped(path, b"\x80\x02" + b"}N" * 100_000 + b"N" + b"s" * 100_000 + b"."),
    "a pickle without end": lambda path: zipped(path, b"\x80\x02X" + struct.pack("<I", 2**31) + b"a" * 2**24),
    "an old storage larger than the file": torn_legacy,
    "an old storage that is not there": unlisted_legacy,
    "tensors over each other": safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8),
    "a tensor beyond the file": safetensors({"a": entry([10**9], 0, 8)}, b"\0" * 8),
    "empty tensors without end": safetensors({f"k{n}": entry([0], 0, 0) for n in range(60_000)}),
    "networks without end": safetensors({f"p{n}.control.proj.weight": entry([0], 0, 0) for n in range(40_000)}),
    "deep metadata": safetensors({"__metadata__": {"dfs_deploy": "[" * 1_000_000}}),
    "a header without end": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}") and None,
}

CHILD = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (%d, %d))
from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import CheckpointError
def most_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = most_kib()
for path in map(Path, sys.argv[1:]):
    try:
        load_checkpoint(path)
        print("READ", path.stem)
    except CheckpointError as error:
        assert len(str(error)) < 1300 and str(error).isprintable(), path
    if most_kib() - before > %d << 10:
        sys.exit(f"{path.stem} took {(most_kib() - before) >> 10} MiB")
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory a process took")
def test_hostile_checkpoints_are_refused_for_little_memory_and_time(tmp_path: Path) -> None:
    paths = []
    for name, make in MADE.items():
        paths.append(tmp_path / f"{name}.pt")
        make(paths[-1])
    code = CHILD % (MOST_CPU_S, MOST_CPU_S, MOST_MIB)
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def test_what_they_are_made_of_is_read_otherwise(tmp_path: Path) -> None:
    """So that the refusals above are for what is planted."""
    path = tmp_path / "net.pt"
    zipped(path, tensor(10, 10, 1), VALUES)
    assert torch.load(path, weights_only=True)["w"].shape == (10,)
    code = CHILD % (MOST_CPU_S, MOST_CPU_S, MOST_MIB)
    sound = [tmp_path / "ours.pt", tmp_path / "skipnet.pt", tmp_path / "old.pt"]
    architecture()(sound[0])
    torch.save(skipnet_state_dict(), sound[1])
    torch.save(skipnet_state_dict(), sound[2], _use_new_zipfile_serialization=False)
    ran = subprocess.run([sys.executable, "-c", code, *sound], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "READ ours\nREAD skipnet\nREAD old\ndone\n"), ran.stderr
