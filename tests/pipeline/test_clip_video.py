"""Laws of clips that are videos: mask videos of the same length and size, black and white; time tells the gaps."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.clips import ClipConfig, find_clips, read_clip
from tests.pipeline.clip_sets import Pixels, assert_holds, drawn, film, put, refusal, write_video
from tests.pipeline.media import video

FRAMES = drawn(6)
MASKS = [frame.mask.astype(np.uint8) * 255 for frame in FRAMES]


def test_a_video_alone_is_an_unlabelled_clip_with_times(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", [frame.pixels for frame in FRAMES])
    (clip,) = find_clips(tmp_path)
    assert (clip.labelled, clip.fps) == (False, 25.0)
    frames = list(read_clip(clip))
    assert [frame.name for frame in frames] == [f"{n:05d}" for n in range(6)]
    np.testing.assert_allclose([frame.seconds or 0.0 for frame in frames], np.arange(6) / 25, atol=1e-6)
    assert all(frame.truth is None for frame in frames)


def test_a_compressed_mask_video_gives_nearly_the_masks(tmp_path: Path) -> None:
    large = drawn(6, 3, 240, 320)
    film(tmp_path / "walk.mkv", [frame.pixels for frame in large])
    video(
        [np.repeat(f.mask[:, :, None], 3, axis=2).astype(np.uint8) * 255 for f in large], to=tmp_path / "walk_mask.mp4"
    )
    (clip,) = find_clips(tmp_path)
    for frame, expected in zip(read_clip(clip), large, strict=True):
        assert frame.truth is not None
        assert (frame.truth != expected.mask).mean() < 0.002


def test_frames_do_not_follow_across_dropped_ones(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", [frame.pixels for frame in FRAMES], times=[0, 1, 2, 5, 6, 7])
    (clip,) = find_clips(tmp_path)
    assert [frame.follows for frame in read_clip(clip)] == [False, True, True, False, True, True]


def test_times_that_step_back_are_no_gap(data: Path, tmp_path: Path) -> None:
    name = "odd_megamind_bugy.avi"
    (tmp_path / name).symlink_to((data / "clips" / name).resolve())
    (clip,) = find_clips(tmp_path)
    frames = list(read_clip(clip))
    times = [frame.seconds or 0.0 for frame in frames]
    assert all(after > before for before, after in itertools.pairwise(times))
    assert sum(frame.follows for frame in frames) > 0.9 * len(frames)


def test_real_gaps_of_a_variable_rate_are_gaps(data: Path, tmp_path: Path) -> None:
    (tmp_path / "odd_vfr.mp4").symlink_to((data / "clips/odd_vfr.mp4").resolve())
    (clip,) = find_clips(tmp_path)
    frames = list(read_clip(clip))
    apart = np.diff([frame.seconds or 0.0 for frame in frames])
    assert [frame.follows for frame in frames[1:]] == (apart < 0.05).tolist()
    assert 10 < (apart > 0.05).sum() < 20


@pytest.mark.parametrize(("frames", "masks"), [(6, 5), (5, 6), (6, 1)])
def test_videos_of_different_length_are_refused(frames: int, masks: int, tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", [frame.pixels for frame in FRAMES[:frames]])
    film(tmp_path / "walk.mask.mkv", MASKS[:masks])
    assert f"ends after {min(frames, masks)} frames" in refusal(tmp_path)


def test_a_mask_video_of_another_size_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", [frame.pixels for frame in FRAMES])
    film(tmp_path / "walk.mask.mkv", [mask[:40] for mask in MASKS])
    assert "size 64x48, that of 00000 is 64x40" in refusal(tmp_path)


def test_a_mask_video_of_grays_is_refused_beyond_the_stated_share(tmp_path: Path) -> None:
    gray: list[Pixels] = [mask.copy() for mask in MASKS]
    gray[4][:4, :64] = 100  # 4 of 48 rows: 8.3 %
    film(tmp_path / "walk.mkv", [frame.pixels for frame in FRAMES])
    film(tmp_path / "walk.mask.mkv", gray)
    message = refusal(tmp_path)
    assert "walk.mask.mkv frame 4" in message
    assert "8.3% are" in message
    config = ClipConfig(grey=0.1)
    (clip,) = find_clips(tmp_path, config)
    assert_holds(clip, FRAMES, config=config)


def test_a_mask_video_without_its_video_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "walk_mask.mkv", MASKS)
    assert "must have a video 'walk'" in refusal(tmp_path)
    (tmp_path / "walk_mask.mkv").unlink()
    film(tmp_path / "masks" / "walk.mkv", MASKS)
    assert "must have a video 'walk'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("one", "other"), itertools.combinations(["{name}.mask.mkv", "{name}_mask.mkv", "masks/{name}.mkv"], 2)
)
def test_two_mask_videos_are_refused_and_both_named(one: str, other: str, tmp_path: Path) -> None:
    for mask in (one, other):
        write_video(tmp_path, "walk", FRAMES, mask)
    message = refusal(tmp_path)
    assert all(str(tmp_path / mask.format(name="walk")) in message for mask in (one, other))


def test_a_folder_of_mask_videos_and_other_things_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path, "walk", FRAMES, "masks/{name}.mkv")
    put(tmp_path / "masks" / "notes.txt", b"x")
    assert "must hold mask videos alone" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "must be MP4"), (b"#EXTM3U\n", "must be MP4"), (b"\x1a\x45\xdf\xa3" + bytes(60), "walk.mkv: ")],
)
def test_what_is_no_video_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    put(tmp_path / "walk.mkv", content)
    assert message in refusal(tmp_path)


def test_a_truncated_video_is_refused_by_name(tmp_path: Path) -> None:
    content = video([frame.pixels for frame in FRAMES] * 5, to=tmp_path / "walk.mp4")
    put(tmp_path / "walk.mp4", content[: len(content) * 2 // 3])
    assert "walk.mp4: Truncated" in refusal(tmp_path)


def test_limits_bind_videos(tmp_path: Path) -> None:
    video([frame.pixels for frame in FRAMES], to=tmp_path / "walk.mp4")
    assert "TooLarge" in refusal(tmp_path, ClipConfig(video_pixels=48 * 64 - 1))
    assert "TooLong" in refusal(tmp_path, ClipConfig(max_frames=5))
