from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dfs_deploy.data import load_dataset
from dfs_deploy.errors import DataError
from tests.checks import MakesFolder, refuses
from tests.data.cifar_archives import cifar10_python


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_batch_that_would_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int, name: str) -> None:
    folder, marker = cifar10_python(tmp_path / "cifar"), tmp_path / "marker"
    payload = pickle.dumps({"data": MakesFolder(marker)}, protocol)
    (folder / name).write_bytes(payload)
    with refuses(DataError, name, "posix.mkdir", "nothing was run"):
        load_dataset(folder)
    assert not marker.exists()
    pickle.loads(payload)  # noqa: S301 (shows that it would have)
    assert marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n",
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy._core.multiarray\n_reconstruct.__globals__\n",
        b"c_codecs\ndecode\n",
        b"ccopyreg\n_reconstructor\n",
        b"cdfs_deploy.datasets\nload_image\n",
    ],
)
def test_every_other_name_is_refused_and_said(tmp_path: Path, code: bytes) -> None:
    module, name = code[1:].decode().split()
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(b"\x80\x02" + code + b".")
    with refuses(DataError, "test_batch", f"{module}.{name}"):
        load_dataset(folder)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nndarray\nN}U\x08__call__K\x01s\x86b.",  # state for a name
        b"cnumpy\nndarray\n)\x81.",  # a new object of it
        b"cnumpy\ndtype\nU\x01O\x85R.",  # objects
        b"cnumpy\ndtype\n)R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",  # another codec
        b"c_codecs\nencode\nK\x01K\x02\x86R.",
        ARRAY + b"(K\x01tb.",  # too short a state
        ARRAY + b"Nb.",
        ARRAY + b"(K\x01K\x05K\x01\x86cnumpy\ndtype\nU\x02u1\x85R\x89U\x02abtb.",  # another shape than there are bytes
        ARRAY + b"(K\x01K\x02\x85K\x07\x89U\x02abtb.",  # no type
        ARRAY + b".",
        b"\x82\x01.",  # an extension
        b"U\x01aQ.",  # a persistent id
        b"(.",
        b"}U\x01a.",
        b"Nr\xff\xff\xff\x7f.",  # the unpickler would make room for 2**31 memo entries
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes without end
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame without end
        b"]" * 100_000 + b".",
        b"(" * 100_000 + b".",
        b")" + b"q\x00h\x00\x86" * 50 + b".",
        b"\x8f.",  # a set, which hashes what is in it
        b"N2.",  # a second reference
    ],
)
def test_forged_pickles_are_refused(tmp_path: Path, code: bytes) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    (folder / "test_batch").write_bytes(b"\x80\x02" + code)
    with refuses(DataError, "test_batch"):
        load_dataset(folder)


def test_a_key_whose_hash_never_ends_is_refused(tmp_path: Path) -> None:
    """A tuple that holds another one twice, which holds another one twice: 2**60 steps."""
    folder = cifar10_python(tmp_path / "cifar")
    nested = b"K\x01\x85q\x00"
    for index in range(60):
        nested += b"h" + bytes([index]) + b"h" + bytes([index]) + b"\x86q" + bytes([index + 1])
    (folder / "test_batch").write_bytes(b"\x80\x02" + nested + b"}h" + bytes([60]) + b"K\x01s.")
    with refuses(DataError, "test_batch", "keys that are neither text nor numbers"):
        load_dataset(folder)


def test_files_of_endless_size_are_refused_unread(tmp_path: Path) -> None:
    folder = cifar10_python(tmp_path / "cifar")
    for name, size in (("test_batch", 1 << 36), ("batches.meta", 1 << 36)):
        before = (folder / name).read_bytes()
        with (folder / name).open("r+b") as stream:
            stream.truncate(size)
        with refuses(DataError, name, "68,719,476,736 bytes"):
            load_dataset(folder)
        (folder / name).write_bytes(before)
