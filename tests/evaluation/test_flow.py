import itertools
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation import flow as flow_module
from evaluation.flow import Flow, FlowCache, FlowConfig, FlowPair, flow, flow_pair

Frame = NDArray[np.uint8]


def _texture(height: int, width: int, seed: int = 0) -> Frame:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _video(frames: int = 5, height: int = 70, width: int = 90, seed: int = 0) -> list[Frame]:
    still = _texture(height, width, seed)
    return [np.roll(still, 2 * t, 1) for t in range(frames)]


def _equal(a: list[FlowPair], b: list[FlowPair]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x, y) for p, q in pairs for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize(("height", "width"), [(240, 320), (484, 640), (501, 643)])
def test_flow_points_to_where_things_went(height: int, width: int) -> None:
    a = _texture(height, width)
    forward, backward = flow_pair(a, np.roll(a, (4, 6), (0, 1)))
    assert forward.shape == (height, width, 2)
    assert forward.dtype == np.float32
    inner = slice(30, -30)
    for found, sign in ((forward, 1), (backward, -1)):
        off = np.abs(found[inner, inner] - np.array([6, 4]) * sign)
        assert np.median(off) < 0.1
        assert np.quantile(off, 0.9) < 0.5


def test_frames_above_480_are_halved() -> None:
    config = FlowConfig()
    assert (config.size(480, 2000), config.preset(480, 2000)) == ((480, 2000), "fast")
    assert (config.size(481, 2001), config.preset(481, 2001)) == ((241, 1001), "medium")
    assert FlowConfig(above="fast", below="medium").preset(100, 100) == "medium"


def test_flow_is_the_same_whatever_opencv_threads_there_are() -> None:
    a, b = _texture(200, 300), np.roll(_texture(200, 300), 5, 1)
    before, found = cv2.getNumThreads(), []
    try:
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            found.append(flow(a, b))
            assert cv2.getNumThreads() == threads, "left as it was"
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(found[0], other) for other in found)


def test_opencv_has_one_thread_while_any_caller_is_inside() -> None:
    pin, before = flow_module._OneThread(), cv2.getNumThreads()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with pin:
            entered.set()
            leave.wait(10)

    try:
        cv2.setNumThreads(3)
        thread = threading.Thread(target=other)
        with pin:
            thread.start()
            entered.wait(10)
        assert cv2.getNumThreads() == 1
        leave.set()
        thread.join()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@settings(max_examples=40)
@given(st.integers(1, 80), st.integers(1, 200), st.sampled_from(["ultrafast", "fast", "medium"]), st.booleans())
def test_frames_of_any_size_have_finite_flow(height: int, width: int, preset: str, half: bool) -> None:
    config = FlowConfig(short_side=1 if half else 480, above=preset, below=preset)
    rng = np.random.default_rng(height * 1000 + width)
    a, b = (rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2))
    found = flow(a, b, config)
    assert found.shape == (height, width, 2)
    assert np.isfinite(found).all()


def test_equal_frames_have_no_flow() -> None:
    a = _texture(100, 120)
    assert np.abs(flow(a, a)).max() < 0.01


