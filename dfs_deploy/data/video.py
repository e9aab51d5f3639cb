"""Frames of a video file or a camera, decoded on demand by PyAV, which contains FFmpeg's libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data.image_headers import MAX_HEAVY_PIXELS
from dfs_deploy.data.images import Size, geometry_of
from dfs_deploy.errors import DataError, EnvironmentLacksError
from dfs_deploy.io.text import first_line
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from av.container import InputContainer

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
"""Endings of video files, in small or capital letters."""

# FFmpeg also reads playlists, which lead to other files and to the network. These formats contain their own frames, and
# a file may not open another.
_ONE_FILE = {"protocol_whitelist": "file", "format_whitelist": "avi,matroska,webm,mov,mp4,mpeg,mpegts"}

MAX_FRAME_PIXELS = MAX_HEAVY_PIXELS
"""Most pixels of a frame, a little more than 8K (7680 x 4320). Decoders keep up to 17 frames at 1.5 bytes per pixel."""


def read_video(path: str | Path, size: Size = None) -> Iterator[NDArray[np.uint8]]:
    """Decodes the first video stream of a file; frames are turned upright as the file says.

    Args:
        path: an AVI, Matroska, MP4, QuickTime, MPEG or WebM file, with frames of at most ``MAX_FRAME_PIXELS``.
        size: height and width to resize to, in pixels, see ``load_image``; ``None`` keeps the
            video's own.

    Yields:
        One frame, (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing, no regular file, of another format, damaged (frames before the damage are
            yielded), or has no frames or too large ones.
        MissingExtraError: PyAV is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no video file; give an AVI, Matroska, MP4, QuickTime, MPEG or WebM file")
    with required():
        import av

    frames = 0
    try:
        options = _ONE_FILE | {"max_pixels": str(MAX_FRAME_PIXELS)}
        with av.open(f"file:{path}", options=options, metadata_errors="backslashreplace") as container:
            for frame in _frames(container, str(path), size):
                yield frame
                frames += 1
    except DataError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        seen = first_line(error) + (f", after {frames} frames" if frames else "")
        raise DataError(f"{path} is no video, or a damaged one ({seen}); convert it or remove it") from error
    if frames == 0:
        raise DataError(f"{path} has no frames; remove it")


def read_camera(device: str, size: Size = None) -> Iterator[NDArray[np.uint8]]:
    """Reads a camera through Video4Linux, frame by frame, until the caller stops.

    Args:
        device: a number, such as ``0`` for ``/dev/video0``, or the path of a device.
        size: height and width to resize to, see ``read_video``.

    Yields:
        One frame, (H, W, 3) uint8, RGB.

    Raises:
        EnvironmentLacksError: the camera does not exist or gives no frames.
        MissingExtraError: PyAV is not installed.
    """
    path = f"/dev/video{device}" if device.isascii() and device.isdigit() else device
    with required():
        import av

    try:
        with av.open(path, format="v4l2") as container:
            yield from _frames(container, path, size)
    except av.FFmpegError as error:
        raise EnvironmentLacksError(
            f"camera {path} cannot be read ({error.strerror}); check that it exists, is not in use, and may be read"
        ) from error


def _frames(container: InputContainer, name: str, size: Size) -> Iterator[NDArray[np.uint8]]:
    geometry = geometry_of(size)
    if not container.streams.video:
        raise DataError(f"{name} has no video stream; give a video")
    codec = container.streams.video[0].codec_context
    if codec is None:
        raise DataError(f"{name} has video of an unknown codec; convert it")
    if codec.width * codec.height > MAX_FRAME_PIXELS:
        seen = f"{name} has frames of {codec.width}x{codec.height} pixels"
        raise DataError(f"{seen}, expected at most {MAX_FRAME_PIXELS:,}; shrink it first")
    for frame in container.decode(container.streams.video[0]):
        pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        quarters = round(frame.rotation / 90)  # counterclockwise, as the display matrix says
        upright = np.ascontiguousarray(np.rot90(pixels, quarters))
        yield upright if geometry is None else geometry(upright)
