"""Laws of clips: every layout of the same pixels gives the same frames and truths; nothing is skipped in silence."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.image import ImageLimits
from pipeline.clip_formats import neighbours, numbers_of
from pipeline.clips import Clip, ClipConfig, digest, find_clips, read_clip, read_videos_table
from pipeline.errors import InputError
from tests.pipeline.clip_sets import (
    Drawn,
    assert_holds,
    drawn,
    film,
    png,
    put,
    refusal,
    write_coco,
    write_davis,
    write_frames,
    write_release,
    write_video,
)

FRAMES = drawn()
WRITERS: dict[str, Callable[[Path], Any]] = {
    "frames": lambda root: write_frames(root, "walk", FRAMES),
    "davis": lambda root: write_davis(root, "walk", FRAMES),
    "davis without resolutions": lambda root: write_davis(root, "walk", FRAMES, resolution="."),
    "video with .mask": lambda root: write_video(root, "walk", FRAMES),
    "video with _mask": lambda root: write_video(root, "walk", FRAMES, "{name}_mask.mkv"),
    "video with masks/": lambda root: write_video(root, "walk", FRAMES, "masks/{name}.mkv"),
    "coco": lambda root: write_coco(root, "walk", FRAMES),
    "release": lambda root: write_release(root, FRAMES, [("in/walk.mp4", n) for n in range(len(FRAMES))]),
}


# Every layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_of_the_same_pixels_gives_the_same_frames_and_truths(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    (clip,) = find_clips(tmp_path)
    assert (clip.name, clip.layout, clip.labelled) == ("walk", layout.split(maxsplit=1)[0], True)
    assert clip.count == len(FRAMES) or (clip.layout == "video" and clip.count is None)
    assert clip.bytes > 0
    assert_holds(clip, FRAMES)


def test_layouts_may_stand_side_by_side_and_come_sorted_by_name(tmp_path: Path) -> None:
    for number, write in enumerate(WRITERS.values()):
        write(tmp_path / f"set{number}")
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == [f"set{number}/walk" for number in range(len(WRITERS))]
    for clip in clips:
        assert_holds(clip, FRAMES)


def test_a_folder_that_is_itself_a_clip_has_its_name(tmp_path: Path) -> None:
    (clip,) = find_clips(write_frames(tmp_path, "walk", FRAMES))
    assert clip.name == "walk"


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(["frames", "video with .mask", "coco"], 2)))
def test_two_clips_of_one_name_are_refused_and_both_named(one: str, other: str, tmp_path: Path) -> None:
    for layout in (one, other):
        WRITERS[layout](tmp_path)
    assert re.search(r"clip 'walk' is ambiguous: both .*walk.* and .*(walk|people).* claim it", refusal(tmp_path))


def test_a_folder_of_two_shapes_is_refused_and_both_named(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    write_frames(tmp_path.parent, tmp_path.name, FRAMES)
    assert "ambiguous: both" in refusal(tmp_path)


def test_a_video_beside_frames_is_no_clip_of_its_own_unless_it_has_another_name(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, "walk", FRAMES)
    film(folder / "walk.mkv", [frame.pixels for frame in FRAMES])
    assert len(find_clips(tmp_path)) == 1
    film(folder / "run.mkv", [frame.pixels for frame in FRAMES])
    assert "run.mkv" in refusal(tmp_path)


@pytest.mark.parametrize("layout", ["frames", "davis"])
def test_a_coco_file_over_labelled_folders_is_refused(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    (clip,) = find_clips(tmp_path)
    coco = write_coco(tmp_path / "other", "walk", FRAMES).read_text()
    place = Path(clip.frames).relative_to(tmp_path).as_posix()
    put(tmp_path / "people.json", coco.replace('"walk/', f'"{place}/').encode())
    for path in sorted((tmp_path / "other").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "ambiguous" in refusal(tmp_path)


def test_an_image_that_belongs_to_no_clip_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path, "walk", FRAMES)
    put(tmp_path / "stray" / "a.jpg", FRAMES[0].jpeg)
    assert "a.jpg belongs to no clip" in refusal(tmp_path)


@pytest.mark.parametrize("what", ["empty", "absent", "a text"])
def test_a_folder_without_clips_is_refused(what: str, tmp_path: Path) -> None:
    if what == "a text":
        put(tmp_path / "readme.txt", b"x")
    assert "clip" in refusal(tmp_path if what != "absent" else tmp_path / "none")


def test_hidden_files_and_folders_are_not_looked_at(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, "walk", FRAMES)
    put(folder / "frames" / ".DS_Store", b"x")
    put(tmp_path / ".cache" / "x.jpg", b"x")
    (clip,) = find_clips(tmp_path)
    assert_holds(clip, FRAMES)


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    write_frames(tmp_path, "walk", FRAMES)
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(find_clips(tmp_path)) == 1


# Folders --------------------------------------------------------------------------------------------------------------


def test_frames_without_masks_are_an_unlabelled_clip(tmp_path: Path) -> None:
    write_frames(tmp_path, "walk", FRAMES, masks=False)
    (clip,) = find_clips(tmp_path)
    assert not clip.labelled
    assert [frame.truth for frame in read_clip(clip)] == [None] * len(FRAMES)


def test_ignored_pixels_are_void_and_instances_are_not_read(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, "walk", FRAMES)
    put(folder / "ignore" / "00001.png", png(FRAMES[0].mask * 255))
    put(folder / "instances" / "00001.png", png(FRAMES[0].mask * 3))
    (clip,) = find_clips(tmp_path)
    voids = [frame.void for frame in read_clip(clip)]
    assert [void is None for void in voids] == [True, False, True, True]
    np.testing.assert_array_equal(voids[1], FRAMES[0].mask)


Damage = Callable[[Path], Any]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a missing mask": (lambda f: (f / "masks/00002.png").unlink(), "'00002' must have a mask"),
    "a surplus mask": (lambda f: (f / "frames/00002.jpg").unlink(), "'00002' must have a frame"),
    "a surplus ignore mask": (lambda f: put(f / "ignore/9.png", png(FRAMES[0].mask)), "'9' must have a frame"),
    "two files of one stem": (lambda f: put(f / "masks/00002.PNG", b"x"), "00002.PNG and 00002.png"),
    "a folder among frames": (lambda f: (f / "frames/more").mkdir(), "files alone"),
    "a gray mask": (lambda f: put(f / "masks/00002.png", png(FRAMES[2].mask * 200)), "00002.png: a mask must hold 0"),
    "labels": (lambda f: put(f / "masks/00002.png", png(FRAMES[2].mask * 3)), "00002.png: UnsupportedFormat"),
    "a mask of another size": (
        lambda f: put(f / "masks/00002.png", png(np.zeros((40, 64)))),
        "size 64x48, that of 00002 is 64x40",
    ),
    "a frame of another size": (
        lambda f: put(f / "frames/00002.jpg", drawn(1, 0, 64, 64)[0].jpeg),
        "must have one size",
    ),
    "a broken frame": (lambda f: put(f / "frames/00002.jpg", FRAMES[2].jpeg[:300]), "00002.jpg: Truncated"),
    "an empty mask file": (lambda f: put(f / "masks/00002.png", b""), "00002.png: EmptyFile"),
    "a tiny frame": (lambda f: put(f / "frames/00002.jpg", png(np.zeros((24, 30)))), "00002.jpg: TooSmall"),
    "a name without a number": (lambda f: (f / "frames/00002.jpg").rename(f / "frames/last.jpg"), "number"),
    "ignore without masks": (lambda f: (f / "masks").rename(f / "ignore"), "must have masks/"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_folders_that_do_not_fit_together_are_refused_by_name(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    damage(write_frames(tmp_path, "walk", FRAMES))
    assert message in refusal(tmp_path)


def test_limits_hold_before_decoding(tmp_path: Path) -> None:
    write_frames(tmp_path, "walk", FRAMES)
    assert "TooLarge" in refusal(tmp_path, ClipConfig(limits=ImageLimits(pixels=48 * 64 - 1)))
    assert "at most 3 frames" in refusal(tmp_path, ClipConfig(max_frames=3))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20, unique=True), st.sampled_from(["", "frame_", "a-1b"]))
def test_numbers_are_those_of_the_names_whatever_their_padding(numbers: list[int], prefix: str) -> None:
    stems = [f"{prefix}{number:0{index % 4}d}" for index, number in enumerate(numbers)]
    assert numbers_of(stems, "clip") == numbers


@pytest.mark.parametrize("stems", [[], ["a"], ["a1", "b2"], ["1", "01"], ["x1y", "x2y"], ["1" * 19]])
def test_names_that_give_no_order_are_refused(stems: list[str]) -> None:
    with pytest.raises(InputError):
        numbers_of(stems, "clip")


@given(st.integers(0, 99), st.integers(1, 9), st.lists(st.booleans(), min_size=3, max_size=30))
def test_frames_follow_each_other_but_across_gaps(start: int, step: int, kept: list[bool]) -> None:
    numbers = [start + step * i for i in range(6 * len(kept)) if i % 6 or kept[i // 6]]
    expected = [False, *(after - before == step for before, after in itertools.pairwise(numbers))]
    assert neighbours(numbers) == expected


def test_a_dropped_frame_breaks_the_clip_in_two(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, "walk", drawn(7))
    for part, suffix in (("frames", "jpg"), ("masks", "png")):
        (folder / part / f"00003.{suffix}").unlink()
    (clip,) = find_clips(tmp_path)
    assert [frame.follows for frame in read_clip(clip)] == [False, True, True, False, True, True]


# DAVIS ----------------------------------------------------------------------------------------------------------------


def test_objects_that_are_no_persons_are_background_or_void_by_choice(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    corner = np.zeros_like(FRAMES[0].mask)
    corner[:4, :4] = True
    for config, void in ((ClipConfig(), None), (ClipConfig(others="void"), corner)):
        (clip,) = find_clips(tmp_path, config)
        for frame, expected in zip(read_clip(clip, config), FRAMES, strict=True):
            np.testing.assert_array_equal(frame.truth, expected.mask)
            if void is None:
                assert frame.void is None
            else:
                np.testing.assert_array_equal(frame.void, void)


@pytest.mark.parametrize("table", ["all", "file", "star"])
def test_all_objects_are_persons_where_the_table_says_so(table: str, tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    (tmp_path / "persons.json").unlink()
    path = put(tmp_path / "t.toml", b'walk = "all"' if table == "file" else b'"*" = [1, 2]')
    config = ClipConfig(persons="all" if table == "all" else str(path))
    (clip,) = find_clips(tmp_path, config)
    for frame, expected in zip(read_clip(clip, config), FRAMES, strict=True):
        assert frame.truth is not None
        assert frame.truth[:4, :4].all()
        np.testing.assert_array_equal(frame.truth[4:], expected.mask[4:])


def test_index_255_of_a_palette_is_void(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    ids = np.where(FRAMES[0].mask, 2, 255)
    put(tmp_path / "Annotations/480p/walk/00000.png", png(ids, palette=True))
    (clip,) = find_clips(tmp_path)
    frame = next(iter(read_clip(clip)))
    np.testing.assert_array_equal(frame.truth, FRAMES[0].mask)
    np.testing.assert_array_equal(frame.void, ~FRAMES[0].mask)


def test_a_gray_annotation_of_0_and_255_is_object_1(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    put(tmp_path / "persons.json", b'{"walk": [1]}')
    for number, frame in enumerate(FRAMES):
        put(tmp_path / f"Annotations/480p/walk/{number:05d}.png", png(frame.mask * 255))
    (clip,) = find_clips(tmp_path)
    assert_holds(clip, FRAMES)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "need a table of which are persons"),
        (b"{}", "'walk' must be a list of ids"),
        (b'{"walk": [0]}', "list of ids in 1..254"),
        (b'{"walk": [2, 7]}', "no object 7"),
        (b"[", "no readable table"),
        (b"[1]", "must map clips to ids"),
    ],
)
def test_a_table_of_persons_that_cannot_be_right_is_refused(table: bytes | None, message: str, tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    (tmp_path / "persons.json").unlink() if table is None else put(tmp_path / "persons.json", table)
    assert message in refusal(tmp_path)


def test_annotations_without_ids_are_refused(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    mask = tmp_path / "Annotations/480p/walk/00001.png"
    put(mask, png(FRAMES[1].mask * 2))
    assert "must have a palette" in refusal(tmp_path)
    put(mask, FRAMES[1].jpeg)
    assert "must be a PNG" in refusal(tmp_path)
    put(mask, png(FRAMES[1].mask * 2, palette=True)[:-60])
    assert "00001.png: Corrupt" in refusal(tmp_path)


def test_of_several_resolutions_one_must_be_chosen(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES, "480p")
    write_davis(tmp_path, "walk", drawn(4, 1, 96, 128), "1080p")
    assert "ambiguous" in refusal(tmp_path)
    (clip,) = find_clips(tmp_path, ClipConfig(resolution="480p"))
    assert_holds(clip, FRAMES)


def test_davis_frames_and_annotations_need_each_other(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    write_davis(tmp_path, "run", FRAMES)
    frames = tmp_path / "JPEGImages/480p/walk"
    frames.rename(tmp_path / ".away")
    assert "Annotations/480p/walk has no folder of frames" in refusal(tmp_path)
    (tmp_path / ".away").rename(frames)
    (tmp_path / "Annotations/480p/walk").rename(tmp_path / ".away")
    assert "JPEGImages/480p/walk must have its masks in" in refusal(tmp_path)


# Digests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_a_digest_is_of_the_content_and_not_of_the_place(layout: str, tmp_path: Path) -> None:
    clips: list[Clip] = []
    for place in ("a", "b"):
        WRITERS[layout](tmp_path / place)
        clips += find_clips(tmp_path / place)
    for truth in (True, False):
        assert digest(clips[0], truth=truth) == digest(clips[1], truth=truth)


@pytest.mark.parametrize("layout", [name for name in WRITERS if name != "release"])
def test_another_mask_changes_the_digest_but_not_that_of_the_frames(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    (before,) = find_clips(tmp_path)
    whole, frames = digest(before), digest(before, truth=False)
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix in (".png", ".json") or ("mask" in path.name and path.is_file()) or path.parent.name == "masks":
            path.write_bytes(path.read_bytes() + b" ")
    (after,) = find_clips(tmp_path)
    assert digest(after) != whole
    assert digest(after, truth=False) == frames


@pytest.mark.parametrize("layout", WRITERS)
def test_other_frames_change_both_digests(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "a")
    other = [*FRAMES[:3], drawn(1, seed=9)[0]]
    writers: dict[str, Callable[[Path], Any]] = {
        "frames": lambda root: write_frames(root, "walk", other),
        "davis": lambda root: write_davis(root, "walk", other, "." if " " in layout else "480p"),
        "video": lambda root: write_video(root, "walk", other, "{name}.mask.mkv"),
        "coco": lambda root: write_coco(root, "walk", other),
        "release": lambda root: write_release(root, other, [("in/walk.mp4", n) for n in range(4)]),
    }
    writers[layout.split(maxsplit=1)[0]](tmp_path / "b")
    (one,), (two,) = find_clips(tmp_path / "a"), find_clips(tmp_path / "b")
    assert digest(one) != digest(two)
    assert digest(one, truth=False) != digest(two, truth=False)


def test_who_is_a_person_changes_the_digest(tmp_path: Path) -> None:
    write_davis(tmp_path, "walk", FRAMES)
    (clip,) = find_clips(tmp_path)
    others = digest(clip, ClipConfig(others="void"))
    everyone = digest(dataclasses.replace(clip, persons=None))
    assert len({digest(clip), others, everyone}) == 3
    assert digest(clip, ClipConfig(others="void"), truth=False) == digest(clip, truth=False)


# Tables ---------------------------------------------------------------------------------------------------------------


def test_a_table_gives_columns_in_the_order_of_the_clips(tmp_path: Path) -> None:
    table = {"video": ["b", "a"], "subject_id": ["p1", ""], "skin_tone": ["dark", None]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    put(tmp_path / "t.csv", b"video,subject_id,skin_tone\nb,p1,dark\na,,\n")
    for name in ("t.csv", "t.parquet"):
        found = read_videos_table(tmp_path / name, ["a", "b", "c"])
        assert found.subjects == (None, "p1", None)
        assert found.attributes == {"skin_tone": (None, "dark", None)}


def test_a_table_without_subjects_says_so(tmp_path: Path) -> None:
    assert read_videos_table(put(tmp_path / "t.csv", b"video\na\n"), ["a"]).subjects is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\na\n", "needs a column 'video'"),
        ("video\nwalk1\n", r"row 1: 'walk1' is no clip; did you mean 'walk'\?"),
        ("video\nxyz\n", "'xyz' is no clip; remove the row"),
        ("video\nwalk\nwalk\n", "row 2: 'walk' has row 1 already"),
        ("video,x\n,1\n", "must not be empty"),
        ("video,x,x\nwalk,1,2\n", "more than one column 'x'"),
        ("video,a b\nwalk,1\n", "'a b' must be letters"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_videos_table(put(tmp_path / "t.csv", text.encode()), ["walk", "run"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"video_pixels": 0},
        {"max_frames": 0},
        {"grey": 1.1},
        {"gap_seconds": -1.0},
        {"others": "x"},
        {"splits": ()},
        {"splits": ("audit",)},
        {"category": ""},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"clips.{next(iter(wrong))} must"):
        ClipConfig(**wrong)


# Real clips -----------------------------------------------------------------------------------------------------------


def test_real_labelled_clips_are_read_whole(data: Path) -> None:
    folder = data / "labelled_clips"
    counts = {"schoolgirls": 80, "dance-twirl": 90, "bmx-trees": 80, "tennis_biased": 70}
    counts |= {"talk_green": 78, "talk_composite": 50}
    clips = find_clips(folder)
    assert {clip.name: clip.count for clip in clips} == counts
    for clip in clips:
        frames = list(itertools.islice(read_clip(clip), 3))
        assert [frame.follows for frame in frames] == [False, True, True]
        assert all(frame.truth is not None and frame.truth.any() for frame in frames)
        assert all((frame.void is not None) == (clip.name == "schoolgirls") for frame in frames)


def test_real_videos_without_truth_are_read_in_time(data: Path, tmp_path: Path) -> None:
    for name in ("odd_vp9.webm", "odd_rotate90_meta.mp4", "odd_mjpeg_421x317.avi", "odd_single_frame.mp4"):
        (tmp_path / name).symlink_to((data / "clips" / name).resolve())
    for clip in find_clips(tmp_path):
        assert not clip.labelled
        assert clip.fps is not None
        frames = list(itertools.islice(read_clip(clip), 5))
        assert [frame.follows for frame in frames] == [index > 0 for index in range(len(frames))]
        times = [frame.seconds for frame in frames if frame.seconds is not None]
        assert times == sorted(set(times))


def test_coco_json_written_by_hand_reads_as_documented(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "walk", FRAMES)
    value = json.loads(path.read_text())
    polygon = {"id": 100, "image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 6, 0, 6, 5, 0, 5]]}
    crowd = {"size": [48, 64], "counts": [0, 48, 48 * 63]}
    value["annotations"] += [polygon, {**polygon, "id": 101, "iscrowd": 1, "segmentation": crowd}]
    put(path, json.dumps(value).encode())
    (clip,) = find_clips(tmp_path)
    frame: Any = next(iter(read_clip(clip)))
    expected = FRAMES[0].mask.copy()
    expected[:5, :6] = True
    np.testing.assert_array_equal(frame.truth, expected)
    np.testing.assert_array_equal(frame.void[:, 0], np.arange(48) >= 5)
    assert not frame.void[:, 1:].any()


def test_drawn_frames_differ() -> None:
    assert all(isinstance(frame, Drawn) and frame.mask.any() and not frame.mask.all() for frame in FRAMES)
    assert len({frame.jpeg for frame in FRAMES}) == len(FRAMES)
