"""Small sound files of every kind, made by the tests' own builders."""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.models import DFSNetwork
from dfs_deploy.preprocessing import InputContract
from tests import bundles
from tests.builders import (
    older_content,
    release_state_dict,
    save_older,
    save_release,
    skipnet_imagenet_state_dict,
    skipnet_state_dict,
    small_network,
)
from tests.bundles import CONTRACT, Made
from tests.data import cifar_archives
from tests.data.pictures import dataset, pixels
from tests.nets import SIZE, adapted

ADAPTED_CONTRACT = InputContract((3, *SIZE), resize=16)


class Corpus:
    """Makes each kind of file when it is first asked for, in a folder.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, name: str) -> Path:
        """A new folder; named as pytest's factory has it, so that ``tests.bundles`` can use it."""
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder

    def bundle(self, name: str) -> Made:
        """A bundle of ``tests.bundles``: ``mixed``, ``wide``, ``floats`` or ``static``; or ``short``, of two blocks."""
        make = {
            "short": lambda factory: bundles.made("short", factory, _short_network),
            "mixed": bundles.mixed_bundle,
            "wide": bundles.wide_bundle,
            "floats": bundles.float_bundle,
            "static": bundles.static_bundle,
        }[name]
        return make(self)  # type: ignore[arg-type]

    @functools.cached_property
    def checkpoints(self) -> dict[str, Path]:
        """A checkpoint of each format in each kind of file."""
        folder = self.mktemp("checkpoints")
        network = small_network()
        release, skipnet = release_state_dict(), skipnet_state_dict()
        made = {
            name: folder / name
            for name in ("native.pt", "native.safetensors", "policy.pt", "adapted.pt", "adapted.safetensors")
        }
        save_checkpoint(made["native.pt"], network, CONTRACT)
        save_checkpoint(made["native.safetensors"], network, CONTRACT)
        save_checkpoint(made["policy.pt"], small_network().with_policy([1, 0]), CONTRACT)
        made["release.pth.tar"] = save_release(folder / "release.pth.tar", release)
        made["skipnet.pth.tar"] = save_release(folder / "skipnet.pth.tar", skipnet)
        made["skipnet-bare.pt"] = folder / "skipnet-bare.pt"
        torch.save(skipnet, made["skipnet-bare.pt"])
        for name, state in (("release-old.pt", release), ("skipnet-old.pt", skipnet)):
            made[name] = folder / name
            torch.save({"iter": 1, "state_dict": state}, made[name], _use_new_zipfile_serialization=False)
        save_checkpoint(made["adapted.pt"], adapted("mobile"), ADAPTED_CONTRACT)
        save_checkpoint(made["adapted.safetensors"], adapted("basic", gate="stateless"), ADAPTED_CONTRACT)
        made["imagenet.pth.tar"] = save_release(folder / "imagenet.pth.tar", skipnet_imagenet_state_dict())
        for name in ("older.pt", "older.safetensors"):
            made[name] = save_older(folder / name, older_content(network, CONTRACT))
        made["native-old.pt"] = folder / "native-old.pt"
        content = torch.load(made["native.pt"], weights_only=True)
        torch.save(content, made["native-old.pt"], _use_new_zipfile_serialization=False)
        made["skipnet.safetensors"] = folder / "skipnet.safetensors"
        from safetensors.torch import save

        plain = {key: value.clone() for key, value in skipnet.items()}
        made["skipnet.safetensors"].write_bytes(save(plain))
        return made

    @functools.cached_property
    def archives(self) -> dict[str, Path]:
        """An ``.npz`` of each kind."""
        folder = self.mktemp("archives")
        made = {name: folder / f"{name}.npz" for name in ("ours", "plain", "splits")}
        save_npz(made["ours"], dataset())
        np.savez(made["plain"], x=pixels(4, 8, 8, 3), y=np.arange(4))
        splits = {f"{split}_{part}": array for split in ("train", "test") for part, array in _pair(split).items()}
        np.savez_compressed(made["splits"], **splits)  # type: ignore[arg-type]
        return made

    @functools.cached_property
    def images(self) -> dict[str, Path]:
        """An image of every kind that is read."""
        folder = self.mktemp("images")
        made = {}
        for name, content in _images():
            made[name] = folder / name
            made[name].write_bytes(content)
        return made

    @functools.cached_property
    def cifar(self) -> dict[str, Path]:
        """An archive of each kind."""
        folder = self.mktemp("cifar")
        made = {
            name: getattr(cifar_archives, name)(folder / name)
            for name in ("cifar10_python", "cifar10_binary", "cifar100_python", "cifar100_binary")
        }
        made["cifar10_python3"] = cifar_archives.cifar10_python(
            folder / "cifar10_python3", cifar_archives.python3_pickle
        )
        return made


@contextmanager
def made_corpus() -> Iterator[Corpus]:
    """A corpus in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="dfs-corpus-")).resolve()
    try:
        yield Corpus(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_network() -> DFSNetwork:
    """Channels in sixteens, as ``wide``, and one gated block."""
    network = bundles.settled_network(widths=(16,))
    bundles.rig_gate(network, [bundles.Split(1, 2)], bundles.normal_images(64))
    return network


def _pair(split: str) -> dict[str, Any]:
    return {"x": pixels(3, 4, 4, 3, seed=len(split)), "y": np.arange(3, dtype=np.uint8)}


def _images() -> Iterator[tuple[str, bytes]]:
    noise = Image.fromarray(pixels(24, 20, 3))
    smooth = Image.linear_gradient("L").resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif[0x010E] = "a description"

    def made(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    yield "rgb.png", made(noise, "PNG")
    yield "grey.png", made(smooth, "PNG", exif=exif)
    yield "bit.png", made(smooth.convert("1"), "PNG")
    yield "palette.png", made(noise.convert("P"), "PNG", transparency=0)
    yield "alpha.png", made(noise.convert("RGBA"), "PNG")
    yield "deep.png", made(smooth.convert("I;16"), "PNG")
    yield "frames.png", made(noise, "PNG", save_all=True, append_images=[noise.rotate(90)])
    yield "baseline.jpg", made(noise, "JPEG", exif=exif, dpi=(72, 72))
    yield "progressive.jpg", made(noise, "JPEG", progressive=True, exif=exif)
    yield "grey.jpg", made(smooth, "JPEG", restart_marker_blocks=2)
    yield "cmyk.jpg", made(noise.convert("CMYK"), "JPEG")
    yield "rgb.bmp", made(noise, "BMP")
    yield "palette.bmp", made(noise.convert("P"), "BMP")
    yield "bit.bmp", made(smooth.convert("1"), "BMP")
    yield "rgb.ppm", made(noise, "PPM")
    yield "grey.pgm", made(smooth, "PPM")
    yield "bit.pbm", made(smooth.convert("1"), "PPM")
    yield "text.ppm", b"P3\n# text\n2 2 255\n" + b"10 20 30 " * 4
    yield "lossy.webp", made(noise, "WEBP", exif=exif)
    yield "lossless.webp", made(noise.convert("RGBA"), "WEBP", lossless=True)
    yield "frames.webp", made(noise, "WEBP", save_all=True, append_images=[noise.rotate(90)])
