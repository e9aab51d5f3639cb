"""Images and labels: ``.npz``, folders, CIFAR archives, single images."""

from __future__ import annotations

import os
from pathlib import Path

from dfs_deploy.data import decode_image, load_dataset, load_image
from tests.data.pictures import class_folder
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.archives import mutate_npz
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.images import mutate_image
from tests.fuzz.mutators.pickles import mutate_pickle
from tests.fuzz.mutators.raw import mutate_bytes, odd_file
from tests.fuzz.reader import Fate, Reader, command_line, fingerprint, link_tree, replace
from tests.fuzz.readers.bundles import BUNDLE


class ArchiveReader(Reader):
    """An ``.npz`` of images and labels."""

    name = "npz"

    def __init__(self, corpus: Corpus) -> None:
        self._files = corpus.archives
        self.seeds = tuple(self._files)

    def place(self, seed: str, folder: Path) -> None:
        os.link(self._files[seed], folder / "data.npz")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / "data.npz"
        if draw.chance(0.01):
            odd_file(draw, file, named=True)
            return "refused"
        replace(file, mutate_npz(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        data = load_dataset(folder / "data.npz")
        again = data.labelled_for(max(data.labels) + 1, ())
        return fingerprint(data.images, data.labels, data.class_names, again.labels)


class ImageReader(Reader):
    """A single image, from a file and from memory, as it is and made smaller."""

    name = "image"

    def __init__(self, corpus: Corpus) -> None:
        self._files = corpus.images
        self.seeds = tuple(name for name in self._files if name != "deep.png")

    def place(self, seed: str, folder: Path) -> None:
        os.link(self._files[seed], folder / seed)

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        file = folder / seed
        if draw.chance(0.01):
            odd_file(draw, file, named=True)
            return "refused"
        replace(file, mutate_image(draw, file.read_bytes()))
        return "any"

    def read(self, folder: Path) -> str:
        file = next(folder.iterdir(), folder / "none.png")
        image = load_image(file)
        small = load_image(file, (8, 9))
        again = decode_image(file.read_bytes(), (8, 9), name="a body")
        if fingerprint(small) != fingerprint(again):
            raise AssertionError("a file and its content give different pixels")
        return fingerprint(image, small)


class FolderReader(Reader):
    """A folder of images by class, in which anything may lie."""

    name = "folder"
    seeds = ("plain", "splits")

    def __init__(self, corpus: Corpus) -> None:
        root = corpus.mktemp("folders")
        class_folder(root / "plain")
        for split in ("train", "test"):
            class_folder(root / "splits" / split)
        self._root, self._images = root, sorted(corpus.images.values())

    def place(self, seed: str, folder: Path) -> None:
        link_tree(self._root / seed, folder / "data")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        change_folder(draw, folder / "data", self._images)
        return "any"

    def read(self, folder: Path) -> str:
        data = load_dataset(folder / "data", size=(4, 4))
        named = data.labelled_for(1000, ())
        return fingerprint(data.images, data.labels, data.class_names, named.labels)


class RunReader(Reader):
    """``dfs-deploy run`` on a folder in which anything may lie, under any name: what reaches the terminal."""

    name = "run"
    seeds = ("plain",)

    def __init__(self, corpus: Corpus) -> None:
        self._root = corpus.mktemp("runs")
        class_folder(self._root / "plain", size=8)
        self._bundle = corpus.bundle("floats").path
        self._images = sorted(corpus.images.values())

    def place(self, seed: str, folder: Path) -> None:
        link_tree(self._root / seed, folder / "data")
        link_tree(self._bundle, folder / BUNDLE)

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        change_folder(draw, folder / "data", self._images)
        return "any"

    def read(self, folder: Path) -> str:
        return command_line("run", folder / BUNDLE, folder / "data")


class CifarReader(Reader):
    """An unpacked CIFAR archive, binary or python version."""

    name = "cifar"

    def __init__(self, corpus: Corpus) -> None:
        self._folders = corpus.cifar
        self.seeds = tuple(self._folders)

    def place(self, seed: str, folder: Path) -> None:
        link_tree(self._folders[seed], folder / "cifar")

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        wanted = ("test_batch", "batches.meta", "test.bin", "test", "meta", "fine_label_names.txt")
        files = [path for path in sorted((folder / "cifar").iterdir()) if path.name.startswith(wanted)]
        file = draw.choice(files)
        draw.note(file.name)
        if draw.chance(0.02):
            odd_file(draw, file)
            return "any"  # without its names, an archive is read all the same
        content = file.read_bytes()
        pickled = content[:1] == b"\x80"
        replace(file, mutate_pickle(draw, content) if pickled else mutate_bytes(draw, content))
        return "any"

    def read(self, folder: Path) -> str:
        data = load_dataset(folder / "cifar", "test")
        return fingerprint(data.images, data.labels, data.class_names)


def change_folder(draw: Draw, root: Path, images: list[Path]) -> None:
    """Puts strange entries into a folder of images, or takes some away."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        folders = [root, *(path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink())]
        folder = draw.choice(folders)
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
        kind = draw.choice(
            ("image", "image", "odd", "name", "name", "folder", "link", "remove", "hidden", "deep", "other")
        )
        draw.note(f"folder {kind} in {folder.name}")
        try:
            if kind == "image" and files:
                content = mutate_image(draw, draw.choice(images).read_bytes())
                replace(draw.choice(files), content)
            elif kind == "odd" and files:
                odd_file(draw, draw.choice(files))
            elif kind == "name" and files:
                name = draw.text().replace("/", "_").replace("\0", "").replace("\ud800", "\udc80")[:60]
                target = folder / (name + draw.choice((".png", ".PNG", "", ".mp4")))
                if not target.exists():
                    draw.choice([*files, *folders[1:]]).rename(target)
            elif kind == "folder":
                (folder / draw.choice(("empty", "0", "1", "10", "train", "val", "x" * 200, "caf\udce9"))).mkdir()
            elif kind == "link":
                goal = draw.choice(
                    (
                        str(draw.outside),
                        "..",
                        ".",
                        "/nowhere",
                        "loop",
                        "/dev/zero",
                        "/proc/self/root",
                        str(draw.outside / "secret.bin"),
                    )
                )
                (folder / draw.choice(("loop", "link.png", "link"))).symlink_to(goal)
            elif kind == "remove" and files:
                draw.choice(files).unlink()
            elif kind == "hidden":
                name = draw.choice((".DS_Store", "Thumbs.db", ".nfs0001", "__MACOSX", ".hidden.png", "desktop.ini"))
                (folder / name).write_bytes(b"x")
            elif kind == "deep":
                (folder / "/".join(["d"] * draw.choice((3, 300)))).mkdir(parents=True)
            elif kind == "other":
                (folder / draw.choice(("notes.txt", "a.png", "data_batch_1", "test.bin", "train"))).write_bytes(
                    draw.randbytes(100)
                )
        except OSError as error:
            draw.note(f"not possible: {error.strerror}")
