"""Labelled images from disk, without PyTorch.

The content of a path decides how it is read: an ``.npz`` with ``x`` and ``y``, a folder of images by class, or the
folder of an unpacked CIFAR-10 or CIFAR-100 archive (python or binary version). Nothing in a file is executed: object
arrays are refused, and the pickles of CIFAR's python version are read with inert stand-ins for the few NumPy names
that they use.
"""

from dfs_deploy.data.dataset import AnyImages, Dataset, ImageFolder, Split
from dfs_deploy.data.folders import IMAGE_SUFFIXES, list_images
from dfs_deploy.data.images import decode_image, load_image
from dfs_deploy.data.loading import load_dataset, open_dataset, splits_of
from dfs_deploy.data.npz import save_npz
from dfs_deploy.data.video import VIDEO_SUFFIXES, read_camera, read_video

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "AnyImages",
    "Dataset",
    "ImageFolder",
    "Split",
    "decode_image",
    "list_images",
    "load_dataset",
    "load_image",
    "open_dataset",
    "read_camera",
    "read_video",
    "save_npz",
    "splits_of",
]
