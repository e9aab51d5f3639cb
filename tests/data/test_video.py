from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.data import read_camera, read_video, video
from dfs_deploy.errors import DataError, EnvironmentLacksError, MissingExtraError
from dfs_deploy.geometry import resize
from tests.checks import refuses
from tests.data.pictures import pixels, save_clip

av = pytest.importorskip("av")


def test_every_frame_comes_in_order_without_loss(tmp_path: Path) -> None:
    frames = pixels(5, 12, 16, 3)
    read = list(read_video(save_clip(tmp_path / "clip.mkv", frames)))
    np.testing.assert_array_equal(read, frames)
    assert read[0].dtype == np.uint8


def test_frames_are_resized_as_images_are(tmp_path: Path) -> None:
    frames = pixels(2, 12, 16, 3)
    read = list(read_video(save_clip(tmp_path / "clip.avi", frames), size=(6, 5)))
    np.testing.assert_array_equal(read, [resize(frame, (6, 5)) for frame in frames])


def test_a_turned_frame_is_set_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's rotation is counterclockwise, and what a phone's display matrix says."""
    frames = pixels(1, 12, 16, 3)
    path = save_clip(tmp_path / "clip.mkv", frames)

    class Turned:
        rotation = -90

        def __init__(self, frame: Any) -> None:
            self.to_ndarray = frame.to_ndarray

    class Container:
        def __init__(self, *words: Any, **options: Any) -> None:
            self.opened = open_container(*words, **options)
            self.streams = self.opened.streams

        def __enter__(self) -> Container:
            return self

        def __exit__(self, *_: object) -> None:
            self.opened.close()

        def decode(self, stream: Any) -> Any:
            return map(Turned, self.opened.decode(stream))

    open_container = av.open
    monkeypatch.setattr(av, "open", Container)
    np.testing.assert_array_equal(list(read_video(path)), [np.rot90(frames[0], -1)])


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "nothing.mp4").touch()
    for name in ("text.mp4", "nothing.mp4"):
        with refuses(DataError, name, "damaged"):
            list(read_video(tmp_path / name))
    for path in (tmp_path, tmp_path / "none.mp4"):
        with refuses(DataError, str(path), "no video file"):
            list(read_video(path))


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{clip}'\n"],
)
def test_a_playlist_leads_nowhere(tmp_path: Path, playlist: str) -> None:
    save_clip(tmp_path / "clip.mkv", pixels(2, 8, 8, 3))
    for name in ("list.mp4", "list.ts", "list.m3u8"):
        (tmp_path / name).write_text(playlist.format(clip="clip.mkv"))
        with refuses(DataError, name):
            list(read_video(tmp_path / name))


def test_a_cut_video_gives_what_lies_before_the_cut(tmp_path: Path) -> None:
    frames = pixels(40, 32, 32, 3)
    path = save_clip(tmp_path / "clip.mkv", frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read: list[Any] = []
    try:
        read.extend(read_video(path))  # keeps what came before an error
    except DataError as error:
        assert "clip.mkv" in str(error)
        assert "\n" not in str(error)
    assert 0 < len(read) < 40
    np.testing.assert_array_equal(read, frames[: len(read)])


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    with refuses(EnvironmentLacksError, "/dev/video987"):
        list(read_camera("987"))
    with refuses(EnvironmentLacksError, str(tmp_path / "none")):
        list(read_camera(str(tmp_path / "none")))


def test_a_camera_is_opened_through_video4linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = pixels(3, 8, 8, 3)
    path = save_clip(tmp_path / "clip.mkv", frames)
    open_container, opened = av.open, []

    def camera(device: str, format: str) -> Any:
        opened.append((device, format))
        return open_container(str(path))

    monkeypatch.setattr(av, "open", camera)
    np.testing.assert_array_equal(list(read_camera("2")), frames)
    assert opened == [("/dev/video2", "v4l2")]


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_clip(tmp_path / "clip.mkv", pixels(1, 8, 8, 3))
    monkeypatch.setitem(sys.modules, "av", None)
    for frames in (read_video(path), read_camera("0")):
        with pytest.raises(MissingExtraError, match=r"\[video\]"):
            list(frames)


def test_frames_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_clip(tmp_path / "clip.mkv", pixels(2, 12, 16, 3))
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 12 * 16 - 1)
    with refuses(DataError, "clip.mkv"):
        list(read_video(path))
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 12 * 16)
    assert len(list(read_video(path))) == 2


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    with refuses(DataError, "no video file"):
        list(read_video(tmp_path / "clip.mp4"))


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mkv")
    save_clip(tmp_path / "clip.mkv", pixels(2, 8, 8, 3)).rename(path)
    assert len(list(read_video(path))) == 2


def test_a_damaged_video_is_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    path, random = tmp_path / "clip.mkv", np.random.default_rng(0)
    for suffix, codec in ((".mp4", "mpeg4"), (".ts", "mpeg2video"), (".avi", None)):
        whole = encode(tmp_path / f"clip{suffix}", codec)
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(int(random.integers(1, 5))):
                damaged[int(random.integers(min(len(whole), 600)))] = int(random.integers(256))
            path.write_bytes(damaged)
            try:
                list(read_video(path, (4, 4)))
            except DataError as error:
                assert "\n" not in str(error)


def encode(path: Path, codec: str | None) -> bytes:
    frames = pixels(4, 32, 48, 3)
    if codec is None:
        return save_clip(path, frames).read_bytes()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()
