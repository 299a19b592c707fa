"""Laws of clips of a release: whole videos in the order of time, gaps kept, nothing read that the release denies."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.release import parse_release, render_release
from manifests.verify import verify_release
from pipeline.clip_release import _names
from pipeline.clips import ClipConfig, digest, find_clips, read_clip
from tests.pipeline.clip_sets import assert_holds, drawn, put, refusal, write_release

FRAMES = drawn(8)


def test_the_drawn_release_is_a_good_one(tmp_path: Path) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", n) for n in range(8)])
    assert not [p for p in verify_release(tmp_path, pixels=False) if p.path.startswith("shards/") or "sha" in p.message]


def test_frames_of_a_source_come_in_order_of_time_and_gaps_are_kept(tmp_path: Path) -> None:
    numbers = [7, 3, 4, 0, 20, 21, 22, 1]
    write_release(tmp_path, FRAMES, [("in/walk.mp4", number) for number in numbers])
    (clip,) = find_clips(tmp_path)
    frames = list(read_clip(clip))
    ordered = sorted(numbers)
    assert [frame.name for frame in frames] == [f"{number:05d}" for number in ordered]
    assert [frame.follows for frame in frames] == [False, True, False, True, False, False, True, True]
    assert [frame.seconds for frame in frames] == [number * 0.04 for number in ordered]
    for frame, number in zip(frames, ordered, strict=True):
        np.testing.assert_array_equal(frame.image, FRAMES[numbers.index(number)].pixels)


@pytest.mark.parametrize(("gap", "expected"), [(0.0, 0), (0.19, 0), (0.2, 6), (0.5, 7)])
def test_sparse_frames_are_neighbours_only_as_near_as_the_setting_says(
    gap: float, expected: int, tmp_path: Path
) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", 5 * n + 2 * (n == 7)) for n in range(8)])
    config = ClipConfig(gap_seconds=gap)
    (clip,) = find_clips(tmp_path, config)
    assert sum(frame.follows for frame in read_clip(clip, config)) == expected


def test_each_video_is_a_clip_with_a_short_distinct_name(tmp_path: Path) -> None:
    places = [(uri, n) for uri in ("/in/a/walk.mp4", "/in/b/walk.mp4") for n in range(4)]
    write_release(tmp_path, FRAMES, places)
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["a/walk", "b/walk"]
    assert_holds(clips[0], FRAMES[:4])
    assert_holds(clips[1], FRAMES[4:])


@pytest.mark.parametrize(("kind", "uri"), [("parquet", "in/t.parquet"), ("image", "in/{n}.jpg")])
def test_stills_and_rows_are_clips_of_one_frame(kind: str, uri: str, tmp_path: Path) -> None:
    places = [(uri.format(n=n), n if kind == "parquet" else 0) for n in range(8)]
    write_release(tmp_path, FRAMES, places, media_kind=kind)
    clips = find_clips(tmp_path)
    assert [clip.count for clip in clips] == [1] * 8
    for clip, frame in zip(clips, FRAMES, strict=True):
        assert_holds(clip, [frame])


_PARTS = st.lists(st.sampled_from(["a", "b.mp4", "b.mov", "c.d"]), min_size=1, max_size=4)


@given(st.lists(_PARTS, min_size=1, max_size=8, unique_by=tuple))
def test_names_of_sources_are_distinct_and_end_their_paths(paths: list[list[str]]) -> None:
    keys = ["/" + "/".join(parts) for parts in paths]
    names = _names(keys)
    assert len(set(names.values())) == len(keys)
    for key, name in names.items():
        assert name
        assert key.endswith(name) or key.removesuffix(".mp4").removesuffix(".mov").removesuffix(".d").endswith(name)


def test_pixels_that_no_loss_may_use_are_void(tmp_path: Path) -> None:
    places = [("in/walk.mp4", n) for n in range(8)]
    write_release(tmp_path, FRAMES, places, ignore={3: ~FRAMES[3].mask})
    (clip,) = find_clips(tmp_path)
    for frame in read_clip(clip):
        assert (frame.void is not None) == (frame.index == 3)
        if frame.void is not None:
            np.testing.assert_array_equal(frame.void, ~FRAMES[3].mask)


def test_only_the_chosen_splits_are_read(tmp_path: Path) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", n) for n in range(8)], split="train")
    assert len(find_clips(tmp_path, ClipConfig(splits=("train",)))) == 1
    assert "must hold a sample in test" in refusal(tmp_path, ClipConfig(splits=("test",)))


@pytest.mark.parametrize("file", ["manifest", "shards"])
def test_a_damaged_release_is_refused_by_file(file: str, tmp_path: Path) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", n) for n in range(8)])
    (path,) = (tmp_path / file).rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 64
    path.write_bytes(data)
    for _ in range(2):
        message = refusal(tmp_path)
        assert message == f"{path} is missing, or not the file that the release states; run curate verify"
        path.unlink(missing_ok=True)


def test_a_shard_of_another_release_is_refused(tmp_path: Path) -> None:
    places = [("in/walk.mp4", n) for n in range(8)]
    write_release(tmp_path / "a", FRAMES, places)
    write_release(tmp_path / "b", drawn(8, 5)[::-1], places)
    shard = "shards/test/00000-of-00001.parquet"
    put(tmp_path / "a" / shard, (tmp_path / "b" / shard).read_bytes())
    (clip,) = find_clips(tmp_path / "a")
    assert f"{shard} is missing, or not the file that the release states" in refusal(tmp_path / "a")
    assert digest(clip) != digest(find_clips(tmp_path / "b")[0])


def test_two_samples_of_one_frame_are_refused(tmp_path: Path) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", n // 2) for n in range(8)])
    assert "are the same frame" in refusal(tmp_path)


def test_a_release_file_that_is_none_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path, FRAMES, [("in/walk.mp4", n) for n in range(8)])
    data = (tmp_path / "release.json").read_bytes()
    assert render_release(parse_release(data)) == data
    put(tmp_path / "release.json", data[:-1])
    assert "run curate verify" in refusal(tmp_path)