class Decoder:
    """A video that can be gone through any number of times, and counts how often."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self.passes = 0

    def __iter__(self) -> Iterator[Frame]:
        self.passes += 1
        return iter(self.frames)


@pytest.fixture
def cache(tmp_path: Path) -> FlowCache:
    return FlowCache(folder=tmp_path / "flow")


def _files(cache: FlowCache) -> list[Path]:
    return sorted(cache.folder.iterdir()) if cache.folder.exists() else []


def test_the_cache_gives_what_the_function_gives(cache: FlowCache) -> None:
    for height, width in ((70, 90), (500, 510)):
        video = _video(3, height, width)
        expected = [flow_pair(a, b) for a, b in itertools.pairwise(video)]
        assert _equal(list(cache.pairs(video)), expected)
        assert _equal(list(cache.pairs(video)), expected)


def test_a_video_is_computed_once(cache: FlowCache) -> None:
    video = Decoder(_video())
    first = list(cache.pairs(video))
    assert video.passes == 2, "digest and flow"
    assert _equal(list(cache.pairs(video)), first)
    assert video.passes == 3, "digest"
    assert [path.suffix for path in _files(cache)] == [".flow"]


def test_other_content_order_or_settings_are_another_file(cache: FlowCache) -> None:
    video = _video()
    other = [frame.copy() for frame in video]
    other[2][3, 4, 1] ^= 1
    for frames in (video, other, video[::-1], video[:-1]):
        list(cache.pairs(frames))
    list(FlowCache(folder=cache.folder, config=FlowConfig(below="medium")).pairs(video))
    assert len(_files(cache)) == 5


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("harm", ["cut", "flip", "grow"])
def test_a_torn_or_damaged_file_is_computed_again(cache: FlowCache, place: float, harm: str) -> None:
    video = _video()
    expected = list(cache.pairs(video))
    path = _files(cache)[0]
    whole = path.read_bytes()
    at = int(place * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.write_bytes({"cut": whole[:at], "flip": flipped, "grow": whole + b"x"}[harm])
    assert _equal(list(cache.pairs(video)), expected)
    assert path.read_bytes() == whole
    assert _files(cache) == [path]


def test_a_video_that_ends_early_the_second_time_is_not_kept(cache: FlowCache) -> None:
    class Failing(Decoder):
        def __iter__(self) -> Iterator[Frame]:
            self.passes += 1
            return iter(self.frames[: 5 if self.passes == 1 else 3])

    assert len(list(cache.pairs(Failing(_video(5))))) == 2
    assert _files(cache) == []


def test_a_file_appears_only_when_the_last_pair_is_done(cache: FlowCache) -> None:
    pairs = cache.pairs(_video())
    next(pairs)
    assert [path.suffix for path in _files(cache)] == [".part"]
    pairs.close()  # type: ignore[attr-defined]
    assert _files(cache) == []


def test_old_files_make_room_and_a_file_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    first, second, third = (_video(seed=seed) for seed in range(3))
    alone = FlowCache(folder=tmp_path / "one")
    list(alone.pairs(first))
    size = _files(alone)[0].stat().st_size
    cache = FlowCache(folder=tmp_path / "flow", max_bytes=2 * size)
    list(cache.pairs(first))
    list(cache.pairs(second))
    names = {path.name for path in _files(cache)}
    for path in _files(cache):
        os.utime(path, (1, 1) if path.name != _files(alone)[0].name else (2, 2))
    list(cache.pairs(second))  # older, and used last
    list(cache.pairs(third))
    left = {path.name for path in _files(cache)}
    assert len(left) == 2
    assert _files(alone)[0].name in names - left
    small = FlowCache(folder=tmp_path / "small", max_bytes=size - 1)
    assert _equal(list(small.pairs(first)), list(alone.pairs(first)))
    assert _files(small) == []


def test_what_a_dead_process_left_is_removed_and_a_live_one_keeps_its_part(cache: FlowCache) -> None:
    cache.folder.mkdir()
    dead, live = cache.folder / "dead.part", cache.folder / "live.part"
    dead.write_bytes(b"x")
    live.write_bytes(b"x")
    os.utime(dead, (1, 1))
    list(cache.pairs(_video()))
    assert not dead.exists()
    assert live.exists()


def test_a_folder_that_cannot_be_written_costs_time_and_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    video = _video()
    with caplog.at_level(logging.WARNING):
        found = list(FlowCache(folder=tmp_path / "file" / "flow").pairs(video))
    assert len(found) == 4
    assert "flow is not kept" in caplog.text


def test_a_full_disk_costs_time_and_no_result(
    cache: FlowCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING):
        assert len(list(cache.pairs(_video()))) == 4
    assert "No space left" in caplog.text
    assert _files(cache) == []


def test_threads_share_a_folder(cache: FlowCache) -> None:
    videos = [_video(3, seed=seed) for seed in range(3)]
    expected = [[flow_pair(a, b) for a, b in itertools.pairwise(video)] for video in videos]
    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(lambda video: list(cache.pairs(video)), videos * 4)):
            assert _equal(found, expected[index % 3])
    assert len(_files(cache)) == 3


def test_short_videos_have_no_pair(cache: FlowCache) -> None:
    assert list(cache.pairs([])) == []
    assert list(cache.pairs(_video(1))) == []


def test_flow_of_frames_reads_as_written(cache: FlowCache) -> None:
    pair = next(iter(cache.pairs(_video(2))))
    whole: Flow = pair[0]
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, whole.astype(np.float16))


def test_bad_arguments_are_named(cache: FlowCache) -> None:
    a = _texture(20, 30)
    with pytest.raises(ValueError, match=r"must have one shape, got \(20, 30, 3\) and \(20, 29, 3\)"):
        flow(a, a[:, :29])
    refused: list[Any] = [a[..., 0], a.astype(np.float32), a[..., :2]]
    for bad in refused:
        with pytest.raises(ValueError, match=r"frames must be \(H, W, 3\) uint8"):
            flow(bad, bad)
    with pytest.raises(ValueError, match="frames must be iterable more than once"):
        list(cache.pairs(iter([a, a])))
    with pytest.raises(ValueError, match=r"one size, got \(20, 30\) and, as frame 1, \(20, 29\)"):
        list(cache.pairs([a, a[:, :29]]))
    with pytest.raises(ValueError, match=r"flow\.above must be one of ultrafast, fast, medium, got 'slow'"):
        FlowConfig(above="slow")
    with pytest.raises(ValueError, match=r"flow\.short_side must be >= 1"):
        FlowConfig(short_side=0)
    with pytest.raises(ValueError, match="max_bytes must be >= 0"):
        FlowCache(folder=cache.folder, max_bytes=-1)
